//! One profile as a TOML file. The version changes when old files would be misread.
//!
//! `costs` holds what was measured before serving. It is also the place for what is learnt while serving:
//! a reader takes the lines it knows, one for each width, rows and neighbourhood.

use std::time::Duration;

use quadrant_engine::{Cost, Occupancy, Peak, ProbeOptions, Profile, SequenceProfile};
use quadrant_types::Shape;
use serde::{Deserialize, Serialize};

use super::{Machine, ProfileKey};

const VERSION: u32 = 1;

const HEAD: &str = "# What Quadrant measured of a model on this machine. It may be deleted at any time.\n";

/// The last line: a file cut short within a number would otherwise read as another number.
const TAIL: &str = "# end\n";

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    key: KeyLines,
    asked: AskedLines,
    profile: ProfileLines,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryLines>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequences: Option<SequenceLines>,
    costs: Vec<CostLine>,
}

#[derive(Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct KeyLines {
    model_sha256: String,
    engine: String,
    processor: String,
    cores: usize,
    device_cores: usize,
}

#[derive(Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct AskedLines {
    batching: String,
    rows_max: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    width: Option<usize>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ProfileLines {
    width: usize,
    widths: Vec<usize>,
    batches: bool,
    rows_max: usize,
    shapes: Vec<Vec<usize>>,
    reason: String,
}

/// Bytes that the model takes.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryLines {
    /// How long loading takes.
    load_ns: u64,
    /// At most while it is loaded.
    load: u64,
    /// Once it is loaded.
    loaded: u64,
    /// Once it has run: width, rows and bytes.
    peaks: Vec<(usize, usize, u64)>,
}

impl From<&Occupancy> for MemoryLines {
    fn from(occupancy: &Occupancy) -> Self {
        let Occupancy { load_time, load_bytes, loaded_bytes, peaks } = occupancy;
        let peak = |peak: &Peak| (peak.width, peak.rows, peak.bytes);
        let load_ns = u64::try_from(load_time.as_nanos()).unwrap_or(u64::MAX);
        Self { load_ns, load: *load_bytes, loaded: *loaded_bytes, peaks: peaks.iter().map(peak).collect() }
    }
}

impl From<MemoryLines> for Occupancy {
    fn from(lines: MemoryLines) -> Self {
        let MemoryLines { load_ns, load, loaded, peaks } = lines;
        let peak = |(width, rows, bytes)| Peak { width, rows, bytes };
        let peaks = peaks.into_iter().map(peak).collect();
        let load_time = Duration::from_nanos(load_ns);
        Self { load_time, load_bytes: load, loaded_bytes: loaded, peaks }
    }
}

/// What the sequences of a model take that generates.
#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SequenceLines {
    page_tokens: usize,
    page_bytes: usize,
    tokens_max: usize,
    thousand_keys_ns: u64,
}

impl From<&SequenceProfile> for SequenceLines {
    fn from(sequences: &SequenceProfile) -> Self {
        let SequenceProfile { page_tokens, page_bytes, tokens_max, thousand_keys } = *sequences;
        let thousand_keys_ns = u64::try_from(thousand_keys.as_nanos()).unwrap_or(u64::MAX);
        Self { page_tokens, page_bytes, tokens_max, thousand_keys_ns }
    }
}

