//! Scenarios drawn from a seed: every feature, and every limit small enough to be met often.

use std::time::Duration;

use quadrant_policy::{
    Cost, Discipline, Eviction, Holding, LaneShape, Limits, MemoryBudget, ModelTerms, RequestRate, Residency,
    SequenceTerms, TenantTerms, Unmet,
};
use quadrant_types::{CoreSet, LaneId, Priority, SchedulingClass, Time};

use crate::{
    Arrivals, Faults, GenerationPlan, ModelPlan, Range, Scenario, TenantChange, Traffic, Truth, Unsteady,
};

/// Memory for some of the models, if requests bring little.
const SMALL_MEMORY: MemoryBudget = MemoryBudget { bytes: 1_000, process_bytes: 100 };

/// Traffic comes within about this long, in microseconds.
const SPAN_US: u64 = 200_000;

impl Scenario {
    /// The scenario of this seed.
    pub fn random(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5ce9_a710);
        let draw = &mut random;
        let limits = random_limits(draw);
        let discipline = pick(
            draw,
            &[
                Discipline::Quadrant,
                Discipline::Quadrant,
                Discipline::Quadrant,
                Discipline::Fifo,
                Discipline::Clockwork,
            ],
        );
        let mut models: Vec<ModelPlan> = (0..draw.usize(1..=4)).map(|_| random_model(draw)).collect();
        let span = SPAN_US * 3 / 2;
        let mut lanes = random_lanes(draw);
        if discipline == Discipline::Fifo {
            give_own_lanes(&mut lanes, &mut models);
        }
        Self {
            lanes,
            discipline,
            tenants: random_tenants(draw),
            limits,
            models,
            unsteady: random_unsteadiness(draw),
            faults: random_faults(draw),
            drain_at: time(draw.u64(span / 2..=span)),
        }
    }
}

/// One narrow lane per core, and some wide ones across them; or wide ones only.
fn random_lanes(random: &mut fastrand::Rng) -> Vec<LaneShape> {
    let cores = random.usize(1..=4);
    let mut sets: Vec<CoreSet> = Vec::new();
    if random.f64() < 0.85 {
        sets.extend((0..cores).map(|core| CoreSet::from_cores([core])));
    }
    if cores >= 4 && random.bool() {
        sets.extend([CoreSet::from_cores([0, 1]), CoreSet::from_cores([2, 3])]);
    }
    if sets.is_empty() || random.bool() {
        sets.push(CoreSet::from_cores(0..cores));
    }
    random.shuffle(&mut sets);
    let urgent = sets.iter().map(|cores| (*cores, SchedulingClass::Urgent));
    let with_idle = random.f64() < 0.8;
    let idle = sets.iter().filter(|cores| with_idle && cores.len() == 1);
    let all = urgent.chain(idle.map(|cores| (*cores, SchedulingClass::Idle)));
    (0..).zip(all).map(|(id, (cores, class))| LaneShape { id: LaneId(id), cores, class }).collect()
}

/// One lane across all cores for each model, as `fifo` wants them.
fn give_own_lanes(lanes: &mut Vec<LaneShape>, models: &mut [ModelPlan]) {
    let cores = lanes.iter().fold(CoreSet::EMPTY, |cores, lane| cores.union(lane.cores));
    let ids = (0..).map(LaneId);
    *lanes =
        ids.take(models.len()).map(|id| LaneShape { id, cores, class: SchedulingClass::Urgent }).collect();
    for (model, lane) in models.iter_mut().zip(lanes) {
        model.terms.lane = Some(lane.id);
    }
}

/// Three tenants of four have terms; some of them change, and some are gone after a while.
fn random_tenants(random: &mut fastrand::Rng) -> Vec<TenantChange> {
    let mut changes = Vec::new();
    let with_quotas = random.bool();
    for tenant in 0..3 {
        let terms = Some(random_terms(random, with_quotas));
        changes.push(TenantChange { at: Time::ZERO, tenant, terms });
        if with_quotas && random.f64() < 0.3 {
            let terms = (random.f64() < 0.7).then(|| random_terms(random, true));
            changes.push(TenantChange { at: time(random.u64(0..=SPAN_US)), tenant, terms });
        }
    }
    changes
}

