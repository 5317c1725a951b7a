//! How many requests of recorded chats are answered in time, against llama.cpp's own server.
//!
//! Chats are Azure's of 2023, an eighth as long, which suits a model of this size on two cores; both servers
//! are sent the same arrivals and lengths, one server after the other, with prompts that have nothing in
//! common. The rate is that of the trace, stretched or squeezed in steps of a tenth.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use quadrant_bench::TokenReport;

use super::llama::Llama;
use super::server::Server;
use super::serving::{LLAMA_SETTINGS, MODEL, alone, llama_server};
use super::{MeasureArgs, bench_tokens, repeat, spread};
use crate::run::{root, say};

const TRACE: &str = "crates/traffic/traces/azure_llm_2023_conv.csv";
/// How much shorter prompts and answers are.
const SHORTER: &str = "8";
/// The objectives, in milliseconds: of the first token, and of each further one.
const FIRST_MS: &str = "2000";
const EACH_MS: &str = "100";
/// The share of requests that must meet both.
const ATTAINMENT: f64 = 0.99;
/// From one rate to the next.
const STEP: f64 = 1.1;
/// Between one rate and the next, so that what the one left behind is not put down to the other.
const REST: Duration = Duration::from_secs(10);
/// The lowest rate that is tried, at which a request comes in about ten seconds.
const LOWEST: i32 = -32;
/// Seconds for which settings are compared, and for which rates are tried until one is known to begin with.
const TRIED_S: f64 = 60.0;
/// The step of the speed at which that begins: about a request in two seconds.
const TRIED_STEP: i32 = -17;

/// The highest rate at which 99 of 100 requests meet both objectives, over that of llama.cpp's server.
pub(super) fn measure(args: &MeasureArgs) -> Result<()> {
    let llama = Llama::prepare()?;
    let (models, config) = alone()?;
    let settings = best_settings(args, &llama, &models)?;
    let (mut at, mut ratios, mut rates) = ([None; 2], Vec::new(), [Vec::new(), Vec::new()]);
    for repetition in 0..args.repetitions {
        let seed = 1 + repetition as u64;
        let mut rate = [0.0; 2];
        for (side, name) in ["quadrant", "llama-server"].into_iter().enumerate() {
            let server = match side {
                0 => Server::quadrant(&models, &config)?,
                _ => llama_server(&llama, &models, settings)?,
            };
            let search = |seconds: f64, step| highest((&server, name), (seconds, seed), step);
            let start = match at[side] {
                Some(step) => step,
                None if args.trace_seconds > TRIED_S => search(TRIED_S, TRIED_STEP)?.0,
                None => TRIED_STEP,
            };
            let (step, report) = search(args.trace_seconds, start)?;
            at[side] = Some(step);
            rate[side] = report.offered_per_second.context("an open loop")?;
            if !is_good(&report) {
                say(&format!("  {name} is late at every rate: the lowest counts"));
            }
            rates[side].push(rate[side]);
        }
        ratios.push(rate[0] / rate[1]);
        say(&format!("  repetition {}: {:.2}/s over {:.2}/s", repetition + 1, rate[0], rate[1]));
    }
    say(&format!(
        "chats in time, {} s at each rate: {} of llama.cpp's server, bar 2x; the highest rate with 99 % in time \
         {} over {}; {} repetitions; llama-server with {} requests at a time and {} tokens in a pass",
        args.trace_seconds,
        spread(&ratios, "x"),
        spread(&rates[0], "/s"),
        spread(&rates[1], "/s"),
        ratios.len(),
        settings.0,
        settings.1
    ));
    Ok(())
}

