//! Which sequences of a model share the next iteration, and how much of whose prompt is computed in it.
//!
//! Every sequence that has its prompt behind it takes part with one token: beside reading the weights that
//! costs next to nothing. What time is left until the first of them is late goes to prompts, in the order of
//! their deadlines and cut where the time ends ("chunked prefill", Agrawal et al., OSDI 2024).

use std::time::Duration;

use quadrant_types::{ModelId, RequestId, Time};
use smallvec::SmallVec;

use crate::Policy;
use crate::cost::Setting;
use crate::iteration_cost::{iteration_kind, keys_of};
use crate::queue::{BATCH_SCAN_MAX, Candidate, ModelQueue, OrderKey, Parts};
use crate::span::scaled;
use crate::{Requests, SequenceTerms};

/// An iteration with a prompt in it takes about this long at most: whoever comes or leaves is seen to when it
/// ends.
const ITERATION_MAX: Duration = Duration::from_millis(100);
/// With sequences that wait for their next token a prompt may take as long again as they do.
const PROMPT_SHARE: u32 = 2;
/// A prompt is cut at multiples of so many tokens, and gets so many at least.
const CHUNK: u32 = 16;

/// An iteration that is being put together.
struct Iteration<'a> {
    queue: &'a ModelQueue,
    terms: SequenceTerms,
    now: Time,
    setting: Setting,
    requests: Requests,
    parts: Parts,
    places: Parts,
    tokens: u32,
    keys: u64,
    deadline: Time,
    /// Pages that nobody has been given yet.
    free: usize,
    victims: Requests,
}

impl Iteration<'_> {
    fn add(&mut self, id: RequestId, from: u32, tokens: u32, deadline: Time) {
        self.requests.push(id);
        self.parts.push(tokens);
        self.places.push(from);
        self.tokens += tokens;
        self.keys += keys_of(from, tokens);
        self.deadline = self.deadline.min(deadline);
    }

    fn predicted(&self) -> Duration {
        let kind = crate::cost::Kind { rows: self.tokens, ..iteration_kind(self.setting.width) };
        self.queue.costs.predict_at(kind, self.keys, self.setting.slowdown)
    }

    /// How long it may take with prompts in it.
    fn allowed(&self) -> Duration {
        if self.tokens == 0 {
            return ITERATION_MAX;
        }
        let least = self.predicted().saturating_mul(PROMPT_SHARE);
        let slack = scaled(self.deadline.since(self.now), 1.0 / self.queue.costs.rarely());
        slack.clamp(least, least.max(ITERATION_MAX))
    }
}

impl Policy {
    /// The iteration of a generative model that begins with this waiting request, if that can begin. Empty if
    /// nothing can.
    pub(crate) fn iteration(&self, now: Time, model: ModelId, head: OrderKey, setting: Setting) -> Candidate {
        let queue = &self.models[&model];
        let (Some(terms), Some(pages)) = (queue.terms.sequences, &queue.pages) else {
            return queue.batch_from(head, now, setting);
        };
        let put_together = |(alone, is_open): (Option<RequestId>, bool)| {
            let mut iteration = Iteration {
                queue,
                terms,
                now,
                setting,
                requests: Requests::new(),
                parts: Parts::new(),
                places: Parts::new(),
                tokens: 0,
                keys: 0,
                deadline: Time::MAX,
                free: pages.free(),
                victims: Requests::new(),
            };
            let unfinished = self.add_tokens(&mut iteration, alone);
            self.add_prompts(&mut iteration, head, (alone, is_open), unfinished);
            iteration
        };
        let alone = queue.waiting[&head].alone.then_some(head.id);
        let mut iteration = put_together((alone, true));
        if iteration.requests.is_empty() {
            // Others have the pages that it waits for: those who run together, of whom no new one begins
            // before it, or some who run alone.
            let together = alone.is_some().then_some((None, false));
            let begun = queue.begun.values().filter(|key| queue.waiting[key].alone);
            let others = together.into_iter().chain(begun.map(|key| (Some(key.id), false)));
            let mut others = others.map(put_together).filter(|iteration| !iteration.requests.is_empty());
            iteration = others.next().unwrap_or(iteration);
        }
        let predicted = iteration.predicted();
        let Iteration { requests, parts, places, tokens, keys, deadline, victims, .. } = iteration;
        let kind =
            crate::cost::Kind { rows: tokens, beside: setting.beside, ..iteration_kind(setting.width) };
        Candidate {
            first: head,
            requests,
            parts,
            places,
            victims,
            kind,
            bytes: keys,
            predicted,
            slowdown: setting.slowdown,
            deadline,
            ripe_at: Time::ZERO,
        }
    }

