//! `quadrant simulate` and `quadrant plan`: the scheduler that ships, in virtual time, under a load that is
//! described in a file.

mod generation;
mod picture;
mod table;
mod tenants;
mod workload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use quadrant_policy::Discipline;
use quadrant_sim::{ModelReport, Outcome};
use serde::Serialize;

use tenants::TenantCell;
use workload::Workload;

use crate::print::print;

/// Devices beyond which a plan is not searched for.
const DEVICES_MAX: u32 = 4_096;
/// How exactly the highest load is found.
const LOAD_STEP: f64 = 0.01;

/// Simulate many models on one device: attainment, goodput, latency and utilisation over the offered load.
#[derive(Args, Debug)]
pub(crate) struct SimulateArgs {
    /// The workload: models, what their steps cost, what is promised, how requests come. `-` is the built-in
    /// example, which `--print-example` shows.
    #[arg(value_name = "FILE", default_value = "-")]
    workload: PathBuf,
    /// Policies, of `quadrant`, `fifo` and `clockwork`.
    #[arg(long, value_delimiter = ',', default_value = "quadrant,fifo,clockwork", value_name = "NAMES")]
    policies: Vec<String>,
    /// Offered loads, as shares of the device.
    #[arg(long, value_delimiter = ',', default_value = "0.3,0.5,0.6,0.7,0.8,0.9,1.0", value_name = "SHARES")]
    loads: Vec<f64>,
    /// Runs of each load and policy, each with its own arrivals; the mean is shown.
    #[arg(long, default_value_t = 3, value_name = "N")]
    runs: u64,
    /// The first run's seed, instead of the file's.
    #[arg(long)]
    seed: Option<u64>,
    /// Write everything as JSON to this file; `-` is standard output, instead of the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw attainment over load into this SVG file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Draw what ran on which lane, in the first run of the first policy at the last load, into this SVG.
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
    /// How much of it to draw, in milliseconds.
    #[arg(long, default_value_t = 500.0, value_name = "MS")]
    timeline_ms: f64,
    /// Print the built-in example as a file, and do nothing else.
    #[arg(long)]
    print_example: bool,
}

/// Find the highest load that meets the objectives, and how many devices a load needs.
#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    /// The workload, as for `simulate`.
    #[arg(value_name = "FILE", default_value = "-")]
    workload: PathBuf,
    /// The policy.
    #[arg(long, default_value = "quadrant", value_name = "NAME")]
    policy: String,
    /// The share of its requests that every model must answer in time.
    #[arg(long, default_value_t = 0.99, value_name = "SHARE")]
    attainment: f64,
    /// The load to be carried, in devices that are busy all the time. Without it only the highest load of one
    /// device is looked for.
    #[arg(long, value_name = "DEVICES")]
    load: Option<f64>,
    /// Runs of each load, each with its own arrivals; the worst counts.
    #[arg(long, default_value_t = 3, value_name = "N")]
    runs: u64,
    /// The first run's seed, instead of the file's.
    #[arg(long)]
    seed: Option<u64>,
    /// Write the answer as JSON to standard output.
    #[arg(long)]
    json: bool,
}

/// One policy at one load, over all runs.
#[derive(Debug, Serialize)]
struct Cell {
    policy: &'static str,
    load: f64,
    /// The attainment of the worst model, in the mean over runs.
    attainment: f64,
    /// Answers in time per second.
    goodput: f64,
    /// Of the requests that were let in, those answered in time.
    kept: f64,
    utilisation: f64,
    models: Vec<ModelCell>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tenants: Vec<TenantCell>,
}

#[derive(Debug, Serialize)]
struct ModelCell {
    name: String,
    attainment: f64,
    answered_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    rows_per_step: f64,
    refused: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<TokenCell>,
}

/// When the tokens of a model that generates came.
#[derive(Debug, Serialize)]
struct TokenCell {
    first_p50_ms: f64,
    first_p99_ms: f64,
    each_p50_ms: f64,
    each_p99_ms: f64,
}

