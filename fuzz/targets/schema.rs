//! A JSON schema of a request, and a text that it makes of the input's own bytes.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use quadrant_llm::{Constraint, ConstraintVocabulary, Grammar};

/// Each byte is a token, and nothing is another.
const END: u32 = 256;

static VOCABULARY: LazyLock<ConstraintVocabulary> = LazyLock::new(|| {
    let bytes: Vec<u8> = (0..=u8::MAX).collect();
    let tokens = bytes.chunks(1).chain([&[][..]]);
    ConstraintVocabulary::of_bytes(tokens, END).expect("few and short")
});

fuzz_target!(|schema: &str| {
    let grammar = Grammar::JsonSchema(schema.into());
    let Ok(mut constraint) = Constraint::new(&VOCABULARY, &grammar) else { return };
    for byte in schema.bytes().take(64) {
        let mut scores: [f32; 257] = std::array::from_fn(|token| f32::from((token as u8) ^ byte));
        if constraint.mask(&mut scores).is_err() {
            return;
        }
        let likeliest = (0..=END).max_by(|a, b| scores[*a as usize].total_cmp(&scores[*b as usize]));
        match constraint.accept(likeliest.expect("there are tokens")) {
            Ok(false) => {}
            Ok(true) | Err(_) => return,
        }
    }
});
