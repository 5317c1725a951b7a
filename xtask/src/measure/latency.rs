//! What the server adds to a request: against bare axum and tonic servers that echo the same bytes, with an
//! emulated model that computes nothing.

use std::path::PathBuf;

use anyhow::{Context, Result};
use quadrant_bench::cpu_time;

use super::server::Server;
use super::{MeasureArgs, bench, repeat, spread};
use crate::run::{say, target};

/// 8 KiB of floats.
const MODEL: &str = "identity:x=FP32[1,2048]";

/// The model, the configuration and the folder of both.
fn identity() -> Result<(PathBuf, PathBuf)> {
    let folder = target().join("measure/identity");
    std::fs::create_dir_all(&folder).context("cannot make a folder for the model")?;
    let description = "inputs = [{ name = \"x\", datatype = \"FP32\", dims = [\"rows\", 2048] }]\n\
                       outputs = [{ name = \"y\", from = \"x\" }]\n";
    std::fs::write(folder.join("identity.emulated.toml"), description)?;
    let config = target().join("measure/identity.toml");
    std::fs::write(&config, "[device]\nonnxruntime = \"off\"\n")?;
    Ok((folder, config))
}

/// Median latency of one request at a time, over the echo's.
pub(super) fn latency(args: &MeasureArgs) -> Result<()> {
    let (models, config) = identity()?;
    for (protocol, echo, bar_us) in [("http", "echo-http", 60.0), ("grpc", "echo-grpc", 80.0)] {
        let ours = Server::quadrant(&models, &config)?;
        let bare = Server::echo(echo)?;
        let seconds = args.seconds.to_string();
        let options = [
            "--model",
            MODEL,
            "--protocol",
            protocol,
            "--concurrency",
            "1",
            "--duration",
            &seconds,
            "--warmup",
            "1",
        ];
        let address =
            |server: &Server| if protocol == "http" { server.http.clone() } else { server.grpc.clone() };
        let (pairs, voids) = repeat(args.repetitions, || {
            let (bare, ours) = (bench(&address(&bare), &options)?, bench(&address(&ours), &options)?);
            if let Some(reason) = bare.void.or(ours.void) {
                return Ok(Err(reason));
            }
            Ok(Ok((bare.total.latency_ms.p50 * 1e3, ours.total.latency_ms.p50 * 1e3)))
        })?;
        let bare: Vec<f64> = pairs.iter().map(|(bare, _)| *bare).collect();
        let ours: Vec<f64> = pairs.iter().map(|(_, ours)| *ours).collect();
        let added: Vec<f64> = pairs.iter().map(|(bare, ours)| ours - bare).collect();
        say(&format!(
            "latency {protocol}: added {}, bar {bar_us} us; echo {}, ours {}; {} repetitions, {voids} void",
            spread(&added, " us"),
            spread(&bare, " us"),
            spread(&ours, " us"),
            pairs.len()
        ));
    }
    Ok(())
}

/// What a server spent on a load.
struct Cost {
    /// Processor time of a request, in microseconds.
    used_us: f64,
    /// Answers per second.
    per_second: f64,
}

/// Processor time of a request at 32 connections, over the echo's.
pub(super) fn processor_time(args: &MeasureArgs) -> Result<()> {
    let (models, config) = identity()?;
    let ours = Server::quadrant(&models, &config)?;
    let bare = Server::echo("echo-http")?;
    let seconds = args.seconds.to_string();
    let options = ["--model", MODEL, "--concurrency", "32", "--duration", &seconds, "--warmup", "0"];
    let cost = |server: &Server| -> Result<Result<Cost, String>> {
        let before = cpu_time(server.process())?;
        let report = bench(&server.http, &options)?;
        let used = cpu_time(server.process())?.saturating_sub(before);
        if let Some(reason) = report.void {
            return Ok(Err(reason));
        }
        let answered = report.total.answered as f64;
        let used_us = used.as_secs_f64() * 1e6 / answered;
        Ok(Ok(Cost { used_us, per_second: report.total.answered_per_second }))
    };
    let (pairs, voids) = repeat(args.repetitions, || {
        let (bare, ours) = (cost(&bare)?, cost(&ours)?);
        Ok(bare.and_then(|bare| ours.map(|ours| (bare, ours))))
    })?;
    let column = |pick: fn(&(Cost, Cost)) -> f64| pairs.iter().map(pick).collect::<Vec<f64>>();
    let ratios = column(|(bare, ours)| ours.used_us / bare.used_us);
    say(&format!(
        "processor time of a request, HTTP, 32 connections: {}, bar 1.7x; echo {}, ours {}; \
         requests per second: echo {}, ours {}; {} repetitions, {voids} void",
        spread(&ratios, "x"),
        spread(&column(|(bare, _)| bare.used_us), " us"),
        spread(&column(|(_, ours)| ours.used_us), " us"),
        spread(&column(|(bare, _)| bare.per_second), ""),
        spread(&column(|(_, ours)| ours.per_second), ""),
        pairs.len()
    ));
    Ok(())
}
