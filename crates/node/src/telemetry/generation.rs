//! What generates, by vLLM's names, so that its dashboards and what scales by them work unchanged.

use std::time::Duration;

use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};
use quadrant_policy::Policy;
use quadrant_types::{Ending, Time};

use super::keep;
use crate::message::Pending;

/// vLLM's number of the engine, of which there is one.
const ENGINE: &str = "0";

/// Upper bounds of the time to the first token, in seconds; vLLM's.
const FIRST_BUCKETS: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Of the time between tokens.
const NEXT_BUCKETS: [f64; 12] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0];
/// Of the time of a whole request.
const WHOLE_BUCKETS: [f64; 12] = [0.1, 0.3, 0.5, 0.8, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0];

/// The families.
pub(crate) struct GenerationFamilies {
    running: GaugeVec,
    waiting: GaugeVec,
    cache_used: GaugeVec,
    prompt_tokens: IntCounterVec,
    generated_tokens: IntCounterVec,
    ended: IntCounterVec,
    preempted: IntCounter,
    first_token: HistogramVec,
    next_token: HistogramVec,
    whole: HistogramVec,
}

/// What sequences of a model there are at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequences {
    begun: usize,
    waiting: usize,
    pages_used: usize,
    pages: usize,
}

impl Sequences {
    pub(crate) fn of(policy: &Policy, model: quadrant_types::ModelId) -> Self {
        let ((begun, waiting), (pages_used, pages)) = (policy.sequences(model), policy.pages(model));
        Self { begun, waiting, pages_used, pages }
    }
}

impl GenerationFamilies {
    pub(super) fn new(registry: &Registry) -> Self {
        let labels = ["model_name", "engine"];
        let gauge = |name: &str, help: &str| {
            keep(registry, GaugeVec::new(Opts::new(name, help), &labels).expect("the name is valid"))
        };
        let counter = |name: &str, help: &str, labels: &[&str]| {
            keep(registry, IntCounterVec::new(Opts::new(name, help), labels).expect("the name is valid"))
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            keep(registry, HistogramVec::new(opts, &labels).expect("the name is valid"))
        };
        Self {
            running: gauge("vllm:num_requests_running", "Sequences that have begun"),
            waiting: gauge("vllm:num_requests_waiting", "Sequences that wait to begin"),
            cache_used: gauge("vllm:kv_cache_usage_perc", "Pages that sequences have, 1 is all"),
            prompt_tokens: counter("vllm:prompt_tokens_total", "Tokens of prompts", &labels),
            generated_tokens: counter("vllm:generation_tokens_total", "Tokens generated", &labels),
            ended: counter(
                "vllm:request_success_total",
                "Requests by how they ended",
                &["model_name", "engine", "finished_reason"],
            ),
            preempted: keep(
                registry,
                IntCounter::with_opts(Opts::new(
                    "quadrant_sequences_preempted_total",
                    "How often a sequence gave its pages back for others, to compute them again later",
                ))
                .expect("the name is valid"),
            ),
            first_token: histogram(
                "vllm:time_to_first_token_seconds",
                "Until the first token",
                &FIRST_BUCKETS,
            ),
            next_token: histogram("vllm:inter_token_latency_seconds", "Between two tokens", &NEXT_BUCKETS),
            whole: histogram("vllm:e2e_request_latency_seconds", "Of a whole request", &WHOLE_BUCKETS),
        }
    }

    /// A token came, after so long: the first one since its request arrived, another since the one before.
    pub(crate) fn token(&self, model: &str, is_first: bool, after: Duration) {
        let family = if is_first { &self.first_token } else { &self.next_token };
        family.with_label_values(&[model, ENGINE]).observe(after.as_secs_f64());
        self.generated_tokens.with_label_values(&[model, ENGINE]).inc();
    }

    /// A request ended that generated, if this is one.
    pub(crate) fn ended(&self, pending: &Pending, ending: &Ending, now: Time) {
        let Some(generating) = &pending.generating else { return };
        let model = &*pending.model.spec.name;
        let reason = match (ending, generating.writer.ended_by_length) {
            (Ending::Completed, true) => "length",
            (Ending::Completed, false) => "stop",
            (Ending::Failed(_), _) => "abort",
        };
        self.ended.with_label_values(&[model, ENGINE, reason]).inc();
        let prompt = u64::from(pending.request.work.rows());
        self.prompt_tokens.with_label_values(&[model, ENGINE]).inc_by(prompt);
        let took = now.since(pending.timing.arrived).as_secs_f64();
        self.whole.with_label_values(&[model, ENGINE]).observe(took);
    }

    /// Shows how often sequences gave their pages back so far.
    pub(super) fn show_preempted(&self, so_far: u64) {
        self.preempted.inc_by(so_far.saturating_sub(self.preempted.get()));
    }

    /// Shows what there is at present.
    pub(super) fn show(&self, model: &str, sequences: Sequences) {
        let Sequences { begun, waiting, pages_used, pages } = sequences;
        let labels = [model, ENGINE];
        self.running.with_label_values(&labels).set(begun as f64);
        self.waiting.with_label_values(&labels).set(waiting as f64);
        self.cache_used.with_label_values(&labels).set(pages_used as f64 / pages.max(1) as f64);
    }
}
