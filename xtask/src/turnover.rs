//! More models than memory: 300 copies of the demo's models under names of their own, asked for by Zipf's law
//! while their ranks change, in a budget that holds 30. Simulated and live, the scheduler's choice of what to
//! evict against the least recently used and against one that knows the future.
//!
//! The rate is such that the clairvoyant would spend a quarter of the device on loading. What counts is how
//! far of the way from the least recently used to the clairvoyant the time spent on loading lies. Nobody can
//! play the clairvoyant live, and beside requests a load takes longer than alone, by how much depends on the
//! hour. So the live figure is told twice: as it was, the clairvoyant's loads as long as alone, and with
//! every load, of all three, as long as one of its kind was on average in the live runs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::measure::server::Server;
use crate::measure::{bench_any, build, program};
use crate::run::{say, target};
use crate::schedule::MixName;
use crate::schedule::mix::{Member, Mix};

/// Names, and how many of them fit.
const NAMES: usize = 300;
const ROOM: u64 = 30;
/// Cores of the device.
const CORES: f64 = 2.0;
/// The share of the device that the clairvoyant spends on loading.
const LOADING: f64 = 0.25;
/// Requests from one exchange of two ranks to the next.
const SWAP_EVERY: usize = 100;
/// Bytes of all inputs at once.
const IN_FLIGHT: u64 = 32 << 20;
/// What the process takes besides models and inputs, at most: it is made room for in the budget.
const PROCESS: u64 = 80 << 20;

/// How long.
#[derive(Args, Clone, Debug)]
pub(crate) struct TurnoverArgs {
    /// Minutes that are simulated; 0 is not at all.
    #[arg(long, default_value_t = 30.0)]
    simulated_min: f64,
    /// Minutes live, for each way to evict; 0 is not at all.
    #[arg(long, default_value_t = 5.0)]
    live_min: f64,
    /// Whose draws these are.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A demo model, and what was measured of it.
struct Kind {
    demo: &'static Member,
    /// A request for it, as `quadrant bench` takes it.
    request: String,
    bytes: u64,
    load_ms: f64,
    step_ms: f64,
}

/// Loads of one kind that were seen live.
#[derive(Clone, Copy, Default)]
struct Loads {
    seconds: f64,
    count: f64,
}

/// How long a load of this kind was, in seconds, over all runs.
fn mean_load(runs: &[(&str, Vec<Loads>)], kind: usize) -> f64 {
    let sum = |of: fn(&Loads) -> f64| runs.iter().map(|(_, loads)| of(&loads[kind])).sum::<f64>();
    sum(|loads| loads.seconds) / sum(|loads| loads.count).max(1.0)
}

/// Plays and measures.
///
/// # Errors
/// If a server cannot be started.
pub(crate) fn turnover(args: &TurnoverArgs) -> Result<()> {
    build()?;
    let mix = Mix::prepare(MixName::A)?;
    let kinds = measure_kinds(&mix)?;
    let mean = kinds.iter().map(|kind| kind.bytes).sum::<u64>() / kinds.len() as u64;
    let room = ROOM * mean;
    for kind in &kinds {
        let (name, mb, load, step) = (kind.demo.name, kind.bytes >> 20, kind.load_ms, kind.step_ms);
        say(&format!("  {name}: {mb} MB, loaded in {load:.0} ms, {step:.1} ms a request"));
    }
    let task = |minutes: f64| -> Result<Value> {
        // First at any rate: how much is loaded for each request does not depend on it.
        let draft = crowd(&kinds, room, &sequence(20_000, args.seed), 1.0);
        let each = simulate(&draft)?["clairvoyant_s"].as_f64().context("no figure")? / 20_000.0;
        let rate = LOADING * CORES / each;
        let count = (rate * minutes * 60.0) as usize;
        Ok(crowd(&kinds, room, &sequence(count, args.seed + 1), rate))
    };
    if args.simulated_min > 0.0 {
        let task = task(args.simulated_min)?;
        let answer = simulate(&task)?;
        tell("simulated", args.simulated_min, &answer);
    }
    if args.live_min > 0.0 {
        let task = task(args.live_min)?;
        let mut answer = json!({ "clairvoyant_s": simulate(&task)?["clairvoyant_s"] });
        let mut loads = Vec::new();
        for eviction in ["worth", "lru"] {
            let seen;
            (answer[eviction], seen) = live(&kinds, &mix, (eviction, room), &task)?;
            loads.push((eviction, seen));
        }
        tell("live", args.live_min, &answer);
        let each: Vec<f64> = (0..kinds.len()).map(|kind| mean_load(&loads, kind)).collect();
        for (eviction, seen) in &loads {
            let times = seen.iter().zip(&each).map(|(loads, each)| loads.count * each);
            answer[*eviction]["loading_s"] = json!(times.sum::<f64>());
        }
        let mut as_live = task;
        for (index, guest) in as_live["guests"].as_array_mut().into_iter().flatten().enumerate() {
            guest["load_ms"] = json!(1e3 * each[index % kinds.len()]);
        }
        answer["clairvoyant_s"] = simulate(&as_live)?["clairvoyant_s"].take();
        tell("live, loads of a kind alike", args.live_min, &answer);
    }
    Ok(())
}

fn tell(how: &str, minutes: f64, answer: &Value) {
    let loading = |eviction: &str| answer[eviction]["loading_s"].as_f64().unwrap_or(f64::NAN);
    let clairvoyant = answer["clairvoyant_s"].as_f64().unwrap_or(f64::NAN);
    let (ours, lru) = (loading("worth"), loading("lru"));
    say(&format!(
        "turnover, {how}, {minutes} min: loading {ours:.1} s, least recently used {lru:.1} s, clairvoyant \
         {clairvoyant:.1} s: {:.2} of the way, bar 0.4",
        (lru - ours) / (lru - clairvoyant)
    ));
    for eviction in ["worth", "lru"] {
        say(&format!("  {eviction}: {}", answer[eviction]));
    }
}

/// Serves the demo's models once and reads what was measured of them.
fn measure_kinds(mix: &Mix) -> Result<Vec<Kind>> {
    let config = target().join("measure/turnover-kinds.toml");
    std::fs::write(&config, format!("[device]\nonnxruntime = \"{}\"\n", mix.library.display()))?;
    let server = Server::quadrant(&mix.folder, &config)?;
    let metrics = server.page("/metrics")?;
    let kind = |demo: &'static Member| {
        // Pictures of a size that leaves time for loading.
        let request = demo.request.replace("640,640", "320,320");
        let load = |seconds: &str| {
            let arguments =
                ["--model", &request, "--concurrency", "1", "--duration", seconds, "--warmup", "0.3"];
            bench_any(&server.http, &arguments)
        };
        let step_ms = load("1")?.total.latency_ms.p50;
        let bytes = metric(&metrics, "quadrant_model_bytes", demo.name)? as u64;
        let load_ms = 1e3 * metric(&metrics, "nv_model_load_duration_secs", demo.name)?;
        Ok(Kind { demo, bytes, load_ms, step_ms, request })
    };
    mix.members().map(kind).collect()
}

