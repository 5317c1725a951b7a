//! Reads Triton's `config.pbtxt`: what it says about a model becomes [`ModelSettings`], and what it says
//! about inputs and outputs is checked against the graph. Unknown fields are errors with their line and
//! column. Known ones that would change answers and are not served are errors too; those that are only
//! advice about resources are named in the log. Nothing is passed over in silence.

use std::path::Path;
use std::time::Duration;

use prost_reflect::{DescriptorPool, DynamicMessage};
use quadrant_engine::EngineKind;
use quadrant_proto::inference::{
    self as proto, model_config::SchedulingChoice, model_version_policy::PolicyChoice,
};
use quadrant_proto::{MODEL_CONFIG_DESCRIPTOR_SET, MODEL_CONFIG_MESSAGE};
use quadrant_types::{Dim, ModelSpec, TensorSpec};

use crate::{Batching, ModelSettings};

/// Bytes of a `config.pbtxt` that are read.
const BYTES_MAX: u64 = 1 << 20;

/// What a `config.pbtxt` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ModelConfig {
    pub(crate) settings: ModelSettings,
    /// Fields that were understood and are not used.
    pub(crate) unused: Vec<&'static str>,
    /// Output name and file name.
    pub(crate) label_files: Vec<(String, String)>,
    name: String,
    batched: bool,
    inputs: Vec<TensorConfig>,
    outputs: Vec<TensorConfig>,
}

/// What is said of one input or output: its name, its type, its dimensions without the batch dimension.
#[derive(Clone, Debug, PartialEq)]
struct TensorConfig {
    name: String,
    datatype: Option<String>,
    dims: Vec<i64>,
}

