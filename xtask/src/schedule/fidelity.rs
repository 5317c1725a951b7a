//! The simulator against the machine, and predictions against steps.
//!
//! `quadrant observe` watches a server under a load that is not used again, and makes a workload of it. Then
//! the same arrivals are sent to the server and played by `quadrant simulate`. Each repetition observes
//! anew, because the speed of a shared machine drifts by more within minutes than a simulation is off. From
//! the same live runs comes how far off the predicted times of steps were.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use serde::Deserialize;

use super::MixName;
use super::curve::Point;
use super::mix::Mix;
use super::steps::{Errors, Step, errors};
use super::workload::{Calibration, WARMUP_S, calibrate, run, write_trace};
use crate::measure::server::Server;
use crate::measure::{build, median_of, program, spread};
use crate::run::{printed, say, target};

/// What to compare.
#[derive(Args, Debug)]
pub(crate) struct FidelityArgs {
    /// Mix `a` is all six models, mix `b` all but the text detector.
    #[arg(long, value_enum, default_value_t = MixName::B)]
    mix: MixName,
    /// The highest load with 99 % in time, as `cargo xtask schedule` found it.
    #[arg(long)]
    knee: f64,
    /// Loads to compare at, as shares of it.
    #[arg(long, value_delimiter = ',', default_value = "0.7,0.9")]
    shares: Vec<f64>,
    /// Repetitions, each with its own arrivals.
    #[arg(long, default_value_t = 3)]
    repetitions: u64,
    /// Seconds that are counted in one run.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
}

/// Share of the knee at which the server is observed.
const OBSERVED_AT: f64 = 0.8;
/// Arrivals that are used for observing only: this and the number of the repetition.
const OBSERVED_SEED: u64 = 7_000;

/// What a request of each model takes besides waiting and its step, in milliseconds.
type Overheads = Vec<(String, f64)>;

/// One model in both worlds.
#[derive(Clone, Copy, Debug)]
struct Both {
    attainment: (f64, f64),
    p50_ms: (f64, f64),
    p99_ms: (f64, f64),
}

/// A cell of what `quadrant simulate --json` writes.
#[derive(Debug, Deserialize)]
struct Cell {
    models: Vec<ModelCell>,
}

