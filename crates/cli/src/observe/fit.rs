//! From a log of steps to what the simulated device obeys: the cost of a step and of each row, the gain of
//! more cores, how much longer it takes beside each other model, and how its time scatters around that.
//!
//! Everything is a median, so that a few disturbed steps change nothing; what was not seen often enough falls
//! back on what was measured when the model was loaded, or on no effect.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Steps without which a figure is not taken from them.
const STEPS_MIN: usize = 8;
/// A step ran alone if something else ran for less than this share of it,
const ALONE: f64 = 0.1;
/// and beside a model if that ran for more than this share.
const BESIDE: f64 = 0.6;
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

/// What the steps show of each model that the server has.
pub(super) fn observe(models: &[Model], steps: &[Step]) -> Vec<Observed> {
    let seen = neighbours(steps);
    let all = core_ms(steps.iter()).max(1e-9);
    models.iter().map(|model| of_model(model, &seen, all)).collect()
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

fn of_model(model: &Model, all: &[Seen<'_>], all_core_ms: f64) -> Observed {
    let own: Vec<&Seen<'_>> = all.iter().filter(|seen| seen.step.model == model.model).collect();
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
    let mut ratios: Vec<f64> = own.iter().map(|seen| seen.step.real_ms / usual(seen).max(1e-6)).collect();
    ratios.sort_by(f64::total_cmp);
    let quantile = |index: usize| rounded(ratios[index * (ratios.len() - 1) / (QUANTILES - 1)]);
    let enough = ratios.len() >= QUANTILES;
    let spread = if enough { (0..QUANTILES).map(quantile).collect() } else { Vec::new() };
    Observed {
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
        spread,
        beside: beside.into_iter().map(|(name, factor)| (name, rounded(factor))).collect(),
    }
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
        let observed = observe(&[model("a", 2, &[1]), model("b", 1, &[1])], &steps);
        let a = &observed[0];
        assert!((a.step_ms - 6.0).abs() < 1e-6 && (a.row_ms - 4.0).abs() < 1e-6, "{a:?}");
        assert!((a.beside["b"] - 1.5).abs() < 1e-6, "{a:?}");
        assert!(a.spread.iter().all(|ratio| (ratio - 1.0).abs() < 1e-3), "{a:?}");
        assert!((observed.iter().map(|model| model.share).sum::<f64>() - 1.0).abs() < 1e-3);
    }

    #[test]
    fn what_was_not_seen_is_what_was_measured_at_load() {
        let steps = [step("a", 0, 1, (0.0, 10.0))];
        let unseen = &observe(&[model("b", 1, &[1, 2])], &steps)[0];
        assert_eq!((unseen.step_ms, unseen.row_ms, unseen.wide_gain), (9.0, 0.0, Some(1.0)));
        assert!(unseen.spread.is_empty());
    }
}
