//! A small client of the Open Inference Protocol over HTTP, for `infer` and the demo. Tensors travel in
//! binary. It shares no code with the server, so what it understands is what any client would.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 1 << 30;
/// Where the server says how long the JSON part of a body is.
const HEADER_LENGTH: &str = "Inference-Header-Content-Length";

/// A server, by its address.
#[derive(Debug)]
pub(crate) struct Client {
    agent: ureq::Agent,
    base: String,
    /// What is sent as `Authorization`, if anything.
    authorization: Option<String>,
}

/// What a model takes and gives.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) inputs: Vec<TensorMetadata>,
    pub(crate) outputs: Vec<TensorMetadata>,
}

/// One input or output; -1 stands for any size.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct TensorMetadata {
    pub(crate) name: String,
    pub(crate) datatype: String,
    pub(crate) shape: Vec<i64>,
}

/// A tensor with its name.
#[derive(Clone, Debug)]
pub(crate) struct NamedTensor {
    pub(crate) name: String,
    pub(crate) datatype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

/// A wanted output; the server reduces it to its `classes` best classes unless that is 0.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) classes: usize,
}

#[derive(Serialize)]
struct Header<'a> {
    inputs: Vec<HeaderInput<'a>>,
    outputs: Vec<HeaderOutput<'a>>,
}

#[derive(Serialize)]
struct HeaderInput<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: &'a [usize],
    parameters: InputParameters,
}

#[derive(Serialize)]
struct InputParameters {
    binary_data_size: usize,
}

#[derive(Serialize)]
struct HeaderOutput<'a> {
    name: &'a str,
    parameters: OutputParameters,
}

#[derive(Serialize)]
struct OutputParameters {
    binary_data: bool,
    #[serde(skip_serializing_if = "is_zero")]
    classification: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

#[derive(Deserialize)]
struct AnswerHeader {
    outputs: Vec<AnswerOutput>,
}

#[derive(Deserialize)]
struct AnswerOutput {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    parameters: AnswerParameters,
}

#[derive(Deserialize)]
struct AnswerParameters {
    binary_data_size: usize,
}

impl Client {
    /// A client of the server at `address`, such as `127.0.0.1:8000`.
    pub(crate) fn new(address: &str) -> Self {
        let config =
            ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
        Self { agent: config.into(), base: format!("http://{address}"), authorization: None }
    }

    /// The same, showing this API key.
    pub(crate) fn with_key(self, key: Option<&str>) -> Self {
        Self { authorization: key.map(|key| format!("Bearer {key}")), ..self }
    }

    /// Whether the server is ready.
    pub(crate) fn is_ready(&self) -> bool {
        let response = self.agent.get(format!("{}/v2/health/ready", self.base)).call();
        response.is_ok_and(|response| response.status() == 200)
    }

    /// What the model takes and gives.
    pub(crate) fn metadata(&self, model: &str) -> Result<Metadata> {
        let url = format!("{}/v2/models/{model}", self.base);
        let request = self.agent.get(&url);
        let request = match &self.authorization {
            Some(value) => request.header("Authorization", value),
            None => request,
        };
        let response = request.call().with_context(|| self.unreachable())?;
        let body = read(response)?.1;
        serde_json::from_slice(&body).context("the server's metadata cannot be read")
    }

    /// Runs the model.
    pub(crate) fn infer(
        &self,
        model: &str,
        inputs: &[NamedTensor],
        outputs: &[Wanted],
    ) -> Result<Vec<NamedTensor>> {
        let (header_length, body) = encode(inputs, outputs)?;
        let request = self.agent.post(format!("{}/v2/models/{model}/infer", self.base));
        let request = request.header(HEADER_LENGTH, header_length.to_string());
        let request = match &self.authorization {
            Some(value) => request.header("Authorization", value),
            None => request,
        };
        let response = request.send(&body[..]).with_context(|| self.unreachable())?;
        let (header_length, body) = read(response)?;
        decode(header_length, &body)
    }

    fn unreachable(&self) -> String {
        format!("no server answers at `{}`; start one with `quadrant demo` or `quadrant serve`", self.base)
    }
}

fn encode(inputs: &[NamedTensor], outputs: &[Wanted]) -> Result<(usize, Vec<u8>)> {
    let input = |tensor: &'_ NamedTensor| InputParameters { binary_data_size: tensor.data.len() };
    let header = Header {
        inputs: inputs
            .iter()
            .map(|tensor| HeaderInput {
                name: &tensor.name,
                datatype: &tensor.datatype,
                shape: &tensor.shape,
                parameters: input(tensor),
            })
            .collect(),
        outputs: outputs
            .iter()
            .map(|wanted| HeaderOutput {
                name: &wanted.name,
                parameters: OutputParameters { binary_data: true, classification: wanted.classes },
            })
            .collect(),
    };
    let mut body = serde_json::to_vec(&header)?;
    let header_length = body.len();
    for tensor in inputs {
        body.extend_from_slice(&tensor.data);
    }
    Ok((header_length, body))
}

/// The length of the JSON part, if the server says so, and the body; or the server's error.
fn read(mut response: ureq::http::Response<ureq::Body>) -> Result<(Option<usize>, Vec<u8>)> {
    let header = response.headers().get(HEADER_LENGTH);
    let header_length = header.and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
    let status = response.status();
    let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
    if !status.is_success() {
        #[derive(Deserialize)]
        struct ErrorBody {
            error: String,
        }
        let text = String::from_utf8_lossy(&body).into_owned();
        let text = serde_json::from_slice(&body).map_or(text, |body: ErrorBody| body.error);
        bail!("the server answered {status}: {text}");
    }
    Ok((header_length, body))
}

fn decode(header_length: Option<usize>, body: &[u8]) -> Result<Vec<NamedTensor>> {
    let header_length = header_length.ok_or_else(|| anyhow!("the server did not answer in binary"))?;
    let (header, mut data) = body
        .split_at_checked(header_length)
        .ok_or_else(|| anyhow!("the server's answer is shorter than it says"))?;
    let header: AnswerHeader =
        serde_json::from_slice(header).context("the server's answer cannot be read")?;
    let mut outputs = Vec::new();
    for output in header.outputs {
        let (bytes, rest) = data
            .split_at_checked(output.parameters.binary_data_size)
            .ok_or_else(|| anyhow!("output `{}` is shorter than the server says", output.name))?;
        data = rest;
        let AnswerOutput { name, datatype, shape, .. } = output;
        outputs.push(NamedTensor { name, datatype, shape, data: bytes.to_vec() });
    }
    Ok(outputs)
}
