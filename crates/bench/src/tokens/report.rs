//! What became of completions: counted while they end, and the result for programs and for people.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::stream::Answer;
use super::{TokenArrivals, TokenPlan};
use crate::record::{add, histogram};
use crate::report::{LatencyMs, void};

/// A 99th percentile of the send lag above this makes a run void: tokens are counted in tens of milliseconds.
const LAG_MS_MAX: f64 = 50.0;

/// How a run of completions went.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TokenReport {
    /// The model's name.
    pub model: String,
    /// Requests per second that were intended; `None` in a closed loop.
    pub offered_per_second: Option<f64>,
    /// Requests at a time in a closed loop.
    pub concurrency: Option<usize>,
    /// From the end of the warm-up to the last answer.
    pub seconds: f64,
    /// Requests with a whole answer.
    pub answered: u64,
    /// Requests without.
    pub failed: u64,
    /// Why, with how many.
    pub failures: BTreeMap<String, u64>,
    /// The objectives, in milliseconds.
    pub objectives_ms: (Option<f64>, Option<f64>),
    /// The share of all requests whose first token came in time,
    pub first_in_time: f64,
    /// of those whose further tokens did, in their mean,
    pub each_in_time: f64,
    /// and of those with both.
    pub attainment: f64,
    /// Whether the run was ended because the attainment that was wanted could not be reached any more.
    pub gave_up: bool,
    /// From the intended sending to the first token.
    pub first_token_ms: LatencyMs,
    /// The mean time of each further token of a request.
    pub each_token_ms: LatencyMs,
    /// From the intended sending to the last token.
    pub latency_ms: LatencyMs,
    /// Tokens of answers per second while requests were sent. Those of an answer are taken to have come
    /// evenly: sequences that run together end together, and of whole answers there are too few to count.
    pub tokens_per_second: f64,
    /// Tokens of prompts per second, of answers that began while requests were sent.
    pub prompt_tokens_per_second: f64,
    /// From the intended sending to the first token, of each request that was answered, in their order.
    pub first_tokens_ms: Vec<f64>,
    /// Of the texts of all answers in their order (FNV-1a): whether two runs said the same.
    pub texts: u64,
    /// How late the generator itself sent.
    pub send_lag_ms: LatencyMs,
    /// Processor time of this machine that went to others, in percent.
    pub steal_percent: f64,
    /// Why the run should be repeated, if it should: steal above 2 % or p99 send lag above 50 ms.
    pub void: Option<String>,
    /// Of the prompts.
    pub seed: u64,
}

/// Who is told how many requests ended, and how many of them failed.
pub(super) type Progress = Box<dyn Fn(usize, usize)>;

/// What has ended so far.
pub(super) struct Counted {
    progress: Progress,
    window: Window,
    objectives: (Option<Duration>, Option<Duration>),
    /// So many more may miss.
    misses_max: Option<u64>,
    ended: usize,
    first: Histogram<u64>,
    each: Histogram<u64>,
    latency: Histogram<u64>,
    lag: Histogram<u64>,
    in_time: InTime,
    failures: BTreeMap<String, u64>,
    tokens: f64,
    prompt_tokens: u64,
    /// First token and text of each, by its number.
    answers: BTreeMap<usize, (f64, String)>,
}

/// The time in which requests are sent that count.
struct Window {
    from: Duration,
    /// When the last request is sent, if that is known.
    until: Option<Duration>,
}

impl Window {
    fn has(&self, at: Duration) -> bool {
        at >= self.from && self.until.is_none_or(|until| at <= until)
    }

    /// Which share of the time from `first` to `last` lies within.
    fn share(&self, first: Duration, last: Duration) -> f64 {
        if first == last {
            return f64::from(u8::from(self.has(first)));
        }
        let within = last.min(self.until.unwrap_or(last)).saturating_sub(first.max(self.from));
        within.as_secs_f64() / (last - first).as_secs_f64()
    }
}

#[derive(Default)]
struct InTime {
    first: u64,
    each: u64,
    both: u64,
}

