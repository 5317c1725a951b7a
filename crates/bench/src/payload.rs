//! What is sent: tensors, made once, and the requests made of them once.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use quadrant_proto::inference as proto;
use serde_json::json;

use crate::plan::Encoding;
use crate::{BenchError, ModelLoad, Plan};

/// What a tensor is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Floats from 0 to 1; integers 0 or 1, which are valid ids and masks everywhere; short strings.
    Random,
    /// Zeros, or empty strings.
    Zeros,
    /// Ones.
    Ones,
}

/// One input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// The protocol's name of its type.
    pub datatype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What it is filled with.
    pub fill: Fill,
}

/// The types that can be made, with the bytes of an element.
const TYPES: [(&str, usize); 14] = [
    ("BOOL", 1),
    ("UINT8", 1),
    ("UINT16", 2),
    ("UINT32", 4),
    ("UINT64", 8),
    ("INT8", 1),
    ("INT16", 2),
    ("INT32", 4),
    ("INT64", 8),
    ("FP16", 2),
    ("BF16", 2),
    ("FP32", 4),
    ("FP64", 8),
    ("BYTES", 0),
];

impl TensorSpec {
    /// An input of a known type.
    ///
    /// # Errors
    /// If the type is not one of the protocol's.
    pub fn new(name: &str, datatype: &str, shape: Vec<usize>, fill: Fill) -> Result<Self, String> {
        if !TYPES.iter().any(|(known, _)| *known == datatype) {
            return Err(format!("`{datatype}` is not a data type"));
        }
        Ok(Self { name: name.to_owned(), datatype: datatype.to_owned(), shape, fill })
    }

    /// The elements, little-endian.
    fn bytes(&self, random: &mut fastrand::Rng) -> Bytes {
        let count: usize = self.shape.iter().product();
        let mut bytes = BytesMut::new();
        for _ in 0..count {
            let value = match self.fill {
                Fill::Zeros => 0.0,
                Fill::Ones => 1.0,
                Fill::Random => random.f64(),
            };
            let whole = u8::from(value >= 0.5);
            match self.datatype.as_str() {
                "FP32" => bytes.put_f32_le(value as f32),
                "FP64" => bytes.put_f64_le(value),
                // The upper half of a float is its BF16; 0x3c00 is 1 in FP16.
                "BF16" => bytes.put_u16_le(((value as f32).to_bits() >> 16) as u16),
                "FP16" => bytes.put_u16_le(u16::from(whole) * 0x3c00),
                "BYTES" => {
                    bytes.put_u32_le(u32::from(whole));
                    bytes.put_bytes(b'a', usize::from(whole));
                }
                other => {
                    let size = TYPES.iter().find(|(known, _)| *known == other).map_or(1, |(_, size)| *size);
                    bytes.put_u8(whole);
                    bytes.put_bytes(0, size - 1);
                }
            }
        }
        bytes.freeze()
    }
}

/// A request that only has to be cloned to be sent.
#[derive(Clone, Debug)]
pub(crate) enum Prepared {
    Http(Box<HttpRequest>),
    Grpc(Box<proto::ModelInferRequest>),
}

/// The parts of an HTTP request.
#[derive(Clone, Debug)]
pub(crate) struct HttpRequest {
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Prepared {
    pub(crate) fn new(plan: &Plan, model: &ModelLoad) -> Result<Self, BenchError> {
        let mut random = fastrand::Rng::with_seed(plan.seed);
        let inputs: Vec<(&TensorSpec, Bytes)> =
            model.inputs.iter().map(|input| (input, input.bytes(&mut random))).collect();
        match plan.protocol {
            crate::Protocol::Http => http_request(plan, model, &inputs),
            crate::Protocol::Grpc => Ok(Self::Grpc(Box::new(grpc_request(plan, model, &inputs)))),
        }
    }

    /// Bytes of tensors and JSON in one request.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Http(request) => request.body.len() as u64,
            Self::Grpc(request) => request.raw_input_contents.iter().map(|raw| raw.len() as u64).sum(),
        }
    }

    /// The request as hyper sends it.
    pub(crate) fn http(&self) -> Option<Request<Full<Bytes>>> {
        let Self::Http(prepared) = self else { return None };
        let HttpRequest { uri, headers, body } = &**prepared;
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers.clone();
        Some(request)
    }
}

