//! A safetensors file: its header, and every tensor of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quadrant_llm::parse_safetensors;

fuzz_target!(|file: &[u8]| {
    let Ok(tensors) = parse_safetensors(file) else { return };
    for name in tensors.names() {
        if let Ok(tensor) = tensors.get(name) {
            assert!(tensor.bytes.len() <= file.len());
        }
    }
});
