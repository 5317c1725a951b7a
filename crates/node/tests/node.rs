//! The node as the protocols use it, with emulated models: submit, share a step, expire, leave, fail,
//! stall, drain.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quadrant_node::{
    Answer, Batching, Config, Handle, ModelSettings, ModelState, Node, Response, Submission,
};
use quadrant_policy::{Discipline, Limits, Unmet};
use quadrant_types::{CoreSet, DataType, Error, ErrorCode, Objective, Priority, Shape, TenantId, Tensor};

const IDENTITY: &str = r#"
inputs = [{ name = "x", datatype = "FP32", dims = ["batch", 4] }]
outputs = [{ name = "y", from = "x" }]
"#;

fn emulated(extra: &str) -> String {
    format!("{extra}\n{IDENTITY}")
}

async fn node(models: &[(&str, &str)], change: impl FnOnce(&mut Config)) -> (Node, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in models {
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    let mut config = config(folder.path());
    change(&mut config);
    let node = Node::start(config).unwrap();
    wait_until(|| node.handle().is_ready()).await;
    (node, folder)
}

fn config(models_dir: &Path) -> Config {
    Config {
        models_dir: models_dir.to_owned(),
        cores: CoreSet::from_cores([0]),
        onnxruntime: None,
        engine_host: None,
        discipline: Discipline::Quadrant,
        tenants: BTreeMap::new(),
        limits: Limits::default(),
        probe_budget: Duration::from_millis(20),
        profiles_dir: None,
        poll: None,
        defaults: ModelSettings::default(),
        models: BTreeMap::new(),
    }
}

async fn wait_until(condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), poll).await.expect("it becomes true in time");
}

fn submit(handle: &Handle, model: &str, value: f32, objective: Objective) -> Response {
    let model = handle.find(model, None).unwrap();
    let data: Vec<u8> = [value; 4].iter().flat_map(|number| number.to_le_bytes()).collect();
    let shape = Shape::from_slice(&[1, 4]);
    let inputs = Arc::from([Tensor { datatype: DataType::Fp32, shape, data: Bytes::from(data) }]);
    let (outputs, priority, arrived) = (Arc::from([0]), Priority::default(), handle.now());
    let tenant = TenantId::default();
    handle.submit(Submission { model, inputs, outputs, priority, tenant, objective, arrived }).unwrap()
}

fn value(answer: &Result<Answer, Error>) -> f32 {
    let bytes = &answer.as_ref().unwrap().outputs[0].data;
    f32::from_le_bytes(bytes[..4].try_into().unwrap())
}

#[tokio::test]
async fn answers_are_the_requests_own_also_when_they_share_a_step() {
    let slow = emulated("latency = { kind = \"fixed\", step_us = 2000 }");
    let (node, _folder) = node(&[("slow.emulated.toml", &slow)], |config| {
        config.probe_budget = Duration::from_millis(500);
        config.defaults.batching = Some(Batching::UpTo(8));
        config.defaults.delay_max = Some(Duration::from_millis(50));
    })
    .await;
    let responses: Vec<Response> =
        (0..8_u8).map(|n| submit(node.handle(), "slow", f32::from(n), Objective::BestEffort)).collect();
    let mut rows = 0;
    for (n, response) in (0..8_u8).zip(responses) {
        let answer = response.await;
        assert_eq!(value(&answer), f32::from(n));
        rows = rows.max(answer.unwrap().timing.batch_rows);
    }
    assert!(rows > 1, "at least some of them shared a step");
    let metrics = node.handle().metrics();
    assert!(metrics.contains("nv_inference_request_success{model=\"slow\",version=\"1\"} 8"), "{metrics}");
    assert!(metrics.contains("quadrant_requests_accepted_total 8"), "{metrics}");
    assert!(metrics.contains("quadrant_requests_ended_total 8"), "{metrics}");
    assert!(metrics.contains("quadrant_invariant_violations_total 0"), "{metrics}");
}

#[tokio::test]
async fn a_request_whose_time_runs_out_ends_then_also_behind_a_running_step() {
    let slow = emulated("latency = { kind = \"fixed\", step_us = 300000 }");
    let (node, _folder) = node(&[("slow.emulated.toml", &slow)], |config| {
        // Otherwise it would be refused at once.
        config.defaults.unmet = Some(Unmet::Demote);
    })
    .await;
    let handle = node.handle();
    let running = submit(handle, "slow", 1.0, Objective::BestEffort);
    let before = handle.now();
    let hurried = submit(handle, "slow", 2.0, Objective::EndBy(before + Duration::from_millis(30)));
    assert_eq!(hurried.await.unwrap_err().code, ErrorCode::DeadlineExceeded);
    let waited = handle.now().since(before);
    assert!(waited < Duration::from_millis(250), "it ended after {waited:?}, while the step still ran");
    let late = submit(handle, "slow", 3.0, Objective::EndBy(before));
    assert_eq!(late.await.unwrap_err().code, ErrorCode::DeadlineExceeded);
    assert_eq!(value(&running.await), 1.0);
}

