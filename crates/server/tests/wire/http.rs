//! The REST protocol, answer by answer. Texts marked "recorded" are a real Triton's.

use crate::harness::{Client, server};

const ONE: &str = r#"{"id":"r1","inputs":[{"name":"INPUT0","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]},{"name":"INPUT1","shape":[1,4],"datatype":"FP32","data":[[1,1,1,1]]}]}"#;

fn check(head: &str, body: &str, status: u16, expected: &str) {
    let answer = server().http(head, body);
    assert_eq!((answer.status, answer.text()), (status, expected.to_owned()), "{head} {body}");
}

#[test]
fn health_answers_under_every_name() {
    let live = ["/v2/health/live", "/live", "/livez", "/health", "/healthz", "/ping", "/v1/health"];
    for path in live.iter().chain(&["/v2/health/ready", "/ready", "/readyz", "/v2/models/addsub/ready"]) {
        let answer = server().http(&format!("GET {path}"), "");
        assert_eq!((answer.status, &*answer.body), (200, &b""[..]), "{path}");
        assert_eq!(answer.headers["content-type"], "text/plain", "{path}");
    }
    // Recorded.
    check("GET /v2/models/nope/ready", "", 400, r#"{"error":"Model version not ready"}"#);
    check("GET /v2/models/addsub/versions/9/ready", "", 400, r#"{"error":"Model version not ready"}"#);
}

#[test]
fn metadata_has_tritons_form() {
    let version = env!("CARGO_PKG_VERSION");
    check(
        "GET /v2",
        "",
        200,
        &format!(
            r#"{{"name":"quadrant","version":"{version}","extensions":["classification","model_repository","model_repository(unload_dependents)","schedule_policy","model_configuration","binary_tensor_data"]}}"#
        ),
    );
    for path in ["/v2/models/addsub", "/v2/models/addsub/versions/1"] {
        // Recorded but for the platform.
        check(
            &format!("GET {path}"),
            "",
            200,
            r#"{"name":"addsub","versions":["1"],"platform":"emulated","inputs":[{"name":"INPUT0","datatype":"FP32","shape":[-1,4]},{"name":"INPUT1","datatype":"FP32","shape":[-1,4]}],"outputs":[{"name":"OUTPUT0","datatype":"FP32","shape":[-1,4]},{"name":"OUTPUT1","datatype":"FP32","shape":[-1,4]}]}"#,
        );
    }
    // Recorded.
    let unknown = r#"{"error":"Request for unknown model: 'nope' is not found"}"#;
    check("GET /v2/models/nope", "", 404, unknown);
    check("GET /v2/models/nope/config", "", 404, unknown);
    let config = server().http("GET /v2/models/addsub/config", "").text();
    assert!(
        config
            .contains(r#""max_batch_size":8,"input":[{"name":"INPUT0","data_type":"TYPE_FP32","dims":[4]}"#)
    );
    assert!(
        server().http("GET /v2/models", "").text().starts_with(r#"{"models":["addsub","broken","identity","#)
    );
}

#[test]
fn the_index_lists_what_is_there_and_what_is_not() {
    let all = server().http("POST /v2/repository/index", "").text();
    assert!(
        all.starts_with(r#"[{"name":"addsub","version":"1","state":"READY"},{"name":"broken","#),
        "{all}"
    );
    assert!(all.contains(r#""state":"UNAVAILABLE","reason":""#), "{all}");
    let ready = server().http("POST /v2/repository/index", r#"{"ready":true}"#).text();
    assert!(ready.starts_with(r#"[{"name":"addsub""#) && !ready.contains("broken"), "{ready}");
    // Recorded.
    check("GET /v2/repository/index", "", 405, r#"{"error":"Method Not Allowed"}"#);
    check("GET /v2/models/addsub/infer", "", 405, r#"{"error":"Method Not Allowed"}"#);
    check("GET /nope", "", 404, r#"{"error":"Not Found"}"#);
    check("GET /metrics", "", 404, r#"{"error":"Not Found"}"#);
}

#[test]
fn metrics_have_a_port_of_their_own() {
    let answer = Client::connect(server().metrics).send("GET /metrics", b"");
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("nv_inference_request_success"), "{}", answer.text());
    assert_eq!(Client::connect(server().metrics).send("GET /v2", b"").status, 404);
}

#[test]
fn steps_and_models_are_told_on_the_port_of_the_metrics() {
    let get = |path: &str| Client::connect(server().metrics).send(&format!("GET {path}"), b"");
    assert_eq!(server().infer("addsub", ONE).status, 200);
    let steps = get("/steps").text();
    for field in
        ["\"step\":", "\"model\":\"addsub\"", "\"class\":\"urgent\"", "\"predicted_ms\":", "\"real_ms\":"]
    {
        assert!(steps.contains(field), "{field} in {steps}");
    }
    assert_eq!(get("/steps?after=soon").status, 400);
    assert_eq!(get("/steps?after=0").status, 200);
    let models = get("/models").text();
    assert!(models.contains("\"model\":\"slow\"") && models.contains("\"widths\":[1]"), "{models}");
    assert!(!models.contains("broken"), "{models}");
    assert_eq!(server().http("GET /steps", "").status, 404, "not on the clients' port");
}

#[test]
fn json_tensors_come_back_as_json() {
    // Recorded, but this model copies its inputs.
    check(
        "POST /v2/models/addsub/infer",
        ONE,
        200,
        r#"{"id":"r1","model_name":"addsub","model_version":"1","outputs":[{"name":"OUTPUT0","datatype":"FP32","shape":[1,4],"data":[1.0,2.0,3.0,4.0]},{"name":"OUTPUT1","datatype":"FP32","shape":[1,4],"data":[1.0,1.0,1.0,1.0]}]}"#,
    );
    let classified = ONE.replace(
        "\"id\":\"r1\",",
        "\"outputs\":[{\"name\":\"OUTPUT1\"},{\"name\":\"OUTPUT0\",\"parameters\":{\"classification\":2}}],",
    );
    check(
        "POST /v2/models/addsub/versions/1/infer",
        &classified,
        200,
        r#"{"model_name":"addsub","model_version":"1","outputs":[{"name":"OUTPUT1","datatype":"FP32","shape":[1,4],"data":[1.0,1.0,1.0,1.0]},{"name":"OUTPUT0","datatype":"BYTES","shape":[1,2],"data":["4.000000:3","3.000000:2"]}]}"#,
    );
}

#[test]
fn members_may_come_in_any_order() {
    let reordered = r#" { "inputs" : [ { "data" : [ [ 5 , 6 ] ] , "shape" : [ 1 , 2 ] , "parameters" : { "x" : [ { } ] } ,
        "datatype" : "FP32" , "name" : "x" , "more" : null } ] , "unknown" : { "a" : [ 1 , "\u00e9" ] } , "id" : "\"q\"" } "#;
    check(
        "POST /v2/models/identity/infer",
        reordered,
        200,
        r#"{"id":"\"q\"","model_name":"identity","model_version":"1","outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[5.0,6.0]}]}"#,
    );
}

/// An input as JSON.
fn input(name: &str, datatype: &str, shape: &str, data: &str) -> String {
    format!(r#"{{"name":"{name}","shape":{shape},"datatype":"{datatype}","data":{data}}}"#)
}

/// A request for `addsub` whose first input is this, and whose second one is right.
fn with(first: &str) -> String {
    let second = input("INPUT1", "FP32", "[1,4]", "[1,1,1,1]");
    format!(r#"{{"inputs":[{first},{second}]}}"#)
}

fn check_mistakes<const COUNT: usize>(cases: [(String, &str); COUNT]) {
    for (body, expected) in cases {
        let answer = server().infer("addsub", &body);
        assert_eq!((answer.status, answer.text()), (400, format!("{{\"error\":\"{expected}\"}}")), "{body}");
    }
}

/// With 400 where Triton says 500.
#[test]
fn mistakes_have_the_recorded_words() {
    check_mistakes([
        (
            format!(r#"{{"inputs":[{}]}}"#, input("INPUT0", "FP32", "[1,4]", "[1,2,3,4]")),
            "[request id: <id_unknown>] expected 2 inputs but got 1 inputs for model 'addsub'. Got input(s) ['INPUT0'], but missing required input(s) ['INPUT1']. Please provide all required input(s).",
        ),
        (
            with(&input("INPUT0", "FP32", "[1,5]", "[1,2,3,4,5]")),
            "[request id: <id_unknown>] unexpected shape for input 'INPUT0' for model 'addsub'. Expected [-1,4], got [1,5]. NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size.",
        ),
        (
            with(&input("INPUT0", "INT32", "[1,4]", "[1,2,3,4]")),
            "[request id: <id_unknown>] inference input 'INPUT0' data-type is 'INT32', but model 'addsub' expects 'FP32'",
        ),
        (
            with(&input("INPUT0", "FP32", "[1,4]", "[1,2,3]")),
            "Unable to parse 'data': Shape does not match true shape of 'data' field",
        ),
        (
            with(&input("INPUT0", "FP32", "[16,4]", "[]")),
            "Unable to parse 'data': Shape does not match true shape of 'data' field",
        ),
        (
            "{bad".to_owned(),
            "failed to parse the request JSON buffer: Missing a name for object member. at 1",
        ),
        (
            ONE.replace("\"id\":\"r1\"", "\"outputs\":[{\"name\":\"NOPE\"}]"),
            "unexpected inference output 'NOPE' for model 'addsub'",
        ),
    ]);
    for (model, error) in
        [("nope", "'nope' is not found"), ("addsub/versions/7", "'addsub' version 7 is not found")]
    {
        let error = format!("{{\"error\":\"Request for unknown model: {error}\"}}");
        check(&format!("POST /v2/models/{model}/infer"), ONE, 404, &error);
    }
    assert!(
        server()
            .infer("broken", ONE)
            .text()
            .starts_with("{\"error\":\"Request for unknown model: 'broken' has no")
    );
}

#[test]
fn mistakes_in_inputs_have_tritons_words() {
    let rows = |count: usize| {
        let list = ones(4 * count);
        ONE.replace("[1,4]", &format!("[{count},4]"))
            .replace("[1,2,3,4]", &list)
            .replace("[[1,1,1,1]]", &list)
    };
    check_mistakes([
        (
            with(&input("NOPE", "FP32", "[1,4]", "[1,2,3,4]")),
            "unexpected inference input 'NOPE' for model 'addsub'",
        ),
        (with(&input("INPUT1", "FP32", "[1,4]", "[1,2,3,4]")), "input 'INPUT1' already exists in request"),
        (
            with(&input("INPUT0", "FP32", "[2,4]", "[1,2,3,4,5,6,7,8]"))
                .replace("{\"inputs", "{\"id\":\"q\",\"inputs"),
            "[request id: q] input 'INPUT1' batch size does not match other inputs for 'addsub'",
        ),
        (
            with(&input("INPUT0", "FP32", "[]", "[1]")),
            "[request id: <id_unknown>] input 'INPUT0' has no shape but model requires batch dimension for 'addsub'",
        ),
        (rows(0), "[request id: r1] inference request batch-size must be >= 1 for 'addsub'"),
        (rows(9), "[request id: r1] inference request batch-size must be <= 8 for 'addsub'"),
    ]);
}

#[test]
fn mistakes_in_members_have_tritons_words() {
    check_mistakes([
        (String::new(), "failed to parse the request JSON buffer: The document is empty. at 0"),
        ("{}".to_owned(), "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"),
        ("[]".to_owned(), "Unable to parse request: attempt to access JSON non-object as object"),
        (
            ONE.replace("\"shape\":[1,4]", "\"shape\":[1,-4]"),
            "Unable to parse 'shape': attempt to access JSON non-unsigned-integer as unsigned-integer",
        ),
        (
            ONE.replace("\"id\":\"r1\"", "\"parameters\":{\"triton_x\":1}"),
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.",
        ),
        (
            ONE.replace("\"id\":\"r1\"", "\"parameters\":{\"timeout\":-1}"),
            "Unable to parse 'timeout': attempt to access JSON non-unsigned-integer as unsigned-integer",
        ),
    ]);
}

fn ones(count: usize) -> String {
    format!("[{}]", vec!["1"; count].join(","))
}

#[test]
fn symbols_must_agree_between_inputs() {
    let body = ONE.replacen("[1,4]", "[2,2]", 1);
    let answer = server().infer("pair", &body);
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("input 'INPUT1'"), "{}", answer.text());
}

#[test]
fn priorities_out_of_range_are_accepted() {
    // Recorded.
    assert_eq!(
        server().infer("addsub", &ONE.replace("\"id\":\"r1\"", "\"parameters\":{\"priority\":9}")).status,
        200
    );
    let huge = "\"parameters\":{\"priority\":18446744073709551615,\"sequence_id\":\"s\",\"other\":[1]}";
    assert_eq!(server().infer("addsub", &ONE.replace("\"id\":\"r1\"", huge)).status, 200);
}

#[test]
fn a_connection_serves_many_requests() {
    let mut client = Client::connect(server().http);
    for body in [ONE, "{bad", ONE, ""] {
        let answer = client.send("POST /v2/models/addsub/infer\nx-request-id: abc", body.as_bytes());
        assert_eq!(answer.headers["x-request-id"], "abc");
        assert_eq!(answer.status, if body == ONE { 200 } else { 400 });
    }
    assert_eq!(client.send("GET /v2/health/live", b"").status, 200);
}

#[test]
fn timing_is_told_when_asked_for() {
    let answer = server().http("POST /v2/models/addsub/infer\nx-quadrant-timing: 1", ONE);
    let timing = &answer.headers["x-quadrant-timing"];
    for stage in ["receive", "queue", "gather", "compute", "scatter", "respond", "total", "predicted"] {
        assert!(timing.contains(&format!("{stage};dur=")), "{timing}");
    }
    assert!(timing.contains(", batch;desc=\"1\", width;desc=\"1\", class;desc=\"urgent\""), "{timing}");
    assert!(!server().infer("addsub", ONE).headers.contains_key("x-quadrant-timing"));
}

#[test]
fn time_that_runs_out_is_504_and_a_bad_time_400() {
    let body = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}"#;
    let late = server().http("POST /v2/models/slow/infer\nx-request-timeout-ms: 20", body);
    assert_eq!(late.status, 504, "{}", late.text());
    let late =
        server().infer("slow", &body.replace("{\"inputs", "{\"parameters\":{\"timeout\":20000},\"inputs"));
    assert_eq!(late.status, 504, "{}", late.text());
    let unusable = server().http("POST /v2/models/slow/infer\nx-request-timeout-ms: soon", body);
    assert_eq!(unusable.status, 400, "{}", unusable.text());
}
