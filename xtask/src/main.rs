//! The developer's commands: `cargo xtask check`, `cargo xtask test`, `cargo xtask measure`. One file for
//! each of them.
//!
//! A program and not a pile of scripts, so that it runs wherever the project builds, and is linted and
//! tested with it.

mod assets;
mod check;
mod fuzz;
mod measure;
mod run;
mod schedule;
mod test;
mod tidy;
mod turnover;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "The developer's commands of Quadrant.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Format, lints, tidy, documentation, dependencies: the one door before a commit.
    Check,
    /// Length of files, direction of dependencies, and other things that no lint knows. Part of `check`.
    Tidy,
    /// Fetch what the tests need, then run all of them.
    Test(test::TestArgs),
    /// Measure the figures of the README again, side by side with bare comparators.
    Measure(measure::MeasureArgs),
    /// Compare scheduling policies live: many models on one device, attainment over load.
    Schedule(schedule::ScheduleArgs),
    /// A quiet tenant beside a flood: its p99 with it over its p99 alone.
    Isolation(schedule::isolation::IsolationArgs),
    /// More models than memory: time spent on loading, against the least recently used and a clairvoyant.
    Turnover(turnover::TurnoverArgs),
    /// A tenant that asks for ten times its quota: what it gets, and what the others feel.
    Tenants(schedule::tenants::TenantsArgs),
    /// Best effort under an overload of urgent work: its core time over what it was promised.
    Floor(schedule::floor::FloorArgs),
    /// Try to break the readers of files from strangers.
    Fuzz(fuzz::FuzzArgs),
    /// The simulator against the machine, and the predicted times of steps against the real ones.
    Fidelity(schedule::fidelity::FidelityArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check => check::run().map(|()| ExitCode::SUCCESS),
        Command::Tidy => tidy::run().map(|()| ExitCode::SUCCESS),
        Command::Test(args) => test::run_tests(&args),
        Command::Schedule(args) => schedule::measure(&args).map(|()| ExitCode::SUCCESS),
        Command::Isolation(args) => schedule::isolation::isolation(&args).map(|()| ExitCode::SUCCESS),
        Command::Turnover(args) => turnover::turnover(&args).map(|()| ExitCode::SUCCESS),
        Command::Tenants(args) => schedule::tenants::tenants(&args).map(|()| ExitCode::SUCCESS),
        Command::Floor(args) => schedule::floor::floor(&args).map(|()| ExitCode::SUCCESS),
        Command::Fidelity(args) => schedule::fidelity::fidelity(&args).map(|()| ExitCode::SUCCESS),
        Command::Fuzz(args) => fuzz::fuzz(&args).map(|()| ExitCode::SUCCESS),
        Command::Measure(args) => measure::run_measure(&args).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            run::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
