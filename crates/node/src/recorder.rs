//! The flight recorder: what the last steps and requests did, and the slowest requests, kept for the
//! question "why was it slow?".
//!
//! Recording is a push into a ring; everything that costs is done when somebody asks. What a request waited
//! for is read off the steps that ran while it waited.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::message::Pending;
use quadrant_types::{
    CoreSet, Ending, LaneId, Objective, Reason, Request, RequestId, SchedulingClass, StepId, TenantId, Time,
    Timing,
};

/// Steps that are remembered.
const STEPS_MAX: usize = 8_192;
/// Requests that are remembered.
const REQUESTS_MAX: usize = 8_192;
/// The slowest requests that are kept beyond that, of the last minutes.
const SLOWEST_MAX: usize = 32;
/// How long a slow request keeps its place.
const SLOWEST_FOR: Duration = Duration::from_mins(10);

/// A step that ran.
#[derive(Clone, Debug)]
pub struct StepRecord {
    /// Which.
    pub id: StepId,
    /// Its model's name.
    pub model: Arc<str>,
    /// Where it ran.
    pub lane: LaneId,
    /// On which cores.
    pub cores: CoreSet,
    /// How the operating system treated it.
    pub class: SchedulingClass,
    /// Its rows.
    pub rows: u32,
    /// Its requests.
    pub requests: usize,
    /// How long it was predicted to take, undisturbed.
    pub predicted: Duration,
    /// When its lane took it up.
    pub began: Time,
    /// When its lane was free again.
    pub ended: Time,
    /// Of the time between, how long more urgent steps held its cores.
    pub preempted: Duration,
    /// The model that ran on other cores when it began.
    pub beside: Option<Arc<str>>,
}

impl StepRecord {
    /// How long it really took, undisturbed by more urgent steps: what was predicted.
    pub fn real(&self) -> Duration {
        self.ended.since(self.began).saturating_sub(self.preempted)
    }

    fn shares_cores_with(&self, other: &Self) -> bool {
        self.cores.overlaps(other.cores)
    }

    /// Whether the other could have preempted it.
    fn gives_way_to(&self, other: &Self) -> bool {
        let classes = (self.class, other.class) == (SchedulingClass::Idle, SchedulingClass::Urgent);
        classes && self.shares_cores_with(other)
    }
}

/// A request that ended.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    /// Which.
    pub id: RequestId,
    /// Its model's name.
    pub model: Arc<str>,
    /// On whose account.
    pub tenant: TenantId,
    /// When each of its stages began; those it did not reach are zero.
    pub timing: Timing,
    /// The step it was in.
    pub step: Option<StepId>,
    /// When it ended.
    pub ended: Time,
    /// When its answer was wanted.
    pub wanted_by: Option<Time>,
    /// `completed`, or the name of an error code.
    pub outcome: &'static str,
    /// The scheduler's reason, if it had one.
    pub reason: Option<Reason>,
    /// What became of it if it generates.
    pub generation: Option<GenerationRecord>,
}

impl RequestRecord {
    /// What is remembered of a request that ends.
    pub(crate) fn new(pending: &Pending, ending: &Ending, now: Time) -> Self {
        let Request { id, tenant, objective, .. } = pending.request;
        let (outcome, reason) = match ending {
            Ending::Completed => ("completed", None),
            Ending::Failed(error) => (error.code.name(), error.reason),
        };
        let wanted_by = match objective {
            Objective::BestEffort => None,
            Objective::EndBy(by) | Objective::Target { by, .. } => Some(by),
            // Of tokens there are many times.
            Objective::Tokens { first_by, each, .. } => {
                let more = pending.generating.as_ref().map_or(0, |own| own.writer.count.saturating_sub(1));
                Some(first_by + each.saturating_mul(more))
            }
        };
        let model = Arc::clone(&pending.model.spec.name);
        let (timing, step) = (pending.timing, pending.step);
        let generation = pending.generating.as_ref().map(|generating| generating.record);
        Self { id, model, tenant, timing, step, ended: now, wanted_by, outcome, reason, generation }
    }
}

/// What became of a request that generates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationRecord {
    /// Tokens of its prompt,
    pub prompt: u32,
    /// and how many of them were known when it began, of prompts that begin alike.
    pub known: u32,
    /// Tokens that it was given.
    pub tokens: u32,
    /// Steps that it took part in,
    pub steps: u32,
    /// and their time.
    pub in_steps: Duration,
    /// How often it gave its pages back to others, and was computed again.
    pub preempted: u32,
    /// When its first token was there.
    pub first_at: Option<Time>,
    /// The longest time between two of its tokens.
    pub gap: Option<(Time, Time)>,
    /// Tokens that are computed, and that will be when its present step has ended.
    done: u32,
    pending: u32,
}

