//! The demo's model repository: links to the fetched models in Triton's layout, with what their graphs do
//! not say (that the first dimension is a batch, and the names of the classes).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quadrant_fetch::Store;
use serde::Deserialize;

/// A picture of a line of text, within the repository.
pub(crate) const PICTURE: &str = "line.png";

const PICTURE_BYTES: &[u8] = include_bytes!("../../assets/line.png");

/// The models, and their configurations. None of these graphs names its batch dimension the same way
/// everywhere, so it is said here; a probe still checks it.
const MODELS: [(&str, &str); 5] = [
    ("magika", "max_batch_size: 32\n"),
    ("minilm-l3", "max_batch_size: 32\n"),
    ("ppocr-cls", "max_batch_size: 8\n"),
    ("ppocr-det", "max_batch_size: 4\n"),
    ("ppocr-rec", "max_batch_size: 8\n"),
];

/// Lays the repository out, anew each time, and says where it is.
pub(crate) fn lay_out(store: &Store) -> Result<PathBuf> {
    let assets = store.assets();
    let folder = assets.join("demo");
    for (name, config) in MODELS {
        let version = folder.join(name).join("1");
        fs::create_dir_all(&version).with_context(|| format!("cannot make `{}`", version.display()))?;
        link(&assets.join("models").join(format!("{name}.onnx")), &version.join("model.onnx"))?;
        write(&folder.join(name).join("config.pbtxt"), config.as_bytes())?;
    }
    let language = folder.join("smollm2/1");
    fs::create_dir_all(&language).with_context(|| format!("cannot make `{}`", language.display()))?;
    link(&assets.join("models/smollm2.gguf"), &language.join("model.gguf"))?;
    write(&folder.join("magika/labels.txt"), magika_labels(&assets)?.as_bytes())?;
    write(&folder.join(PICTURE), PICTURE_BYTES)?;
    Ok(folder)
}

/// The names of Magika's classes, one a line.
fn magika_labels(assets: &Path) -> Result<String> {
    #[derive(Deserialize)]
    struct MagikaConfig {
        target_labels_space: Vec<String>,
    }
    let text =
        fs::read_to_string(assets.join("magika/config.json")).context("cannot read Magika's labels")?;
    let config: MagikaConfig = serde_json::from_str(&text).context("cannot understand Magika's labels")?;
    Ok(config.target_labels_space.join("\n"))
}

/// A hard link, or a copy where links cannot be made.
fn link(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_file(to).with_context(|| format!("cannot replace `{}`", to.display()))?;
    }
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(drop))
        .with_context(|| format!("cannot put `{}` in place", to.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write `{}`", path.display()))
}
