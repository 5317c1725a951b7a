//! Loads a model file with the engine that fits it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use quadrant_kernels::Cpu;
use quadrant_types::{Clock, ModelSpec};

use crate::emulated::EmulatedModel;
use crate::encoder_engine::EncoderModel;
use crate::language::Language;
use crate::language_engine::LanguageModel;
use crate::ort_engine::OrtModel;
use crate::panics::guarded;
use crate::rten_engine::RtenModel;
use crate::{EngineError, Model, OnnxHeader, OnnxRuntime};

/// How the names of files end that describe an emulated model.
const EMULATED_SUFFIX: &str = ".emulated.toml";

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EngineKind {
    /// The embedded ONNX engine.
    Rten,
    /// ONNX Runtime, if its library was found.
    Ort,
    /// Our own kernels, for encoders as safetensors.
    Encoder,
    /// Our own kernels, for language models as GGUF.
    Language,
    /// No model at all: copies inputs to outputs and takes the time it is told to.
    Emulated,
}

impl EngineKind {
    /// Every engine.
    pub const ALL: [Self; 5] = [Self::Rten, Self::Ort, Self::Encoder, Self::Language, Self::Emulated];

    /// Its name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rten => "rten",
            Self::Ort => "onnxruntime",
            Self::Encoder => "encoder",
            Self::Language => "language",
            Self::Emulated => "emulated",
        }
    }

    /// The platform that clients see in a model's metadata.
    pub const fn platform(self) -> &'static str {
        match self {
            Self::Rten => "rten_onnx",
            Self::Ort => "onnxruntime_onnx",
            Self::Encoder => "quadrant_encoder",
            Self::Language => "quadrant_language",
            Self::Emulated => "emulated",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EngineKind {
    type Err = ();

    /// The engine with this name; `ort` is short for `onnxruntime`.
    fn from_str(name: &str) -> Result<Self, ()> {
        let name = if name == "ort" { Self::Ort.name() } else { name };
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or(())
    }
}

/// What a process has to load models with.
#[derive(Clone, Debug)]
pub struct Engines {
    /// ONNX Runtime, if its library was found.
    pub onnxruntime: Option<OnnxRuntime>,
    /// What emulated models measure their waits with.
    pub clock: Arc<dyn Clock>,
}

impl Engines {
    /// The version of an engine: what it measures holds for no other.
    pub fn version(&self, kind: EngineKind) -> String {
        // Those within this program change with it.
        let own = env!("CARGO_PKG_VERSION");
        match (kind, &self.onnxruntime) {
            (EngineKind::Ort, Some(runtime)) => runtime.version().into(),
            // Machines with processors of the same name may hide instruction sets.
            (EngineKind::Encoder | EngineKind::Language, _) => format!("{own} with {}", Cpu::best().name()),
            (EngineKind::Ort | EngineKind::Rten | EngineKind::Emulated, _) => own.into(),
        }
    }
}

/// A model file, and how it is to be served.
#[derive(Clone, Debug)]
pub struct ModelSource {
    /// The name it is served under.
    pub name: Arc<str>,
    /// Its version.
    pub version: u64,
    /// The file.
    pub path: PathBuf,
    /// The engine that was asked for. By default a file ending in `.emulated.toml` is emulated, one ending in
    /// `.safetensors` is an encoder, one ending in `.gguf` a language model, and the rest runs on ONNX
    /// Runtime if there is one, otherwise on the embedded engine.
    pub engine: Option<EngineKind>,
    /// Names of the classes along the last dimension of outputs.
    pub labels: BTreeMap<Arc<str>, Arc<[String]>>,
}

impl ModelSource {
    /// Whether the file name is one that a model can have.
    pub fn is_model_file(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension == "onnx" || extension == "gguf")
            || is_emulated(path)
    }

    /// The engine that runs it.
    ///
    /// # Errors
    /// [`EngineError::Load`] if the one that was asked for cannot.
    pub fn engine_kind(&self, engines: &Engines) -> Result<EngineKind, EngineError> {
        let load = |error: &str| Err(EngineError::Load(format!("`{}`: {error}", self.path.display())));
        let only = if is_emulated(&self.path) {
            Some(EngineKind::Emulated)
        } else if is_safetensors(&self.path) {
            Some(EngineKind::Encoder)
        } else if is_gguf(&self.path) {
            Some(EngineKind::Language)
        } else {
            None
        };
        match (only, self.engine) {
            (Some(kind), None) => Ok(kind),
            (Some(kind), Some(asked)) if kind == asked => Ok(kind),
            (Some(kind), Some(_)) => load(&format!("only the engine `{kind}` reads this file")),
            (None, Some(EngineKind::Emulated)) => load("an emulated model's file ends in `.emulated.toml`"),
            (None, Some(EngineKind::Encoder)) => load("an encoder's file ends in `.safetensors`"),
            (None, Some(EngineKind::Language)) => load("a language model's file ends in `.gguf`"),
            (None, None) if engines.onnxruntime.is_some() => Ok(EngineKind::Ort),
            (None, None) => Ok(EngineKind::Rten),
            (None, Some(EngineKind::Ort)) if engines.onnxruntime.is_none() => {
                load("it asks for ONNX Runtime, whose library was not found; give its path or choose `rten`")
            }
            (None, Some(kind)) => Ok(kind),
        }
    }

    /// The spec of the model, given what its file says.
    pub(crate) fn spec(&self, kind: EngineKind, header: OnnxHeader) -> ModelSpec {
        ModelSpec {
            name: Arc::clone(&self.name),
            version: self.version,
            platform: kind.platform().into(),
            inputs: header.inputs,
            outputs: header.outputs,
            labels: self.labels.clone(),
        }
    }
}