/// The value of a metric of a model.
fn metric(metrics: &str, name: &str, model: &str) -> Result<f64> {
    let start = format!("{name}{{model=\"{model}\",");
    let line = metrics.lines().find(|line| line.starts_with(&start));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.with_context(|| format!("no `{name}` of `{model}`"))
}

/// Who is asked for: by Zipf's law over the ranks, two of which change places now and then.
fn sequence(count: usize, seed: u64) -> Vec<usize> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=NAMES)
        .map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        })
        .collect();
    let mut ranked: Vec<usize> = (0..NAMES).collect();
    random.shuffle(&mut ranked);
    let mut next = |index: usize| {
        if index > 0 && index.is_multiple_of(SWAP_EVERY) {
            ranked.swap(random.usize(0..NAMES), random.usize(0..NAMES));
        }
        let draw = random.f64() * sum;
        ranked[sums.partition_point(|sum| *sum < draw).min(NAMES - 1)]
    };
    (0..count).map(&mut next).collect()
}

/// The task of a simulation: Poisson arrivals at this rate.
fn crowd(kinds: &[Kind], room: u64, sequence: &[usize], rate: f64) -> Value {
    let mut random = fastrand::Rng::with_seed(7);
    let mut at = 0.0;
    let requests: Vec<Value> = sequence
        .iter()
        .map(|model| {
            at += -(1.0 - random.f64()).ln() / rate * 1e3;
            json!([at, model])
        })
        .collect();
    let guest = |index: usize| {
        let kind = &kinds[index % kinds.len()];
        json!({ "bytes": kind.bytes, "load_ms": kind.load_ms, "step_ms": kind.step_ms })
    };
    json!({ "room": room, "guests": (0..NAMES).map(guest).collect::<Vec<_>>(), "requests": requests })
}

fn simulate(task: &Value) -> Result<Value> {
    let mut child = Command::new(program("quadrant-baseline"))
        .arg("turnover")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the simulation")?;
    child.stdin.take().context("no way in")?.write_all(task.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the simulation failed: {}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).context("an answer that cannot be read")
}

/// The name of a copy.
fn name(kinds: &[Kind], index: usize) -> String {
    format!("{}-{index}", kinds[index % kinds.len()].demo.name)
}

