//! Tensors as bytes, raw requests, and codings.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::{GzEncoder, ZlibEncoder};
use quadrant_types::DataType;

use crate::harness::{Answer, server};

/// A request of JSON and tensors.
fn binary(model: &str, json: &str, tensors: &[u8]) -> Answer {
    let head = format!("POST /v2/models/{model}/infer\nInference-Header-Content-Length: {}", json.len());
    server().http(&head, [json.as_bytes(), tensors].concat())
}

/// The JSON and the tensors of an answer.
fn split(answer: &Answer) -> (String, Vec<u8>) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.headers["content-type"], "application/octet-stream");
    let length: usize = answer.headers["inference-header-content-length"].parse().unwrap();
    (String::from_utf8(answer.body[..length].to_vec()).unwrap(), answer.body[length..].to_vec())
}

#[test]
fn tensors_of_bytes_come_back_as_bytes() {
    let json = r#"{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}"#;
    let tensor: Vec<u8> = (0..16).collect();
    let (head, body) = split(&binary("identity", json, &tensor));
    let expected = r#"{"model_name":"identity","model_version":"1","outputs":[{"name":"y","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":16}}]}"#;
    assert_eq!((head.as_str(), body), (expected, tensor));
}

#[test]
fn every_type_travels_both_ways() {
    let cases = [
        (DataType::Bool, "[true,false]", "[true,false]"),
        (DataType::Uint8, "[0,255]", "[0,255]"),
        (DataType::Uint16, "[0,65535]", "[0,65535]"),
        (DataType::Uint32, "[0,4294967295]", "[0,4294967295]"),
        (DataType::Uint64, "[0,18446744073709551615]", "[0,18446744073709551615]"),
        (DataType::Int8, "[-128,127]", "[-128,127]"),
        (DataType::Int16, "[-32768,32767]", "[-32768,32767]"),
        (DataType::Int32, "[-2147483648,2147483647]", "[-2147483648,2147483647]"),
        (
            DataType::Int64,
            "[-9223372036854775808,9223372036854775807]",
            "[-9223372036854775808,9223372036854775807]",
        ),
        (DataType::Fp32, "[0.1,-2]", "[0.1,-2.0]"),
        (DataType::Fp64, "[0.1,-2]", "[0.1,-2.0]"),
        (DataType::Bytes, r#"["é\n","\u0000"]"#, r#"["é\n","\u0000"]"#),
    ];
    for (datatype, data, expected) in cases {
        let body =
            format!(r#"{{"inputs":[{{"name":"x","shape":[2],"datatype":"{datatype}","data":{data}}}]}}"#);
        let answer = server().infer(&format!("t_{datatype}"), &body);
        assert!(answer.text().ends_with(&format!("\"data\":{expected}}}]}}")), "{}", answer.text());
    }
    for datatype in DataType::ALL {
        let tensor = match datatype.size() {
            Some(size) => vec![1; 2 * size],
            None => b"\x02\0\0\0ab\0\0\0\0".to_vec(),
        };
        let size = tensor.len();
        let json = format!(
            r#"{{"parameters":{{"binary_data_output":true}},"inputs":[{{"name":"x","shape":[2],"datatype":"{datatype}","parameters":{{"binary_data_size":{size}}}}}]}}"#
        );
        let (_, body) = split(&binary(&format!("t_{datatype}"), &json, &tensor));
        assert_eq!(body, tensor, "{datatype}");
        if matches!(datatype, DataType::Fp16 | DataType::Bf16) {
            let refused = binary(&format!("t_{datatype}"), &json.replace("true", "false"), &tensor);
            assert_eq!(refused.status, 400);
            assert!(refused.text().contains("data via JSON is not supported"), "{}", refused.text());
        }
    }
}

#[test]
fn large_tensors_and_small_ones_keep_their_order() {
    let json = |small: usize, large: usize| {
        format!(
            r#"{{"parameters":{{"binary_data_output":true}},"inputs":[{{"name":"INPUT0","shape":[1,{}],"datatype":"FP32","parameters":{{"binary_data_size":{small}}}}},{{"name":"INPUT1","shape":[1,{}],"datatype":"FP32","parameters":{{"binary_data_size":{large}}}}}]}}"#,
            small / 4,
            large / 4
        )
    };
    // Both orders of a copied and a passed range, and both of one kind. The model wants equal widths.
    for (small, large) in [(400, 400), (400_000, 400_000)] {
        let tensors: Vec<u8> = (0..small + large).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
        let (_, body) = split(&binary("pair", &json(small, large), &tensors));
        assert!(body == tensors, "{small} {large}");
    }
}

#[test]
fn sizes_that_lie_are_refused() {
    let json = |size: usize| {
        format!(
            r#"{{"inputs":[{{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{{"binary_data_size":{size}}}}}]}}"#
        )
    };
    let cases = [
        (16, 12, "unexpected size for input 'x', expecting 4 additional bytes for model 'identity'"),
        (16, 20, "unexpected additional input data for model 'identity'"),
        (
            12,
            12,
            "[request id: <id_unknown>] input byte size mismatch for input 'x' for model 'identity'. Expected 16, got 12",
        ),
        (
            usize::MAX,
            16,
            "unexpected size for input 'x', expecting 18446744073709551599 additional bytes for model 'identity'",
        ),
    ];
    for (size, sent, expected) in cases {
        let answer = binary("identity", &json(size), &vec![0; sent]);
        assert_eq!((answer.status, answer.text()), (400, format!("{{\"error\":\"{expected}\"}}")));
    }
    let unannounced = server().infer("identity", &json(0));
    assert!(
        unannounced.text().contains("must specify valid 'Infer-Header-Content-Length'"),
        "{}",
        unannounced.text()
    );
    for length in ["9999", "-1", "x", "18446744073709551616"] {
        let head = format!("POST /v2/models/identity/infer\nInference-Header-Content-Length: {length}");
        let answer = server().http(&head, json(0));
        assert_eq!(answer.status, 400, "{length}: {}", answer.text());
    }
    let strings =
        r#"{"inputs":[{"name":"x","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":6}}]}"#;
    for lie in [&b"\x03\0\0\0ab"[..], b"\x02\0\0\0ab", b"\xff\xff\xff\xffab"] {
        assert_eq!(binary("t_BYTES", strings, lie).status, 400);
    }
}

#[test]
fn a_raw_request_is_its_one_input() {
    let answer =
        server().http("POST /v2/models/t_FP32/infer\nInference-Header-Content-Length: 0", [0_u8; 12]);
    let (json, body) = split(&answer);
    assert!(json.contains("\"shape\":[3]"), "{json}");
    assert_eq!(body, [0; 12]);
    let (json, body) =
        split(&server().http("POST /v2/models/t_BYTES/infer\nInference-Header-Content-Length: 0", "abc"));
    assert!(json.contains("\"shape\":[1]"), "{json}");
    assert_eq!(body, b"\x03\0\0\0abc");
    for (model, body) in [("addsub", 16), ("identity", 16), ("t_FP32", 15)] {
        let head = format!("POST /v2/models/{model}/infer\nInference-Header-Content-Length: 0");
        assert_eq!(server().http(&head, vec![0_u8; body]).status, 400, "{model}");
    }
}

#[test]
fn coded_requests_are_inflated() {
    let body = br#"{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[5]}]}"#;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(body).unwrap();
    let mut deflate = ZlibEncoder::new(Vec::new(), Compression::fast());
    deflate.write_all(body).unwrap();
    for (name, coded) in [("gzip", gzip.finish().unwrap()), ("deflate", deflate.finish().unwrap())] {
        let head = format!("POST /v2/models/identity/infer\nContent-Encoding: {name}");
        let answer = server().http(&head, &coded);
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(server().http(&head, &coded[..coded.len() - 9]).status, 400, "{name}");
    }
    assert_eq!(server().http("POST /v2/models/identity/infer\nContent-Encoding: br", body).status, 415);
}

#[test]
fn long_json_is_compressed_if_asked_for() {
    let data = vec!["1.5"; 2_000].join(",");
    let body = format!(r#"{{"inputs":[{{"name":"x","shape":[1,2000],"datatype":"FP32","data":[{data}]}}]}}"#);
    let plain = server().infer("identity", &body);
    assert!(!plain.headers.contains_key("content-encoding"));
    let coded = server().http("POST /v2/models/identity/infer\nAccept-Encoding: gzip, br", &body);
    assert_eq!(coded.headers["content-encoding"], "gzip");
    let mut inflated = Vec::new();
    GzDecoder::new(&*coded.body).read_to_end(&mut inflated).unwrap();
    assert_eq!(inflated, plain.body);
}

#[test]
fn chunked_bodies_are_read() {
    let body = br#"{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[5]}]}"#;
    let mut chunked = Vec::new();
    for byte in body {
        chunked.extend_from_slice(b"1\r\n");
        chunked.push(*byte);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let answer = server().http("POST /v2/models/identity/infer\nTransfer-Encoding: chunked", chunked);
    assert_eq!(answer.status, 200, "{}", answer.text());
}
