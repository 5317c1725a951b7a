//! More models than memory, simulated: the scheduler's choice of what to evict, the least recently used, and
//! one that knows the future, on the same requests. The task comes as JSON on standard input, the answer goes
//! as JSON to standard output.

use std::time::Duration;

use anyhow::{Context, Result};
use quadrant_policy::Eviction;
use quadrant_sim::{Crowd, Guest};
use quadrant_types::Time;
use serde_json::{Value, json};

/// Plays it.
///
/// # Errors
/// If the task is not understood, or a simulation went wrong.
pub(crate) fn run() -> Result<()> {
    let task: Value = serde_json::from_reader(std::io::stdin().lock()).context("no task")?;
    let crowd = crowd(&task).context("the task is not understood")?;
    let mut answer = json!({ "clairvoyant_s": crowd.clairvoyant().as_secs_f64() });
    for eviction in Eviction::ALL {
        let report = crowd.play(eviction, 1)?;
        let models = || report.models.iter();
        let refused = models().map(|model| model.ended("resource_exhausted")).sum::<u64>();
        answer[eviction.name()] = json!({
            "loading_s": models().map(|model| model.loading.as_secs_f64()).sum::<f64>(),
            "loads": models().map(|model| model.loads).sum::<u64>(),
            "requests": models().map(|model| model.arrivals).sum::<u64>(),
            "answered": models().map(|model| model.ended("completed")).sum::<u64>(),
            "refused": refused,
        });
    }
    crate::say(&answer.to_string());
    Ok(())
}

fn crowd(task: &Value) -> Option<Crowd> {
    let milliseconds = |value: &Value| value.as_f64().map(|ms| Duration::from_secs_f64(ms / 1e3));
    let guest = |guest: &Value| {
        Some(Guest {
            bytes: guest["bytes"].as_u64()?,
            load_time: milliseconds(&guest["load_ms"])?,
            step_time: milliseconds(&guest["step_ms"])?,
        })
    };
    let request = |request: &Value| {
        let at = Time::ZERO + milliseconds(&request[0])?;
        Some((at, usize::try_from(request[1].as_u64()?).ok()?))
    };
    Some(Crowd {
        guests: task["guests"].as_array()?.iter().map(guest).collect::<Option<_>>()?,
        requests: task["requests"].as_array()?.iter().map(request).collect::<Option<_>>()?,
        room: task["room"].as_u64()?,
    })
}
