//! What a simulation plays: lanes, models, traffic and faults, as plain data.
//!
//! Everything random about a run is a distribution here and a draw from the seed later, so a scenario
//! written by hand with point values has no randomness at all.

use std::time::Duration;

use quadrant_policy::{Discipline, Holding, LaneShape, Limits, ModelTerms};
use quadrant_types::{Priority, Time};

use crate::TenantChange;

/// One whole experiment.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The device.
    pub lanes: Vec<LaneShape>,
    /// How the scheduler decides.
    pub discipline: Discipline,
    /// The scheduler's bounds.
    pub limits: Limits,
    /// What tenants may have, and when that changes.
    pub tenants: Vec<TenantChange>,
    /// What is served; the first has [`quadrant_types::ModelId`] 0.
    pub models: Vec<ModelPlan>,
    /// How the speed of its cores varies.
    pub unsteady: Unsteady,
    /// What goes wrong.
    pub faults: Faults,
    /// When draining begins.
    pub drain_at: Time,
}

/// One model: what the scheduler is told of it, what is true of it, and who asks for it.
#[derive(Clone, Debug)]
pub struct ModelPlan {
    /// What the scheduler is told.
    pub terms: ModelTerms,
    /// When it is loaded, or known if it is loaded on demand.
    pub up_at: Time,
    /// When it is unloaded, if ever.
    pub down_at: Option<Time>,
    /// What it takes of the memory; it is there for nothing if not given.
    pub holding: Option<Holding>,
    /// The share of its loads that fail.
    pub load_fails: f64,
    /// What is true of its steps.
    pub truth: Truth,
    /// Who asks for it.
    pub traffic: Vec<Traffic>,
}

/// How long steps of a model really take.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// However many rows, on one core,
    pub step_cost: Duration,
    /// and what each row adds. Shape `n` takes `1 + n / 2` times as long.
    pub row_cost: Duration,
    /// What a thousand keys that tokens attend to add, on one core.
    pub thousand_keys: Duration,
    /// How many times faster a step is on two cores; on `n` cores this to the power of `log2 n`.
    pub wide_gain: f64,
    /// The standard deviation of the logarithm of a step's time.
    pub noise: f64,
    /// Observed quantiles of the time over its median, at even distances and ascending; drawn from instead of
    /// `noise` unless empty.
    pub spread: Vec<f64>,
    /// How much longer it takes beside a step that presses as hard as 1.
    pub sensitivity: f64,
    /// How hard it presses on what runs beside it.
    pub pressure: f64,
    /// How many times longer it takes beside a step of each model, instead of sensitivity and pressure; a
    /// model beyond the end counts as 1.
    pub beside: Vec<f64>,
    /// How much longer it takes for each other step that shares its cores with it, besides the sharing:
    /// its threads wait for each other.
    pub crowding: f64,
}

impl Truth {
    /// Steps that take exactly this, whatever runs beside them.
    pub fn exact(step_cost: Duration, row_cost: Duration) -> Self {
        let (sensitivity, pressure, crowding) = (0.0, 0.0, 0.0);
        let (spread, beside) = (Vec::new(), Vec::new());
        let (wide_gain, noise, thousand_keys) = (1.6, 0.0, Duration::ZERO);
        Self {
            step_cost,
            row_cost,
            thousand_keys,
            wide_gain,
            noise,
            spread,
            sensitivity,
            pressure,
            beside,
            crowding,
        }
    }

    /// The factor on a step's time that this draw, from 0 to 1, stands for among the observed ones.
    pub(crate) fn spread_at(&self, draw: f64) -> f64 {
        let last = self.spread.len().saturating_sub(1);
        let place = draw.clamp(0.0, 1.0) * last as f64;
        let below = place.floor();
        let (low, high) = (self.spread[below as usize], self.spread[place.ceil() as usize]);
        low + (high - low) * (place - below)
    }

    /// How many times longer a step takes beside one of this model that presses so hard.
    pub(crate) fn slowdown(&self, neighbour: usize, pressure: f64) -> f64 {
        if self.beside.is_empty() {
            self.sensitivity * pressure
        } else {
            self.beside.get(neighbour).map_or(0.0, |factor| factor - 1.0)
        }
    }

    /// What attending to so many keys adds to a step.
    pub fn keys_time(&self, keys: u64, width: usize) -> Duration {
        self.thousand_keys.mul_f64(keys as f64 / 1e3 / width.max(1) as f64)
    }

    /// The time of an undisturbed step, without noise.
    pub fn time(&self, rows: u32, width: usize, shape: u32) -> Duration {
        let plain = self.step_cost + self.row_cost.saturating_mul(rows);
        let gain = self.wide_gain.powf((width.max(1) as f64).log2());
        plain.mul_f64((1.0 + f64::from(shape) / 2.0) / gain)
    }
}