impl GenerationRecord {
    pub(crate) fn new(prompt: u32) -> Self {
        Self { prompt, ..Self::default() }
    }

    /// It takes part in a step, with so many tokens from this one on.
    pub(crate) fn begins(&mut self, from: u32, tokens: u32) {
        if self.done == 0 {
            self.known = from;
        }
        self.preempted += u32::from(from < self.done);
        self.pending = from + tokens;
    }

    /// A step of it went well, and took so long.
    pub(crate) fn ran(&mut self, took: Duration) {
        self.done = self.pending;
        self.steps += 1;
        self.in_steps += took;
    }

    /// It is given a token; the one before came at `last_at`, if there was one.
    pub(crate) fn token(&mut self, last_at: Time, now: Time) {
        self.tokens += 1;
        if self.first_at.is_none() {
            self.first_at = Some(now);
            return;
        }
        if self.gap.is_none_or(|(from, until)| now.since(last_at) > until.since(from)) {
            self.gap = Some((last_at, now));
        }
    }
}

/// Why a request took as long as it did.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The request.
    pub request: RequestRecord,
    /// Its step, if it had but one and that is still remembered.
    pub step: Option<StepRecord>,
    /// Steps that ran while it waited: by model, how many, and their time within the wait.
    pub waited_for: Vec<Overlap>,
    /// Steps that ran beside its own, likewise; if it generates, those of other models since its first step.
    pub beside: Vec<Overlap>,
    /// Steps that ran between the two of its tokens that were the longest apart, likewise.
    pub gap: Vec<Overlap>,
    /// Urgent steps on the cores of its own that preempted it, likewise.
    pub preempted_by: Vec<Overlap>,
}

/// The steps of one model within some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The model's name.
    pub model: Arc<str>,
    /// Steps.
    pub steps: u32,
    /// Their time within it, summed over lanes.
    pub time: Duration,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    steps: VecDeque<StepRecord>,
    requests: VecDeque<RequestRecord>,
    slowest: Vec<Explanation>,
}

impl Recorder {
    /// Remembers a step, and says how long it was preempted. What preempted it ended before it did, so it is
    /// known by now.
    pub(crate) fn step(&mut self, mut step: StepRecord) -> Duration {
        if step.class == SchedulingClass::Idle {
            let lately = self.steps.iter().rev().take_while(|other| other.ended > step.began);
            let preempting = lately.filter(|other| step.gives_way_to(other));
            step.preempted =
                preempting.map(|other| other.ended.min(step.ended).since(other.began.max(step.began))).sum();
        }
        let preempted = step.preempted;
        push(&mut self.steps, step, STEPS_MAX);
        preempted
    }

    pub(crate) fn request(&mut self, request: RequestRecord) {
        let took = latency(&request);
        let old = request.ended - SLOWEST_FOR;
        self.slowest.retain(|slow| slow.request.ended >= old);
        let full = self.slowest.len() >= SLOWEST_MAX;
        if !full || self.slowest.last().is_some_and(|last| latency(&last.request) < took) {
            let place = self.slowest.partition_point(|slow| latency(&slow.request) >= took);
            let explanation = self.explained(&request);
            self.slowest.insert(place, explanation);
            self.slowest.truncate(SLOWEST_MAX);
        }
        push(&mut self.requests, request, REQUESTS_MAX);
    }

    /// The steps that are remembered, in the order in which they ended; after this one, or all.
    pub(crate) fn steps(&self, after: Option<StepId>) -> Vec<StepRecord> {
        let known = after.and_then(|after| self.steps.iter().rposition(|step| step.id == after));
        self.steps.iter().skip(known.map_or(0, |index| index + 1)).cloned().collect()
    }

    /// Why this request took as long as it did, if it is still remembered.
    pub(crate) fn explain(&self, id: RequestId) -> Option<Explanation> {
        let recent = self.requests.iter().rev().find(|request| request.id == id);
        let slow = || self.slowest.iter().find(|slow| slow.request.id == id).cloned();
        recent.map(|request| self.explained(request)).or_else(slow)
    }

    /// The slowest requests of the last minutes, the slowest first.
    pub(crate) fn slowest(&self, now: Time) -> Vec<Explanation> {
        let lately = |slow: &&Explanation| now.since(slow.request.ended) <= SLOWEST_FOR;
        self.slowest.iter().filter(lately).cloned().collect()
    }

