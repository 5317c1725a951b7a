//! Requests that generate: a sequence of tokens that comes back for the next one after every step.
//!
//! After a step a sequence waits again like any other request, with the time of its next token for a
//! deadline: the first token's own, and from then on one `each` later for every token. So a sequence that is
//! ahead has time, which others may use, and the order of deadlines holds across all models.
//!
//! The keys and values of its tokens lie in pages, which it has from its first step on. If a page is wanted
//! and none is free, the sequence that began last gives all of its own back and computes them again later.
//! (On a device with a memory of its own they could be moved to the host instead. Here that is the same
//! memory.)

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quadrant_types::{
    Ending, Error, ModelId, Objective, PageHash, PageId, Priority, Request, RequestId, Time, Work,
};

use crate::admission::{Plan, unloaded};
use crate::cost::Kind;
use crate::iteration_cost::{iteration_kind, keys_of};
use crate::queue::{ModelQueue, OrderKey};
use crate::running::Running;
use crate::span::scaled;
use crate::{Action, Discipline, Policy, SequenceTerms, Slice};

/// What is kept of a request that generates.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// What is in the whole pages of its prompt.
    pub(crate) prefix: Arc<[PageHash]>,
    /// Its tokens: the prompt's and those that were generated.
    pub(crate) length: u32,
    /// Tokens whose keys and values are in its pages.
    pub(crate) done: u32,
    /// Its pages, in order; none before its first step and after it was preempted.
    pub(crate) pages: Vec<PageId>,
    /// Tokens that were generated.
    pub(crate) generated: u32,
    /// When the first of them was there.
    first_at: Time,
}

impl Sequence {
    pub(crate) fn new(prompt: u32, prefix: Arc<[PageHash]>) -> Self {
        Self { prefix, length: prompt, done: 0, pages: Vec::new(), generated: 0, first_at: Time::ZERO }
    }

    /// Tokens to be computed until the next one is known.
    pub(crate) fn remaining(&self) -> u32 {
        self.length - self.done
    }

    /// Pages that it needs for its next token beyond those that it has.
    pub(crate) fn pages_missing(&self, terms: &SequenceTerms) -> usize {
        terms.pages_of(self.length) - self.pages.len()
    }

    pub(crate) fn has_begun(&self) -> bool {
        !self.pages.is_empty()
    }
}

impl SequenceTerms {
    /// Pages of so many tokens.
    pub(crate) fn pages_of(&self, tokens: u32) -> usize {
        tokens.div_ceil(self.page_tokens.max(1)) as usize
    }
}

impl Policy {
    /// Sequences of this model that have begun, and those that wait to.
    pub fn sequences(&self, model: ModelId) -> (usize, usize) {
        let own = |id: &RequestId| self.live.get(id).is_some_and(|live| live.request.model == model);
        let all = self.sequences.iter().filter(|(id, _)| own(id));
        let (begun, waiting): (Vec<_>, Vec<_>) = all.partition(|(_, sequence)| sequence.has_begun());
        (begun.len(), waiting.len())
    }

    /// Pages of this model that sequences have, and all that there are.
    pub fn pages(&self, model: ModelId) -> (usize, usize) {
        let pages = self.models.get(&model).and_then(|queue| queue.pages.as_ref());
        pages.map_or((0, 0), |pages| (pages.len() - pages.free(), pages.len()))
    }

    /// How often a sequence gave its pages back to others, over all models.
    pub fn sequences_preempted(&self) -> u64 {
        self.sequences_preempted
    }

    /// Whether the model does what is asked for, and the whole of it.
    pub(crate) fn can_be_run(&self, queue: &ModelQueue, work: &Work) -> Result<(), Error> {
        match (work, &queue.terms.sequences) {
            (Work::Once { .. }, None) => Ok(()),
            (Work::Once { .. }, Some(_)) => Err(Error::invalid("the model generates; it runs nothing once")),
            (Work::Generate { .. }, None) => Err(Error::invalid("the model generates nothing")),
            (Work::Generate { prompt, new_max, .. }, Some(terms)) => {
                let (length, tokens_max) = (u64::from(*prompt) + u64::from(*new_max), terms.longest());
                if *prompt > 0 && *new_max > 0 && length <= u64::from(tokens_max) {
                    return Ok(());
                }
                Err(Error::invalid(format!(
                    "a prompt of `{prompt}` tokens and `{new_max}` more are not between 2 and `{tokens_max}`"
                )))
            }
        }
    }

