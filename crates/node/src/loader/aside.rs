//! A thread of the class that gives way to every step, on which models are read, made ready and taken down.
//!
//! The loader itself keeps the class of the shell: it takes locks that requests take, too, and whoever is
//! preempted with one of those in his hands holds them all up.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};

use quadrant_types::CoreSet;

type Work = Box<dyn FnOnce() + Send>;

/// See the module's text. The thread ends when this is dropped.
pub(super) struct Aside {
    work: SyncSender<Work>,
}

impl Aside {
    /// Starts the thread, with this name, on these cores.
    ///
    /// # Errors
    /// What the operating system answered.
    pub(super) fn start(name: &str, cores: CoreSet) -> io::Result<Self> {
        let (work, inbox) = sync_channel::<Work>(1);
        let serve = move || {
            for work in inbox {
                // A panic was printed when it happened; whoever waits for the work learns that there is none.
                drop(catch_unwind(AssertUnwindSafe(work)));
            }
        };
        quadrant_engine::background(name, cores, serve)?;
        Ok(Self { work })
    }

    /// Does this on that thread, and waits for it.
    ///
    /// # Errors
    /// If it panicked.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let (done, waiting) = sync_channel(1);
        let work = move || {
            // Whoever asked waits below.
            let _taken = done.send(work());
        };
        self.work.send(Box::new(work)).map_err(|_| "the thread that loads models is gone".to_owned())?;
        waiting.recv().map_err(|_| "loading it panicked; the log says how".to_owned())
    }
}
