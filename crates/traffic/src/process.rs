//! Random arrival processes of a constant mean rate.

use std::time::Duration;

use crate::TrafficError;

/// How the distances between arrivals are distributed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Process {
    /// All equal.
    Constant,
    /// Exponentially: arrivals know nothing of each other.
    Poisson,
    /// By a gamma distribution; a coefficient of variation above 1 makes bursts.
    Gamma {
        /// The standard deviation of a distance over its mean.
        cv: f64,
    },
}

/// Arrivals at `rate` per second until `length`, ascending.
///
/// # Errors
/// If the rate or the coefficient of variation is not a positive number.
pub fn arrivals(
    process: Process,
    rate: f64,
    length: Duration,
    seed: u64,
) -> Result<Vec<Duration>, TrafficError> {
    let positive = |number: f64| number.is_finite() && number > 0.0;
    let cv = match process {
        Process::Gamma { cv } => cv,
        Process::Constant | Process::Poisson => 1.0,
    };
    if !positive(rate) || !positive(cv) {
        return Err(TrafficError::Invalid(format!(
            "a rate and a cv must be above 0, not `{rate}` and `{cv}`"
        )));
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut at, mut times) = (0.0, Vec::new());
    loop {
        at += match process {
            Process::Constant => 1.0,
            Process::Poisson => exponential(&mut random),
            Process::Gamma { cv } => gamma(1.0 / (cv * cv), &mut random) * cv * cv,
        } / rate;
        if at >= length.as_secs_f64() {
            return Ok(times);
        }
        times.push(Duration::from_secs_f64(at));
    }
}

/// With mean 1. `f64()` is below 1, so the logarithm's argument is above 0.
pub(crate) fn exponential(random: &mut fastrand::Rng) -> f64 {
    -(1.0 - random.f64()).ln()
}

/// With this shape and scale 1 (Marsaglia and Tsang, ACM TOMS 26, 2000).
fn gamma(shape: f64, random: &mut fastrand::Rng) -> f64 {
    if shape < 1.0 {
        return gamma(shape + 1.0, random) * (1.0 - random.f64()).powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(random);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - random.f64()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

/// A standard normal draw, by Box and Muller.
fn normal(random: &mut fastrand::Rng) -> f64 {
    let (first, second) = (1.0 - random.f64(), random.f64());
    (-2.0 * first.ln()).sqrt() * (std::f64::consts::TAU * second).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distances(process: Process) -> (f64, f64) {
        let times = arrivals(process, 50.0, Duration::from_secs(1_000), 1).unwrap();
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn processes_have_their_mean_and_spread() {
        let cases = [
            (Process::Constant, 0.0),
            (Process::Poisson, 1.0),
            (Process::Gamma { cv: 0.5 }, 0.5),
            (Process::Gamma { cv: 3.0 }, 3.0),
        ];
        for (process, expect) in cases {
            let (mean, cv) = distances(process);
            assert!((mean * 50.0 - 1.0).abs() < 0.04, "{process:?}: mean {mean}");
            assert!((cv - expect).abs() < 0.05 * expect.max(0.1), "{process:?}: cv {cv}");
        }
    }

    #[test]
    fn a_seed_means_one_load() {
        let of = |seed| arrivals(Process::Poisson, 9.0, Duration::from_secs(9), seed).unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert!(arrivals(Process::Poisson, 0.0, Duration::from_secs(1), 1).is_err());
        assert!(arrivals(Process::Gamma { cv: f64::NAN }, 1.0, Duration::from_secs(1), 1).is_err());
    }
}
