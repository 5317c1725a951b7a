//! From a log of steps to what the simulated device obeys: the cost of a step and of each row, the gain of
//! more cores, how much longer it takes beside each other model, how its time scatters around that, and how
//! much of it is because a core as a whole is slower for a while.
//!
//! Everything is a median or clipped, so that a few disturbed steps change nothing; what was not seen often
//! enough falls back on what was measured when the model was loaded, or on no effect.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Steps without which a figure is not taken from them.
const STEPS_MIN: usize = 8;
/// A step ran alone if something else ran for less than this share of it,
const ALONE: f64 = 0.1;
/// and beside a model if that ran for more than this share.
const BESIDE: f64 = 0.6;
/// Steps shorter than this say little about their core.
const TELLING_MS: f64 = 1.0;
/// Steps of a core are as near in time as this if they are of one phase,
const NEAR_MS: f64 = 50.0;
/// and this far apart if it is asked whether that has passed.
const FAR_MS: (f64, f64) = (900.0, 1_100.0);
/// How long phases may seem.
const PHASE_MS: (f64, f64) = (50.0, 60_000.0);
/// Logarithms of scatter beyond this count as this much.
const LOG_MAX: f64 = 0.7;
/// Quantiles of the scatter.
const QUANTILES: usize = 65;

/// A model as the server's page of models says.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Model {
    model: String,
    objective_ms: Option<f64>,
    priority: u32,
    rows_max: u32,
    delay_ms: f64,
    widths: Vec<usize>,
    costs: Vec<Cost>,
}

/// What a step cost when the model was loaded.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Cost {
    rows: u32,
    width: usize,
    beside: u8,
    ms: f64,
}

/// A step as the server's page of steps says.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Step {
    model: String,
    cores: String,
    width: usize,
    rows: u32,
    began_ms: f64,
    ended_ms: f64,
    real_ms: f64,
}

/// A model of a workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Observed {
    name: String,
    step_ms: f64,
    row_ms: f64,
    rows_max: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    wide_gain: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    objective_ms: Option<f64>,
    priority: u32,
    share: f64,
    delay_ms: f64,
    crowding: f64,
    spread: Vec<f64>,
    beside: BTreeMap<String, f64>,
}

/// How the speed of cores varies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Unsteady {
    deviation: f64,
    phase_ms: f64,
}

/// The cores that had a step.
pub(super) fn cores(steps: &[Step]) -> usize {
    let mut cores: Vec<&str> = steps.iter().flat_map(|step| step.cores.split(',')).collect();
    cores.sort_unstable();
    cores.dedup();
    cores.len()
}

/// From the beginning of the first step to the end of the last.
pub(super) fn span_ms(steps: &[Step]) -> f64 {
    let began = steps.iter().map(|step| step.began_ms).fold(f64::MAX, f64::min);
    (steps.iter().map(|step| step.ended_ms).fold(0.0, f64::max) - began).max(1e-3)
}

/// The share of these cores' time in which steps ran.
pub(super) fn load(steps: &[Step], cores: usize) -> f64 {
    core_ms(steps.iter()) / span_ms(steps) / cores.max(1) as f64
}

fn core_ms<'a>(steps: impl Iterator<Item = &'a Step>) -> f64 {
    steps.map(|step| step.real_ms * step.width as f64).sum()
}

/// What the steps show of each model that the server has, and of the cores.
pub(super) fn observe(models: &[Model], steps: &[Step]) -> (Vec<Observed>, Unsteady) {
    let seen = neighbours(steps);
    let all = core_ms(steps.iter()).max(1e-9);
    let (mut observed, scatters): (Vec<_>, Vec<_>) =
        models.iter().map(|model| of_model(model, &seen, all)).unzip();
    let unsteady = unsteady(scatters.iter().flatten());
    for (model, scatter) in observed.iter_mut().zip(&scatters) {
        model.spread = spread(scatter, unsteady.deviation);
    }
    (observed, unsteady)
}

/// A step, and the logarithm of its time over what was to be expected.
struct Scatter<'a> {
    step: &'a Step,
    log: f64,
}

