//! A tenant that asks for ten times its quota: what it gets, and what the others feel of it. Windows with and
//! without it alternate on one server; what counts is a quiet tenant's 99th percentile with it over that
//! without, and what the other one was given over what it may have.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use quadrant_bench::Report;

use super::MixName;
use super::mix::Mix;
use super::workload::{CORES, calibrate};
use crate::measure::server::Server;
use crate::measure::{bench_any, build, program, repeat, spread};
use crate::run::{say, within};

/// Requests per second of the quiet tenant.
const QUIET_RATE: &str = "10";
/// What the quiet tenant and the other one ask for.
const MODELS: [&str; 2] = ["magika", "ppocr-rec"];
/// Seconds of the flood that are not counted: what was saved up is used up meanwhile.
const EDGE_S: f64 = 3.0;

/// How long, how often, which quota.
#[derive(Args, Clone, Debug)]
pub(crate) struct TenantsArgs {
    /// Quotas to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "requests,device")]
    quotas: Vec<Quota>,
    /// What the tenant may have, as a share of all cores.
    #[arg(long, default_value_t = 0.1)]
    share: f64,
    /// How many times that it asks for.
    #[arg(long, default_value_t = 10.0)]
    over: f64,
    /// Pairs of windows.
    #[arg(long, default_value_t = 10)]
    windows: usize,
    /// Seconds of one window.
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
}

/// What is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Quota {
    /// Requests per second.
    Requests,
    /// The share of the device's time.
    Device,
}

/// One pair of windows.
struct Pair {
    alone_ms: f64,
    flooded_ms: f64,
    /// What the tenant was given over what it may have.
    given: f64,
}

/// The keys of both tenants.
struct Keys {
    quiet: String,
    flood: String,
}

/// Measures.
///
/// # Errors
/// If a server cannot be started, or the machine is too noisy.
pub(crate) fn tenants(args: &TenantsArgs) -> Result<()> {
    ensure!(args.windows > 0 && args.seconds > 1.0, "`--windows` and `--seconds` must be above 1");
    build()?;
    let mix = Mix::prepare(MixName::B)?;
    let calibration = calibrate(&mix)?;
    let asked = calibration.of(MODELS[1]).context("the model is in the mix")?;
    let rate = args.share * CORES / (asked.core_ms / 1e3);
    for quota in &args.quotas {
        let ((quiet, quiet_digest), (flood, flood_digest)) = (new_key()?, new_key()?);
        let bound = match quota {
            Quota::Requests => format!("requests_per_second = {rate:.3}"),
            Quota::Device => format!("device_share = {}", args.share),
        };
        let tenants = format!(
            "[tenants.quiet]\nkeys = [\"{quiet_digest}\"]\n[tenants.flood]\nkeys = [\"{flood_digest}\"]\n{bound}\n"
        );
        let server = mix.serve_with_tenants(&tenants, &calibration)?;
        let keys = Keys { quiet, flood };
        let (pairs, voids) = repeat(args.windows, || pair(args, (&server, &keys), *quota, rate))?;
        let column = |of: fn(&Pair) -> f64| pairs.iter().map(of).collect::<Vec<f64>>();
        say(&format!(
            "tenants, {quota:?} bounded to {} of the device, {} times that asked for: p99 of the other with \
             it over alone {}, bar 1.1; alone {}, with it {}; given over its quota {}, bar 0.98 to 1.02; {} \
             pairs of {} s, {voids} void",
            args.share,
            args.over,
            spread(&column(|pair| pair.flooded_ms / pair.alone_ms), "x"),
            spread(&column(|pair| pair.alone_ms), " ms"),
            spread(&column(|pair| pair.flooded_ms), " ms"),
            spread(&column(|pair| pair.given), ""),
            pairs.len(),
            args.seconds
        ));
    }
    Ok(())
}

fn pair(
    args: &TenantsArgs,
    (server, keys): (&Server, &Keys),
    quota: Quota,
    rate: f64,
) -> Result<Result<Pair, String>> {
    let request = |name: &str| Mix::member(name).map(|member| member.request).context("no such model");
    let (quiet_request, flood_request) = (request(MODELS[0])?, request(MODELS[1])?);
    let load = |model: &str, rate: &str, key: &str, times: (f64, f64)| -> Result<Report> {
        let (warmup, seconds) = (times.0.to_string(), times.1.to_string());
        let common = ["--model", model, "--constant", rate, "--api-key", key, "--outstanding", "256"];
        bench_any(&server.http, &[&common[..], &["--warmup", &warmup, "--duration", &seconds]].concat())
    };
    let quiet = || load(quiet_request, QUIET_RATE, &keys.quiet, (1.0, args.seconds));
    let alone = quiet()?;
    let asked = format!("{:.3}", args.over * rate);
    let (flooded, flood, used) = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| load(flood_request, &asked, &keys.flood, (EDGE_S, args.seconds)));
        let using = scope.spawn(|| used(server, args.seconds));
        let quiet = quiet();
        let flood = flooding.join().map_err(|_| anyhow!("the flood panicked"))??;
        let used = using.join().map_err(|_| anyhow!("the observer panicked"))??;
        Ok::<_, anyhow::Error>((quiet?, flood, used))
    })?;
    let given = match quota {
        Quota::Requests => flood.total.answered_per_second / rate,
        Quota::Device => used / (args.share * CORES),
    };
    let void = alone.void.or(flooded.void).or(flood.void);
    let (alone_ms, flooded_ms) = (alone.total.latency_ms.p99, flooded.total.latency_ms.p99);
    Ok(void.map_or(Ok(Pair { alone_ms, flooded_ms, given }), Err))
}

/// Core-seconds a second that the flood's steps had, once what it had saved up is used up.
fn used(server: &Server, seconds: f64) -> Result<f64> {
    #[expect(clippy::disallowed_methods, reason = "a measuring program")]
    let now = Instant::now;
    let wait = |seconds: f64| within(Duration::from_secs_f64(seconds), || Ok(false)).map(drop);
    let core_seconds = || -> Result<f64> {
        let page = server.page("/metrics")?;
        let line = "quadrant_tenant_core_seconds_total{tenant=\"flood\"} ";
        let value = page.lines().find_map(|text| text.strip_prefix(line)).context("no such metric")?;
        Ok(value.parse()?)
    };
    wait(EDGE_S)?;
    let (began, before) = (now(), core_seconds()?);
    // It ends before the flood does.
    wait(seconds - 1.0)?;
    Ok((core_seconds()? - before) / began.elapsed().as_secs_f64())
}

/// A key and its digest.
fn new_key() -> Result<(String, String)> {
    let output = std::process::Command::new(program("quadrant")).args(["tenant", "new-key"]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let word = |beginning: &str| {
        let mut words = text.split(|c: char| c.is_whitespace() || c == '"');
        words.find(|word| word.starts_with(beginning)).map(str::to_owned)
    };
    word("qk_").zip(word("sha256:")).context("no key was made")
}
