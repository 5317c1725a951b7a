//! `quadrant tenant`: makes API keys, and shows what the tenants of a running server may have and use.

use std::fmt::Write as _;
use std::io::Read as _;

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, Subcommand};
use quadrant_server::KeyHash;
use serde::Deserialize;

use crate::explain;
use crate::print::print;

/// Random bytes of a key.
const KEY_BYTES: usize = 32;
/// What a key begins with, so that scanners for secrets can know it.
const KEY_PREFIX: &str = "qk_";
/// A shorter one can be guessed, and its digest is not slow to compute.
const KEY_CHARACTERS_MIN: usize = 32;

/// Make API keys, and show the tenants of a running server.
#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Make a key. It is shown once; what goes into the configuration is its digest.
    NewKey(NewKeyArgs),
    /// Read a key that was made elsewhere from standard input and print its digest.
    Hash,
    /// Show what the tenants of a running server may have, and what they use of it.
    List(ListArgs),
}

#[derive(Args, Debug)]
pub(crate) struct NewKeyArgs {
    /// The tenant, for the lines to paste.
    #[arg(value_name = "TENANT", default_value = "NAME")]
    tenant: String,
}

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Where the server's metrics are.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8002")]
    metrics_address: String,
}

/// A tenant as the server shows it.
#[derive(Debug, Deserialize)]
pub(crate) struct Shown {
    tenant: String,
    weight: u32,
    priority_max: Option<u32>,
    request_every_ms: Option<f64>,
    burst: Option<u32>,
    request_wait_ms: Option<f64>,
    concurrency: Option<u32>,
    bytes: Option<u64>,
    device_share_ppm: Option<u32>,
    device_wait_ms: Option<f64>,
    requests_in_flight: u32,
    bytes_in_flight: u64,
}

/// Runs the command.
///
/// # Errors
/// If there is no randomness, the key is too short, or the server does not answer.
pub(crate) fn run(command: &TenantCommand) -> Result<()> {
    match command {
        TenantCommand::NewKey(args) => {
            let mut random = [0_u8; KEY_BYTES];
            getrandom::fill(&mut random)
                .map_err(|error| anyhow!("the system gives no randomness: {error}"))?;
            let mut key = KEY_PREFIX.to_owned();
            random.iter().for_each(|byte| write!(key, "{byte:02x}").expect("a string takes every text"));
            let hash = KeyHash::of(key.as_bytes());
            print(&format!(
                "The key, for the client; it is not shown again:\n\n    {key}\n\nIts digest, for the configuration:\n\n    \
                 [tenants.{}]\n    keys = [\"{hash}\"]\n",
                args.tenant
            ));
        }
        TenantCommand::Hash => {
            let mut key = String::new();
            std::io::stdin().lock().take(4_096).read_to_string(&mut key).context("cannot read the key")?;
            let key = key.trim();
            let long = key.len() >= KEY_CHARACTERS_MIN;
            ensure!(long, "a key has at least {KEY_CHARACTERS_MIN} characters, or it could be guessed");
            print(&format!("{}\n", KeyHash::of(key.as_bytes())));
        }
        TenantCommand::List(args) => {
            let shown = ask(&args.metrics_address)?;
            if shown.is_empty() {
                print("no tenant is configured, so everybody may ask\n");
            }
            shown.iter().for_each(|tenant| print(&tenant.to_string()));
        }
    }
    Ok(())
}

/// The tenants of a running server.
///
/// # Errors
/// If it does not answer.
pub(crate) fn ask(metrics_address: &str) -> Result<Vec<Shown>> {
    let text = explain::fetch(metrics_address, "/tenants")?;
    serde_json::from_str(&text).context("an answer that is not understood")
}

impl Shown {
    pub(crate) fn is(&self, name: &str) -> bool {
        self.tenant == name
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tenant, weight, requests_in_flight, bytes_in_flight, .. } = self;
        write!(f, "tenant {tenant}: weight {weight}")?;
        if let Some(priority) = self.priority_max {
            write!(f, ", priority at most {priority}")?;
        }
        let waits = |wait: Option<f64>| match wait {
            Some(wait) if wait > 0.0 => format!("used up for {wait:.0} ms"),
            _ => "has room".to_owned(),
        };
        if let (Some(every), Some(burst)) = (self.request_every_ms, self.burst) {
            let rate = 1e3 / every.max(1e-6);
            write!(f, "\n  requests     {rate:.3}/s, {burst} at once: {}", waits(self.request_wait_ms))?;
        }
        if let Some(ppm) = self.device_share_ppm {
            let percent = f64::from(ppm) / 1e4;
            write!(f, "\n  device time  {percent:.2} %: {}", waits(self.device_wait_ms))?;
        }
        if let Some(concurrency) = self.concurrency {
            write!(f, "\n  under way    {requests_in_flight} of {concurrency} requests")?;
        }
        if let Some(bytes) = self.bytes {
            write!(f, "\n  in flight    {bytes_in_flight} of {bytes} bytes")?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_reads_well() {
        let shown: Shown = serde_json::from_str(
            r#"{"tenant":"a","weight":3,"request_every_ms":20.0,"burst":50,"request_wait_ms":12.0,
            "concurrency":4,"device_share_ppm":250000,"device_wait_ms":0.0,"requests_in_flight":2,
            "bytes_in_flight":10}"#,
        )
        .unwrap();
        assert_eq!(
            shown.to_string(),
            "tenant a: weight 3\n  requests     50.000/s, 50 at once: used up for 12 ms\n  device time  25.00 %: has room\n  \
             under way    2 of 4 requests\n"
        );
    }
}
