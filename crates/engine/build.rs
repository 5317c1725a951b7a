//! Compiles our subsets of the ONNX file format, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["proto/onnx_header.proto", "proto/onnx_weights.proto"], ["proto"])?;
    // Nearly all attributes have no graph, and there are many.
    prost_build::Config::new().boxed(".onnx.AttributeProto.g").compile_fds(files)?;
    Ok(())
}