/// Reads the file.
///
/// # Errors
/// Why it cannot be obeyed, for a person, with the place.
pub(crate) fn read(path: &Path) -> Result<ModelConfig, String> {
    let fail = |reason: &str| format!("`{}`: {reason}", path.display());
    let size = std::fs::metadata(path).map_err(|error| fail(&error.to_string()))?.len();
    if size > BYTES_MAX {
        return Err(fail(&format!("`{size}` bytes are more than `{BYTES_MAX}`")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| fail(&error.to_string()))?;
    parse(&text).map_err(|reason| fail(&reason))
}

fn parse(text: &str) -> Result<ModelConfig, String> {
    let pool = DescriptorPool::decode(MODEL_CONFIG_DESCRIPTOR_SET).expect("it was compiled with this crate");
    let descriptor = pool.get_message_by_name(MODEL_CONFIG_MESSAGE).expect("it is in the descriptor set");
    let text = &with_colons(text);
    let message = DynamicMessage::parse_text_format(descriptor, text).map_err(|error| place(text, &error))?;
    let message: proto::ModelConfig = message.transcode_to().map_err(|error| error.to_string())?;
    understand(message)
}

/// Writes `input: [` for `input [`. The text format lets the colon of a list of messages be left out, as
/// every Triton configuration does; the parser does not know that. Where there is a space it becomes the
/// colon, so that places stay right.
fn with_colons(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut quote = None;
    let mut comment = false;
    let mut escaped = false;
    for character in text.chars() {
        match (comment, quote) {
            (true, _) => comment = character != '\n',
            (false, Some(open)) => {
                if !escaped && character == open {
                    quote = None;
                }
                escaped = !escaped && character == '\\';
            }
            (false, None) => match character {
                '#' => comment = true,
                '"' | '\'' => quote = Some(character),
                '[' => {
                    let name = out.trim_end();
                    let after_name = name.ends_with(|last: char| last.is_ascii_alphanumeric() || last == '_');
                    let in_comment = name.lines().next_back().is_some_and(|line| line.contains('#'));
                    if after_name && !in_comment {
                        let end = name.len();
                        out.replace_range(end..(end + 1).min(out.len()), ":");
                    }
                }
                _ => {}
            },
        }
        out.push(character);
    }
    out
}

/// The error with its line and column, both from 1.
fn place(text: &str, error: &prost_reflect::text_format::ParseError) -> String {
    let label = miette::Diagnostic::labels(error).and_then(|mut labels| labels.next());
    // What has no place is missing at the end.
    let offset = label.map_or(text.trim_end().len(), |label| label.offset());
    let Some(before) = text.get(..offset) else { return error.to_string() };
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
    format!("line {line}, column {column}: {error}")
}

fn understand(message: proto::ModelConfig) -> Result<ModelConfig, String> {
    refuse_unserved(&message)?;
    let settings = ModelSettings {
        engine: engine(&message)?,
        batching: batching(&message)?,
        queue_max: queue_max(&message)?,
        delay_max: delay_max(&message),
        ..ModelSettings::default()
    };
    let label_files = message.output.iter().filter(|output| !output.label_filename.is_empty());
    let label_files =
        label_files.map(|output| (output.name.clone(), output.label_filename.clone())).collect();
    let tensor = |name: String, datatype: proto::DataType, dims: Vec<i64>| TensorConfig {
        name,
        datatype: (datatype != proto::DataType::TypeInvalid).then(|| datatype_name(datatype)),
        dims,
    };
    let batched = message.max_batch_size > 0;
    let unused = unused(&message);
    let inputs = message.input.into_iter();
    let outputs = message.output.into_iter();
    Ok(ModelConfig {
        settings,
        unused,
        label_files,
        name: message.name,
        batched,
        inputs: inputs.map(|input| tensor(input.name.clone(), input.data_type(), input.dims)).collect(),
        outputs: outputs.map(|output| tensor(output.name.clone(), output.data_type(), output.dims)).collect(),
    })
}

/// `TYPE_FP32` is `FP32`, and `TYPE_STRING` is `BYTES`.
fn datatype_name(datatype: proto::DataType) -> String {
    match datatype.as_str_name().trim_start_matches("TYPE_") {
        "STRING" => "BYTES".to_owned(),
        name => name.to_owned(),
    }
}

fn refuse_unserved(message: &proto::ModelConfig) -> Result<(), String> {
    match &message.scheduling_choice {
        Some(SchedulingChoice::SequenceBatching(_)) => return Err("`sequence_batching` is not served".into()),
        Some(SchedulingChoice::EnsembleScheduling(_)) => return Err("ensembles are not served".into()),
        Some(SchedulingChoice::DynamicBatching(_)) | None => {}
    }
    if message.model_transaction_policy.as_ref().is_some_and(|policy| policy.decoupled) {
        return Err("decoupled models are not served".into());
    }
    let policy = message.version_policy.as_ref().and_then(|policy| policy.policy_choice.as_ref());
    match policy {
        Some(PolicyChoice::All(_)) => {
            return Err("`version_policy: all` is not served; the highest version is".into());
        }
        Some(PolicyChoice::Specific(_)) => return Err("`version_policy: specific` is not served".into()),
        Some(PolicyChoice::Latest(latest)) if latest.num_versions > 1 => {
            return Err("only the highest version is served: `num_versions` must be 1".into());
        }
        Some(PolicyChoice::Latest(_)) | None => {}
    }
    let reshaped = message.input.iter().any(|input| input.reshape.is_some())
        || message.output.iter().any(|output| output.reshape.is_some());
    if reshaped { Err("`reshape` is not served".into()) } else { Ok(()) }
}

/// Advice that this server does not take, because it measures or schedules by itself.
fn unused(message: &proto::ModelConfig) -> Vec<&'static str> {
    let dynamic = match &message.scheduling_choice {
        Some(SchedulingChoice::DynamicBatching(dynamic)) => Some(dynamic),
        Some(_) | None => None,
    };
    [
        ("instance_group", !message.instance_group.is_empty()),
        ("optimization", message.optimization.is_some()),
        ("model_warmup", !message.model_warmup.is_empty()),
        ("response_cache", message.response_cache.is_some()),
        ("parameters", !message.parameters.is_empty()),
        ("preferred_batch_size", dynamic.is_some_and(|dynamic| !dynamic.preferred_batch_size.is_empty())),
        ("preserve_ordering", dynamic.is_some_and(|dynamic| dynamic.preserve_ordering)),
        ("priority_levels", dynamic.is_some_and(|dynamic| dynamic.priority_levels > 0)),
    ]
    .into_iter()
    .filter_map(|(name, said)| said.then_some(name))
    .collect()
}

fn engine(message: &proto::ModelConfig) -> Result<Option<EngineKind>, String> {
    let named = [&message.backend, &message.platform].into_iter().find(|name| !name.is_empty());
    match named.map(String::as_str) {
        None | Some("onnxruntime" | "onnxruntime_onnx" | "onnx") => Ok(None),
        Some(name) => name.parse().map(Some).map_err(|()| {
            let known = "`onnxruntime`, `ort`, `rten`, `encoder` and `emulated`";
            format!("backend `{name}` is not served; known are {known}")
        }),
    }
}

fn batching(message: &proto::ModelConfig) -> Result<Option<Batching>, String> {
    let rows = u32::try_from(message.max_batch_size)
        .map_err(|_| format!("`max_batch_size` must not be negative: `{}`", message.max_batch_size))?;
    // As with Triton's own completion of a configuration, saying nothing leaves it to the graph.
    let said = !message.input.is_empty() || rows > 0;
    Ok(said.then_some(if rows == 0 { Batching::Off } else { Batching::UpTo(rows) }))
}

fn queue_max(message: &proto::ModelConfig) -> Result<Option<usize>, String> {
    let Some(SchedulingChoice::DynamicBatching(dynamic)) = &message.scheduling_choice else {
        return Ok(None);
    };
    if !dynamic.priority_queue_policy.is_empty() {
        return Err("`priority_queue_policy` is not served".into());
    }
    let size = dynamic.default_queue_policy.as_ref().map_or(0, |policy| policy.max_queue_size);
    Ok((size > 0).then_some(size as usize))
}

fn delay_max(message: &proto::ModelConfig) -> Option<Duration> {
    let Some(SchedulingChoice::DynamicBatching(dynamic)) = &message.scheduling_choice else { return None };
    Some(Duration::from_micros(dynamic.max_queue_delay_microseconds))
}

impl ModelConfig {
    /// Whether what is said of the name, the inputs and the outputs agrees with the graph.
    ///
    /// # Errors
    /// The first contradiction, for a person.
    pub(crate) fn check(&self, spec: &ModelSpec) -> Result<(), String> {
        if !self.name.is_empty() && *self.name != *spec.name {
            return Err(format!(
                "`config.pbtxt` is for model `{}`, the folder is `{}`",
                self.name, spec.name
            ));
        }
        for (kind, said, real) in
            [("input", &self.inputs, &spec.inputs), ("output", &self.outputs, &spec.outputs)]
        {
            for tensor in said {
                let Some(found) = real.iter().find(|found| *found.name == *tensor.name) else {
                    let names: Vec<&str> = real.iter().map(|found| &*found.name).collect();
                    let names = names.join("`, `");
                    return Err(format!("the model has no {kind} `{}`; it has `{names}`", tensor.name));
                };
                self.check_tensor(kind, tensor, found)?;
            }
        }
        Ok(())
    }

    fn check_tensor(&self, kind: &str, said: &TensorConfig, found: &TensorSpec) -> Result<(), String> {
        if said.datatype.as_deref().is_some_and(|datatype| datatype != found.datatype.name()) {
            let datatype = said.datatype.as_deref().unwrap_or_default();
            return Err(format!(
                "{kind} `{}` is `{}` in the model and `{datatype}` in `config.pbtxt`",
                said.name, found.datatype
            ));
        }
        let rows = self.batched.then_some(-1);
        let dims: Vec<i64> = rows.into_iter().chain(said.dims.iter().copied()).collect();
        let agrees = |(dim, said): (&Dim, &i64)| match dim {
            Dim::Fixed(size) => *said == -1 || usize::try_from(*said) == Ok(*size),
            Dim::Symbol(_) | Dim::Any => true,
        };
        if dims.len() == found.dims.len() && found.dims.iter().zip(&dims).all(agrees) {
            return Ok(());
        }
        Err(format!(
            "{kind} `{}` has the shape {} in the model and {dims:?} in `config.pbtxt`",
            said.name,
            found.shape_text()
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use quadrant_types::DataType;

    use super::*;

    #[test]
    fn what_it_says_becomes_settings() {
        let config = parse(
            r#"
            name: "m"
            backend: "rten"
            max_batch_size: 8
            input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] } ]
            output [ { name: "y" data_type: TYPE_FP32 dims: [ 10 ] label_filename: "classes.txt" } ]
            dynamic_batching { max_queue_delay_microseconds: 2000 default_queue_policy { max_queue_size: 7 } }
            "#,
        )
        .unwrap();
        let expect = ModelSettings {
            engine: Some(EngineKind::Rten),
            batching: Some(Batching::UpTo(8)),
            queue_max: Some(7),
            delay_max: Some(Duration::from_millis(2)),
            ..ModelSettings::default()
        };
        assert_eq!(config.settings, expect);
        assert_eq!(config.label_files, [("y".to_owned(), "classes.txt".to_owned())]);
        assert_eq!(parse("").unwrap(), ModelConfig::default());
    }

    #[test]
    fn a_missing_colon_before_a_list_is_put_in_its_place() {
        for (text, expect) in [
            ("input [ {} ]", "input:[ {} ]"),
            ("input[{}]", "input:[{}]"),
            ("dims: [ 1 ]", "dims: [ 1 ]"),
            ("name: \"a [ b\" # x [\n input [", "name: \"a [ b\" # x [\n input:["),
            ("input\n[ {} ]", "input:[ {} ]"),
        ] {
            assert_eq!(with_colons(text), expect);
        }
    }

    #[test]
    fn what_cannot_be_obeyed_is_refused_with_its_place() {
        for (text, part) in [
            ("name: \"m\"\n  max_bach_size: 3", "line 2, column 3"),
            ("max_batch_size: -1", "must not be negative"),
            ("backend: \"tensorrt\"", "backend `tensorrt` is not served"),
            ("ensemble_scheduling { }", "ensembles"),
            ("version_policy: { all { } }", "version_policy"),
            ("max_batch_size: \"x\"", "line 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "`{text}` gave `{error}`");
        }
    }

    #[test]
    fn a_contradiction_of_the_graph_is_named() {
        let tensor =
            |name: &str, dims: Vec<Dim>| TensorSpec { name: name.into(), datatype: DataType::Fp32, dims };
        let spec = ModelSpec {
            name: "m".into(),
            version: 1,
            platform: "p".into(),
            inputs: vec![tensor("x", vec![Dim::Symbol("b".into()), Dim::Fixed(3)])],
            outputs: vec![],
            labels: BTreeMap::new(),
        };
        for (text, part) in [
            ("name: \"other\"", "is for model `other`"),
            ("input [ { name: \"z\" } ]", "the model has no input `z`; it has `x`"),
            (
                "input [ { name: \"x\" data_type: TYPE_INT64 dims: [ -1, 3 ] } ]",
                "`FP32` in the model and `INT64`",
            ),
            ("max_batch_size: 2 input [ { name: \"x\" dims: [ 4 ] } ]", "[-1,3] in the model and [-1, 4]"),
        ] {
            let error = parse(text).unwrap().check(&spec).unwrap_err();
            assert!(error.contains(part), "`{text}` gave `{error}`");
        }
        let good = "name: \"m\" max_batch_size: 2 input [ { name: \"x\" data_type: TYPE_FP32 dims: [ 3 ] } ]";
        assert_eq!(parse(good).unwrap().check(&spec), Ok(()));
    }
}
