//! The language engine against llama.cpp: the same file, the same cores, turn by turn. Beside it what the
//! machine can do: ONNX Runtime's product of bytes for a prompt, the reading of memory for decoding.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::llama::Llama;
use super::{MeasureArgs, program, spread};
use crate::assets;
use crate::run::{printed, root, say};

const PROMPT: usize = 512;
const DEPTH: usize = 128;
const TOKENS: usize = 32;
/// Operations of a token, two for each weight of the layers' matrices: those of a prompt's last token alone
/// make scores.
const OPERATIONS: f64 = 2.0 * 106.2e6;
/// What is decoded together, and how much faster it is to be than llama.cpp.
const SEQUENCES: [(usize, f64); 3] = [(1, 1.6), (8, 3.0), (32, 3.0)];
/// Encodings to requantise to; each kind of step is to be this much faster.
const OTHERS: [&str; 2] = ["Q4_0", "Q8_0"];
const OTHERS_BAR: f64 = 1.2;

/// One turn of both.
struct Turn {
    ours: Rates,
    llama: Rates,
    /// Operations per second of ONNX Runtime.
    product: f64,
    /// Bytes per second that are read.
    read: f64,
    weight_bytes: f64,
}

/// Tokens per second.
struct Rates {
    prefill: f64,
    /// In the order of [`SEQUENCES`].
    decode: Vec<f64>,
}

/// Measures with the demo's own weights, and requantised, on one core and on two.
pub(super) fn measure(args: &MeasureArgs) -> Result<()> {
    let llama = Llama::prepare()?;
    let demo = assets::fetch()?.join("models/smollm2.gguf");
    error(&llama, &demo)?;
    for cores in ["0", "0,1"] {
        let turns = turns(args, &llama, &demo, cores)?;
        report("Q4_1", cores, &turns, None);
        for encoding in OTHERS {
            let file = llama.requantised(&demo, encoding)?;
            report(encoding, cores, &self::turns(args, &llama, &file, cores)?, Some(OTHERS_BAR));
        }
    }
    Ok(())
}

/// How far both are from the model in plain floats, over twenty texts.
fn error(llama: &Llama, model: &Path) -> Result<()> {
    let folder = root().join("xtask/src/measure/llama");
    let scores = llama.scores(model, &folder)?;
    let mut ours = Command::new(program("quadrant-baseline"));
    ours.arg("language-error").arg("--model").arg(model).arg("--llama").arg(scores);
    let off: Value = serde_json::from_str(&printed(&mut ours)?)?;
    let figure = |name: &str| off[name].as_f64().with_context(|| format!("`{name}` is missing"));
    let (ours, theirs) = (figure("ours")?, figure("llama_cpp")?);
    say(&format!(
        "log-probabilities of `{}` tokens against the dequantised model: off by {ours:.4} (root mean \
         square), llama.cpp by {theirs:.4}: {:.2} of it, bar 1.2",
        off["tokens"],
        ours / theirs
    ));
    Ok(())
}

fn turns(args: &MeasureArgs, llama: &Llama, model: &Path, cores: &str) -> Result<Vec<Turn>> {
    (0..args.repetitions).map(|_| turn(llama, model, cores)).collect()
}

