//! Trying models out: what batches, what must not, and what cannot be tried.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quadrant_engine::{Batching, EngineKind, Model, ProbeOptions, Profile};

use crate::onnx_file::{D, FLOAT, Field, INPUT, INT64, OUTPUT, attribute, initializer, model, node, value};
use crate::support::{TempFile, asset_model, clock, lane, load};

fn probe(model: &Arc<dyn Model>, batching: Batching) -> Profile {
    let options =
        ProbeOptions { batching, budget: Duration::from_millis(300), rows_max: 8, ..ProbeOptions::default() };
    let profile = quadrant_engine::probe(model, &[lane(0, 1), lane(1, 1)], &clock(), &options);
    println!("{}: {profile:?}", model.spec().name);
    assert!(profile.batches || profile.rows_max == 1);
    assert!(profile.widths.contains(&profile.width) && profile.widths.is_sorted());
    assert!(profile.costs.is_sorted());
    profile
}

fn probe_file(content: &[u8], batching: Batching) -> Profile {
    let file = TempFile::new("model.onnx", content);
    probe(&load(file.path(), EngineKind::Rten).unwrap(), batching)
}

fn io(dims: &[D]) -> [Field; 2] {
    [value(INPUT, "x", FLOAT, dims), value(OUTPUT, "y", FLOAT, dims)]
}

#[test]
fn independent_rows_batch_and_mixed_rows_do_not() {
    let dims = [D::S("n"), D::N(8)];
    let own = [&[node("Softmax", &["x"], &["y"], &[attribute("axis", 1)])], &io(&dims)[..]].concat();
    let profile = probe_file(&model(&own), Batching::Declared);
    assert!(profile.batches, "{}", profile.reason);
    assert!(!profile.costs.is_empty());
    // The first dimension may be called what it will: this one mixes along it.
    let mixed = [&[node("Softmax", &["x"], &["y"], &[attribute("axis", 0)])], &io(&dims)[..]].concat();
    for batching in [Batching::Declared, Batching::Allowed] {
        let profile = probe_file(&model(&mixed), batching);
        assert!(!profile.batches);
        assert!(
            profile.reason.contains("a row of output `y` depends on the other rows"),
            "{}",
            profile.reason
        );
    }
    let sum = node("CumSum", &["x", "axis"], &["y"], &[]);
    let axis = initializer("axis", INT64, &[], &0_i64.to_le_bytes());
    let running = [&[axis, sum], &io(&dims)[..]].concat();
    assert!(!probe_file(&model(&running), Batching::Allowed).batches);
}

#[test]
fn what_the_graph_does_not_declare_the_configuration_can_allow() {
    let graph = [
        node("Neg", &["x"], &["y"], &[]),
        value(INPUT, "x", FLOAT, &[D::S("n"), D::N(8)]),
        value(OUTPUT, "y", FLOAT, &[D::S("m"), D::N(8)]),
    ];
    let profile = probe_file(&model(&graph), Batching::Declared);
    assert!(!profile.batches && profile.reason.contains("do not all begin with one symbol"));
    assert!(probe_file(&model(&graph), Batching::Allowed).batches);
    let fixed = [&[node("Neg", &["x"], &["y"], &[])], &io(&[D::N(1), D::N(8)])[..]].concat();
    let profile = probe_file(&model(&fixed), Batching::Allowed);
    assert!(!profile.batches && profile.reason.contains("the first dimension of an input is fixed"));
    let never = probe_file(&model(&graph), Batching::Never);
    assert!(!never.batches && never.reason.contains("the configuration forbids it"));
}

#[test]
fn sizes_are_tried_until_the_model_runs() {
    // Only 16 numbers can be reshaped so.
    let shape = initializer("shape", INT64, &[3], bytemuck::cast_slice(&[1_i64, 4, 4]));
    let graph = [
        shape,
        node("Reshape", &["x", "shape"], &["y"], &[]),
        value(INPUT, "x", FLOAT, &[D::N(1), D::S("size")]),
        value(OUTPUT, "y", FLOAT, &[D::N(1), D::N(4), D::N(4)]),
    ];
    let profile = probe_file(&model(&graph), Batching::Declared);
    assert_eq!(profile.shapes[0][..], [1, 16]);
    assert!(!profile.costs.is_empty());
}