    /// Puts a sequence in its place, for its next token.
    pub(crate) fn sequence_plan(&self, now: Time, request: &Request) -> Plan {
        let Some(sequence) = self.sequences.get(&request.id) else {
            return self.best_effort_plan(now, request);
        };
        let deadline = match (request.objective, self.discipline) {
            (Objective::Tokens { first_by, each, .. }, Discipline::Quadrant | Discipline::Clockwork) => {
                let next = sequence.first_at + each.saturating_mul(sequence.generated);
                Some(if sequence.generated == 0 { first_by } else { next })
            }
            (Objective::Tokens { .. }, Discipline::Fifo)
            | (Objective::BestEffort | Objective::EndBy(_) | Objective::Target { .. }, _) => None,
        };
        let Some(deadline) = deadline else {
            let plan = self.best_effort_plan(now, request);
            if self.discipline == Discipline::Quadrant {
                return plan;
            }
            let key = OrderKey { easy: false, rank: request.arrived.as_nanos(), id: request.id };
            return Plan { key, ..plan };
        };
        let expires = request.objective.until().min(self.latest(now, request));
        let queue = &self.models[&request.model];
        let from = self.known_of(queue, request, sequence);
        let step = |width: &usize| {
            let own = self.rest(queue, (from, sequence.length), *width, self.slowdown.mean(now));
            (*width, own, queue.costs.high(own))
        };
        let widths = &queue.terms.widths;
        let fast_enough = widths.iter().map(step).find(|(_, _, high)| now + *high <= deadline);
        let (width, own, high) = fast_enough.unwrap_or_else(|| step(&widths[widths.len() - 1]));
        let start_by = deadline - high;
        let key = OrderKey { easy: false, rank: start_by.as_nanos(), id: request.id };
        // One token more adds little to those that are computed anyway.
        let alone = sequence.length - from <= 1 && !queue.begun.is_empty();
        let share = width as f64 * self.per_core;
        let work = if alone { own / u32::try_from(queue.begun.len() + 1).unwrap_or(u32::MAX) } else { own };
        let due = start_by + scaled(own, share.min(1.0));
        Plan { key, deadline, expires, work: scaled(work, share), due }
    }

    /// Tokens of a sequence that need not be computed.
    pub(crate) fn known_of(&self, queue: &ModelQueue, request: &Request, sequence: &Sequence) -> u32 {
        sequence.done.max(self.cached(queue, request, sequence).0)
    }

    /// How long the tokens from one to another take, in as large steps as there are.
    pub(crate) fn rest(
        &self,
        queue: &ModelQueue,
        (from, to): (u32, u32),
        width: usize,
        slowdown: f64,
    ) -> Duration {
        let step = |from: u32, tokens: u32| {
            let kind = Kind { rows: tokens, ..iteration_kind(width) };
            queue.costs.predict_at(kind, keys_of(from, tokens), slowdown)
        };
        let largest = queue.terms.rows_max.max(1);
        let (whole, last) = ((to - from) / largest, (to - from) % largest);
        let middle = from + whole / 2 * largest;
        let rest = if last > 0 { step(to - last, last) } else { Duration::ZERO };
        if whole > 0 { step(middle, largest).saturating_mul(whole) + rest } else { rest }
    }

    /// Tokens at the beginning of a prompt whose keys and values are known already, and whether those of the
    /// next page are being computed for somebody else. The last token is always computed: it says which is
    /// next.
    pub(crate) fn cached(&self, queue: &ModelQueue, request: &Request, sequence: &Sequence) -> (u32, bool) {
        let (Some(pages), Some(terms)) = (&queue.pages, &queue.terms.sequences) else { return (0, false) };
        let most = (sequence.length.saturating_sub(1) / terms.page_tokens.max(1)) as usize;
        let usable = &sequence.prefix[..sequence.prefix.len().min(most)];
        let known = usable.iter().take_while(|hash| pages.find((request.tenant, **hash)).is_some()).count();
        let is_coming =
            usable.get(known).is_some_and(|hash| queue.coming.contains_key(&(request.tenant, *hash)));
        (u32::try_from(known).unwrap_or(0) * terms.page_tokens, is_coming)
    }

    /// A sequence begins, whose tokens up to this place are known: it shares their pages.
    pub(crate) fn share_known(&mut self, model: ModelId, id: RequestId, place: u32) {
        let tenant = self.live[&id].request.tenant;
        let queue = self.models.get_mut(&model).expect("its step is about to begin");
        let (Some(terms), Some(pages)) = (queue.terms.sequences, &mut queue.pages) else { return };
        let sequence = self.sequences.get_mut(&id).expect("a sequence is live");
        if sequence.has_begun() {
            return;
        }
        let known = (place / terms.page_tokens.max(1)) as usize;
        for hash in &sequence.prefix[..known] {
            let page = pages.find((tenant, *hash)).expect("it was just found");
            pages.share(page);
            sequence.pages.push(page);
        }
        sequence.done = place;
        for hash in &sequence.prefix[known..] {
            queue.coming.entry((tenant, *hash)).or_insert(id);
        }
    }

    /// A step of sequences begins: gives one of them the pages that it needs, and says what is computed of
    /// it.
    pub(crate) fn cut_slice(&mut self, model: ModelId, id: RequestId, tokens: u32) -> Slice {
        let queue = self.models.get_mut(&model).expect("its step is about to begin");
        let terms = queue.terms.sequences.expect("only a model that generates has sequences");
        let pages = queue.pages.as_mut().expect("a model that generates has pages");
        let sequence = self.sequences.get_mut(&id).expect("a sequence is live");
        while sequence.pages.len() < terms.pages_of(sequence.length) {
            let page = pages.take().expect("no more are begun than there are pages for");
            sequence.pages.push(page);
        }
        Slice { from: sequence.done, tokens, pages: sequence.pages.clone() }
    }

