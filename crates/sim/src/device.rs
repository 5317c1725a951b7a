//! The emulated device: lanes that take steps and give reports, with noise, interference and faults.
//!
//! A running step is an amount of work that shrinks at a rate. Urgent steps on a core share it and preempt
//! those of the idle class; a step on several cores is as slow as the slowest of them; neighbours on other
//! cores press on it. Rates change only when a step begins or ends, so that is when they are worked out.
//! The device believes nothing: a step on a lane it does not have, or where another of its class still
//! runs, is an error of whoever sent it.

use std::collections::BTreeMap;
use std::time::Duration;

use quadrant_policy::{LaneShape, Step, StepOutcome, StepReport};
use quadrant_types::{CoreSet, Error, ErrorCode, SchedulingClass, StepId, Time, Work};

use crate::generating::keys_of;
use crate::workload::{Sent, exponential};
use crate::{Faults, ModelPlan, Scenario, Truth, Unsteady};

/// A stalled step runs this many times its time.
const STALL_FACTOR: f64 = 50.0;

#[derive(Debug)]
pub(crate) struct Device {
    lanes: Vec<LaneShape>,
    /// Whether each model has a lane to itself; then steps may share cores.
    own_lanes: bool,
    unsteady: Unsteady,
    /// How much slower each core is than usual, and until when.
    slowness: BTreeMap<usize, (f64, Time)>,
    faults: Faults,
    /// What is true of each model.
    truths: Vec<Truth>,
    running: Vec<Active>,
    /// Core time in which a step ran.
    pub(crate) busy: Duration,
    now: Time,
    random: fastrand::Rng,
}

/// A step under way.
#[derive(Debug)]
struct Active {
    step: StepId,
    lane: LaneShape,
    model: usize,
    began: Time,
    /// The time that it had its cores.
    ran: Duration,
    /// Nanoseconds of undisturbed work.
    left: f64,
    /// How fast it shrinks; 1 is undisturbed.
    rate: f64,
    /// Between its end and the report of it.
    delay: Duration,
    fails: bool,
}

/// A step that has ended on the device.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) report: StepReport,
    pub(crate) known_at: Time,
    pub(crate) lane: LaneShape,
    pub(crate) model: usize,
}

impl Device {
    pub(crate) fn new(scenario: &Scenario, random: fastrand::Rng) -> Self {
        Self {
            lanes: scenario.lanes.clone(),
            own_lanes: scenario.models.iter().any(|model| model.terms.lane.is_some()),
            unsteady: scenario.unsteady,
            slowness: BTreeMap::new(),
            faults: scenario.faults,
            truths: scenario.models.iter().map(|model| model.truth.clone()).collect(),
            running: Vec::new(),
            busy: Duration::ZERO,
            now: Time::ZERO,
            random,
        }
    }

