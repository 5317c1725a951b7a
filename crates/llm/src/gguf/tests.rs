//! Good files are read to the last byte, and hostile ones end in an error that says what and where.

use proptest::prelude::*;
use quadrant_kernels::Encoding;

use super::builder::{GgufBuilder, array, text};
use super::*;

const F32: u32 = 0;
const Q4_0: u32 = 2;
const Q4_K: u32 = 12;
const BF16: u32 = 30;

/// One of everything, in about a kilobyte.
fn good() -> GgufBuilder {
    let inner = array(ValueType::U8, 2, &[1, 2]);
    let nested = [array(ValueType::Array, 1, &inner), array(ValueType::Array, 0, &[])].concat();
    GgufBuilder::new()
        .entry("general.architecture", ValueType::Str, &text("llama"))
        .u32("llama.block_count", 2)
        .entry("u8", ValueType::U8, &[200])
        .entry("i8", ValueType::I8, &[0xff])
        .entry("u16", ValueType::U16, &60_000_u16.to_le_bytes())
        .entry("i16", ValueType::I16, &(-300_i16).to_le_bytes())
        .entry("i32", ValueType::I32, &70_000_i32.to_le_bytes())
        .entry("f32", ValueType::F32, &0.5_f32.to_le_bytes())
        .entry("true", ValueType::Bool, &[1])
        .entry("false", ValueType::Bool, &[0])
        .entry("u64", ValueType::U64, &(1_u64 << 40).to_le_bytes())
        .entry("i64", ValueType::I64, &5_i64.to_le_bytes())
        .entry("f64", ValueType::F64, &0.25_f64.to_le_bytes())
        .array("tokens", ValueType::Str, 3, &[text("<s>"), text(""), text("ß")].concat())
        .array("types", ValueType::I32, 2, &[1_i32.to_le_bytes(), (-1_i32).to_le_bytes()].concat())
        .array("scores", ValueType::F32, 2, &[1.5_f32.to_le_bytes(), (-2_f32).to_le_bytes()].concat())
        .array("masks", ValueType::Bool, 3, &[0, 1, 0])
        .array("nested", ValueType::Array, 2, &nested)
        .array("nothing", ValueType::Str, 0, &[])
        .tensor("norm", &[3], F32, &[1; 12])
        .tensor("q", &[64, 2], Q4_0, &[2; 72])
        .tensor("experts", &[4, 3, 2], BF16, &[3; 48])
}

