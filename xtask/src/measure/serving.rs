//! Language models as they are served: what another model feels beside one, what a shared beginning saves,
//! and how soon after its start a server says something. How many chats are in time, see `chats.rs`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quadrant_bench::TokenReport;

use super::llama::Llama;
use super::server::{Server, apart, free_address, is_there};
use super::{MeasureArgs, bench, bench_tokens, program, repeat, spread};
use crate::assets;
use crate::run::{say, target, within};
use crate::schedule::mix::Mix;

/// What llama.cpp's server is tried with: requests at a time, and tokens in one pass through the model.
pub(super) const LLAMA_SETTINGS: [(u32, u32); 5] = [(4, 512), (8, 512), (8, 128), (8, 64), (16, 128)];
/// The context of one request of it.
const LLAMA_CONTEXT: u32 = 2_048;
/// How long a server may take to start.
const START_MAX: Duration = Duration::from_secs(60);
/// The name under which the demo's language model is served.
pub(super) const MODEL: &str = "smollm2";

/// A folder with the language model alone, and a configuration for it.
pub(super) fn alone() -> Result<(PathBuf, PathBuf)> {
    let folder = target().join("measure/language");
    std::fs::create_dir_all(&folder)?;
    std::fs::copy(assets::fetch()?.join("models/smollm2.gguf"), folder.join(format!("{MODEL}.gguf")))?;
    let config = target().join("measure/language.toml");
    std::fs::write(&config, "[device]\nonnxruntime = \"off\"\n[model_defaults]\nqueue = 16384\n")?;
    Ok((folder, config))
}

/// llama.cpp's server on both cores, with so many requests at a time and tokens in a pass. What it would keep
/// of prompts that never come again would cost it time only.
pub(super) fn llama_server(llama: &Llama, models: &Path, (slots, pass): (u32, u32)) -> Result<Server> {
    let mut server = spawn_llama(llama, models, (slots, pass))?;
    let ready = within(START_MAX, || {
        ensure!(server.ended()?.is_none(), "`llama-server` ended");
        Ok(is_there(&server.http, "/health"))
    })?;
    ensure!(ready, "`llama-server` is not ready after `{START_MAX:?}`");
    Ok(server)
}

fn spawn_llama(llama: &Llama, models: &Path, (slots, pass): (u32, u32)) -> Result<Server> {
    let http = free_address()?;
    let context = (slots * LLAMA_CONTEXT).to_string();
    let mut command = silent(&llama.program("llama-server"));
    command.arg("-m").arg(models.join(format!("{MODEL}.gguf"))).args(["--alias", MODEL]);
    command.args(["--host", "127.0.0.1", "--port", &http.port().to_string(), "-t", "2", "-tb", "2"]);
    let pass = pass.to_string();
    command.args(["-np", &slots.to_string(), "-c", &context, "-b", &pass, "-ub", &pass, "-cram", "0"]);
    let child = command.spawn().context("cannot start `llama-server`")?;
    Ok(Server::of_group(child, http.to_string()))
}

/// The command of a server that is measured, of which nothing is read.
fn silent(program: &Path) -> Command {
    let mut command = apart(program);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The status in the first line of an answer.
fn status(reader: &mut impl BufRead) -> Result<u16> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    line.split_ascii_whitespace().nth(1).context("no status")?.parse().context("a status that is no number")
}

/// Seconds of one window beside another model, at least: there must be requests for a 99th percentile.
const WINDOW_S: f64 = 30.0;
/// Requests at a time that saturate the language model.
const SATURATION: &str = "16";
/// Requests per second of the other model.
const QUIET_RATE: &str = "10";

/// One turn of windows, each figure beside each other and alone.
struct Turn {
    /// Of the other model, in milliseconds.
    p99: [f64; 2],
    /// Of the language model, per second.
    tokens: [f64; 2],
}

/// What Magika's requests feel beside a saturated language model, and what they cost that.
pub(super) fn beside(args: &MeasureArgs) -> Result<()> {
    let (folder, config) = (target().join("measure/beside"), target().join("measure/beside.toml"));
    std::fs::create_dir_all(&folder)?;
    let (assets, magika) = (assets::fetch()?, Mix::member("magika").context("a member of the mix")?);
    for file in ["smollm2.gguf", "magika.onnx"] {
        std::fs::copy(assets.join("models").join(file), folder.join(file))?;
    }
    let library = assets.join("onnxruntime/libonnxruntime.so");
    let models = "[models.magika]\nlatency_objective_ms = 50\n";
    std::fs::write(&config, format!("[device]\nonnxruntime = \"{}\"\n{models}", library.display()))?;
    let server = Server::quadrant(&folder, &config)?;
    let seconds = args.seconds.max(WINDOW_S).to_string();
    let quiet = || {
        let load =
            ["--model", magika.request, "--constant", QUIET_RATE, "--duration", &seconds, "--warmup", "1"];
        bench(&server.http, &load)
    };
    let busy = || {
        let load = ["--model", MODEL, "--concurrency", SATURATION, "--duration", &seconds, "--warmup", "2"];
        let report = bench_tokens(&server.http, &load)?;
        ensure!(report.failed == 0, "requests failed: {:?}", report.failures);
        Ok::<TokenReport, anyhow::Error>(report)
    };
    let (turns, voids) = repeat(args.repetitions, || {
        let (quiet_alone, busy_alone) = (quiet()?, busy()?);
        let (quiet_beside, busy_beside) = std::thread::scope(|scope| {
            let busy = scope.spawn(busy);
            (quiet(), busy.join())
        });
        let busy_beside =
            busy_beside.map_err(|_| anyhow::anyhow!("a thread of the measurement panicked"))??;
        let quiet_beside = quiet_beside?;
        let turn = Turn {
            p99: [quiet_beside.total.latency_ms.p99, quiet_alone.total.latency_ms.p99],
            tokens: [busy_beside.tokens_per_second, busy_alone.tokens_per_second],
        };
        let voids = [quiet_alone.void, quiet_beside.void, busy_alone.void, busy_beside.void];
        Ok(voids.into_iter().flatten().next().map_or(Ok(turn), Err))
    })?;
    let column = |of: fn(&Turn) -> f64| turns.iter().map(of).collect::<Vec<f64>>();
    say(&format!(
        "Magika beside a saturated language model: p99 {} of alone, bar 1.25x; {} over {}; the language model's \
         throughput {} of alone, bar 0.85x; {} over {} tokens/s; {} turns of {seconds} s windows, {voids} void",
        spread(&column(|turn| turn.p99[0] / turn.p99[1]), "x"),
        spread(&column(|turn| turn.p99[0]), " ms"),
        spread(&column(|turn| turn.p99[1]), " ms"),
        spread(&column(|turn| turn.tokens[0] / turn.tokens[1]), "x"),
        spread(&column(|turn| turn.tokens[0]), ""),
        spread(&column(|turn| turn.tokens[1]), ""),
        turns.len()
    ));
    Ok(())
}