/// The highest speed, as a power of [`STEP`], at which enough is in time, and what was reported then. From
/// `start`, strides of one, two, four... steps find a speed on the other side, and halving what lies between.
fn highest(
    (server, name): (&Server, &str),
    (seconds, seed): (f64, u64),
    start: i32,
) -> Result<(i32, TokenReport)> {
    let try_at = |step: i32| -> Result<TokenReport> {
        #[expect(clippy::disallowed_methods, reason = "another process tells no channel of ours")]
        std::thread::sleep(REST);
        let speed = STEP.powi(step);
        let report = replay(server, (seconds, speed), (seed, true))?;
        say(&format!("  {name}, {seconds} s at {}", line(&report)));
        Ok(report)
    };
    let (mut low, mut high, mut stride) = (start, start, 1);
    let mut found = try_at(start)?;
    if is_good(&found) {
        loop {
            high = low + stride;
            stride *= 2;
            match try_at(high)? {
                report if is_good(&report) => (low, found) = (high, report),
                _ => break,
            }
        }
    } else {
        while !is_good(&found) && low > LOWEST {
            (high, low) = (low, (low - stride).max(LOWEST));
            stride *= 2;
            found = try_at(low)?;
        }
    }
    while is_good(&found) && high - low > 1 {
        let middle = low + (high - low) / 2;
        match try_at(middle)? {
            report if is_good(&report) => (low, found) = (middle, report),
            _ => high = middle,
        }
    }
    Ok((low, found))
}

fn is_good(report: &TokenReport) -> bool {
    report.attainment >= ATTAINMENT && !report.gave_up
}

/// Replays the trace for so many seconds at this speed, until that is not void.
fn replay(
    server: &Server,
    (seconds, speed): (f64, f64),
    (seed, gives_up): (u64, bool),
) -> Result<TokenReport> {
    let trace = root().join(TRACE);
    let trace = trace.to_str().context("a path that is no text")?;
    let (duration, speed, seed) = (seconds.to_string(), speed.to_string(), seed.to_string());
    let attainment = ATTAINMENT.to_string();
    let mut arguments = vec!["--trace", trace, "--duration", &duration, "--speed", &speed, "--seed", &seed];
    arguments.extend(["--shorter", SHORTER, "--ttft-ms", FIRST_MS, "--tpot-ms", EACH_MS]);
    arguments.extend(["--model", MODEL]);
    if gives_up {
        arguments.extend(["--give-up-below", &attainment]);
    }
    let (mut reports, _) = repeat(1, || {
        let report = bench_tokens(&server.http, &arguments)?;
        Ok(match &report.void {
            Some(reason) => Err(reason.clone()),
            None => Ok(report),
        })
    })?;
    reports.pop().context("a run that counts")
}

fn line(report: &TokenReport) -> String {
    format!(
        "{:.2}/s: {:.2} % in time{}; first token p50 {:.0}, p99 {:.0} ms; each p50 {:.1}, p99 {:.1} ms; {} failed",
        report.offered_per_second.unwrap_or_default(),
        100.0 * report.attainment,
        if report.gave_up { " so far, given up" } else { "" },
        report.first_token_ms.p50,
        report.first_token_ms.p99,
        report.each_token_ms.p50,
        report.each_token_ms.p99,
        report.failed
    )
}

/// The settings of llama.cpp's server with which most is in time, and first tokens come soonest.
fn best_settings(args: &MeasureArgs, llama: &Llama, models: &Path) -> Result<(u32, u32)> {
    let mut best = None;
    for settings in LLAMA_SETTINGS {
        let server = llama_server(llama, models, settings)?;
        let (seconds, speed) = (TRIED_S.min(args.trace_seconds), STEP.powi(TRIED_STEP));
        let report = replay(&server, (seconds, speed), (1_000, false))?;
        let (slots, pass) = settings;
        say(&format!("  llama-server, {slots} at a time, {pass} tokens in a pass: {}", line(&report)));
        let figure = (report.attainment, -report.first_token_ms.mean);
        if best.is_none_or(|(so_far, _)| figure > so_far) {
            best = Some((figure, settings));
        }
    }
    Ok(best.context("settings to try")?.1)
}
