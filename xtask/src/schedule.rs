//! Many models on one device, under several policies: the share of requests answered in time over the
//! offered load, live, with real engines.
//!
//! Objectives are four times a model's solo median and 20 ms more. Arrivals follow the Azure Functions trace;
//! every model offers equal core time. All policies see the same arrivals, one after the other; refusals,
//! failures and late answers are misses, and a run is as good as its worst model. `triton` and
//! `triton-tuned` are no policies of ours but a real Triton, see `triton.rs`.

mod curve;
pub(crate) mod fidelity;
pub(crate) mod floor;
pub(crate) mod isolation;
pub(crate) mod mix;
mod picture;
mod steps;
pub(crate) mod tenants;
mod triton;
mod workload;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::measure::{build, median_of, repeat};
use crate::run::{say, target};
use curve::{Point, area, bootstrap, knee, misses_first};
use mix::Mix;
use workload::Calibration;

/// What to compare, and for how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct ScheduleArgs {
    /// Mix `a` is all six models, mix `b` all but the text detector.
    #[arg(long, value_enum, default_value_t = MixName::B)]
    mix: MixName,
    /// Offered loads, as shares of both cores.
    #[arg(long, value_delimiter = ',', default_value = "0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0")]
    loads: Vec<f64>,
    /// Policies to compare; the first is the one that the others are compared with. `fifo-1` is `fifo` with
    /// one thread a session instead of the library's default; `triton` is a real Triton in place of Quadrant,
    /// from a Python package; `triton-tuned` is it with the settings that help it most.
    #[arg(long, value_delimiter = ',', default_value = "quadrant,fifo,clockwork")]
    policies: Vec<String>,
    /// Repetitions that count, each with its own arrivals.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Seconds that are counted in one run.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Queue delays that are tried for `fifo` and Triton beforehand, in milliseconds; each keeps its best.
    #[arg(long, value_delimiter = ',', default_value = "0,2,5")]
    fifo_delays: Vec<f64>,
    /// The first repetition's seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MixName {
    /// All models.
    A,
    /// Without the text detector, whose steps are ten times as long as the others'.
    B,
}

/// One policy's runs: for each repetition, a point for each load.
type Curves = BTreeMap<String, Vec<Vec<Point>>>;

/// Policies whose batches wait for others as long as they are told to.
const DELAYED: [&str; 4] = ["fifo", mix::FIFO_ONE, triton::PLAIN, triton::TUNED];

/// What is written to `target/measure`.
#[derive(Debug, Serialize)]
struct Record<'a> {
    calibration: &'a Calibration,
    curves: &'a Curves,
    voids: usize,
}

/// Measures and compares.
///
/// # Errors
/// If a server cannot be started, or the machine is too noisy.
pub(crate) fn measure(args: &ScheduleArgs) -> Result<()> {
    ensure!(!args.policies.is_empty() && !args.loads.is_empty(), "give at least one policy and one load");
    ensure!(args.loads.windows(2).all(|pair| pair[0] < pair[1]), "give the loads in ascending order");
    build()?;
    let mix = Mix::prepare(args.mix)?;
    let calibration = workload::calibrate(&mix)?;
    for model in &calibration.models {
        say(&format!(
            "  {}: solo {:.2} ms, objective {:.1} ms, {:.3} ms of core time",
            model.name, model.solo_ms, model.objective_ms, model.core_ms
        ));
    }
    let delays = args.policies.iter().map(|policy| tune_delay(args, &mix, &calibration, policy));
    let contenders = args.policies.iter().zip(delays.collect::<Result<Vec<_>>>()?);
    let servers = contenders.map(|(policy, delay_ms)| mix.serve(policy, &calibration, delay_ms));
    let servers = servers.collect::<Result<Vec<_>>>()?;
    let mut curves = Curves::new();
    let mut voids = 0;
    for repetition in 0..args.repetitions {
        args.policies.iter().for_each(|policy| curves.entry(policy.clone()).or_default().push(Vec::new()));
        for load in &args.loads {
            let seed = args.seed + repetition as u64;
            let trace = workload::write_trace(&calibration, *load, args.seconds, seed)?;
            // Nobody is always the first after a pause.
            let mut turns: Vec<_> = args.policies.iter().zip(&servers).collect();
            turns.rotate_left(repetition % args.policies.len());
            for (policy, server) in turns {
                let (mut points, void) = repeat(1, || {
                    workload::run((policy, server), &mix, &calibration, &trace, (*load, args.seconds))
                })?;
                voids += void;
                let point = points.pop().context("a repetition that counts")?;
                say(&format!("  {policy} at {load:.2}: {point}"));
                curves.get_mut(policy).and_then(|runs| runs.last_mut()).context("made above")?.push(point);
            }
        }
    }
    let record = Record { calibration: &calibration, curves: &curves, voids };
    let name = format!("schedule-{}", mix.name());
    std::fs::write(target().join(format!("measure/{name}.json")), serde_json::to_vec_pretty(&record)?)?;
    std::fs::write(target().join(format!("measure/{name}.svg")), picture::attainment(&args.loads, &curves))?;
    summary(args, &curves, voids);
    say(&format!("  written: target/measure/{name}.json and .svg"));
    Ok(())
}

