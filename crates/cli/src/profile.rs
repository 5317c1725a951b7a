//! `quadrant profile`: measures models for longer than a start may take, shows what it found, and keeps it
//! for the next start.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use quadrant_engine::{Cost, Profile};
use quadrant_node::{Config, ModelProfile, measure, profile_models};
use serde_json::{Value, json};

use crate::cache;
use crate::checked::{node_config, seconds};
use crate::settings::Settings;

/// Bytes of a task; more is none.
const TASK_BYTES_MAX: u64 = 1 << 20;

/// Measure models on this machine, show what a step costs, and keep it for the next `serve`.
#[derive(Args, Debug)]
#[command(after_help = "\
Each model is run with one row and, if it batches, with more: on one core alone, on one core while the \
others run it too, and on all cores. `serve` does the same when it first loads a model, in less time, and \
uses what is stored here instead as long as the file, the engine, the machine and the model's settings are \
the same. Nothing else should run on the machine meanwhile.")]
pub(crate) struct ProfileArgs {
    /// A model repository as for `serve`, or one model file.
    #[arg(value_name = "MODEL_PATH_OR_REPOSITORY")]
    path: PathBuf,
    /// The configuration file that `serve` will be given.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// ONNX Runtime's shared library: a path, `auto` or `off` [default: auto].
    #[arg(long, value_name = "PATH")]
    onnxruntime: Option<String>,
    /// How long to measure each model, in seconds; loading comes on top.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,
    /// Print JSON, one object for each model, instead of tables.
    #[arg(long)]
    json: bool,
}

/// Measures, prints and stores.
///
/// # Errors
/// What is wrong with the arguments, before anything is measured; afterwards that a model cannot be served
/// or that its profile could not be stored.
#[expect(clippy::print_stdout, reason = "the answer of the command")]
pub(crate) fn run(args: &ProfileArgs) -> Result<()> {
    let path = args.path.display();
    ensure!(args.path.exists(), "`{path}` does not exist: give a model repository or a model file");
    let config = config(args)?;
    let cores = config.cores.len();
    let (mut models, mut failed) = (0, 0);
    profile_models(&config, &args.path, |model| {
        models += 1;
        failed += usize::from(model.outcome.is_err() || matches!(model.stored, Some(Err(_))));
        if args.json {
            println!("{}", as_json(&model, cores));
        } else {
            print!("{}", as_table(&model, cores));
        }
    })?;
    if models == 0 {
        bail!("there is no model in `{path}`: put `NAME.onnx` into it, or give a file");
    }
    if failed > 0 {
        bail!("`{failed}` of `{models}` models could not be measured or stored");
    }
    Ok(())
}

fn config(args: &ProfileArgs) -> Result<Config> {
    let mut settings = match &args.config {
        Some(path) => Settings::read(path)?,
        None => Settings::default(),
    };
    if let Some(onnxruntime) = &args.onnxruntime {
        settings.device.onnxruntime.clone_from(onnxruntime);
    }
    let config = node_config(&settings, &args.path, &cache::onnxruntime_places())?;
    let probe_budget = seconds("--seconds", args.seconds)?;
    let profiles_dir = cache::profiles_dir();
    let profiles_dir = profiles_dir.context("no folder to store profiles in: set `QUADRANT_CACHE`")?;
    Ok(Config { probe_budget, profiles_dir: Some(profiles_dir), ..config })
}

/// What the scheduler will make of a measured step.
fn chosen(cost: &Cost, profile: &Profile) -> &'static str {
    let narrowest = profile.widths.first() == Some(&cost.width);
    match profile.widths.contains(&cost.width) {
        true if narrowest && cost.rows == profile.rows_max => "kept, the most rows joined",
        true => "kept",
        false => "",
    }
}

/// Rows a second if steps follow each other, on as many lanes as were busy.
fn rate(cost: &Cost, cores: usize) -> f64 {
    let lanes = if cost.beside { cores / cost.width.max(1) } else { 1 };
    #[expect(clippy::cast_precision_loss, reason = "counts of rows and lanes are far below 2^52")]
    let rows = (cost.rows * lanes) as f64;
    rows / cost.step.max(Duration::from_nanos(1)).as_secs_f64()
}

