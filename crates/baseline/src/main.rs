//! What the server is measured against: a bare axum echo, a bare tonic echo, a loop around an engine
//! without any server, the language engine, and the scheduler and the simulator by themselves. Each as plain
//! as its library's own examples.

mod decisions;
mod echo;
mod engine_loop;
mod language;
mod turnover;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Bare comparators for the benchmarks.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// An axum server that answers every request with its own body.
    EchoHttp {
        /// Where to listen; the bound address is printed.
        #[arg(long, default_value = "127.0.0.1:0")]
        address: SocketAddr,
    },
    /// A tonic server that answers `ModelInfer` with the tensors of the request.
    EchoGrpc {
        /// Where to listen; the bound address is printed.
        #[arg(long, default_value = "127.0.0.1:0")]
        address: SocketAddr,
    },
    /// Runs a model back to back on one core, as JSON: rows per second, median and 99th percentile.
    EngineLoop(engine_loop::LoopArgs),
    /// Times the language engine's steps on some cores, as JSON.
    Language(language::LanguageArgs),
    /// How far the language engine and llama.cpp are from exact, as JSON.
    LanguageError(language::ErrorArgs),
    /// Times the scheduler's decisions with many models and a long queue.
    Decisions(decisions::DecisionArgs),
    /// Times the simulator.
    Simulation,
    /// More models than memory, simulated; task and answer as JSON.
    Turnover,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::EchoHttp { address } => runtime()?.block_on(echo::http(address)),
        Command::EchoGrpc { address } => runtime()?.block_on(echo::grpc(address)),
        Command::EngineLoop(args) => engine_loop::run(&args),
        Command::Language(args) => language::run(&args),
        Command::LanguageError(args) => language::error(&args),
        Command::Decisions(args) => decisions::decisions(&args),
        Command::Simulation => decisions::simulation(),
        Command::Turnover => turnover::run(),
    }
}

/// The runtime that `#[tokio::main]` makes.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

#[expect(clippy::print_stdout, reason = "what whoever started this reads")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
