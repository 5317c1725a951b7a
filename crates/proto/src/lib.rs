//! The messages and services of the Open Inference Protocol over gRPC, with Triton's extensions, and the
//! schema of Triton's `config.pbtxt`. Generated from our own `.proto` files, which are wire-compatible with
//! what existing clients were generated from.
//!
//! It holds no behaviour: `server` implements the service, `bench` calls it, `node` reads `config.pbtxt`
//! against [`MODEL_CONFIG_DESCRIPTOR_SET`]. Nobody else may know these types.

/// The generated code of the package `inference`.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated; the comments are in the `.proto` files"
)]
pub mod inference {
    tonic::include_proto!("inference");
}

/// The encoded `FileDescriptorSet` of the service and all it refers to, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.fds"));

/// The encoded `FileDescriptorSet` of `model_config.proto` alone.
pub const MODEL_CONFIG_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/model_config.fds"));

/// The full name of the message that a `config.pbtxt` holds.
pub const MODEL_CONFIG_MESSAGE: &str = "inference.ModelConfig";

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::inference::model_infer_request::InferInputTensor;
    use super::inference::{
        InferParameter, ModelConfig, ModelInferRequest, infer_parameter::ParameterChoice,
    };

    /// As `tritonclient` encodes it: two fields whose numbers other implementations rely on.
    #[test]
    fn a_request_has_the_protocols_bytes() {
        let timeout = InferParameter { parameter_choice: Some(ParameterChoice::Uint64Param(7)) };
        let request = ModelInferRequest {
            model_name: "m".into(),
            id: "q".into(),
            parameters: [("timeout".to_owned(), timeout)].into(),
            inputs: vec![InferInputTensor {
                name: "x".into(),
                datatype: "FP32".into(),
                shape: vec![1],
                ..InferInputTensor::default()
            }],
            raw_input_contents: vec![Bytes::from_static(b"abcd")],
            ..ModelInferRequest::default()
        };
        let expected = b"\x0a\x01m\x1a\x01q\x22\x0d\x0a\x07timeout\x12\x02\x28\x07\
            \x2a\x0c\x0a\x01x\x12\x04FP32\x1a\x01\x01\x3a\x04abcd";
        assert_eq!(request.encode_to_vec(), expected);
        assert_eq!(ModelInferRequest::decode(&expected[..]), Ok(request));
    }

    /// Numbers of `ModelConfig` that are far out of order: name 1, platform 2, backend 17, runtime 25.
    #[test]
    fn a_configuration_has_the_protocols_bytes() {
        let config = ModelConfig {
            name: "n".into(),
            platform: "p".into(),
            backend: "b".into(),
            runtime: "r".into(),
            max_batch_size: 8,
            ..ModelConfig::default()
        };
        let mut fields: Vec<Vec<u8>> = vec![
            b"\x0a\x01n".to_vec(),
            b"\x12\x01p".to_vec(),
            b"\x20\x08".to_vec(),
            b"\x8a\x01\x01b".to_vec(),
            b"\xca\x01\x01r".to_vec(),
        ];
        assert_eq!(ModelConfig::decode(fields.concat().as_slice()), Ok(config.clone()));
        fields.reverse();
        assert_eq!(ModelConfig::decode(fields.concat().as_slice()), Ok(config));
    }
}
