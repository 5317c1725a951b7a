//! The bare echo servers.

use std::net::SocketAddr;
use std::pin::Pin;

use anyhow::Result;
use axum::Router;
use bytes::Bytes;
use futures_util::Stream;
use quadrant_proto::inference as proto;
use quadrant_proto::inference::grpc_inference_service_server::{
    GrpcInferenceService, GrpcInferenceServiceServer,
};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, Streaming};

use crate::say;

/// As large as the server's own limit.
const BODY_BYTES_MAX: usize = 64 << 20;

/// Serves the axum echo until the process is ended.
pub(crate) async fn http(address: SocketAddr) -> Result<()> {
    async fn echo(body: Bytes) -> Bytes {
        body
    }
    let app = Router::new()
        .route("/v2/models/{model}/infer", axum::routing::post(echo))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_BYTES_MAX));
    let listener = TcpListener::bind(address).await?;
    say(&listener.local_addr()?.to_string());
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        // A connection that is gone says so when it is read.
        stream.set_nodelay(true).unwrap_or_default();
    });
    Ok(axum::serve(listener, app).await?)
}

/// Serves the tonic echo until the process is ended.
pub(crate) async fn grpc(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    say(&listener.local_addr()?.to_string());
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = GrpcInferenceServiceServer::new(Echo).max_decoding_message_size(BODY_BYTES_MAX);
    Ok(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await?)
}

struct Echo;

type Answers = Pin<Box<dyn Stream<Item = Result<proto::ModelStreamInferResponse, Status>> + Send>>;

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this server only echoes"))
}

#[tonic::async_trait]
impl GrpcInferenceService for Echo {
    async fn model_infer(
        &self,
        request: Request<proto::ModelInferRequest>,
    ) -> Result<Response<proto::ModelInferResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(proto::ModelInferResponse {
            model_name: request.model_name,
            raw_output_contents: request.raw_input_contents,
            ..proto::ModelInferResponse::default()
        }))
    }

    async fn server_live(
        &self,
        _: Request<proto::ServerLiveRequest>,
    ) -> Result<Response<proto::ServerLiveResponse>, Status> {
        Ok(Response::new(proto::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<proto::ServerReadyRequest>,
    ) -> Result<Response<proto::ServerReadyResponse>, Status> {
        Ok(Response::new(proto::ServerReadyResponse { ready: true }))
    }

    async fn model_ready(
        &self,
        _: Request<proto::ModelReadyRequest>,
    ) -> Result<Response<proto::ModelReadyResponse>, Status> {
        Ok(Response::new(proto::ModelReadyResponse { ready: true }))
    }

    async fn server_metadata(
        &self,
        _: Request<proto::ServerMetadataRequest>,
    ) -> Result<Response<proto::ServerMetadataResponse>, Status> {
        not_here()
    }

    async fn model_metadata(
        &self,
        _: Request<proto::ModelMetadataRequest>,
    ) -> Result<Response<proto::ModelMetadataResponse>, Status> {
        not_here()
    }

    async fn model_config(
        &self,
        _: Request<proto::ModelConfigRequest>,
    ) -> Result<Response<proto::ModelConfigResponse>, Status> {
        not_here()
    }

    async fn repository_index(
        &self,
        _: Request<proto::RepositoryIndexRequest>,
    ) -> Result<Response<proto::RepositoryIndexResponse>, Status> {
        not_here()
    }

    async fn repository_model_load(
        &self,
        _: Request<proto::RepositoryModelLoadRequest>,
    ) -> Result<Response<proto::RepositoryModelLoadResponse>, Status> {
        not_here()
    }

    async fn repository_model_unload(
        &self,
        _: Request<proto::RepositoryModelUnloadRequest>,
    ) -> Result<Response<proto::RepositoryModelUnloadResponse>, Status> {
        not_here()
    }

    type ModelStreamInferStream = Answers;

    async fn model_stream_infer(
        &self,
        _: Request<Streaming<proto::ModelInferRequest>>,
    ) -> Result<Response<Answers>, Status> {
        not_here()
    }
}