fn random_terms(random: &mut fastrand::Rng, with_quotas: bool) -> TenantTerms {
    let weight = random.u32(1..=5);
    if !with_quotas {
        return TenantTerms { weight, ..TenantTerms::default() };
    }
    let rate = RequestRate { every: us(random.u64(100..=20_000)), burst: random.u32(1..=8) };
    TenantTerms {
        weight,
        priority_max: random.bool().then(|| Priority(random.u32(0..=4))),
        requests: random.bool().then_some(rate),
        concurrency_max: random.bool().then(|| random.u32(1..=8)),
        bytes_in_max: random.bool().then(|| random.u64(1..=200)),
        device_ppm: random.bool().then(|| random.u32(100..=300_000)),
    }
}

fn random_limits(random: &mut fastrand::Rng) -> Limits {
    Limits {
        queued_requests_max: pick(random, &[1, 20, 1_000, 1_000]),
        bytes_in_max: pick(random, &[50, 1_000, 1 << 20, 1 << 20]),
        wait_max: pick(random, &[ms(5), ms(50), ms(1_000)]),
        stall_factor: pick(random, &[3, 10]),
        stall_floor: pick(random, &[ms(1), ms(20), ms(1_000)]),
        best_effort_floor_permille: pick(random, &[0, 50, 300]),
        eviction: pick(random, &Eviction::ALL),
        loads_max: pick(random, &[1, 2, 4]),
        memory: pick(random, &[MemoryBudget { bytes: 1 << 30, process_bytes: 0 }, SMALL_MEMORY]),
    }
}

fn random_unsteadiness(random: &mut fastrand::Rng) -> Unsteady {
    Unsteady { deviation: pick(random, &[0.0, 0.0, 0.2, 0.6]), phase: pick(random, &[ms(1), ms(30)]) }
}

fn random_faults(random: &mut fastrand::Rng) -> Faults {
    if random.f64() < 0.3 {
        return Faults::NONE;
    }
    Faults {
        fails: pick(random, &[0.0, 0.02, 0.3]),
        stalls: pick(random, &[0.0, 0.0, 0.02, 0.1]),
        reports_late: pick(random, &[0.0, 0.1, 1.0]),
        report_delay_max: pick(random, &[ms(1), ms(30)]),
        tick_delay_max: pick(random, &[ms(0), us(100), ms(5)]),
    }
}

fn random_model(random: &mut fastrand::Rng) -> ModelPlan {
    let truth = Truth {
        step_cost: us(random.u64(10..=2_000)),
        row_cost: us(random.u64(0..=500)),
        wide_gain: 0.8 + random.f64() * 1.2,
        noise: pick(random, &[0.0, 0.1, 0.5]),
        spread: if random.f64() < 0.2 { vec![0.5, 0.9, 1.0, 1.1, 4.0] } else { Vec::new() },
        beside: if random.f64() < 0.2 { vec![1.5, 0.9] } else { Vec::new() },
        sensitivity: pick(random, &[0.0, 0.3]),
        pressure: random.f64(),
        crowding: pick(random, &[0.0, 0.2]),
        thousand_keys: us(random.u64(0..=2_000)),
    };
    // The scheduler is told the truth, or something between a tenth and three times of it.
    let told = if random.bool() { 1.0 } else { 0.1 + random.f64() * 2.9 };
    let rows_max = pick(random, &[1, 2, 4, 7, 16]);
    let widths = pick(random, &[&[1][..], &[1, 2], &[1, 4], &[2], &[4]]);
    let cost = |(rows, width): (u32, usize)| Cost {
        rows,
        width,
        beside: false,
        time: truth.time(rows, width, 0).mul_f64(told),
    };
    let rows = [1, 2, 4, 8, 16].into_iter().filter(|rows| *rows <= rows_max);
    let costs = rows.flat_map(|rows| widths.iter().map(move |width| (rows, *width))).map(cost).collect();
    let up_at = if random.f64() < 0.8 { Time::ZERO } else { time(random.u64(0..=SPAN_US / 2)) };
    let goes_down = random.f64() < 0.25;
    let holding = (random.f64() < 0.5).then(|| random_holding(random));
    let mut traffic: Vec<Traffic> =
        (0..random.usize(1..=3)).map(|_| random_traffic(random, rows_max)).collect();
    let sequences = (random.f64() < 0.25).then(|| random_sequences(random));
    if let Some(terms) = &sequences {
        traffic.iter_mut().for_each(|traffic| traffic.generation = Some(random_generation(random, terms)));
    }
    ModelPlan {
        terms: ModelTerms {
            rows_max,
            widths: widths.to_vec(),
            lane: None,
            queue_max: pick(random, &[1, 10, 100, 100]),
            delay_max: pick(random, &[ms(0), ms(0), us(200), ms(5), ms(40)]),
            costs,
            row_bytes: random.u64(1..=20),
            unmet: pick(random, &[Unmet::Refuse, Unmet::Refuse, Unmet::Demote]),
            sequences,
        },
        up_at,
        down_at: goes_down.then(|| up_at + us(random.u64(0..=SPAN_US))),
        holding,
        load_fails: pick(random, &[0.0, 0.0, 0.2]),
        truth,
        traffic,
    }
}

