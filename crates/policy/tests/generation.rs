//! Sequences through the scheduler, with a device that keeps books of what is in every page.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use quadrant_policy::{
    Action, Cost, Discipline, Event, LaneShape, Limits, ModelTerms, Policy, SequenceTerms, Step, StepOutcome,
    StepReport,
};
use quadrant_types::{
    CoreSet, Ending, Error, ErrorCode, LaneId, ModelId, Objective, PageHash, PageId, Priority, Request,
    RequestId, SchedulingClass, TenantId, Time, Work,
};

const MODEL: ModelId = ModelId(0);
const PAGE_TOKENS: u32 = 4;
const MS: Duration = Duration::from_millis(1);

/// What a client sends.
#[derive(Clone, Debug)]
struct Sent {
    at: u64,
    tenant: u32,
    /// Prompts of one family begin alike.
    family: u64,
    prompt: u32,
    new_max: u32,
    /// Milliseconds to the first token and for each other.
    objective: Option<(u64, u64)>,
    priority: u32,
    /// It leaves after so many tokens.
    leaves_after: Option<u32>,
    /// Its reader stalls after so many tokens, for as many milliseconds.
    stalls: Option<(u32, u64)>,
}

#[derive(Clone, Debug)]
struct Client {
    sent: Sent,
    tokens: Vec<u64>,
    ended: Option<Ending>,
    ended_at: Time,
}

impl Sent {
    fn prompt_tokens(&self) -> Vec<u64> {
        // The second half of a prompt is its own.
        let own = self.prompt / 2;
        (0..self.prompt)
            .map(
                |at| {
                    if at < own { self.family * 1_000 + u64::from(at) } else { self.at * 77 + u64::from(at) }
                },
            )
            .collect()
    }

    fn hashes(&self) -> Arc<[PageHash]> {
        let tokens = self.prompt_tokens();
        let whole = tokens.chunks_exact(PAGE_TOKENS as usize);
        let mut hash = 1_u128;
        whole
            .map(|page| {
                for token in page {
                    hash = hash.wrapping_mul(0x1_0000_0000_01b3).wrapping_add(u128::from(*token) + 7);
                }
                PageHash(hash)
            })
            .collect()
    }
}

/// The device: one model, whose pages hold what was written to them.
struct World {
    policy: Policy,
    now: Time,
    clients: Vec<Client>,
    /// What is in each place: the token, and all that came before it.
    cells: BTreeMap<(PageId, u32), Vec<u64>>,
    running: Vec<(Time, Step)>,
    seed: u64,
    pages: u32,
    computed: u64,
    failing: bool,
}

