//! What may happen to a scheduler: anything, in any order.

use std::time::Duration;

use proptest::prelude::*;
use quadrant_policy::{Discipline, LaneShape, RequestRate, TenantTerms};
use quadrant_types::{CoreSet, LaneId, Priority, SchedulingClass};

/// One thing to happen; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Arrive {
        model: u32,
        rows: u32,
        shape: u32,
        tenant: u32,
        priority: u32,
        within_us: Option<u64>,
        hard: bool,
    },
    Leave(usize),
    StepEnds {
        index: usize,
        how: How,
    },
    HostDown {
        host: u32,
        back_us: u64,
    },
    HostUp(u32),
    Up {
        rows_max: u32,
        widths: Vec<usize>,
        queue_max: usize,
        delay_us: u64,
        demotes: bool,
    },
    Down(u32),
    Tenant(u32, Option<TenantTerms>),
    Known {
        bytes: u64,
        load_ms: u64,
        pinned: bool,
        idle_us: Option<u64>,
    },
    LoadWanted(u32),
    UnloadWanted(u32),
    LoadEnds {
        index: usize,
        fails: bool,
        bytes: u64,
    },
    UnloadEnds(usize),
    Resident(u64),
    TickAtDeadline,
    Drain,
}

/// How a step ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    Completes,
    Fails,
    /// Under the present process of its host, or under one before.
    Lost {
        began: bool,
        late: bool,
    },
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![
        3 => Just(How::Completes),
        2 => Just(How::Fails),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(began, late)| How::Lost { began, late }),
    ]
}

fn happening() -> impl Strategy<Value = Happening> {
    let who = (0..4_u32, 0..3_u32, 0..3_u32);
    let what = (0..6_u32, 0..3_u32, proptest::option::of(0..3_000_u64), any::<bool>());
    let arrive = (who, what).prop_map(|((model, tenant, priority), (rows, shape, within_us, hard))| {
        Happening::Arrive { model, rows, shape, tenant, priority, within_us, hard }
    });
    let widths = proptest::sample::select(vec![vec![1], vec![2], vec![1, 2], vec![1, 3]]);
    let delay = prop_oneof![Just(0), 0..2_000_u64];
    let up = (1..6_u32, widths, 0..6_usize, delay, any::<bool>()).prop_map(
        |(rows_max, widths, queue_max, delay_us, demotes)| Happening::Up {
            rows_max,
            widths,
            queue_max,
            delay_us,
            demotes,
        },
    );
    prop_oneof![
        12 => arrive,
        2 => any::<usize>().prop_map(Happening::Leave),
        8 => (any::<usize>(), how()).prop_map(|(index, how)| Happening::StepEnds { index, how }),
        1 => (0..2_u32, 0..6_000_u64).prop_map(|(host, back_us)| Happening::HostDown { host, back_us }),
        2 => (0..2_u32).prop_map(Happening::HostUp),
        2 => up,
        1 => (0..4_u32).prop_map(Happening::Down),
        2 => (0..3_u32, proptest::option::weighted(0.8, tenant_terms())).prop_map(
            |(tenant, terms)| Happening::Tenant(tenant, terms)
        ),
        3 => known(),
        1 => (0..4_u32).prop_map(Happening::LoadWanted),
        1 => (0..4_u32).prop_map(Happening::UnloadWanted),
        5 => (0..4_usize, any::<bool>(), 10..160_u64)
            .prop_map(|(index, fails, bytes)| Happening::LoadEnds { index, fails, bytes }),
        3 => any::<usize>().prop_map(Happening::UnloadEnds),
        1 => (0..300_u64).prop_map(Happening::Resident),
        4 => Just(Happening::TickAtDeadline),
        1 => Just(Happening::Drain),
    ]
}

fn known() -> impl Strategy<Value = Happening> {
    let idle = proptest::option::of(100..3_000_u64);
    (10..160_u64, 0..4_u64, any::<bool>(), idle).prop_map(|(bytes, load_ms, pinned, idle_us)| {
        Happening::Known { bytes, load_ms, pinned: pinned && bytes < 80, idle_us }
    })
}

/// What a tenant may have; all of it so little that it is met.
fn tenant_terms() -> impl Strategy<Value = TenantTerms> {
    let some = proptest::option::of::<proptest::strategy::BoxedStrategy<u64>>;
    let parts = (some((0..4_u64).boxed()), some((1..2_000_u64).boxed()), some((1..4_u64).boxed()));
    let more = (some((1..20_u64).boxed()), some((100..400_000_u64).boxed()), 1..4_u32);
    (parts, more).prop_map(|((priority, every_us, concurrency), (bytes_in_max, ppm, burst))| {
        let every = every_us.map(Duration::from_micros);
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        TenantTerms {
            weight: burst,
            priority_max: priority.map(|priority| Priority(small(priority))),
            requests: every.map(|every| RequestRate { every, burst }),
            concurrency_max: concurrency.map(small),
            bytes_in_max,
            device_ppm: ppm.map(small),
        }
    })
}

/// Happenings, each with the microseconds since the one before.
pub(crate) fn happenings() -> impl Strategy<Value = Vec<(u64, Happening)>> {
    let first = Happening::Up { rows_max: 3, widths: vec![1], queue_max: 5, delay_us: 200, demotes: false };
    let rest = proptest::collection::vec((prop_oneof![Just(0), 0..1_500_u64], happening()), 1..80);
    rest.prop_map(move |rest| std::iter::once((0, first.clone())).chain(rest).collect())
}

/// The lanes of a device: single cores, both, or overlapping; with idle-class twins or without.
pub(crate) fn lanes() -> impl Strategy<Value = Vec<LaneShape>> {
    let sets: Vec<Vec<&[usize]>> = vec![
        vec![&[0]],
        vec![&[0], &[1]],
        vec![&[0, 1], &[0], &[1]],
        vec![&[0], &[1], &[2], &[0, 1], &[1, 2], &[0, 1, 2]],
    ];
    (proptest::sample::select(sets), any::<bool>()).prop_map(|(sets, with_idle)| {
        let urgent = sets.iter().map(|cores| (*cores, SchedulingClass::Urgent));
        let narrow = sets.iter().filter(|cores| with_idle && cores.len() == 1);
        let all = urgent.chain(narrow.map(|cores| (*cores, SchedulingClass::Idle)));
        let lane = |(id, (cores, class)): (u16, (&[usize], _))| LaneShape {
            id: LaneId(id),
            cores: CoreSet::from_cores(cores.iter().copied()),
            class,
        };
        (0..).zip(all).map(lane).collect()
    })
}

pub(crate) fn disciplines() -> impl Strategy<Value = Discipline> {
    prop_oneof![
        4 => Just(Discipline::Quadrant),
        1 => Just(Discipline::Fifo),
        1 => Just(Discipline::Clockwork),
    ]
}
