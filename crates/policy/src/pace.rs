//! Whether the tokens of all sequences still come in time if one more sequence is let in.
//!
//! A step gives every sequence its next token before it goes on with prompts (`iteration.rs`). So what
//! further tokens take is taken first, and prompts and all else have what it leaves.

use std::time::Duration;

use quadrant_types::{Error, ModelId, Objective, Request, RequestId, Time};

use crate::Policy;
use crate::admission::unmeetable;
use crate::cost::Kind;
use crate::iteration_cost::iteration_kind;
use crate::queue::ModelQueue;
use crate::sequences::Sequence;

/// The share of the device that tokens and the other models may ask for together, for new ones to be let in.
const PACE_MAX: f64 = 0.95;

/// What the further tokens of a model's sequences take.
struct Pace {
    count: u32,
    /// The shortest time that one of them leaves for a token.
    least: Duration,
    /// The share of the whole device.
    share: f64,
}

impl Policy {
    /// The share of the device that the further tokens of all sequences take with this request among them, if
    /// all would still have them in time. Prompts take no time from them: they get what is left.
    pub(crate) fn keeps_pace(&self, now: Time, request: &Request) -> Result<f64, Error> {
        let other = |(model, _): &(&ModelId, &ModelQueue)| **model != request.model;
        let others = || self.models.iter().filter(other);
        // Nothing is asked of those many who run where nobody generates.
        let generating = others().take_while(|_| !self.sequences.is_empty());
        let of_others = generating.map(|(model, queue)| self.tokens_pace(now, (*model, queue), None).share);
        let of_others: f64 = of_others.sum();
        let Objective::Tokens { each, .. } = request.objective else { return Ok(of_others) };
        let queue = &self.models[&request.model];
        let Pace { count, least, share } =
            self.tokens_pace(now, (request.model, queue), Some((each, request.work.rows())));
        let taken: f64 = others().map(|(_, queue)| queue.account.takes(now)).sum();
        // Nothing else would have the time that a single sequence needs for itself.
        let is_only_one = count == 1 && share <= 1.0 && of_others + taken <= 1.0 - PACE_MAX;
        if share + of_others + taken <= PACE_MAX || is_only_one {
            return Ok(share + of_others);
        }
        let text = format!(
            "at the present load a token of each of the `{count}` sequences would take more than {least:.1?}"
        );
        Err(unmeetable(&text).retry_after(Duration::from_secs(1)))
    }

    /// What the further tokens of a model's sequences with objectives take, with one more that has so many
    /// tokens and wants each further one within so long.
    fn tokens_pace(
        &self,
        now: Time,
        (model, queue): (ModelId, &ModelQueue),
        more: Option<(Duration, u32)>,
    ) -> Pace {
        let none = Pace { count: 0, least: Duration::MAX, share: 0.0 };
        if queue.terms.sequences.is_none() {
            return none;
        }
        let of_model = |(id, sequence): (&RequestId, &Sequence)| {
            // Nobody waits for those of best effort, whatever they asked for.
            let live = self.live.get(id).filter(|live| live.request.model == model && !live.plan.key.easy)?;
            let Objective::Tokens { each, .. } = live.request.objective else { return None };
            Some((each, sequence.length))
        };
        let all = self.sequences.iter().filter_map(of_model).chain(more);
        let (count, keys, least) = all.fold((0, 0, Duration::MAX), |(count, keys, least), (each, length)| {
            (count + 1, keys + u64::from(length), least.min(each))
        });
        if count == 0 {
            return none;
        }
        let width = *queue.terms.widths.last().expect("a model has a width");
        let kind = Kind { rows: count, ..iteration_kind(width) };
        let step = queue.costs.high(queue.costs.predict_at(kind, keys, self.slowdown.mean(now)));
        let share = step.as_secs_f64() * width as f64 * self.per_core / least.as_secs_f64().max(1e-9);
        Pace { count, least, share }
    }
}
