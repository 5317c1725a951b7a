//! `quadrant observe`: makes a workload for `simulate` and `plan` out of what a running server's steps
//! really took.

mod fit;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;

use fit::{Model, Observed, Step};

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Make a workload for `simulate` and `plan` out of what a running server did lately.
#[derive(Args, Debug)]
pub(crate) struct ObserveArgs {
    /// Where the server's metrics are.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8002")]
    metrics_address: String,
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
    let steps: Vec<Step> = page(&args.metrics_address, "steps")?;
    ensure!(!steps.is_empty(), "the server has run no step yet; send it some requests first");
    let seen = fit::cores(&steps);
    let observed = fit::observe(&models, &steps);
    ensure!(!observed.is_empty(), "the steps that the server remembers are of models that it no longer has");
    println!(
        "# What {} steps on {} showed, in {:.1} s at a load of {:.2}. Times are those of one core.",
        steps.len(),
        args.metrics_address,
        fit::span_ms(&steps) / 1e3,
        fit::load(&steps, seen)
    );
    let cores = args.cores.unwrap_or(seen);
    let workload =
        Workload { seconds: 60.0, cores, arrivals: Arrivals { kind: "poisson" }, models: observed };
    print!("{}", toml::to_string(&workload)?);
    Ok(())
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
