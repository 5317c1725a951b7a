//! A quiet tenant beside a flood: Magika at ten requests a second, while another tenant asks for twice as
//! many detections as the device can do. Windows with and without the flood alternate on one server; what
//! counts is the quiet tenant's 99th percentile with the flood over that without.

use anyhow::{Context, Result, ensure};
use clap::Args;
use quadrant_bench::Report;

use super::MixName;
use super::mix::Mix;
use super::triton;
use super::workload::{Calibrated, calibrate};
use crate::measure::server::Server;
use crate::measure::{bench_any, build, repeat, spread};
use crate::run::say;

/// Requests per second of the quiet tenant.
const QUIET_RATE: &str = "10";
/// What the flood asks for, over what the device can do.
const FLOOD: f64 = 2.0;

/// How long, how often, under which policy.
#[derive(Args, Clone, Debug)]
pub(crate) struct IsolationArgs {
    /// Policies to measure.
    #[arg(long, value_delimiter = ',', default_value = "quadrant")]
    policies: Vec<String>,
    /// Pairs of windows.
    #[arg(long, default_value_t = 10)]
    windows: usize,
    /// Seconds of one window.
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
}

/// Measures.
///
/// # Errors
/// If a server cannot be started, or the machine is too noisy.
pub(crate) fn isolation(args: &IsolationArgs) -> Result<()> {
    ensure!(args.windows > 0, "`--windows` must be at least 1");
    build()?;
    let mix = Mix::prepare(MixName::A)?;
    let calibration = calibrate(&mix)?;
    let detector = calibration.of("ppocr-det").context("the detector is in mix a")?;
    for policy in &args.policies {
        let server = mix.serve(policy, &calibration, 0.0)?;
        let (pairs, voids) = repeat(args.windows, || pair(args, &mix, detector, (policy, &server)))?;
        let column = |of: fn(&(f64, f64, f64)) -> f64| pairs.iter().map(of).collect::<Vec<f64>>();
        say(&format!(
            "isolation, {policy}: p99 with the flood over alone {}; alone {}, with it {}; answered in time with \
             it {}; {} pairs of {} s, {voids} void",
            spread(&column(|(alone, flooded, _)| flooded / alone), "x"),
            spread(&column(|(alone, ..)| *alone), " ms"),
            spread(&column(|(_, flooded, _)| *flooded), " ms"),
            spread(&column(|(.., attainment)| *attainment), ""),
            pairs.len(),
            args.seconds
        ));
    }
    Ok(())
}

/// The quiet tenant's p99 alone and with the flood, and its attainment then.
fn pair(
    args: &IsolationArgs,
    mix: &Mix,
    detector: &Calibrated,
    (policy, server): (&str, &Server),
) -> Result<Result<(f64, f64, f64), String>> {
    let member = |name: &str| mix.members().find(|member| member.name == name);
    let request = |name: &str| member(name).map(|member| triton::request(policy, member.request));
    let (quiet, flood) = (request("magika").context("no magika")?, request("ppocr-det").context("no det")?);
    let seconds = args.seconds.to_string();
    let load = |model: &str, rate: &str, tenant: &str| -> Result<Report> {
        let common = ["--model", model, "--constant", rate, "--tenant", tenant, "--warmup", "1"];
        bench_any(&server.http, &[&common[..], &["--duration", &seconds, "--outstanding", "256"]].concat())
    };
    let alone = load(&format!("{quiet}~1000"), QUIET_RATE, "quiet")?;
    let rate = format!("{:.2}", FLOOD * 2.0 / (detector.core_ms / 1e3));
    let flooded = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| load(flood, &rate, "flood"));
        let quiet = load(&format!("{quiet}~1000"), QUIET_RATE, "quiet");
        flooding.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
        quiet
    })?;
    let void = alone.void.or(flooded.void);
    let figures = (alone.total.latency_ms.p99, flooded.total.latency_ms.p99, flooded.total.attainment);
    Ok(void.map_or(Ok(figures), Err))
}
