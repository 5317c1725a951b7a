//! Which instruction set the loops run on, and how a loop gets there.
//!
//! A loop is a [`Kernel`]: a value that holds what it works on, with one generic method. [`Cpu::run`] calls
//! it inside a function that is compiled for the instruction set, into which all of it is inlined.

use crate::isa::{Avx2, Avx512, Isa, Plain};

/// An instruction set that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Plain(Plain),
    Avx2(Avx2),
    Avx512(Avx512),
}

/// A loop over one instruction set. `run` must be `#[inline(always)]`, and so must all that it calls with
/// `isa`: only what is inlined is compiled for the instruction set. A closure cannot be made so, and is not
/// used for anything that touches a vector.
pub(crate) trait Kernel {
    /// What the loop gives back.
    type Output;

    /// Does the work.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

impl Cpu {
    /// The fastest instruction set of this processor.
    pub fn best() -> Self {
        Self::all()[0]
    }

    /// All instruction sets of this processor that loops are compiled for, the fastest first.
    pub fn all() -> Vec<Self> {
        let avx512 = Avx512::detect().map(|isa| Self(Set::Avx512(isa)));
        let avx2 = Avx2::detect().map(|isa| Self(Set::Avx2(isa)));
        [avx512, avx2, Some(Self::plain())].into_iter().flatten().collect()
    }

    /// Plain Rust: runs everywhere, gives the same bits, takes much longer.
    pub fn plain() -> Self {
        Self(Set::Plain(Plain))
    }

    /// Its name, for logs and tables.
    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Plain(_) => "plain",
            Set::Avx2(_) => "avx2",
            Set::Avx512(_) => "avx512-vnni",
        }
    }

    /// Runs a loop.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Set::Plain(isa) => kernel.run(isa),
            Set::Avx2(isa) => isa.run(kernel),
            Set::Avx512(isa) => isa.run(kernel),
        }
    }
}
