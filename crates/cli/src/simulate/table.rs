//! What simulations gave, for a person.

use std::fmt::Write;

use super::{Answer, Cell, TokenCell};

/// One line for each policy and load, then the models of each.
pub(super) fn of(cells: &[Cell]) -> String {
    let mut text = String::new();
    let mut add = |line: String| writeln!(text, "{line}").expect("a string takes every text");
    add(format!(
        "{:<10}{:>6} {:>11}{:>12}{:>11}{:>8}",
        "policy", "load", "attainment", "in time/s", "admitted", "busy"
    ));
    for cell in cells {
        let Cell { policy, load, attainment, goodput, kept, utilisation, .. } = cell;
        add(format!(
            "{policy:<10}{load:>6.2} {attainment:>11.4}{goodput:>12.1}{kept:>11.4}{utilisation:>8.3}"
        ));
    }
    add(format!(
        "\n{:<10}{:>6} {:<20}{:>11}{:>12}{:>10}{:>10}{:>11}",
        "policy", "load", "model", "attainment", "answered/s", "p50 ms", "p99 ms", "rows/step"
    ));
    for cell in cells {
        for model in &cell.models {
            add(format!(
                "{:<10}{:>6.2} {:<20}{:>11.4}{:>12.1}{:>10.2}{:>10.2}{:>11.2}",
                cell.policy,
                cell.load,
                model.name,
                model.attainment,
                model.answered_per_second,
                model.p50_ms,
                model.p99_ms,
                model.rows_per_step
            ));
        }
    }
    if cells.iter().flat_map(|cell| &cell.models).any(|model| model.tokens.is_some()) {
        add(format!(
            "\n{:<10}{:>6} {:<20}{:>14}{:>10}{:>14}{:>10}",
            "policy", "load", "model", "first p50 ms", "p99 ms", "each p50 ms", "p99 ms"
        ));
    }
    for (cell, model) in cells.iter().flat_map(|cell| cell.models.iter().map(move |model| (cell, model))) {
        if let Some(TokenCell { first_p50_ms, first_p99_ms, each_p50_ms, each_p99_ms }) = &model.tokens {
            add(format!(
                "{:<10}{:>6.2} {:<20}{first_p50_ms:>14.1}{first_p99_ms:>10.1}{each_p50_ms:>14.2}{each_p99_ms:>10.2}",
                cell.policy, cell.load, model.name
            ));
        }
    }
    if cells.iter().any(|cell| !cell.tenants.is_empty()) {
        add(format!(
            "\n{:<10}{:>6} {:<20}{:>11}{:>12}{:>10}{:>10}{:>10}  {}",
            "policy", "load", "tenant", "asked/s", "answered/s", "device", "p50 ms", "p99 ms", "not answered"
        ));
    }
    for (cell, tenant) in cells.iter().flat_map(|cell| cell.tenants.iter().map(move |tenant| (cell, tenant)))
    {
        let failures: Vec<String> =
            tenant.failures.iter().map(|(why, count)| format!("{why} {count}")).collect();
        add(format!(
            "{:<10}{:>6.2} {:<20}{:>11.1}{:>12.1}{:>10.4}{:>10.2}{:>10.2}  {}",
            cell.policy,
            cell.load,
            tenant.name,
            tenant.asked_per_second,
            tenant.answered_per_second,
            tenant.device_share,
            tenant.p50_ms,
            tenant.p99_ms,
            failures.join(", ")
        ));
    }
    text
}

/// The answer of a plan.
pub(super) fn plan(answer: &Answer, load: Option<f64>) -> String {
    let Answer { policy, attainment, load_per_device, rates, devices } = answer;
    let mut text = format!(
        "under `{policy}` one device meets every objective for {:.1} % of requests up to a load of {load_per_device:.2}:\n",
        attainment * 100.0
    );
    for (name, rate) in rates {
        writeln!(text, "  {name:<24}{rate:>10.1}/s").expect("a string takes every text");
    }
    if let (Some(load), Some(devices)) = (load, devices) {
        writeln!(text, "a load of {load} needs {devices} devices, each with an even share")
            .expect("as above");
    }
    text
}