/// Requests of one kind. All are sent whether or not earlier ones were answered.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// When they come.
    pub arrivals: Arrivals,
    /// Rows of a request.
    pub rows: Range<u32>,
    /// Shapes are numbered from 0 to this, exclusive.
    pub shapes: u32,
    /// Bytes of one row.
    pub row_bytes: u64,
    /// How important a request is.
    pub priority: Range<u32>,
    /// On whose account.
    pub tenant: u32,
    /// How long after its arrival its answer is wanted; `None` for best effort.
    pub objective: Option<Range<Duration>>,
    /// Whether it is of no use later.
    pub hard: bool,
    /// From the arrival of its last byte until the scheduler hears of it.
    pub submit_delay: Range<Duration>,
    /// The share of clients that leave,
    pub leaves: f64,
    /// and how long after the scheduler heard of the request they do.
    pub leaves_after: Range<Duration>,
    /// The share of requests that make every step with them fail.
    pub poisoned: f64,
    /// The share of requests that make every step with them run fifty times as long.
    pub stalling: f64,
    /// What is generated, of a model that does; its requests have this instead of rows and shapes.
    pub generation: Option<GenerationPlan>,
}

/// What requests ask a model to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationPlan {
    /// Tokens of a prompt and of its answer, at least one each, from request to request and then over again;
    /// never empty.
    pub lengths: Vec<(u32, u32)>,
    /// How long each token after the first may take. [`Traffic::objective`] is the first's.
    pub each: Duration,
    /// Tokens at the beginning of all these prompts that are the same.
    pub shared_prefix: u32,
}

impl Traffic {
    /// One-row best-effort requests of a faithful client, at these arrivals.
    pub fn plain(arrivals: Arrivals) -> Self {
        Self {
            arrivals,
            rows: Range::only(1),
            shapes: 1,
            row_bytes: 1,
            priority: Range::only(Priority::default().0),
            tenant: 0,
            objective: None,
            hard: true,
            submit_delay: Range::only(Duration::ZERO),
            leaves: 0.0,
            leaves_after: Range::only(Duration::ZERO),
            poisoned: 0.0,
            stalling: 0.0,
            generation: None,
        }
    }
}

/// When requests come.
#[derive(Clone, Debug)]
pub enum Arrivals {
    /// At these times.
    At(Vec<Time>),
    /// `count` at equal distances from `start` on.
    Constant {
        /// The first.
        start: Time,
        /// The distance.
        every: Duration,
        /// How many in all.
        count: usize,
    },
    /// `count` with exponentially distributed distances.
    Poisson {
        /// Before the first.
        start: Time,
        /// The mean distance.
        mean: Duration,
        /// How many in all.
        count: usize,
    },
    /// `count` in groups of `size` that come at one instant.
    Bursts {
        /// The first group.
        start: Time,
        /// From group to group.
        every: Duration,
        /// Requests of a group.
        size: usize,
        /// How many in all.
        count: usize,
    },
}

/// Cores whose speed varies, each by itself: for a while all of its steps take longer, or less, because of
/// what shares the core with them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unsteady {
    /// The standard deviation of the logarithm of a core's slowness.
    pub deviation: f64,
    /// How long it lasts, in the mean; exponentially distributed.
    pub phase: Duration,
}

impl Unsteady {
    /// Cores that are always equally fast.
    pub const NONE: Self = Self { deviation: 0.0, phase: Duration::ZERO };
}

/// Faults of the device and of the driver; shares are of steps.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Steps that fail, for no fault of their requests.
    pub fails: f64,
    /// Steps that run fifty times as long as they should.
    pub stalls: f64,
    /// Steps whose end is reported late,
    pub reports_late: f64,
    /// and by how much at most.
    pub report_delay_max: Duration,
    /// Ticks come up to this much late.
    pub tick_delay_max: Duration,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        fails: 0.0,
        stalls: 0.0,
        reports_late: 0.0,
        report_delay_max: Duration::ZERO,
        tick_delay_max: Duration::ZERO,
    };
}

/// A uniform distribution, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<T> {
    /// The least.
    pub min: T,
    /// The most.
    pub max: T,
}

impl<T: Copy> Range<T> {
    /// From `min` to `max`.
    pub const fn new(min: T, max: T) -> Self {
        Self { min, max }
    }

    /// Always this.
    pub const fn only(value: T) -> Self {
        Self { min: value, max: value }
    }
}

impl Range<u32> {
    pub(crate) fn draw(self, random: &mut fastrand::Rng) -> u32 {
        random.u32(self.min..=self.max)
    }
}

impl Range<Duration> {
    pub(crate) fn draw(self, random: &mut fastrand::Rng) -> Duration {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(random.u64(nanos(self.min)..=nanos(self.max)))
    }
}
