//! Engines in processes of their own: what that adds to a request, and what their deaths cost others.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::server::{Server, kill};
use super::{MeasureArgs, bench, bench_any, repeat, spread};
use crate::run::{say, target, within};

/// 600 KB of floats.
const TENSOR: &str = "x=FP32[1,150000]";

/// Requests per second for each of the two models while one of them dies.
const RATE: &str = "40";
/// When it dies, from the beginning of the load on. Once in a window: what keeps ending is started again
/// later and later, so that windows would not be alike.
const DIES_AFTER: Duration = Duration::from_millis(2_500);
/// The longest window.
const WINDOW_MAX: Duration = Duration::from_mins(10);
/// How long it may take to be back, loading included.
const BACK_MAX: Duration = Duration::from_secs(10);
/// What an emulated model aborts at, and what it takes memory without end at.
const HARM: &str = "harm = { abort = 201, leak = 204 }\n";

/// A folder with one model under two names.
fn twins(folder: &str, names: [&str; 2], description: &str) -> Result<PathBuf> {
    let folder = target().join("measure").join(folder);
    std::fs::create_dir_all(&folder).context("cannot make a folder for the models")?;
    for name in names {
        std::fs::write(folder.join(format!("{name}.emulated.toml")), description)?;
    }
    Ok(folder)
}

/// Median latency of one request at a time for a model in a process of its own, over the same model within
/// the server.
pub(super) fn latency(args: &MeasureArgs) -> Result<()> {
    let models = twins(
        "isolation-latency",
        ["within", "apart"],
        "inputs = [{ name = \"x\", datatype = \"FP32\", dims = [\"rows\", 150000] }]\n\
         outputs = [{ name = \"y\", from = \"x\" }]\n",
    )?;
    let config = target().join("measure/isolation-latency.toml");
    std::fs::write(&config, "[device]\nonnxruntime = \"off\"\n[models.apart]\nisolation = \"process\"\n")?;
    let server = Server::quadrant(&models, &config)?;
    let seconds = args.seconds.to_string();
    let median = |name: &str| {
        let model = format!("{name}:{TENSOR}");
        let load = ["--model", &model, "--concurrency", "1", "--duration", &seconds, "--warmup", "1"];
        bench(&server.http, &load)
    };
    let (pairs, voids) = repeat(args.repetitions, || {
        let (within, apart) = (median("within")?, median("apart")?);
        let figures = (within.total.latency_ms.p50 * 1e3, apart.total.latency_ms.p50 * 1e3);
        Ok(within.void.or(apart.void).map_or(Ok(figures), Err))
    })?;
    let column = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).collect::<Vec<f64>>();
    say(&format!(
        "isolation, 600 KB tensors: added median latency {}, bar 150 us; within the server {}, in a process {}; \
         {} repetitions, {voids} void",
        spread(&column(|(within, apart)| apart - within), " us"),
        spread(&column(|(within, _)| *within), " us"),
        spread(&column(|(_, apart)| *apart), " us"),
        pairs.len()
    ));
    Ok(())
}

/// How a process is made to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Kill,
    Leak,
    Abort,
}

/// What a window with deaths showed.
struct Window {
    /// The other model's 99th percentile, in milliseconds.
    p99: f64,
    deaths: usize,
    /// How long the model that died was away.
    away: Away,
}

/// From the end of a process to the next answer of the model in it.
#[derive(Clone, Copy, Default)]
struct Away {
    /// From what ended it on, which for a request is when it was sent: it ends two, and takes its time.
    in_all: Duration,
    /// From the last end on.
    after_end: Duration,
}

/// The 99th percentile of a model while another one dies once, over the same load without deaths;
/// and that nobody's requests fail but those that kill.
pub(super) fn harm(args: &MeasureArgs) -> Result<()> {
    let description = format!(
        "latency = {{ kind = \"fixed\", step_us = 2000 }}\nbusy = true\n{HARM}\
         inputs = [{{ name = \"x\", datatype = \"UINT8\", dims = [\"rows\", 16] }}]\n\
         outputs = [{{ name = \"y\", from = \"x\" }}]\n"
    );
    let models = twins("isolation-harm", ["steady", "victim"], &description)?;
    let config = target().join("measure/isolation-harm.toml");
    std::fs::write(
        &config,
        "[device]\nonnxruntime = \"off\"\n[models.victim]\nisolation = \"process\"\nisolation_memory_mb = 256\n",
    )?;
    for death in [Death::Kill, Death::Leak, Death::Abort] {
        let server = Server::quadrant(&models, &config)?;
        let mut number = 0_u8;
        let (pairs, voids) = repeat(args.repetitions, || {
            number = number.wrapping_add(1);
            let quiet = match window(args, &server, None)? {
                Ok(window) => window,
                Err(void) => return Ok(Err(void)),
            };
            Ok(window(args, &server, Some((death, number)))?.map(|deadly| (quiet, deadly)))
        })?;
        let column = |of: fn(&(Window, Window)) -> f64| pairs.iter().map(of).collect::<Vec<f64>>();
        let deaths: usize = pairs.iter().map(|(_, deadly)| deadly.deaths).sum();
        say(&format!(
            "isolation, {death:?}: p99 of another model with deaths over without {}, bar 1.2x; without {}, with {}; \
             serving again {} after an end, {} with all that came before it; {deaths} windows with deaths, \
             only those that kill failed; {} pairs of {} s, {voids} void",
            spread(&column(|(quiet, deadly)| deadly.p99 / quiet.p99), "x"),
            spread(&column(|(quiet, _)| quiet.p99), " ms"),
            spread(&column(|(_, deadly)| deadly.p99), " ms"),
            spread(&column(|(_, deadly)| 1e3 * deadly.away.after_end.as_secs_f64()), " ms"),
            spread(&column(|(_, deadly)| 1e3 * deadly.away.in_all.as_secs_f64()), " ms"),
            pairs.len(),
            args.seconds
        ));
    }
    Ok(())
}

