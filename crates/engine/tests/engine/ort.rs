//! ONNX Runtime: types, memory, errors, and one session under several threads.

use std::path::Path;
use std::slice;
use std::sync::Arc;
use std::thread;

use quadrant_engine::{EngineError, EngineKind, Model, OnnxRuntime};
use quadrant_types::{DataType, Tensor};

use crate::onnx_file::{
    D, FLOAT, Field, INPUT, INT64, OUTPUT, attribute, identity, initializer, model, node, value,
};
use crate::support::{
    TempFile, assets, floats, lane, load, numbers, onnxruntime, run, run_for, sample, strings, tensor,
};

/// The model in this file, or nothing where there is no ONNX Runtime.
fn open(content: &[u8]) -> Option<Result<Arc<dyn Model>, EngineError>> {
    onnxruntime()?;
    let file = TempFile::new("model.onnx", content);
    Some(load(file.path(), EngineKind::Ort))
}

/// The elements and their bytes for each type.
fn examples() -> Vec<(i64, Tensor)> {
    let elements = [9, 2, 4, 12, 13, 3, 5, 6, 7, 10, 16, 1, 11];
    let numbers = elements.into_iter().zip(DataType::ALL).map(|(element, datatype)| {
        let size = datatype.size().unwrap();
        let data: Vec<u8> = match datatype {
            DataType::Bool => vec![1, 0, 1],
            _ => (0..3 * size).map(|byte| u8::try_from(byte + 1).unwrap()).collect(),
        };
        (element, tensor(datatype, &[3], data))
    });
    let text = strings(&[b"first", b"", b"zero \0 and \xff inside"]);
    numbers.chain([(8, tensor(DataType::Bytes, &[3], text))]).collect()
}

#[test]
fn every_data_type_goes_through_aligned_or_not() {
    for (element, tensor) in examples() {
        let Some(model) = open(&identity(element, &[D::S("n")])) else { return };
        let model = model.unwrap();
        let mut runner = model.runner(&lane(0, 1)).unwrap();
        assert_eq!(run(&model, &mut *runner, vec![tensor.clone()]).unwrap(), slice::from_ref(&tensor));
        let shifted = [&[0], &tensor.data[..]].concat();
        let shifted = Tensor { data: bytes::Bytes::from(shifted).slice(1..), ..tensor.clone() };
        assert_eq!(run(&model, &mut *runner, vec![shifted]).unwrap(), slice::from_ref(&tensor));
        let empty = Tensor { shape: [0].into_iter().collect(), data: bytes::Bytes::new(), ..tensor };
        assert_eq!(run(&model, &mut *runner, vec![empty.clone()]).unwrap(), [empty]);
    }
}

#[test]
fn an_output_that_is_an_input_outlives_it() {
    // No node at all: the graph hands its input through.
    let dims = [D::S("n")];
    let graph = [value(INPUT, "x", FLOAT, &dims), value(OUTPUT, "x", FLOAT, &dims)];
    let Some(model) = open(&model(&graph)) else { return };
    let model = model.unwrap();
    let mut runner = model.runner(&lane(0, 1)).unwrap();
    let outputs = run(&model, &mut *runner, vec![floats(&[1000], &[1.5; 1000])]).unwrap();
    let overwritten = floats(&[1000], &[2.5; 1000]);
    assert_eq!(numbers(&outputs[0]), [1.5; 1000]);
    drop(overwritten);
}

#[test]
fn outputs_outlive_model_and_runner() {
    let dims = [D::S("n")];
    let constant = initializer("c", FLOAT, &[2], bytemuck::cast_slice(&[3.0_f32, 4.0]));
    let graph = [
        constant,
        node("Add", &["x", "c"], &["y"], &[]),
        value(INPUT, "x", FLOAT, &dims),
        value(OUTPUT, "y", FLOAT, &dims),
        value(OUTPUT, "c", FLOAT, &[D::N(2)]),
    ];
    let Some(model) = open(&model(&graph)) else { return };
    let model = model.unwrap();
    let mut runner = model.runner(&lane(0, 1)).unwrap();
    let outputs = run(&model, &mut *runner, vec![floats(&[2], &[1.0, 2.0])]).unwrap();
    drop((runner, model));
    assert_eq!(outputs, [floats(&[2], &[4.0, 6.0]), floats(&[2], &[3.0, 4.0])]);
}

