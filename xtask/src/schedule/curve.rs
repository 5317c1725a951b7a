//! Attainment over load: the figures that are read off a curve.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// The share of requests in time that a load must reach to count as served.
const SERVED: f64 = 0.99;
/// Resamples of a bootstrap interval.
const RESAMPLES: usize = 10_000;

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Point {
    pub(super) load: f64,
    /// The attainment of the model that fared worst.
    pub(super) worst: f64,
    /// Answers in time per second.
    pub(super) goodput: f64,
    /// Of the requests that were not refused, the share answered in time.
    pub(super) kept: f64,
    /// From the last byte of a request to its refusal, 99th percentile in milliseconds.
    pub(super) refusal_p99_ms: f64,
    /// Each model's attainment,
    pub(super) attainment: BTreeMap<String, f64>,
    /// and its median and 99th percentile latency of the answers, in milliseconds.
    pub(super) latency_ms: BTreeMap<String, (f64, f64)>,
}

impl Point {
    pub(super) fn mean_attainment(&self) -> f64 {
        self.attainment.values().sum::<f64>() / self.attainment.len().max(1) as f64
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worst, goodput, kept, refusal_p99_ms, .. } = self;
        write!(
            f,
            "worst {worst:.4}, {goodput:.1}/s in time, admitted {kept:.4}, refusal p99 {refusal_p99_ms:.2} ms ["
        )?;
        for (index, (name, attainment)) in self.attainment.iter().enumerate() {
            let (p50, p99) = self.latency_ms.get(name).copied().unwrap_or_default();
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{name} {attainment:.3} {p50:.1}/{p99:.1}")?;
        }
        f.write_str("]")
    }
}

/// The highest load that is served, between two loads by linear interpolation. If not even the first is, it
/// counts all the same, so that a ratio to it is rather too small: see [`misses_first`]. Beyond the last load
/// nothing is served.
pub(super) fn knee(points: &[Point]) -> f64 {
    let mut before: Option<&Point> = None;
    for point in points {
        if point.worst < SERVED {
            let Some(Point { load, worst, .. }) = before else { return point.load };
            let share = (worst - SERVED) / (worst - point.worst).max(1e-12);
            return load + share * (point.load - load);
        }
        before = Some(point);
    }
    before.map_or(0.0, |last| last.load)
}

/// Whether not even the first load is served, so that the knee is at most there.
pub(super) fn misses_first(points: &[Point]) -> bool {
    points.first().is_some_and(|point| point.worst < SERVED)
}

/// The area under the curve, by trapezoids.
pub(super) fn area(points: &[Point]) -> f64 {
    let trapezoid =
        |pair: &[Point]| (pair[1].load - pair[0].load) * f64::midpoint(pair[0].worst, pair[1].worst);
    points.windows(2).map(trapezoid).sum()
}

/// The interval that holds 95 % of the medians of resamples (percentile bootstrap, Efron 1979).
pub(super) fn bootstrap(values: &[f64], seed: u64) -> (f64, f64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut sample: Vec<f64> = values.iter().map(|_| values[random.usize(0..values.len())]).collect();
            sample.sort_by(f64::total_cmp);
            crate::measure::median(&sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (medians[RESAMPLES / 40], medians[RESAMPLES - RESAMPLES / 40 - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(worst: &[(f64, f64)]) -> Vec<Point> {
        let point = |(load, worst): &(f64, f64)| Point {
            load: *load,
            worst: *worst,
            goodput: 0.0,
            kept: 1.0,
            refusal_p99_ms: 0.0,
            attainment: BTreeMap::new(),
            latency_ms: BTreeMap::new(),
        };
        worst.iter().map(point).collect()
    }

    #[test]
    fn the_knee_lies_between_loads() {
        assert!((knee(&points(&[(0.4, 1.0), (0.6, 0.98)])) - 0.5).abs() < 1e-9);
        assert!((knee(&points(&[(0.4, 0.98)])) - 0.4).abs() < 1e-9);
        assert!(misses_first(&points(&[(0.4, 0.98)])) && !misses_first(&points(&[(0.4, 0.99)])));
        assert!((knee(&points(&[(0.4, 1.0), (0.6, 0.995)])) - 0.6).abs() < 1e-9);
        // What comes back after a miss does not count.
        assert!(knee(&points(&[(0.4, 1.0), (0.6, 0.5), (0.8, 1.0)])) < 0.5);
    }

    #[test]
    fn the_area_is_the_mean_times_the_width() {
        assert!((area(&points(&[(0.0, 1.0), (0.5, 1.0), (1.0, 0.0)])) - 0.75).abs() < 1e-9);
    }

    #[test]
    fn a_bootstrap_interval_covers_the_values_it_was_made_of() {
        let (low, high) = bootstrap(&[1.0, 2.0, 3.0], 1);
        assert!((low - 1.0).abs() < 1e-9 && (high - 3.0).abs() < 1e-9);
        assert_eq!(bootstrap(&[5.0; 4], 1), (5.0, 5.0));
    }
}