/// One window of load on both models.
fn window(args: &MeasureArgs, server: &Server, death: Option<(Death, u8)>) -> Result<Result<Window, String>> {
    let seconds = args.seconds.to_string();
    let load = |name: &str| {
        let model = format!("{name}:x=UINT8[1,16]=ones");
        let load = ["--model", &model, "--constant", RATE, "--warmup", "1", "--duration", &seconds];
        bench_any(&server.http, &load)
    };
    let over = AtomicBool::new(false);
    let (steady, victim, deaths) = std::thread::scope(|scope| {
        let (steady, victim) = (scope.spawn(|| load("steady")), scope.spawn(|| load("victim")));
        let deaths = scope.spawn(|| match death {
            Some((death, number)) => die(server, death, number, &over),
            None => Ok((0, Away::default())),
        });
        let (steady, victim) = (steady.join(), victim.join());
        over.store(true, Ordering::Relaxed);
        (steady, victim, deaths.join())
    });
    let panicked = |_| anyhow::anyhow!("a thread of the measurement panicked");
    let (steady, victim) = (steady.map_err(panicked)??, victim.map_err(panicked)??);
    let (deaths, away) = deaths.map_err(panicked)??;
    for report in [&steady, &victim] {
        ensure!(report.total.failed == 0, "requests failed: {:?}", report.total.failures);
    }
    let window = Window { p99: steady.total.latency_ms.p99, deaths, away };
    Ok(steady.void.or(victim.void).map_or(Ok(window), Err))
}

/// Lets the victim's process die once, and waits until it is over: whether it did, and how long it took to
/// serve again. `number` makes an input that was not there before: the same again would be refused.
fn die(server: &Server, death: Death, number: u8, over: &AtomicBool) -> Result<(usize, Away)> {
    let is_over = || Ok(over.load(Ordering::Relaxed));
    if within(DIES_AFTER, is_over)? {
        return Ok((0, Away::default()));
    }
    let began = now();
    match death {
        Death::Kill => kill("KILL", &child_of(server.process())?.to_string()),
        Death::Leak => lethal(server, 204, number)?,
        Death::Abort => lethal(server, 201, number)?,
    }
    let ended = now();
    let back = within(BACK_MAX, || Ok(ask(server, 1, number)? == 200))?;
    ensure!(back, "the model did not come back");
    let away = Away { in_all: began.elapsed(), after_end: ended.elapsed() };
    within(WINDOW_MAX, is_over)?;
    Ok((1, away))
}

#[expect(clippy::disallowed_methods, reason = "what is measured is this time")]
fn now() -> Instant {
    Instant::now()
}

fn lethal(server: &Server, first: u8, number: u8) -> Result<()> {
    let status = ask(server, first, number)?;
    ensure!(status == 400, "a request that kills was answered with `{status}`");
    Ok(())
}

/// Asks the victim; the status of its answer.
fn ask(server: &Server, first: u8, number: u8) -> Result<u16> {
    let mut data = [first; 16];
    data[1] = number;
    let body = format!(
        "{{\"inputs\":[{{\"name\":\"x\",\"datatype\":\"UINT8\",\"shape\":[1,16],\"data\":{data:?}}}]}}"
    );
    Ok(server.post("/v2/models/victim/infer", body.as_bytes())?.0)
}

/// The one child of a process.
fn child_of(parent: u32) -> Result<u32> {
    let is_child = |path: &Path| {
        let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
        fields.next().is_some_and(|state| state != "Z") && fields.next() == Some(&parent.to_string())
    };
    let processes = std::fs::read_dir("/proc")?.filter_map(|entry| Some(entry.ok()?.path()));
    let child = processes.filter_map(|path| {
        let number: u32 = path.file_name()?.to_str()?.parse().ok()?;
        is_child(&path).then_some(number)
    });
    child.last().context("the server has no process of its own")
}