#[test]
fn only_wanted_outputs_are_given_in_the_order_wanted() {
    let dims = [D::S("n")];
    let graph = [
        node("Neg", &["x"], &["a"], &[]),
        node("Abs", &["x"], &["b"], &[]),
        value(INPUT, "x", FLOAT, &dims),
        value(OUTPUT, "a", FLOAT, &dims),
        value(OUTPUT, "b", FLOAT, &dims),
    ];
    let Some(model) = open(&model(&graph)) else { return };
    let mut runner = model.unwrap().runner(&lane(0, 1)).unwrap();
    let x = || vec![floats(&[1], &[-2.0])];
    assert_eq!(run_for(&mut *runner, x(), &[1]).unwrap(), [floats(&[1], &[2.0])]);
    assert_eq!(run_for(&mut *runner, x(), &[1, 0]).unwrap(), [floats(&[1], &[2.0]), floats(&[1], &[2.0])]);
    assert!(matches!(run_for(&mut *runner, x(), &[2]), Err(EngineError::Input(_))));
}

#[test]
fn a_bad_input_is_the_clients_fault() {
    let table = initializer("table", FLOAT, &[2, 1], &[0; 8]);
    let graph = [
        table,
        node("Gather", &["table", "x"], &["y"], &[attribute("axis", 0)]),
        value(INPUT, "x", INT64, &[D::S("n")]),
        value(OUTPUT, "y", FLOAT, &[D::S("n"), D::N(1)]),
    ];
    let Some(model) = open(&model(&graph)) else { return };
    let model = model.unwrap();
    let mut runner = model.runner(&lane(0, 1)).unwrap();
    let ids = |ids: &[i64]| tensor(DataType::Int64, &[ids.len()], bytemuck::cast_slice(ids).to_vec());
    let mut refused = |input: Vec<Tensor>| match run(&model, &mut *runner, input) {
        Err(EngineError::Input(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(refused(vec![ids(&[0, 7])]).contains("out of data bounds"));
    assert!(refused(vec![floats(&[1], &[0.0])]).contains("Unexpected input data type"));
    assert_eq!(refused(vec![]), "`0` inputs were given, the model has `1`");
    let short = Tensor { shape: [2].into_iter().collect(), ..ids(&[0]) };
    assert_eq!(refused(vec![short]), "`8` bytes do not fill the shape `[2]`");
    let ok = run(&model, &mut *runner, vec![ids(&[1, 0])]).unwrap();
    assert_eq!(ok, [floats(&[2, 1], &[0.0, 0.0])]);
}

#[test]
fn bools_and_strings_are_checked() {
    let Some(model) = open(&identity(9, &[D::S("n")])) else { return };
    let mut runner = model.unwrap().runner(&lane(0, 1)).unwrap();
    let refused = run_for(&mut *runner, vec![tensor(DataType::Bool, &[1], vec![2])], &[0]);
    assert_eq!(refused, Err(EngineError::Input("a `BOOL` element is neither 0 nor 1".into())));
    let mut runner = open(&identity(8, &[D::S("n")])).unwrap().unwrap().runner(&lane(0, 1)).unwrap();
    for data in [strings(&[b"one"]), strings(&[b"1", b"2", b"3"]), vec![9, 0, 0, 0, 1]] {
        let refused = run_for(&mut *runner, vec![tensor(DataType::Bytes, &[2], data)], &[0]);
        assert_eq!(refused, Err(EngineError::Input("the strings do not fill the shape".into())));
    }
}

#[test]
fn models_it_cannot_load_say_why() {
    let dims = [D::S("n")];
    let io = || [value(INPUT, "x", FLOAT, &dims), value(OUTPUT, "y", FLOAT, &dims)];
    let check = |nodes: &[Field], expect: &str| -> Option<()> {
        let error = open(&model(&[nodes, &io()].concat()))?.err().unwrap();
        let EngineError::Load(text) = error else { panic!("{error:?}") };
        assert!(text.contains(expect) && text.contains("model.onnx"), "{text}");
        Some(())
    };
    let Some(()) = check(&[node("NoSuchOperator", &["x"], &["y"], &[])], "NoSuchOperator") else { return };
    check(&[node("Neg", &["absent"], &["y"], &[])], "absent");
    check(&[], "y");
}

#[test]
fn what_is_not_onnx_runtime_is_refused() {
    let open = |path: &Path| match OnnxRuntime::open(path) {
        Err(EngineError::Load(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(open(Path::new("/absent.so")).starts_with("cannot open `/absent.so`: "));
    let text = TempFile::new("text.so", "not a library");
    // Another test may have opened the real one before: there can only be one in a process.
    let error = open(text.path());
    let expect = ["cannot be loaded as a library", "a process can open one ONNX Runtime"];
    assert!(expect.iter().any(|expect| error.contains(expect)), "{error}");
    if let Some(assets) = assets() {
        let library = assets.join("onnxruntime/libonnxruntime.so");
        let runtime = OnnxRuntime::open(&library).unwrap();
        assert!(runtime.version().starts_with("1."), "{}", runtime.version());
        assert!(OnnxRuntime::open(&library).is_ok(), "the same path again is the same runtime");
        assert!(open(text.path()).contains(expect[1]));
    }
}

#[test]
fn lanes_share_a_session_and_get_the_same_bits_side_by_side() {
    // Two matrix products with a softmax between them, so that a race would have something to destroy.
    let weights: Vec<u8> =
        (0..64 * 64).flat_map(|index| ((index % 17) as f32 / 17.0).to_le_bytes()).collect();
    let dims = [D::S("n"), D::N(64)];
    let graph = [
        initializer("w", FLOAT, &[64, 64], &weights),
        node("MatMul", &["x", "w"], &["a"], &[]),
        node("Softmax", &["a"], &["b"], &[]),
        node("MatMul", &["b", "w"], &["y"], &[]),
        value(INPUT, "x", FLOAT, &dims),
        value(OUTPUT, "y", FLOAT, &dims),
    ];
    if onnxruntime().is_none() {
        return;
    }
    // The file stays, because a lane of two cores loads it again.
    let file = TempFile::new("model.onnx", model(&graph));
    let model = load(file.path(), EngineKind::Ort).unwrap();
    let inputs: Vec<_> =
        (0..8).map(|seed| sample(DataType::Fp32, &[1 + 3 * seed, 64], seed as u64)).collect();
    let mut runner = model.runner(&lane(0, 1)).unwrap();
    let alone: Vec<_> = inputs.iter().map(|x| run(&model, &mut *runner, vec![x.clone()]).unwrap()).collect();
    thread::scope(|scope| {
        for id in 0..4 {
            let (model, inputs, alone) = (&model, &inputs, &alone);
            scope.spawn(move || {
                let mut runner = model.runner(&lane(id, 1)).unwrap();
                for step in 0..400 {
                    let at = (step + usize::from(id)) % inputs.len();
                    assert_eq!(run(model, &mut *runner, vec![inputs[at].clone()]).unwrap(), alone[at]);
                }
            });
        }
    });
    let mut wide = model.runner(&lane(0, 2)).unwrap();
    let outputs = run(&model, &mut *wide, vec![inputs[7].clone()]).unwrap();
    for (wide, narrow) in numbers(&outputs[0]).iter().zip(numbers(&alone[7][0])) {
        assert!((wide - narrow).abs() < 1e-4);
    }
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    use crate::onnx_file::{bytes, int, message};
    let mut inner = Vec::new();
    for _ in 0..3_000 {
        let attribute = message(5, &[bytes(1, "then_branch"), message(6, &inner), int(20, 5)]);
        inner = vec![node("If", &["c"], &["y"], &[attribute])];
    }
    let io = [value(INPUT, "c", 9, &[]), value(OUTPUT, "y", FLOAT, &[D::S("n")])];
    let Some(model) = open(&model(&[inner, io.to_vec()].concat())) else { return };
    assert!(matches!(model, Err(EngineError::Load(_))));
}