impl World {
    fn new(pages: u32, clients: Vec<Sent>, discipline: Discipline) -> Self {
        let cores = [vec![0], vec![1], vec![0, 1]];
        let lanes = [SchedulingClass::Urgent, SchedulingClass::Idle].into_iter().flat_map(|class| {
            cores.clone().into_iter().map(move |cores| (CoreSet::from_cores(cores), class))
        });
        let shape = |(id, (cores, class))| LaneShape { id: LaneId(id), cores, class };
        let mut policy = Policy::new((0..).zip(lanes).map(shape).collect(), Limits::default(), discipline);
        let cost = |rows, width, ms: u32| Cost { rows, width, beside: false, time: ms * MS };
        let terms = ModelTerms {
            rows_max: 64,
            widths: vec![1, 2],
            costs: vec![cost(1, 1, 4), cost(64, 1, 60), cost(1, 2, 3), cost(64, 2, 32)],
            sequences: Some(SequenceTerms {
                page_tokens: PAGE_TOKENS,
                pages,
                tokens_max: 1_000,
                thousand_keys: MS,
            }),
            ..ModelTerms::default()
        };
        policy.on_event(Time::ZERO, Event::ModelUp(MODEL, terms), &mut Vec::new());
        let client =
            |sent: Sent| Client { tokens: sent.prompt_tokens(), sent, ended: None, ended_at: Time::ZERO };
        let clients = clients.into_iter().map(client).collect();
        let (cells, running) = (BTreeMap::new(), Vec::new());
        Self { policy, now: Time::ZERO, clients, cells, running, seed: 1, pages, computed: 0, failing: false }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.seed >> 33) % below
    }

    fn tell(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.policy.on_event(self.now, event, &mut actions);
        assert_eq!(self.policy.violated_invariant(), None);
        let (used, all) = self.policy.pages(MODEL);
        assert!(used <= all && all == self.pages as usize);
        for action in actions {
            match action {
                Action::Run(step) => {
                    assert!(self.running.is_empty(), "one step of a model at a time");
                    assert!(!step.requests.is_empty() && step.requests.len() == step.slices.len());
                    let slow = 80 + self.random(60);
                    let took = step.predicted * u32::try_from(slow).unwrap() / 100;
                    self.running.push((self.now + took, step));
                }
                Action::End(id, ending) => {
                    let client = &mut self.clients[usize::try_from(id.0).unwrap()];
                    assert!(client.ended.is_none(), "{id} ended twice");
                    (client.ended, client.ended_at) = (Some(ending), self.now);
                }
                Action::LaneStalled(..)
                | Action::LaneRecovered(_)
                | Action::Load(_)
                | Action::LoadRefused(..)
                | Action::Unload(_)
                | Action::Drained => panic!("{action:?}"),
            }
        }
    }

    /// Plays everything to its end.
    fn run(&mut self) {
        let mut arrivals: Vec<usize> = (0..self.clients.len()).collect();
        arrivals.sort_by_key(|index| std::cmp::Reverse(self.clients[*index].sent.at));
        let mut readers: Vec<(Time, RequestId)> = Vec::new();
        for _ in 0..200_000 {
            let arrival = arrivals.last().map(|index| Time::ZERO + self.clients[*index].sent.at as u32 * MS);
            let end = self.running.iter().map(|(time, _)| *time).min();
            let reader = readers.iter().map(|(time, _)| *time).min();
            let next = [arrival, end, reader, self.policy.next_deadline()].into_iter().flatten().min();
            let Some(next) = next else { return };
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let index = arrivals.pop().unwrap();
                self.arrive(index);
            } else if end == Some(next) {
                let index = self.running.iter().position(|(time, _)| *time == next).unwrap();
                let (_, step) = self.running.remove(index);
                readers.extend(self.end(&step));
            } else if reader == Some(next) {
                let index = readers.iter().position(|(time, _)| *time == next).unwrap();
                let (_, id) = readers.remove(index);
                self.tell(Event::ReaderReady(id));
            } else {
                self.tell(Event::Tick);
            }
        }
        panic!("it does not come to an end");
    }

    fn arrive(&mut self, index: usize) {
        let sent = self.clients[index].sent.clone();
        let objective = match sent.objective {
            None => Objective::BestEffort,
            Some((first, each)) => Objective::Tokens {
                first_by: self.now + Duration::from_millis(first),
                each: Duration::from_millis(each),
                until: Time::MAX,
            },
        };
        let request = Request {
            id: RequestId(index as u64),
            model: MODEL,
            tenant: TenantId(sent.tenant),
            priority: Priority(sent.priority),
            arrived: self.now,
            objective,
            work: Work::Generate { prompt: sent.prompt, new_max: sent.new_max, bytes_in: 10 },
        };
        self.tell(Event::Sequence(request, sent.hashes()));
    }

    /// Writes what a step computes, and checks that all that it reads is there.
    fn end(&mut self, step: &Step) -> Option<(Time, RequestId)> {
        let mut over = quadrant_policy::Requests::new();
        let (mut leaving, mut stalled) = (None, None);
        let fails = self.failing && self.random(4) == 0;
        for (id, slice) in step.requests.iter().zip(&step.slices) {
            let client = &mut self.clients[usize::try_from(id.0).unwrap()];
            let place = |at: u32| (slice.pages[(at / PAGE_TOKENS) as usize], at % PAGE_TOKENS);
            let so_far = |at: u32| client.tokens[..=at as usize].to_vec();
            for at in 0..slice.from {
                assert_eq!(self.cells.get(&place(at)), Some(&so_far(at)), "{id} reads what is not its own");
            }
            for at in slice.from..slice.from + slice.tokens {
                self.cells.insert(place(at), so_far(at));
                self.computed += 1;
            }
            if client.ended.is_some() || fails {
                continue;
            }
            if (slice.from + slice.tokens) as usize == client.tokens.len() {
                let made = client.tokens.len() - client.sent.prompt as usize + 1;
                client.tokens.push(id.0 * 10_000 + made as u64);
                if made == client.sent.new_max as usize {
                    over.push(*id);
                }
                if client.sent.leaves_after == u32::try_from(made).ok() {
                    leaving = Some(*id);
                }
                if let Some((after, ms)) = client.sent.stalls.filter(|(after, _)| *after as usize == made) {
                    let _ = after;
                    stalled = Some((self.now + Duration::from_millis(ms), *id));
                }
            }
        }
        let outcome = match fails {
            true => StepOutcome::Failed(Error::new(ErrorCode::Internal, "by chance")),
            false => StepOutcome::Iterated(over),
        };
        let (began, ended) = (self.now, self.now);
        if let Some((_, id)) = stalled {
            self.tell(Event::ReaderStalled(id));
        }
        self.tell(Event::Ended(StepReport {
            step: step.id,
            began,
            ended,
            core_time: step.predicted,
            outcome,
        }));
        if let Some(id) = leaving {
            self.tell(Event::Left(id));
        }
        stalled
    }
}