fn malformed_at(result: Result<Gguf<'_>, FileError>) -> usize {
    match result {
        Err(FileError::Malformed { offset, .. }) => offset,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tensors_are_found_with_their_outermost_dimension_first() {
    for version in [2, 3] {
        let file = good().version(version).finish();
        let gguf = Gguf::parse(&file).unwrap();
        assert_eq!(gguf.tensors.names().collect::<Vec<_>>(), ["experts", "norm", "q"]);
        for (name, encoding, shape, bytes) in [
            ("norm", Encoding::F32, &[3][..], &[1; 12][..]),
            ("q", Encoding::Q4_0, &[2, 64], &[2; 72]),
            ("experts", Encoding::Bf16, &[2, 3, 4], &[3; 48]),
        ] {
            let view = gguf.tensors.get(name).unwrap();
            assert_eq!((view.name, view.encoding, view.shape), (name, encoding, shape));
            assert_eq!(view.bytes, bytes);
            assert_eq!(&file[view.offset..][..bytes.len()], bytes);
            assert_eq!(view.offset % 32, 0);
        }
    }
}

#[test]
fn metadata_is_read_by_what_is_wanted() {
    let file = good().finish();
    let metadata = Gguf::parse(&file).unwrap().metadata;
    assert_eq!(metadata.len(), 19);
    assert_eq!(metadata.iter().next().unwrap().0, "f32");
    assert_eq!(metadata.str("general.architecture"), Ok("llama"));
    for (key, expect) in [("llama.block_count", 2), ("u8", 200), ("u16", 60_000), ("i32", 70_000), ("i64", 5)]
    {
        assert_eq!(metadata.u32(key), Ok(expect), "{key}");
    }
    for (key, expect) in [("i8", -1), ("i16", -300), ("u64", 1 << 40)] {
        assert_eq!(metadata.get(key).unwrap().integer(), Some(expect), "{key}");
    }
    assert_eq!(metadata.f32("f32"), Ok(0.5));
    assert_eq!((metadata.bool("true"), metadata.bool("false")), (Ok(true), Ok(false)));
    assert_eq!(metadata.strs("tokens"), Ok(vec!["<s>", "", "ß"]));
    assert_eq!(metadata.strs("nothing"), Ok(vec![]));
    assert_eq!(metadata.i32s("types"), Ok(vec![1, -1]));
    assert_eq!(metadata.f32s("scores"), Ok(vec![1.5, -2.0]));
    assert_eq!(optional(metadata.u32("absent")), Ok(None));
}

#[test]
fn texts_are_not_copied() {
    let file = good().finish();
    let tokens = Gguf::parse(&file).unwrap().metadata.strs("tokens").unwrap();
    assert!(tokens.iter().all(|token| file.as_ptr_range().contains(&token.as_ptr())));
}

#[test]
fn what_is_not_as_wanted_is_said() {
    fn said<T: std::fmt::Debug>(result: Result<T, FileError>) -> String {
        result.unwrap_err().to_string()
    }
    let file = good().finish();
    let metadata = Gguf::parse(&file).unwrap().metadata;
    for (said, expect) in [
        (said(metadata.u32("absent")), "the file has no metadata `absent`"),
        (said(metadata.u32("i8")), "`i8` is the i8 `-1`, where u32 is wanted"),
        (said(metadata.u32("u64")), "`u64` is the u64 `1099511627776`, where u32 is wanted"),
        (said(metadata.u32("f32")), "`f32` is the f32 `0.5`, where u32 is wanted"),
        (said(metadata.f32("f64")), "`f64` is the f64 `0.25`, where f32 is wanted"),
        (said(metadata.f32("u8")), "`u8` is the u8 `200`, where f32 is wanted"),
        (said(metadata.bool("u8")), "where bool is wanted"),
        (said(metadata.str("tokens")), "`tokens` is an array of str, where str is wanted"),
        (said(metadata.strs("general.architecture")), "is a str, where array of str is wanted"),
        (said(metadata.strs("types")), "`types` holds the i32 `1`, where array of str is wanted"),
        (said(metadata.i32s("nested")), "`nested` holds an array of array, where array of i32 is wanted"),
        (said(metadata.f32s("types")), "`types` holds the i32 `1`, where array of f32 is wanted"),
    ] {
        assert!(said.contains(expect), "{said}");
    }
    let error = metadata.u32("general.architecture").unwrap_err();
    assert!(matches!(error, FileError::Malformed { offset: 24, .. }), "{error}");
}

#[test]
fn nested_arrays_are_read() {
    let file = good().finish();
    let Some(Value::Array(nested)) = Gguf::parse(&file).unwrap().metadata.get("nested") else {
        panic!("it is an array");
    };
    assert_eq!((nested.of(), nested.len()), (ValueType::Array, 2));
    let values: Vec<_> = nested.values().map(Result::unwrap).collect();
    let Value::Array(first) = values[0] else { panic!("{values:?}") };
    assert_eq!((first.of(), first.is_empty()), (ValueType::Array, false));
}

#[test]
fn a_file_cut_off_anywhere_says_so() {
    let file = good().finish();
    for length in 0..file.len() {
        let error = Gguf::parse(&file[..length]).unwrap_err();
        assert!(matches!(error, FileError::Truncated { .. }), "{length}: {error}");
    }
}

#[test]
fn counts_are_held_against_the_file() {
    const HUGE: [u64; 4] = [1 << 32, 1 << 61, u64::MAX / 2 + 1, u64::MAX];
    for count in HUGE {
        let value = count.to_le_bytes();
        for (builder, expect) in [
            (GgufBuilder::new().claiming(count, 0), "the list of tensors takes"),
            (GgufBuilder::new().claiming(0, count), "the metadata takes"),
            (GgufBuilder::new().entry("k", ValueType::Str, &value), "the value of `k` takes"),
            (GgufBuilder::new().array("k", ValueType::U8, count, &[]), "the value of `k` takes"),
            (GgufBuilder::new().array("k", ValueType::U64, count, &[]), "the value of `k` takes"),
            (GgufBuilder::new().array("k", ValueType::Str, count, &[]), "the value of `k` takes"),
            (GgufBuilder::new().array("k", ValueType::Array, count, &[]), "the value of `k` takes"),
            (
                GgufBuilder::new().described("t", &[4], F32, count & !31),
                "tensor `t` takes at least `16` bytes",
            ),
        ] {
            let file = builder.finish();
            let error = Gguf::parse(&file).unwrap_err();
            assert!(matches!(error, FileError::Truncated { .. }), "{error}");
            assert!(error.to_string().contains(expect), "{error}");
        }
    }
}

#[test]
fn there_is_a_limit_to_what_a_file_lists() {
    for (tensor_count, entry_count, expect) in [
        (TENSORS_MAX as u64 + 1, 0, "the list of tensors has `131073` entries, more than `131072`"),
        (0, (1 << 16) + 1, "the metadata has `65537` entries, more than `65536`"),
    ] {
        let beginning = GgufBuilder::new().claiming(tensor_count, entry_count).finish();
        let file = [beginning, vec![0; 4 << 20]].concat();
        let error = Gguf::parse(&file).unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
    }
}

#[test]
fn what_breaks_the_format_is_an_error_that_says_where() {
    let aligned = |value: u32| GgufBuilder::new().u32("general.alignment", value);
    let deep = (0..4).fold(array(ValueType::U8, 0, &[]), |inner, _| array(ValueType::Array, 1, &inner));
    for (builder, expect) in [
        (GgufBuilder::new().magic(*b"ggjt"), "begins with `ggjt`, and GGUF files begin with `GGUF`"),
        (GgufBuilder::new().magic([0, 0xff, b'\n', b'`']), "begins with `\\x00\\xff\\n`"),
        (
            GgufBuilder::new().entry([0xff], ValueType::U8, &[0]),
            "the key of metadata entry `0` is not valid UTF-8",
        ),
        (
            GgufBuilder::new().entry("k", ValueType::Str, &text([b'a', 0x80])),
            "the value of `k` is not valid UTF-8",
        ),
        (
            GgufBuilder::new().array("k", ValueType::Str, 2, &[text("a"), text([0xc3])].concat()),
            "the value of `k` is not valid UTF-8",
        ),
        (GgufBuilder::new().entry("k", ValueType::Bool, &[2]), "the value of `k` is the bool `2`"),
        (GgufBuilder::new().array("k", ValueType::Bool, 2, &[1, 7]), "the value of `k` is the bool `7`"),
        (GgufBuilder::new().u32("k", 1).u32("k", 1), "the metadata has `k` twice"),
        (GgufBuilder::new().entry("k", ValueType::Array, &deep), "is an array within `4` arrays"),
        (aligned(0), "`general.alignment` is `0`"),
        (aligned(3), "`general.alignment` is `3`"),
        (aligned(4), "must be a power of two from `8` to `1048576`"),
        (aligned(1 << 21), "`general.alignment` is `2097152`"),
        (
            GgufBuilder::new().entry("general.alignment", ValueType::U64, &(1_u64 << 40).to_le_bytes()),
            "`general.alignment` is the u64 `1099511627776`, where u32 is wanted",
        ),
        (aligned(64).tensor("a", &[8], F32, &[0; 32]).tensor("b", &[8], F32, &[0; 32]), "aligns to `64`"),
        (GgufBuilder::new().tensor("t", &[1; 5], F32, &[0; 4]), "tensor `t` has `5` dimensions"),
        (GgufBuilder::new().tensor("t", &[16, 2], Q4_0, &[0; 18]), "has rows of `16` elements, and Q4_0"),
        (GgufBuilder::new().tensor("t", &[], Q4_0, &[0; 18]), "has rows of `1` elements"),
        (GgufBuilder::new().tensor("t", &[1 << 32, 1 << 32], F32, &[]), "more elements than can be counted"),
        (GgufBuilder::new().tensor("t", &[1 << 62], F32, &[]), "more bytes than can be counted"),
        (
            GgufBuilder::new().tensor("t", &[1], F32, &[0; 4]).tensor("t", &[1], F32, &[0; 4]),
            "two tensors are called `t`",
        ),
        (
            GgufBuilder::new().tensor("a", &[16], F32, &[0; 64]).described("b", &[8], F32, 32),
            "tensors `a` and `b` overlap",
        ),
        (
            GgufBuilder::new().tensor("a", &[1], F32, &[0; 4]).described("b", &[1], F32, 0),
            "tensors `a` and `b` overlap",
        ),
    ] {
        let file = builder.finish();
        let error = Gguf::parse(&file).unwrap_err();
        assert!(matches!(error, FileError::Malformed { .. }), "{expect}: {error}");
        assert!(error.to_string().contains(expect), "{error}");
    }
}

#[test]
fn errors_point_at_the_byte() {
    // Behind magic, version and two counts lie the length of the key, the key, and the type of the value.
    const VALUE_AT: usize = 24 + 8 + 1 + 4;
    let unknown_type = {
        let mut file = GgufBuilder::new().u32("k", 1).finish();
        file[VALUE_AT - 4] = 13;
        file
    };
    for (file, expect) in [
        (GgufBuilder::new().magic(*b"....").finish(), 0),
        (unknown_type, VALUE_AT - 4),
        (GgufBuilder::new().entry("k", ValueType::Bool, &[2]).finish(), VALUE_AT),
        (GgufBuilder::new().entry("k", ValueType::Str, &text([b'a', 0x80])).finish(), VALUE_AT + 8 + 1),
        (GgufBuilder::new().u32("k", 1).u32("k", 1).finish(), VALUE_AT + 4),
    ] {
        assert_eq!(malformed_at(Gguf::parse(&file)), expect);
    }
}

#[test]
fn what_is_beyond_this_engine_says_what_to_do() {
    for (builder, expect) in [
        (GgufBuilder::new().version(1), "has GGUF version `1`, and versions `2` and `3` are read"),
        (GgufBuilder::new().version(4), "has GGUF version `4`"),
        (
            GgufBuilder::new().version(3_u32.swap_bytes()),
            "big-endian (at byte `4`); convert the model to little-endian",
        ),
        (GgufBuilder::new().magic(*b"FUGG"), "the file is big-endian"),
        (
            GgufBuilder::new().tensor("t", &[1], 4, &[0; 4]),
            "tensor `t` has the type `4`, which GGML has given up",
        ),
        (GgufBuilder::new().tensor("t", &[1], 999, &[0; 4]), "type `999`, which this engine does not know"),
    ] {
        let file = builder.finish();
        let error = Gguf::parse(&file).unwrap_err();
        assert!(matches!(error, FileError::Unsupported { .. }), "{expect}: {error}");
        assert!(error.to_string().contains(expect), "{error}");
    }
}

#[test]
fn a_type_that_is_not_computed_with_is_named_when_it_is_asked_for() {
    let file = good().tensor("blk.0.attn_q.weight", &[256], Q4_K, &[0; 144]).finish();
    let gguf = Gguf::parse(&file).unwrap();
    let error = gguf.tensors.get("blk.0.attn_q.weight").unwrap_err();
    let expect = "tensor `blk.0.attn_q.weight` is `Q4_K`, which is not computed with (at byte `";
    assert!(error.to_string().starts_with(expect), "{error}");
    assert!(
        error.to_string().ends_with("convert the model to F32, F16, BF16, Q4_0, Q4_1 or Q8_0"),
        "{error}"
    );
}

#[test]
fn a_file_may_align_as_it_likes() {
    for alignment in [8_u32, 4096] {
        let builder = GgufBuilder::new().aligned(alignment as usize).u32("general.alignment", alignment);
        let file = builder.tensor("a", &[1], F32, &[1; 4]).tensor("b", &[1], F32, &[2; 4]).finish();
        let gguf = Gguf::parse(&file).unwrap();
        assert_eq!(gguf.tensors.get("b").unwrap().bytes, [2; 4], "{alignment}");
    }
}

#[test]
fn a_file_may_have_nothing_in_it() {
    let file = GgufBuilder::new().finish();
    let gguf = Gguf::parse(&file).unwrap();
    assert!(gguf.metadata.is_empty() && gguf.tensors.is_empty());
}

/// Asks a file for all that can be asked. It may be refused; what is not refused lies in the file.
fn ask_everything(file: &[u8]) {
    let Ok(gguf) = Gguf::parse(file) else { return };
    // What was built took no more than the file paid for.
    assert!(gguf.metadata.len() * 13 + gguf.tensors.len() * 24 <= file.len());
    for (key, _) in gguf.metadata.iter() {
        let metadata = &gguf.metadata;
        let lengths = [
            metadata.strs(key).map(|found| found.len()),
            metadata.i32s(key).map(|found| found.len()),
            metadata.f32s(key).map(|found| found.len()),
        ];
        assert!(lengths.iter().flatten().all(|length| *length <= file.len()));
    }
    for name in gguf.tensors.names() {
        if let Ok(view) = gguf.tensors.get(name) {
            assert_eq!(view.bytes, &file[view.offset..][..view.bytes.len()]);
            assert!(!view.shape.contains(&0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever is changed in a good file, it is read or refused.
    #[test]
    fn changed_files_are_read_or_refused(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        numbers in prop::collection::vec(
            (
                any::<prop::sample::Index>(),
                prop::sample::select(vec![0, 1, 1 << 31, 1 << 32, 1 << 63, u64::MAX]),
            ),
            0..3,
        ),
        cut in prop::option::of((any::<prop::sample::Index>(), 0..12_usize)),
        more in prop::collection::vec(any::<u8>(), 0..6),
    ) {
        let mut file = good().finish();
        for (at, byte) in flips {
            let at = at.index(file.len());
            file[at] ^= byte;
        }
        for (at, number) in numbers {
            let at = at.index(file.len() - 7);
            file[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        if let Some((at, count)) = cut {
            let at = at.index(file.len());
            file.drain(at..(at + count).min(file.len()));
        }
        file.extend(more);
        ask_everything(&file);
    }

    /// The same behind a good beginning.
    #[test]
    fn random_files_are_read_or_refused(
        tensors in 0..4_u64,
        entries in 0..4_u64,
        rest in prop::collection::vec(prop_oneof![Just(0_u8), 0..16_u8, any::<u8>()], 0..200),
    ) {
        ask_everything(&[GgufBuilder::new().claiming(tensors, entries).finish(), rest].concat());
    }
}
