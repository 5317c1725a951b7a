//! The metrics, and the log lines of the node: one function for each event.
//!
//! Names and meanings of the `nv_*` families are Triton's, so that its dashboards work unchanged; the
//! histograms are those proposed there as `*_duration_histogram_us`. Families of our own begin with
//! `quadrant_`. Each model holds its own counters, so counting a request is a handful of atomic additions.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use quadrant_engine::EndCause;
use quadrant_policy::TenantUsage;
use quadrant_types::{Ending, Error, LaneId, RequestId, StepId, TenantId, Time};

use crate::ModelEntry;
use crate::tenants::{Tenant, Tenants};

mod generation;
mod memory;
mod model;
mod tenant;

pub(crate) use generation::{GenerationFamilies, Sequences};
pub(crate) use memory::Memory;
pub(crate) use model::ModelMetrics;
pub(crate) use tenant::TenantMetrics;
use tenant::{OTHERS, TenantFamilies};

use memory::{ResidenceFamilies, gauge};

/// Upper bounds of the duration histograms, in microseconds: 100 us to 50 s, about three a decade.
const DURATION_BUCKETS_US: [f64; 18] = [
    100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 2.5e4, 5e4, 1e5, 2.5e5, 5e5, 1e6, 2.5e6, 5e6, 1e7, 2.5e7, 5e7,
];

/// Upper bounds of real over predicted time: 1 is a perfect prediction.
const RATIO_BUCKETS: [f64; 12] = [0.25, 0.5, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 2.0, 4.0, 10.0];

/// Triton's reasons for a failed request.
const REASONS: [&str; 4] = ["REJECTED", "CANCELED", "BACKEND", "OTHER"];

/// All metric families of the node.
pub(crate) struct Telemetry {
    registry: Registry,
    families: Families,
    pub(crate) accepted: IntCounter,
    pub(crate) ended: IntCounter,
    tenant_families: TenantFamilies,
    pub(crate) generation: GenerationFamilies,
    tenants: Arc<Tenants>,
    denied: IntCounterVec,
    lanes_stalled: IntGauge,
    slowdown: GaugeVec,
    resident_bytes: IntGauge,
    memory: IntGaugeVec,
    invariant_violations: IntCounter,
    host_ends: IntCounterVec,
    host_resident_bytes: IntGaugeVec,
}

/// The families with a label for each model.
struct Families {
    success: IntCounterVec,
    failure: IntCounterVec,
    rows: IntCounterVec,
    steps: IntCounterVec,
    totals_us: Vec<IntCounterVec>,
    histograms_us: Vec<HistogramVec>,
    pending: IntGaugeVec,
    residence: ResidenceFamilies,
    codes: IntCounterVec,
    ratio: HistogramVec,
    objectives: IntCounterVec,
    refusals: IntCounterVec,
    core_seconds: prometheus::CounterVec,
}

/// The present state, for the gauges.
pub(crate) struct Snapshot {
    /// The sequences of each model that generates.
    pub(crate) sequences: Vec<(Arc<str>, Sequences)>,
    pub(crate) sequences_preempted: u64,
    pub(crate) models: Vec<Arc<ModelEntry>>,
    /// Requests waiting, model by model.
    pub(crate) queued: Vec<usize>,
    pub(crate) lanes_stalled: usize,
    /// How many times longer than usually steps take on each core.
    pub(crate) slowdowns: Vec<(usize, f64)>,
    /// What tenants use of their quotas.
    pub(crate) usage: Vec<(Arc<Tenant>, TenantUsage)>,
    pub(crate) violated: Option<&'static str>,
    pub(crate) memory: Memory,
}

/// The stages whose times are counted; the first is the whole request.
const STAGES: [(&str, &str); 5] = [
    ("request", "inference request duration, from its last byte to its answer"),
    ("queue", "time from the scheduler to a lane"),
    ("compute_input", "time to gather the inputs of a step"),
    ("compute_infer", "time in the engine"),
    ("compute_output", "time to cut the outputs of a step apart"),
];

