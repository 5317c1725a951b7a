//! Clients that send nonsense, too much, too slowly, or nothing.

use std::io::Read as _;
use std::time::Duration;

use proptest::prelude::*;
use quadrant_server::Limits;

use crate::harness::{Client, Server, server};

const GOOD: &str = r#"{"id":"r1","parameters":{"timeout":0,"priority":1},"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[[1.5,-2,3e1,4]]}],"outputs":[{"name":"y","parameters":{"classification":2,"binary_data":false}}]}"#;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is changed in a good request, the answer is 200 or the client's mistake, and the connection
    /// serves the next one.
    #[test]
    fn mutated_requests_are_answered(
        cuts in prop::collection::vec(
            (
                any::<prop::sample::Index>(),
                any::<prop::sample::Index>(),
                prop::collection::vec(any::<u8>(), 0..6),
            ),
            1..4,
        ),
        json_length in prop::option::of(0..300_usize),
    ) {
        let mut body = GOOD.as_bytes().to_vec();
        for (from, to, replacement) in cuts {
            let (from, to) = (from.index(body.len() + 1), to.index(body.len() + 1));
            body.splice(from.min(to)..from.max(to).min(from.min(to) + 12), replacement);
        }
        let mut head = "POST /v2/models/identity/infer".to_owned();
        if let Some(length) = json_length {
            head = format!("{head}\nInference-Header-Content-Length: {length}");
        }
        let mut client = Client::connect(server().http);
        let answer = client.send(&head, &body);
        prop_assert!(matches!(answer.status, 200 | 400), "{}: {}", answer.status, answer.text());
        if answer.status == 400 {
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&answer.body).is_ok(), "{}", answer.text());
        }
        prop_assert_eq!(client.send("POST /v2/models/identity/infer", GOOD.as_bytes()).status, 200);
    }

    /// The same for messages of gRPC.
    #[test]
    fn mutated_messages_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        let body = [&[0][..], &length, &bytes].concat();
        let path = "/inference.GRPCInferenceService/ModelInfer";
        let (status, message) = server().runtime.block_on(crate::grpc::bare(path, &[], body));
        prop_assert!(matches!(&*status, "3" | "5"), "{status}: {message}");
    }
}

fn small(name: &str) -> Server {
    let limits = Limits {
        body_bytes_max: 64 << 10,
        in_flight_bytes_max: 128 << 10,
        response_bytes_max: 8 << 10,
        header_read_timeout: Duration::from_millis(300),
        body_read_timeout: Duration::from_millis(300),
        connections_max: 4,
        ..Limits::default()
    };
    Server::start(name, limits)
}

#[test]
fn what_is_too_large_is_refused() {
    let server = small("large");
    let infer = "POST /v2/models/identity/infer";
    // Announced, sent, sent in chunks, inflated.
    assert_eq!(server.http(infer, vec![b' '; (64 << 10) + 1]).status, 413);
    let mut client = Client::connect(server.http);
    client.write(
        format!("{infer} HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n")
            .as_bytes(),
    );
    let answer = client.read().unwrap();
    assert_eq!((answer.status, answer.headers["connection"].as_str()), (413, "close"));
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
    let chunks = [chunk.repeat(2), b"0\r\n\r\n".to_vec()].concat();
    assert_eq!(server.http(&format!("{infer}\nTransfer-Encoding: chunked"), chunks).status, 413);
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut bomb, &vec![b' '; 10 << 20]).unwrap();
    let answer = server.http(&format!("{infer}\nContent-Encoding: gzip"), bomb.finish().unwrap());
    assert_eq!(answer.status, 413, "{}", answer.text());
    // The answer, as bytes and as text.
    let ones = vec!["1"; 3_000].join(",");
    let body = format!(r#"{{"inputs":[{{"name":"x","shape":[1,3000],"datatype":"FP32","data":[{ones}]}}]}}"#);
    assert_eq!(server.http(infer, body).status, 413);
    server.wait_until_budget_is_free();
}

