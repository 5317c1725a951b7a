//! From what was written to what is meant: every value is checked here, before a thread starts or a port
//! is bound.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use quadrant_engine::EngineKind;
use quadrant_node::{Batching, Config, HostCommand, Isolation, ModelSettings, Pace};
use quadrant_policy::{Discipline, Eviction, Limits, MemoryBudget, Unmet};
use quadrant_server::{NamedObjective, NamedObjectives};
use quadrant_types::{CoreSet, Priority};

use crate::settings::{BatchingField, ModelFields, ObjectiveFields, Settings, find_onnxruntime};
use crate::tenants;

/// The command that the server starts itself with, to serve engines.
pub(crate) const ENGINE_HOST: &str = "engine-host";

/// The memory of a process of engines. Below, not even the program fits.
const MEMORY_MB_MIN: u64 = 32;
const MEMORY_MB_MAX: u64 = 1 << 24;

/// Models that are loaded at the same time unless configured, if there are as many cores: a disk and the
/// memory's bandwidth serve no more at full speed.
const LOAD_THREADS: usize = 4;
const LOAD_THREADS_MAX: usize = 64;

/// A day: anything longer in a configuration is a mistake.
const SECONDS_MAX: f64 = 86_400.0;

/// The node's configuration.
///
/// # Errors
/// The first value that cannot be meant, with its name.
pub(crate) fn node_config(settings: &Settings, models_dir: &Path, libraries: &[PathBuf]) -> Result<Config> {
    let limits = &settings.limits;
    let defaults = model_settings(&settings.model_defaults).context("in `model_defaults`")?;
    let mut models = BTreeMap::new();
    for (name, fields) in &settings.models {
        let checked = model_settings(fields)
            .and_then(|model| isolation_is_meant(model, &defaults))
            .with_context(|| format!("in `models.{name}`"))?;
        models.insert(name.clone(), checked);
    }
    let cores = device_cores(&settings.device.cores)?;
    Ok(Config {
        models_dir: models_dir.to_owned(),
        cores,
        onnxruntime: find_onnxruntime(&settings.device.onnxruntime, libraries)?,
        engine_host: engine_host(),
        discipline: discipline(&settings.scheduler.policy)?,
        tenants: tenants::terms(settings)?,
        limits: Limits {
            queued_requests_max: at_least_one("limits.queued_requests", limits.queued_requests)?,
            bytes_in_max: in_flight_bytes(settings)? as u64,
            wait_max: seconds("limits.request_s", limits.request_s)?,
            stall_factor: limits.stall_factor,
            stall_floor: seconds("limits.stall_s", limits.stall_s)?,
            best_effort_floor_permille: permille(settings.scheduler.best_effort_floor)?,
            eviction: eviction(&settings.scheduler.eviction)?,
            loads_max: loads_max(settings.scheduler.load_threads, cores)?,
            memory: MemoryBudget { bytes: memory_bytes(settings)?, process_bytes: 0 },
        },
        poll: match settings.repository.poll_s {
            0.0 => None,
            poll_s => Some(seconds("repository.poll_s", poll_s)?),
        },
        probe_budget: seconds("device.probe_s", settings.device.probe_s)?,
        profiles_dir: None,
        defaults,
        models,
    })
}

/// Bytes that the process may take.
fn memory_bytes(settings: &Settings) -> Result<u64> {
    match settings.device.memory_mb {
        0 => {
            let all = quadrant_sys::memory_limit_bytes();
            let all =
                all.context("cannot find out how much memory there is; say so with `device.memory_mb`")?;
            Ok(all / 10 * 9)
        }
        memory_mb => {
            ensure!(memory_mb >= 64, "`device.memory_mb` must be at least 64 or 0, not `{memory_mb}`");
            Ok(memory_mb.saturating_mul(1 << 20))
        }
    }
}

/// Bytes of all requests' bodies at once: as configured, and never more than a quarter of the memory.
///
/// # Errors
/// If they are none.
pub(crate) fn in_flight_bytes(settings: &Settings) -> Result<usize> {
    let wanted = at_least_one("limits.in_flight_bytes", settings.limits.in_flight_bytes)?;
    let quarter = usize::try_from(memory_bytes(settings)? / 4).unwrap_or(usize::MAX);
    Ok(wanted.min(quarter))
}

