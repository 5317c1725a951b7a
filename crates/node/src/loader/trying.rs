//! Has models that nobody knows yet measured in child processes, one after the other.
//!
//! Two threads, as for a loading lane: the child takes after the one that gives way to every step.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use quadrant_engine::{EngineKind, HostCommand, ProbeOptions};
use quadrant_types::ModelId;

use super::aside::Aside;
use super::bringing::Means;
use crate::measuring::{ChildError, Subject, measured_in_child};
use crate::orders::Order;

/// A model to be measured.
pub(super) struct Unknown {
    pub(super) id: ModelId,
    pub(super) model: PathBuf,
    pub(super) engine: EngineKind,
    pub(super) options: ProbeOptions,
    /// The program that measures.
    pub(super) command: HostCommand,
    /// Where what it finds is kept.
    pub(super) folder: PathBuf,
}

/// See the module's text. The threads end when this is dropped, and the present measurement has.
pub(super) struct Measurer {
    unknown: SyncSender<Unknown>,
}

impl Measurer {
    /// Starts the threads.
    ///
    /// # Errors
    /// What the operating system answered.
    pub(super) fn start(means: &Means) -> io::Result<Self> {
        let (unknown, inbox) = sync_channel::<Unknown>(1);
        let (aside, means) = (Aside::start("measuring", means.config.cores)?, means.clone());
        let serve = move || {
            for unknown in inbox {
                let id = unknown.id;
                let with = means.clone();
                let result = aside.run(move || measure(&unknown, &with));
                let result = result.unwrap_or_else(|panic| Err(ChildError::Failed(panic)));
                means.handle.driver.orders.ended(Order::Measured(id, result));
            }
        };
        std::thread::Builder::new().name("measurer".into()).spawn(serve)?;
        Ok(Self { unknown })
    }

    /// Begins to measure a model, when none is being measured; its end comes as an order.
    pub(super) fn begin(&self, unknown: Unknown) {
        // It serves until this sender is gone.
        drop(self.unknown.send(unknown));
    }
}

fn measure(unknown: &Unknown, means: &Means) -> Result<(), ChildError> {
    let Unknown { model, engine, options, command, folder, .. } = unknown;
    let (config, clock) = (&means.config, Arc::clone(&means.engines.clock));
    let (program, onnxruntime) = (&*command.program, config.onnxruntime.as_deref());
    let subject = Subject { program, model, engine: *engine, onnxruntime, cores: config.cores };
    measured_in_child(&subject, options, folder, &clock)
}
