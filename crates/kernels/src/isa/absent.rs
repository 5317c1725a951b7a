//! An instruction set that processors of this family never have.

use crate::cpu::Kernel;

/// Never there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {}

impl Absent {
    /// The proof cannot be given.
    pub(crate) fn detect() -> Option<Self> {
        None
    }

    /// Is never called.
    pub(crate) fn run<K: Kernel>(self, _kernel: K) -> K::Output {
        match self {}
    }
}