fn http_request(
    plan: &Plan,
    model: &ModelLoad,
    inputs: &[(&TensorSpec, Bytes)],
) -> Result<Prepared, BenchError> {
    let binary = plan.encoding == Encoding::Binary;
    let mut header = json!({ "inputs": [] });
    for (input, data) in inputs {
        let mut one = json!({ "name": input.name, "datatype": input.datatype, "shape": input.shape });
        if binary {
            one["parameters"] = json!({ "binary_data_size": data.len() });
        } else {
            one["data"] = json_data(input, data)?;
        }
        header["inputs"].as_array_mut().expect("made as an array").push(one);
    }
    match &model.classification {
        Some((output, classes)) => {
            let parameters = json!({ "classification": classes, "binary_data": binary });
            header["outputs"] = json!([{ "name": output, "parameters": parameters }]);
        }
        None if binary => header["parameters"] = json!({ "binary_data_output": true }),
        None => {}
    }
    let json = header.to_string();
    let mut headers = HeaderMap::new();
    let mut set = |name: &'static str, value: String| {
        let value = HeaderValue::from_str(&value).map_err(|error| BenchError::Plan(error.to_string()))?;
        headers.insert(HeaderName::from_static(name), value);
        Ok(())
    };
    set("host", plan.address.clone())?;
    if binary {
        set("inference-header-content-length", json.len().to_string())?;
    }
    if let Some(tenant) = &plan.tenant {
        set("x-gateway-inference-fairness-id", tenant.clone())?;
    }
    if let Some(key) = &plan.api_key {
        set("authorization", format!("Bearer {key}"))?;
    }
    if let Some(timeout) = plan.timeout {
        set("x-request-timeout-ms", timeout.as_millis().to_string())?;
    }
    let mut body = BytesMut::from(json.as_bytes());
    if binary {
        inputs.iter().for_each(|(_, data)| body.extend_from_slice(data));
    }
    let uri = format!("/v2/models/{}/infer", model.name);
    let uri = uri.parse().map_err(|_| BenchError::Plan(format!("`{}` is no model name", model.name)))?;
    Ok(Prepared::Http(Box::new(HttpRequest { uri, headers, body: body.freeze() })))
}

/// The elements as JSON numbers.
fn json_data(input: &TensorSpec, data: &Bytes) -> Result<serde_json::Value, BenchError> {
    let size = TYPES.iter().find(|(known, _)| *known == input.datatype).map_or(0, |(_, size)| *size);
    if size == 0 || input.datatype.ends_with("F16") || input.datatype == "FP16" {
        return Err(BenchError::Plan(format!("`{}` is sent in binary only", input.datatype)));
    }
    let number = |bytes: &[u8]| match input.datatype.as_str() {
        "FP32" => json!(f32::from_le_bytes(bytes.try_into().unwrap_or_default())),
        "FP64" => json!(f64::from_le_bytes(bytes.try_into().unwrap_or_default())),
        "BOOL" => json!(bytes[0] != 0),
        _ => json!(bytes[0]),
    };
    Ok(data.chunks_exact(size).map(number).collect())
}

fn grpc_request(plan: &Plan, model: &ModelLoad, inputs: &[(&TensorSpec, Bytes)]) -> proto::ModelInferRequest {
    use proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
    let input = |(input, _): &(&TensorSpec, Bytes)| InferInputTensor {
        name: input.name.clone(),
        datatype: input.datatype.clone(),
        shape: input.shape.iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect(),
        ..InferInputTensor::default()
    };
    let integer = |value: i64| proto::InferParameter {
        parameter_choice: Some(proto::infer_parameter::ParameterChoice::Int64Param(value)),
    };
    let mut request = proto::ModelInferRequest {
        model_name: model.name.clone(),
        inputs: inputs.iter().map(input).collect(),
        raw_input_contents: inputs.iter().map(|(_, data)| data.clone()).collect(),
        ..proto::ModelInferRequest::default()
    };
    if let Some((output, classes)) = &model.classification {
        let classes = integer(i64::try_from(*classes).unwrap_or(i64::MAX));
        request.outputs.push(InferRequestedOutputTensor {
            name: output.clone(),
            parameters: [("classification".to_owned(), classes)].into(),
        });
    }
    if let Some(timeout) = plan.timeout {
        let timeout = integer(i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX));
        request.parameters.insert("timeout".to_owned(), timeout);
    }
    request
}
