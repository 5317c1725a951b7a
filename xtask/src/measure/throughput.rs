//! Throughput at saturation: the engine on one pinned core and everything else on the other, against the
//! best loop of the bare engine on that core.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::server::Server;
use super::{MeasureArgs, bench, program, repeat, spread};
use crate::assets;
use crate::run::{printed, say, target};

/// One model: its name, the shape of a row of each input, how it is asked, and the batches to try.
struct Case {
    model: &'static str,
    shapes: &'static [&'static str],
    request: &'static str,
}

const CASES: [Case; 3] = [
    Case { model: "magika", shapes: &["1,2048"], request: "magika:bytes=INT32[1,2048]" },
    Case {
        model: "ppocr-rec",
        shapes: &["1,3,48,320"],
        request: "ppocr-rec:x=FP32[1,3,48,320]@fetch_name_0=1",
    },
    Case {
        model: "minilm-l3",
        shapes: &["1,64", "1,64"],
        request: "minilm-l3:input_ids=INT64[1,64],attention_mask=INT64[1,64]=ones",
    },
];

/// The core of the engine, and that of everything else.
const CORES: (usize, usize) = (1, 0);

/// Requests on their way at once: enough to keep the engine busy and its batches full.
const CONCURRENCY: &str = "16";

/// Measures every case.
pub(super) fn measure(args: &MeasureArgs) -> Result<()> {
    let assets = assets::fetch()?;
    let config = target().join("measure/throughput.toml");
    std::fs::create_dir_all(target().join("measure"))?;
    let (engine_core, other_core) = CORES;
    let library = assets.join("onnxruntime/libonnxruntime.so");
    let text = format!(
        "[server]\ncores = [{other_core}]\nthreads = 1\n[device]\ncores = [{engine_core}]\n\
         onnxruntime = \"{}\"\n[model_defaults]\nbatching = 32\n",
        library.display()
    );
    std::fs::write(&config, text)?;
    for case in &CASES {
        let models = target().join("measure").join(case.model);
        std::fs::create_dir_all(&models)?;
        let (from, to) =
            (assets.join(format!("models/{}.onnx", case.model)), models.join(format!("{}.onnx", case.model)));
        std::fs::copy(&from, &to).with_context(|| format!("cannot copy `{}`", from.display()))?;
        let server = Server::quadrant(&models, &config)?;
        let (pairs, voids) = repeat(args.repetitions, || pair(args, case, &to, &library, &server))?;
        let ratios: Vec<f64> = pairs.iter().map(|(bare, ours)| ours / bare).collect();
        let bare: Vec<f64> = pairs.iter().map(|(bare, _)| *bare).collect();
        let ours: Vec<f64> = pairs.iter().map(|(_, ours)| *ours).collect();
        say(&format!(
            "throughput {}: {} of the bare engine's best loop, bar 0.95; engine {}, ours {}; \
             {} repetitions, {voids} void",
            case.model,
            spread(&ratios, ""),
            spread(&bare, "/s"),
            spread(&ours, "/s"),
            pairs.len()
        ));
    }
    Ok(())
}

/// Rows per second of the bare engine, and of the server right after it.
fn pair(
    args: &MeasureArgs,
    case: &Case,
    model: &Path,
    library: &Path,
    server: &Server,
) -> Result<Result<(f64, f64), String>> {
    let mut command = Command::new(program("quadrant-baseline"));
    command.arg("engine-loop").arg("--model").arg(model).arg("--library").arg(library);
    command.args(["--engine", "onnxruntime", "--rows", "1,2,4,8"]);
    command.args(["--core", &CORES.0.to_string(), "--seconds", &(args.seconds / 2.0).to_string()]);
    for shape in case.shapes {
        command.args(["--shape", shape]);
    }
    let result: serde_json::Value = serde_json::from_str(&printed(&mut command)?)?;
    let bare = result["rows_per_second"].as_f64().context("the loop gave no rate")?;
    let (cores, seconds) = (CORES.1.to_string(), args.seconds.to_string());
    let load = ["--concurrency", CONCURRENCY, "--duration", &seconds, "--warmup", "1", "--cores", &cores];
    let report = bench(&server.http, &[&["--model", case.request][..], &load].concat())?;
    Ok(match report.void {
        Some(reason) => Err(reason),
        None => Ok((bare, report.total.answered_per_second)),
    })
}
