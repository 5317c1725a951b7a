//! A GGUF file: its header, its description of a model, its tokens and its chat template.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quadrant_llm::{Architecture, ChatTemplate, Decoder, Gguf, Message, Tokenizer};

fuzz_target!(|file: &[u8]| {
    let Ok(gguf) = Gguf::parse(file) else { return };
    for name in gguf.tensors.names() {
        let _ = gguf.tensors.get(name);
    }
    if let Ok(tokenizer) = Tokenizer::of_gguf(&gguf.metadata) {
        for token in tokenizer.encode("Hello <|im_end|> 12 \u{e4}\n").unwrap_or_default() {
            let _ = tokenizer.bytes(token);
        }
    }
    if let Ok(Some(template)) = ChatTemplate::of_gguf(&gguf.metadata) {
        let _ = template.render(&[Message { role: "user".into(), content: "Hi".into() }]);
    }
    if let Ok(architecture) = Architecture::of_gguf(&gguf.metadata, &gguf.tensors) {
        let _ = Decoder::of_gguf(architecture, &gguf.tensors);
    }
});
