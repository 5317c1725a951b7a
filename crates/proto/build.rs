//! Compiles the `.proto` files, without `protoc`.

use std::path::PathBuf;
use std::{env, error, fs};

use prost::Message;

#[expect(clippy::disallowed_methods, reason = "a build script is told where to write by the environment")]
fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let all = protox::compile(["proto/service.proto"], ["proto"])?;
    let model_config = protox::compile(["proto/model_config.proto"], ["proto"])?;
    fs::write(out_dir.join("inference.fds"), all.encode_to_vec())?;
    fs::write(out_dir.join("model_config.fds"), model_config.encode_to_vec())?;
    // Ordered maps, so that equal messages have equal bytes; shared bytes, so that tensors are not copied.
    tonic_prost_build::configure().btree_map(".").bytes(".").compile_fds(all)?;
    Ok(())
}