    /// The slowest of a tenant's requests that are remembered, the slowest first.
    pub(crate) fn slowest_of(&self, tenant: TenantId) -> Vec<Explanation> {
        let mut own: Vec<&RequestRecord> =
            self.requests.iter().filter(|request| request.tenant == tenant).collect();
        own.sort_by_key(|request| std::cmp::Reverse(latency(request)));
        own.into_iter().take(SLOWEST_MAX).map(|request| self.explained(request)).collect()
    }

    /// Of a request that generates: it waits for its first step, and then between its tokens.
    fn explained_generation(&self, request: &RequestRecord, generation: &GenerationRecord) -> Explanation {
        let timing = &request.timing;
        let began = if generation.steps > 0 { timing.began } else { request.ended };
        let recent = || self.steps.iter().rev().take_while(|step| step.ended > timing.submitted);
        let others = recent().filter(|step| step.model != request.model);
        let gap = generation.gap.map(|(from, until)| overlaps(recent(), from, until));
        Explanation {
            request: request.clone(),
            step: None,
            waited_for: overlaps(recent(), timing.submitted, began),
            beside: overlaps(others, began, request.ended),
            gap: gap.unwrap_or_default(),
            preempted_by: Vec::new(),
        }
    }

    fn explained(&self, request: &RequestRecord) -> Explanation {
        if let Some(generation) = &request.generation {
            return self.explained_generation(request, generation);
        }
        let step = self.steps.iter().rev().find(|step| Some(step.id) == request.step).cloned();
        let timing = &request.timing;
        let waited_until = step.as_ref().map_or(request.ended, |step| step.began);
        // Steps are recorded as they end, so those before the first that ended earlier are of no interest.
        let since = |other: &&StepRecord| other.ended > timing.submitted;
        let others = || {
            let recent = self.steps.iter().rev().take_while(since);
            recent.filter(|other| Some(other.id) != request.step)
        };
        let waited_for = overlaps(others(), timing.submitted, waited_until);
        let (beside, preempted_by) = match &step {
            None => (Vec::new(), Vec::new()),
            Some(own) => {
                let elsewhere = others().filter(|other| !own.shares_cores_with(other));
                let preempting = others().filter(|other| own.gives_way_to(other));
                (overlaps(elsewhere, own.began, own.ended), overlaps(preempting, own.began, own.ended))
            }
        };
        Explanation { request: request.clone(), step, waited_for, beside, gap: Vec::new(), preempted_by }
    }
}

fn latency(request: &RequestRecord) -> Duration {
    request.ended.since(request.timing.arrived)
}

fn push<T>(ring: &mut VecDeque<T>, item: T, most: usize) {
    if ring.len() >= most {
        ring.pop_front();
    }
    ring.push_back(item);
}

