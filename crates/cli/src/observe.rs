//! `quadrant observe`: makes a workload for `simulate` and `plan` out of what a running server's steps
//! really took.

mod fit;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use fit::{Model, Observed, Step, Unsteady};

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// How often a server is asked that is watched.
const EVERY: Duration = Duration::from_millis(500);
/// The longest watch.
const SECONDS_MAX: f64 = 3_600.0;

/// Make a workload for `simulate` and `plan` out of what a running server did lately.
#[derive(Args, Debug)]
pub(crate) struct ObserveArgs {
    /// Where the server's metrics are.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8002")]
    metrics_address: String,
    /// Watch the server for so long, instead of taking the last steps that it remembers.
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Write every step to this file, one line of JSON each.
    #[arg(long, value_name = "FILE")]
    log_steps: Option<PathBuf>,
    /// Cores that compute, where not all of them had a step lately.
    #[arg(long, value_name = "N")]
    cores: Option<usize>,
}

/// The file, in the form that `simulate` reads.
#[derive(Serialize)]
struct Workload {
    seconds: f64,
    cores: usize,
    arrivals: Arrivals,
    unsteady: Unsteady,
    models: Vec<Observed>,
}

#[derive(Serialize)]
struct Arrivals {
    kind: &'static str,
}

/// Asks the server and prints the workload.
///
/// # Errors
/// If the server cannot be reached or has run no step.
#[expect(clippy::print_stdout, reason = "the answer of the command")]
pub(crate) fn run(args: &ObserveArgs) -> Result<()> {
    let models: Vec<Model> = page(&args.metrics_address, "models")?;
    let lines = steps(args)?;
    if let Some(path) = &args.log_steps {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    let steps = lines.into_iter().map(serde_json::from_value).collect::<Result<Vec<Step>, _>>();
    let steps = steps.context("the server's steps are not what `quadrant` would say")?;
    ensure!(!steps.is_empty(), "the server has run no step yet; send it some requests first");
    let seen = fit::cores(&steps);
    let (models, unsteady) = fit::observe(&models, &steps);
    ensure!(!models.is_empty(), "the steps that the server remembers are of models that it no longer has");
    println!(
        "# What {} steps on {} showed, in {:.1} s at a load of {:.2}. Times are those of one core.",
        steps.len(),
        args.metrics_address,
        fit::span_ms(&steps) / 1e3,
        fit::load(&steps, seen)
    );
    let cores = args.cores.unwrap_or(seen);
    let arrivals = Arrivals { kind: "poisson" };
    let workload = Workload { seconds: 60.0, cores, arrivals, unsteady, models };
    print!("{}", toml::to_string(&workload)?);
    Ok(())
}

/// The steps that the server remembers, or those that end in the next seconds, as it tells them.
fn steps(args: &ObserveArgs) -> Result<Vec<Value>> {
    let all = page(&args.metrics_address, "steps");
    let Some(seconds) = args.seconds else { return all };
    ensure!((0.1..=SECONDS_MAX).contains(&seconds), "`--seconds` must be from 0.1 to {SECONDS_MAX}");
    let number = |step: &Value| step["step"].as_u64();
    let mut last = all?.last().and_then(number);
    let (began, mut steps) = (now(), Vec::new());
    while began.elapsed().as_secs_f64() < seconds {
        // Far more often than the server forgets.
        std::thread::park_timeout(EVERY);
        let query = last.map_or_else(|| "steps".to_owned(), |last| format!("steps?after={last}"));
        let fresh: Vec<Value> = page(&args.metrics_address, &query)?;
        last = fresh.last().and_then(number).or(last);
        steps.extend(fresh);
    }
    Ok(steps)
}

#[expect(clippy::disallowed_methods, reason = "how long to watch is a person's time")]
fn now() -> Instant {
    Instant::now()
}

fn page<T: DeserializeOwned>(address: &str, name: &str) -> Result<T> {
    let url = format!("http://{address}/{name}");
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(true).build().into();
    let mut response = agent
        .get(&url)
        .call()
        .with_context(|| format!("cannot ask `{address}`; give the server's `metrics_address`"))?;
    let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
    serde_json::from_str(&text).with_context(|| format!("`{url}` is not what `quadrant` would say"))
}