/// What a beginning that many prompts share saves them.
pub(super) fn prefix(args: &MeasureArgs) -> Result<()> {
    let (models, config) = alone()?;
    let server = Server::quadrant(&models, &config)?;
    let (mut middles, mut worsts, mut firsts) = (Vec::new(), Vec::new(), Vec::new());
    for repetition in 0..args.repetitions {
        let seed = (1 + repetition).to_string();
        let load =
            ["--model", MODEL, "--prompt", "1020", "--shared-prefix", "1000", "--new", "16", "--seed", &seed];
        let load = [&load[..], &["--concurrency", "1", "--requests", "64"]].concat();
        let shared = bench_tokens(&server.http, &load)?;
        let apart = bench_tokens(&server.http, &[&load[..], &["--uncached"]].concat())?;
        ensure!(shared.answered == 64 && apart.answered == 64, "requests failed: {:?}", shared.failures);
        ensure!(shared.texts == apart.texts, "what is shared changes answers");
        let (first, later) = shared.first_tokens_ms.split_first().context("64 answers")?;
        middles.push(super::median_of(later.to_vec()) / first);
        worsts.push(later.iter().copied().fold(0.0, f64::max) / first);
        firsts.push(*first);
    }
    say(&format!(
        "64 requests that share 1000 of 1020 tokens: the later ones' first token after {} of the first's, the \
         worst {}, bar 0.1x; the first's {}; every text equal to that without a cache; {} repetitions",
        spread(&middles, "x"),
        spread(&worsts, "x"),
        spread(&firsts, " ms"),
        firsts.len()
    ));
    Ok(())
}

/// From the start of a process to the first token of its first answer, against llama.cpp's server; the file
/// lies in the page cache, and Quadrant has measured the model before.
pub(super) fn start(args: &MeasureArgs) -> Result<()> {
    let llama = Llama::prepare()?;
    let (models, config) = alone()?;
    // The first start reads the file, measures the model and keeps what it found.
    drop(Server::quadrant(&models, &config)?);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..args.repetitions {
        let http = free_address()?.to_string();
        let mut command = silent(&program("quadrant"));
        command.arg("serve").arg(&models).arg("--config").arg(&config).args(["--http-address", &http]);
        command.args(["--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]);
        let began = now();
        let server = Server::of_group(command.spawn().context("cannot start `quadrant serve`")?, http);
        ours.push(first_token(server, began)?);
        let began = now();
        theirs.push(first_token(spawn_llama(&llama, &models, LLAMA_SETTINGS[1])?, began)?);
    }
    let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
    say(&format!(
        "from the start of the process to the first token: {} of llama.cpp's server, bar 1.5x; {} over {}",
        spread(&ratios, "x"),
        spread(&ours, " ms"),
        spread(&theirs, " ms")
    ));
    Ok(())
}

/// Milliseconds until the first event of a stream has come.
fn first_token(mut server: Server, began: Instant) -> Result<f64> {
    let body = format!(
        "{{\"model\":\"{MODEL}\",\"prompt\":\"Once upon a time\",\"max_tokens\":8,\"temperature\":0,\"stream\":true}}"
    );
    while began.elapsed() < START_MAX {
        ensure!(server.ended()?.is_none(), "the server ended");
        if let Ok(Some(came)) = try_first_token(&server.http, &body) {
            return Ok((came - began).as_secs_f64() * 1e3);
        }
        #[expect(clippy::disallowed_methods, reason = "another process tells no channel of ours")]
        std::thread::sleep(Duration::from_millis(2));
    }
    anyhow::bail!("the server says nothing after `{START_MAX:?}`")
}

/// When the first event came, if the server answers already.
fn try_first_token(address: &str, body: &str) -> Result<Option<Instant>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let length = body.len();
    let head =
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json";
    stream.write_all(format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes())?;
    let mut reader = BufReader::new(stream);
    if status(&mut reader)? != 200 {
        return Ok(None);
    }
    for line in reader.lines() {
        if line?.starts_with("data:") {
            return Ok(Some(now()));
        }
    }
    Ok(None)
}

#[expect(clippy::disallowed_methods, reason = "what is measured is this time")]
fn now() -> Instant {
    Instant::now()
}
