//! A workload as a file: what was written, checked and turned into an experiment.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quadrant_bench::read_trace;
use quadrant_policy::{Eviction, Limits, MemoryBudget};
use quadrant_sim::{Experiment, Served, Truth, Unsteady};
use quadrant_traffic::{FunctionTrace, Process, Replay, arrivals};
use quadrant_types::Priority;
use serde::Deserialize;

use super::generation::{self, WrittenGeneration};
use super::tenants::{self, WrittenTenant};

/// Models like those of the demo, on two cores.
pub(super) const EXAMPLE: &str = include_str!("example.toml");

/// Seconds of requests in one run at most.
const SECONDS_MAX: f64 = 86_400.0;

/// A workload that can be played at any load.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    pub(super) experiment: Experiment,
    pub(super) seconds: f64,
    pub(super) seed: u64,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Process(Process),
    Functions {
        trace: FunctionTrace,
        minute: Duration,
        burstiness: f64,
    },
    /// The arrivals of each model, as they were.
    Recorded(Vec<Vec<Duration>>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default = "sixty")]
    seconds: f64,
    #[serde(default)]
    seed: u64,
    cores: usize,
    #[serde(default)]
    best_effort_floor: Option<f64>,
    arrivals: WrittenArrivals,
    unsteady: Option<WrittenUnsteady>,
    #[serde(default)]
    tenants: BTreeMap<String, WrittenTenant>,
    models: Vec<WrittenModel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenArrivals {
    kind: String,
    cv: Option<f64>,
    minute_s: Option<f64>,
    burstiness: Option<f64>,
    trace: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenUnsteady {
    deviation: f64,
    phase_ms: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenModel {
    name: String,
    step_ms: f64,
    #[serde(default)]
    row_ms: f64,
    #[serde(default = "one_row")]
    rows_max: u32,
    wide_gain: Option<f64>,
    #[serde(default)]
    noise: f64,
    #[serde(default)]
    spread: Vec<f64>,
    #[serde(default)]
    beside: BTreeMap<String, f64>,
    #[serde(default)]
    overhead_ms: f64,
    #[serde(default)]
    sensitivity: f64,
    #[serde(default)]
    pressure: f64,
    #[serde(default)]
    crowding: f64,
    objective_ms: Option<f64>,
    priority: Option<u32>,
    #[serde(default = "one")]
    share: f64,
    #[serde(default)]
    delay_ms: f64,
    #[serde(default)]
    tenants: BTreeMap<String, f64>,
    generation: Option<WrittenGeneration>,
}

fn sixty() -> f64 {
    60.0
}

fn one() -> f64 {
    1.0
}

fn one_row() -> u32 {
    1
}

impl Workload {
    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// The first thing that is not understood or makes no sense, with its name.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let written: Written = toml::from_str(text)?;
        within("seconds", written.seconds, (0.1, SECONDS_MAX))?;
        ensure!((1..=64).contains(&written.cores), "`cores` must be from 1 to 64, not `{}`", written.cores);
        ensure!(!written.models.is_empty(), "name at least one model");
        let floor = written.best_effort_floor.unwrap_or(0.05);
        within("best_effort_floor", floor, (0.0, 0.9))?;
        let names: Vec<&str> = written.models.iter().map(|model| model.name.as_str()).collect();
        let tenants = tenants::tenants(&written.tenants)?;
        let models = written.models.iter().map(|model| {
            let shares = tenants::shares(&model.tenants, &tenants);
            Ok(Served { tenants: shares.with_context(within_model(model))?, ..served(model, &names)? })
        });
        let models = models.collect::<Result<Vec<_>>>()?;
        let limits = Limits {
            queued_requests_max: usize::MAX,
            bytes_in_max: u64::MAX,
            best_effort_floor_permille: (floor * 1e3).round() as u32,
            memory: MemoryBudget::UNLIMITED,
            eviction: Eviction::Worth,
            ..Limits::default()
        };
        Ok(Self {
            experiment: Experiment {
                cores: written.cores,
                unsteady: written.unsteady.as_ref().map_or(Ok(Unsteady::NONE), unsteady)?,
                limits,
                models,
                tenants,
            },
            seconds: written.seconds,
            seed: written.seed,
            source: source(&written.arrivals, (written.seconds, &names))?,
        })
    }

    /// The arrivals of each model at this load, a share of the device.
    ///
    /// # Errors
    /// If a trace has too few functions for the models.
    pub(super) fn arrivals(&self, load: f64, seed: u64) -> Result<Vec<Vec<Duration>>> {
        let rates = self.experiment.rates(load);
        let length = Duration::from_secs_f64(self.seconds);
        match &self.source {
            Source::Process(process) => {
                let stream =
                    |(index, rate): (u64, &f64)| arrivals(*process, *rate, length, seed ^ (index << 32));
                Ok((1..).zip(&rates).map(stream).collect::<Result<_, _>>()?)
            }
            Source::Functions { trace, minute, burstiness } => {
                let replay = Replay { rates, length, minute: *minute, burstiness: *burstiness, seed };
                Ok(trace.replay(&replay)?)
            }
            Source::Recorded(arrivals) => Ok(arrivals.clone()),
        }
    }

    /// The loads to play: those asked for, or the one that was recorded.
    pub(super) fn loads(&self, asked: &[f64]) -> Vec<f64> {
        let Source::Recorded(arrivals) = &self.source else { return asked.to_vec() };
        let models = self.experiment.models.iter().zip(arrivals);
        let work = models.map(|(model, arrivals)| model.core_time().as_secs_f64() * arrivals.len() as f64);
        vec![work.sum::<f64>() / (self.seconds * self.experiment.cores as f64)]
    }

    /// Whether it can be played at any load.
    pub(super) fn scales(&self) -> bool {
        !matches!(self.source, Source::Recorded(_))
    }
}

/// The arrivals of a file as `quadrant bench --trace` takes it, up to the end of the run.
fn recorded(path: &str, (seconds, names): (f64, &[&str])) -> Result<Vec<Vec<Duration>>> {
    let rows = read_trace(path)?;
    let mut arrivals = vec![Vec::new(); names.len()];
    for (at_ms, model) in rows {
        let known = model.as_deref().and_then(|model| names.iter().position(|name| *name == model));
        let Some(index) = known else {
            bail!("in `{path}`: a request at `{at_ms}` ms is for no model of the workload")
        };
        if at_ms < seconds * 1e3 {
            arrivals[index].push(Duration::from_secs_f64(at_ms / 1e3));
        }
    }
    arrivals.iter_mut().for_each(|times| times.sort_unstable());
    Ok(arrivals)
}

fn source(written: &WrittenArrivals, run: (f64, &[&str])) -> Result<Source> {
    Ok(match written.kind.as_str() {
        "constant" => Source::Process(Process::Constant),
        "poisson" => Source::Process(Process::Poisson),
        "gamma" => {
            let cv = written.cv.context("`arrivals.cv` must be given for `gamma`")?;
            within("arrivals.cv", cv, (0.01, 100.0))?;
            Source::Process(Process::Gamma { cv })
        }
        "functions" => {
            let trace = match &written.trace {
                None => FunctionTrace::azure_2019(),
                Some(path) => {
                    let text =
                        std::fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"))?;
                    FunctionTrace::parse(&text).with_context(|| format!("in `{path}`"))?
                }
            };
            let (minute, burstiness) = (written.minute_s.unwrap_or(1.0), written.burstiness.unwrap_or(1.0));
            within("arrivals.minute_s", minute, (0.001, SECONDS_MAX))?;
            within("arrivals.burstiness", burstiness, (0.0, 100.0))?;
            Source::Functions { trace, minute: Duration::from_secs_f64(minute), burstiness }
        }
        "recorded" => {
            let path = written.trace.as_deref().context("`arrivals.trace` must be given for `recorded`")?;
            Source::Recorded(recorded(path, run)?)
        }
        other => bail!(
            "`arrivals.kind` must be `constant`, `poisson`, `gamma`, `functions` or `recorded`, not `{other}`"
        ),
    })
}

fn unsteady(written: &WrittenUnsteady) -> Result<Unsteady> {
    within("unsteady.deviation", written.deviation, (0.0, 2.0))?;
    within("unsteady.phase_ms", written.phase_ms, (1.0, 1e6))?;
    Ok(Unsteady { deviation: written.deviation, phase: Duration::from_secs_f64(written.phase_ms / 1e3) })
}

fn served(written: &WrittenModel, names: &[&str]) -> Result<Served> {
    let check = || -> Result<()> {
        within("step_ms", written.step_ms, (0.001, 1e6))?;
        within("row_ms", written.row_ms, (0.0, 1e6))?;
        within("noise", written.noise, (0.0, 10.0))?;
        within("sensitivity", written.sensitivity, (0.0, 100.0))?;
        within("pressure", written.pressure, (0.0, 100.0))?;
        within("crowding", written.crowding, (0.0, 100.0))?;
        within("share", written.share, (1e-9, 1e9))?;
        within("delay_ms", written.delay_ms, (0.0, 1e6))?;
        within("overhead_ms", written.overhead_ms, (0.0, 1e6))?;
        written.spread.iter().try_for_each(|ratio| within("spread", *ratio, (0.001, 1e3)))?;
        ensure!(written.spread.is_sorted(), "`spread` must be in ascending order");
        written.beside.iter().try_for_each(|(name, ratio)| {
            ensure!(names.contains(&name.as_str()), "`beside.{name}` is no model of the workload");
            within(&format!("beside.{name}"), *ratio, (0.1, 100.0))
        })?;
        written.wide_gain.map_or(Ok(()), |gain| within("wide_gain", gain, (0.1, 2.0)))?;
        written.objective_ms.map_or(Ok(()), |objective| within("objective_ms", objective, (0.001, 1e6)))?;
        ensure!((1..=4_096).contains(&written.rows_max), "`rows_max` must be from 1 to 4096");
        Ok(())
    };
    check().with_context(within_model(written))?;
    let ms = |value: f64| Duration::from_secs_f64(value / 1e3);
    let truth = Truth {
        step_cost: ms(written.step_ms),
        row_cost: ms(written.row_ms),
        wide_gain: written.wide_gain.unwrap_or(1.0),
        noise: written.noise,
        sensitivity: written.sensitivity,
        pressure: written.pressure,
        spread: written.spread.clone(),
        beside: beside(written, names),
        crowding: written.crowding,
        thousand_keys: ms(written.generation.as_ref().map_or(0.0, |generation| generation.thousand_keys_ms)),
    };
    Ok(Served {
        name: written.name.clone(),
        truth,
        rows_max: written.rows_max,
        wide: written.wide_gain.is_some(),
        objective: written.objective_ms.map(ms),
        priority: written.priority.map_or_else(Priority::default, Priority),
        share: written.share,
        delay_max: ms(written.delay_ms),
        overhead: ms(written.overhead_ms),
        tenants: Vec::new(),
        generation: written.generation.as_ref().map(generation::generates).transpose()?,
    })
}

fn within_model(written: &WrittenModel) -> impl FnOnce() -> String {
    let name = written.name.clone();
    move || format!("model `{name}`")
}

/// How much longer beside each model, or nothing if none was given.
fn beside(written: &WrittenModel, names: &[&str]) -> Vec<f64> {
    let factor = |name: &&str| written.beside.get(*name).copied().unwrap_or(1.0);
    if written.beside.is_empty() { Vec::new() } else { names.iter().map(factor).collect() }
}

pub(super) fn within(name: &str, value: f64, (least, most): (f64, f64)) -> Result<()> {
    ensure!((least..=most).contains(&value), "`{name}` must be from {least} to {most}, not `{value}`");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let model = "[[models]]\nname = \"m\"\nstep_ms = 1.0\n";
        for (text, part) in [
            ("cores = 2\narrivals.kind = \"poisson\"\nmodels = []".to_owned(), "at least one model"),
            (format!("cores = 0\narrivals.kind = \"poisson\"\n{model}"), "`cores`"),
            (format!("cores = 2\narrivals.kind = \"now\"\n{model}"), "`arrivals.kind`"),
            (format!("cores = 2\narrivals.kind = \"gamma\"\n{model}"), "`arrivals.cv`"),
            (format!("cores = 2\narrivals.kind = \"poisson\"\n{model}noise = -1.0"), "`noise`"),
            (format!("cores = 2\narrivals.kind = \"poisson\"\n{model}cost = 1.0"), "unknown field `cost`"),
        ] {
            let error = format!("{:#}", Workload::parse(&text).unwrap_err());
            assert!(error.contains(part), "`{text}` gave `{error}`");
        }
    }

    #[test]
    fn every_kind_offers_the_load() {
        for kind in [
            "kind = \"constant\"",
            "kind = \"poisson\"",
            "kind = \"gamma\"\ncv = 2.0",
            "kind = \"functions\"",
        ] {
            let text = format!(
                "seconds = 30.0\ncores = 2\n[arrivals]\n{kind}\n[[models]]\nname = \"m\"\nstep_ms = 2.0\n"
            );
            let arrivals = Workload::parse(&text).unwrap().arrivals(0.5, 1).unwrap();
            // Half of two cores is 500 steps of two milliseconds a second.
            let rate = arrivals[0].len() as f64 / 30.0;
            assert!((rate / 500.0 - 1.0).abs() < 0.1, "{kind}: {rate}");
        }
    }
}