    /// Adds a token of every sequence whose prompt is computed, those that began first first: if pages are
    /// wanting, those that began last make room. Returns those that have begun and have more to compute.
    fn add_tokens(&self, iteration: &mut Iteration<'_>, alone: Option<RequestId>) -> Vec<OrderKey> {
        let mut order: Vec<OrderKey> = iteration.queue.begun.values().copied().collect();
        let mut end = order.len();
        let mut next = order.len();
        if let Some(alone) = alone {
            // The others are only there to make room.
            order.sort_by_key(|key| key.id != alone);
            next = usize::from(order.first().is_some_and(|key| key.id == alone));
        }
        let mut unfinished = Vec::new();
        for at in 0..next {
            if at >= end {
                break;
            }
            let key = order[at];
            // Whoever was in a step that failed runs alone.
            if alone.is_none() && iteration.queue.waiting[&key].alone {
                continue;
            }
            let sequence = &self.sequences[&key.id];
            let need = sequence.pages_missing(&iteration.terms);
            while need > iteration.free && end - 1 > at {
                end -= 1;
                iteration.free += self.own_pages(iteration.queue, order[end].id);
                iteration.victims.push(order[end].id);
            }
            if need > iteration.free || iteration.tokens >= iteration.queue.terms.rows_max {
                continue;
            }
            iteration.free -= need;
            if sequence.remaining() > 1 {
                unfinished.push(key);
            } else {
                let deadline = iteration.queue.waiting[&key].deadline;
                iteration.add(key.id, sequence.done, 1, deadline);
            }
        }
        unfinished
    }

    /// Pages that are free if this sequence gives its own back.
    fn own_pages(&self, queue: &ModelQueue, id: RequestId) -> usize {
        let pages = queue.pages.as_ref();
        let is_own = |page| pages.is_some_and(|pages| pages.is_own(page));
        self.sequences[&id].pages.iter().filter(|page| is_own(**page)).count()
    }

    /// Adds what there is time for of prompts: of those that have begun, and, if it is open to them, of those
    /// that wait and for whose whole there are pages.
    fn add_prompts(
        &self,
        iteration: &mut Iteration<'_>,
        head: OrderKey,
        (alone, is_open): (Option<RequestId>, bool),
        unfinished: Vec<OrderKey>,
    ) {
        let queue = iteration.queue;
        let waits = |key: &&OrderKey| !self.sequences[&key.id].has_begun();
        let others = queue.waiting.keys().take(BATCH_SCAN_MAX).filter(waits);
        let own = std::iter::once(&head).filter(waits);
        let mut prompts: SmallVec<[OrderKey; 16]> = unfinished.into_iter().chain(others.copied()).collect();
        prompts.extend(own.copied());
        prompts.sort_unstable();
        prompts.dedup();
        let allowed = iteration.allowed();
        // While some make room nobody new begins.
        let (mut is_open, mut has_prompt) = (is_open && iteration.victims.is_empty(), false);
        for key in prompts {
            if iteration.tokens >= queue.terms.rows_max {
                break;
            }
            let waiting = &queue.waiting[&key];
            if alone.is_some_and(|alone| alone != key.id) || (waiting.alone && alone.is_none()) {
                continue;
            }
            let sequence = &self.sequences[&key.id];
            let mut from = sequence.done;
            let mut need = 0;
            if !sequence.has_begun() {
                let (cached, is_coming) = self.cached(queue, &self.live[&key.id].request, sequence);
                from = cached;
                need = self.pages_to_begin(iteration, key.id, cached);
                // Each of those that have begun may want one more before long.
                is_open &= need + queue.begun.len() <= iteration.free;
                if is_coming || !is_open {
                    continue;
                }
            }
            let left = sequence.length - from;
            let tokens_max = left.min(queue.terms.rows_max - iteration.tokens);
            let each = u64::from(from) + u64::from(tokens_max / 2);
            let within = scaled(allowed, 1.0 / iteration.setting.slowdown);
            let (width, so_far) = (iteration.setting.width, (iteration.tokens, iteration.keys));
            let mut tokens = queue.costs.fitting((width, within), so_far, each, tokens_max);
            if tokens < left {
                tokens -= tokens % CHUNK;
            }
            if tokens == 0 {
                if has_prompt {
                    break;
                }
                tokens = CHUNK.min(tokens_max);
            }
            has_prompt = true;
            iteration.free -= need;
            iteration.add(key.id, from, tokens, waiting.deadline);
        }
    }

    /// Free pages that a sequence takes when it begins, of which so many tokens are known.
    fn pages_to_begin(&self, iteration: &Iteration<'_>, id: RequestId, cached: u32) -> usize {
        let sequence = &self.sequences[&id];
        let tenant = self.live[&id].request.tenant;
        let known = (cached / iteration.terms.page_tokens.max(1)) as usize;
        let Some(pages) = &iteration.queue.pages else { return 0 };
        let is_idle = |hash| pages.find((tenant, hash)).is_some_and(|page| pages.is_idle(page));
        let idle = sequence.prefix[..known].iter().filter(|hash| is_idle(**hash)).count();
        iteration.terms.pages_of(sequence.length) - known + idle
    }
}