fn client() -> impl Strategy<Value = Sent> {
    let objective = prop::option::of((50_u64..3_000, 5_u64..200));
    let rare = |of: std::ops::Range<u32>| prop::option::weighted(0.1, of);
    let what = (0_u64..400, 0_u32..2, 0_u64..3, 1_u32..40, 1_u32..30);
    (what, objective, 1_u32..4, rare(1..20), rare(1..20), 1_u64..100).prop_map(
        |((at, tenant, family, prompt, new_max), objective, priority, leaves_after, stalls, ms)| Sent {
            at,
            tenant,
            family,
            prompt,
            new_max,
            objective,
            priority,
            leaves_after,
            stalls: stalls.map(|after| (after, ms)),
        },
    )
}

fn played(pages: u32, clients: &[Sent], discipline: Discipline) -> World {
    let mut world = World::new(pages, clients.to_vec(), discipline);
    world.run();
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever comes and however few pages there are: everybody ends once, who completes has all tokens,
    /// nobody reads what is not his own, and nothing is left behind.
    #[test]
    fn every_sequence_is_its_own(
        clients in prop::collection::vec(client(), 1..30),
        pages in 18_u32..120,
        discipline in prop::sample::select(Discipline::ALL.to_vec()),
        failing in prop::bool::weighted(0.2),
    ) {
        let mut world = World::new(pages, clients, discipline);
        world.failing = failing;
        world.run();
        for client in &world.clients {
            match client.ended.as_ref().unwrap() {
                Ending::Completed => {
                    let tokens = client.sent.prompt + client.sent.new_max;
                    prop_assert_eq!(client.tokens.len(), tokens as usize);
                }
                Ending::Failed(error) => {
                    use ErrorCode::{Cancelled, DeadlineExceeded, ResourceExhausted};
                    let allowed = matches!(error.code, Cancelled | ResourceExhausted | DeadlineExceeded);
                    prop_assert!(allowed || failing, "{:?}", error);
                }
            }
        }
        prop_assert_eq!(world.policy.pages(MODEL).0, 0);
        prop_assert_eq!(world.policy.sequences(MODEL), (0, 0));
    }
}

