//! Where fetched things lie on this machine. The one place that reads the environment.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use quadrant_fetch::Store;

/// The tokenizer of the demo's sentence model, within the cache.
pub(crate) const TOKENIZER: &str = "minilm-l3/tokenizer.json";
/// The characters that the demo's text recogniser knows, within the cache.
pub(crate) const OCR_KEYS: &str = "ppocr/keys.txt";

/// The store of fetched models.
///
/// # Errors
/// If no folder for it is known.
#[expect(clippy::disallowed_methods, reason = "the environment is read here, once")]
pub(crate) fn store() -> Result<Store> {
    let store = Store::of_user(|name| std::env::var(name).ok());
    store.context("no folder for fetched models: set `QUADRANT_CACHE`")
}

/// The file that was given, or the one that the demo fetched.
///
/// # Errors
/// If there is neither, with what to do.
pub(crate) fn or_fetched(given: Option<&Path>, fetched: &str) -> Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let path = store()?.assets().join(fetched);
    if !path.is_file() {
        bail!("`{}` was not fetched yet: run `quadrant demo` once, or give a file", path.display());
    }
    Ok(path)
}

/// Where what was measured of models is kept, if there is a folder for it.
pub(crate) fn profiles_dir() -> Option<PathBuf> {
    // Beside what was fetched.
    Some(store().ok()?.assets().with_file_name("profiles"))
}

/// Where ONNX Runtime's library may be: what the demo fetched, then the system's usual folders.
pub(crate) fn onnxruntime_places() -> Vec<PathBuf> {
    let fetched = store().ok().map(|store| store.assets().join("onnxruntime/libonnxruntime.so"));
    let system = [
        "/usr/local/lib",
        "/usr/lib",
        "/usr/lib64",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
    ];
    let system = system.into_iter().map(|folder| Path::new(folder).join("libonnxruntime.so"));
    fetched.into_iter().chain(system).collect()
}