    /// Takes up a step. An error names what the step broke.
    pub(crate) fn begin(
        &mut self,
        now: Time,
        step: &Step,
        plan: &ModelPlan,
        sent: &[Sent],
    ) -> Result<(), &'static str> {
        self.advance(now);
        let Some(lane) = self.lanes.iter().find(|lane| lane.id == step.lane).copied() else {
            return Err("a step runs on a lane that there is");
        };
        let collides = |active: &Active| match self.own_lanes {
            true => active.lane.id == lane.id,
            false => active.lane.class == lane.class && active.lane.cores.overlaps(lane.cores),
        };
        if self.running.iter().any(collides) {
            return Err("running steps of one class share no core");
        }
        let members = || step.requests.iter().filter_map(|id| sent.get(usize::try_from(id.0).ok()?));
        let stalls = self.draw() < self.faults.stalls || members().any(|member| member.stalling);
        let fails = self.draw() < self.faults.fails || members().any(|member| member.poisoned);
        let late = self.draw() < self.faults.reports_late;
        let delay = self.faults.report_delay_max.mul_f64(if late { self.draw() } else { 0.0 });
        let shape = members().map(|sent| shape_of(&sent.request.work)).max().unwrap_or(0);
        let plain = plan.truth.time(step.rows, lane.cores.len(), shape)
            + plan.truth.keys_time(keys_of(step), lane.cores.len());
        let plain = plain.as_secs_f64() * 1e9;
        let noise = match (&plan.truth, plan.truth.noise > 0.0) {
            (truth, _) if !truth.spread.is_empty() => truth.spread_at(self.draw()),
            (truth, true) => (truth.noise * self.normal()).exp(),
            (_, false) => 1.0,
        };
        let slowness = self.slowness(now, lane.cores);
        self.running.push(Active {
            step: step.id,
            lane,
            model: step.model.0 as usize,
            began: now,
            ran: Duration::ZERO,
            left: plain * noise * slowness * if stalls { STALL_FACTOR } else { 1.0 },
            rate: 0.0,
            delay,
            fails,
        });
        self.work_out_rates();
        Ok(())
    }

    /// When the next step ends, if nothing else happens.
    pub(crate) fn next_end(&self) -> Option<Time> {
        self.running.iter().filter_map(|active| self.ends_at(active)).min()
    }

    /// Ends the step that is due now.
    pub(crate) fn end(&mut self, now: Time) -> Option<Ended> {
        let due = |active: &Active| self.ends_at(active).is_some_and(|time| time <= now);
        let index = self.running.iter().position(due)?;
        self.advance(now);
        let active = self.running.remove(index);
        self.work_out_rates();
        let outcome = if active.fails {
            StepOutcome::Failed(Error::new(ErrorCode::Internal, "the emulated engine failed"))
        } else {
            StepOutcome::Completed
        };
        let core_time = active.ran * u32::try_from(active.lane.cores.len()).unwrap_or(1);
        let report = StepReport { step: active.step, began: active.began, ended: now, core_time, outcome };
        Some(Ended { report, known_at: now + active.delay, lane: active.lane, model: active.model })
    }

    fn ends_at(&self, active: &Active) -> Option<Time> {
        let nanos = (active.left / active.rate).ceil();
        (active.rate > 0.0).then(|| self.now + Duration::from_nanos(nanos.max(0.0) as u64))
    }

    fn advance(&mut self, now: Time) {
        let cores = self.running.iter().fold(CoreSet::EMPTY, |cores, active| cores.union(active.lane.cores));
        self.busy += now.since(self.now) * u32::try_from(cores.len()).unwrap_or(0);
        let passed = now.since(self.now);
        self.now = now;
        for active in &mut self.running {
            active.left -= passed.as_nanos() as f64 * active.rate;
            active.ran += if active.rate > 0.0 { passed } else { Duration::ZERO };
        }
    }

    fn work_out_rates(&mut self) {
        for index in 0..self.running.len() {
            self.running[index].rate = self.rate(&self.running[index]);
        }
    }

    /// The share of its cores that the step has, less what its neighbours cost it.
    fn rate(&self, active: &Active) -> f64 {
        let others = || self.running.iter().filter(|other| other.step != active.step);
        let truth = &self.truths[active.model];
        let (mut sharing, mut longer) = (0_u32, 0.0);
        for other in others() {
            let shares = other.lane.cores.overlaps(active.lane.cores);
            match (shares, active.lane.class, other.lane.class) {
                (true, SchedulingClass::Idle, SchedulingClass::Urgent) => return 0.0,
                (true, SchedulingClass::Urgent, SchedulingClass::Idle) => {}
                (true, ..) => sharing += 1,
                (false, ..) if self.is_preempted(other) => {}
                (false, ..) => longer += truth.slowdown(other.model, self.truths[other.model].pressure),
            }
        }
        let crowd = f64::from(sharing);
        let slowed = (1.0 + longer).max(0.1) * (1.0 + truth.crowding * crowd);
        1.0 / ((1.0 + crowd) * slowed)
    }

    fn is_preempted(&self, active: &Active) -> bool {
        let urgent = |other: &Active| other.lane.class == SchedulingClass::Urgent;
        active.lane.class == SchedulingClass::Idle
            && self.running.iter().any(|other| urgent(other) && other.lane.cores.overlaps(active.lane.cores))
    }

    /// How much slower than usual the slowest of these cores is. It stays so for a step, which is short
    /// compared with how long that lasts.
    fn slowness(&mut self, now: Time, cores: CoreSet) -> f64 {
        let Unsteady { deviation, phase } = self.unsteady;
        if deviation <= 0.0 {
            return 1.0;
        }
        let mut slowest = 0.0_f64;
        for core in cores.cores() {
            let known = self.slowness.get(&core).copied().filter(|(_, until)| now < *until);
            let (slowness, _) = known.unwrap_or_else(|| {
                let until = now + exponential(phase, &mut self.random);
                let fresh = ((deviation * self.normal()).exp(), until);
                self.slowness.insert(core, fresh);
                fresh
            });
            slowest = slowest.max(slowness);
        }
        slowest
    }

    fn draw(&mut self) -> f64 {
        self.random.f64()
    }

    /// A standard normal draw, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let (first, second) = (1.0 - self.random.f64(), self.random.f64());
        (-2.0 * first.ln()).sqrt() * (std::f64::consts::TAU * second).cos()
    }
}

/// The shape of work that runs once.
pub(crate) fn shape_of(work: &Work) -> u32 {
    match work {
        Work::Once { shape, .. } => shape.0,
        Work::Generate { .. } => 0,
    }
}
