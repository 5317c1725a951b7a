//! Models that generate, as a workload describes them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quadrant_policy::SequenceTerms;
use quadrant_sim::{Generates, GenerationPlan};
use quadrant_traffic::ChatTrace;
use serde::Deserialize;

use super::workload::within;

/// What `lengths` may be instead of a file.
const CHATS: &str = "chats";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenGeneration {
    lengths: String,
    #[serde(default = "one")]
    shorter: u32,
    each_ms: f64,
    #[serde(default)]
    shared_prefix: u32,
    #[serde(default = "page_tokens")]
    page_tokens: u32,
    #[serde(default = "pages")]
    pages: u32,
    #[serde(default = "longest")]
    longest: u32,
    #[serde(default)]
    pub(super) thousand_keys_ms: f64,
}

fn one() -> u32 {
    1
}

fn page_tokens() -> u32 {
    32
}

fn pages() -> u32 {
    1_024
}

fn longest() -> u32 {
    8_192
}

/// Checks it.
///
/// # Errors
/// The first thing that makes no sense, or a file that cannot be read.
pub(super) fn generates(written: &WrittenGeneration) -> Result<Generates> {
    within("generation.each_ms", written.each_ms, (0.001, 1e6))?;
    within("generation.thousand_keys_ms", written.thousand_keys_ms, (0.0, 1e3))?;
    for (name, value) in [
        ("shorter", written.shorter),
        ("page_tokens", written.page_tokens),
        ("pages", written.pages),
        ("longest", written.longest),
    ] {
        ensure!(
            (1..=1 << 24).contains(&value),
            "`generation.{name}` must be from 1 to 16777216, not `{value}`"
        );
    }
    let trace = match written.lengths.as_str() {
        CHATS => ChatTrace::azure_2023(),
        path => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("`generation.lengths` is neither `{CHATS}` nor a file: `{path}`"))?;
            ChatTrace::parse(&text).with_context(|| format!("in `{path}`"))?
        }
    };
    let lengths = trace.scaled(1.0, written.shorter).map(|chat| (chat.prompt, chat.new)).collect();
    Ok(Generates {
        terms: SequenceTerms {
            page_tokens: written.page_tokens,
            pages: written.pages,
            tokens_max: written.longest,
            thousand_keys: Duration::from_secs_f64(written.thousand_keys_ms / 1e3),
        },
        plan: GenerationPlan {
            lengths,
            each: Duration::from_secs_f64(written.each_ms / 1e3),
            shared_prefix: written.shared_prefix,
        },
    })
}
