//! `quadrant bench-tokens`: load on a language model, and when its tokens came.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Args;
use quadrant_bench::{Length, Lengths, PoissonTimes, TokenArrivals, TokenPlan, read_token_trace, run_tokens};

use crate::bench::{api_key, seconds, show};

/// Send completions to a language model and report when their tokens came.
#[derive(Args, Debug)]
pub(crate) struct BenchTokensArgs {
    /// The model to ask.
    #[arg(long, value_name = "NAME")]
    model: String,
    /// The server: Quadrant, or another one with OpenAI's API.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8000")]
    address: String,
    /// Closed loop: so many requests at a time, each followed by the next.
    #[arg(long, value_name = "N", group = "arrivals")]
    concurrency: Option<usize>,
    /// Open loop: requests per second at Poisson-distributed times.
    #[arg(long, value_name = "RATE", group = "arrivals")]
    poisson: Option<f64>,
    /// Open loop: the arrivals and lengths of a CSV file with the columns `arrival_ms`, `input_tokens` and
    /// `output_tokens`.
    #[arg(long, value_name = "FILE", group = "arrivals")]
    trace: Option<String>,
    /// How many times faster than recorded a trace is replayed.
    #[arg(long, default_value_t = 1.0, requires = "trace")]
    speed: f64,
    /// How many times shorter than recorded its prompts and answers are.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "trace")]
    shorter: u32,
    /// Tokens of a prompt, without a trace.
    #[arg(long, value_name = "N", default_value_t = 128)]
    prompt: u32,
    /// Tokens of an answer, without a trace.
    #[arg(long, value_name = "N", default_value_t = 64)]
    new: u32,
    /// Tokens at the beginning of all prompts that are the same.
    #[arg(long, value_name = "N", default_value_t = 0)]
    shared_prefix: u32,
    /// Take nothing from the server's cache of prompts: each has its own `cache_salt`.
    #[arg(long)]
    uncached: bool,
    /// How long to send, in seconds, after the warm-up if there is one.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, conflicts_with = "requests")]
    duration: f64,
    /// How many requests to send instead.
    #[arg(long, value_name = "N", conflicts_with = "trace")]
    requests: Option<u64>,
    /// How long to send before counting, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    warmup: f64,
    /// By when a first token is in time, in milliseconds. The server is told.
    #[arg(long, value_name = "MS")]
    ttft_ms: Option<u64>,
    /// How long each further token may take in the mean of an answer, in milliseconds. The server is told.
    #[arg(long, value_name = "MS")]
    tpot_ms: Option<u64>,
    /// End an open loop as soon as this share of requests cannot be in time any more.
    #[arg(long, value_name = "SHARE")]
    give_up_below: Option<f64>,
    /// The API key to show, or `@FILE` for a file that holds it.
    #[arg(long, value_name = "KEY", value_parser = api_key)]
    api_key: Option<String>,
    /// Seed of prompts and arrivals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the report as JSON to this file; `-` is standard output, instead of the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Do not show progress.
    #[arg(long)]
    quiet: bool,
}

/// Runs the load.
///
/// # Errors
/// If the plan makes no sense or the server does not answer a first request.
pub(crate) fn run_bench(args: &BenchTokensArgs) -> Result<()> {
    let told = std::cell::Cell::new(0);
    let quiet = args.quiet;
    let report = run_tokens(plan(args)?, move |ended, failed| {
        if !quiet && ended >= told.get() + TOLD_EVERY {
            told.set(ended);
            progress(ended, failed);
        }
    })?;
    show(&report, args.json.as_deref())
}

/// Answers between two lines of progress.
const TOLD_EVERY: usize = 50;

#[expect(clippy::print_stderr, reason = "progress for the person who waits")]
fn progress(ended: usize, failed: usize) {
    eprintln!("{ended:>8} ended, {failed} failed");
}

fn plan(args: &BenchTokensArgs) -> Result<TokenPlan> {
    let (duration, warmup) = (seconds("duration", args.duration)?, seconds("warmup", args.warmup)?);
    ensure!(args.speed.is_finite() && args.speed > 0.0, "`--speed` must be above 0");
    ensure!(args.prompt > 0 && args.new > 0, "`--prompt` and `--new` must be at least 1");
    let lengths = Lengths { prompt: args.prompt, new: args.new };
    let arrivals = match (args.concurrency, args.poisson, &args.trace) {
        (Some(0), ..) => bail!("`--concurrency` must be at least 1"),
        (Some(at_a_time), ..) => {
            let length = args.requests.map_or(Length::For(duration), Length::Requests);
            TokenArrivals::Closed(at_a_time, lengths, length)
        }
        (_, Some(rate), _) => {
            ensure!(rate.is_finite() && rate > 0.0, "`--poisson` must be above 0");
            let count =
                args.requests.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
            let until = warmup + duration;
            let times = PoissonTimes::new(rate, args.seed).take(count);
            let times = times.take_while(|at| args.requests.is_some() || *at < until);
            let requests: Vec<_> = times.map(|at| (at, lengths)).collect();
            let last = requests.last().map_or(until, |(at, _)| *at);
            TokenArrivals::Open(requests, if args.requests.is_some() { last } else { until })
        }
        (.., Some(trace)) => {
            let until = warmup + duration;
            TokenArrivals::Open(read_token_trace(trace, args.speed, args.shorter, until)?, until)
        }
        (None, None, None) => bail!("say when to send: `--concurrency`, `--poisson` or `--trace`"),
    };
    Ok(TokenPlan {
        address: args.address.clone(),
        model: args.model.clone(),
        arrivals,
        shared_prefix: args.shared_prefix,
        uncached: args.uncached,
        warmup,
        first: args.ttft_ms.map(Duration::from_millis),
        each: args.tpot_ms.map(Duration::from_millis),
        attainment_min: args.give_up_below,
        api_key: args.api_key.clone(),
        seed: args.seed,
    })
}
