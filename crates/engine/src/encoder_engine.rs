//! Encoders of the BERT family on our own kernels: texts in, a vector of length one out for each.
//!
//! A folder as Hugging Face has it: `model.safetensors`, and beside it `config.json` and `tokenizer.json`,
//! and of `sentence-transformers` `1_Pooling/config.json` and `sentence_bert_config.json` if they are there.
//! Texts of any length share a batch without padding, and each one's vector has the same bits in every
//! company.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quadrant_kernels::Cpu;
use quadrant_llm::{
    Embedder, Encoder, EncoderConfig, Pooling, TextTokenizer, parse_safetensors, tokens_max_of_json,
};
use quadrant_types::{DataType, Dim, ModelSpec, Shape, Tensor, TensorSpec};

use crate::load::EngineKind;
use crate::panics::guarded;
use crate::spawn;
use crate::{Done, EngineError, Footprint, LaneSpec, Model, ModelSource, Runner, StepResult, StepWork};

/// Bytes of a configuration or a tokenizer; the largest known tokenizer has 20 MB.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A loaded encoder.
pub(crate) struct EncoderModel {
    loaded: Arc<Loaded>,
}

struct Loaded {
    spec: ModelSpec,
    encoder: Encoder,
    tokenizer: TextTokenizer,
}

impl EncoderModel {
    /// What it takes and gives, by its `config.json`.
    pub(crate) fn describe(source: &ModelSource) -> Result<ModelSpec, EngineError> {
        Ok(spec(source, &config(source)?))
    }

    pub(crate) fn load(source: &ModelSource) -> Result<Self, EngineError> {
        let config = config(source)?;
        let spec = spec(source, &config);
        let beside = |name: &str| source.path.with_file_name(name);
        let tokens_max = optional(&beside("sentence_bert_config.json"), tokens_max_of_json)?.flatten();
        let tokens_max = tokens_max.unwrap_or(config.context).min(config.context);
        let tokenizer = parsed(&beside("tokenizer.json"), |json| {
            TextTokenizer::of_json(json, config.vocabulary, tokens_max)
        })?;
        let pooling = optional(&beside("1_Pooling/config.json"), Pooling::of_json)?.unwrap_or_default();
        // Not mapped: a file that is overwritten in place would end the process. It is packed anyway.
        let file = fs::read(&source.path).map_err(|error| broken(&source.path, &error))?;
        let tensors = parse_safetensors(&file).map_err(|error| broken(&source.path, &error))?;
        let encoder = Encoder::of_safetensors(config, pooling, &tensors)
            .map_err(|error| broken(&source.path, &error))?;
        Ok(Self { loaded: Arc::new(Loaded { spec, encoder, tokenizer }) })
    }
}

impl Model for EncoderModel {
    fn spec(&self) -> &ModelSpec {
        &self.loaded.spec
    }

    fn footprint(&self) -> Footprint {
        Footprint { weights_bytes: self.loaded.encoder.bytes() as u64, ..Footprint::default() }
    }

    fn runner(&self, lane: &LaneSpec) -> Result<Box<dyn Runner>, EngineError> {
        let team = spawn::team("encoder", lane)?;
        let embedder = Embedder::new(&self.loaded.encoder, Cpu::best(), team);
        Ok(Box::new(EncoderRunner { loaded: Arc::clone(&self.loaded), embedder }))
    }
}

impl fmt::Debug for EncoderModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncoderModel").field("name", &self.loaded.spec.name).finish_non_exhaustive()
    }
}

struct EncoderRunner {
    loaded: Arc<Loaded>,
    embedder: Embedder,
}

impl Runner for EncoderRunner {
    fn submit(&mut self, work: StepWork, done: Done) {
        let result = guarded(|| self.compute(&work));
        drop(work);
        done.fire(result);
    }
}