/// Few pages, so that sequences are often in each other's way.
fn random_sequences(random: &mut fastrand::Rng) -> SequenceTerms {
    SequenceTerms {
        page_tokens: pick(random, &[1, 4, 16]),
        pages: random.u32(8..=60),
        tokens_max: pick(random, &[20, 500]),
        thousand_keys: us(random.u64(0..=2_000)),
    }
}

/// Some are longer than can be.
fn random_generation(random: &mut fastrand::Rng, terms: &SequenceTerms) -> GenerationPlan {
    let most = terms.longest().clamp(2, 40);
    let lengths = (0..7).map(|_| (random.u32(1..=most), random.u32(1..=most / 2 + 1)));
    GenerationPlan {
        lengths: lengths.collect(),
        each: us(random.u64(100..=20_000)),
        shared_prefix: pick(random, &[0, 0, 8, 32]),
    }
}

fn random_holding(random: &mut fastrand::Rng) -> Holding {
    let bytes = random.u64(1..=500);
    let idle_after = pick(random, &[None, None, Some(ms(2)), Some(ms(50))]);
    Holding {
        bytes,
        load_bytes: bytes + random.u64(0..=100),
        load_time: us(random.u64(10..=30_000)),
        residency: pick(
            random,
            &[Residency::Pinned, Residency::OnDemand { idle_after }, Residency::OnDemand { idle_after }],
        ),
        objective: pick(random, &[None, Some(ms(10))]),
    }
}

fn random_traffic(random: &mut fastrand::Rng, rows_max: u32) -> Traffic {
    let priority = random.u32(0..=3);
    let soonest = us(random.u64(1..=20_000));
    let objective = Range::new(soonest, soonest + us(random.u64(0..=50_000)));
    Traffic {
        arrivals: random_arrivals(random),
        rows: Range::new(1, pick(random, &[1, 1, 3, rows_max + 1])),
        shapes: pick(random, &[1, 1, 3]),
        row_bytes: random.u64(1..=20),
        priority: Range::new(priority, priority + random.u32(0..=2)),
        tenant: random.u32(0..4),
        hard: random.bool(),
        objective: (random.f64() < 0.6).then_some(objective),
        submit_delay: Range::new(ms(0), pick(random, &[ms(0), us(100), ms(3)])),
        leaves: pick(random, &[0.0, 0.0, 0.1, 0.9]),
        leaves_after: Range::new(ms(0), pick(random, &[us(10), ms(2), ms(20)])),
        poisoned: pick(random, &[0.0, 0.0, 0.05, 0.5]),
        stalling: pick(random, &[0.0, 0.0, 0.0, 0.01]),
        generation: None,
    }
}

fn random_arrivals(random: &mut fastrand::Rng) -> Arrivals {
    let (start, count) = (time(random.u64(0..=SPAN_US / 4)), random.usize(1..=40));
    let every = us(random.u64(0..=SPAN_US / count as u64));
    match random.u32(0..4) {
        0 => Arrivals::Constant { start, every, count },
        1 => Arrivals::Poisson { start, mean: every, count },
        2 => Arrivals::Bursts { start, every: every * 4, size: random.usize(1..=20), count },
        _ => Arrivals::At((0..count).map(|_| time(random.u64(0..=SPAN_US))).collect()),
    }
}

fn pick<T: Copy>(random: &mut fastrand::Rng, of: &[T]) -> T {
    of[random.usize(0..of.len())]
}

fn time(microseconds: u64) -> Time {
    Time::ZERO + us(microseconds)
}

const fn us(microseconds: u64) -> Duration {
    Duration::from_micros(microseconds)
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