#[test]
fn a_model_that_cannot_be_tried_still_serves_alone() {
    let shape = initializer("shape", INT64, &[2], bytemuck::cast_slice(&[1_i64, 7]));
    let graph = [
        shape,
        node("Reshape", &["x", "shape"], &["y"], &[]),
        value(INPUT, "x", FLOAT, &[D::N(1), D::S("size")]),
        value(OUTPUT, "y", FLOAT, &[D::N(1), D::N(7)]),
    ];
    let profile = probe_file(&model(&graph), Batching::Declared);
    assert_eq!((profile.width, profile.batches, profile.rows_max), (1, false, 1));
    assert!(profile.costs.is_empty() && profile.reason.starts_with("it could not be tried out"));
}

#[test]
fn an_emulated_device_that_gains_from_batches_gets_them() {
    let text = "latency = { kind = 'fixed', step_us = 2000, row_us = 10 }
inputs = [{ name = 'x', datatype = 'FP32', dims = ['b', 4] }]
outputs = [{ name = 'y', from = 'x' }]";
    let file = TempFile::new("model.emulated.toml", text);
    let profile = probe(&load(file.path(), EngineKind::Emulated).unwrap(), Batching::Declared);
    assert_eq!((profile.width, profile.rows_max), (1, 8), "{}", profile.reason);
    // All cores gain nothing, for a device that has no cores.
    assert_eq!(profile.widths, [1], "{}", profile.reason);
}

#[test]
fn every_width_is_measured_alone_and_narrow_ones_beside_others() {
    if quadrant_sys::allowed_cores().unwrap().len() < 2 {
        println!("skipped: one core");
        return;
    }
    let text = "latency = { kind = 'fixed', step_us = 5000 }
inputs = [{ name = 'x', datatype = 'FP32', dims = ['b', 4] }]
outputs = [{ name = 'y', from = 'x' }]";
    let file = TempFile::new("model.emulated.toml", text);
    let model = load(file.path(), EngineKind::Emulated).unwrap();
    let check = |width, widths: &[usize], ways: &[(usize, bool)]| {
        let options = ProbeOptions {
            width,
            rows_max: 1,
            budget: Duration::from_millis(100),
            ..ProbeOptions::default()
        };
        let profile = quadrant_engine::probe(&model, &[lane(0, 1), lane(1, 1)], &clock(), &options);
        let measured: Vec<_> = profile.costs.iter().map(|cost| (cost.width, cost.beside)).collect();
        assert_eq!((&*profile.widths, &*measured), (widths, ways), "{}", profile.reason);
    };
    check(None, &[1], &[(1, false), (1, true), (2, false)]);
    check(Some(1), &[1], &[(1, false), (1, true)]);
    check(Some(2), &[2], &[(2, false)]);
}

fn probe_asset(path: &Path) -> Profile {
    probe(&load(path, EngineKind::Ort).unwrap(), Batching::Allowed)
}

#[test]
fn silero_does_not_batch() {
    let Some(path) = asset_model("silero-vad") else { return };
    for engine in [EngineKind::Ort, EngineKind::Rten] {
        let model = load(&path, engine).unwrap();
        for batching in [Batching::Declared, Batching::Allowed] {
            assert!(!probe(&model, batching).batches);
        }
    }
}

#[test]
fn the_other_demo_models_prove_to_batch_where_that_is_allowed() {
    for name in ["magika", "ppocr-det", "ppocr-cls", "ppocr-rec", "minilm-l3"] {
        let Some(path) = asset_model(name) else { return };
        let profile = probe_asset(&path);
        assert!(profile.batches, "{name}: {}", profile.reason);
    }
}
