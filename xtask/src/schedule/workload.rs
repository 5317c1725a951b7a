//! The load: what a request of each model costs here and now, when requests come, and one run of them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use quadrant_bench::{ModelReport, Report};
use quadrant_traffic::{FunctionTrace, Replay, merged};
use serde::Serialize;

use super::curve::Point;
use super::mix::Mix;
use super::triton;
use crate::measure::server::Server;
use crate::measure::{bench, bench_any, median_of};
use crate::run::target;

/// Cores of the device.
pub(super) const CORES: f64 = 2.0;
/// Seconds of load before anything counts.
pub(super) const WARMUP_S: f64 = 5.0;
/// Repetitions of each figure of the calibration; the median counts.
const REPETITIONS: usize = 3;

/// Quadrant's reasons not to accept a request.
const REFUSALS: [&str; 4] = ["deadline_unmeetable", "queue_full", "server_full", "bytes_full"];

/// What was measured of the models before the comparison.
#[derive(Debug, Serialize)]
pub(super) struct Calibration {
    pub(super) models: Vec<Calibrated>,
}

#[derive(Debug, Serialize)]
pub(super) struct Calibrated {
    pub(super) name: &'static str,
    /// The median latency of one request at a time.
    pub(super) solo_ms: f64,
    /// By when an answer counts as in time.
    pub(super) objective_ms: f64,
    /// Core time of a request at saturation, with all that serving it and asking for it takes.
    pub(super) core_ms: f64,
}

impl Calibration {
    pub(super) fn of(&self, name: &str) -> Option<&Calibrated> {
        self.models.iter().find(|model| model.name == name)
    }
}

/// Measures each model alone.
pub(super) fn calibrate(mix: &Mix) -> Result<Calibration> {
    let server = mix.serve_plain()?;
    let model = |member: &super::mix::Member| {
        let (mut solo, mut core) = (Vec::new(), Vec::new());
        for _ in 0..REPETITIONS {
            let common = ["--model", member.request, "--warmup", "0.5"];
            let one =
                bench(&server.http, &[&common[..], &["--concurrency", "1", "--duration", "1.5"]].concat())?;
            solo.push(one.total.latency_ms.p50);
            let many =
                bench(&server.http, &[&common[..], &["--concurrency", "8", "--duration", "2"]].concat())?;
            core.push(1e3 * CORES / many.total.answered_per_second);
        }
        let (solo_ms, core_ms) = (median_of(solo), median_of(core));
        Ok(Calibrated { name: member.name, solo_ms, objective_ms: 4.0 * solo_ms + 20.0, core_ms })
    };
    Ok(Calibration { models: mix.members().map(model).collect::<Result<_>>()? })
}

/// The arrivals of one run, as a file for `quadrant bench`: every model offers equal core time, and all
/// together this load.
pub(super) fn write_trace(calibration: &Calibration, load: f64, seconds: f64, seed: u64) -> Result<PathBuf> {
    let each = load * CORES / calibration.models.len() as f64;
    let replay = Replay {
        rates: calibration.models.iter().map(|model| each / (model.core_ms / 1e3)).collect(),
        length: Duration::from_secs_f64(WARMUP_S + seconds),
        minute: Duration::from_secs(1),
        burstiness: 1.0,
        seed,
    };
    let arrivals = merged(&FunctionTrace::azure_2019().replay(&replay)?);
    let mut text = String::from("arrival_ms,model\n");
    for (at, model) in arrivals {
        use std::fmt::Write;
        writeln!(text, "{:.4},{}", at.as_secs_f64() * 1e3, calibration.models[model].name)?;
    }
    let path = target().join("measure/arrivals.csv");
    std::fs::write(&path, text)?;
    Ok(path)
}

/// One run. It says its point, or why it is void.
pub(super) fn run(
    (policy, server): (&str, &Server),
    mix: &Mix,
    calibration: &Calibration,
    trace: &std::path::Path,
    (load, seconds): (f64, f64),
) -> Result<Result<Point, String>> {
    let trace = trace.to_str().context("a path that is no text")?;
    let mut arguments =
        vec!["--trace".to_owned(), trace.to_owned(), "--outstanding".to_owned(), "1024".to_owned()];
    arguments.extend([
        "--warmup".to_owned(),
        WARMUP_S.to_string(),
        "--duration".to_owned(),
        seconds.to_string(),
    ]);
    for member in mix.members() {
        let objective = calibration.of(member.name).map_or(0.0, |model| model.objective_ms);
        arguments.extend([
            "--model".to_owned(),
            format!("{}~{objective:.3}", triton::request(policy, member.request)),
        ]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let report = bench_any(&server.http, &arguments)?;
    Ok(match &report.void {
        Some(reason) => Err(reason.clone()),
        None => Ok(point(&report, load)),
    })
}

fn point(report: &Report, load: f64) -> Point {
    let models = || report.models.iter();
    let in_time: u64 = models().map(|model| model.in_time).sum();
    // What was given up after it had been accepted was admitted.
    let on_arrival = |reason: &str| REFUSALS.iter().any(|refusal| reason.contains(refusal));
    let refused = |model: &ModelReport| {
        model.failures.iter().filter(|(reason, _)| on_arrival(reason)).map(|(_, count)| count).sum::<u64>()
    };
    let admitted: u64 = models().map(|model| model.answered + model.failed - refused(model)).sum();
    Point {
        load,
        worst: models().map(|model| model.attainment).fold(1.0, f64::min),
        goodput: in_time as f64 / report.seconds,
        kept: if admitted == 0 { 1.0 } else { in_time as f64 / admitted as f64 },
        refusal_p99_ms: report.total.refusal_ms.p99,
        attainment: models().map(|model| (model.name.clone(), model.attainment)).collect(),
        latency_ms: models()
            .map(|model| (model.name.clone(), (model.latency_ms.p50, model.latency_ms.p99)))
            .collect(),
    }
}
