//! The shipped scheduler in virtual time.
//!
//! A [`Scenario`] says what there is: lanes, models, traffic, faults. [`run`] plays it against the real
//! [`quadrant_policy::Policy`] with an emulated device, and asks after every event whether what must hold
//! does. There is no policy in here: only what comes before it and what comes after it.
//!
//! A run is a function of its scenario and its seed. A [`Violation`] prints the seed, so it can be played
//! again; [`Report::log_hash`] is over every action at its time, so two runs can be told apart. The
//! tests play twelve thousand random scenarios; most of them by
//! `cargo test --release -p quadrant-sim ten_thousand`.

mod agenda;
mod checker;
mod device;
mod experiment;
mod generating;
mod random;
mod report;
mod scenario;
mod simulation;
mod tenants;
mod turnover;
mod workload;

pub use experiment::{Experiment, Generates, Outcome, Served};
pub use report::{LogHash, ModelReport, Report, Span};
pub use scenario::{Arrivals, Faults, GenerationPlan, ModelPlan, Range, Scenario, Traffic, Truth, Unsteady};
pub use simulation::{Scheduler, Violation, policy, run, run_unchecked, run_with};
pub use tenants::{TenantChange, TenantReport};
pub use turnover::{Crowd, Guest};
