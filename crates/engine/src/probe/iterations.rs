//! Tries a language model out: what an iteration takes by its tokens, on one core and on all, and what the
//! keys add that they attend to.
//!
//! Up to sixteen tokens are measured as they come when as many sequences continue, more as a prompt. The same
//! number of tokens takes a little longer in the first case, because all of them are followed by a next one.

use std::sync::Arc;
use std::time::Duration;

use quadrant_kernels::Cpu;
use quadrant_llm::Sampling;
use quadrant_types::{Clock, RequestId};

use super::measure::Worker;
use super::widths::WIDE_GAIN;
use super::{Cost, ProbeOptions, Profile, SequenceProfile};
use crate::language::Language;
use crate::{EngineError, Generation, LaneSpec, Model, Sequence, SequencePart};

/// Tokens of the iterations that are measured; the last is the most that an iteration has.
const TOKENS: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
/// Up to so many tokens are of as many sequences.
const SEQUENCES_MAX: usize = 16;
/// Tokens before those that attend to many keys, and how many these are.
const LONG: (usize, usize) = (960, 16);

/// Tries a model out that generates.
///
/// # Errors
/// If it cannot be run.
pub(super) fn probe(
    model: &Arc<dyn Model>,
    language: &Arc<Language>,
    lanes: &[LaneSpec],
    clock: &Arc<dyn Clock>,
    options: &ProbeOptions,
) -> Result<Profile, EngineError> {
    let no_lanes = || EngineError::Load("there are no lanes to try it out on".into());
    let first = *lanes.first().ok_or_else(no_lanes)?;
    let cores = lanes.iter().fold(first.cores, |cores, lane| cores.union(lane.cores));
    let narrow = Worker::start(model, &first, clock)?;
    let wide = match lanes.len() {
        1 => None,
        _ => Some(Worker::start(model, &LaneSpec { cores, ..first }, clock)?),
    };
    let tokens: Vec<usize> = TOKENS.into_iter().filter(|tokens| *tokens <= language.tokens_max).collect();
    let window = options.budget / u32::try_from(2 * tokens.len() + 2).unwrap_or(u32::MAX);
    let mut costs = Vec::new();
    for worker in [Some(&narrow), wide.as_ref()].into_iter().flatten() {
        for tokens in tokens.iter().copied() {
            let parts = parts_of(language, tokens);
            let (width, step) = (worker.lane.cores.len(), worker.iterations(parts, window)?);
            costs.push(Cost { width, rows: tokens, beside: false, step });
        }
    }
    costs.sort_unstable();
    let widths = widths(&costs, options.width, cores.len());
    let sequences = SequenceProfile {
        page_tokens: language.page_tokens,
        page_bytes: language.page_bytes,
        tokens_max: language.tokens_max,
        thousand_keys: thousand_keys(language, &narrow, window)?,
    };
    let of = |width: usize| {
        let own = costs.iter().filter(move |cost| cost.width == width);
        own.map(|cost| format!("{} in {:.2?}", cost.rows, cost.step)).collect::<Vec<_>>().join(", ")
    };
    let measured: Vec<String> =
        widths.iter().map(|width| format!("tokens on {width} cores: {}", of(*width))).collect();
    Ok(Profile {
        width: *widths.last().unwrap_or(&1),
        batches: true,
        rows_max: tokens.last().copied().unwrap_or(1),
        reason: format!("it generates, with {}; measured {}", Cpu::best().name(), measured.join("; ")),
        widths,
        costs,
        sequences: Some(sequences),
        ..Profile::unmeasured()
    })
}

/// Runs an iteration of so many tokens of one prompt.
///
/// # Errors
/// If it cannot be run.
pub(super) fn run_largest(
    language: &Arc<Language>,
    worker: &Worker,
    tokens: usize,
) -> Result<(), EngineError> {
    let language = Arc::clone(language);
    worker.iterations(move || vec![part(&language, 0, 0, tokens)], Duration::ZERO).map(drop)
}

/// One core, and all of them if they end some iteration so much sooner; or what the configuration fixes.
fn widths(costs: &[Cost], demanded: Option<usize>, cores: usize) -> Vec<usize> {
    if let Some(width) = demanded {
        return vec![if width > 1 { cores } else { 1 }];
    }
    let step = |width: usize, rows: usize| {
        costs.iter().find(|cost| (cost.width, cost.rows) == (width, rows)).map(|cost| cost.step.as_secs_f64())
    };
    let gains = |tokens: &usize| match (step(1, *tokens), step(cores, *tokens)) {
        (Some(narrow), Some(wide)) => narrow >= WIDE_GAIN * wide,
        _ => false,
    };
    if cores > 1 && TOKENS.iter().any(gains) { vec![1, cores] } else { vec![1] }
}

fn parts_of(language: &Arc<Language>, tokens: usize) -> impl Fn() -> Vec<SequencePart> + Send + use<> {
    let language = Arc::clone(language);
    move || {
        if tokens <= SEQUENCES_MAX {
            (0..tokens).map(|number| part(&language, number, 0, 1)).collect()
        } else {
            vec![part(&language, 0, 0, tokens)]
        }
    }
}

/// What a thousand keys add, from the same tokens with few keys before them and with many.
fn thousand_keys(
    language: &Arc<Language>,
    worker: &Worker,
    window: Duration,
) -> Result<Duration, EngineError> {
    let (before, tokens) = LONG;
    let before = before.min(language.tokens_max.saturating_sub(tokens));
    let time = |from: usize| {
        let language = Arc::clone(language);
        worker.iterations(move || vec![part(&language, 0, from, tokens)], window)
    };
    let (few, many) = (time(0)?, time(before)?);
    let thousands = (before * tokens) as f64 / 1_000.0;
    Ok(many.saturating_sub(few).div_f64(thousands.max(1e-3)))
}

/// Tokens of the sequence with this number, the last of which is its last. The pages of two sequences are not
/// the same as long as they have one each.
fn part(language: &Arc<Language>, number: usize, from: usize, tokens: usize) -> SequencePart {
    let vocabulary = language.tokenizer.token_count().max(1);
    let token = |at: usize| u32::try_from((number * 7_919 + at * 31 + 11) % vocabulary).unwrap_or(0);
    let prompt: Vec<u32> = (0..from + tokens).map(token).collect();
    let pages = (from + tokens).div_ceil(language.page_tokens);
    let generation = Generation {
        prompt,
        tokens_max: u32::MAX,
        sampling: Sampling::default(),
        stops: Vec::new(),
        ignores_end: true,
        grammar: None,
    };
    let sequence = Sequence::new(generation, Arc::clone(language)).expect("it has no grammar");
    SequencePart {
        request: RequestId(number as u64),
        sequence: Arc::new(sequence),
        from,
        tokens,
        pages: (number..number + pages).collect(),
    }
}
