//! Good files are read to the last byte, and hostile ones end in an error that says what and where.

use proptest::prelude::*;

use super::*;

const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"norm":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},
"q\/w":{"dtype":"BF16","shape":[2,3],"data_offsets":[12,24]},"position_ids":{"dtype":"I64","shape":[1,2],
"data_offsets":[26,42]},"none":{"dtype":"F16","shape":[0,4],"data_offsets":[24,24]},"scalar":{"dtype":"F16",
"shape":[],"data_offsets":[24,26]}}      "#;

/// A file with this header and so many bytes of weights, which count upwards.
fn file(header: &str, weights: u8) -> Vec<u8> {
    let length = header.len() as u64;
    [&length.to_le_bytes(), header.as_bytes(), &(0..weights).collect::<Vec<_>>()].concat()
}

fn good() -> Vec<u8> {
    file(GOOD, 42)
}

#[test]
fn tensors_are_found() {
    let file = good();
    let tensors = parse_safetensors(&file).unwrap();
    assert_eq!(tensors.names().collect::<Vec<_>>(), ["none", "norm", "position_ids", "q/w", "scalar"]);
    for (name, encoding, shape, range) in [
        ("norm", Encoding::F32, &[3][..], 0..12),
        ("q/w", Encoding::Bf16, &[2, 3], 12..24),
        ("scalar", Encoding::F16, &[], 24..26),
    ] {
        let view = tensors.get(name).unwrap();
        assert_eq!((view.name, view.encoding, view.shape), (name, encoding, shape));
        assert_eq!(view.bytes, range.clone().collect::<Vec<u8>>());
        assert_eq!(view.offset, HEADER_AT + GOOD.len() + usize::from(range.start));
    }
    let error = tensors.get("position_ids").unwrap_err();
    assert!(
        error.to_string().starts_with("tensor `position_ids` is `I64`, which is not computed with"),
        "{error}"
    );
}

#[test]
fn a_file_cut_off_anywhere_says_so() {
    let file = good();
    for length in 0..file.len() {
        let error = parse_safetensors(&file[..length]).unwrap_err();
        assert!(matches!(error, FileError::Truncated { .. }), "{length}: {error}");
    }
}

