//! Models on a device under load, as an engineer would describe them: what a step costs, by when an answer
//! is wanted, how requests come. An experiment is played at many loads and under several disciplines; each
//! run is an ordinary [`Scenario`].

use std::collections::BTreeMap;
use std::time::Duration;

use quadrant_policy::{Cost, Discipline, LaneShape, Limits, ModelTerms, SequenceTerms, TenantTerms, Unmet};
use quadrant_types::{CoreSet, LaneId, Priority, SchedulingClass, Time};

use crate::{
    Arrivals, Faults, GenerationPlan, ModelPlan, Range, Report, Scenario, TenantChange, Traffic, Truth,
    Unsteady, Violation, run_unchecked,
};

/// How long a run goes on after its last arrival, so that everything ends.
const AFTERMATH: Duration = Duration::from_secs(120);

/// Models on a device.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// Cores that compute.
    pub cores: usize,
    /// How their speed varies.
    pub unsteady: Unsteady,
    /// The scheduler's bounds.
    pub limits: Limits,
    /// What is served.
    pub models: Vec<Served>,
    /// Who asks, by name, and what each may have. The first has number 1; 0 is who gives no name.
    pub tenants: Vec<(String, TenantTerms)>,
}

/// A model, what is true of it, and what is promised for it.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its name.
    pub name: String,
    /// How long its steps really take.
    pub truth: Truth,
    /// The most rows of one step.
    pub rows_max: u32,
    /// Whether its steps may also take all cores.
    pub wide: bool,
    /// By when an answer is wanted; `None` for best effort.
    pub objective: Option<Duration>,
    /// How important its requests are.
    pub priority: Priority,
    /// What is offered to it relative to the other models, in core time.
    pub share: f64,
    /// How long a request may wait for others to share its batch.
    pub delay_max: Duration,
    /// What a request takes besides waiting and its step: reading, handing over, writing.
    pub overhead: Duration,
    /// Whose its requests are, by their places among the tenants, with their shares; nobody's if empty.
    pub tenants: Vec<(usize, f64)>,
    /// What is generated, if it is a model that does: rows are tokens then, and the objective is that of the
    /// first.
    pub generation: Option<Generates>,
}

/// A model that generates.
#[derive(Clone, Debug, PartialEq)]
pub struct Generates {
    /// What its sequences take.
    pub terms: SequenceTerms,
    /// What is asked of it.
    pub plan: GenerationPlan,
}

impl Generates {
    /// The mean tokens of a prompt and of an answer.
    fn means(&self) -> (f64, f64) {
        let lengths = &self.plan.lengths;
        let sum = |of: fn(&(u32, u32)) -> u32| lengths.iter().map(|one| f64::from(of(one))).sum::<f64>();
        let count = lengths.len().max(1) as f64;
        (sum(|(prompt, _)| *prompt) / count, sum(|(_, new)| *new) / count)
    }
}

/// What a run showed, in the figures that are compared.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The offered load, as a share of the device.
    pub load: f64,
    /// The attainment of the model that fared worst.
    pub worst: f64,
    /// Answers in time per second, of all models.
    pub goodput: f64,
    /// Of the requests that were let in, those answered in time.
    pub kept: f64,
    /// The share of the cores' time in which steps ran.
    pub utilisation: f64,
    /// Everything else.
    pub report: Report,
}

impl Served {
    /// Core time of one request, alone in its step, next to others; of one that generates, what its prompt
    /// and its tokens add to steps that run anyway, and one step.
    pub fn core_time(&self) -> Duration {
        let Some(generation) = &self.generation else { return self.truth.time(1, 1, 0) };
        let (prompt, new) = generation.means();
        self.truth.step_cost + self.truth.row_cost.mul_f64(prompt + new)
    }
}

impl Experiment {
    /// The requests per second of each model at this load, a share of the device.
    pub fn rates(&self, load: f64) -> Vec<f64> {
        let all: f64 = self.models.iter().map(|model| model.share).sum();
        let offered = |model: &Served| load * self.cores as f64 * model.share / all;
        self.models.iter().map(|model| offered(model) / model.core_time().as_secs_f64()).collect()
    }

    /// One run: these arrivals, one list for each model, under a discipline.
    pub fn scenario(&self, discipline: Discipline, arrivals: &[Vec<Duration>]) -> Scenario {
        let at = |after: &Duration| Time::ZERO + *after;
        let last = arrivals.iter().flatten().max().map_or(Time::ZERO, at);
        let plan = |(index, model): (usize, &Served)| {
            let times = arrivals.get(index).map_or(&[][..], Vec::as_slice).iter().map(at).collect();
            self.model_plan(discipline, index, model, times)
        };
        Scenario {
            lanes: self.lanes(discipline),
            discipline,
            tenants: (1..)
                .zip(&self.tenants)
                .map(|(tenant, (_, terms))| has_from_the_start(tenant, *terms))
                .collect(),
            limits: self.limits,
            models: self.models.iter().enumerate().map(plan).collect(),
            unsteady: self.unsteady,
            faults: Faults::NONE,
            drain_at: last + AFTERMATH,
        }
    }