impl Telemetry {
    pub(crate) fn new(tenants: Arc<Tenants>) -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            keep(&registry, IntCounter::with_opts(Opts::new(name, help)).expect("the name is valid"))
        };
        let gauge = |name: &str, help: &str| {
            keep(&registry, IntGauge::with_opts(Opts::new(name, help)).expect("the name is valid"))
        };
        Self {
            families: Families::new(&registry),
            accepted: counter("quadrant_requests_accepted_total", "Requests that reached the scheduler"),
            ended: counter("quadrant_requests_ended_total", "Requests that ended, each exactly once"),
            tenant_families: TenantFamilies::new(&registry),
            generation: GenerationFamilies::new(&registry),
            tenants,
            denied: keep(
                &registry,
                IntCounterVec::new(
                    Opts::new("quadrant_denied_requests_total", "Requests without the right to ask, by why"),
                    &["why"],
                )
                .expect("the name is valid"),
            ),
            lanes_stalled: gauge("quadrant_lanes_stalled", "Lanes whose step runs far longer than predicted"),
            slowdown: keep(
                &registry,
                GaugeVec::new(
                    Opts::new(
                        "quadrant_core_slowdown",
                        "How many times longer than usually steps take on this core at present",
                    ),
                    &["core"],
                )
                .expect("the name is valid"),
            ),
            resident_bytes: gauge("quadrant_resident_bytes", "Resident memory of the process"),
            memory: memory::family(&registry),
            host_ends: keep(
                &registry,
                IntCounterVec::new(
                    Opts::new("quadrant_engine_process_ends_total", "Ends of processes of engines, by cause"),
                    &["process", "cause"],
                )
                .expect("the name is valid"),
            ),
            host_resident_bytes: keep(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "quadrant_engine_process_resident_bytes",
                        "Resident memory of a process of engines; 0 while it is away",
                    ),
                    &["process"],
                )
                .expect("the name is valid"),
            ),
            invariant_violations: counter(
                "quadrant_invariant_violations_total",
                "Scrapes at which an invariant of the scheduler did not hold; anything but 0 is a bug",
            ),
            registry,
        }
    }

    /// The counters of one model, from now on part of the output even while they are zero.
    pub(crate) fn model(&self, name: &str, version: u64) -> ModelMetrics {
        ModelMetrics::new(&self.families, name, version)
    }

    pub(crate) fn render(&self, snapshot: &Snapshot) -> String {
        for (model, queued) in snapshot.models.iter().zip(&snapshot.queued) {
            model.metrics.pending.set(i64::try_from(*queued).unwrap_or(i64::MAX));
        }
        self.lanes_stalled.set(i64::try_from(snapshot.lanes_stalled).unwrap_or(i64::MAX));
        for (core, slowdown) in &snapshot.slowdowns {
            self.slowdown.with_label_values(&[core.to_string()]).set(*slowdown);
        }
        snapshot.memory.show(&self.memory, &snapshot.models);
        self.generation.show_preempted(snapshot.sequences_preempted);
        for (model, sequences) in &snapshot.sequences {
            self.generation.show(model, *sequences);
        }
        for (tenant, usage) in &snapshot.usage {
            self.tenant_families.show(&tenant.name, &tenant.terms, *usage);
        }
        for hosted in snapshot.models.iter().filter_map(|model| model.hosted.as_ref()) {
            let resident = i64::try_from(hosted.host.resident_bytes()).unwrap_or(i64::MAX);
            self.host_resident_bytes.with_label_values(&[&*hosted.host.spec().name]).set(resident);
        }
        let resident = quadrant_sys::resident_bytes().unwrap_or(0);
        self.resident_bytes.set(gauge(resident));
        if let Some(invariant) = snapshot.violated {
            self.invariant_violations.inc();
            tracing::error!(invariant, "an invariant of the scheduler does not hold; please report this");
        }
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// The counters of one tenant.
    pub(crate) fn tenant(&self, name: &str) -> TenantMetrics {
        self.tenant_families.of(name)
    }

    /// A tenant is no more.
    pub(crate) fn tenant_gone(&self, name: &str) {
        self.tenant_families.forget(name);
    }

    /// A request of a tenant ended.
    pub(crate) fn tenant_ended(&self, tenant: TenantId, ending: &Ending, now: Time) {
        match self.tenants.get(tenant) {
            Some(tenant) => {
                tenant.metrics.ended(ending);
                if let Ending::Failed(error) = ending {
                    tenant.note_refusal(now, error);
                }
            }
            None if tenant == TenantId::default() => {}
            None => self.tenant_families.of(OTHERS).ended(ending),
        }
    }

    /// A step ran for so much processor time on this tenant's account.
    pub(crate) fn tenant_used(&self, tenant: TenantId, core_time: Duration) {
        match self.tenants.get(tenant) {
            Some(tenant) => tenant.metrics.used(core_time),
            None if tenant == TenantId::default() => {}
            None => self.tenant_families.of(OTHERS).used(core_time),
        }
    }

    /// Somebody asked who may not.
    pub(crate) fn denied(&self, why: &str) {
        self.denied.with_label_values(&[why]).inc();
    }

    pub(crate) fn lane_stalled(&self, lane: LaneId, step: StepId, model: Option<&str>) {
        tracing::error!(lane = lane.0, step = step.0, model, "the lane is stalled; its requests were ended");
    }

    pub(crate) fn lane_recovered(&self, lane: LaneId) {
        tracing::warn!(lane = lane.0, "the stalled lane has recovered");
    }

    pub(crate) fn host_up(&self, name: &str, process: u32, took: Duration) {
        for cause in EndCause::ALL {
            // From now on part of the output even while they are zero.
            self.host_ends.with_label_values(&[name, cause.name()]);
        }
        tracing::info!(
            process = name,
            pid = process,
            took_ms = took.as_millis(),
            "the engine's process is up"
        );
    }

    pub(crate) fn host_down(&self, name: &str, cause: EndCause, reason: &str, back_in: Duration) {
        self.host_ends.with_label_values(&[name, cause.name()]).inc();
        let (cause, back_in_ms) = (cause.name(), back_in.as_millis());
        tracing::error!(process = name, cause, back_in_ms, "the engine's process ended: {reason}");
    }

    pub(crate) fn input_refused(&self, model: &str, request: RequestId) {
        tracing::error!(
            model,
            request = request.0,
            "an input ended the engine twice and is refused from now on"
        );
    }

    pub(crate) fn step_failed(&self, model: &str, error: &Error) {
        tracing::error!(model, %error, "a step failed");
    }

    pub(crate) fn occupancy_unknown(&self, model: &str, reason: &str) {
        tracing::warn!(model, "what it takes of the memory is guessed from its file: {reason}");
    }

    pub(crate) fn repository_unreadable(&self, error: &std::io::Error) {
        tracing::error!(%error, "the models folder cannot be read; what is loaded stays");
    }

    pub(crate) fn profile_reused(&self, model: &str) {
        tracing::info!(model, "not measured again: its stored profile fits");
    }

    pub(crate) fn profile_unusable(&self, model: &str, reason: &str) {
        tracing::warn!(model, "a stored profile is not used and will be overwritten: {reason}");
    }

    pub(crate) fn profile_not_stored(&self, model: &str, error: &std::io::Error) {
        tracing::warn!(model, %error, "the profile is not stored; the next start measures again");
    }

    pub(crate) fn settings_unused(&self, model: &str, fields: &[&str]) {
        tracing::warn!(model, "fields of `config.pbtxt` that are not used: {}", fields.join(", "));
    }

    pub(crate) fn model_failed(&self, name: &str, version: u64, reason: &str) {
        tracing::error!(model = name, version, "model unavailable: {reason}");
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Families {
    fn new(registry: &Registry) -> Self {
        let model = ["model", "version"];
        let counters = |name: &str, help: &str, labels: &[&str]| {
            keep(registry, IntCounterVec::new(Opts::new(name, help), labels).expect("the name is valid"))
        };
        let histograms = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            keep(registry, HistogramVec::new(opts, &model).expect("the name is valid"))
        };
        let total = |(stage, help): (&str, &str)| {
            counters(&format!("nv_inference_{stage}_duration_us"), &format!("Cumulative {help}"), &model)
        };
        let histogram = |(stage, help): (&str, &str)| {
            let name = format!("nv_inference_{stage}_duration_histogram_us");
            histograms(&name, &format!("Distribution of the {help}"), &DURATION_BUCKETS_US)
        };
        let gauge_opts = Opts::new(
            "nv_inference_pending_request_count",
            "Instantaneous number of pending requests awaiting execution per-model.",
        );
        Self {
            success: counters(
                "nv_inference_request_success",
                "Number of successful inference requests, all batch sizes",
                &model,
            ),
            failure: counters(
                "nv_inference_request_failure",
                "Number of failed inference requests, all batch sizes",
                &["model", "reason", "version"],
            ),
            rows: counters("nv_inference_count", "Number of inferences performed", &model),
            steps: counters("nv_inference_exec_count", "Number of model executions performed", &model),
            totals_us: STAGES.into_iter().map(total).collect(),
            histograms_us: STAGES.into_iter().map(histogram).collect(),
            pending: keep(registry, IntGaugeVec::new(gauge_opts, &model).expect("the name is valid")),
            residence: ResidenceFamilies::new(registry),
            codes: counters(
                "quadrant_request_failures_total",
                "Failed requests by error code",
                &["model", "version", "code"],
            ),
            objectives: counters(
                "quadrant_objective_requests_total",
                "Requests with an objective, by what became of it: the attainment is the share in time",
                &["model", "version", "outcome"],
            ),
            refusals: counters(
                "quadrant_refusals_total",
                "Requests that the scheduler did not serve, by reason",
                &["model", "version", "reason"],
            ),
            core_seconds: keep(
                registry,
                prometheus::CounterVec::new(
                    Opts::new("quadrant_core_seconds_total", "Processor time of steps, by scheduling class"),
                    &["model", "version", "class"],
                )
                .expect("the name is valid"),
            ),
            ratio: histograms(
                "quadrant_step_real_over_predicted",
                "Real over predicted time of steps; the error of the cost model",
                &RATIO_BUCKETS,
            ),
        }
    }
}

fn keep<T: Collector + Clone + 'static>(registry: &Registry, collector: T) -> T {
    registry.register(Box::new(collector.clone())).expect("every family is registered once");
    collector
}