fn as_table(model: &ModelProfile, cores: usize) -> String {
    let ModelProfile { name, engine, outcome, second_width_bytes, stored } = model;
    let profile = match outcome {
        Ok(profile) => profile,
        Err(reason) => return format!("{name}: cannot be served: {reason}\n\n"),
    };
    if profile.costs.is_empty() {
        return format!("{name} on {engine}: {}\n\n", profile.reason);
    }
    let mut lines = vec![
        format!("{name} on {engine}"),
        format!(
            "{:<24}{:>6}{:>7}  {:<7}{:>12}{:>12}  chosen",
            "model", "rows", "width", "cores", "median ms", "rows/s"
        ),
    ];
    for cost in &profile.costs {
        let others = if cost.beside { "beside" } else { "alone" };
        let line = format!(
            "{name:<24}{:>6}{:>7}  {others:<7}{:>12.3}{:>12.1}  {}",
            cost.rows,
            cost.width,
            cost.step.as_secs_f64() * 1e3,
            rate(cost, cores),
            chosen(cost, profile)
        );
        lines.push(line.trim_end().to_owned());
    }
    if let Some(bytes) = second_width_bytes {
        lines.push(format!("the second width takes {:.1} MiB", mib(*bytes)));
    }
    lines.push(match stored {
        Some(Ok(path)) => format!("stored in `{}`", path.display()),
        Some(Err(error)) => format!("not stored: {error}"),
        None => "not stored".to_owned(),
    });
    format!("{}\n\n", lines.join("\n"))
}

fn as_json(model: &ModelProfile, cores: usize) -> Value {
    let ModelProfile { name, engine, outcome, second_width_bytes, stored } = model;
    let profile = match outcome {
        Ok(profile) => profile,
        Err(reason) => return json!({ "model": name, "error": reason }),
    };
    let cost = |cost: &Cost| {
        json!({
            "rows": cost.rows,
            "width": cost.width,
            "beside": cost.beside,
            "median_ms": cost.step.as_secs_f64() * 1e3,
            "rows_per_second": rate(cost, cores),
            "kept": profile.widths.contains(&cost.width),
        })
    };
    let costs: Vec<_> = profile.costs.iter().map(cost).collect();
    json!({
        "model": name,
        "engine": engine,
        "widths": profile.widths,
        "batches": profile.batches,
        "rows_max": profile.rows_max,
        "second_width_bytes": second_width_bytes,
        "costs": costs,
        "reason": profile.reason,
        "stored": stored.as_ref().and_then(|stored| stored.as_ref().ok()),
        "store_error": stored.as_ref().and_then(|stored| stored.as_ref().err()),
    })
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory are below 2^52")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Answers the task on standard input, in a process of its own.
///
/// # Errors
/// Why there is no answer.
#[expect(clippy::print_stdout, reason = "the answer of the command")]
pub(crate) fn measured() -> Result<()> {
    let task =
        std::io::read_to_string(std::io::stdin().take(TASK_BYTES_MAX)).context("cannot read the task")?;
    print!("{}", measure(&task).map_err(anyhow::Error::msg)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelProfile {
        let cost =
            |width, rows, beside, step_ms| Cost { width, rows, beside, step: Duration::from_millis(step_ms) };
        let costs = vec![cost(1, 1, false, 10), cost(1, 2, true, 25), cost(4, 1, false, 8)];
        let profile = Profile {
            width: 1,
            widths: vec![1],
            batches: true,
            rows_max: 2,
            costs,
            shapes: Vec::new(),
            reason: "so".into(),
            occupancy: None,
            sequences: None,
        };
        ModelProfile {
            name: "det".into(),
            engine: "rten 1".into(),
            outcome: Ok(profile),
            second_width_bytes: Some(3 << 20),
            stored: Some(Ok("p/x.toml".into())),
        }
    }

    #[test]
    fn a_table_has_a_line_for_each_measurement() {
        let expect = "\
det on rten 1
model                     rows  width  cores     median ms      rows/s  chosen
det                          1      1  alone        10.000       100.0  kept
det                          2      1  beside       25.000       320.0  kept, the most rows joined
det                          1      4  alone         8.000       125.0
the second width takes 3.0 MiB
stored in `p/x.toml`

";
        assert_eq!(as_table(&model(), 4), expect);
        let failed = ModelProfile { outcome: Err("is empty".into()), ..model() };
        assert_eq!(as_table(&failed, 4), "det: cannot be served: is empty\n\n");
    }

    #[test]
    fn json_says_the_same() {
        let json = as_json(&model(), 4);
        assert_eq!((&json["model"], &json["widths"]), (&json!("det"), &json!([1])));
        let cost = json!({
            "rows": 2, "width": 1, "beside": true, "median_ms": 25.0, "rows_per_second": 320.0, "kept": true
        });
        assert_eq!((&json["costs"][1], &json["stored"]), (&cost, &json!("p/x.toml")));
        let failed = ModelProfile { outcome: Err("is empty".into()), ..model() };
        assert_eq!(as_json(&failed, 4), json!({ "model": "det", "error": "is empty" }));
    }
}
