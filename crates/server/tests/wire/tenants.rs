//! Who may ask, and for how much: keys, models, quotas, gateways, and changes while everything runs.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use quadrant_node::TenantTerms;
use quadrant_policy::RequestRate;
use quadrant_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use quadrant_proto::inference::model_infer_request::InferInputTensor;
use quadrant_proto::inference::{
    ModelInferRequest, ModelReadyRequest, RepositoryIndexRequest, ServerLiveRequest, ServerReadyRequest,
};
use quadrant_server::{Grant, KeyHash, Limits};
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{Answer, Client, Server};

const ONE: &str = r#"{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[1]}]}"#;

fn grant(name: &str, models: &[&str]) -> Grant {
    Grant {
        name: name.to_owned(),
        keys: vec![KeyHash::of(format!("key-of-{name}").as_bytes())],
        models: models.iter().map(|&model| model.to_owned()).collect(),
        ..Grant::default()
    }
}

fn tenants(server: &Server, all: Vec<(Grant, TenantTerms)>) {
    let terms = all.iter().map(|(grant, terms)| (grant.name.clone(), *terms)).collect();
    server.node.handle().set_tenants(&terms);
    server.shared.grant(all.into_iter().map(|(grant, _)| grant).collect());
}

/// One server for all tests here that change nothing.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Server::start("tenants", Limits::default());
        let rate = RequestRate { every: Duration::from_secs(100), burst: 1 };
        tenants(
            &server,
            vec![
                (grant("all", &["*"]), TenantTerms::default()),
                (grant("some", &["identity", "t_*"]), TenantTerms::default()),
                (
                    grant("once", &["*"]),
                    TenantTerms { requests: Some(rate), bytes_in_max: Some(1_000), ..TenantTerms::default() },
                ),
                (Grant { gateway: true, ..grant("front", &["*"]) }, TenantTerms::default()),
            ],
        );
        server
    })
}

fn infer(server: &Server, model: &str, headers: &str) -> Answer {
    let headers = if headers.is_empty() { String::new() } else { format!("\n{headers}") };
    server.http(&format!("POST /v2/models/{model}/infer{headers}"), ONE)
}

#[test]
fn strangers_are_refused_and_told_how_to_be_known() {
    for headers in
        ["", "Authorization: Bearer nope", "x-api-key: nope", "Authorization: Basic a2V5LW9mLWFsbA=="]
    {
        let answer = infer(server(), "identity", headers);
        assert_eq!(answer.status, 401, "{headers}: {}", answer.text());
        assert_eq!(answer.headers["www-authenticate"], "Bearer realm=\"quadrant\"");
        assert!(!answer.headers.contains_key("retry-after"));
    }
    for path in ["/v2", "/v2/models", "/v2/models/identity", "/v2/models/identity/ready"] {
        assert_eq!(server().http(&format!("GET {path}"), "").status, 401, "{path}");
    }
    assert_eq!(server().http("POST /v2/repository/index", "").status, 401);
    let metrics = Client::connect(server().metrics).send("GET /metrics", b"").text();
    assert!(metrics.contains("quadrant_denied_requests_total{why=\"no_key\"}"), "{metrics}");
}

#[test]
fn health_stays_open() {
    for path in ["/v2/health/live", "/v2/health/ready", "/healthz", "/readyz"] {
        assert_eq!(server().http(&format!("GET {path}"), "").status, 200, "{path}");
    }
}

#[test]
fn a_key_is_taken_in_either_header() {
    for headers in
        ["Authorization: Bearer key-of-all", "authorization: bearer key-of-all", "X-API-Key: key-of-all"]
    {
        let answer = infer(server(), "identity", headers);
        assert_eq!(answer.status, 200, "{headers}: {}", answer.text());
    }
}