/// The steps within a time by model, the longest first.
fn overlaps<'a>(steps: impl Iterator<Item = &'a StepRecord>, from: Time, until: Time) -> Vec<Overlap> {
    let mut by_model: BTreeMap<&Arc<str>, (u32, Duration)> = BTreeMap::new();
    for step in steps {
        let within = step.ended.min(until).since(step.began.max(from));
        if !within.is_zero() {
            let sum = by_model.entry(&step.model).or_default();
            *sum = (sum.0 + 1, sum.1 + within);
        }
    }
    let overlap = |(model, (steps, time)): (&Arc<str>, (u32, Duration))| Overlap {
        model: Arc::clone(model),
        steps,
        time,
    };
    let mut all: Vec<Overlap> = by_model.into_iter().map(overlap).collect();
    all.sort_by_key(|overlap| std::cmp::Reverse(overlap.time));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    fn step(
        id: u64,
        model: &str,
        core: usize,
        class: SchedulingClass,
        (began, ended): (u64, u64),
    ) -> StepRecord {
        StepRecord {
            id: StepId(id),
            model: model.into(),
            lane: LaneId(0),
            cores: CoreSet::from_cores([core]),
            class,
            rows: 1,
            requests: 1,
            predicted: Duration::from_millis(1),
            began: at(began),
            ended: at(ended),
            preempted: Duration::ZERO,
            beside: None,
        }
    }

    fn request(id: u64, arrived: u64, ended: u64, step: Option<u64>) -> RequestRecord {
        RequestRecord {
            id: RequestId(id),
            model: "own".into(),
            tenant: TenantId(0),
            timing: Timing { arrived: at(arrived), submitted: at(arrived), ..Timing::default() },
            step: step.map(StepId),
            ended: at(ended),
            wanted_by: None,
            outcome: "completed",
            reason: None,
            generation: None,
        }
    }

    #[test]
    fn a_generation_waits_before_its_first_step_and_between_its_tokens() {
        let urgent = SchedulingClass::Urgent;
        let mut recorder = Recorder::default();
        let mut generation = GenerationRecord::new(40);
        recorder.step(step(0, "own", 0, urgent, (0, 20)));
        generation.begins(32, 8);
        recorder.step(step(1, "own", 0, urgent, (20, 30)));
        generation.ran(Duration::from_millis(10));
        generation.token(at(10), at(30));
        recorder.step(step(2, "other", 0, urgent, (30, 50)));
        generation.begins(40, 1);
        recorder.step(step(3, "own", 0, urgent, (50, 55)));
        generation.ran(Duration::from_millis(5));
        generation.token(at(30), at(55));
        let mut ended = request(7, 10, 56, Some(3));
        ended.timing.began = at(20);
        ended.generation = Some(generation);
        recorder.request(ended);
        let why = recorder.explain(RequestId(7)).unwrap();
        let one =
            |model: &str, steps, ms| Overlap { model: model.into(), steps, time: Duration::from_millis(ms) };
        assert_eq!(why.waited_for, [one("own", 1, 10)]);
        assert_eq!(why.beside, [one("other", 1, 20)]);
        assert_eq!(why.gap, [one("other", 1, 20), one("own", 1, 5)]);
        let generation = why.request.generation.unwrap();
        assert_eq!((generation.known, generation.tokens, generation.steps), (32, 2, 2));
        assert_eq!((generation.first_at, generation.gap), (Some(at(30)), Some((at(30), at(55)))));
        assert_eq!((generation.in_steps, generation.preempted), (Duration::from_millis(15), 0));
        let mut again = generation;
        // Its step fails and is repeated, and then it has to begin anew.
        again.begins(41, 1);
        again.begins(41, 1);
        assert_eq!(again.preempted, 0);
        again.begins(0, 42);
        assert_eq!((again.preempted, again.known), (1, 32));
    }

    #[test]
    fn what_it_waited_for_and_what_disturbed_it_are_told_apart() {
        let (urgent, idle) = (SchedulingClass::Urgent, SchedulingClass::Idle);
        let mut recorder = Recorder::default();
        recorder.step(step(0, "before", 0, urgent, (0, 20)));
        recorder.step(step(1, "neighbour", 1, urgent, (25, 50)));
        recorder.step(step(2, "preempts", 0, urgent, (30, 34)));
        recorder.step(step(3, "own", 0, idle, (20, 40)));
        recorder.request(request(7, 10, 41, Some(3)));
        let why = recorder.explain(RequestId(7)).unwrap();
        let one = |model: &str, ms| {
            vec![Overlap { model: model.into(), steps: 1, time: Duration::from_millis(ms) }]
        };
        assert_eq!(why.waited_for, one("before", 10));
        assert_eq!(why.beside, one("neighbour", 15));
        assert_eq!(why.preempted_by, one("preempts", 4));
        assert_eq!(why.step.map(|step| step.real()), Some(Duration::from_millis(16)));
        assert!(recorder.explain(RequestId(8)).is_none());
        let numbers = |after| recorder.steps(after).iter().map(|step| step.id.0).collect::<Vec<_>>();
        assert_eq!((numbers(None), numbers(Some(StepId(1)))), (vec![0, 1, 2, 3], vec![2, 3]));
        assert_eq!(numbers(Some(StepId(99))), [0, 1, 2, 3], "one that is long gone leaves nothing out");
    }

    #[test]
    fn the_slowest_are_kept_and_everything_is_bounded() {
        let mut recorder = Recorder::default();
        recorder.request(request(0, 0, 900, None));
        for id in 1..20_000 {
            recorder.request(request(id, 1_000, 1_000 + id % 100, None));
            recorder.step(step(id, "m", 0, SchedulingClass::Urgent, (0, 1)));
        }
        assert_eq!((recorder.requests.len(), recorder.steps.len()), (REQUESTS_MAX, STEPS_MAX));
        let slowest = recorder.slowest(at(1_100));
        assert_eq!((slowest.len(), slowest[0].request.id), (SLOWEST_MAX, RequestId(0)));
        assert!(recorder.explain(RequestId(0)).is_some(), "long gone from the ring, but slow");
        // After ten minutes it has to make room.
        recorder.request(request(20_000, 0, 900_000, None));
        assert_eq!(recorder.slowest(at(900_000))[0].request.id, RequestId(20_000));
        assert!(recorder.explain(RequestId(0)).is_none());
    }
}
