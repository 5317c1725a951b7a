//! The floor of best effort: under a permanent overload of urgent work, the core time that best effort really
//! had over what it was promised. The text detector, whose steps are the longest, has no objective here and
//! is asked for more than it can get; everybody else has one, and together they want more than there is.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;

use super::MixName;
use super::mix::{DETECTOR, Mix};
use super::workload::{CORES, Calibration, WARMUP_S, calibrate, run, write_trace};
use crate::measure::server::Server;
use crate::measure::{bench_any, build, repeat, spread};
use crate::run::say;

/// How long, how often, which floors.
#[derive(Args, Debug)]
pub(crate) struct FloorArgs {
    /// Configured floors, as shares of both cores. Without one, best effort has what is left over.
    #[arg(long, value_delimiter = ',', default_value = "0,0.05,0.2")]
    floors: Vec<f64>,
    /// What the urgent models ask for, as a share of both cores.
    #[arg(long, default_value_t = 1.5)]
    load: f64,
    /// Repetitions of each.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Seconds of one.
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
}

/// Seconds at both ends of a run that are not counted, because the overload may not be complete.
const EDGE_S: f64 = 2.0;

/// Measures.
///
/// # Errors
/// If a server cannot be started, or the machine is too noisy.
pub(crate) fn floor(args: &FloorArgs) -> Result<()> {
    ensure!(args.repetitions > 0, "`--repetitions` must be at least 1");
    ensure!(args.seconds > 3.0 * EDGE_S, "`--seconds` must be above {}", 3.0 * EDGE_S);
    build()?;
    let (all, urgent) = (Mix::prepare(MixName::A)?, Mix::prepare(MixName::B)?);
    let calibration = calibrate(&urgent)?;
    for floor in &args.floors {
        let server = all.serve_with_floor(*floor, &calibration)?;
        let mut seed = 0;
        let once = || {
            seed += 1;
            overload(args, (&server, seed), &urgent, &calibration)
        };
        let (had, voids) = repeat(args.repetitions, once)?;
        let shares: Vec<f64> = had.iter().map(|had| had.core_share).collect();
        let refused: Vec<f64> = had.iter().map(|had| 1.0 - had.in_time).collect();
        let promised = match *floor > 0.0 {
            true => {
                let kept: Vec<f64> = shares.iter().map(|share| share / floor).collect();
                format!(", over what was promised {}, bar 0.95", spread(&kept, ""))
            }
            false => String::new(),
        };
        say(&format!(
            "best effort with a floor of {floor}: share of core time {}{promised}; of the urgent requests not in \
             time {}; {} repetitions of {} s, {voids} void",
            spread(&shares, ""),
            spread(&refused, ""),
            args.repetitions,
            args.seconds
        ));
    }
    Ok(())
}

/// What came of one run.
struct Had {
    /// The share of both cores that best effort had.
    core_share: f64,
    /// The urgent requests that were answered in time, in the mean over models.
    in_time: f64,
}

fn overload(
    args: &FloorArgs,
    (server, seed): (&Server, u64),
    urgent: &Mix,
    calibration: &Calibration,
) -> Result<Result<Had, String>> {
    let trace = write_trace(calibration, args.load, args.seconds, seed)?;
    let detector = Mix::member(DETECTOR).context("no detector")?;
    let longer = (WARMUP_S + args.seconds + 5.0).to_string();
    let load = (args.load, args.seconds);
    std::thread::scope(|scope| {
        let flood = [
            "--model",
            detector.request,
            "--concurrency",
            "4",
            "--warmup",
            "0",
            "--duration",
            longer.as_str(),
        ];
        let flood = scope.spawn(move || bench_any(&server.http, &flood));
        let work = scope.spawn(|| run(("quadrant", server), urgent, calibration, &trace, load));
        wait(WARMUP_S + EDGE_S);
        let (began, before) = (now(), core_seconds(server)?);
        wait(args.seconds - 2.0 * EDGE_S);
        let had = core_seconds(server)? - before;
        let core_share = had / (began.elapsed().as_secs_f64() * CORES);
        let point = work.join().map_err(|_| anyhow!("the load panicked"))??;
        let flood = flood.join().map_err(|_| anyhow!("the flood panicked"))??;
        ensure!(flood.total.failed == 0, "best effort failed: {:?}", flood.total.failures);
        Ok(point.map(|point| Had { core_share, in_time: point.mean_attainment() }))
    })
}

/// The processor time of the detector's steps so far.
fn core_seconds(server: &Server) -> Result<f64> {
    let text = server.page("/metrics")?;
    let own = |line: &&str| line.starts_with("quadrant_core_seconds_total") && line.contains(DETECTOR);
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    let values = text.lines().filter(own).map(|line| value(line).context("a metric without its value"));
    values.sum()
}

#[expect(clippy::disallowed_methods, reason = "the load runs meanwhile, in processes of its own")]
fn wait(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

#[expect(clippy::disallowed_methods, reason = "a measuring program")]
fn now() -> Instant {
    Instant::now()
}