impl From<SequenceLines> for SequenceProfile {
    fn from(lines: SequenceLines) -> Self {
        let SequenceLines { page_tokens, page_bytes, tokens_max, thousand_keys_ns } = lines;
        let thousand_keys = Duration::from_nanos(thousand_keys_ns);
        Self { page_tokens, page_bytes, tokens_max, thousand_keys }
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct CostLine {
    width: usize,
    rows: usize,
    beside: bool,
    step_ns: u64,
}

/// The text of a file.
///
/// # Errors
/// If something cannot be written as TOML.
pub(super) fn print(
    key: &ProfileKey,
    asked: &ProbeOptions,
    profile: &Profile,
) -> Result<String, toml::ser::Error> {
    let cost = |cost: &Cost| CostLine {
        width: cost.width,
        rows: cost.rows,
        beside: cost.beside,
        step_ns: u64::try_from(cost.step.as_nanos()).unwrap_or(u64::MAX),
    };
    let file = File {
        version: VERSION,
        key: key_lines(key),
        asked: asked_lines(asked),
        profile: ProfileLines {
            width: profile.width,
            widths: profile.widths.clone(),
            batches: profile.batches,
            rows_max: profile.rows_max,
            shapes: profile.shapes.iter().map(|shape| shape.to_vec()).collect(),
            reason: profile.reason.clone(),
        },
        memory: profile.occupancy.as_ref().map(MemoryLines::from),
        sequences: profile.sequences.as_ref().map(SequenceLines::from),
        costs: profile.costs.iter().map(cost).collect(),
    };
    Ok(format!("{HEAD}{}{TAIL}", toml::to_string(&file)?))
}

/// The profile in a file; `None` if something else was asked when it was measured.
///
/// # Errors
/// Why the file is no profile for this key.
pub(super) fn parse(text: &str, key: &ProfileKey, asked: &ProbeOptions) -> Result<Option<Profile>, String> {
    if !text.ends_with(TAIL) {
        return Err("it is not complete".into());
    }
    let version = toml::from_str::<toml::Table>(text).map_err(|error| error.message().to_owned())?;
    let version = version.get("version").and_then(toml::Value::as_integer).ok_or("it has no `version`")?;
    if version != i64::from(VERSION) {
        return Err(format!("it has version `{version}`, this is version `{VERSION}`"));
    }
    let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    if file.key != key_lines(key) {
        return Err("it belongs to another model, engine or machine".into());
    }
    check(&file, key.machine.device_cores)?;
    if file.asked != asked_lines(asked) {
        return Ok(None);
    }
    let cost = |line: CostLine| Cost {
        width: line.width,
        rows: line.rows,
        beside: line.beside,
        step: Duration::from_nanos(line.step_ns),
    };
    let ProfileLines { width, widths, batches, rows_max, shapes, reason } = file.profile;
    let mut costs: Vec<_> = file.costs.into_iter().map(cost).collect();
    costs.sort_unstable();
    let shapes = shapes.iter().map(|shape| Shape::from_slice(shape)).collect();
    let (occupancy, sequences) =
        (file.memory.map(Occupancy::from), file.sequences.map(SequenceProfile::from));
    Ok(Some(Profile { width, widths, batches, rows_max, costs, shapes, reason, occupancy, sequences }))
}

/// What the rest of the server may rely on, since the file could have been edited.
fn check(file: &File, device_cores: usize) -> Result<(), String> {
    let ProfileLines { width, widths, batches, rows_max, .. } = &file.profile;
    let known = |width: &usize| [1, device_cores].contains(width);
    let ascends = widths.windows(2).all(|pair| pair[0] < pair[1]);
    let rules = [
        (!widths.is_empty() && ascends && widths.iter().all(known), "`widths` are not such as it has"),
        (widths.contains(width), "`width` is not one of `widths`"),
        (*rows_max > 0 && (*batches || *rows_max == 1), "`rows_max` does not fit `batches`"),
        (file.costs.iter().any(|cost| cost.width == *width), "`costs` lack the `width`"),
        (file.costs.iter().all(|cost| cost.rows > 0 && cost.step_ns > 0), "`costs` has a zero"),
        (
            file.sequences
                .is_none_or(|lines| lines.page_tokens > 0 && lines.page_bytes > 0 && lines.tokens_max > 0),
            "`sequences` has a zero",
        ),
    ];
    match rules.into_iter().find(|(holds, _)| !holds) {
        Some((_, broken)) => Err(broken.into()),
        None => Ok(()),
    }
}

fn key_lines(key: &ProfileKey) -> KeyLines {
    let ProfileKey { model_sha256, engine, machine } = key.clone();
    let Machine { processor, cores, device_cores } = machine;
    KeyLines { model_sha256, engine, processor, cores, device_cores }
}

/// Without the budget: how long measuring took does not change what it found.
fn asked_lines(asked: &ProbeOptions) -> AskedLines {
    AskedLines { batching: asked.batching.name().into(), rows_max: asked.rows_max, width: asked.width }
}
