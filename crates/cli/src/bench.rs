//! `quadrant bench`: load, and what became of it.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use quadrant_bench::{
    Arrivals, Encoding, Length, ModelLoad, Plan, Protocol, Snapshot, Trace, parse_model, read_trace, run,
};
use serde::Serialize;

/// Send load and report latency percentiles.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// A model to ask:
    /// `NAME[*WEIGHT][:INPUT=TYPE[DIMS]=random|zeros|ones,…][@OUTPUT=CLASSES][~OBJECTIVE_MS]`.
    /// Several mix; an objective counts answers in time. Without inputs the server is asked what the model
    /// takes; free sizes are 1 for rows and 16 otherwise.
    #[arg(long = "model", value_name = "SPEC", required = true, value_parser = parse_model)]
    models: Vec<ModelLoad>,
    /// How the server is spoken to.
    #[arg(long, value_enum, default_value_t = ProtocolArg::Http)]
    protocol: ProtocolArg,
    /// The server [default: 127.0.0.1:8000, or 127.0.0.1:8001 for gRPC].
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Send tensors as JSON numbers instead of binary (HTTP only).
    #[arg(long)]
    json_tensors: bool,
    /// Closed loop: so many connections, each sending its next request when it has the last answer.
    #[arg(long, value_name = "N", group = "arrivals")]
    concurrency: Option<usize>,
    /// Open loop: requests per second at Poisson-distributed times.
    #[arg(long, value_name = "RATE", group = "arrivals")]
    poisson: Option<f64>,
    /// Open loop: requests per second at even intervals.
    #[arg(long, value_name = "RATE", group = "arrivals")]
    constant: Option<f64>,
    /// Open loop: the arrivals of a CSV file with a column `arrival_ms` and, if wanted, a column `model`.
    #[arg(long, value_name = "FILE", group = "arrivals")]
    trace: Option<String>,
    /// How many times faster than recorded a trace is replayed.
    #[arg(long, default_value_t = 1.0, requires = "trace")]
    speed: f64,
    /// How long to count, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, conflicts_with = "requests")]
    duration: f64,
    /// How many requests to count instead.
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// How long to send before counting, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    warmup: f64,
    /// The most requests on their way at once in an open loop.
    #[arg(long, value_name = "N", default_value_t = 512)]
    outstanding: usize,
    /// How long an answer is of use, sent with every request, in milliseconds.
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
    /// On whose account requests are, as the header `x-gateway-inference-fairness-id` (HTTP only).
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// The API key to show, or `@FILE` for a file that holds it (HTTP only).
    #[arg(long, value_name = "KEY", value_parser = api_key)]
    api_key: Option<String>,
    /// Do not ask each model once before the run: it begins with what was never asked for.
    #[arg(long)]
    cold: bool,
    /// Seed of arrivals, mix and inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cores that the generator is confined to, such as `0` or `0,1`.
    #[arg(long, value_delimiter = ',', value_name = "CORES")]
    cores: Vec<usize>,
    /// Write the report as JSON to this file; `-` is standard output, instead of the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Do not show progress.
    #[arg(long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProtocolArg {
    Http,
    Grpc,
}

/// Runs the load.
///
/// # Errors
/// If the plan makes no sense or the server does not answer a first request.
pub(crate) fn run_bench(args: &BenchArgs) -> Result<()> {
    if !args.cores.is_empty() {
        let cores = crate::checked::device_cores(&args.cores)?;
        quadrant_sys::confine_thread(cores).context("cannot keep to these cores")?;
    }
    let report = run(plan(args)?, |snapshot| {
        if !args.quiet {
            progress(snapshot);
        }
    })?;
    show(&report, args.json.as_deref())
}

/// Shows a report as a table; as JSON too, or instead if that goes to standard output.
#[expect(clippy::print_stdout, reason = "the answer of the command")]
pub(crate) fn show(report: &(impl Serialize + Display), json: Option<&Path>) -> Result<()> {
    match json {
        Some(path) if path.as_os_str() == "-" => println!("{}", serde_json::to_string_pretty(report)?),
        Some(path) => {
            let text = serde_json::to_string_pretty(report)?;
            std::fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
            print!("{report}");
        }
        None => print!("{report}"),
    }
    Ok(())
}

/// Seconds of an option of this name.
pub(crate) fn seconds(name: &str, value: f64) -> Result<Duration> {
    ensure!(value.is_finite() && (0.0..=86_400.0).contains(&value), "`--{name}` must not be `{value}`");
    Ok(Duration::from_secs_f64(value))
}

/// A key as it is given on the command line, where others can read it, or from a file.
pub(crate) fn api_key(text: &str) -> Result<String> {
    let Some(path) = text.strip_prefix('@') else { return Ok(text.to_owned()) };
    let read = std::fs::read_to_string(path).with_context(|| format!("cannot read the key from `{path}`"))?;
    Ok(read.trim().to_owned())
}

fn plan(args: &BenchArgs) -> Result<Plan> {
    let protocol = match args.protocol {
        ProtocolArg::Http => Protocol::Http,
        ProtocolArg::Grpc => Protocol::Grpc,
    };
    let default = if protocol == Protocol::Http { "127.0.0.1:8000" } else { "127.0.0.1:8001" };
    let arrivals = match (args.concurrency, args.poisson, args.constant, &args.trace) {
        (Some(concurrency), ..) => Arrivals::Closed { concurrency },
        (_, Some(rate), ..) => Arrivals::Poisson { rate },
        (_, _, Some(rate), _) => Arrivals::Constant { rate },
        (.., Some(trace)) => trace_arrivals(args, &read_trace(trace)?)?,
        (None, None, None, None) => {
            bail!("say when to send: `--concurrency`, `--poisson`, `--constant` or `--trace`")
        }
    };
    let length = match args.requests {
        Some(count) => Length::Requests(count),
        None => Length::For(seconds("duration", args.duration)?),
    };
    if args.json_tensors && protocol == Protocol::Grpc {
        return Err(anyhow!("`--json-tensors` is for HTTP"));
    }
    Ok(Plan {
        protocol,
        address: args.address.clone().unwrap_or_else(|| default.to_owned()),
        mix: args.models.clone(),
        encoding: if args.json_tensors { Encoding::Json } else { Encoding::Binary },
        arrivals,
        length,
        warmup: seconds("warmup", args.warmup)?,
        outstanding_max: args.outstanding,
        timeout: args.timeout_ms.map(Duration::from_millis),
        tenant: args.tenant.clone(),
        api_key: args.api_key.clone(),
        tries_first: !args.cold,
        seed: args.seed,
    })
}

fn trace_arrivals(args: &BenchArgs, trace: &Trace) -> Result<Arrivals> {
    let index = |name: &String| {
        let index = args.models.iter().position(|model| model.name == *name);
        index.with_context(|| format!("the trace has requests for `{name}`, which no `--model` names"))
    };
    let models = trace.iter().filter_map(|(_, name)| name.as_ref()).map(index).collect::<Result<_>>()?;
    let times_ms = trace.iter().map(|(time, _)| *time).collect();
    Ok(Arrivals::Trace { times_ms, models, speed: args.speed })
}

#[expect(clippy::print_stderr, reason = "progress for the person who waits")]
fn progress(snapshot: Snapshot) {
    let Snapshot { elapsed_s, answered_per_second, p50_ms, p99_ms, failed } = snapshot;
    eprintln!(
        "{elapsed_s:>6.0} s  {answered_per_second:>9.1}/s  p50 {p50_ms:>9.3} ms  p99 {p99_ms:>9.3} ms  failed {failed}"
    );
}