/// The delay with which a policy does best at a load in the middle, in milliseconds: by its worst model, and
/// where that does not tell them apart, by all.
fn tune_delay(args: &ScheduleArgs, mix: &Mix, calibration: &Calibration, policy: &str) -> Result<f64> {
    let first = args.fifo_delays.first().copied().unwrap_or(0.0);
    if !DELAYED.contains(&policy) || args.fifo_delays.len() < 2 {
        return Ok(first);
    }
    let load = args.loads[args.loads.len() / 3];
    let seconds = args.seconds.min(20.0);
    let trace = workload::write_trace(calibration, load, seconds, args.seed + 1_000)?;
    let mut best = ((f64::MIN, f64::MIN), first);
    for delay_ms in &args.fifo_delays {
        let server = mix.serve(policy, calibration, *delay_ms)?;
        let (points, _) =
            repeat(1, || workload::run((policy, &server), mix, calibration, &trace, (load, seconds)))?;
        let point = points.first().context("a repetition that counts")?;
        let (worst, mean) = (point.worst, point.mean_attainment());
        say(&format!(
            "  {policy} with a delay of {delay_ms} ms at {load:.2}: worst {worst:.4}, mean {mean:.4}"
        ));
        if (worst, mean) > best.0 {
            best = ((worst, mean), *delay_ms);
        }
    }
    Ok(best.1)
}

fn summary(args: &ScheduleArgs, curves: &Curves, voids: usize) {
    let policies = &args.policies;
    let header: Vec<String> = policies.iter().map(|policy| format!("{policy:>24}")).collect();
    say(&format!(
        "worst model's attainment, and answers in time per second, medians\n  load {}",
        header.join("")
    ));
    for (index, load) in args.loads.iter().enumerate() {
        let cell = |policy: &String| {
            let of = |value: fn(&Point) -> f64| {
                median_of(curves[policy].iter().map(|run| value(&run[index])).collect())
            };
            format!("{:>12.4} {:>9.1}/s", of(|point| point.worst), of(|point| point.goodput))
        };
        say(&format!("  {load:.2} {}", policies.iter().map(cell).collect::<Vec<_>>().join("")));
    }
    for (what, figure) in
        [("highest load with 99 %", knee as fn(&[Point]) -> f64), ("area under the curve", area)]
    {
        let of = |policy: &String| curves[policy].iter().map(|run| figure(run)).collect::<Vec<f64>>();
        let ours = of(&policies[0]);
        say(&format!("{what}: {} {:.3}", policies[0], median_of(ours.clone())));
        for other in &policies[1..] {
            let theirs = of(other);
            let ratios: Vec<f64> =
                ours.iter().zip(&theirs).map(|(one, other)| one / other.max(1e-9)).collect();
            let (low, high) = bootstrap(&ratios, args.seed);
            let (ratio, absolute) = (median_of(ratios), median_of(theirs));
            say(&format!(
                "  {other} {absolute:.3}; ratio {ratio:.2} (95 % of resamples of {} repetitions {low:.2} to {high:.2})",
                args.repetitions
            ));
        }
    }
    for policy in policies.iter().filter(|policy| curves[*policy].iter().any(|run| misses_first(run))) {
        say(&format!("{policy} misses 99 % at the first load already; begin `--loads` lower"));
    }
    say(&format!("{} repetitions of {} s, {voids} void", args.repetitions, args.seconds));
}
