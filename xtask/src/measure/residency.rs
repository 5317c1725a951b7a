//! Models that come and go: how long a request for an absent model takes, against loading the model and
//! asking it; and what Magika's requests feel while other models are loaded and unloaded without pause.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::server::Server;
use super::{MeasureArgs, bench_any, repeat, spread};
use crate::run::{say, target, within};
use crate::schedule::MixName;
use crate::schedule::mix::{Member, Mix};

/// How long a model that is loaded on demand stays unused here.
const IDLE_S: f64 = 0.05;
/// How long something may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Requests a second of the model that is to feel nothing.
const QUIET_RATE: &str = "10";
/// That model.
const QUIET: &str = "magika";

/// A request for an absent model, from its sending to its answer, over the time of a load by name and of one
/// request afterwards.
pub(super) fn absent(args: &MeasureArgs) -> Result<()> {
    let mix = Mix::prepare(MixName::A)?;
    let config = target().join("measure/absent.toml");
    let settings = format!("residency = \"on-demand\"\nidle_s = {IDLE_S}\n");
    std::fs::write(
        &config,
        format!("[device]\nonnxruntime = \"{}\"\n[model_defaults]\n{settings}", mix.library.display()),
    )?;
    let server = Server::quadrant(&mix.folder, &config)?;
    for member in mix.members() {
        let body = body(member);
        let mut pairs = Vec::new();
        for _ in 0..args.repetitions {
            // The first of a kind also warms the page cache.
            let waits = timed(&server, member.name, &body)?;
            post(&server, &format!("/v2/repository/models/{}/unload", member.name), b"")?;
            #[expect(clippy::disallowed_methods, reason = "what is measured is this time")]
            let began = Instant::now();
            post(&server, &format!("/v2/repository/models/{}/load", member.name), b"")?;
            infer(&server, member.name, &body)?;
            pairs.push((waits, began.elapsed()));
        }
        let ms = |of: fn(&(Duration, Duration)) -> Duration| -> Vec<f64> {
            pairs.iter().map(|pair| of(pair).as_secs_f64() * 1e3).collect()
        };
        let ratios: Vec<f64> = pairs.iter().map(|(waits, apart)| waits.div_duration_f64(*apart)).collect();
        say(&format!(
            "a request for an absent model, {}: {} of loading it and asking once, bar 1.15x; {}, {}; {} pairs",
            member.name,
            spread(&ratios, "x"),
            spread(&ms(|(waits, _)| *waits), " ms"),
            spread(&ms(|(_, apart)| *apart), " ms"),
            pairs.len()
        ));
    }
    Ok(())
}

/// The time of a request, once its model is absent.
fn timed(server: &Server, model: &str, body: &[u8]) -> Result<Duration> {
    let is_absent = || {
        let index = post(server, "/v2/repository/index", b"")?;
        let line = index.split('{').find(|line| line.contains(&format!("\"name\":\"{model}\"")));
        Ok(line.is_some_and(|line| line.contains("absent")))
    };
    ensure!(within(PATIENCE, is_absent)?, "`{model}` does not go");
    #[expect(clippy::disallowed_methods, reason = "what is measured is this time")]
    let began = Instant::now();
    infer(server, model, body)?;
    Ok(began.elapsed())
}

/// The 99th percentile of a quiet model while others come and go, over that of the same load without.
pub(super) fn turmoil(args: &MeasureArgs) -> Result<()> {
    let mix = Mix::prepare(MixName::A)?;
    let config = target().join("measure/turmoil.toml");
    std::fs::write(&config, format!("[device]\nonnxruntime = \"{}\"\n", mix.library.display()))?;
    let server = Server::quadrant(&mix.folder, &config)?;
    let quiet = Mix::member(QUIET).context("no magika")?;
    let seconds = args.seconds.to_string();
    let window = |turmoil: bool| -> Result<(Result<f64, String>, usize)> {
        let load =
            ["--model", quiet.request, "--constant", QUIET_RATE, "--warmup", "1", "--duration", &seconds];
        let over = AtomicBool::new(!turmoil);
        std::thread::scope(|scope| {
            let coming = scope.spawn(|| come_and_go(&server, &mix, &over));
            let report = bench_any(&server.http, &load);
            over.store(true, Ordering::Relaxed);
            let changes = coming.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            let report = report?;
            ensure!(report.total.failed == 0, "requests failed: {:?}", report.total.failures);
            Ok((report.void.map_or(Ok(report.total.latency_ms.p99), Err), changes))
        })
    };
    let mut changes = 0;
    let (pairs, voids) = repeat(args.repetitions, || {
        let ((without, _), (with, count)) = (window(false)?, window(true)?);
        changes += count;
        Ok(without.and_then(|without| with.map(|with| (without, with))))
    })?;
    let column = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).collect::<Vec<f64>>();
    say(&format!(
        "turmoil: p99 of {QUIET} while others load and unload over without {}, bar 1.2x; without {}, with {}; \
         {changes} loads; {} pairs of {} s, {voids} void",
        spread(&column(|(without, with)| with / without), "x"),
        spread(&column(|(without, _)| *without), " ms"),
        spread(&column(|(_, with)| *with), " ms"),
        pairs.len(),
        args.seconds
    ));
    Ok(())
}

/// Unloads and loads all other models, one after the other, until it is over; how many.
fn come_and_go(server: &Server, mix: &Mix, over: &AtomicBool) -> Result<usize> {
    let mut changes = 0;
    for member in mix.members().filter(|member| member.name != QUIET).collect::<Vec<_>>().iter().cycle() {
        if over.load(Ordering::Relaxed) {
            break;
        }
        post(server, &format!("/v2/repository/models/{}/unload", member.name), b"")?;
        post(server, &format!("/v2/repository/models/{}/load", member.name), b"")?;
        changes += 1;
    }
    Ok(changes)
}

/// A request as JSON, all of whose numbers are one.
fn body(member: &Member) -> Vec<u8> {
    // A picture of a size whose numbers do not outweigh the rest.
    let request = member.request.replace("640,640", "224,224");
    let inputs = request.split_once(':').map_or("", |(_, inputs)| inputs);
    let inputs = inputs.split('@').next().unwrap_or_default();
    let mut tensors: Vec<String> = Vec::new();
    for input in inputs.split("],") {
        let (name, rest) = input.split_once('=').unwrap_or((input, ""));
        let (datatype, dims) = rest.split_once('[').unwrap_or((rest, ""));
        let dims = dims.split(']').next().unwrap_or_default();
        let count: usize = dims.split(',').filter_map(|dim| dim.parse::<usize>().ok()).product();
        let data = vec!["1"; count].join(",");
        let datatype = datatype.trim();
        tensors.push(format!(
            "{{\"name\":\"{name}\",\"datatype\":\"{datatype}\",\"shape\":[{dims}],\"data\":[{data}]}}"
        ));
    }
    format!("{{\"inputs\":[{}]}}", tensors.join(",")).into_bytes()
}

fn infer(server: &Server, model: &str, body: &[u8]) -> Result<()> {
    post(server, &format!("/v2/models/{model}/infer"), body).map(drop)
}

/// A POST that must be answered with 200; the answer's body.
fn post(server: &Server, path: &str, body: &[u8]) -> Result<String> {
    let (status, body) = server.post(path, body)?;
    ensure!(status == 200, "`{path}` was answered with `{status}`: {body}");
    Ok(body)
}
