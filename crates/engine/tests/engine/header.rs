//! Reading what an ONNX file says of itself, and surviving those that lie.

use quadrant_engine::{EngineError, OnnxHeader};
use quadrant_types::{DataType, Dim, TensorSpec};

use crate::onnx_file::{
    D, FLOAT, Field, INPUT, INT64, OUTPUT, bytes, encode, identity, initializer, int, lie, message, model,
    node, tensor_type, value,
};
use crate::support::{TempFile, asset_model};

fn read(content: &[u8]) -> Result<OnnxHeader, String> {
    let file = TempFile::new("model.onnx", content);
    OnnxHeader::read(file.path()).map_err(|error| match error {
        EngineError::Load(text) => {
            let prefix = format!("`{}`: ", file.path().display());
            text.strip_prefix(&prefix).unwrap_or_else(|| panic!("{text} names the file")).to_owned()
        }
        other => panic!("{other:?} is no error of loading"),
    })
}

fn spec(name: &str, datatype: DataType, dims: &[Dim]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype, dims: dims.to_vec() }
}

#[test]
fn the_header_of_a_model() {
    let weights = vec![7_u8; 100_000];
    let graph = [
        node("MatMul", &["x", "w"], &["y"], &[]),
        message(1, &[bytes(4, "Gelu"), bytes(7, "com.microsoft")]),
        initializer("w", FLOAT, &[5, 5000], &weights),
        value(INPUT, "w", FLOAT, &[D::N(5), D::N(5000)]),
        value(INPUT, "x", FLOAT, &[D::S("batch"), D::N(3), D::Any, D::N(-1), D::S("")]),
        value(INPUT, "ids", INT64, &[]),
        value(OUTPUT, "y", FLOAT, &[D::S("batch"), D::N(5000)]),
        message(OUTPUT, &[bytes(1, "z"), tensor_type(9, None)]),
    ];
    let file = model(&graph);
    let header = read(&file).unwrap();
    let batch = || Dim::Symbol("batch".into());
    let dims = [batch(), Dim::Fixed(3), Dim::Any, Dim::Any, Dim::Any];
    assert_eq!(header.inputs, [spec("x", DataType::Fp32, &dims), spec("ids", DataType::Int64, &[])]);
    let outputs =
        [spec("y", DataType::Fp32, &[batch(), Dim::Fixed(5000)]), spec("z", DataType::Bool, &[Dim::Any])];
    assert_eq!(header.outputs, outputs);
    assert_eq!(header.outputs_shaped, [true, false]);
    assert_eq!(header.opset, 17);
    assert_eq!(header.operators.iter().collect::<Vec<_>>(), ["MatMul", "com.microsoft::Gelu"]);
    assert_eq!(header.weights_bytes, file.len() as u64);
}

#[test]
fn every_data_type_is_told_apart() {
    let elements = [9, 2, 4, 12, 13, 3, 5, 6, 7, 10, 16, 1, 11, 8];
    for (element, datatype) in elements.into_iter().zip(DataType::ALL) {
        assert_eq!(read(&identity(element, &[])).unwrap().inputs[0].datatype, datatype);
    }
}

#[test]
fn weights_in_other_files_are_counted() {
    let entry = |key: &str, value: &str| message(13, &[bytes(1, key), bytes(2, value)]);
    let external = message(5, &[bytes(8, "w"), entry("location", "w.bin"), entry("length", "1000000")]);
    let file = model(&[external, value(OUTPUT, "w", FLOAT, &[])]);
    assert_eq!(read(&file).unwrap().weights_bytes, file.len() as u64 + 1_000_000);
}

#[test]
fn models_that_cannot_be_served_say_why() {
    let output = || value(OUTPUT, "y", FLOAT, &[]);
    let check = |graph: &[Field], expect: &str| assert_eq!(read(&model(graph)).unwrap_err(), expect);
    let typed = |element| [value(INPUT, "x", element, &[]), output()];
    check(&typed(14), "input `x` has the element type `COMPLEX64`, which the protocol cannot carry");
    check(&typed(99), "input `x` has the element type `99`, which the protocol cannot carry");
    check(&typed(-1), "input `x` has the element type `-1`, which the protocol cannot carry");
    let dims = |dims: &[D]| [value(INPUT, "x", FLOAT, dims), output()];
    check(&dims(&[D::N(-2)]), "input `x` has the impossible dimension `-2`");
    check(&dims(&[D::N(i64::MIN)]), "input `x` has the impossible dimension `-9223372036854775808`");
    check(&dims(&[D::N(1); 65]), "input `x` has `65` dimensions; `64` are the limit");
    check(&[], "the model has no outputs");
    check(&[output(), output()], "two outputs are called `y`");
    check(&[value(OUTPUT, "", FLOAT, &[])], "an output has no name");
    check(&[message(OUTPUT, &[bytes(1, "y")])], "output `y` has no type");
    let sequence = message(OUTPUT, &[bytes(1, "y"), message(2, &[message(4, &[])])]);
    check(&[sequence], "output `y` is a sequence; only tensors can be served");
    let shapeless = message(INPUT, &[bytes(1, "x"), tensor_type(FLOAT, None)]);
    check(
        &[shapeless, output()],
        "input `x` has no shape; export the model with shapes, dimensions may be symbolic",
    );
    let unreadable = message(OUTPUT, &[bytes(1, b"a\xff"), tensor_type(FLOAT, Some(&[]))]);
    check(&[unreadable], "the name `a\u{fffd}` is not valid UTF-8");
}