/// Runs the simulations and shows what they gave.
///
/// # Errors
/// What is wrong with the workload or the arguments.
pub(crate) fn run(args: &SimulateArgs) -> Result<()> {
    if args.print_example {
        print(workload::EXAMPLE);
        return Ok(());
    }
    let workload = read(&args.workload, args.seed)?;
    ensure!(args.runs > 0, "`--runs` must be at least 1");
    ensure!(
        args.loads.iter().all(|load| (0.001..=100.0).contains(load)),
        "`--loads` must be from 0.001 to 100"
    );
    let policies = args.policies.iter().map(|name| policy(name)).collect::<Result<Vec<_>>>()?;
    let (mut cells, mut last) = (Vec::new(), None);
    for load in &workload.loads(&args.loads) {
        for discipline in &policies {
            let outcomes = outcomes(&workload, *discipline, *load, args.runs)?;
            cells.push(cell(&workload, *discipline, &outcomes));
            if *discipline == policies[0] {
                last = outcomes.into_iter().next();
            }
        }
    }
    match &args.json {
        Some(path) if path.as_os_str() == "-" => {
            print(&format!("{}\n", serde_json::to_string_pretty(&cells)?))
        }
        Some(path) => write(path, &serde_json::to_string_pretty(&cells)?)?,
        None => {}
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        print(&table::of(&cells));
    }
    if let Some(path) = &args.svg {
        write(path, &picture::attainment(&cells))?;
    }
    if let (Some(path), Some(outcome)) = (&args.timeline, last) {
        let lanes = workload.experiment.scenario(policies[0], &[]).lanes;
        write(path, &picture::timeline(&workload, &lanes, &outcome.report.spans, args.timeline_ms))?;
    }
    Ok(())
}

/// What a plan says.
#[derive(Debug, Serialize)]
struct Answer {
    policy: &'static str,
    attainment: f64,
    /// The highest load of one device, as a share of it.
    load_per_device: f64,
    /// Requests per second of each model at that load.
    rates: Vec<(String, f64)>,
    /// Devices for the load that was asked for.
    devices: Option<u32>,
}

/// Searches and shows the answer.
///
/// # Errors
/// What is wrong with the workload or the arguments.
pub(crate) fn plan(args: &PlanArgs) -> Result<()> {
    let workload = read(&args.workload, args.seed)?;
    let discipline = policy(&args.policy)?;
    ensure!((0.0..1.0).contains(&args.attainment), "`--attainment` must be from 0 to below 1");
    ensure!(args.runs > 0, "`--runs` must be at least 1");
    ensure!(workload.scales(), "recorded arrivals have one load; plan with another kind of `arrivals`");
    let serves = |load: f64| -> Result<bool> {
        let worst =
            outcomes(&workload, discipline, load, args.runs)?.iter().map(|run| run.worst).fold(1.0, f64::min);
        Ok(worst >= args.attainment)
    };
    let load_per_device = highest(serves)?;
    let devices = args.load.map(|load| devices(load, serves)).transpose()?;
    let names = workload.experiment.models.iter().map(|model| model.name.clone());
    let rates = names.zip(workload.experiment.rates(load_per_device)).collect();
    let answer =
        Answer { policy: discipline.name(), attainment: args.attainment, load_per_device, rates, devices };
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&answer)?));
    } else {
        print(&table::plan(&answer, args.load));
    }
    Ok(())
}

/// The highest load that is served, by bisection.
fn highest(serves: impl Fn(f64) -> Result<bool>) -> Result<f64> {
    let (mut low, mut high) = (0.0, 2.0);
    while high - low > LOAD_STEP {
        let middle = f64::midpoint(low, high);
        if serves(middle)? { low = middle } else { high = middle }
    }
    Ok(low)
}

/// The least number of devices among which this load, divided evenly, is served.
fn devices(load: f64, serves: impl Fn(f64) -> Result<bool>) -> Result<u32> {
    ensure!(load.is_finite() && load > 0.0, "`--load` must be above 0");
    let (mut low, mut high) = (0, 1);
    while !serves(load / f64::from(high))? {
        (low, high) = (high, high * 2);
        ensure!(high <= DEVICES_MAX, "more than `{DEVICES_MAX}` devices would not be enough");
    }
    while high - low > 1 {
        let middle = u32::midpoint(low, high);
        if serves(load / f64::from(middle))? { high = middle } else { low = middle }
    }
    Ok(high)
}

fn read(path: &Path, seed: Option<u64>) -> Result<Workload> {
    let mut workload = if path.as_os_str() == "-" {
        Workload::parse(workload::EXAMPLE).context("in the built-in example")?
    } else {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the workload `{}`", path.display()))?;
        Workload::parse(&text).with_context(|| format!("in the workload `{}`", path.display()))?
    };
    workload.seed = seed.unwrap_or(workload.seed);
    Ok(workload)
}

fn policy(name: &str) -> Result<Discipline> {
    let Some(known) = Discipline::ALL.into_iter().find(|discipline| discipline.name() == name) else {
        bail!("policies are `quadrant`, `fifo` and `clockwork`, not `{name}`");
    };
    Ok(known)
}

fn outcomes(workload: &Workload, discipline: Discipline, load: f64, runs: u64) -> Result<Vec<Outcome>> {
    let run = |index: u64| {
        let seed = workload.seed.wrapping_add(index);
        let arrivals = workload.arrivals(load, seed)?;
        Ok(workload.experiment.play(discipline, (load, workload.seconds), &arrivals, seed)?)
    };
    (0..runs).map(run).collect()
}

