//! The gRPC protocol through generated clients, and its framing through bare HTTP/2.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use quadrant_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use quadrant_proto::inference::infer_parameter::ParameterChoice;
use quadrant_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use quadrant_proto::inference::{
    InferParameter, InferTensorContents, ModelConfigRequest, ModelInferRequest, ModelMetadataRequest,
    ModelReadyRequest, RepositoryIndexRequest, ServerLiveRequest, ServerMetadataRequest, ServerReadyRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::server;

async fn client() -> GrpcInferenceServiceClient<Channel> {
    GrpcInferenceServiceClient::new(channel().await)
}

async fn channel() -> Channel {
    Channel::from_shared(format!("http://{}", server().grpc)).unwrap().connect().await.unwrap()
}

fn run<T>(test: impl Future<Output = T>) -> T {
    server().runtime.block_on(test)
}

fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    let (name, datatype, shape) = (name.into(), datatype.into(), shape.to_vec());
    InferInputTensor { name, datatype, shape, ..InferInputTensor::default() }
}

fn addsub() -> ModelInferRequest {
    let floats = |value: f32| Bytes::from(value.to_le_bytes().repeat(4));
    ModelInferRequest {
        model_name: "addsub".into(),
        id: "q".into(),
        inputs: vec![input("INPUT0", "FP32", &[1, 4]), input("INPUT1", "FP32", &[1, 4])],
        raw_input_contents: vec![floats(2.0), floats(1.0)],
        ..ModelInferRequest::default()
    }
}

async fn infer(request: ModelInferRequest) -> Result<quadrant_proto::inference::ModelInferResponse, Status> {
    client().await.model_infer(request).await.map(tonic::Response::into_inner)
}

#[test]
fn raw_tensors_come_back_raw() {
    let answer = run(infer(addsub())).unwrap();
    assert_eq!((&*answer.model_name, &*answer.model_version, &*answer.id), ("addsub", "1", "q"));
    let outputs: Vec<_> =
        answer.outputs.iter().map(|output| (&*output.name, &*output.datatype, &*output.shape)).collect();
    assert_eq!(outputs, [("OUTPUT0", "FP32", &[1, 4][..]), ("OUTPUT1", "FP32", &[1, 4][..])]);
    assert_eq!(answer.raw_output_contents, addsub().raw_input_contents);
}

#[test]
fn large_tensors_keep_their_order() {
    for elements in [[10_usize, 10], [100_000, 100_000]] {
        let raw: Vec<Bytes> =
            elements.iter().zip(1..).map(|(count, byte)| Bytes::from(vec![byte; count * 4])).collect();
        let inputs = ["INPUT0", "INPUT1"].iter().zip(elements);
        let shape = |count: usize| [1, i64::try_from(count).unwrap()];
        let request = ModelInferRequest {
            model_name: "pair".into(),
            inputs: inputs.map(|(name, count)| input(name, "FP32", &shape(count))).collect(),
            raw_input_contents: raw.clone(),
            ..ModelInferRequest::default()
        };
        assert!(run(infer(request)).unwrap().raw_output_contents == raw);
    }
}

#[test]
fn typed_tensors_are_accepted() {
    let contents = InferTensorContents { fp32_contents: vec![1.5, -2.0], ..InferTensorContents::default() };
    let request = ModelInferRequest {
        model_name: "t_FP32".into(),
        inputs: vec![InferInputTensor { contents: Some(contents), ..input("x", "FP32", &[2]) }],
        ..ModelInferRequest::default()
    };
    let expected = [1.5_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat();
    assert_eq!(run(infer(request.clone())).unwrap().raw_output_contents, [expected]);
    let both = ModelInferRequest { raw_input_contents: vec![Bytes::from_static(&[0; 8])], ..request };
    let error = run(infer(both)).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("contents field must not be specified when using raw_input_contents"));
}

#[test]
fn outputs_can_be_classified() {
    let classes = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(1)) };
    let output = InferRequestedOutputTensor {
        name: "OUTPUT0".into(),
        parameters: [("classification".to_owned(), classes)].into(),
    };
    let answer = run(infer(ModelInferRequest { outputs: vec![output], ..addsub() })).unwrap();
    assert_eq!((&*answer.outputs[0].datatype, &*answer.outputs[0].shape), ("BYTES", &[1, 1][..]));
    assert_eq!(&*answer.raw_output_contents[0], b"\x0a\0\0\x002.000000:0");
}