fn live(
    kinds: &[Kind],
    mix: &Mix,
    (eviction, room): (&str, u64),
    task: &Value,
) -> Result<(Value, Vec<Loads>)> {
    let folder = copies(kinds, &mix.folder)?;
    let budget = room + IN_FLIGHT + PROCESS;
    let config = target().join(format!("measure/turnover-{eviction}.toml"));
    let text = format!(
        "[device]\nonnxruntime = \"{}\"\nmemory_mb = {}\n[limits]\nin_flight_bytes = {IN_FLIGHT}\n\
         body_bytes = {}\n[scheduler]\neviction = \"{eviction}\"\n[model_defaults]\nresidency = \"on-demand\"\n",
        mix.library.display(),
        budget >> 20,
        IN_FLIGHT / 4,
    );
    std::fs::write(&config, text)?;
    let server = Server::quadrant(&folder, &config)?;
    let trace = target().join("measure/turnover.csv");
    let requests = task["requests"].as_array().context("no requests")?;
    let mut lines = String::from("arrival_ms,model\n");
    for request in requests {
        let index = request[1].as_u64().context("no model")? as usize;
        writeln!(lines, "{:.3},{}", request[0].as_f64().unwrap_or_default(), name(kinds, index))?;
    }
    std::fs::write(&trace, lines)?;
    let last_ms = requests.last().and_then(|request| request[0].as_f64()).context("no requests")?;
    let mut arguments: Vec<String> = ["--trace", trace.to_str().context("a path that is no text")?]
        .into_iter()
        .map(str::to_owned)
        .collect();
    // What was asked for before would be a load of every name.
    arguments.extend(["--cold", "--outstanding", "1024", "--warmup", "0"].map(str::to_owned));
    arguments.extend(["--duration".into(), format!("{:.3}", last_ms / 1e3)]);
    for index in 0..NAMES {
        let kind = &kinds[index % kinds.len()];
        let request = kind.request.replacen(kind.demo.name, &name(kinds, index), 1);
        arguments.extend(["--model".into(), request]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (report, most) = std::thread::scope(|scope| {
        let (over, is_over) = std::sync::mpsc::sync_channel::<()>(0);
        let server = &server;
        let watching = scope.spawn(move || watch(server, &is_over));
        let report = bench_any(&server.http, &arguments);
        drop(over);
        (report, watching.join())
    });
    let (report, most) = (report?, most.map_err(|_| anyhow::anyhow!("the watch panicked"))??);
    if let Some(reason) = report.void {
        say(&format!("  void, told all the same: {reason}"));
    }
    let metrics = server.page("/metrics")?;
    let mut loads = vec![Loads::default(); kinds.len()];
    for index in 0..NAMES {
        // What was never loaded has no line.
        let of = |figure: &str| metric(&metrics, figure, &name(kinds, index)).unwrap_or(0.0);
        let (seconds, loaded) =
            (of("quadrant_model_loading_seconds_total"), of("quadrant_model_loads_total"));
        let kind = &mut loads[index % kinds.len()];
        (kind.seconds, kind.count) = (kind.seconds + seconds, kind.count + loaded);
    }
    let answer = json!({
        "loading_s": loads.iter().map(|kind| kind.seconds).sum::<f64>(),
        "loads": loads.iter().map(|kind| kind.count).sum::<f64>(),
        "requests": requests.len(),
        "answered": report.total.answered,
        "failures": report.total.failures,
        "p50_ms": report.total.latency_ms.p50,
        "p99_ms": report.total.latency_ms.p99,
        "resident_over_budget": most / (budget >> 20 << 20) as f64,
    });
    Ok((answer, loads))
}

/// The largest resident set that was seen, in bytes, ten times a second until it is over.
fn watch(server: &Server, is_over: &std::sync::mpsc::Receiver<()>) -> Result<f64> {
    let mut most = 0.0_f64;
    let status = format!("/proc/{}/statm", server.process());
    while is_over.recv_timeout(Duration::from_millis(100))
        != Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
    {
        let statm = std::fs::read_to_string(&status).context("the server is gone")?;
        let pages: f64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0.0);
        most = most.max(pages * 4096.0);
    }
    Ok(most)
}

/// A folder with the copies.
fn copies(kinds: &[Kind], models: &Path) -> Result<PathBuf> {
    let folder = target().join("measure/turnover");
    std::fs::create_dir_all(&folder)?;
    for index in 0..NAMES {
        let to = folder.join(format!("{}.onnx", name(kinds, index)));
        if !to.exists() {
            let from = models.join(format!("{}.onnx", kinds[index % kinds.len()].demo.name));
            std::fs::hard_link(&from, &to).or_else(|_| std::fs::copy(&from, &to).map(drop))?;
        }
    }
    if std::fs::read_dir(&folder)?.count() != NAMES {
        bail!("`{}` has files of something else; remove it", folder.display());
    }
    Ok(folder)
}