    /// A sequence gives its pages back.
    pub(crate) fn leave_pages(&mut self, model: ModelId, id: RequestId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.done = 0;
        let left = std::mem::take(&mut sequence.pages);
        let Some(queue) = self.models.get_mut(&model) else { return };
        if left.is_empty() {
            return;
        }
        queue.coming.retain(|_, by| *by != id);
        if let Some(pages) = &mut queue.pages {
            // The beginning is what others may want most.
            left.into_iter().rev().for_each(|page| pages.leave(page));
        }
    }

    /// A waiting sequence makes room for one that began before it.
    pub(crate) fn preempt_sequence(&mut self, now: Time, id: RequestId) {
        let live = self.live[&id];
        let model = live.request.model;
        let alone = self.models[&model].waiting[&live.plan.key].alone;
        self.dequeue(id, None);
        self.leave_pages(model, id);
        self.sequences_preempted += 1;
        self.wait_for_token(now, id, alone);
        // It has not had the token yet that it waited for.
        self.expire_at(id, live.plan.expires);
    }

    /// Every sequence of a step has its tokens, but those that left; these are over.
    pub(crate) fn iterated(
        &mut self,
        now: Time,
        step: &Running,
        over: &[RequestId],
        actions: &mut Vec<Action>,
    ) {
        for (id, tokens) in step.requests.iter().zip(&step.parts) {
            let Some(live) = self.live.get(id).copied() else { continue };
            if now > live.plan.deadline {
                self.note_late(now, *id);
            }
            let Some(queue) = self.models.get_mut(&step.model) else {
                self.end(*id, Ending::Failed(unloaded()), actions);
                continue;
            };
            let sequence = self.sequences.get_mut(id).expect("a sequence is live");
            let before = sequence.done;
            sequence.done += tokens;
            if sequence.done == sequence.length {
                sequence.length += 1;
                sequence.generated += 1;
                if sequence.generated == 1 {
                    sequence.first_at = now;
                }
            }
            let page_tokens = queue.terms.sequences.map_or(1, |terms| terms.page_tokens.max(1));
            for at in (before / page_tokens) as usize..(sequence.done / page_tokens) as usize {
                let (Some(hash), Some(pages)) = (sequence.prefix.get(at), &mut queue.pages) else { break };
                let content = (live.request.tenant, *hash);
                queue.coming.remove(&content);
                pages.publish(sequence.pages[at], content);
            }
            if over.contains(id) {
                self.end(*id, Ending::Completed, actions);
                continue;
            }
            self.live.get_mut(id).expect("it goes on").step = None;
            self.wait_for_token(now, *id, false);
        }
    }

    /// A live sequence that waits nowhere waits for its next token.
    pub(crate) fn wait_for_token(&mut self, now: Time, id: RequestId, alone: bool) {
        let live = self.live[&id];
        // Whoever was let in without a promise is given none later: it would be at the expense of those who
        // have one.
        let plan = match live.plan.key.easy {
            true => self.best_effort_plan(now, &live.request),
            false => self.sequence_plan(now, &live.request),
        };
        self.live.get_mut(&id).expect("just seen").plan = Plan { expires: live.plan.expires, ..plan };
        self.expire_at(id, plan.expires);
        if !live.paused {
            self.enqueue(id, alone);
        }
    }

    fn expire_at(&mut self, id: RequestId, expires: Time) {
        let Some(live) = self.live.get_mut(&id) else { return };
        self.expiries.remove(&(live.plan.expires, id));
        self.expiries.insert((expires, id));
        live.plan.expires = expires;
    }

    /// For the invariants: pages are with the sequences that have them, and nobody waits twice.
    pub(crate) fn pages_are_sound(&self) -> bool {
        let live = self.sequences.iter().all(|(id, sequence)| {
            let fits = |terms: &SequenceTerms| terms.pages_of(sequence.done) <= sequence.pages.len();
            self.live.get(id).is_some_and(|live| {
                let terms = self.models.get(&live.request.model).and_then(|queue| queue.terms.sequences);
                terms.as_ref().is_none_or(fits)
            })
        });
        live && self.models.iter().all(|(model, queue)| {
            let own = |id: &RequestId| self.live.get(id).is_some_and(|live| live.request.model == *model);
            let mut users = BTreeMap::<PageId, u32>::new();
            let held = self.sequences.iter().filter(|(id, _)| own(id)).flat_map(|(_, of)| &of.pages);
            held.for_each(|page| *users.entry(*page).or_default() += 1);
            queue
                .pages
                .as_ref()
                .is_none_or(|pages| pages.is_sound(|page| users.get(&page).copied().unwrap_or(0)))
        })
    }

    /// How important a waiting request is when others are to make room: one that has begun to answer is never
    /// given up for one that has not.
    pub(crate) fn rank_of(&self, request: &Request) -> Priority {
        let has_answered = self.sequences.get(&request.id).is_some_and(|sequence| sequence.generated > 0);
        if has_answered { Priority(0) } else { request.priority }
    }
}