fn sent(at: u64, prompt: u32, new_max: u32) -> Sent {
    Sent {
        at,
        tenant: 0,
        family: 1,
        prompt,
        new_max,
        objective: None,
        priority: 1,
        leaves_after: None,
        stalls: None,
    }
}

fn completed(world: &World) -> usize {
    world.clients.iter().filter(|client| client.ended == Some(Ending::Completed)).count()
}

#[test]
fn a_quarter_of_the_pages_is_enough() {
    let clients: Vec<Sent> = (0..16).map(|at| Sent { family: at, ..sent(at, 30, 30) }).collect();
    let roomy = played(16 * 16, &clients, Discipline::Quadrant);
    let tight = played(4 * 16, &clients, Discipline::Quadrant);
    assert_eq!((completed(&roomy), completed(&tight)), (16, 16));
    let tokens = |world: &World| world.clients.iter().map(|client| client.tokens.clone()).collect::<Vec<_>>();
    assert_eq!(tokens(&roomy), tokens(&tight));
    assert_eq!(roomy.policy.sequences_preempted(), 0);
    assert!(tight.policy.sequences_preempted() > 0);
    assert!(tight.computed < 2 * roomy.computed, "{} of {}", tight.computed, roomy.computed);
}

#[test]
fn who_begins_alike_computes_it_once() {
    // All at once: those that come second wait for what the first computes.
    let same: Vec<Sent> = (0..8).map(|_| sent(0, 80, 2)).collect();
    let world = played(400, &same, Discipline::Quadrant);
    assert_eq!(completed(&world), 8);
    // Of 80 tokens the last page is always computed, and of two new ones the first is.
    assert_eq!(world.computed, 80 + 7 * 4 + 8);
    let strangers: Vec<Sent> = (0..8).map(|tenant| Sent { tenant, ..sent(0, 80, 2) }).collect();
    assert_eq!(played(400, &strangers, Discipline::Quadrant).computed, 8 * 81);
}

#[test]
fn what_cannot_keep_pace_is_refused() {
    // Each sequence alone takes 3 ms of both cores for a token; in company hardly more.
    let with = |each| {
        let clients: Vec<Sent> = (0..40)
            .map(|at| Sent { objective: Some((2_000, each)), family: at, ..sent(at, 20, 20) })
            .collect();
        played(2_000, &clients, Discipline::Quadrant)
    };
    assert_eq!(completed(&with(100)), 40);
    let fast = completed(&with(8));
    assert!((4..20).contains(&fast), "{fast}");
}

#[test]
fn what_is_longer_than_all_pages_is_refused_at_once() {
    let world = played(10, &[sent(0, 30, 11), sent(0, 30, 10)], Discipline::Quadrant);
    let Some(Ending::Failed(error)) = &world.clients[0].ended else { panic!("it was let in") };
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert_eq!(completed(&world), 1);
}

#[test]
fn the_pages_of_a_reader_that_stalls_go_to_those_who_want_them() {
    // The second has half of the pages when its reader stalls; the first wants all but one in the end, and
    // the third more than half.
    let stalls = Sent { stalls: Some((1, 30_000)), family: 2, ..sent(0, 20, 4) };
    let clients = [sent(0, 8, 28), stalls, Sent { family: 3, ..sent(10, 21, 2) }];
    let world = played(10, &clients, Discipline::Quadrant);
    assert_eq!(completed(&world), 3);
    let [goes_on, stalled, begins] = [0, 1, 2].map(|index| world.clients[index].ended_at);
    assert!(goes_on.max(begins) < Time::ZERO + 2_000 * MS, "{goes_on:?} and {begins:?}");
    assert!(stalled > Time::ZERO + 30_000 * MS);
    // With room for everybody nobody computes anything again.
    let roomy = played(40, &clients, Discipline::Quadrant);
    assert_eq!((completed(&roomy), roomy.policy.sequences_preempted()), (3, 0));
    assert_eq!(roomy.computed, 35 + 23 + 22);
}