fn turn(llama: &Llama, model: &Path, cores: &str) -> Result<Turn> {
    let threads = cores.split(',').count().to_string();
    let on = |program: &Path| {
        let mut command = Command::new("taskset");
        command.args(["-c", cores]).arg(program);
        command
    };
    let output =
        printed(on(&llama.python).arg(root().join("xtask/src/measure/llama/product.py")).arg(&threads))?;
    let product = output.trim().parse().context("no rate of a product")?;
    let sequences = SEQUENCES.map(|(count, _)| count.to_string()).join(",");
    let (prompt, depth, tokens) = (PROMPT.to_string(), DEPTH.to_string(), TOKENS.to_string());
    let mut ours = Command::new(program("quadrant-baseline"));
    ours.args(["language", "--cores", cores, "--sequences", &sequences, "--prompt", &prompt]);
    ours.args(["--depth", &depth, "--tokens", &tokens, "--model"]).arg(model);
    let ours: Value = serde_json::from_str(&printed(&mut ours)?)?;
    let number = |value: &Value| value.as_f64().context("a rate is missing");
    let decode = ours["decode"].as_array().context("no rates of decoding")?;
    let decode = decode.iter().map(|step| number(&step["tokens_per_s"])).collect::<Result<_>>()?;
    let rates = Rates { prefill: number(&ours["prefill_tokens_per_s"])?, decode };
    let bench = |arguments: [&str; 6]| -> Result<f64> {
        let mut bench = on(&llama.program("llama-bench"));
        bench.args(["-o", "json", "-r", "1", "-t", &threads]).args(arguments).arg("-m").arg(model);
        let result: Value = serde_json::from_str(&printed(&mut bench)?)?;
        number(&result[0]["avg_ts"])
    };
    let mut theirs = Vec::new();
    for (count, _) in SEQUENCES {
        theirs.push(if count == 1 {
            bench(["-p", "0", "-n", &tokens, "-d", &depth])?
        } else {
            batched(on(&llama.program("llama-batched-bench")), &threads, count, model)?
        });
    }
    let theirs = Rates { prefill: bench(["-p", &prompt, "-n", "0", "-d", "0"])?, decode: theirs };
    Ok(Turn {
        ours: rates,
        llama: theirs,
        product,
        read: number(&ours["read_gb_per_s"])? * 1e9,
        weight_bytes: number(&ours["weight_bytes"])?,
    })
}

/// llama.cpp's own tool for several sequences.
fn batched(mut bench: Command, threads: &str, sequences: usize, model: &Path) -> Result<f64> {
    let context = (sequences * (DEPTH + TOKENS)).to_string();
    bench.args(["--output-format", "jsonl", "-npp", &DEPTH.to_string(), "-ntg", &TOKENS.to_string()]);
    bench.args(["-npl", &sequences.to_string(), "-c", &context, "-t", threads, "-tb", threads]);
    let said = printed(bench.arg("-m").arg(model))?;
    let line = said.lines().find(|line| line.starts_with('{')).context("no line of figures")?;
    serde_json::from_str::<Value>(line)?["speed_tg"].as_f64().context("no rate of decoding")
}

fn report(encoding: &str, cores: &str, turns: &[Turn], bar: Option<f64>) {
    let ratios = |of: &dyn Fn(&Turn) -> f64| turns.iter().map(of).collect::<Vec<f64>>();
    let count = cores.split(',').count();
    say(&format!(
        "{encoding}, {count} core(s), prefill of {PROMPT}: {} of llama.cpp, bar {}x; {} tokens/s over {}; \
         {} of ONNX Runtime's rate with bytes ({}), bar 0.40",
        spread(&ratios(&|turn| turn.ours.prefill / turn.llama.prefill), "x"),
        bar.unwrap_or(3.0),
        spread(&ratios(&|turn| turn.ours.prefill), ""),
        spread(&ratios(&|turn| turn.llama.prefill), ""),
        spread(&ratios(&|turn| turn.ours.prefill * OPERATIONS / turn.product), ""),
        spread(&ratios(&|turn| turn.product / 1e9), " GOP/s"),
    ));
    for (index, (sequences, own_bar)) in SEQUENCES.into_iter().enumerate() {
        let mut line = format!(
            "{encoding}, {count} core(s), decoding {sequences} sequence(s): {} of llama.cpp, bar {}x; {} \
             tokens/s over {}",
            spread(&ratios(&|turn| turn.ours.decode[index] / turn.llama.decode[index]), "x"),
            bar.unwrap_or(own_bar),
            spread(&ratios(&|turn| turn.ours.decode[index]), ""),
            spread(&ratios(&|turn| turn.llama.decode[index]), ""),
        );
        if sequences == 1 {
            let share = |turn: &Turn| turn.ours.decode[index] * turn.weight_bytes / turn.read;
            let read = ratios(&|turn| turn.read / 1e9);
            line += &format!(
                "; {} of what is read ({}), bar 0.70",
                spread(&ratios(&share), ""),
                spread(&read, " GB/s")
            );
        }
        say(&line);
    }
}