impl EncoderRunner {
    fn compute(&mut self, work: &StepWork) -> StepResult {
        let Self { loaded, embedder } = self;
        let [texts] = &*work.inputs else {
            let given = work.inputs.len();
            return Err(EngineError::Input(format!("`{given}` inputs were given, the model has one")));
        };
        let tokens = tokens(&loaded.tokenizer, texts)?;
        let sequences: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        let output = |index: &usize| match index {
            0 => Ok(vectors(&embedder.run(&loaded.encoder, &sequences), loaded.encoder.config().width)),
            1 => Ok(counts(&sequences)),
            _ => Err(EngineError::Input("an output does not exist".into())),
        };
        work.outputs.iter().map(output).collect()
    }
}

/// The tokens of every text.
fn tokens(tokenizer: &TextTokenizer, texts: &Tensor) -> Result<Vec<Vec<u32>>, EngineError> {
    if texts.datatype != DataType::Bytes {
        return Err(EngineError::Input(format!("`{}` is no text", texts.datatype)));
    }
    let tokens = |text: Option<&[u8]>| {
        let text = text.ok_or_else(|| EngineError::Input("texts do not fill their tensor".into()))?;
        let text = std::str::from_utf8(text);
        let text = text.map_err(|error| EngineError::Input(format!("a text is not UTF-8: {error}")))?;
        tokenizer.encode(text).map_err(|error| EngineError::Input(format!("a text cannot be read: {error}")))
    };
    let tokens: Vec<Vec<u32>> = texts.strings().map(tokens).collect::<Result<_, _>>()?;
    if tokens.len() != texts.elements() {
        let (found, wanted) = (tokens.len(), texts.elements());
        return Err(EngineError::Input(format!("`{found}` texts were given instead of `{wanted}`")));
    }
    Ok(tokens)
}

/// Each vector divided by its length; one without a length stays zero.
fn vectors(vectors: &[Vec<f32>], width: usize) -> Tensor {
    let mut bytes = Vec::with_capacity(4 * vectors.len() * width);
    for vector in vectors {
        let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        bytes.extend(vector.iter().flat_map(|value| (value * scale).to_le_bytes()));
    }
    tensor(DataType::Fp32, &[vectors.len(), width], bytes)
}

fn counts(sequences: &[&[u32]]) -> Tensor {
    let bytes = sequences.iter().flat_map(|tokens| (tokens.len() as u64).to_le_bytes()).collect();
    tensor(DataType::Int64, &[sequences.len()], bytes)
}

fn tensor(datatype: DataType, shape: &[usize], bytes: Vec<u8>) -> Tensor {
    Tensor { datatype, shape: Shape::from_slice(shape), data: Bytes::from(bytes) }
}

fn config(source: &ModelSource) -> Result<EncoderConfig, EngineError> {
    parsed(&source.path.with_file_name("config.json"), EncoderConfig::of_json)
}

/// What a file beside the weights says.
fn parsed<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<T, EngineError> {
    parse(&read(path)?).map_err(|error| broken(path, &error))
}

/// The same, if there is such a file.
fn optional<T>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<Option<T>, EngineError> {
    if path.exists() { parsed(path, parse).map(Some) } else { Ok(None) }
}

fn spec(source: &ModelSource, config: &EncoderConfig) -> ModelSpec {
    let batch = || Dim::Symbol("batch".into());
    let tensor = |name: &str, datatype, dims| TensorSpec { name: name.into(), datatype, dims };
    ModelSpec {
        name: Arc::clone(&source.name),
        version: source.version,
        platform: EngineKind::Encoder.platform().into(),
        inputs: vec![tensor("text", DataType::Bytes, vec![batch()])],
        outputs: vec![
            tensor("embedding", DataType::Fp32, vec![batch(), Dim::Fixed(config.width)]),
            tensor("tokens", DataType::Int64, vec![batch()]),
        ],
        labels: source.labels.clone(),
    }
}

/// A file that must lie beside the weights.
fn read(path: &Path) -> Result<Vec<u8>, EngineError> {
    let size = fs::metadata(path).map_err(|error| broken(path, &error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(broken(path, &format!("`{size}` bytes are more than `{FILE_BYTES_MAX}`")));
    }
    fs::read(path).map_err(|error| broken(path, &error))
}

fn broken(path: &Path, error: &dyn fmt::Display) -> EngineError {
    EngineError::Load(format!("`{}`: {error}", path.display()))
}
