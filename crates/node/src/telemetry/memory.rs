//! The memory: the ledger, and the models that come and go.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{CounterVec, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use quadrant_policy::{Ledger, Purpose};

use super::{Telemetry, keep};
use crate::ModelEntry;

/// The ledger at one moment.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    budget: u64,
    reserved: u64,
    free: u64,
    unaccounted: u64,
    /// What each of the models has.
    models: Vec<u64>,
}

impl Memory {
    pub(crate) fn of(ledger: &Ledger, models: &[Arc<ModelEntry>]) -> Self {
        Self {
            budget: ledger.budget(),
            reserved: ledger.reserved(),
            free: ledger.free(),
            unaccounted: ledger.unaccounted(),
            models: models.iter().map(|model| ledger.of(Purpose::Model(model.id))).collect(),
        }
    }

    pub(super) fn show(&self, family: &IntGaugeVec, models: &[Arc<ModelEntry>]) {
        for (model, bytes) in models.iter().zip(&self.models) {
            model.metrics.residence.bytes.set(gauge(*bytes));
        }
        let Self { budget, reserved, free, unaccounted, .. } = *self;
        for (what, bytes) in
            [("budget", budget), ("reserved", reserved), ("free", free), ("unaccounted", unaccounted)]
        {
            family.with_label_values(&[what]).set(gauge(bytes));
        }
    }
}

/// Where the ledger is shown.
pub(super) fn family(registry: &Registry) -> IntGaugeVec {
    let help = "The ledger: `budget`, what is `reserved` of it and `free`, and what is resident and `unaccounted` for";
    keep(
        registry,
        IntGaugeVec::new(Opts::new("quadrant_memory_bytes", help), &["what"]).expect("the name is valid"),
    )
}

pub(super) fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The families of what comes and goes, with a label for each model.
pub(super) struct ResidenceFamilies {
    load_seconds: GaugeVec,
    bytes: IntGaugeVec,
    loads: IntCounterVec,
    unloads: IntCounterVec,
    loading_seconds: CounterVec,
}

/// The counters of one model.
pub(crate) struct Residence {
    load_seconds: prometheus::Gauge,
    bytes: IntGauge,
    loads: IntCounter,
    unloads: IntCounter,
    loading_seconds: prometheus::Counter,
}

impl ResidenceFamilies {
    pub(super) fn new(registry: &Registry) -> Self {
        let model = ["model", "version"];
        let opts = |name: &str, help: &str| Opts::new(name, help);
        let counters = |name: &str, help: &str| {
            keep(registry, IntCounterVec::new(opts(name, help), &model).expect("the name is valid"))
        };
        let load = opts("nv_model_load_duration_secs", "Model load time in seconds");
        let bytes = opts("quadrant_model_bytes", "Bytes reserved for the model; 0 while it is absent");
        let loading = opts("quadrant_model_loading_seconds_total", "Time spent on loading the model");
        Self {
            load_seconds: keep(registry, GaugeVec::new(load, &model).expect("the name is valid")),
            bytes: keep(registry, IntGaugeVec::new(bytes, &model).expect("the name is valid")),
            loads: counters("quadrant_model_loads_total", "Times the model was loaded"),
            unloads: counters("quadrant_model_unloads_total", "Times the model was unloaded"),
            loading_seconds: keep(registry, CounterVec::new(loading, &model).expect("the name is valid")),
        }
    }

    pub(super) fn of(&self, model: &[&str; 2]) -> Residence {
        Residence {
            load_seconds: self.load_seconds.with_label_values(model),
            bytes: self.bytes.with_label_values(model),
            loads: self.loads.with_label_values(model),
            unloads: self.unloads.with_label_values(model),
            loading_seconds: self.loading_seconds.with_label_values(model),
        }
    }
}

impl Telemetry {
    /// A model is in memory, for the first time or again.
    pub(crate) fn model_loaded(&self, entry: &ModelEntry, took: Duration, is_new: bool) {
        entry.metrics.residence.load_seconds.set(took.as_secs_f64());
        entry.metrics.residence.loads.inc();
        entry.metrics.residence.loading_seconds.inc_by(took.as_secs_f64());
        if !is_new {
            tracing::debug!(model = &*entry.spec.name, took_ms = took.as_millis(), "loaded again");
            return;
        }
        tracing::info!(
            model = &*entry.spec.name,
            version = entry.spec.version,
            engine = entry.engine,
            rows_max = entry.rows_max,
            width = entry.width,
            took_ms = took.as_millis(),
            "model ready: {}",
            entry.rationale
        );
    }

    pub(crate) fn model_unloaded(&self, entry: &ModelEntry) {
        entry.metrics.residence.unloads.inc();
        tracing::debug!(model = &*entry.spec.name, version = entry.spec.version, "unloaded");
    }
}
