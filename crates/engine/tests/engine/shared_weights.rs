//! Widths of one model share weights: the numbers stay the same, and what cannot be shared still runs.

use std::sync::Arc;

use quadrant_engine::{EngineKind, Model};
use quadrant_types::{DataType, Tensor};

use crate::onnx_file::{
    D, FLOAT, Field, INPUT, INT64, OUTPUT, attribute, bytes, identity, initializer, int, message, model,
    node, value,
};
use crate::support::{
    TempFile, asset_model, floats, lane, load, numbers, onnxruntime, run, sample, strings, tensor,
};

fn step(model: &Arc<dyn Model>, cores: usize, inputs: &[Tensor]) -> Vec<Tensor> {
    let mut runner = model.runner(&lane(0, cores)).unwrap();
    run(model, &mut *runner, inputs.to_vec()).unwrap()
}

/// Runs on one core with weights of its own, then on two, then on one with shared weights. Where outputs
/// are exact they must be the same three times.
fn check(name: &str, content: &[u8], inputs: &[Tensor], expect: &[Tensor]) {
    let file = TempFile::new("model.onnx", content);
    let model = load(file.path(), EngineKind::Ort).unwrap();
    for cores in [1, 2, 1] {
        assert_eq!(step(&model, cores, inputs), expect, "{name} on {cores} cores");
    }
}

#[test]
fn weights_of_every_type_are_shared() {
    if onnxruntime().is_none() {
        return;
    }
    let elements = [9, 2, 4, 12, 13, 3, 5, 6, 7, 10, 16, 1, 11];
    let chosen = tensor(DataType::Int64, &[2], [1_i64, 1000].map(i64::to_le_bytes).concat());
    let graph = |weights: Field, element| {
        model(&[
            weights,
            node("Gather", &["w", "i"], &["y"], &[]),
            value(INPUT, "i", INT64, &[D::S("n")]),
            value(OUTPUT, "y", element, &[D::S("n")]),
        ])
    };
    for (element, datatype) in elements.into_iter().zip(DataType::ALL) {
        let size = datatype.size().unwrap();
        let byte =
            |index: usize| u8::try_from(index % if datatype == DataType::Bool { 2 } else { 61 }).unwrap();
        let raw: Vec<u8> = (0..2000 * size).map(byte).collect();
        let expect = [&raw[size..2 * size], &raw[1000 * size..1001 * size]].concat();
        let content = graph(initializer("w", element, &[2000], &raw), element);
        check(datatype.name(), &content, std::slice::from_ref(&chosen), &[tensor(datatype, &[2], expect)]);
    }
    let text = |index: usize| format!("string {index}");
    let texts = (0..2000).map(|index| bytes(6, text(index)));
    let fields: Vec<_> = [int(1, 2000), int(2, 8), bytes(8, "w")].into_iter().chain(texts).collect();
    let expect = strings(&[text(1).as_bytes(), text(1000).as_bytes()]);
    let content = graph(message(5, &fields), 8);
    check("strings", &content, &[chosen], &[tensor(DataType::Bytes, &[2], expect)]);
}

#[test]
fn models_without_weights_and_with_weights_in_branches_run_on_all_widths() {
    if onnxruntime().is_none() {
        return;
    }
    let x = [floats(&[2], &[1.0, 2.0])];
    check("no weights", &identity(FLOAT, &[D::S("n")]), &x, &x);
    let branch = |name: &str, number: f32| {
        let weights = vec![number; 1000];
        let graph = [
            initializer(&format!("w_{name}"), FLOAT, &[1000], bytemuck::cast_slice(&weights)),
            node("Add", &[&format!("w_{name}"), "x"], &[&format!("y_{name}")], &[]),
            bytes(2, name),
            value(OUTPUT, &format!("y_{name}"), FLOAT, &[D::N(1000)]),
        ];
        message(5, &[bytes(1, name), message(6, &graph), int(20, 5)])
    };
    let content = model(&[
        node("If", &["c"], &["y"], &[branch("then_branch", 1.0), branch("else_branch", 2.0)]),
        value(INPUT, "c", 9, &[]),
        value(INPUT, "x", FLOAT, &[D::N(1)]),
        value(OUTPUT, "y", FLOAT, &[D::N(1000)]),
    ]);
    for (condition, number) in [(1, 1.5), (0, 2.5)] {
        let inputs = [tensor(DataType::Bool, &[], vec![condition]), floats(&[1], &[0.5])];
        check("branches", &content, &inputs, &[floats(&[1000], &[number; 1000])]);
    }
}

#[test]
fn a_file_that_goes_once_its_weights_are_shared_is_not_missed() {
    if onnxruntime().is_none() {
        return;
    }
    let weights: Vec<u8> = (0..64 * 64_u16).flat_map(|index| f32::from(index % 17).to_le_bytes()).collect();
    let dims = [D::S("n"), D::N(64)];
    let content = model(&[
        initializer("w", FLOAT, &[64, 64], &weights),
        node("MatMul", &["x", "w"], &["a"], &[]),
        node("Softmax", &["a"], &["y"], &[attribute("axis", 1)]),
        value(INPUT, "x", FLOAT, &dims),
        value(OUTPUT, "y", FLOAT, &dims),
    ]);
    let x = [sample(DataType::Fp32, &[3, 64], 1)];
    let file = TempFile::new("model.onnx", &content);
    let shared = load(file.path(), EngineKind::Ort).unwrap();
    let late = load(file.path(), EngineKind::Ort).unwrap();
    let alone = step(&shared, 1, &x);
    step(&shared, 2, &x);
    drop(file);
    assert_eq!(step(&shared, 1, &x), alone);
    step(&shared, 2, &x);
    // Whoever did not share yet keeps what it has.
    assert!(late.runner(&lane(0, 2)).is_err());
}

#[test]
fn sharing_changes_no_bit_of_the_demo_models() {
    let token = |seed| sample(DataType::Int64, &[1, 24], seed);
    let picture = |height, width| vec![sample(DataType::Fp32, &[1, 3, height, width], 1)];
    let state = || floats(&[1, 1, 128], &[0.0; 128]);
    for (name, inputs) in [
        ("magika", vec![sample(DataType::Int32, &[1, 2048], 1)]),
        ("minilm-l3", vec![token(1), token(2)]),
        ("ppocr-det", picture(64, 192)),
        ("ppocr-cls", picture(80, 160)),
        ("ppocr-rec", picture(48, 160)),
        ("silero-vad", vec![sample(DataType::Fp32, &[5, 576], 1), state(), state()]),
    ] {
        let Some(path) = asset_model(name) else { return };
        let model = load(&path, EngineKind::Ort).unwrap();
        let alone = step(&model, 1, &inputs);
        let wide = step(&model, 2, &inputs);
        assert_eq!(step(&model, 1, &inputs), alone, "{name}");
        for (wide, alone) in wide.iter().zip(&alone) {
            if alone.datatype != DataType::Fp32 {
                assert_eq!(wide, alone, "{name}");
                continue;
            }
            let (wide, alone) = (numbers(wide), numbers(alone));
            let largest = alone.iter().fold(0.0_f32, |largest, number| largest.max(number.abs()));
            let close = |(left, right): (&f32, &f32)| (left - right).abs() <= 1e-3 * largest;
            assert!(wide.iter().zip(&alone).all(close), "{name}");
        }
    }
}
