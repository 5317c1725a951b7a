//! Engines in a process of their own: the same answers, and what happens when that process ends. The process
//! is this test program, told to run one test only.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use quadrant_engine::{
    EndCause, EngineError, EngineHost, EngineKind, HostCommand, HostEvent, HostSink, HostSpec, Model,
    ModelSource, ProbeOptions, probe, serve_engines,
};
use quadrant_types::{DataType, Tensor};

use crate::support::{TempFile, clock, lane, load, run, strings, tensor};

const PATIENCE: Duration = Duration::from_secs(30);

const MODEL: &str = "
harm = { abort = 201, exit = 202, hang = 203, leak = 204 }
[[inputs]]
name = 'x'
datatype = 'UINT8'
dims = ['batch', -1]
[[outputs]]
name = 'y'
from = 'x'
";

/// Not a test: what the process runs.
#[test]
#[ignore = "only as the process of the other tests"]
fn engine_host() {
    // Started by hand, there is nobody at the other end of its input.
    serve_engines(clock()).unwrap_or_else(|error| println!("not started by a test: {error}"));
}

struct Sink(SyncSender<HostEvent>);

impl HostSink for Sink {
    fn report(&self, event: HostEvent) {
        self.0.try_send(event).unwrap_or_else(|error| println!("not looked at: {error}"));
    }
}

fn start(memory_bytes: Option<u64>) -> (Arc<EngineHost>, Receiver<HostEvent>) {
    let program = std::env::current_exe().unwrap();
    let arguments = ["isolated::engine_host", "--exact", "--ignored", "--nocapture"];
    let command = HostCommand { program, arguments: arguments.map(Into::into).to_vec() };
    start_with(command, memory_bytes)
}

fn start_with(command: HostCommand, memory_bytes: Option<u64>) -> (Arc<EngineHost>, Receiver<HostEvent>) {
    let (send, events) = sync_channel(100);
    let spec = HostSpec { name: "test".into(), memory_bytes, onnxruntime: None };
    (EngineHost::start(spec, command, clock(), Arc::new(Sink(send))).unwrap(), events)
}

fn source(path: &Path) -> ModelSource {
    let (path, engine) = (path.to_owned(), Some(EngineKind::Emulated));
    ModelSource { name: "m".into(), version: 1, path, engine, labels: BTreeMap::new() }
}

fn bytes(first: u8, count: usize) -> Vec<Tensor> {
    let data: Vec<u8> = std::iter::once(first).chain((1..count).map(|index| index as u8)).collect();
    vec![tensor(DataType::Uint8, &[1, count], data)]
}

/// The next end of the process.
fn end(events: &Receiver<HostEvent>) -> (EndCause, String) {
    loop {
        match events.recv_timeout(PATIENCE).expect("the process ends") {
            HostEvent::Down { cause, reason, .. } => return (cause, reason),
            HostEvent::Up { .. } => {}
        }
    }
}

fn up(events: &Receiver<HostEvent>) -> u32 {
    loop {
        match events.recv_timeout(PATIENCE).expect("the process comes up") {
            HostEvent::Up { process, .. } => return process,
            HostEvent::Down { .. } => {}
        }
    }
}

#[test]
fn answers_are_those_of_the_engine_at_any_size() {
    let file = TempFile::new("m.emulated.toml", MODEL);
    let (host, _events) = start(None);
    let model = host.load(&source(file.path())).unwrap();
    let within = load(file.path(), EngineKind::Emulated).unwrap();
    assert_eq!(
        (&model.spec().inputs, &model.spec().outputs),
        (&within.spec().inputs, &within.spec().outputs)
    );
    let mut runner = model.runner(&lane(0, 1)).unwrap();
    for count in [1, 100, 70_000, 3_000_000, 5] {
        let given = bytes(7, count);
        assert_eq!(run(&model, &mut *runner, given.clone()).unwrap(), given, "{count}");
    }
    let empty = vec![tensor(DataType::Uint8, &[1, 0], vec![])];
    assert_eq!(run(&model, &mut *runner, empty.clone()).unwrap(), empty);
}

#[test]
fn strings_pass_through() {
    let text = MODEL.replace("UINT8", "BYTES").replace("'batch', -1", "-1");
    let file = TempFile::new("m.emulated.toml", text);
    let (host, _events) = start(None);
    let model = host.load(&source(file.path())).unwrap();
    let mut runner = model.runner(&lane(0, 1)).unwrap();
    let given = vec![tensor(DataType::Bytes, &[2], strings(&[b"", b"three"]))];
    assert_eq!(run(&model, &mut *runner, given.clone()).unwrap(), given);
}