#[tokio::test]
async fn nobody_computes_for_a_client_that_left() {
    let slow = emulated("latency = { kind = \"fixed\", step_us = 50000 }");
    let (node, _folder) = node(&[("slow.emulated.toml", &slow)], |config| {
        config.defaults.batching = Some(Batching::Off);
    })
    .await;
    let running = submit(node.handle(), "slow", 1.0, Objective::BestEffort);
    for _ in 0..10 {
        drop(submit(node.handle(), "slow", 2.0, Objective::BestEffort));
    }
    assert_eq!(value(&running.await), 1.0);
    let metrics = node.handle().metrics();
    assert!(metrics.contains("nv_inference_exec_count{model=\"slow\",version=\"1\"} 1"), "{metrics}");
    assert!(metrics.contains("reason=\"CANCELED\",version=\"1\"} 10"), "{metrics}");
}

#[tokio::test]
async fn a_full_queue_is_an_answer() {
    let slow = emulated("latency = { kind = \"fixed\", step_us = 50000 }");
    let (node, _folder) = node(&[("slow.emulated.toml", &slow)], |config| {
        config.defaults.batching = Some(Batching::Off);
        let settings = ModelSettings { queue_max: Some(2), ..ModelSettings::default() };
        config.models.insert("slow".to_owned(), settings);
    })
    .await;
    let responses: Vec<_> =
        (0..5).map(|_| submit(node.handle(), "slow", 1.0, Objective::BestEffort)).collect();
    let mut refused = 0;
    for response in responses {
        if let Err(error) = response.await {
            assert_eq!(error.code, ErrorCode::ResourceExhausted);
            assert!(error.retry_after.is_some());
            refused += 1;
        }
    }
    assert_eq!(refused, 2, "one runs, two wait, two are refused");
}

#[tokio::test]
async fn a_panic_in_the_engine_fails_its_step_and_nothing_else() {
    let panics = emulated("faults = { panic_every = 1 }");
    let (node, _folder) =
        node(&[("bad.emulated.toml", &panics), ("good.emulated.toml", IDENTITY)], |_| {}).await;
    for _ in 0..3 {
        let answer = submit(node.handle(), "bad", 1.0, Objective::BestEffort).await;
        assert_eq!(answer.unwrap_err().code, ErrorCode::Internal);
        assert_eq!(value(&submit(node.handle(), "good", 2.0, Objective::BestEffort).await), 2.0);
    }
}

#[tokio::test]
async fn a_stalled_lane_makes_the_node_unready_and_ends_its_requests() {
    let stalls = emulated("faults = { stall_every = 1, stall_ms = 1500 }");
    let (node, _folder) = node(&[("bad.emulated.toml", &stalls)], |config| {
        config.limits.stall_floor = Duration::from_millis(100);
        config.limits.stall_factor = 0;
        config.defaults.batching = Some(Batching::Off);
    })
    .await;
    let error = submit(node.handle(), "bad", 1.0, Objective::BestEffort).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Internal);
    assert!(!node.handle().is_ready());
    assert!(node.handle().metrics().contains("quadrant_lanes_stalled 1"));
    wait_until(|| node.handle().is_ready()).await;
}

#[tokio::test]
async fn draining_answers_what_was_accepted_and_refuses_the_rest() {
    let slow = emulated("latency = { kind = \"fixed\", step_us = 20000 }");
    let (node, _folder) = node(&[("slow.emulated.toml", &slow)], |_| {}).await;
    let accepted: Vec<_> =
        (0..4).map(|_| submit(node.handle(), "slow", 1.0, Objective::BestEffort)).collect();
    let drained = node.drain();
    assert!(!node.handle().is_ready());
    let late = submit(node.handle(), "slow", 1.0, Objective::BestEffort).await;
    assert_eq!(late.unwrap_err().code, ErrorCode::Unavailable);
    drained.await;
    for response in accepted {
        assert_eq!(value(&response.await), 1.0);
    }
    node.stop(Duration::from_secs(1));
}

#[tokio::test]
async fn a_broken_model_fails_alone_with_its_reason() {
    let (node, _folder) =
        node(&[("broken.onnx", "not a model"), ("empty.onnx", ""), ("good.emulated.toml", IDENTITY)], |_| {})
            .await;
    let index = node.handle().index();
    let states: Vec<_> = index.iter().map(|entry| (entry.name.as_str(), entry.state)).collect();
    let expect = [
        ("broken", ModelState::Unavailable),
        ("empty", ModelState::Unavailable),
        ("good", ModelState::Ready),
    ];
    assert_eq!(states, expect);
    assert!(index[..2].iter().all(|entry| !entry.reason.is_empty()));
    assert_eq!(node.handle().find("broken", None).unwrap_err().code, ErrorCode::NotFound);
}