/// The objectives that requests refer to by name.
///
/// # Errors
/// The first value that cannot be meant, with its name.
pub(crate) fn named_objectives(settings: &Settings) -> Result<NamedObjectives> {
    let checked = |(name, fields): (&String, &ObjectiveFields)| {
        let latency =
            fields.latency_ms.map(|value| milliseconds(&format!("objectives.{name}.latency_ms"), value));
        let priority = fields.priority.map(|value| {
            at_least_one(&format!("objectives.{name}.priority"), value as usize).map(|_| Priority(value))
        });
        let objective = NamedObjective { latency: latency.transpose()?, priority: priority.transpose()? };
        Ok((name.clone(), objective))
    };
    settings.objectives.iter().map(checked).collect()
}

/// A duration written as seconds.
pub(crate) fn seconds(name: &str, value: f64) -> Result<Duration> {
    let fits = value.is_finite() && value > 0.0 && value <= SECONDS_MAX;
    ensure!(fits, "`{name}` must be more than 0 and at most `{SECONDS_MAX}` seconds, not `{value}`");
    Ok(Duration::from_secs_f64(value))
}

/// A number that must not be zero.
pub(crate) fn at_least_one(name: &str, value: usize) -> Result<usize> {
    ensure!(value > 0, "`{name}` must be at least 1");
    Ok(value)
}

/// Cores by number, all of which this process may use; none named means all.
pub(crate) fn device_cores(wanted: &[usize]) -> Result<CoreSet> {
    let allowed = quadrant_sys::allowed_cores().context("cannot find out which cores may be used")?;
    if wanted.is_empty() {
        return Ok(allowed);
    }
    let cores = CoreSet::from_cores(wanted.iter().copied());
    let all_there = cores.len() == wanted.len() && cores.is_subset(allowed);
    ensure!(all_there, "cores `{wanted:?}` are not all among those this process may use, `{allowed}`");
    Ok(cores)
}

fn discipline(name: &str) -> Result<Discipline> {
    let known = Discipline::ALL.into_iter().find(|discipline| discipline.name() == name);
    known.with_context(|| {
        format!("`scheduler.policy` must be `quadrant`, `fifo` or `clockwork`, not `{name}`")
    })
}

fn eviction(name: &str) -> Result<Eviction> {
    let known = Eviction::ALL.into_iter().find(|eviction| eviction.name() == name);
    known.with_context(|| format!("`scheduler.eviction` must be `worth` or `lru`, not `{name}`"))
}

fn loads_max(load_threads: usize, cores: CoreSet) -> Result<usize> {
    let fits = load_threads <= LOAD_THREADS_MAX;
    ensure!(fits, "`scheduler.load_threads` must be from 0 to {LOAD_THREADS_MAX}, not `{load_threads}`");
    Ok(match load_threads {
        0 => cores.len().min(LOAD_THREADS),
        _ => load_threads,
    })
}

fn permille(share: f64) -> Result<u32> {
    let fits = (0.0..=0.9).contains(&share);
    ensure!(fits, "`scheduler.best_effort_floor` must be from 0 to 0.9, not `{share}`");
    Ok((share * 1_000.0).round() as u32)
}

fn milliseconds(name: &str, value: f64) -> Result<Duration> {
    let fits = value.is_finite() && value > 0.0 && value <= SECONDS_MAX * 1e3;
    ensure!(fits, "`{name}` must be more than 0 milliseconds and at most a day, not `{value}`");
    Ok(Duration::from_secs_f64(value / 1e3))
}

