//! Tries to break the readers of files from strangers, with coverage, sanitizers and limits: a crash, an
//! overflow, more than a gigabyte or more than ten seconds is a finding.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::run::{cargo, root, run, say, target};

/// What to fuzz, and for how long.
#[derive(Args, Debug)]
pub(crate) struct FuzzArgs {
    /// Targets; all if nothing is said.
    targets: Vec<String>,
    /// Minutes for each.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
}

const TARGETS: [&str; 4] = ["gguf", "safetensors", "template", "schema"];
/// Where coverage is counted, as `cargo fuzz` asks for it. The compiler only does this if it is told that it
/// may, as there is no other toolchain here.
const FLAGS: [&str; 10] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Ccodegen-units=1",
    "-Zsanitizer=address",
    "--cfg",
    "fuzzing",
];
/// Bytes of an input at most: headers are what is interesting.
const INPUT_BYTES_MAX: u64 = 16_384;

/// Schemas in which most keywords occur that are known.
const SCHEMAS: [&str; 3] = [
    r##"{"type":"object","properties":{"a":{"type":"string","pattern":"^[a-z]{2,3}$","maxLength":3},"b":
        {"enum":["x",1,null]},"c":{"$ref":"#/$defs/d"}},"required":["a"],"additionalProperties":false,
        "$defs":{"d":{"anyOf":[{"type":"array","items":{"$ref":"#/$defs/d"},"minItems":1},{"const":7}]}}}"##,
    r#"{"allOf":[{"properties":{"a":{"type":"number","minimum":-1.5,"exclusiveMaximum":9,"multipleOf":0.5}}},
        {"patternProperties":{"^x":{"type":["integer","null"]}},"minProperties":1}],"type":"object"}"#,
    r#"{"oneOf":[{"type":"string","format":"date-time"},{"prefixItems":[true,false],"items":{}}]}"#,
];

/// Builds and runs the targets, one after the other.
///
/// # Errors
/// What was found, with the input that shows it; or what cannot be built.
pub(crate) fn fuzz(args: &FuzzArgs) -> Result<()> {
    let wanted: Vec<&str> = match args.targets.is_empty() {
        true => TARGETS.to_vec(),
        false => args.targets.iter().map(String::as_str).collect(),
    };
    for name in &wanted {
        ensure!(TARGETS.contains(name), "`{name}` is not one of {}", TARGETS.join(", "));
    }
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = target().join("fuzz");
    // With a triple, what runs while building is not instrumented.
    let mut build = cargo();
    build
        .args(["build", "--release", "--target", &triple, "--manifest-path"])
        .arg(root().join("fuzz/Cargo.toml"));
    build.env("CARGO_TARGET_DIR", &folder).env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", FLAGS.join(" "));
    run(&mut build)?;
    for name in wanted {
        let inputs = folder.join("inputs").join(name);
        fs::create_dir_all(&inputs).with_context(|| format!("cannot make `{}`", inputs.display()))?;
        for (index, seed) in seeds(name).into_iter().enumerate() {
            fs::write(inputs.join(format!("seed-{index}")), seed)?;
        }
        let program = folder.join(&triple).join("release").join(name);
        run_target(&program, name, &inputs, args.minutes)?;
    }
    Ok(())
}

fn run_target(program: &Path, name: &str, inputs: &Path, minutes: u64) -> Result<()> {
    say(&format!("fuzzing `{name}` for {minutes} minutes"));
    let mut command = Command::new(program);
    command.arg(inputs).arg(format!("-max_total_time={}", minutes * 60));
    command.args(["-rss_limit_mb=1024", "-timeout=10", "-print_final_stats=1", "-verbosity=0"]);
    command.arg(format!("-max_len={INPUT_BYTES_MAX}"));
    command.arg(format!("-artifact_prefix={}/found-{name}-", inputs.parent().unwrap_or(inputs).display()));
    let output = command.output().with_context(|| format!("cannot run `{}`", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{name}` found something:\n{said}");
    for line in said.lines().filter(|line| line.starts_with("stat::")) {
        say(&format!("  {}", line.trim_start_matches("stat::")));
    }
    Ok(())
}

/// Inputs to begin with: one valid file each, so that what lies behind the first checks is reached too.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    match name {
        "gguf" => vec![gguf()],
        "safetensors" => {
            let header = br#"{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#;
            vec![[&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat()]
        }
        "schema" => SCHEMAS.iter().map(|schema| schema.as_bytes().to_vec()).collect(),
        _ => vec![
            b"{% for m in messages %}{{ m['role'] + m.content.strip() }}{% endfor %}".to_vec(),
            b"{% if messages[0].role == 'user' %}{{ raise_exception('no') }}{% endif %}{{ eos_token }}"
                .to_vec(),
            b"{% macro x(a) %}{{ a | trim }}{% endmacro %}{{ x(messages | length) }}".to_vec(),
            b"{% set n = namespace(a=1) %}{{ n.a + 1 }}".to_vec(),
        ],
    }
}

/// A model of the smallest size that everything can be read of.
fn gguf() -> Vec<u8> {
    const U32: u32 = 4;
    const F32: u32 = 6;
    const TEXT: u32 = 8;
    const ARRAY: u32 = 9;
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let entry =
        |key: &str, kind: u32, value: Vec<u8>| [text(key), kind.to_le_bytes().to_vec(), value].concat();
    let number = |key: &str, value: u32| entry(&format!("llama.{key}"), U32, value.to_le_bytes().to_vec());
    let texts = |key: &str, values: &[&str]| {
        let all: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
        let head = [&TEXT.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        entry(key, ARRAY, [head, all].concat())
    };
    let entries = [
        entry("general.architecture", TEXT, text("llama")),
        number("block_count", 1),
        number("context_length", 64),
        number("embedding_length", 32),
        number("feed_forward_length", 32),
        number("attention.head_count", 1),
        entry("llama.attention.layer_norm_rms_epsilon", F32, 1e-5_f32.to_le_bytes().to_vec()),
        entry("tokenizer.ggml.model", TEXT, text("gpt2")),
        entry("tokenizer.ggml.pre", TEXT, text("smollm")),
        texts("tokenizer.ggml.tokens", &["<e>", "a", "b", "ab"]),
        texts("tokenizer.ggml.merges", &["a b"]),
        entry("tokenizer.chat_template", TEXT, text("{{ messages[0].content }}")),
    ];
    let vectors = ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"];
    let matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let mut tensors = vec![("token_embd".to_owned(), vec![32_u64, 4])];
    tensors.extend(vectors.map(|name| (name.to_owned(), vec![32])));
    tensors.extend(matrices.map(|name| (format!("blk.0.{name}"), vec![32, 32])));
    let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes(), &(tensors.len() as u64).to_le_bytes()].concat();
    file.extend((entries.len() as u64).to_le_bytes());
    file.extend(entries.concat());
    let mut offset = 0_u64;
    for (name, shape) in &tensors {
        file.extend(text(&format!("{name}.weight")));
        file.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|size| file.extend(size.to_le_bytes()));
        // Vectors in single precision, matrices in Q4_0.
        let (kind, bytes) = if shape.len() == 1 { (0_u32, 128) } else { (2, 18 * shape[1]) };
        file.extend(kind.to_le_bytes());
        file.extend(offset.to_le_bytes());
        offset = (offset + bytes).next_multiple_of(32);
    }
    file.resize(file.len().next_multiple_of(32) + usize::try_from(offset).expect("a few kilobytes"), 0);
    file
}
