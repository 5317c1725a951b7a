//! Log lines to standard error, as text or JSON.

use std::io::IsTerminal;

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How to log.
#[derive(Args, Debug)]
pub(crate) struct LogArgs {
    /// What to log: `error`, `warn`, `info`, `debug`, or for each part, such as `info,quadrant_server=debug`.
    #[arg(long, global = true, default_value = "info", value_name = "FILTER")]
    log: String,
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging; once for each process.
///
/// # Errors
/// If the filter is not one.
pub(crate) fn start(args: &LogArgs) -> Result<()> {
    let filter = EnvFilter::try_new(&args.log).map_err(|error| anyhow!("`--log {}`: {error}", args.log))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}
