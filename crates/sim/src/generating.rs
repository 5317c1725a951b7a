//! Requests that generate: which step computes what of them, and when their tokens are there.

use std::collections::BTreeMap;

use quadrant_policy::{Requests, Step};
use quadrant_types::{RequestId, StepId, Time};

use crate::workload::Sent;

/// The tokens of a request so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) count: u32,
    /// When the first of them was there, and the last.
    pub(crate) first: Time,
    pub(crate) last: Time,
}

/// All that generate.
#[derive(Debug, Default)]
pub(crate) struct Generations {
    tokens: BTreeMap<RequestId, Tokens>,
    /// Of running steps: up to where each of their sequences is computed when they end.
    steps: BTreeMap<StepId, Vec<(RequestId, u32)>>,
}

impl Generations {
    /// A step begins.
    pub(crate) fn begin(&mut self, step: &Step) {
        let until = step.slices.iter().map(|slice| slice.from + slice.tokens);
        if !step.slices.is_empty() {
            self.steps.insert(step.id, step.requests.iter().copied().zip(until).collect());
        }
    }

    /// A step has ended, and went well: who has all tokens now. `None` if nobody of it generates.
    pub(crate) fn ended(&mut self, step: StepId, now: Time, sent: &[Sent]) -> Option<Requests> {
        let mut over = Requests::new();
        for (id, until) in self.steps.remove(&step)? {
            let Some(one) = usize::try_from(id.0).ok().and_then(|index| sent.get(index)) else { continue };
            let tokens = self.tokens.entry(id).or_default();
            if until < one.request.work.rows() + tokens.count {
                continue;
            }
            tokens.count += 1;
            tokens.last = now;
            if tokens.count == 1 {
                tokens.first = now;
            }
            if tokens.count >= one.new_tokens {
                over.push(id);
            }
        }
        Some(over)
    }

    /// A step did not go well.
    pub(crate) fn failed(&mut self, step: StepId) {
        self.steps.remove(&step);
    }

    /// A request is over: its tokens.
    pub(crate) fn take(&mut self, id: RequestId) -> Option<Tokens> {
        self.tokens.remove(&id)
    }
}

/// Keys that the tokens of a step attend to.
pub(crate) fn keys_of(step: &Step) -> u64 {
    let keys = step.slices.iter().map(|slice| {
        let (from, tokens) = (u64::from(slice.from), u64::from(slice.tokens));
        tokens * from + tokens * (tokens + 1) / 2
    });
    keys.sum()
}
