//! The size of the binary, and the memory of a server that serves nothing.

use anyhow::{Context, Result};

use super::program;
use super::server::Server;
use crate::run::{say, target};

/// Says both, without ONNX Runtime and with it.
pub(super) fn measure() -> Result<()> {
    let binary = std::fs::metadata(program("quadrant")).context("the binary is not there")?.len();
    say(&format!("release binary: {:.1} MB, bar 40 MB", binary as f64 / 1e6));
    let models = target().join("measure/empty");
    std::fs::create_dir_all(&models)?;
    let library = crate::assets::fetch()?.join("onnxruntime/libonnxruntime.so");
    let library = library.display().to_string();
    for (name, onnxruntime) in [("embedded engine", "off"), ("ONNX Runtime opened", library.as_str())] {
        let config = target().join("measure/empty.toml");
        std::fs::write(&config, format!("[device]\nonnxruntime = \"{onnxruntime}\"\n"))?;
        let server = Server::quadrant(&models, &config)?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.process()))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|rest| rest.trim().strip_suffix("kB")).map(str::trim);
        let kilobytes: f64 = resident.context("the system does not say its memory")?.parse()?;
        say(&format!(
            "resident memory without models, {name}: {:.1} MB, bar 50 MB",
            kilobytes * 1024.0 / 1e6
        ));
    }
    Ok(())
}
