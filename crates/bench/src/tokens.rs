//! The load generator behind `quadrant bench-tokens`: streamed completions of any server with OpenAI's API,
//! and when their tokens came.
//!
//! Prompts are tokens drawn by the seed, so their lengths are exact and no two begin alike unless that is
//! wanted; answers are as long as asked for (`ignore_eos`, which vLLM and llama.cpp know, too). As in the
//! rest of the crate, times count from the intended sending.

mod report;
mod run;
mod stream;

use std::time::Duration;

use quadrant_traffic::{Chat, ChatTrace};

use crate::BenchError;

pub use report::TokenReport;
pub use run::run_tokens;

/// What is asked of whom, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenPlan {
    /// `HOST:PORT` of a server that answers `/v1/completions`.
    pub address: String,
    /// The model's name.
    pub model: String,
    /// When requests are sent, and how long they are.
    pub arrivals: TokenArrivals,
    /// How many tokens at their beginning all prompts have in common.
    pub shared_prefix: u32,
    /// Whether what prompts begin with is not to be taken from a cache (`cache_salt`).
    pub uncached: bool,
    /// What was sent earlier is not counted.
    pub warmup: Duration,
    /// By when the first token is wanted, which is told the server in `x-slo-ttft-ms`.
    pub first: Option<Duration>,
    /// How long each further token may take in the mean of a request, told in `x-slo-tpot-ms`.
    pub each: Option<Duration>,
    /// The share of requests to be in time: an open loop ends as soon as this cannot be reached any more.
    pub attainment_min: Option<f64>,
    /// The API key to show.
    pub api_key: Option<String>,
    /// Of the prompts.
    pub seed: u64,
}

/// When requests are sent.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenArrivals {
    /// Each at its time after the beginning, whatever became of those before it; and how long they are sent.
    Open(Vec<(Duration, Lengths)>, Duration),
    /// So many at a time, each sending its next one when it has its last answer, until so many were sent or
    /// so long was counted.
    Closed(usize, Lengths, crate::Length),
}

/// How long a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of its prompt.
    pub prompt: u32,
    /// Tokens of its answer.
    pub new: u32,
}

/// Reads a trace as [`ChatTrace::parse`] takes it. Times are divided by `speed`, lengths by `shorter`; what
/// then comes `within` so long is taken.
///
/// # Errors
/// If the file cannot be read or is not of this form.
pub fn read_token_trace(
    path: &str,
    speed: f64,
    shorter: u32,
    within: Duration,
) -> Result<Vec<(Duration, Lengths)>, BenchError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| BenchError::File { path: path.to_owned(), source })?;
    let trace = ChatTrace::parse(&text).map_err(|error| BenchError::Plan(format!("`{path}`: {error}")))?;
    let requests = trace.scaled(speed, shorter).take_while(|chat| chat.at <= within);
    Ok(requests.map(|Chat { at, prompt, new }| (at, Lengths { prompt, new })).collect())
}
