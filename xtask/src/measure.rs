//! `cargo xtask measure`: the figures of the README, measured again. Each comparison alternates both sides
//! in one run; medians of the repetitions are quoted with their spread. A repetition in which more than 2 %
//! of the machine's time went to others, or the generator itself sent late, is void and repeated; voids are
//! counted.

mod chats;
mod decisions;
mod isolation;
mod language;
mod latency;
mod llama;
mod residency;
pub(crate) mod server;
mod serving;
mod size;
mod throughput;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use quadrant_bench::{Report, TokenReport};
use serde::de::DeserializeOwned;

use crate::run::{cargo, run, say, target};

/// What to measure, and how often.
#[derive(Args, Debug)]
pub(crate) struct MeasureArgs {
    /// What to measure; all if nothing is said.
    #[arg(value_enum)]
    what: Vec<What>,
    /// Repetitions that count.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// Seconds of one repetition on one side.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Seconds for which a server of language models is sent a trace.
    #[arg(long, default_value_t = 300.0)]
    trace_seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Latency of one request at a time, over a bare echo's.
    Latency,
    /// Processor time of a request at 32 connections, over a bare echo's.
    Cpu,
    /// Throughput at saturation, against the best loop of the bare engine.
    Throughput,
    /// Size of the binary and memory without models.
    Size,
    /// Cost of a scheduling decision, and speed of the simulator.
    Decisions,
    /// Latency that a model's own process adds.
    IsolationLatency,
    /// What others feel when a model's process is killed, leaks or aborts.
    IsolationHarm,
    /// A request for an absent model, over loading the model and asking it.
    Absent,
    /// What a quiet model feels while others load and unload.
    Turmoil,
    /// The language engine against llama.cpp, which is built for it.
    Language,
    /// Chats in time, against llama.cpp's server.
    Chats,
    /// What another model feels beside a saturated language model.
    Beside,
    /// What a beginning that prompts share saves.
    Prefix,
    /// From the start of the process to the first token, against llama.cpp's server.
    Start,
}

/// Measures.
///
/// # Errors
/// If something cannot be built or started, or too many repetitions were void.
pub(crate) fn run_measure(args: &MeasureArgs) -> Result<()> {
    ensure!(args.repetitions > 0, "`--repetitions` must be at least 1");
    build()?;
    let wanted = |what| args.what.is_empty() || args.what.contains(&what);
    if wanted(What::Decisions) {
        decisions::measure(args)?;
    }
    if wanted(What::Size) {
        size::measure()?;
    }
    if wanted(What::Latency) {
        latency::latency(args)?;
    }
    if wanted(What::Cpu) {
        latency::processor_time(args)?;
    }
    if wanted(What::Throughput) {
        throughput::measure(args)?;
    }
    if wanted(What::IsolationLatency) {
        isolation::latency(args)?;
    }
    if wanted(What::IsolationHarm) {
        isolation::harm(args)?;
    }
    if wanted(What::Absent) {
        residency::absent(args)?;
    }
    if wanted(What::Turmoil) {
        residency::turmoil(args)?;
    }
    if wanted(What::Language) {
        language::measure(args)?;
    }
    if wanted(What::Chats) {
        chats::measure(args)?;
    }
    if wanted(What::Beside) {
        serving::beside(args)?;
    }
    if wanted(What::Prefix) {
        serving::prefix(args)?;
    }
    if wanted(What::Start) {
        serving::start(args)?;
    }
    Ok(())
}

/// Builds what is measured.
///
/// # Errors
/// If it cannot be built.
pub(crate) fn build() -> Result<()> {
    run(cargo().args(["build", "--release", "--locked", "-p", "quadrant-cli", "-p", "quadrant-baseline"]))
}

/// A program built by [`build`].
pub(crate) fn program(name: &str) -> std::path::PathBuf {
    target().join("release").join(name)
}

/// Runs `quadrant bench` with these arguments; every request must be answered.
pub(crate) fn bench(address: &str, arguments: &[&str]) -> Result<Report> {
    let report = bench_any(address, arguments)?;
    ensure!(report.total.failed == 0, "requests failed: {:?}", report.total.failures);
    Ok(report)
}

/// Runs `quadrant bench` with these arguments.
pub(crate) fn bench_any(address: &str, arguments: &[&str]) -> Result<Report> {
    generator("bench", address, arguments)
}

/// Runs `quadrant bench-tokens` with these arguments.
fn bench_tokens(address: &str, arguments: &[&str]) -> Result<TokenReport> {
    generator("bench-tokens", address, arguments)
}

/// Runs a load generator; its report.
fn generator<T: DeserializeOwned>(command: &str, address: &str, arguments: &[&str]) -> Result<T> {
    // A generator in an open loop stands for other machines, so it goes before the server where that is
    // allowed; how late it sends is measured in any case. In a closed loop it would interrupt the server at
    // every answer, which no other machine does.
    let is_open = arguments.iter().any(|argument| ["--trace", "--poisson", "--constant"].contains(argument));
    let realtime = ["-f", "1"];
    let allowed = std::process::Command::new("chrt").args(realtime).arg("true").output();
    let mut load = match allowed {
        Ok(output) if is_open && output.status.success() => {
            let mut load = std::process::Command::new("chrt");
            load.args(realtime).arg(program("quadrant"));
            load
        }
        Ok(_) | Err(_) => std::process::Command::new(program("quadrant")),
    };
    let output = load
        .args([command, "--quiet", "--json", "-", "--address", address])
        .args(arguments)
        .output()
        .context("cannot run the load generator")?;
    if !output.status.success() {
        bail!("`quadrant {command}` failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("a report that cannot be read")
}

/// Void repetitions for each one that counts, before the machine is given up as too noisy.
const VOIDS_MAX: usize = 4;

/// Repeats `once` until enough repetitions count. It says its result, or why it is void.
pub(crate) fn repeat<T>(
    count: usize,
    mut once: impl FnMut() -> Result<Result<T, String>>,
) -> Result<(Vec<T>, usize)> {
    let (mut results, mut voids) = (Vec::new(), 0);
    while results.len() < count {
        match once()? {
            Ok(result) => results.push(result),
            Err(reason) => {
                voids += 1;
                say(&format!("  void: {reason}"));
                ensure!(
                    voids <= count * VOIDS_MAX,
                    "`{voids}` repetitions were void; the machine is too noisy"
                );
            }
        }
    }
    Ok((results, voids))
}

/// The median, with the smallest and the largest.
pub(crate) fn spread(values: &[f64], unit: &str) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = median(&sorted);
    let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
    format!("{median:.2}{unit} ({least:.2} to {most:.2})")
}

/// The median of values in any order.
pub(crate) fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    median(&values)
}

/// The median of sorted values.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(spread(&[3.0, 1.0, 2.0], " us"), "2.00 us (1.00 to 3.00)");
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0], ""), "2.50 (1.00 to 4.00)");
    }

    #[test]
    fn void_repetitions_are_repeated_and_counted() {
        let mut tries = 0;
        let (results, voids) = repeat(2, || {
            tries += 1;
            Ok(if tries == 1 { Err("noise".to_owned()) } else { Ok(tries) })
        })
        .unwrap();
        assert_eq!((results, voids), (vec![2, 3], 1));
        assert!(repeat::<()>(1, || Ok(Err("noise".to_owned()))).is_err());
    }
}
