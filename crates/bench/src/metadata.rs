//! Asks the server what a model takes, where the plan does not say.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use quadrant_proto::inference as proto;
use quadrant_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use tonic::transport::Endpoint;

use crate::clock::Clock;
use crate::connection::{open_http, unreachable};
use crate::payload::{Fill, TensorSpec};
use crate::{BenchError, Plan, Protocol};

/// What stands for a free dimension other than the first.
const FREE_DIM: usize = 16;

/// Fills in the inputs of models that were named without any: the first free dimension is 1, the others
/// 16; integers are 0 or 1 and floats from 0 to 1.
pub(crate) async fn complete(plan: &mut Plan) -> Result<(), BenchError> {
    for index in 0..plan.mix.len() {
        if plan.mix[index].inputs.is_empty() {
            let name = plan.mix[index].name.clone();
            let inputs = match plan.protocol {
                Protocol::Http => over_http(plan, &name).await,
                Protocol::Grpc => over_grpc(&plan.address, &name).await,
            };
            let fail = |said: String| BenchError::Server { address: plan.address.clone(), said };
            let inputs = inputs.map_err(fail)?;
            let specs = inputs.into_iter().map(|(name, datatype, dims)| {
                TensorSpec::new(&name, &datatype, concrete(&dims), Fill::Random)
            });
            let specs = specs.collect::<Result<Vec<_>, _>>().map_err(BenchError::Plan)?;
            plan.mix[index].inputs = specs;
        }
    }
    Ok(())
}

type Inputs = Vec<(String, String, Vec<i64>)>;

fn concrete(dims: &[i64]) -> Vec<usize> {
    let size =
        |(index, dim): (usize, &i64)| usize::try_from(*dim).unwrap_or(if index == 0 { 1 } else { FREE_DIM });
    dims.iter().enumerate().map(size).collect()
}

async fn over_http(plan: &Plan, model: &str) -> Result<Inputs, String> {
    let address = &plan.address;
    let (mut sender, _) = open_http(address, Clock::new()).await?;
    let request = http::Request::get(format!("/v2/models/{model}")).header("host", address);
    let request = match &plan.api_key {
        Some(key) => request.header("authorization", format!("Bearer {key}")),
        None => request,
    };
    let request = request.body(Full::<Bytes>::default()).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(unreachable)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(unreachable)?.to_bytes();
    if !status.is_success() {
        return Err(format!("does not serve `{model}`: {}", String::from_utf8_lossy(&body)));
    }
    let body: serde_json::Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    let input = |input: &serde_json::Value| {
        let text = |key: &str| input[key].as_str().map(str::to_owned);
        let dims = input["shape"].as_array()?.iter().map(serde_json::Value::as_i64).collect::<Option<_>>()?;
        Some((text("name")?, text("datatype")?, dims))
    };
    let inputs = body["inputs"].as_array().map(|inputs| inputs.iter().map(input).collect::<Option<Inputs>>());
    inputs.flatten().ok_or_else(|| "sent metadata that cannot be read".to_owned())
}

async fn over_grpc(address: &str, model: &str) -> Result<Inputs, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await;
    let channel = channel.map_err(unreachable)?;
    let mut client = GrpcInferenceServiceClient::new(channel);
    let request = proto::ModelMetadataRequest { name: model.to_owned(), version: String::new() };
    let answer = client.model_metadata(request).await;
    let answer = answer.map_err(|status| format!("does not serve `{model}`: {}", status.message()))?;
    let inputs = answer.into_inner().inputs.into_iter();
    Ok(inputs.map(|input| (input.name, input.datatype, input.shape)).collect())
}