#[test]
fn files_that_are_no_models_say_so() {
    assert_eq!(read(b"").unwrap_err(), "is empty");
    let no_model = "is not an ONNX model: it has no graph or no version";
    assert_eq!(read(&encode(&[int(1, 8)])).unwrap_err(), no_model);
    assert_eq!(read(&encode(&[message(7, &[])])).unwrap_err(), no_model);
    for content in
        [&b"not a model, but some text\n"[..], b"\x7fELF\x02\x01\x01", b"PK\x03\x04", &[0; 100], &[0xff; 100]]
    {
        let error = read(content).unwrap_err();
        assert!(error.starts_with("is not a complete ONNX model: "), "{error}");
    }
    let folder = TempFile::new("x", "");
    let error = OnnxHeader::read(folder.path().parent().unwrap()).unwrap_err().to_string();
    assert!(error.ends_with(": is not a file"), "{error}");
    let error = OnnxHeader::read(std::path::Path::new("/absent.onnx")).unwrap_err().to_string();
    assert!(error.starts_with("`/absent.onnx`: cannot be opened: "), "{error}");
}

#[test]
fn lying_lengths_are_found_out_without_taking_memory() {
    for claimed in [1_000, u64::from(u32::MAX), u64::MAX] {
        for file in [
            encode(&[int(1, 8), lie(7, claimed, b"x")]),
            encode(&[int(1, 8), message(7, &[lie(11, claimed, b"x")])]),
            encode(&[int(1, 8), message(7, &[message(11, &[lie(1, claimed, b"x")])])]),
            encode(&[int(1, 8), message(7, &[message(5, &[lie(9, claimed, b"x")])])]),
        ] {
            assert!(read(&file).is_err());
        }
    }
    // True lengths can be absurd as well: a name of two megabytes, and a graph of empty nodes.
    let named = model(&[value(OUTPUT, &"y".repeat(2 << 20), FLOAT, &[])]);
    assert_eq!(read(&named).unwrap_err(), "a name in it is `2097152` bytes long");
    let nodes = encode(&[int(1, 8), bytes(7, [0x0a, 0x00].repeat(9 << 20))]);
    assert_eq!(read(&nodes).unwrap_err(), "its graph is too large to be a model's");
}

#[test]
fn nesting_does_not_exhaust_the_stack() {
    // Groups are protobuf's other way to nest.
    let groups = [0x0b_u8].repeat(1 << 20);
    assert!(read(&encode(&[int(1, 8), bytes(7, groups)])).is_err());
    let nested = |levels: usize| {
        let mut nodes = vec![node("Neg", &["x"], &["y"], &[])];
        for _ in 0..levels {
            let branch = message(5, &[bytes(1, "then_branch"), message(6, &nodes)]);
            nodes = vec![node("If", &["c"], &["y"], &[branch])];
        }
        read(&model(&[nodes, vec![value(OUTPUT, "y", FLOAT, &[])]].concat()))
    };
    assert_eq!(nested(20).unwrap().operators.into_iter().collect::<Vec<_>>(), ["If", "Neg"]);
    for levels in [40, 4_000] {
        let error = nested(levels).unwrap_err();
        assert!(error.contains("recursion limit reached"), "{error}");
    }
    for tag in [INPUT, 13] {
        let mut nested = message(1, &[int(1, FLOAT)]);
        for _ in 0..4_000 {
            nested = message(4, &[message(1, &[nested])]);
        }
        let inner = message(tag, &[bytes(1, "x"), message(2, &[nested])]);
        let error = read(&model(&[inner, value(OUTPUT, "y", FLOAT, &[])])).unwrap_err();
        assert!(error.contains("recursion limit reached"), "{error}");
    }
}

#[test]
fn truncated_and_changed_files_never_panic() {
    let graph = [
        node("MatMul", &["x", "w"], &["y"], &[]),
        initializer("w", FLOAT, &[2, 2], &[0; 16]),
        value(INPUT, "x", FLOAT, &[D::S("batch"), D::N(2)]),
        value(OUTPUT, "y", FLOAT, &[D::S("batch"), D::N(2)]),
    ];
    let file = model(&graph);
    let whole = read(&file).unwrap();
    for end in 0..file.len() {
        // Cut exactly behind the graph, the file is whole but for its version of the operators.
        assert!(read(&file[..end]).map_or(true, |header| header.opset == 0 && header.inputs == whole.inputs));
    }
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..2_000 {
        let mut changed = file.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..changed.len());
            changed[at] = random.u8(..);
        }
        drop(read(&changed));
    }
}

#[test]
fn the_demo_models_keep_their_64_bit_integers() {
    let Some(path) = asset_model("minilm-l3") else { return };
    let header = OnnxHeader::read(&path).unwrap();
    let dims = [Dim::Symbol("batch_size".into()), Dim::Symbol("sequence_length".into())];
    let inputs = ["input_ids", "attention_mask"].map(|name| spec(name, DataType::Int64, &dims));
    assert_eq!(header.inputs, inputs);
    assert_eq!(header.opset, 17);
}