#[test]
fn nesting_is_bounded() {
    for depth in [90, 110, 30_000] {
        let body = format!(r#"{{"x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        let answer = server().infer("identity", &body);
        assert_eq!(answer.status, 400);
        assert_eq!(answer.text().contains("Nesting is deeper than 100."), depth > 100, "{}", answer.text());
    }
}

#[test]
fn shapes_that_overflow_are_refused() {
    for shape in ["[18446744073709551615,2]", "[4294967296,4294967296,4294967296]", "[9223372036854775808]"] {
        let body = format!(r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"FP32","data":[1]}}]}}"#);
        assert_eq!(server().infer("identity", &body).status, 400, "{shape}");
    }
    let many = vec!["1"; 100].join(",");
    let body = format!(r#"{{"inputs":[{{"name":"x","shape":[{many}],"datatype":"FP32","data":[1]}}]}}"#);
    assert!(server().infer("identity", &body).text().contains("more than 64 dimensions"));
    let input = r#"{"name":"","shape":[],"datatype":"BOOL","data":[true]}"#;
    let body = format!(r#"{{"inputs":[{}]}}"#, vec![input; 2_000].join(","));
    assert!(server().infer("identity", &body).text().contains("at most 1024 inputs"));
}

#[test]
fn slow_clients_are_let_go() {
    let server = small("slow");
    // A head that never ends, nothing at all, and a body that never ends.
    let mut head = Client::connect(server.http);
    head.write(b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: t\r\n");
    let mut silent = Client::connect(server.http);
    let mut preface = Client::connect(server.http);
    preface.write(b"PRI * HTTP/2.0\r\n");
    let mut body = Client::connect(server.http);
    body.write(b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{");
    let answer = body.read().unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("did not arrive within"), "{}", answer.text());
    for client in [&mut head, &mut silent, &mut preface, &mut body] {
        let mut rest = Vec::new();
        // Closed by the server: read to the end, however it was closed.
        drop(client.stream.read_to_end(&mut rest));
    }
    // All four places are free again.
    for _ in 0..8 {
        assert_eq!(server.http("GET /v2/health/live", "").status, 200);
    }
    let mut grpc = Client::connect(server.grpc);
    let mut rest = Vec::new();
    drop(grpc.stream.read_to_end(&mut rest));
    server.wait_until_budget_is_free();
}

#[test]
fn connections_beyond_the_limit_wait() {
    let server = small("connections");
    let held: Vec<Client> = (0..4)
        .map(|_| {
            let mut client = Client::connect(server.http);
            assert_eq!(client.send("GET /v2/health/live", b"").status, 200);
            client
        })
        .collect();
    let mut waiting = Client::connect(server.http);
    waiting.write(b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n");
    drop(held);
    assert_eq!(waiting.read().unwrap().status, 200);
}

#[test]
fn a_head_out_of_bounds_is_refused() {
    let mut head = String::from("GET /v2/health/live");
    for number in 0..200 {
        head.push_str(&format!("\nx-{number}: 1"));
    }
    assert_eq!(server().http(&head, "").status, 431);
    let long = format!("GET /v2/health/live\nx-long: {}", "a".repeat(128 << 10));
    assert_eq!(server().http(&long, "").status, 431);
}

#[test]
fn a_full_budget_is_an_answer() {
    let server = small("budget");
    // One body of the two that fit is held open.
    let mut holders: Vec<Client> = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(server.http);
        client.write(b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: t\r\nContent-Length: 65536\r\n\r\n{");
        holders.push(client);
    }
    let budget = server.shared.budget();
    server.runtime.block_on(async {
        while budget.held() < 128 << 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let refused = server.http("POST /v2/models/identity/infer", GOOD);
    assert_eq!((refused.status, refused.headers["retry-after"].as_str()), (429, "1"), "{}", refused.text());
    drop(holders);
}
