//! The emulated engine: what its file may say, and that it does so.

use std::sync::Arc;
use std::time::Duration;

use quadrant_engine::{EngineError, EngineKind, Model};
use quadrant_types::{DataType, Dim};

use crate::support::{TempFile, clock, floats, lane, load, run, run_for, tensor};

const IO: &str = "
[[inputs]]
name = 'x'
datatype = 'FP32'
dims = ['batch', -1, 4]

[[inputs]]
name = 'ids'
datatype = 'INT64'
dims = ['batch']

[[outputs]]
name = 'a'
from = 'ids'

[[outputs]]
name = 'b'
from = 'x'
";

fn open(text: &str) -> Result<Arc<dyn Model>, EngineError> {
    let file = TempFile::new("model.emulated.toml", format!("{text}{IO}"));
    load(file.path(), EngineKind::Emulated)
}

fn inputs() -> Vec<quadrant_types::Tensor> {
    vec![floats(&[1, 2, 4], &[0.5; 8]), tensor(DataType::Int64, &[1], vec![7; 8])]
}

#[test]
fn outputs_are_the_named_inputs_without_a_copy() {
    let model = open("").unwrap();
    let spec = model.spec();
    assert_eq!((&*spec.platform, &*spec.outputs[0].name), ("emulated", "a"));
    assert_eq!(spec.outputs[1].dims, [Dim::Symbol("batch".into()), Dim::Any, Dim::Fixed(4)]);
    assert_eq!(spec.outputs[0].datatype, DataType::Int64);
    let (given, mut runner) = (inputs(), model.runner(&lane(0, 1)).unwrap());
    let outputs = run(&model, &mut *runner, given.clone()).unwrap();
    assert_eq!(outputs, [given[1].clone(), given[0].clone()]);
    assert_eq!(outputs[1].data.as_ptr(), given[0].data.as_ptr());
    assert_eq!(run_for(&mut *runner, given.clone(), &[1]).unwrap(), [given[0].clone()]);
    assert!(matches!(run_for(&mut *runner, given, &[2]), Err(EngineError::Input(_))));
}

#[test]
fn a_step_takes_the_time_it_is_told_to() {
    let clock = clock();
    for busy in [false, true] {
        let text = format!(
            "busy = {busy}\nload_ms = 5\nlatency = {{ kind = 'fixed', step_us = 2000, row_us = 1000 }}"
        );
        let began = clock.now();
        let model = open(&text).unwrap();
        assert!(clock.now().since(began) >= Duration::from_millis(5));
        let mut runner = model.runner(&lane(0, 1)).unwrap();
        let began = clock.now();
        run(&model, &mut *runner, inputs()).unwrap();
        assert!(clock.now().since(began) >= Duration::from_millis(3));
    }
}

#[test]
fn faults_strike_every_so_many_steps() {
    let model = open("faults = { fail_every = 3, panic_every = 5, stall_every = 2, stall_ms = 4 }").unwrap();
    let mut runner = model.runner(&lane(0, 1)).unwrap();
    let clock = clock();
    for step in 1..=10_u64 {
        let began = clock.now();
        let step_of = || run(&model, &mut *runner, inputs());
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(step_of));
        let took = clock.now().since(began);
        assert!(!step.is_multiple_of(2) || took >= Duration::from_millis(4), "step {step} took {took:?}");
        if step.is_multiple_of(3) {
            let failure = EngineError::Panicked(format!("emulated failure of step `{step}`"));
            assert_eq!(result.unwrap(), Err(failure));
        } else {
            assert_eq!(result.is_err(), step.is_multiple_of(5), "step {step}");
        }
    }
}

#[test]
fn mistakes_in_the_file_are_named() {
    let check = |text: &str, expect: &str| {
        let error = open(text).err().unwrap_or_else(|| panic!("{text} was accepted")).to_string();
        assert!(error.contains(expect) && error.contains("model.emulated.toml"), "{error}");
    };
    check("latencyy = 3", "unknown field `latencyy`");
    check("faults = { explode_every = 1 }", "unknown field `explode_every`");
    check("latency = { kind = 'quick' }", "unknown variant `quick`");
    check("latency = { kind = 'fixed', step_us = -1 }", "a latency is negative or over a day");
    check("latency = { kind = 'fixed', step_us = nan }", "a latency is negative or over a day");
    check("latency = { kind = 'fixed', step_us = 1e12 }", "a latency is negative or over a day");
    check("latency = { kind = 'lognormal', median_us = 3, p99_us = 2 }", "`median_us` is above 0");
    let whole = |text: &str, expect: &str| {
        let file = TempFile::new("model.emulated.toml", text);
        let error = load(file.path(), EngineKind::Emulated).err().unwrap().to_string();
        assert!(error.contains(expect), "{error}");
    };
    whole("", "missing field `inputs`");
    whole("inputs = []\noutputs = []", "a model has inputs and outputs");
    let input = |dims: &str| format!("inputs = [{{ name = 'x', datatype = 'FP32', dims = [{dims}] }}]\n");
    whole(
        &format!("{}outputs = [{{ name = 'y', from = 'z' }}]", input("1")),
        "output `y` copies no known input",
    );
    whole(&format!("{}outputs = []", input("-2")), "input `x` has a dimension below -1");
    whole(&input("1").replace("FP32", "FP31"), "missing field `outputs`");
    whole(&format!("{}outputs = []", input("1").replace("FP32", "FP31")), "unknown datatype `FP31`");
}

#[test]
fn a_distributed_latency_has_its_median_and_is_the_same_for_a_seed() {
    let text =
        |seed| format!("seed = {seed}\nlatency = {{ kind = 'lognormal', median_us = 50, p99_us = 400 }}");
    let times = |seed| -> Vec<Duration> {
        let model = open(&text(seed)).unwrap();
        let mut runner = model.runner(&lane(0, 1)).unwrap();
        let clock = clock();
        let mut time = || {
            let began = clock.now();
            run(&model, &mut *runner, inputs()).unwrap();
            clock.now().since(began)
        };
        (0..200).map(|_| time()).collect()
    };
    let mut first = times(1);
    first.sort();
    // The system adds to every wait, so only the lower side is certain.
    assert!(first[100] >= Duration::from_micros(35), "{:?}", first[100]);
    assert!(first[199] >= Duration::from_micros(150), "{:?}", first[199]);
}
