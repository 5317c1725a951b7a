//! What was predicted of steps and what was real: how far off the predictions were, and how far off the best
//! constants would have been that are fitted on the same steps afterwards.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Steps that are shorter are not judged: what the machine does besides outweighs them.
const JUDGED_FROM_MS: f64 = 1.0;
/// Constants that are tried for a group of steps, taken at even distances from its sorted times.
const TRIED: usize = 201;

/// A step as `quadrant observe --log-steps` writes it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Step {
    pub(super) model: String,
    rows: u32,
    width: usize,
    beside: Option<String>,
    pub(super) began_ms: f64,
    predicted_ms: f64,
    real_ms: f64,
}

/// Median absolute errors, as shares of the real time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Errors {
    pub(super) steps: usize,
    pub(super) predicted: f64,
    /// With the best constant for each model, number of rows, width and neighbour.
    pub(super) constant: f64,
}

/// The errors of these steps.
pub(super) fn errors(steps: &[Step]) -> Errors {
    let judged: Vec<&Step> = steps.iter().filter(|step| step.real_ms > JUDGED_FROM_MS).collect();
    let mut groups: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for step in &judged {
        let key = (&step.model, step.rows, step.width, &step.beside);
        groups.entry(key).or_default().push(step.real_ms);
    }
    let constants: Vec<f64> = groups.values().flat_map(|times| with_best_constant(times)).collect();
    let predicted = judged.iter().map(|step| (step.predicted_ms / step.real_ms - 1.0).abs()).collect();
    Errors { steps: judged.len(), predicted: median(predicted), constant: median(constants) }
}

/// The errors of a group with the constant that makes their median the smallest.
fn with_best_constant(times: &[f64]) -> Vec<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let tried = TRIED.min(sorted.len());
    let candidate = |index: usize| sorted[index * (sorted.len() - 1) / (tried - 1).max(1)];
    let errors = |constant: f64| times.iter().map(|time| (constant / time - 1.0).abs()).collect::<Vec<f64>>();
    let of = |constant: f64| (median(errors(constant)), constant);
    let best = (0..tried).map(candidate).map(of).min_by(|one, other| one.0.total_cmp(&other.0));
    best.map_or_else(Vec::new, |(_, constant)| errors(constant))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(model: &str, predicted_ms: f64, real_ms: f64) -> Step {
        let (rows, width, beside, began_ms) = (1, 1, None, 0.0);
        Step { model: model.to_owned(), rows, width, beside, began_ms, predicted_ms, real_ms }
    }

    #[test]
    fn the_best_constant_is_told_apart_by_model() {
        let steps: Vec<Step> = (0..100)
            .flat_map(|index| {
                let scatter = 1.0 + f64::from(index % 5 - 2) / 50.0;
                [step("a", 12.0, 10.0 * scatter), step("b", 50.0, 50.0 * scatter), step("c", 0.5, 0.1)]
            })
            .collect();
        let errors = errors(&steps);
        assert_eq!(errors.steps, 200);
        assert!((errors.constant - 0.02).abs() < 0.005, "{errors:?}");
        assert!(errors.predicted > errors.constant, "{errors:?}");
    }
}