#[test]
fn mistakes_have_their_codes() {
    let missing = ModelInferRequest {
        inputs: addsub().inputs[..1].to_vec(),
        raw_input_contents: addsub().raw_input_contents[..1].to_vec(),
        id: String::new(),
        ..addsub()
    };
    let negative = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(-1)) };
    let cases = [
        // Recorded.
        (
            ModelInferRequest { model_name: "nope".into(), ..addsub() },
            Code::NotFound,
            "Request for unknown model: 'nope' is not found",
        ),
        (
            missing,
            Code::InvalidArgument,
            "[request id: <id_unknown>] expected 2 inputs but got 1 inputs for model 'addsub'. Got input(s) ['INPUT0'], but missing required input(s) ['INPUT1']. Please provide all required input(s).",
        ),
        // Ours.
        (
            ModelInferRequest { raw_input_contents: vec![Bytes::new()], ..addsub() },
            Code::InvalidArgument,
            "expected 2 raw input contents but got 1 for model 'addsub'",
        ),
        (
            ModelInferRequest { model_version: "x".into(), ..addsub() },
            Code::InvalidArgument,
            "failed to get model version from specified version string 'x'",
        ),
        (
            ModelInferRequest { inputs: vec![input("INPUT0", "FP32", &[-1]); 2], ..addsub() },
            Code::InvalidArgument,
            "input 'INPUT0' has a dimension of -1",
        ),
        (
            ModelInferRequest { parameters: [("timeout".to_owned(), negative)].into(), ..addsub() },
            Code::InvalidArgument,
            "Unable to parse 'timeout': it must be a whole number, not below zero",
        ),
    ];
    for (request, code, message) in cases {
        let error = run(infer(request)).unwrap_err();
        assert_eq!((error.code(), error.message()), (code, message));
    }
}

#[test]
fn the_smaller_calls_answer() {
    run(async {
        let mut client = client().await;
        assert!(client.server_live(ServerLiveRequest {}).await.unwrap().get_ref().live);
        assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().get_ref().ready);
        for (name, ready) in [("addsub", true), ("nope", false), ("broken", false)] {
            let request = ModelReadyRequest { name: name.into(), version: String::new() };
            assert_eq!(client.model_ready(request).await.unwrap().get_ref().ready, ready);
        }
        let server = client.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
        assert_eq!((&*server.name, &*server.extensions[0]), ("quadrant", "classification"));
        let request = ModelMetadataRequest { name: "addsub".into(), version: "1".into() };
        let model = client.model_metadata(request).await.unwrap().into_inner();
        assert_eq!((&*model.versions, &*model.inputs[0].shape), (&["1".to_owned()][..], &[-1, 4][..]));
        let request = ModelConfigRequest { name: "addsub".into(), version: String::new() };
        let config = client.model_config(request).await.unwrap().into_inner().config.unwrap();
        assert_eq!((config.max_batch_size, &*config.input[0].dims), (8, &[4][..]));
        let index =
            client.repository_index(RepositoryIndexRequest { ready: true, ..Default::default() }).await;
        assert!(index.unwrap().get_ref().models.iter().all(|model| model.state == "READY"));
    });
}

#[test]
fn health_is_served_and_watched() {
    run(async {
        let channel = channel().await;
        let mut client = HealthClient::new(channel);
        for (service, expected) in [
            ("", Ok(1)),
            ("inference.GRPCInferenceService", Ok(1)),
            ("addsub", Ok(1)),
            ("broken", Ok(2)),
            ("nope", Err(Code::NotFound)),
        ] {
            let request = HealthCheckRequest { service: service.into() };
            let status = client.check(request).await.map(|answer| answer.get_ref().status);
            assert_eq!(status.map_err(|status| status.code()), expected, "{service}");
        }
        let mut watched =
            client.watch(HealthCheckRequest { service: "nope".into() }).await.unwrap().into_inner();
        assert_eq!(watched.message().await.unwrap().unwrap().status, 3);
    });
}

#[test]
fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    run(async {
        let channel = channel().await;
        let list = MessageRequest::ListServices(String::new());
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
        let requests = futures_util::stream::iter([request]);
        let answers = ServerReflectionClient::new(channel).server_reflection_info(requests).await;
        let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("{answer:?}")
        };
        let names: Vec<_> = list.service.iter().map(|service| &*service.name).collect();
        assert!(
            names.contains(&"inference.GRPCInferenceService") && names.contains(&"grpc.health.v1.Health")
        );
    });
}

