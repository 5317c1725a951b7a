//! Language models on our own kernels: GGUF files of the Llama family, any number of sequences at a time.
//!
//! The file is mapped while it is loaded; the weights are packed into memory of their own. Keys and values
//! lie in pages, whose numbers the scheduler gives out; a page is there once it was written to.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use quadrant_kernels::{Cache, Cpu};
use quadrant_llm::{Architecture, Decoder, Forward, Gguf, Token};
use quadrant_sys::FileMap;
use quadrant_types::{DataType, Dim, ModelSpec, TensorSpec};

use crate::language::{Language, PAGE_TOKENS};
use crate::load::EngineKind;
use crate::panics::guarded;
use crate::spawn;
use crate::{
    Done, EngineError, Footprint, Generated, LaneSpec, Model, ModelSource, Runner, SequencePart, StepWork,
};

/// A loaded language model.
pub(crate) struct LanguageModel {
    loaded: Arc<Loaded>,
}

struct Loaded {
    spec: ModelSpec,
    decoder: Decoder,
    language: Arc<Language>,
    /// The pages of all sequences. One step runs at a time, on whichever lane.
    cache: Mutex<Cache>,
}

impl LanguageModel {
    /// What it takes and gives, as Triton's generate extension names it.
    pub(crate) fn spec(source: &ModelSource) -> ModelSpec {
        let text = |name: &str| TensorSpec {
            name: name.into(),
            datatype: DataType::Bytes,
            dims: vec![Dim::Fixed(1)],
        };
        ModelSpec {
            name: Arc::clone(&source.name),
            version: source.version,
            platform: EngineKind::Language.platform().into(),
            inputs: vec![text("text_input")],
            outputs: vec![text("text_output")],
            labels: source.labels.clone(),
        }
    }

    /// What its file says without its weights.
    pub(crate) fn describe(source: &ModelSource) -> Result<Language, EngineError> {
        let file = open(&source.path)?;
        let (_, language, _) = parsed(&source.path, &file)?;
        Ok(language)
    }

    pub(crate) fn load(source: &ModelSource) -> Result<Self, EngineError> {
        let file = open(&source.path)?;
        let (gguf, language, architecture) = parsed(&source.path, &file)?;
        let decoder =
            Decoder::of_gguf(architecture, &gguf.tensors).map_err(|error| broken(&source.path, &error))?;
        let cache = Mutex::new(Cache::new(decoder.cache_shape(PAGE_TOKENS)));
        let language = Arc::new(language);
        Ok(Self { loaded: Arc::new(Loaded { spec: Self::spec(source), decoder, language, cache }) })
    }
}

impl Model for LanguageModel {
    fn spec(&self) -> &ModelSpec {
        &self.loaded.spec
    }

    fn footprint(&self) -> Footprint {
        Footprint { weights_bytes: self.loaded.decoder.bytes() as u64, ..Footprint::default() }
    }

    fn language(&self) -> Option<Arc<Language>> {
        Some(Arc::clone(&self.loaded.language))
    }

    fn runner(&self, lane: &LaneSpec) -> Result<Box<dyn Runner>, EngineError> {
        let team = spawn::team("language", lane)?;
        let forward = Forward::new(&self.loaded.decoder, Cpu::best(), team);
        Ok(Box::new(LanguageRunner { loaded: Arc::clone(&self.loaded), forward, scores: Vec::new() }))
    }
}

impl fmt::Debug for LanguageModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LanguageModel").field("name", &self.loaded.spec.name).finish_non_exhaustive()
    }
}

struct LanguageRunner {
    loaded: Arc<Loaded>,
    forward: Forward,
    /// Those of one sequence.
    scores: Vec<f32>,
}

impl Runner for LanguageRunner {
    fn submit(&mut self, work: StepWork, done: Done) {
        drop(work);
        done.fire(Err(EngineError::Input("a language model generates; it runs nothing once".into())));
    }

    fn iterate(&mut self, parts: Vec<SequencePart>, done: Done<Vec<Option<Generated>>>) {
        let result = guarded(|| self.compute(&parts));
        drop(parts);
        done.fire(result);
    }
}

impl LanguageRunner {
    fn compute(&mut self, parts: &[SequencePart]) -> Result<Vec<Option<Generated>>, EngineError> {
        let Self { loaded, forward, scores } = self;
        // What each part computes, and whether that is all there is of its sequence.
        let taken: Vec<(Vec<u32>, bool)> = parts.iter().map(taken).collect::<Result<_, _>>()?;
        let mut cache = loaded.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let most = parts.iter().flat_map(|part| &part.pages).max().map_or(0, |page| page + 1);
        while cache.pages() < most {
            cache.add_page();
        }
        let mut tokens = Vec::with_capacity(taken.iter().map(|(tokens, _)| tokens.len()).sum());
        for (part, (own, is_all)) in parts.iter().zip(&taken) {
            let last = own.len() - 1;
            tokens.extend(own.iter().enumerate().map(|(at, token)| Token {
                token: *token,
                position: part.from + at,
                pages: &part.pages,
                wants_scores: *is_all && at == last,
            }));
        }
        let rows = forward.run(&loaded.decoder, &mut cache, &tokens);
        let mut row = 0;
        let choose = |(part, (_, is_all)): (&SequencePart, &(Vec<u32>, bool))| {
            if !is_all {
                return None;
            }
            scores.clear();
            scores.extend(rows.row(row));
            row += 1;
            Some(part.sequence.lend(|state| state.choose(scores)))
        };
        Ok(parts.iter().zip(&taken).map(choose).collect())
    }
}

/// The tokens of a part, and whether they are the last ones of its sequence.
fn taken(part: &SequencePart) -> Result<(Vec<u32>, bool), EngineError> {
    part.sequence.lend(|state| {
        let to = part.from + part.tokens;
        match state.tokens.get(part.from..to) {
            Some(tokens) if !tokens.is_empty() && part.pages.len() * PAGE_TOKENS >= to => {
                Ok((tokens.to_vec(), to == state.tokens.len()))
            }
            Some(_) | None => Err(EngineError::Panicked(format!(
                "tokens `{}` to `{to}` of a sequence of `{}` with `{}` pages were asked for",
                part.from,
                state.tokens.len(),
                part.pages.len()
            ))),
        }
    })
}

fn open(path: &Path) -> Result<FileMap, EngineError> {
    FileMap::open(path).map_err(|error| EngineError::Load(format!("`{}` {error}", path.display())))
}

fn parsed<'a>(path: &Path, file: &'a FileMap) -> Result<(Gguf<'a>, Language, Architecture), EngineError> {
    let gguf = Gguf::parse(file.as_bytes()).map_err(|error| broken(path, &error))?;
    let architecture =
        Architecture::of_gguf(&gguf.metadata, &gguf.tensors).map_err(|error| broken(path, &error))?;
    let language = Language::of_gguf(&gguf, &architecture).map_err(|error| broken(path, &error))?;
    Ok((gguf, language, architecture))
}

fn broken(path: &Path, error: &dyn fmt::Display) -> EngineError {
    EngineError::Load(format!("`{}`: {error}", path.display()))
}
