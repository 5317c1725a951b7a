//! Tenants of a simulated workload: what each may have, whose a model's requests are, and what became of
//! them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use quadrant_policy::TenantTerms;
use quadrant_sim::{Outcome, TenantReport};
use quadrant_types::Priority;
use serde::{Deserialize, Serialize};

use super::workload::{Workload, within};
use crate::tenants::request_rate;

/// What a workload says of a tenant, in the words of the configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WrittenTenant {
    weight: Option<u32>,
    priority_max: Option<u32>,
    requests_per_second: Option<f64>,
    burst: Option<u32>,
    concurrency: Option<u32>,
    device_share: Option<f64>,
}

/// One tenant under one policy at one load, over all runs.
#[derive(Debug, Serialize)]
pub(super) struct TenantCell {
    pub(super) name: String,
    pub(super) asked_per_second: f64,
    pub(super) answered_per_second: f64,
    /// The share of the time of all cores that its steps had.
    pub(super) device_share: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// Requests without an answer, by reason, over all runs.
    pub(super) failures: BTreeMap<&'static str, u64>,
}

/// The tenants by name, as they are numbered.
///
/// # Errors
/// The first value that makes no sense.
pub(super) fn tenants(written: &BTreeMap<String, WrittenTenant>) -> Result<Vec<(String, TenantTerms)>> {
    let checked = |(name, tenant): (&String, &WrittenTenant)| {
        let terms = terms(tenant).with_context(|| format!("tenant `{name}`"))?;
        Ok((name.clone(), terms))
    };
    written.iter().map(checked).collect()
}

fn terms(written: &WrittenTenant) -> Result<TenantTerms> {
    let counts = [written.weight, written.priority_max, written.burst, written.concurrency];
    ensure!(!counts.contains(&Some(0)), "`weight`, `priority_max`, `burst` and `concurrency` are at least 1");
    written.device_share.map_or(Ok(()), |share| within("device_share", share, (1e-6, 1.0)))?;
    Ok(TenantTerms {
        weight: written.weight.unwrap_or(1),
        priority_max: written.priority_max.map(Priority),
        requests: written.requests_per_second.map(|rate| request_rate(rate, written.burst)).transpose()?,
        concurrency_max: written.concurrency,
        bytes_in_max: None,
        device_ppm: written.device_share.map(|share| (share * 1e6).round() as u32),
    })
}

/// Whose the requests of a model are, by the tenants' places in the list, with their shares.
///
/// # Errors
/// A name that is no tenant's, or a share that is none.
pub(super) fn shares(
    written: &BTreeMap<String, f64>,
    tenants: &[(String, TenantTerms)],
) -> Result<Vec<(usize, f64)>> {
    let share = |(name, share): (&String, &f64)| {
        within(&format!("tenants.{name}"), *share, (1e-9, 1e9))?;
        let index = tenants.iter().position(|(known, _)| known == name);
        Ok((index.with_context(|| format!("`tenants.{name}` is no tenant of the workload"))?, *share))
    };
    written.iter().map(share).collect()
}

/// What became of each tenant's requests.
pub(super) fn cells(workload: &Workload, outcomes: &[Outcome]) -> Vec<TenantCell> {
    let device_s = workload.seconds * workload.experiment.cores as f64;
    let cell = |(number, (name, _)): (u32, &(String, TenantTerms))| {
        let reports: Vec<&TenantReport> =
            outcomes.iter().filter_map(|outcome| outcome.report.tenants.get(&number)).collect();
        let mean = |of: &dyn Fn(&TenantReport) -> f64| {
            // Not a sum, which is minus zero if there is nothing.
            reports.iter().map(|report| of(report)).fold(0.0, |sum, value| sum + value)
                / outcomes.len().max(1) as f64
        };
        let mut failures = BTreeMap::new();
        for (why, count) in reports.iter().flat_map(|report| &report.failures) {
            *failures.entry(*why).or_insert(0) += count;
        }
        TenantCell {
            name: name.clone(),
            asked_per_second: mean(&|report| report.arrivals as f64 / workload.seconds),
            answered_per_second: mean(&|report| report.completed as f64 / workload.seconds),
            device_share: mean(&|report| report.core_time.as_secs_f64() / device_s),
            p50_ms: mean(&|report| report.latency(0.5).as_secs_f64() * 1e3),
            p99_ms: mean(&|report| report.latency(0.99).as_secs_f64() * 1e3),
            failures,
        }
    };
    (1..).zip(&workload.experiment.tenants).map(cell).collect()
}

#[cfg(test)]
mod tests {
    use quadrant_policy::Discipline;

    use super::*;

    const FLOOD: &str = "seconds = 40.0\ncores = 2\narrivals.kind = \"poisson\"\n\
        [tenants.flood]\nQUOTA\n[tenants.quiet]\n\
        [[models]]\nname = \"m\"\nstep_ms = 4.0\nnoise = 0.2\nobjective_ms = 100.0\n\
        tenants = { flood = 20.0, quiet = 1.0 }\n";

    /// A flood of twice what the device can do, under this quota.
    fn flooded(quota: &str, load: f64) -> Vec<TenantCell> {
        let workload = Workload::parse(&FLOOD.replace("QUOTA", quota)).unwrap();
        let outcomes = super::super::outcomes(&workload, Discipline::Quadrant, load, 2).unwrap();
        cells(&workload, &outcomes)
    }

    #[test]
    fn a_flood_gets_its_rate_and_no_more() {
        let cells = flooded("requests_per_second = 50.0\nburst = 5", 1.0);
        let [flood, quiet] = &cells[..] else { panic!("{cells:?}") };
        assert!(flood.asked_per_second > 400.0, "{flood:?}");
        assert!((flood.answered_per_second / 50.0 - 1.0).abs() < 0.02, "{flood:?}");
        assert!(quiet.answered_per_second / quiet.asked_per_second > 0.999, "{quiet:?}");
        assert!(flood.failures.contains_key("tenant_requests"), "{flood:?}");
    }

    #[test]
    fn a_flood_gets_its_share_of_the_device_and_no_more() {
        let cells = flooded("device_share = 0.2", 2.0);
        let [flood, quiet] = &cells[..] else { panic!("{cells:?}") };
        // What was saved up before the run is a second's share of forty.
        assert!((flood.device_share / 0.2 - 1.0125).abs() < 0.0325, "{flood:?}");
        assert!(quiet.answered_per_second / quiet.asked_per_second > 0.99, "{quiet:?}");
        assert!(quiet.p99_ms < 30.0, "{quiet:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (from, to, part) in [
            ("QUOTA", "concurrency = 0", "tenant `flood`"),
            ("QUOTA", "device_share = 2.0", "`device_share`"),
            ("quiet = 1.0", "nobody = 1.0", "`tenants.nobody`"),
        ] {
            let text = FLOOD.replace(from, to).replace("QUOTA", "");
            let error = format!("{:#}", Workload::parse(&text).unwrap_err());
            assert!(error.contains(part), "`{text}` gave `{error}`");
        }
    }
}