#[test]
fn a_stream_answers_in_order_and_says_what_is_wrong_in_place() {
    run(async {
        let requests = (0..40).map(|number| {
            let model_name = if number % 3 == 1 { "nope" } else { "addsub" };
            ModelInferRequest { id: number.to_string(), model_name: model_name.into(), ..addsub() }
        });
        let requests = futures_util::stream::iter(requests.collect::<Vec<_>>());
        let mut answers = client().await.model_stream_infer(requests).await.unwrap().into_inner();
        for number in 0..40 {
            let answer = answers.message().await.unwrap().unwrap();
            if number % 3 == 1 {
                assert_eq!(answer.error_message, "Request for unknown model: 'nope' is not found");
            } else {
                let answer = answer.infer_response.unwrap();
                assert_eq!(
                    (answer.id, answer.raw_output_contents),
                    (number.to_string(), addsub().raw_input_contents)
                );
            }
        }
        assert_eq!(answers.message().await.unwrap(), None);
    });
}

#[test]
fn metadata_is_understood() {
    run(async {
        let mut request = Request::new(addsub());
        request.metadata_mut().insert("x-quadrant-timing", "1".parse().unwrap());
        request.metadata_mut().insert("x-request-id", "abc".parse().unwrap());
        let answer = client().await.model_infer(request).await.unwrap();
        assert_eq!(answer.metadata().get("x-request-id").unwrap(), "abc");
        assert!(
            answer.metadata().get("x-quadrant-timing").unwrap().to_str().unwrap().contains("compute;dur=")
        );
    });
    let slow = ModelInferRequest {
        model_name: "slow".into(),
        inputs: vec![input("x", "FP32", &[1])],
        raw_input_contents: vec![Bytes::from_static(&[0; 4])],
        ..ModelInferRequest::default()
    };
    // Bare, because a generated client keeps the deadline itself and may be faster.
    for (timeout, code) in [("20m", "4"), ("soon", "3")] {
        let body = framed(0, &slow.encode_to_vec());
        let (status, message) = run(bare(MODEL_INFER, &[("grpc-timeout", timeout)], body));
        assert_eq!(status, code, "{message}");
    }
}

/// Sends `body` as it is and returns `grpc-status` and `grpc-message`.
pub(crate) async fn bare(path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> (String, String) {
    let stream = tokio::net::TcpStream::connect(server().grpc).await.unwrap();
    let io = TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request =
        http::Request::post(format!("http://test{path}")).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
    let mut fields = answer.headers().clone();
    let body = answer.into_body().collect().await.unwrap();
    fields.extend(body.trailers().cloned().unwrap_or_default());
    connection.abort();
    let field = |name| fields.get(name).map_or(String::new(), |value| value.to_str().unwrap().to_owned());
    (field("grpc-status"), field("grpc-message"))
}

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

#[test]
fn broken_framing_is_the_clients_mistake() {
    let good = framed(0, &addsub().encode_to_vec());
    let cases = [
        (good.clone(), "0"),
        (Vec::new(), "3"),
        (good[..3].to_vec(), "3"),
        (good[..good.len() - 1].to_vec(), "3"),
        ([good.clone(), good.clone()].concat(), "3"),
        (framed(1, b"x"), "3"),
        (framed(7, b"x"), "3"),
        (framed(0, b"\xff\xff\xff"), "3"),
        (framed(0, b"\x0a\x02\xff\xfe"), "3"),
        (b"\0\xff\xff\xff\xff".to_vec(), "11"),
    ];
    for (body, expected) in cases {
        let (status, message) = run(bare(MODEL_INFER, &[], body.clone()));
        assert_eq!(status, expected, "{message}: {body:?}");
    }
    let (status, message) = run(bare("/inference.GRPCInferenceService/Nope", &[], good.clone()));
    assert_eq!(status, "12", "{message}");
    assert_eq!(run(bare(MODEL_INFER, &[("grpc-encoding", "zstd")], good)).0, "12");
}

#[test]
fn compressed_messages_are_inflated() {
    use std::io::Write as _;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&addsub().encode_to_vec()).unwrap();
    let coded = gzip.finish().unwrap();
    let (status, message) = run(bare(MODEL_INFER, &[("grpc-encoding", "gzip")], framed(1, &coded)));
    assert_eq!(status, "0", "{message}");
    assert_eq!(run(bare(MODEL_INFER, &[("grpc-encoding", "gzip")], framed(1, &coded[..20]))).0, "3");
}