#[test]
fn a_probe_works_as_on_any_model() {
    let file = TempFile::new("m.emulated.toml", MODEL);
    let (host, _events) = start(None);
    let model = host.load(&source(file.path())).unwrap();
    let options = ProbeOptions { budget: Duration::from_millis(50), ..ProbeOptions::default() };
    let profile = probe(&model, &[lane(0, 1), lane(1, 1)], &clock(), &options);
    assert!(profile.batches && !profile.costs.is_empty(), "{profile:?}");
}

#[test]
fn what_cannot_be_loaded_says_why() {
    let file = TempFile::new("m.emulated.toml", "inputs = 3");
    let (host, _events) = start(None);
    let error = host.load(&source(file.path())).err().unwrap();
    let inside = load(file.path(), EngineKind::Emulated).err().unwrap();
    assert_eq!(error, inside, "the same text as within the server");
    let nothing = HostCommand { program: "no-such-program".into(), arguments: Vec::new() };
    let (host, events) = start_with(nothing, None);
    let error = host.load(&source(file.path())).err().unwrap();
    assert!(error.to_string().contains("`no-such-program` cannot be started"), "{error}");
    assert_eq!(end(&events).0, EndCause::Start);
    assert!(host.away().is_some());
}

/// A step that ends the process is lost at once; the process, the model and the runner come back.
#[test]
fn a_death_is_told_and_survived() {
    let file = TempFile::new("m.emulated.toml", MODEL);
    let (host, events) = start(Some(256 << 20));
    let model = host.load(&source(file.path())).unwrap();
    let mut runner = model.runner(&lane(0, 1)).unwrap();
    let mut before = up(&events);
    for (byte, cause, part) in [
        (201, EndCause::Crashed, "signal `6`"),
        (202, EndCause::Exited, "status `202`"),
        (204, EndCause::Memory, "more than its limit of `268435456`"),
    ] {
        let error = run(&model, &mut *runner, bytes(byte, 10)).unwrap_err();
        let EngineError::Lost { reason, began: true, .. } = error else { panic!("{error:?}") };
        assert!(reason.contains(part), "`{reason}` has no `{part}`");
        assert_eq!(end(&events).0, cause);
        let now = up(&events);
        assert_ne!(now, before);
        before = now;
        assert_eq!(run(&model, &mut *runner, bytes(1, 10)).unwrap(), bytes(1, 10), "after {cause:?}");
        assert_eq!(host.away(), None);
    }
}

#[test]
fn a_hung_step_ends_when_its_process_is_killed() {
    let file = TempFile::new("m.emulated.toml", MODEL);
    let (host, events) = start(None);
    let model = host.load(&source(file.path())).unwrap();
    let mut runner = model.runner(&lane(0, 1)).unwrap();
    up(&events);
    let killer = std::thread::spawn({
        let host = Arc::clone(&host);
        move || host.kill_stalled()
    });
    let error = run(&model, &mut *runner, bytes(203, 10)).unwrap_err();
    killer.join().unwrap();
    assert!(matches!(error, EngineError::Lost { .. }), "{error:?}");
    assert_eq!(end(&events).0, EndCause::Stalled);
}

/// Models that share a process end together and come back together.
#[test]
fn models_of_one_process_share_its_fate() {
    let file = TempFile::new("m.emulated.toml", MODEL);
    let (host, events) = start(None);
    let models: [Arc<dyn Model>; 2] = std::array::from_fn(|_| host.load(&source(file.path())).unwrap());
    let mut runners = models.each_ref().map(|model| model.runner(&lane(0, 1)).unwrap());
    up(&events);
    run(&models[0], &mut *runners[0], bytes(201, 4)).unwrap_err();
    up(&events);
    for (model, runner) in models.iter().zip(&mut runners) {
        assert_eq!(run(model, &mut **runner, bytes(5, 4)).unwrap(), bytes(5, 4));
    }
}

#[test]
fn nothing_is_left_when_the_host_goes() {
    let file = TempFile::new("m.emulated.toml", MODEL);
    let (host, events) = start(None);
    let model = host.load(&source(file.path())).unwrap();
    let process = up(&events);
    let is_there = || Path::new(&format!("/proc/{process}/exe")).exists();
    assert!(is_there());
    drop((host, model));
    // The channel closes when the watching thread, which holds its other end, is through.
    while events.recv_timeout(PATIENCE).is_ok() {}
    assert!(!is_there());
}