impl Counted {
    pub(super) fn new(plan: &TokenPlan, progress: Progress) -> Self {
        let until = match &plan.arrivals {
            TokenArrivals::Open(_, length) => Some(*length),
            TokenArrivals::Closed(_, _, crate::Length::For(time)) => Some(plan.warmup + *time),
            TokenArrivals::Closed(_, _, crate::Length::Requests(_)) => None,
        };
        let misses_max = match (&plan.arrivals, plan.attainment_min) {
            (TokenArrivals::Open(requests, _), Some(least)) => {
                let counted = requests.iter().filter(|(at, _)| *at >= plan.warmup).count() as f64;
                // Not one too few for a product that is off in its last digit.
                Some((counted - (least * counted - 1e-6).ceil()).max(0.0) as u64)
            }
            (TokenArrivals::Open(..) | TokenArrivals::Closed(..), _) => None,
        };
        Self {
            progress,
            window: Window { from: plan.warmup, until },
            misses_max,
            objectives: (plan.first, plan.each),
            ended: 0,
            first: histogram(),
            each: histogram(),
            latency: histogram(),
            lag: histogram(),
            in_time: InTime::default(),
            failures: BTreeMap::new(),
            tokens: 0.0,
            prompt_tokens: 0,
            answers: BTreeMap::new(),
        }
    }

    /// A request has ended that was to be sent `at` and was so much later.
    pub(super) fn ended(
        &mut self,
        (index, at, lag): (usize, Duration, Duration),
        answer: Result<Answer, String>,
    ) {
        self.count((index, at, lag), answer);
        self.ended += 1;
        (self.progress)(self.ended, self.failures.values().sum::<u64>() as usize);
    }

    fn count(&mut self, (index, at, lag): (usize, Duration, Duration), answer: Result<Answer, String>) {
        if let Ok(answer) = &answer {
            self.tokens += answer.tokens as f64 * self.window.share(answer.first, answer.last);
            if self.window.has(answer.first) {
                self.prompt_tokens += answer.prompt_tokens;
            }
        }
        if at < self.window.from {
            return;
        }
        add(&mut self.lag, lag);
        let answer = match answer {
            Ok(answer) => answer,
            Err(reason) => {
                *self.failures.entry(reason).or_default() += 1;
                return;
            }
        };
        let first = answer.first.saturating_sub(at);
        let further = u32::try_from(answer.tokens.saturating_sub(1)).unwrap_or(u32::MAX);
        // An answer of one token has no further ones, which are in time.
        let each = (answer.last - answer.first).checked_div(further).unwrap_or_default();
        add(&mut self.first, first);
        add(&mut self.latency, answer.last.saturating_sub(at));
        if further > 0 {
            add(&mut self.each, each);
        }
        let is_first = self.objectives.0.is_none_or(|objective| first <= objective);
        let is_each = self.objectives.1.is_none_or(|objective| each <= objective);
        self.in_time.first += u64::from(is_first);
        self.in_time.each += u64::from(is_each);
        self.in_time.both += u64::from(is_first && is_each);
        self.answers.insert(index, (first.as_secs_f64() * 1e3, answer.text));
    }

    /// Whether the attainment that is wanted cannot be reached any more.
    pub(super) fn is_lost(&self) -> bool {
        let missed = self.first.len() + self.failures.values().sum::<u64>() - self.in_time.both;
        self.misses_max.is_some_and(|most| missed > most)
    }