#[cfg(test)]
mod tests {
    use quadrant_types::{ErrorCode, Time, Timing};

    use super::*;

    #[test]
    fn names_and_labels_are_tritons() {
        let telemetry = Telemetry::new(Arc::new(Tenants::default()));
        let metrics = telemetry.model("addsub", 1);
        metrics.completed(&Timing::default(), Time::from_nanos(3_000_000));
        metrics.failed(ErrorCode::Cancelled);
        metrics.executed(4, Duration::from_millis(2), Duration::from_millis(1));
        let slowdowns = vec![(3, 1.25)];
        let snapshot = Snapshot {
            sequences: Vec::new(),
            sequences_preempted: 0,
            models: vec![],
            queued: vec![],
            lanes_stalled: 0,
            slowdowns,
            usage: vec![],
            violated: None,
            memory: Memory::default(),
        };
        let text = telemetry.render(&snapshot);
        for line in [
            "# TYPE nv_inference_request_success counter",
            r#"nv_inference_request_success{model="addsub",version="1"} 1"#,
            r#"nv_inference_request_failure{model="addsub",reason="CANCELED",version="1"} 1"#,
            r#"nv_inference_request_failure{model="addsub",reason="REJECTED",version="1"} 0"#,
            r#"nv_inference_count{model="addsub",version="1"} 4"#,
            r#"nv_inference_exec_count{model="addsub",version="1"} 1"#,
            r#"nv_inference_request_duration_us{model="addsub",version="1"} 3000"#,
            r#"nv_inference_request_duration_histogram_us_bucket{model="addsub",version="1",le="5000"} 1"#,
            r#"nv_inference_pending_request_count{model="addsub",version="1"} 0"#,
            r#"quadrant_core_slowdown{core="3"} 1.25"#,
        ] {
            assert!(text.lines().any(|have| have == line), "no line `{line}` in\n{text}");
        }
    }
}