#[test]
fn what_breaks_the_format_is_an_error_that_says_where() {
    let one = |dtype: &str, rest: &str| format!(r#"{{"a":{{"dtype":"{dtype}",{rest}}}}}"#);
    for (header, expect) in [
        ("", "does not begin with `{`"),
        (" {}", "does not begin with `{`"),
        ("[]", "does not begin with `{`"),
        ("{\n\"a\":\n7}", "invalid type: integer `7`, expected struct Description at line 3 column 1"),
        ("{}}", "trailing characters"),
        ("{\"\u{7f}\":1", "invalid type: integer `1`"),
        (r#"{"a":{"dtype":"F32"}}"#, "missing field `shape`"),
        (&one("F32", r#""shape":[2],"shape":[2],"data_offsets":[0,8]"#), "duplicate field `shape`"),
        (&one("F32", r#""shape":[-2],"data_offsets":[0,8]"#), "invalid value: integer `-2`"),
        (&one("F32", r#""shape":[2.0],"data_offsets":[0,8]"#), "invalid type: floating point `2.0`"),
        (&one("F32", r#""shape":[2],"data_offsets":[0,8,8]"#), "trailing characters"),
        (&one("F32", r#""shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]"#), "tensor `a` has `9` dimensions"),
        (
            &one("F32", r#""shape":[2],"data_offsets":[8,0]"#),
            "has the offsets `8` to `0`, and takes `8` bytes of F32",
        ),
        (
            &one("F16", r#""shape":[2],"data_offsets":[0,8]"#),
            "has the offsets `0` to `8`, and takes `4` bytes of F16",
        ),
        (&one("F4", r#""shape":[3],"data_offsets":[0,8]"#), "has `3` elements, and F4 stores `2` together"),
        (
            &one("F32", r#""shape":[4294967296,4294967296],"data_offsets":[0,8]"#),
            "tensor `a` of shape `[4294967296, 4294967296]` has more elements than can be counted",
        ),
        (
            &one("F32", r#""shape":[4611686018427387904],"data_offsets":[0,8]"#),
            "more bytes than can be counted",
        ),
        (
            &one("F32", r#""shape":[1],"data_offsets":[0,4]"#),
            "the bytes behind the last tensor belong to none",
        ),
        (&one("F32", r#""shape":[1],"data_offsets":[4,8]"#), "the bytes before tensor `a` belong to none"),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"\u0061":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}"#,
            "two tensors are called `a`",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
            "tensors `a` and `b` overlap",
        ),
    ] {
        let file = file(header, 8);
        let error = parse_safetensors(&file).unwrap_err();
        assert!(matches!(error, FileError::Malformed { .. }), "{expect}: {error}");
        assert!(error.to_string().contains(expect), "{error}");
    }
}

#[test]
fn errors_in_the_header_point_at_the_byte() {
    for (header, expect) in [("{\"a\":?}", 8 + 5), ("{\n\n\"a\" ?}", 8 + 7), ("{}}", 8 + 2)] {
        let FileError::Malformed { offset, what } = parse_safetensors(&file(header, 0)).unwrap_err() else {
            panic!("{header}");
        };
        assert_eq!(offset, expect, "{what}");
    }
}

#[test]
fn errors_do_not_repeat_the_file() {
    for header in [
        format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 20)),
        format!(r#"{{"{}":{{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}}}"#, "x".repeat(1 << 20)),
        format!(r#"{{"a":{{"dtype":"{}","shape":[1],"data_offsets":[0,8]}}}}"#, "x".repeat(1 << 20)),
    ] {
        let said = parse_safetensors(&file(&header, 8)).unwrap_err().to_string();
        assert!(said.len() < 500, "{said}");
    }
}

#[test]
fn lengths_are_held_against_the_file() {
    for (length, expect) in [
        (3, "takes at least `3` bytes from byte `8` on, where the file has `2` more"),
        (HEADER_BYTES_MAX, "takes at least `100000000` bytes from byte `8` on, where the file has `2` more"),
        (HEADER_BYTES_MAX + 1, "a header of `100000001` bytes is announced"),
        (u64::MAX, "a header of `18446744073709551615` bytes is announced"),
    ] {
        let error = parse_safetensors(&[&length.to_le_bytes()[..], b"{}"].concat()).unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
    }
    let beyond =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}}"#;
    let error = parse_safetensors(&file(beyond, 8)).unwrap_err();
    assert!(matches!(error, FileError::Truncated { .. }), "{error}");
}

#[test]
fn the_sum_of_all_tensors_may_be_beyond_all_numbers() {
    // Eight tensors that each end where the next begins, and together just below 2^64.
    let step = u64::MAX / 8;
    let one = |index: u64| {
        let (begin, end) = (index * step, (index + 1) * step);
        format!(r#""{index}":{{"dtype":"U8","shape":[{step}],"data_offsets":[{begin},{end}]}}"#)
    };
    let header = format!("{{{}}}", (0..8).map(one).collect::<Vec<_>>().join(","));
    let error = parse_safetensors(&file(&header, 8)).unwrap_err();
    assert!(matches!(error, FileError::Truncated { .. }), "{error}");
}

#[test]
fn there_is_a_limit_to_what_a_file_lists() {
    let one = |index: usize| format!(r#""{index}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let header = |count| format!("{{{}}}", (0..count).map(one).collect::<Vec<_>>().join(","));
    let most = parse_safetensors(&file(&header(TENSORS_MAX), 0)).map(|tensors| tensors.len());
    assert_eq!(most, Ok(TENSORS_MAX));
    let error = parse_safetensors(&file(&header(TENSORS_MAX + 1), 0)).unwrap_err();
    assert!(error.to_string().contains("more than `131072` tensors at line 1"), "{error}");
    let dimensions = one(0).replace("[0]", &format!("[0{}]", ",0".repeat(100_000)));
    let error = parse_safetensors(&file(&format!("{{{dimensions}}}"), 0)).unwrap_err();
    assert!(error.to_string().contains("tensor `0` has `100001` dimensions"), "{error}");
}

#[test]
fn an_unknown_type_is_named() {
    let header = r#"{"a":{"dtype":"F9","shape":[8],"data_offsets":[0,8]}}"#;
    let error = parse_safetensors(&file(header, 8)).unwrap_err();
    assert!(matches!(error, FileError::Unsupported { .. }), "{error}");
    assert!(error.to_string().starts_with("tensor `a` has the type `F9`, which is not known"), "{error}");
}

#[test]
fn a_file_may_have_nothing_in_it() {
    assert!(parse_safetensors(&file("{}", 0)).unwrap().is_empty());
}

#[test]
fn other_data_may_nest_without_harm() {
    let deep = format!(r#"{{"__metadata__":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(parse_safetensors(&file(&deep, 0)).is_ok_and(|tensors| tensors.is_empty()));
    let error = parse_safetensors(&file(&deep.replace("__metadata__", "a"), 0)).unwrap_err();
    assert!(matches!(error, FileError::Malformed { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever is changed in a good file, it is read or refused; what is read lies in the file.
    #[test]
    fn changed_files_are_read_or_refused(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        digits in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 0..3),
        cut in prop::option::of((any::<prop::sample::Index>(), 0..12_usize)),
        more in prop::collection::vec(any::<u8>(), 0..6),
        length in prop::option::of(0..600_u64),
    ) {
        let mut file = good();
        for (at, byte) in flips {
            let at = at.index(file.len());
            file[at] ^= byte;
        }
        // Most changes break the JSON; these change what it says.
        let places: Vec<_> = (8..8 + GOOD.len()).filter(|at| file[*at].is_ascii_digit()).collect();
        for (at, digit) in digits {
            file[places[at.index(places.len())]] = digit;
        }
        if let Some((at, count)) = cut {
            let at = at.index(file.len());
            file.drain(at..(at + count).min(file.len()));
        }
        file.extend(more);
        if let Some(length) = length {
            file[..8].copy_from_slice(&length.to_le_bytes());
        }
        if let Ok(tensors) = parse_safetensors(&file) {
            // Each tensor is described by more than forty bytes of JSON.
            prop_assert!(tensors.len() * 40 <= file.len());
            for name in tensors.names() {
                if let Ok(view) = tensors.get(name) {
                    prop_assert_eq!(view.bytes, &file[view.offset..][..view.bytes.len()]);
                }
            }
        }
    }
}