#[derive(Debug, Deserialize)]
struct ModelCell {
    name: String,
    attainment: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Measures.
///
/// # Errors
/// If a server cannot be started, or the machine is too noisy.
pub(crate) fn fidelity(args: &FidelityArgs) -> Result<()> {
    ensure!(args.repetitions > 0 && !args.shares.is_empty(), "give at least one repetition and one share");
    build()?;
    let mix = Mix::prepare(args.mix)?;
    let calibration = calibrate(&mix)?;
    let server = mix.serve("quadrant", &calibration, 0.0)?;
    let mut found = vec![(Vec::new(), Vec::new()); args.shares.len()];
    for seed in 1..=args.repetitions {
        let (workload, overheads) = observed(args, (&mix, &server), &calibration, OBSERVED_SEED + seed)?;
        for (share, (pairs, of_steps)) in args.shares.iter().zip(&mut found) {
            let load = share * args.knee;
            let trace = write_trace(&calibration, load, args.seconds, seed)?;
            let (point, _, steps) = live(args, (&mix, &server), &calibration, (&trace, load))?;
            let played = simulate(args, &workload, &overheads, &trace)?;
            pairs.push(both(&point, &played)?);
            of_steps.push(errors(&steps));
        }
    }
    for (share, (pairs, of_steps)) in args.shares.iter().zip(&found) {
        tell(*share, share * args.knee, pairs, of_steps);
    }
    Ok(())
}

/// The workload that `quadrant observe` makes of a server, and each model's overhead.
fn observed(
    args: &FidelityArgs,
    server: (&Mix, &Server),
    calibration: &Calibration,
    seed: u64,
) -> Result<(String, Overheads)> {
    let load = args.knee * OBSERVED_AT;
    let trace = write_trace(calibration, load, args.seconds, seed)?;
    let (point, workload, _) = live(args, server, calibration, (&trace, load))?;
    let played = simulate(args, &workload, &[], &trace)?;
    let overheads = overheads(&point, &played)?;
    Ok((workload, overheads))
}

/// One live run that counts, the workload that `quadrant observe` makes of it, and its steps.
fn live(
    args: &FidelityArgs,
    (mix, server): (&Mix, &Server),
    calibration: &Calibration,
    (trace, load): (&Path, f64),
) -> Result<(Point, String, Vec<Step>)> {
    let folder = target().join("measure");
    let log = folder.join("steps.jsonl");
    let metrics = server.metrics.as_deref().context("the server did not say where its metrics are")?;
    let once = || {
        let mut observe = Command::new(program("quadrant"));
        observe.args(["observe", "--metrics-address", metrics, "--log-steps"]).arg(&log);
        observe.args(["--seconds", &(WARMUP_S + args.seconds).to_string()]);
        std::thread::scope(|scope| {
            let watching = scope.spawn(move || observe.output());
            let point = run(("quadrant", server), mix, calibration, trace, (load, args.seconds))?;
            let watched = watching.join().map_err(|_| anyhow!("the observer panicked"))??;
            let said = String::from_utf8_lossy(&watched.stderr);
            ensure!(watched.status.success(), "`quadrant observe` failed: {said}");
            Ok(point.map(|point| (point, String::from_utf8_lossy(&watched.stdout).into_owned())))
        })
    };
    let (mut runs, _) = crate::measure::repeat(1, once)?;
    let (point, workload) = runs.pop().context("a repetition that counts")?;
    let text = std::fs::read_to_string(&log)?;
    let steps: Vec<Step> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    // The first steps are the warm-up's.
    let began = steps.iter().map(|step| step.began_ms).fold(f64::MAX, f64::min) + 1e3 * WARMUP_S;
    let counted = steps.into_iter().filter(|step| step.began_ms >= began).collect();
    Ok((point, workload, counted))
}

/// What a request of each model takes besides waiting and its step, under load, in milliseconds: by how much
/// the median of the observed run is above that of its simulation.
fn overheads(observed: &Point, played: &Cell) -> Result<Overheads> {
    let of = |model: &ModelCell| {
        let (p50_ms, _) = observed.latency_ms.get(&model.name).context("both have the same models")?;
        Ok((model.name.clone(), (p50_ms - model.p50_ms).max(0.0)))
    };
    played.models.iter().map(of).collect()
}

/// The workload with the arrivals of a trace and everybody's overhead, played.
fn simulate(args: &FidelityArgs, workload: &str, overheads: &[(String, f64)], trace: &Path) -> Result<Cell> {
    let path: PathBuf = target().join("measure/observed.toml");
    let recorded = format!("kind = \"recorded\"\ntrace = \"{}\"", trace.display());
    let seconds = format!("seconds = {:.1}", WARMUP_S + args.seconds);
    let mut text = workload.replace("kind = \"poisson\"", &recorded).replace("seconds = 60.0", &seconds);
    for (name, overhead) in overheads {
        let line = format!("name = \"{name}\"\n");
        ensure!(text.contains(&line), "`{name}` was not observed");
        text = text.replace(&line, &format!("{line}overhead_ms = {overhead:.4}\n"));
    }
    std::fs::write(&path, text)?;
    let mut simulate = Command::new(program("quadrant"));
    simulate.arg("simulate").arg(&path).args(["--policies", "quadrant", "--runs", "5", "--json", "-"]);
    let cells: Vec<Cell> = serde_json::from_str(&printed(&mut simulate)?)?;
    cells.into_iter().next().context("a simulation has a result")
}

fn both(point: &Point, played: &Cell) -> Result<Vec<(String, Both)>> {
    let of = |model: &ModelCell| {
        let attainment = point.attainment.get(&model.name).context("both have the same models")?;
        let (p50, p99) = point.latency_ms.get(&model.name).context("both have the same models")?;
        let both = Both {
            attainment: (*attainment, model.attainment),
            p50_ms: (*p50, model.p50_ms),
            p99_ms: (*p99, model.p99_ms),
        };
        Ok((model.name.clone(), both))
    };
    played.models.iter().map(of).collect()
}

fn tell(share: f64, load: f64, pairs: &[Vec<(String, Both)>], of_steps: &[Errors]) {
    say(&format!(
        "at {share} of the knee, a load of {load:.3}; live (smallest to largest), simulated, how far the medians \
         are off (and single runs, in the median):"
    ));
    for (index, (name, _)) in pairs[0].iter().enumerate() {
        let of = |pick: &dyn Fn(&Both) -> f64| {
            median_of(pairs.iter().map(|models| pick(&models[index].1)).collect())
        };
        let told = |pick: fn(&Both) -> (f64, f64), unit: &str, off: fn(f64, f64) -> f64| {
            let live = pairs.iter().map(|models| pick(&models[index].1).0).collect::<Vec<f64>>();
            let (one, other) = (median_of(live.clone()), of(&|both| pick(both).1));
            let single = of(&|both| off(pick(both).0, pick(both).1));
            format!("{}, {other:.2}{unit} ({:.1}; {single:.1})", spread(&live, unit), off(one, other))
        };
        let points = |live: f64, simulated: f64| (simulated - live).abs();
        let percent = |live: f64, simulated: f64| 100.0 * (simulated / live.max(1e-9) - 1.0).abs();
        say(&format!(
            "  {name}: attainment {} points, p50 {} %, p99 {} %",
            told(|both| (100.0 * both.attainment.0, 100.0 * both.attainment.1), " %", points),
            told(|both| both.p50_ms, " ms", percent),
            told(|both| both.p99_ms, " ms", percent),
        ));
    }
    let column = |pick: fn(&Errors) -> f64| of_steps.iter().map(pick).collect::<Vec<f64>>();
    say(&format!(
        "  steps over 1 ms, median absolute error of the prediction {}; of the best constants fitted afterwards \
         {}; {} steps",
        spread(&column(|errors| 100.0 * errors.predicted), " %"),
        spread(&column(|errors| 100.0 * errors.constant), " %"),
        of_steps.iter().map(|errors| errors.steps).sum::<usize>()
    ));
}