/// What the scatter of successive steps of a core has in common is how fast the core is; how much of it is
/// left a second later says how long that lasts.
fn unsteady<'a>(scatter: impl Iterator<Item = &'a Scatter<'a>>) -> Unsteady {
    let mut telling: Vec<&Scatter<'_>> = scatter.collect();
    telling.retain(|scatter| scatter.step.width == 1 && scatter.step.real_ms >= TELLING_MS);
    telling.sort_by(|one, other| one.step.began_ms.total_cmp(&other.step.began_ms));
    let usual = mean(telling.iter().map(|scatter| clipped(scatter)));
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for (index, first) in telling.iter().enumerate() {
        let later = telling[index + 1..].iter().filter(|later| later.step.cores == first.step.cores);
        let gap = |later: &&&Scatter<'_>| later.step.began_ms - first.step.ended_ms;
        let common = |later: &&Scatter<'_>| (clipped(first) - usual) * (clipped(later) - usual);
        near.extend(later.clone().find(|later| gap(later) >= 0.0).filter(|it| gap(it) < NEAR_MS).map(common));
        let then = later.take_while(|later| gap(later) < FAR_MS.1);
        far.extend(then.filter(|later| gap(later) >= FAR_MS.0).map(common));
    }
    let variance = mean(near.into_iter()).max(0.0);
    let left = (mean(far.into_iter()) / variance.max(1e-9)).clamp(1e-6, 1.0 - 1e-6);
    let apart_ms = f64::midpoint(FAR_MS.0, FAR_MS.1);
    let phase_ms = (-apart_ms / left.ln()).clamp(PHASE_MS.0, PHASE_MS.1);
    Unsteady { deviation: rounded(variance.sqrt()), phase_ms: phase_ms.round() }
}

fn clipped(scatter: &Scatter<'_>) -> f64 {
    scatter.log.clamp(-LOG_MAX, LOG_MAX)
}

/// Quantiles of the times of steps over what was to be expected, without what is their cores'.
fn spread(scatter: &[Scatter<'_>], of_cores: f64) -> Vec<f64> {
    if scatter.len() < QUANTILES {
        return Vec::new();
    }
    let mut logs: Vec<f64> = scatter.iter().map(|scatter| scatter.log).collect();
    logs.sort_by(f64::total_cmp);
    let usual = mean(scatter.iter().map(clipped));
    let variance = mean(scatter.iter().map(|scatter| (clipped(scatter) - usual).powi(2)));
    let own = (1.0 - of_cores.powi(2) / variance.max(1e-9)).max(0.0).sqrt();
    let quantile = |index: usize| logs[index * (logs.len() - 1) / (QUANTILES - 1)];
    (0..QUANTILES).map(|index| rounded((own * quantile(index)).exp())).collect()
}

/// A step, and for which share of it each model ran on other cores.
struct Seen<'a> {
    step: &'a Step,
    beside: Vec<(&'a str, f64)>,
}

impl Seen<'_> {
    fn beside_share(&self) -> f64 {
        self.beside.iter().map(|(_, share)| share).sum()
    }

    fn share_of(&self, model: &str) -> f64 {
        self.beside.iter().filter(|(name, _)| *name == model).map(|(_, share)| share).sum()
    }
}

fn neighbours(steps: &[Step]) -> Vec<Seen<'_>> {
    let mut ordered: Vec<&Step> = steps.iter().collect();
    ordered.sort_by(|one, other| one.ended_ms.total_cmp(&other.ended_ms));
    let longest = steps.iter().map(|step| step.ended_ms - step.began_ms).fold(0.0, f64::max);
    let seen = |step: &&'_ Step| {
        let first = ordered.partition_point(|other| other.ended_ms <= step.began_ms);
        let last = ordered.partition_point(|other| other.ended_ms < step.ended_ms + longest);
        ordered[first..last].iter().filter_map(|other| overlap(step, other)).collect()
    };
    let beside: Vec<Vec<(&str, f64)>> = ordered.iter().map(seen).collect();
    ordered.into_iter().zip(beside).map(|(step, beside)| Seen { step, beside }).collect()
}

/// For which share of a step another ran on other cores.
fn overlap<'a>(step: &Step, other: &'a Step) -> Option<(&'a str, f64)> {
    let within = other.ended_ms.min(step.ended_ms) - other.began_ms.max(step.began_ms);
    let shares = step.cores.split(',').any(|core| other.cores.split(',').any(|its| its == core));
    // A preempted neighbour does not press; what it really had is a share of its time.
    let active = (other.real_ms / (other.ended_ms - other.began_ms).max(1e-6)).min(1.0);
    let took = (step.ended_ms - step.began_ms).max(1e-6);
    (within > 0.0 && !shares).then_some((other.model.as_str(), within * active / took))
}