fn is_emulated(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(EMULATED_SUFFIX))
}

fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf")
}

/// Loads a model. Blocks for as long as the engine takes, up to seconds.
///
/// # Errors
/// [`EngineError::Load`] with what is wrong with the file; [`EngineError::OutOfMemory`] or
/// [`EngineError::Panicked`] if the engine did not survive it.
pub fn load(source: &ModelSource, engines: &Engines) -> Result<Arc<dyn Model>, EngineError> {
    let kind = source.engine_kind(engines)?;
    guarded(|| match (kind, &engines.onnxruntime) {
        (EngineKind::Emulated, _) => {
            let model = EmulatedModel::load(source, &engines.clock)?;
            Ok(Arc::new(model) as Arc<dyn Model>)
        }
        (EngineKind::Encoder, _) => Ok(Arc::new(EncoderModel::load(source)?)),
        (EngineKind::Language, _) => Ok(Arc::new(LanguageModel::load(source)?)),
        (EngineKind::Ort, Some(runtime)) => Ok(Arc::new(OrtModel::load(source, runtime)?)),
        (EngineKind::Rten | EngineKind::Ort, _) => Ok(Arc::new(RtenModel::load(source)?)),
    })
}

/// What a model takes and gives, without loading it; `None` if its file does not say all of it.
///
/// # Errors
/// As [`load`], as far as the file shows it.
pub fn describe(source: &ModelSource, engines: &Engines) -> Result<Option<ModelSpec>, EngineError> {
    let kind = source.engine_kind(engines)?;
    if kind == EngineKind::Emulated {
        return EmulatedModel::describe(source).map(Some);
    }
    if kind == EngineKind::Encoder {
        return EncoderModel::describe(source).map(Some);
    }
    if kind == EngineKind::Language {
        return Ok(Some(LanguageModel::spec(source)));
    }
    let header = OnnxHeader::read(&source.path)?;
    let is_complete = header.outputs_shaped.iter().all(|shaped| *shaped);
    Ok(is_complete.then(|| source.spec(kind, header)))
}

/// What is needed to talk to a model in words, without loading it; `None` if it does not generate.
///
/// # Errors
/// As [`load`], as far as the file's header shows it.
pub fn describe_language(
    source: &ModelSource,
    engines: &Engines,
) -> Result<Option<Arc<Language>>, EngineError> {
    if source.engine_kind(engines)? != EngineKind::Language {
        return Ok(None);
    }
    LanguageModel::describe(source).map(|language| Some(Arc::new(language)))
}
