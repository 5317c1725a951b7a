//! Writes small ONNX files: just enough protobuf, by hand, so that a test can also write broken ones.

/// One field of a message.
#[derive(Clone, Debug)]
pub(crate) struct Field(Vec<u8>);

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
    bytes
}

/// A field that holds a number; negative ones as protobuf does, in ten bytes.
pub(crate) fn int(tag: u64, number: i64) -> Field {
    Field([varint(tag << 3), varint(number.cast_unsigned())].concat())
}

/// A field that holds bytes or a string.
pub(crate) fn bytes(tag: u64, content: impl AsRef<[u8]>) -> Field {
    let content = content.as_ref();
    Field([varint(tag << 3 | 2), varint(content.len() as u64), content.to_vec()].concat())
}

/// A field that claims more bytes than it has.
pub(crate) fn lie(tag: u64, claimed: u64, content: &[u8]) -> Field {
    Field([varint(tag << 3 | 2), varint(claimed), content.to_vec()].concat())
}

/// A field that holds a message.
pub(crate) fn message(tag: u64, fields: &[Field]) -> Field {
    bytes(tag, encode(fields))
}

pub(crate) fn encode(fields: &[Field]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.0.iter().copied()).collect()
}

/// A dimension: a number, or a symbol.
#[derive(Clone, Copy, Debug)]
pub(crate) enum D {
    N(i64),
    S(&'static str),
    Any,
}

/// The type of a tensor: ONNX's element type, and dimensions if they are known.
pub(crate) fn tensor_type(element: i64, dims: Option<&[D]>) -> Field {
    let dim = |dim: &D| match dim {
        D::N(size) => message(1, &[int(1, *size)]),
        D::S(symbol) => message(1, &[bytes(2, symbol)]),
        D::Any => message(1, &[]),
    };
    let shape = dims.map(|dims| message(2, &dims.iter().map(dim).collect::<Vec<_>>()));
    let fields: Vec<_> = [int(1, element)].into_iter().chain(shape).collect();
    message(2, &[message(1, &fields)])
}

pub(crate) const INPUT: u64 = 11;
pub(crate) const OUTPUT: u64 = 12;
pub(crate) const FLOAT: i64 = 1;
pub(crate) const INT64: i64 = 7;

/// An input or output of the graph.
pub(crate) fn value(tag: u64, name: &str, element: i64, dims: &[D]) -> Field {
    message(tag, &[bytes(1, name), tensor_type(element, Some(dims))])
}

/// A node of the graph, with attributes already encoded.
pub(crate) fn node(operator: &str, inputs: &[&str], outputs: &[&str], attributes: &[Field]) -> Field {
    let inputs = inputs.iter().map(|name| bytes(1, name));
    let outputs = outputs.iter().map(|name| bytes(2, name));
    let fields: Vec<_> = inputs.chain(outputs).chain([bytes(4, operator)]).collect();
    message(1, &[fields, attributes.to_vec()].concat())
}

/// An attribute of a node that is a number.
pub(crate) fn attribute(name: &str, number: i64) -> Field {
    message(5, &[bytes(1, name), int(3, number), int(20, 2)])
}

/// A constant of the graph.
pub(crate) fn initializer(name: &str, element: i64, dims: &[i64], raw: &[u8]) -> Field {
    let dims = dims.iter().map(|dim| int(1, *dim));
    let fields: Vec<_> = dims.chain([int(2, element), bytes(8, name), bytes(9, raw)]).collect();
    message(5, &fields)
}

/// A complete model file of this graph.
pub(crate) fn model(graph: &[Field]) -> Vec<u8> {
    let graph = [&[bytes(2, "graph")], graph].concat();
    encode(&[int(1, 8), message(7, &graph), message(8, &[bytes(1, ""), int(2, 17)])])
}

/// A model that gives its input back: `y = Identity(x)`.
pub(crate) fn identity(element: i64, dims: &[D]) -> Vec<u8> {
    let node = node("Identity", &["x"], &["y"], &[]);
    model(&[node, value(INPUT, "x", element, dims), value(OUTPUT, "y", element, dims)])
}