fn model_settings(fields: &ModelFields) -> Result<ModelSettings> {
    let engine = match &fields.engine {
        None => None,
        Some(name) => Some(name.parse::<EngineKind>().map_err(|()| {
            anyhow!("`engine` must be `ort`, `rten`, `encoder` or `emulated`, not `{name}`")
        })?),
    };
    let batching = match &fields.batching {
        None => None,
        Some(BatchingField::Rows(0)) => bail!("`batching` must be `auto`, `off` or at least 1"),
        Some(BatchingField::Rows(rows)) => Some(Batching::UpTo(*rows)),
        Some(BatchingField::Word(word)) => match word.as_str() {
            "auto" => Some(Batching::Auto),
            "off" => Some(Batching::Off),
            word => bail!("`batching` must be `auto`, `off` or a number, not `{word}`"),
        },
    };
    let delay_max = fields.delay_ms.map(|delay_ms| {
        ensure!((0.0..=SECONDS_MAX * 1e3).contains(&delay_ms), "`delay_ms` must not be `{delay_ms}`");
        Ok(Duration::from_secs_f64(delay_ms / 1e3))
    });
    let width = fields.width.map(|width| at_least_one("width", width)).transpose()?;
    let queue_max = fields.queue.map(|queue| at_least_one("queue", queue)).transpose()?;
    let latency_objective =
        fields.latency_objective_ms.map(|value| milliseconds("latency_objective_ms", value)).transpose()?;
    let pace = Pace {
        first: fields.ttft_objective_ms.map(|ms| milliseconds("ttft_objective_ms", ms)).transpose()?,
        each: fields.tpot_objective_ms.map(|ms| milliseconds("tpot_objective_ms", ms)).transpose()?,
        timeout: None,
    };
    let kv_cache_mb =
        fields.kv_cache_mb.map(|megabytes| at_least_one("kv_cache_mb", megabytes)).transpose()?;
    let unmet = match fields.unmet.as_deref() {
        None => None,
        Some("refuse") => Some(Unmet::Refuse),
        Some("demote") => Some(Unmet::Demote),
        Some(other) => bail!("`unmet` must be `refuse` or `demote`, not `{other}`"),
    };
    let on_demand = match fields.residency.as_deref() {
        None => None,
        Some("pinned") => Some(false),
        Some("on-demand") => Some(true),
        Some(other) => bail!("`residency` must be `pinned` or `on-demand`, not `{other}`"),
    };
    let idle_after = fields.idle_s.map(|value| seconds("idle_s", value)).transpose()?;
    let priority =
        fields.priority.map(|priority| at_least_one("priority", priority as usize).map(|_| priority));
    Ok(ModelSettings {
        engine,
        batching,
        width,
        queue_max,
        delay_max: delay_max.transpose()?,
        latency_objective,
        pace,
        kv_cache_bytes: kv_cache_mb.map(|megabytes| (megabytes as u64).saturating_mul(1 << 20)),
        priority: priority.transpose()?.map(Priority),
        unmet,
        on_demand,
        idle_after,
        isolation: fields.isolation.as_deref().map(isolation).transpose()?,
        isolation_group: fields.isolation_group.clone().map(isolation_group).transpose()?,
        isolation_memory_bytes: fields.isolation_memory_mb.map(isolation_memory).transpose()?,
    })
}

fn isolation(word: &str) -> Result<Isolation> {
    match word {
        "none" => Ok(Isolation::None),
        "process" => Ok(Isolation::Process),
        other => bail!("`isolation` must be `none` or `process`, not `{other}`"),
    }
}

/// What is said of a process means nothing for a model without one.
fn isolation_is_meant(model: ModelSettings, defaults: &ModelSettings) -> Result<ModelSettings> {
    let says_more = model.isolation_group.is_some() || model.isolation_memory_bytes.is_some();
    let is_isolated = model.isolation.or(defaults.isolation) == Some(Isolation::Process);
    ensure!(
        is_isolated || !says_more,
        "`isolation_group` and `isolation_memory_mb` need `isolation = \"process\"`"
    );
    Ok(model)
}

fn isolation_group(name: String) -> Result<String> {
    let fits = !name.is_empty() && name.len() <= 128;
    ensure!(fits, "`isolation_group` must have 1 to 128 letters, not `{name}`");
    Ok(name)
}

