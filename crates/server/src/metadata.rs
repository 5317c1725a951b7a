//! What the server says about itself and its models, before it is JSON or protobuf.

use quadrant_node::{IndexEntry, ModelState};
use quadrant_types::{DataType, Dim};

/// The server's name in its metadata.
pub(crate) const SERVER_NAME: &str = "quadrant";

/// The server's version.
pub(crate) const SERVER_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The extensions of the protocol that are implemented; nothing else may be claimed.
pub(crate) const EXTENSIONS: [&str; 6] = [
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
];

/// A dimension as the protocols have it: -1 where it is not fixed.
pub(crate) fn dimension(dim: &Dim) -> i64 {
    match dim {
        Dim::Fixed(size) => i64::try_from(*size).unwrap_or(i64::MAX),
        Dim::Symbol(_) | Dim::Any => -1,
    }
}

/// The name of a state in the repository index.
pub(crate) const fn state(entry: &IndexEntry) -> &'static str {
    match entry.state {
        ModelState::Loading => "LOADING",
        ModelState::Ready => "READY",
        ModelState::Unloading => "UNLOADING",
        ModelState::Unavailable => "UNAVAILABLE",
    }
}

/// The name and number of a type in a model's configuration.
pub(crate) const fn config_type(datatype: DataType) -> (&'static str, i32) {
    match datatype {
        DataType::Bool => ("TYPE_BOOL", 1),
        DataType::Uint8 => ("TYPE_UINT8", 2),
        DataType::Uint16 => ("TYPE_UINT16", 3),
        DataType::Uint32 => ("TYPE_UINT32", 4),
        DataType::Uint64 => ("TYPE_UINT64", 5),
        DataType::Int8 => ("TYPE_INT8", 6),
        DataType::Int16 => ("TYPE_INT16", 7),
        DataType::Int32 => ("TYPE_INT32", 8),
        DataType::Int64 => ("TYPE_INT64", 9),
        DataType::Fp16 => ("TYPE_FP16", 10),
        DataType::Fp32 => ("TYPE_FP32", 11),
        DataType::Fp64 => ("TYPE_FP64", 12),
        DataType::Bytes => ("TYPE_STRING", 13),
        DataType::Bf16 => ("TYPE_BF16", 14),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_the_numbers_of_the_schema() {
        for datatype in DataType::ALL {
            let (name, number) = config_type(datatype);
            let schema = quadrant_proto::inference::DataType::try_from(number).unwrap();
            assert_eq!(schema.as_str_name(), name);
        }
    }
}