fn of_model<'a>(model: &Model, all: &[Seen<'a>], all_core_ms: f64) -> (Observed, Vec<Scatter<'a>>) {
    let own: Vec<&Seen<'a>> = all.iter().filter(|seen| seen.step.model == model.model).collect();
    let (step_ms, row_ms) = step_and_row(model, &own);
    let gain = wide_gain(model, &own);
    let plain = |seen: &Seen<'_>| {
        let wide = if seen.step.width > 1 { gain.unwrap_or(1.0) } else { 1.0 };
        (step_ms + row_ms * f64::from(seen.step.rows)) / wide
    };
    let beside = beside(&own, all, plain);
    let usual = |seen: &Seen<'_>| {
        let longer =
            seen.beside.iter().map(|(name, share)| share * (beside.get(*name).unwrap_or(&1.0) - 1.0));
        plain(seen) * (1.0 + longer.sum::<f64>()).max(0.1)
    };
    let scatter = |seen: &&Seen<'a>| {
        let log = (seen.step.real_ms.max(1e-6) / usual(seen).max(1e-6)).ln();
        Scatter { step: seen.step, log }
    };
    let scatter = own.iter().map(scatter).collect();
    let observed = Observed {
        name: model.model.clone(),
        step_ms: rounded(step_ms.max(0.001)),
        row_ms: rounded(row_ms),
        rows_max: model.rows_max,
        wide_gain: gain.map(rounded),
        objective_ms: model.objective_ms,
        priority: model.priority,
        share: rounded((core_ms(own.iter().map(|seen| seen.step)) / all_core_ms).max(1e-3)),
        delay_ms: model.delay_ms,
        crowding: 0.25,
        spread: Vec::new(),
        beside: beside.into_iter().map(|(name, factor)| (name, rounded(factor))).collect(),
    };
    (observed, scatter)
}

