//! The embedded engine.

use std::sync::Arc;

use quadrant_engine::{EngineError, EngineKind, Model};
use quadrant_types::{DataType, Tensor};

use crate::onnx_file::{
    D, FLOAT, INPUT, INT64, OUTPUT, attribute, identity, initializer, model, node, value,
};
use crate::support::{TempFile, floats, lane, load, run, tensor};

fn open(content: &[u8]) -> Result<Arc<dyn Model>, EngineError> {
    let file = TempFile::new("model.onnx", content);
    load(file.path(), EngineKind::Rten)
}

#[test]
fn declared_types_come_back_though_the_engine_narrows_them() {
    let check = |element: i64, tensor: Tensor| {
        let model = open(&identity(element, &[D::S("n")])).unwrap();
        let mut runner = model.runner(&lane(0, 1)).unwrap();
        assert_eq!(model.spec().inputs[0].datatype, tensor.datatype);
        assert_eq!(run(&model, &mut *runner, vec![tensor.clone()]).unwrap(), [tensor]);
    };
    let wide = [i64::from(i32::MIN), -1, i64::from(i32::MAX)];
    check(INT64, tensor(DataType::Int64, &[3], bytemuck::cast_slice(&wide).to_vec()));
    check(9, tensor(DataType::Bool, &[2], vec![1, 0]));
    check(11, tensor(DataType::Fp64, &[1], 0.5_f64.to_le_bytes().to_vec()));
    check(10, tensor(DataType::Fp16, &[1], half::f16::from_f32(0.5).to_le_bytes().to_vec()));
    check(2, tensor(DataType::Uint8, &[2], vec![0, 255]));
    check(FLOAT, floats(&[2], &[1.0, -0.0]));
    check(FLOAT, floats(&[0], &[]));
}

#[test]
fn other_types_are_refused_at_load() {
    for (element, name) in [(4, "UINT16"), (13, "UINT64"), (16, "BF16"), (8, "BYTES")] {
        let error = open(&identity(element, &[])).err().unwrap().to_string();
        let expect = format!("`x` is {name}, which the embedded engine does not compute with");
        assert!(error.contains(&expect), "{error}");
    }
}

#[test]
fn bad_inputs_are_the_clients_fault() {
    let graph = [
        initializer("table", FLOAT, &[2, 1], &[0; 8]),
        node("Gather", &["table", "x"], &["y"], &[attribute("axis", 0)]),
        value(INPUT, "x", INT64, &[D::S("n")]),
        value(OUTPUT, "y", FLOAT, &[D::S("n"), D::N(1)]),
    ];
    let model = open(&model(&graph)).unwrap();
    let mut runner = model.runner(&lane(0, 1)).unwrap();
    let ids = |ids: &[i64]| tensor(DataType::Int64, &[ids.len()], bytemuck::cast_slice(ids).to_vec());
    for input in [vec![ids(&[0, 7])], vec![ids(&[1 << 40])], vec![floats(&[1], &[0.0])], vec![]] {
        let refused = run(&model, &mut *runner, input);
        assert!(matches!(refused, Err(EngineError::Input(_))), "{refused:?}");
    }
    assert_eq!(run(&model, &mut *runner, vec![ids(&[1])]).unwrap(), [floats(&[1, 1], &[0.0])]);
}

#[test]
fn models_it_cannot_load_say_why() {
    let dims = [D::S("n")];
    let io = [value(INPUT, "x", FLOAT, &dims), value(OUTPUT, "y", FLOAT, &dims)];
    let nodes = [node("NoSuchOperator", &["x"], &["y"], &[])];
    let error = open(&model(&[&nodes[..], &io].concat())).err().unwrap();
    let EngineError::Load(text) = error else { panic!("{error:?}") };
    assert!(text.contains("NoSuchOperator") && text.contains("model.onnx"), "{text}");
}

#[test]
fn wide_and_narrow_runners_serve_one_model_side_by_side() {
    let weights: Vec<u8> =
        (0..64 * 64).flat_map(|index| ((index % 17) as f32 / 17.0).to_le_bytes()).collect();
    let dims = [D::S("n"), D::N(64)];
    let graph = [
        initializer("w", FLOAT, &[64, 64], &weights),
        node("MatMul", &["x", "w"], &["y"], &[]),
        value(INPUT, "x", FLOAT, &dims),
        value(OUTPUT, "y", FLOAT, &dims),
    ];
    let model = open(&model(&graph)).unwrap();
    let input = crate::support::sample(DataType::Fp32, &[5, 64], 1);
    let expect = run(&model, &mut *model.runner(&lane(0, 1)).unwrap(), vec![input.clone()]).unwrap();
    std::thread::scope(|scope| {
        for (id, cores) in [(0, 1), (1, 1), (0, 2)] {
            let (model, input, expect) = (&model, &input, &expect);
            scope.spawn(move || {
                let mut runner = model.runner(&lane(id, cores)).unwrap();
                for _ in 0..50 {
                    assert_eq!(&run(model, &mut *runner, vec![input.clone()]).unwrap(), expect);
                }
            });
        }
    });
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    use crate::onnx_file::{bytes, message};
    let dims = [D::S("n")];
    let mut inner = Vec::new();
    for _ in 0..3_000 {
        let graph = message(6, &inner);
        let attribute = message(5, &[bytes(1, "then_branch"), graph, crate::onnx_file::int(20, 5)]);
        inner = vec![node("If", &["c"], &["y"], &[attribute])];
    }
    let io = [value(INPUT, "c", 9, &[]), value(OUTPUT, "y", FLOAT, &dims)];
    assert!(open(&model(&[inner, io.to_vec()].concat())).is_err());
}

#[test]
fn truncated_files_are_refused() {
    let file = identity(FLOAT, &[D::S("n")]);
    for end in 0..file.len() {
        let _either = open(&file[..end]);
    }
}
