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
    /// Each at its time after the beginning, whatever became of those before it.
    Open(Vec<(Duration, Lengths)>),
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

/// Reads a trace with the columns `arrival_ms`, `input_tokens` and `output_tokens`. Times are divided by
/// `speed`; lengths by `shorter`, to no less than one token. What then comes `within` so long is taken.
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
    parse(&text, speed, shorter, within)
        .map_err(|reason| BenchError::Plan(format!("trace `{path}`: {reason}")))
}

fn parse(text: &str, speed: f64, shorter: u32, within: Duration) -> Result<Vec<(Duration, Lengths)>, String> {
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let header = lines.next().ok_or("the file is empty")?;
    let column = |wanted: &str| {
        let position = header.split(',').position(|name| name.trim() == wanted);
        position.ok_or_else(|| format!("no column `{wanted}` in `{header}`"))
    };
    let (at, prompt, new) = (column("arrival_ms")?, column("input_tokens")?, column("output_tokens")?);
    let mut requests = Vec::new();
    for (index, line) in lines.enumerate() {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let wrong = || format!("row {} is not three numbers: `{line}`", index + 1);
        let cell = |column: usize| cells.get(column).copied().ok_or_else(wrong);
        let time =
            cell(at)?.parse::<f64>().ok().filter(|time| (0.0..1e12).contains(time)).ok_or_else(wrong)?;
        let tokens = |column: usize| -> Result<u32, String> {
            Ok((cell(column)?.parse::<u32>().map_err(|_| wrong())? / shorter.max(1)).max(1))
        };
        let (at, lengths) = (
            Duration::from_secs_f64(time / 1e3 / speed),
            Lengths { prompt: tokens(prompt)?, new: tokens(new)? },
        );
        if at <= within {
            requests.push((at, lengths));
        }
    }
    requests.sort_by_key(|(at, _)| *at);
    if requests.is_empty() { Err("the trace has no arrivals".to_owned()) } else { Ok(requests) }
}

/// Poisson-distributed times of so many requests per second, without end.
pub fn poisson_times(rate: f64, seed: u64) -> impl Iterator<Item = Duration> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut at_s = 0.0;
    std::iter::from_fn(move || {
        // The inverse of the exponential distribution; `1 - x` is never 0.
        at_s -= (1.0 - random.f64()).ln() / rate;
        Some(Duration::from_secs_f64(at_s))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_scaled_and_cut() {
        let text = "arrival_ms,input_tokens,output_tokens\n5000,80,3\n1000,391,104\n9000,1,1\n";
        let requests = parse(text, 2.0, 8, Duration::from_secs(3)).unwrap();
        let expected = [
            (Duration::from_millis(500), Lengths { prompt: 48, new: 13 }),
            (Duration::from_millis(2_500), Lengths { prompt: 10, new: 1 }),
        ];
        assert_eq!(requests, expected);
    }

    #[test]
    fn what_is_wrong_with_a_trace_is_said() {
        let wrong = |text: &str| parse(text, 1.0, 1, Duration::from_secs(9)).unwrap_err();
        assert!(wrong("").contains("empty"));
        assert!(wrong("arrival_ms\n1\n").contains("no column `input_tokens`"));
        assert!(wrong("arrival_ms,input_tokens,output_tokens\n1,2\n").contains("row 1"));
        assert!(wrong("arrival_ms,input_tokens,output_tokens\n99999,2,2\n").contains("no arrivals"));
    }
}