/// The part of a step's time that it has anyhow, and that of each row, on one core, alone.
fn step_and_row(model: &Model, own: &[&Seen<'_>]) -> (f64, f64) {
    let one = base(model, own, 1, 1);
    let most = own.iter().filter(|seen| seen.step.width == 1).map(|seen| seen.step.rows).max().unwrap_or(1);
    let common = (2..=most).rev().find(|rows| times(own, *rows, 1, |_| true).len() >= STEPS_MIN);
    let Some(rows) = common else {
        // Whether rows share anything was not seen: then they do not.
        return if model.rows_max > 1 { (0.0, one) } else { (one, 0.0) };
    };
    let row = ((base(model, own, rows, 1) - one) / f64::from(rows - 1)).clamp(0.0, one);
    (one - row, row)
}

/// How many times faster on more cores, as the model's exponent of two takes it; `None` if it has one width.
fn wide_gain(model: &Model, own: &[&Seen<'_>]) -> Option<f64> {
    let wide = model.widths.iter().copied().filter(|width| *width > 1).max()?;
    let gain = base(model, own, 1, 1) / base(model, own, 1, wide).max(1e-6);
    Some(gain.powf(1.0 / (wide as f64).log2()).clamp(0.1, 2.0))
}

/// The median time of undisturbed steps of this kind; that of all of them, or what was measured at load, if
/// there are too few.
fn base(model: &Model, own: &[&Seen<'_>], rows: u32, width: usize) -> f64 {
    let alone = times(own, rows, width, |seen| seen.beside_share() < ALONE);
    let any = times(own, rows, width, |_| true);
    let enough = [alone, any].into_iter().find(|times| times.len() >= STEPS_MIN);
    let measured = || {
        let distance = |cost: &&Cost| (cost.width.abs_diff(width), cost.rows.abs_diff(rows), cost.beside);
        model.costs.iter().min_by_key(distance).map_or(1.0, |cost| cost.ms)
    };
    enough.and_then(median).unwrap_or_else(measured)
}

fn times(own: &[&Seen<'_>], rows: u32, width: usize, like: impl Fn(&Seen<'_>) -> bool) -> Vec<f64> {
    let of_kind = own.iter().filter(|seen| (seen.step.rows, seen.step.width) == (rows, width));
    of_kind.filter(|seen| like(seen)).map(|seen| seen.step.real_ms).collect()
}

/// How many times longer beside each model; beside one that was seldom met as beside all of them.
fn beside(own: &[&Seen<'_>], all: &[Seen<'_>], plain: impl Fn(&Seen<'_>) -> f64) -> BTreeMap<String, f64> {
    let ratio = |seen: &&&Seen<'_>| seen.step.real_ms / plain(seen).max(1e-6);
    let factor = |like: &dyn Fn(&Seen<'_>) -> bool| {
        let ratios: Vec<f64> = own.iter().filter(|seen| like(seen)).map(|seen| ratio(&seen)).collect();
        if ratios.len() >= STEPS_MIN { median(ratios) } else { None }
    };
    let usual = factor(&|seen| seen.beside_share() > BESIDE).unwrap_or(1.0);
    let mut names: Vec<&str> = all.iter().map(|seen| seen.step.model.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let of = |name: &&str| {
        let factor = factor(&|seen| seen.share_of(name) > BESIDE).unwrap_or(usual);
        ((*name).to_owned(), factor.clamp(0.5, 10.0))
    };
    names.iter().map(of).collect()
}

/// Zero of nothing.
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, rows_max: u32, widths: &[usize]) -> Model {
        Model {
            model: name.to_owned(),
            objective_ms: Some(50.0),
            priority: 1,
            rows_max,
            delay_ms: 0.0,
            widths: widths.to_vec(),
            costs: vec![Cost { rows: 1, width: 1, beside: 0, ms: 9.0 }],
        }
    }

    fn step(name: &str, core: usize, rows: u32, (began_ms, took_ms): (f64, f64)) -> Step {
        Step {
            model: name.to_owned(),
            cores: core.to_string(),
            width: 1,
            rows,
            began_ms,
            ended_ms: began_ms + took_ms,
            real_ms: took_ms,
        }
    }

    #[test]
    fn costs_neighbours_and_scatter_are_told_apart() {
        let mut steps = Vec::new();
        for index in 0..100 {
            let at = f64::from(index) * 100.0;
            // Alone 10 ms, with a second row 14 ms, and beside the other model half as long again.
            steps.push(step("a", 0, 1, (at, 10.0)));
            steps.push(step("a", 0, 2, (at + 20.0, 14.0)));
            steps.push(step("a", 0, 1, (at + 40.0, 15.0)));
            steps.push(step("b", 1, 1, (at + 40.0, 15.0)));
        }
        assert_eq!(cores(&steps), 2);
        let (observed, unsteady) = observe(&[model("a", 2, &[1]), model("b", 1, &[1])], &steps);
        let a = &observed[0];
        assert!((a.step_ms - 6.0).abs() < 1e-6 && (a.row_ms - 4.0).abs() < 1e-6, "{a:?}");
        assert!((a.beside["b"] - 1.5).abs() < 1e-6, "{a:?}");
        assert!(a.spread.iter().all(|ratio| (ratio - 1.0).abs() < 1e-3), "{a:?}");
        assert!(unsteady.deviation < 1e-3, "{unsteady:?}");
        assert!((observed.iter().map(|model| model.share).sum::<f64>() - 1.0).abs() < 1e-3);
    }

    #[test]
    fn what_successive_steps_have_in_common_is_their_cores() {
        // One core is a third slower every second half second, the other every third; besides, steps scatter.
        let mut steps = Vec::new();
        for index in 0..4_000_u32 {
            let at = f64::from(index) * 15.0;
            for core in [0, 1] {
                let slow = ((at / 500.0) as usize).is_multiple_of(2 + core);
                let own = [0.95, 1.0, 1.05][(index as usize * 7 + core) % 3];
                steps.push(step("a", core, 1, (at, if slow { 12.0 } else { 9.0 } * own)));
            }
        }
        let (observed, unsteady) = observe(&[model("a", 1, &[1])], &steps);
        assert!((0.11..0.16).contains(&unsteady.deviation), "{unsteady:?}");
        assert!((100.0..2_000.0).contains(&unsteady.phase_ms), "{unsteady:?}");
        let spread = &observed[0].spread;
        assert!(spread[QUANTILES - 1] / spread[0] < 1.3, "the cores' part is left out: {spread:?}");
    }

    #[test]
    fn what_was_not_seen_is_what_was_measured_at_load() {
        let steps = [step("a", 0, 1, (0.0, 10.0))];
        let unseen = &observe(&[model("b", 1, &[1, 2])], &steps).0[0];
        assert_eq!((unseen.step_ms, unseen.row_ms, unseen.wide_gain), (9.0, 0.0, Some(1.0)));
        assert!(unseen.spread.is_empty());
    }
}