    /// Plays one run and sums it up. `seconds` is how long requests come.
    ///
    /// # Errors
    /// If the device refused a step.
    pub fn play(
        &self,
        discipline: Discipline,
        (load, seconds): (f64, f64),
        arrivals: &[Vec<Duration>],
        seed: u64,
    ) -> Result<Outcome, Violation> {
        let report = run_unchecked(&self.scenario(discipline, arrivals), seed)?;
        let models = || report.models.iter();
        let in_time: u64 = models().map(|model| model.in_time).sum();
        let admitted: u64 = models().map(|model| model.with_objective - model.refused).sum();
        Ok(Outcome {
            load,
            worst: models().map(crate::ModelReport::attainment).fold(1.0, f64::min),
            goodput: in_time as f64 / seconds,
            kept: if admitted == 0 { 1.0 } else { in_time as f64 / admitted as f64 },
            utilisation: report.busy.as_secs_f64() / (seconds * self.cores as f64),
            report,
        })
    }

    fn lanes(&self, discipline: Discipline) -> Vec<LaneShape> {
        let all = CoreSet::from_cores(0..self.cores);
        let single = || (0..self.cores).map(|core| CoreSet::from_cores([core]));
        let mut sets: Vec<(CoreSet, SchedulingClass)> = match discipline {
            Discipline::Quadrant => single().map(|core| (core, SchedulingClass::Urgent)).collect(),
            Discipline::Fifo => self.models.iter().map(|_| (all, SchedulingClass::Urgent)).collect(),
            Discipline::Clockwork => vec![(all, SchedulingClass::Urgent)],
        };
        if discipline == Discipline::Quadrant {
            sets.extend((self.cores > 1).then_some((all, SchedulingClass::Urgent)));
            sets.extend(single().map(|core| (core, SchedulingClass::Idle)));
            let generates = self.cores > 1 && self.models.iter().any(|model| model.generation.is_some());
            sets.extend(generates.then_some((all, SchedulingClass::Idle)));
        }
        (0..).zip(sets).map(|(id, (cores, class))| LaneShape { id: LaneId(id), cores, class }).collect()
    }

    fn model_plan(
        &self,
        discipline: Discipline,
        index: usize,
        model: &Served,
        times: Vec<Time>,
    ) -> ModelPlan {
        let widths: Vec<usize> = match discipline {
            Discipline::Quadrant if model.wide && self.cores > 1 => vec![1, self.cores],
            Discipline::Quadrant => vec![1],
            Discipline::Fifo | Discipline::Clockwork => vec![self.cores],
        };
        let rows = (0..).map(|power| 1 << power).take_while(|rows| *rows <= model.rows_max.max(1));
        let cost =
            |(rows, width)| Cost { rows, width, beside: false, time: model.truth.time(rows, width, 0) };
        let costs = rows.flat_map(|rows| widths.iter().map(move |width| (rows, *width))).map(cost).collect();
        let traffic = |(tenant, times): (u32, Vec<Time>)| Traffic {
            objective: model.objective.map(Range::only),
            hard: false,
            priority: Range::only(model.priority.0),
            submit_delay: Range::only(model.overhead),
            tenant,
            generation: model.generation.as_ref().map(|generation| generation.plan.clone()),
            ..Traffic::plain(Arrivals::At(times))
        };
        ModelPlan {
            terms: ModelTerms {
                rows_max: model.rows_max,
                widths,
                lane: u16::try_from(index).ok().filter(|_| discipline == Discipline::Fifo).map(LaneId),
                queue_max: usize::MAX,
                delay_max: model.delay_max,
                costs,
                row_bytes: 1,
                unmet: Unmet::Refuse,
                sequences: model.generation.as_ref().map(|generation| generation.terms),
            },
            up_at: Time::ZERO,
            down_at: None,
            holding: None,
            load_fails: 0.0,
            truth: model.truth.clone(),
            traffic: divided(index, model, times).into_iter().map(traffic).collect(),
        }
    }
}

fn has_from_the_start(tenant: u32, terms: TenantTerms) -> TenantChange {
    TenantChange { at: Time::ZERO, tenant, terms: Some(terms) }
}

/// The arrivals of each tenant: each is one's by a draw of its own, so that a Poisson process gives Poisson
/// processes.
fn divided(index: usize, model: &Served, times: Vec<Time>) -> Vec<(u32, Vec<Time>)> {
    let Some(((last, _), others)) = model.tenants.split_last() else { return vec![(0, times)] };
    let sum: f64 = model.tenants.iter().map(|(_, share)| share).sum();
    let mut random = fastrand::Rng::with_seed(index as u64);
    let number = |place: usize| u32::try_from(place + 1).unwrap_or(0);
    let mut parts: BTreeMap<u32, Vec<Time>> =
        model.tenants.iter().map(|(place, _)| (number(*place), Vec::new())).collect();
    for time in times {
        let mut point = random.f64() * sum;
        let chosen = others.iter().find(|(_, share)| {
            point -= share;
            point < 0.0
        });
        let place = chosen.map_or(*last, |(place, _)| *place);
        parts.entry(number(place)).or_default().push(time);
    }
    parts.into_iter().collect()
}