    pub(super) fn report(&self, plan: &TokenPlan, now: Duration, steal_percent: f64) -> TokenReport {
        let failed: u64 = self.failures.values().sum();
        let all = (self.first.len() + failed).max(1) as f64;
        let seconds = |until: Duration| until.saturating_sub(self.window.from).as_secs_f64().max(1e-9);
        let rate = |tokens: f64| tokens / seconds(self.window.until.unwrap_or(now));
        let (offered_per_second, concurrency) = match &plan.arrivals {
            TokenArrivals::Open(requests, length) => {
                (Some(requests.len() as f64 / length.as_secs_f64().max(1e-3)), None)
            }
            TokenArrivals::Closed(at_a_time, ..) => (None, Some(*at_a_time)),
        };
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let send_lag_ms = LatencyMs::of(&self.lag);
        TokenReport {
            model: plan.model.clone(),
            offered_per_second,
            concurrency,
            seconds: seconds(now),
            answered: self.first.len(),
            failed,
            failures: self.failures.clone(),
            objectives_ms: (plan.first.map(milliseconds), plan.each.map(milliseconds)),
            first_in_time: self.in_time.first as f64 / all,
            each_in_time: self.in_time.each as f64 / all,
            attainment: self.in_time.both as f64 / all,
            gave_up: self.is_lost(),
            first_token_ms: LatencyMs::of(&self.first),
            each_token_ms: LatencyMs::of(&self.each),
            latency_ms: LatencyMs::of(&self.latency),
            tokens_per_second: rate(self.tokens),
            prompt_tokens_per_second: rate(self.prompt_tokens as f64),
            first_tokens_ms: self.answers.values().map(|(first, _)| *first).collect(),
            texts: fnv(self.answers.values().map(|(_, text)| text.as_str())),
            send_lag_ms,
            steal_percent,
            void: void(steal_percent, send_lag_ms, LAG_MS_MAX),
            seed: plan.seed,
        }
    }
}

/// A hash of texts and of where each ends.
fn fnv<'a>(texts: impl Iterator<Item = &'a str>) -> u64 {
    let bytes = texts.flat_map(|text| text.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl fmt::Display for TokenReport {
    /// A table.
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match (self.offered_per_second, self.concurrency) {
            (Some(rate), _) => format!("{rate:.2}/s offered"),
            (None, Some(concurrency)) => format!("{concurrency} at a time"),
            (None, None) => String::new(),
        };
        writeln!(
            text,
            "{}: {how}, {} answered, {} failed, {:.1} s; {:.0} tokens/s, and {:.0} of prompts",
            self.model,
            self.answered,
            self.failed,
            self.seconds,
            self.tokens_per_second,
            self.prompt_tokens_per_second
        )?;
        writeln!(text, "{:<14}{:>10}{:>10}{:>10}{:>10}{:>10}", "ms", "mean", "p50", "p90", "p99", "max")?;
        for (name, LatencyMs { mean, p50, p90, p99, max, .. }) in [
            ("first token", self.first_token_ms),
            ("each further", self.each_token_ms),
            ("whole answer", self.latency_ms),
        ] {
            writeln!(text, "{name:<14}{mean:>10.1}{p50:>10.1}{p90:>10.1}{p99:>10.1}{max:>10.1}")?;
        }
        if self.objectives_ms != (None, None) {
            writeln!(
                text,
                "in time: {:.2} % of first tokens, {:.2} % of further ones, {:.2} % of requests in both",
                100.0 * self.first_in_time,
                100.0 * self.each_in_time,
                100.0 * self.attainment
            )?;
        }
        if self.gave_up {
            writeln!(text, "given up: too many were late already")?;
        }
        for (reason, count) in &self.failures {
            writeln!(text, "failed with {reason}: {count}")?;
        }
        writeln!(text, "steal: {:.2} %", self.steal_percent)?;
        if let Some(reason) = &self.void {
            writeln!(text, "VOID, repeat: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_answer_counts_what_came_while_requests_were_sent() {
        let seconds = Duration::from_secs;
        let window = Window { from: seconds(2), until: Some(seconds(10)) };
        let share = |first, last| window.share(seconds(first), seconds(last));
        assert_eq!(
            [share(0, 1), share(1, 3), share(3, 7), share(8, 12), share(11, 12)],
            [0.0, 0.5, 1.0, 0.5, 0.0]
        );
        assert_eq!([share(1, 1), share(2, 2), share(10, 10), share(11, 11)], [0.0, 1.0, 1.0, 0.0]);
        assert_eq!(share(0, 20), 0.4);
    }
}
