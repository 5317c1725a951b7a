//! `quadrant`: the command line. Each command reads its arguments, builds a checked configuration, and
//! hands over to the crates that do the work.

mod bench;
mod bench_tokens;
mod cache;
mod chat;
mod checked;
mod client;
mod demo;
mod explain;
mod infer;
mod logging;
mod observe;
mod print;
mod profile;
mod serve;
mod settings;
mod simulate;
mod tenant;
mod tenants;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// A deep-learning serving system: many models on few devices, one scheduler.
#[derive(Debug, Parser)]
#[command(name = "quadrant", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    log: logging::LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the models of a folder.
    Serve(serve::ServeArgs),
    /// Fetch real models, serve them, and print requests to paste.
    Demo(demo::DemoArgs),
    /// Send one request made from files.
    Infer(infer::InferArgs),
    /// Talk to a language model.
    Chat(chat::ChatArgs),
    /// Send load and report latency percentiles.
    Bench(bench::BenchArgs),
    /// Send completions to a language model and report when their tokens came.
    BenchTokens(bench_tokens::BenchTokensArgs),
    /// Simulate many models on one device under a load.
    Simulate(simulate::SimulateArgs),
    /// Find the highest load that meets the objectives, and how many devices a load needs.
    Plan(simulate::PlanArgs),
    /// Make a workload for `simulate` and `plan` out of what a running server did lately.
    Observe(observe::ObserveArgs),
    /// Say why a request took as long as it did.
    Explain(explain::ExplainArgs),
    /// Make API keys, and show the tenants of a running server.
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Measure models on this machine, show what a step costs, and keep it for the next `serve`.
    Profile(profile::ProfileArgs),
    /// Measure a model: `serve` and `profile` start this in a process of its own.
    #[command(hide = true)]
    Measure,
    /// Run engines for a server, which starts this itself.
    #[command(name = checked::ENGINE_HOST, hide = true)]
    EngineHost,
    /// Print the checked configuration with every default, as a file that `serve --config` takes.
    Config(serve::ConfigArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    logging::start(&cli.log)?;
    match &cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Infer(args) => infer::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Bench(args) => bench::run_bench(args),
        Command::BenchTokens(args) => bench_tokens::run_bench(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Plan(args) => simulate::plan(args),
        Command::Observe(args) => observe::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Tenant(command) => tenant::run(command),
        Command::Profile(args) => profile::run(args),
        Command::Measure => profile::measured(),
        Command::EngineHost => {
            Ok(quadrant_engine::serve_engines(Arc::new(quadrant_node::MonotonicClock::new()))?)
        }
        Command::Config(args) => serve::print_config(args),
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a command that failed")]
fn report(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_of_commands_do_not_collide() {
        Cli::command().debug_assert();
    }
}