fn isolation_memory(megabytes: u64) -> Result<u64> {
    let fits = (MEMORY_MB_MIN..=MEMORY_MB_MAX).contains(&megabytes);
    ensure!(fits, "`isolation_memory_mb` must be from {MEMORY_MB_MIN} to {MEMORY_MB_MAX}, not `{megabytes}`");
    Ok(megabytes << 20)
}

/// The program that serves engines: this one, also if its file was replaced since it started.
fn engine_host() -> Option<HostCommand> {
    let running = PathBuf::from("/proc/self/exe");
    let program = if running.exists() { running } else { std::env::current_exe().ok()? };
    Some(HostCommand { program, arguments: vec![ENGINE_HOST.into()] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toml: &str) -> Result<Config> {
        let settings: Settings = toml::from_str(toml).map_err(|error| anyhow!("{error}"))?;
        node_config(&settings, Path::new("models"), &[])
    }

    #[test]
    fn defaults_are_valid_and_survive_printing() {
        let printed = Settings::default().to_toml().unwrap();
        assert!(check(&printed).is_ok(), "{printed}");
        assert!(printed.contains("http_address = \"127.0.0.1:8000\""), "{printed}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (toml, part) in [
            ("htttp_address = \"127.0.0.1:1\"", "unknown field `htttp_address`"),
            ("[limits]\nrequest_s = 0.0", "`limits.request_s` must be more than 0"),
            ("[limits]\nqueued_requests = 0", "`limits.queued_requests` must be at least 1"),
            ("[models.m]\nengine = \"torch\"", "in `models.m`"),
            ("[models.m]\nbatching = \"yes\"", "in `models.m`"),
            ("[device]\ncores = [63]", "cores `[63]`"),
            ("[scheduler]\npolicy = \"edf\"", "`scheduler.policy` must be"),
            ("[scheduler]\nbest_effort_floor = 1.0", "`scheduler.best_effort_floor`"),
            ("[scheduler.tenant_weights]\na = 0", "`scheduler.tenant_weights.a`"),
            ("[tenants.a]\nkey = \"\"", "unknown field `key`"),
            ("[tenants.a]", "in `tenants.a`"),
            ("[models.m]\nlatency_objective_ms = 0.0", "`latency_objective_ms`"),
            ("[models.m]\ntpot_objective_ms = -1.0", "`tpot_objective_ms`"),
            ("[models.m]\nkv_cache_mb = 0", "`kv_cache_mb`"),
            ("[models.m]\nunmet = \"ignore\"", "`unmet` must be"),
            ("[scheduler]\neviction = \"fifo\"", "`scheduler.eviction` must be"),
            ("[scheduler]\nload_threads = 65", "`scheduler.load_threads` must be from 0 to 64"),
            ("[models.m]\nresidency = \"always\"", "`residency` must be"),
            ("[models.m]\nidle_s = 0.0", "`idle_s` must be more than 0"),
            ("[device]\nmemory_mb = 1", "`device.memory_mb` must be at least 64"),
            ("[repository]\npoll_s = -1.0", "`repository.poll_s` must be more than 0"),
            ("[models.m]\nisolation = \"thread\"", "`isolation` must be"),
            ("[models.m]\nisolation_group = \"\"", "`isolation_group` must have"),
            ("[models.m]\nisolation_memory_mb = 1", "`isolation_memory_mb` must be from 32"),
            ("[models.m]\nisolation_memory_mb = 100", "need `isolation = \"process\"`"),
            ("[device]\nonnxruntime = \"/does/not/exist.so\"", "no ONNX Runtime library"),
        ] {
            let error = format!("{:#}", check(toml).unwrap_err());
            assert!(error.contains(part), "`{toml}` gave `{error}`");
        }
    }

    #[test]
    fn models_are_understood() {
        let config = check("[models.m]\nbatching = 4\nqueue = 9\ndelay_ms = 1.5\nwidth = 2").unwrap();
        let model = &config.models["m"];
        assert_eq!(model.batching, Some(Batching::UpTo(4)));
        assert_eq!((model.queue_max, model.width), (Some(9), Some(2)));
        assert_eq!(model.delay_max, Some(Duration::from_micros(1500)));
    }
}