#[test]
fn a_strangers_body_is_not_waited_for() {
    let mut client = Client::connect(server().http);
    client.write(b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n");
    client.write(b"Content-Length: 1000000\r\n\r\n");
    let answer = client.read().unwrap();
    assert_eq!(answer.status, 401, "without a byte of the body");
    assert_eq!(server().shared.budget().held(), 0, "no buffer was leased for it");
}

#[test]
fn a_tenant_sees_and_uses_its_own_models_only() {
    let key = "x-api-key: key-of-some";
    assert_eq!(infer(server(), "identity", key).status, 200);
    let denied = infer(server(), "addsub", key);
    assert_eq!(
        (denied.status, denied.text().as_str()),
        (403, r#"{"error":"tenant `some` may not use model `addsub`"}"#)
    );
    assert_eq!(infer(server(), "nope", key).status, 403, "it is not told what there is");
    assert_eq!(server().http(&format!("GET /v2/models/addsub/config\n{key}"), "").status, 403);
    let list = server().http(&format!("GET /v2/models\n{key}"), "").text();
    assert!(list.contains("identity") && list.contains("t_FP32") && !list.contains("addsub"), "{list}");
    let index = server().http(&format!("POST /v2/repository/index\n{key}"), "").text();
    assert!(index.contains("identity") && !index.contains("addsub"), "{index}");
}

#[test]
fn a_quota_that_is_used_up_says_until_when() {
    let server = server();
    let key = "x-api-key: key-of-once";
    let large = r#"{"inputs":[{"name":"x","shape":[1,251],"datatype":"FP32","data":["#.to_owned()
        + &"1,".repeat(250)
        + "1]}]}";
    let above = server.http(&format!("POST /v2/models/identity/infer\n{key}"), large);
    assert_eq!(above.status, 413, "{}", above.text());
    assert_eq!(infer(server, "identity", key).status, 200);
    for _ in 0..3 {
        let refused = infer(server, "identity", key);
        assert_eq!(refused.status, 429, "{}", refused.text());
        assert_eq!(refused.headers["x-quadrant-reason"], "tenant_requests");
        let wait: u64 = refused.headers["retry-after"].parse().unwrap();
        assert!((95..=100).contains(&wait), "{wait}");
    }
    let metrics = Client::connect(server.metrics).send("GET /metrics", b"").text();
    for line in [
        "quadrant_tenant_requests_total{outcome=\"completed\",tenant=\"once\"} 1",
        "quadrant_tenant_refusals_total{reason=\"tenant_requests\",tenant=\"once\"} 3",
        "quadrant_tenant_quota{quota=\"requests_per_second\",tenant=\"once\"} 0.01",
        "quadrant_tenant_in_flight{quota=\"concurrency\",tenant=\"once\"} 0",
    ] {
        assert!(metrics.lines().any(|have| have == line), "no `{line}` in {metrics}");
    }
    let shown = Client::connect(server.metrics).send("GET /tenants", b"").text();
    assert!(shown.contains(r#""tenant":"once","weight":1,"request_every_ms":100000"#), "{shown}");
    let slowest = Client::connect(server.metrics).send("GET /requests/slowest?tenant=once", b"").text();
    assert!(slowest.contains(r#""tenant":"once""#) && !slowest.contains(r#""tenant":"all""#), "{slowest}");
}

#[test]
fn only_a_gateway_says_on_whose_account() {
    let account = "x-gateway-inference-fairness-id: some";
    // Whose models are allowed tells whose account it is.
    assert_eq!(infer(server(), "addsub", &format!("x-api-key: key-of-front\n{account}")).status, 403);
    let unknown = "x-gateway-inference-fairness-id: nobody";
    assert_eq!(infer(server(), "identity", &format!("x-api-key: key-of-front\n{unknown}")).status, 200);
    assert_eq!(infer(server(), "identity", &format!("x-api-key: key-of-all\n{account}")).status, 200);
    let not_believed = server().http(&format!("GET /v2/models\nx-api-key: key-of-all\n{account}"), "").text();
    assert!(not_believed.contains("addsub"), "{not_believed}");
}

#[test]
fn tenants_change_while_everything_runs() {
    let server = Server::start("tenants-change", Limits::default());
    assert_eq!(infer(&server, "identity", "").status, 200, "nobody was configured");
    let open = || TenantTerms::default();
    tenants(
        &server,
        vec![(grant("a", &["*"]), open()), (Grant { anonymous: true, ..grant("guest", &["t_*"]) }, open())],
    );
    let mut client = Client::connect(server.http);
    let head = "POST /v2/models/identity/infer\nx-api-key: key-of-a";
    assert_eq!(client.send(head, ONE.as_bytes()).status, 200);
    assert_eq!(infer(&server, "identity", "").status, 403, "a guest is somebody");
    assert_eq!(infer(&server, "t_FP32", "x-api-key: wrong").status, 401, "a wrong key is not a guest's");
    let none = TenantTerms { concurrency_max: Some(1), ..open() };
    tenants(&server, vec![(grant("b", &["*"]), none)]);
    assert_eq!(client.send(head, ONE.as_bytes()).status, 401, "on the same connection");
    assert_eq!(infer(&server, "identity", "x-api-key: key-of-b").status, 200);
    let metrics = Client::connect(server.metrics).send("GET /metrics", b"").text();
    assert!(metrics.contains("tenant=\"b\"") && !metrics.contains("tenant=\"a\""), "{metrics}");
    assert!(metrics.contains("quadrant_invariant_violations_total 0"), "{metrics}");
}

async fn channel() -> Channel {
    Channel::from_shared(format!("http://{}", server().grpc)).unwrap().connect().await.unwrap()
}

fn request(model: &str, key: &str) -> Request<ModelInferRequest> {
    let input = InferInputTensor {
        name: "x".into(),
        datatype: "FP32".into(),
        shape: vec![1, 1],
        ..InferInputTensor::default()
    };
    let message = ModelInferRequest {
        model_name: model.into(),
        inputs: vec![input],
        raw_input_contents: vec![Bytes::from_static(&[0; 4])],
        ..ModelInferRequest::default()
    };
    with_key(message, key)
}

fn with_key<T>(message: T, key: &str) -> Request<T> {
    let mut request = Request::new(message);
    if !key.is_empty() {
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    }
    request
}

#[test]
fn grpc_asks_the_same() {
    server().runtime.block_on(async {
        let mut client = GrpcInferenceServiceClient::new(channel().await);
        for (model, key, code) in [
            ("identity", "", Code::Unauthenticated),
            ("identity", "nope", Code::Unauthenticated),
            ("identity", "key-of-some", Code::Ok),
            ("addsub", "key-of-some", Code::PermissionDenied),
            ("nope", "key-of-some", Code::PermissionDenied),
            ("nope", "key-of-all", Code::NotFound),
        ] {
            let answer = client.model_infer(request(model, key)).await;
            assert_eq!(answer.map_or_else(|status| status.code(), |_| Code::Ok), code, "{model} {key}");
        }
        let stranger = client.model_infer(request("identity", "")).await.unwrap_err();
        assert!(stranger.metadata().contains_key("www-authenticate"));
        assert!(client.server_live(ServerLiveRequest {}).await.unwrap().get_ref().live);
        assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().get_ref().ready);
        let ready = ModelReadyRequest { name: "identity".into(), version: String::new() };
        assert_eq!(client.model_ready(ready.clone()).await.unwrap_err().code(), Code::Unauthenticated);
        assert!(client.model_ready(with_key(ready, "key-of-some")).await.unwrap().get_ref().ready);
        let index = client.repository_index(with_key(RepositoryIndexRequest::default(), "key-of-some")).await;
        let names: Vec<_> = index.unwrap().into_inner().models.into_iter().map(|model| model.name).collect();
        assert!(names.contains(&"identity".to_owned()) && !names.contains(&"addsub".to_owned()), "{names:?}");
        let mut health = HealthClient::new(channel().await);
        let check = |service: &str| HealthCheckRequest { service: service.into() };
        assert_eq!(health.check(check("")).await.unwrap().get_ref().status, 1);
        assert_eq!(health.check(check("identity")).await.unwrap_err().code(), Code::Unauthenticated);
    });
}

#[test]
fn a_stream_asks_again_for_every_request() {
    let server = Server::start("tenants-stream", Limits::default());
    tenants(&server, vec![(grant("some", &["*"]), TenantTerms::default())]);
    server.runtime.block_on(async {
        let channel =
            Channel::from_shared(format!("http://{}", server.grpc)).unwrap().connect().await.unwrap();
        let mut client = GrpcInferenceServiceClient::new(channel);
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let requests = futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|message: ModelInferRequest| (message, receiver))
        });
        let message = || request("identity", "").into_inner();
        sender.send(message()).await.unwrap();
        let stream = client.model_stream_infer(with_key(requests, "key-of-some")).await;
        let mut answers = stream.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().error_message, "");
        // Its key is taken away while the stream is open.
        tenants(&server, vec![(grant("all", &["*"]), TenantTerms::default())]);
        sender.send(message()).await.unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap().error_message, "the key is not known");
    });
}
