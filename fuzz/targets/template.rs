//! A chat template, as the file of a model may have it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quadrant_llm::{ChatTemplate, Message};

fuzz_target!(|source: &str| {
    let turn = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let _ = ChatTemplate::new(source, "<s>", "</s>").render(&[
        turn("system", "Be brief."),
        turn("user", " Hi "),
        turn("assistant", "Yes?"),
    ]);
});
