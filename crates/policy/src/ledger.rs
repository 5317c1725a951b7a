//! Who owns which bytes of a memory space. Nothing is used that was not reserved, so nothing finds out by
//! running out.
//!
//! What the operating system counts may still differ from what was reserved: an engine grew, a library
//! leaks. What is there beyond the reservations is reserved by nobody and therefore not free either
//! ([`Ledger::note_resident`]): the more there is of it, the less is let in.

use std::collections::BTreeMap;

use quadrant_types::ModelId;

use crate::{Limits, MemoryBudget};

/// Inputs of requests may take this share of the memory at most.
const TENSORS_DIVISOR: u64 = 4;

/// What bytes are reserved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The process itself, before any model.
    Process,
    /// Inputs of requests, waiting and running: what their limit allows.
    Tensors,
    /// A model: its weights, and what its steps need at most.
    Model(ModelId),
}

/// The bytes of one memory space of one device. See the module's text.
#[derive(Clone, Debug)]
pub struct Ledger {
    budget: u64,
    reserved: BTreeMap<Purpose, u64>,
    sum: u64,
    /// Resident beyond what is reserved, when last looked at.
    unaccounted: u64,
}

impl Ledger {
    /// A space of `budget` bytes, none of them reserved.
    pub fn new(budget: u64) -> Self {
        Self { budget, reserved: BTreeMap::new(), sum: 0, unaccounted: 0 }
    }

    /// The books of these limits, and the limits as far as the books allow: inputs never take more than their
    /// share of the memory.
    pub(crate) fn within(limits: Limits) -> (Limits, Self) {
        let MemoryBudget { bytes, process_bytes } = limits.memory;
        let limits = Limits { bytes_in_max: limits.bytes_in_max.min(bytes / TENSORS_DIVISOR), ..limits };
        let mut ledger = Self::new(bytes);
        ledger.reserve_up_to(Purpose::Process, process_bytes);
        ledger.reserve_up_to(Purpose::Tensors, limits.bytes_in_max);
        (limits, ledger)
    }

    /// Bytes that there are.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Bytes that are reserved.
    pub fn reserved(&self) -> u64 {
        self.sum
    }

    /// Bytes that are resident and that nobody reserved.
    pub fn unaccounted(&self) -> u64 {
        self.unaccounted
    }

    /// Bytes that can be reserved now.
    pub fn free(&self) -> u64 {
        self.budget.saturating_sub(self.sum).saturating_sub(self.unaccounted)
    }

    /// Bytes that are used beyond the budget by what nobody reserved.
    pub(crate) fn overdrawn(&self) -> u64 {
        self.sum.saturating_add(self.unaccounted).saturating_sub(self.budget)
    }

    /// What is reserved for this.
    pub fn of(&self, purpose: Purpose) -> u64 {
        self.reserved.get(&purpose).copied().unwrap_or(0)
    }

    /// Reserves `bytes`, instead of what this purpose had; false, and nothing changes, if they are not free.
    #[must_use]
    pub(crate) fn reserve(&mut self, purpose: Purpose, bytes: u64) -> bool {
        let had = self.of(purpose);
        if bytes.saturating_sub(had) > self.free() {
            return false;
        }
        self.sum = self.sum - had + bytes;
        self.reserved.insert(purpose, bytes);
        true
    }

    /// Reserves `bytes`, or as many of them as there are.
    pub(crate) fn reserve_up_to(&mut self, purpose: Purpose, bytes: u64) {
        let most = self.of(purpose) + self.free();
        let fits = self.reserve(purpose, bytes.min(most));
        debug_assert!(fits, "no more than is free was asked for");
    }

    pub(crate) fn release(&mut self, purpose: Purpose) {
        self.sum -= self.reserved.remove(&purpose).unwrap_or(0);
    }

    /// Takes in how many bytes the operating system counts.
    pub(crate) fn note_resident(&mut self, bytes: u64) {
        self.unaccounted = bytes.saturating_sub(self.sum);
    }

    /// Whether the sum is right and within the budget.
    pub(crate) fn is_sound(&self) -> bool {
        self.sum == self.reserved.values().sum::<u64>() && self.sum <= self.budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Purpose = Purpose::Model(ModelId(1));
    const B: Purpose = Purpose::Model(ModelId(2));

    #[test]
    fn what_is_not_free_is_not_reserved() {
        let mut ledger = Ledger::new(100);
        assert!(ledger.reserve(A, 60) && !ledger.reserve(B, 41) && ledger.reserve(B, 40));
        assert_eq!((ledger.free(), ledger.reserved(), ledger.of(B)), (0, 100, 40));
        assert!(ledger.reserve(A, 10), "less than it had");
        assert_eq!(ledger.free(), 50);
        ledger.reserve_up_to(A, 1_000);
        assert_eq!((ledger.of(A), ledger.free()), (60, 0));
        ledger.release(B);
        ledger.release(B);
        assert_eq!((ledger.free(), ledger.of(B)), (40, 0));
        assert!(ledger.is_sound());
    }

    #[test]
    fn what_nobody_reserved_is_not_free() {
        let mut ledger = Ledger::new(100);
        assert!(ledger.reserve(A, 50));
        ledger.note_resident(80);
        assert_eq!((ledger.unaccounted(), ledger.free(), ledger.overdrawn()), (30, 20, 0));
        assert!(!ledger.reserve(B, 21));
        ledger.note_resident(120);
        assert_eq!((ledger.free(), ledger.overdrawn()), (0, 20));
        ledger.note_resident(40);
        assert_eq!((ledger.unaccounted(), ledger.free()), (0, 50));
        assert!(ledger.is_sound());
    }
}