fn cell(workload: &Workload, discipline: Discipline, outcomes: &[Outcome]) -> Cell {
    let mean =
        |of: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(of).sum::<f64>() / outcomes.len().max(1) as f64;
    let tokens = |index: usize| {
        let ms = |share: f64, of: fn((Duration, Duration)) -> Duration| {
            mean(&|outcome| of(outcome.report.models[index].token_times(share)).as_secs_f64() * 1e3)
        };
        TokenCell {
            first_p50_ms: ms(0.5, |(first, _)| first),
            first_p99_ms: ms(0.99, |(first, _)| first),
            each_p50_ms: ms(0.5, |(_, each)| each),
            each_p99_ms: ms(0.99, |(_, each)| each),
        }
    };
    let model = |(index, name): (usize, &String)| {
        let figure = |of: &dyn Fn(&ModelReport) -> f64| mean(&|outcome| of(&outcome.report.models[index]));
        ModelCell {
            name: name.clone(),
            attainment: figure(&ModelReport::attainment),
            answered_per_second: figure(&|model| model.ended("completed") as f64 / workload.seconds),
            p50_ms: figure(&|model| model.latency(0.5).as_secs_f64() * 1e3),
            p99_ms: figure(&|model| model.latency(0.99).as_secs_f64() * 1e3),
            rows_per_step: figure(&ModelReport::mean_step_rows),
            refused: outcomes.iter().map(|outcome| outcome.report.models[index].refused).sum(),
            tokens: workload.experiment.models[index].generation.as_ref().map(|_| tokens(index)),
        }
    };
    let names: Vec<String> = workload.experiment.models.iter().map(|model| model.name.clone()).collect();
    Cell {
        policy: discipline.name(),
        load: outcomes.first().map_or(0.0, |outcome| outcome.load),
        attainment: mean(&|outcome| outcome.worst),
        goodput: mean(&|outcome| outcome.goodput),
        kept: mean(&|outcome| outcome.kept),
        utilisation: mean(&|outcome| outcome.utilisation),
        models: names.iter().enumerate().map(model).collect(),
        tenants: tenants::cells(workload, outcomes),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_load_and_the_fewest_devices_are_found() {
        let serves = |load: f64| Ok(load <= 0.7);
        assert!((highest(serves).unwrap() - 0.7).abs() <= LOAD_STEP);
        for (load, expect) in [(0.1, 1), (0.7, 1), (0.71, 2), (7.0, 10), (7.1, 11), (100.0, 143)] {
            assert_eq!(devices(load, serves).unwrap(), expect, "{load}");
        }
        assert!(devices(1.0, |_| Ok(false)).unwrap_err().to_string().contains("would not be enough"));
    }

    #[test]
    fn chats_are_simulated_beside_another_model() {
        let text = "seconds = 20.0\ncores = 2\narrivals.kind = \"poisson\"\n\
            [[models]]\nname = \"voice\"\nstep_ms = 2.0\nobjective_ms = 20.0\nshare = 0.2\n\
            [[models]]\nname = \"chat\"\nstep_ms = 3.2\nrow_ms = 0.5\nrows_max = 256\nwide_gain = 1.7\n\
            objective_ms = 2000.0\ngeneration = { lengths = \"chats\", shorter = 8, each_ms = 100.0 }\n";
        let workload = Workload::parse(text).unwrap();
        let outcomes = outcomes(&workload, Discipline::Quadrant, 0.5, 2).unwrap();
        assert!(outcomes.iter().all(|outcome| outcome.worst > 0.98), "{outcomes:?}");
        let cell = cell(&workload, Discipline::Quadrant, &outcomes);
        assert!(cell.models[0].tokens.is_none());
        let tokens = cell.models[1].tokens.as_ref().unwrap();
        assert!(tokens.first_p50_ms > 10.0 && tokens.first_p99_ms < 2000.0, "{tokens:?}");
        assert!(tokens.each_p50_ms > 1.0 && tokens.each_p99_ms <= 100.0, "{tokens:?}");
    }

    #[test]
    fn the_example_serves_a_light_load() {
        let mut workload = Workload::parse(workload::EXAMPLE).unwrap();
        workload.seconds = 5.0;
        let outcomes = outcomes(&workload, Discipline::Quadrant, 0.3, 2).unwrap();
        assert!(outcomes.iter().all(|outcome| outcome.worst > 0.99), "{outcomes:?}");
        let cell = cell(&workload, Discipline::Quadrant, &outcomes);
        assert_eq!(cell.models.len(), workload.experiment.models.len());
        assert!((0.2..0.5).contains(&cell.utilisation), "{}", cell.utilisation);
    }
}
