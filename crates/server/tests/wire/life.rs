//! The end of a server, and clients that leave.

use std::time::Duration;

use quadrant_server::{Drained, Limits};

use crate::harness::{Client, Server};

const SLOW: &str = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}"#;

fn post(model: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST /v2/models/{model}/infer HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Waits until the node has accepted this many requests for the slow model.
fn wait_for_pending(server: &Server, wanted: u32) {
    server.runtime.block_on(async {
        let line = format!("nv_inference_pending_request_count{{model=\"slow\",version=\"1\"}} {wanted}");
        let pending = async {
            while !server.node.handle().metrics().contains(&line) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), pending).await;
        assert!(waited.is_ok(), "no {line} in {}", server.node.handle().metrics());
    });
}

#[test]
fn what_was_accepted_is_answered_before_the_end() {
    let mut server = Server::start("drain", Limits::default());
    let mut busy: Vec<Client> = (0..3).map(|_| Client::connect(server.http)).collect();
    let mut idle = Client::connect(server.http);
    assert_eq!(idle.send("GET /v2/health/live", b"").status, 200);
    for client in &mut busy {
        client.write(&post("slow", SLOW));
    }
    // One runs and two wait.
    wait_for_pending(&server, 2);
    assert!(server.stop().iter().all(|port| *port == Drained { connections_cut: 0 }));
    for client in &mut busy {
        let answer = client.read().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(idle.read(), None);
    assert!(std::net::TcpStream::connect(server.http).is_err());
}

#[test]
fn the_end_comes_in_time_even_so() {
    let limits = Limits { drain_timeout: Duration::from_millis(50), ..Limits::default() };
    let mut server = Server::start("cut", limits);
    let mut client = Client::connect(server.http);
    client.write(&post("slow", SLOW));
    client.write(&post("slow", SLOW));
    let mut second = Client::connect(server.http);
    second.write(&post("slow", SLOW));
    wait_for_pending(&server, 1);
    let cut: usize = server.stop().iter().map(|port| port.connections_cut).sum();
    assert_eq!(cut, 2);
}

#[test]
fn a_client_that_leaves_is_not_computed_for() {
    let server = Server::start("leave", Limits::default());
    let mut first = Client::connect(server.http);
    first.write(&post("slow", SLOW));
    let leaving: Vec<Client> = (0..5)
        .map(|_| {
            let mut client = Client::connect(server.http);
            client.write(&post("slow", SLOW));
            client
        })
        .collect();
    wait_for_pending(&server, 5);
    drop(leaving);
    wait_for_pending(&server, 0);
    assert_eq!(first.read().unwrap().status, 200);
    server.wait_until_budget_is_free();
}
