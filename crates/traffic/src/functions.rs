//! Recorded calls of serverless functions, replayed as requests for models.
//!
//! A trace has the calls of each function in each minute. Functions are dealt to models by seed, the counts
//! of a model's functions are added up, and within a minute arrivals are a Poisson process: the replay rule
//! of AlpaServe (Li et al., OSDI 2023, section 6.1) and Shepherd (Zhang et al., NSDI 2023). Two numbers
//! scale it: the mean rate of each model, and how much of the original's unevenness is kept.

use std::time::Duration;

use crate::TrafficError;
use crate::process::exponential;

/// Columns before the counts.
const NAME_COLUMNS: usize = 4;
/// A function with fewer calls a minute on average says little about its rate in any of them.
const MEAN_CALLS_MIN: f64 = 10.0;

/// The calls of each function in each minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionTrace {
    functions: Vec<Vec<u32>>,
    minutes: usize,
}

/// How a trace is turned into a load.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// Requests per second of each model, in the mean over the whole run.
    pub rates: Vec<f64>,
    /// How long requests come.
    pub length: Duration,
    /// How long a minute of the trace lasts in the run.
    pub minute: Duration,
    /// How much of the counts' deviation from their mean is kept: 1 is the original, 0 is even.
    pub burstiness: f64,
    /// Deals the functions, chooses the window of the trace, and places the arrivals.
    pub seed: u64,
}

impl FunctionTrace {
    /// The trace that comes with this crate; see `traces/README.md`.
    pub fn azure_2019() -> Self {
        Self::parse(include_str!("../traces/azure_functions_2019.csv")).expect("tested")
    }

    /// Reads the form of the Azure Functions trace: a header, then for each function three hashes, a trigger,
    /// and the calls of each minute.
    ///
    /// # Errors
    /// The first line that is not of this form.
    pub fn parse(text: &str) -> Result<Self, TrafficError> {
        let mut lines = text.lines().enumerate();
        let fail = |index: usize, reason: String| TrafficError::Trace { line: index + 1, reason };
        let header = lines.next().map_or(0, |(_, header)| header.split(',').count());
        let minutes = header.saturating_sub(NAME_COLUMNS);
        if minutes == 0 {
            return Err(fail(0, "there is no header with a column for each minute".to_owned()));
        }
        let function = |(index, line): (usize, &str)| {
            let counts: Vec<&str> = line.split(',').skip(NAME_COLUMNS).collect();
            if counts.len() != minutes {
                return Err(fail(index, format!("`{}` counts instead of `{minutes}`", counts.len())));
            }
            let count = |text: &&str| {
                text.trim().parse().map_err(|_| fail(index, format!("`{text}` is not a number of calls")))
            };
            counts.iter().map(count).collect::<Result<Vec<u32>, _>>()
        };
        let functions = lines.filter(|(_, line)| !line.trim().is_empty()).map(function);
        Ok(Self { functions: functions.collect::<Result<_, _>>()?, minutes })
    }

    /// The arrivals of each model, ascending.
    ///
    /// # Errors
    /// If there are fewer usable functions than models, or a number makes no sense.
    pub fn replay(&self, replay: &Replay) -> Result<Vec<Vec<Duration>>, TrafficError> {
        let invalid = |reason: &str| Err(TrafficError::Invalid(reason.to_owned()));
        if replay.rates.iter().any(|rate| !rate.is_finite() || *rate <= 0.0) {
            return invalid("every rate must be above 0");
        }
        if replay.minute.is_zero() || replay.length.is_zero() || !(0.0..=100.0).contains(&replay.burstiness) {
            return invalid("`minute` and `length` must be above 0, and `burstiness` from 0 to 100");
        }
        let mean = |counts: &[u32]| f64::from(counts.iter().sum::<u32>()) / self.minutes as f64;
        let mut usable: Vec<&[u32]> = self.functions.iter().map(Vec::as_slice).collect();
        usable.retain(|counts| mean(counts) >= MEAN_CALLS_MIN);
        if usable.len() < replay.rates.len() {
            let (models, functions) = (replay.rates.len(), usable.len());
            return Err(TrafficError::Invalid(format!(
                "`{functions}` functions are too few for `{models}` models"
            )));
        }
        let mut random = fastrand::Rng::with_seed(replay.seed);
        random.shuffle(&mut usable);
        let window = (replay.length.as_secs_f64() / replay.minute.as_secs_f64()).ceil() as usize;
        let first = random.usize(0..self.minutes.saturating_sub(window).max(1));
        let models = replay.rates.len();
        let stream = |(index, rate): (usize, &f64)| {
            let dealt = || usable.iter().skip(index).step_by(models);
            let calls =
                |minute: usize| dealt().map(|counts| f64::from(counts[minute % self.minutes])).sum::<f64>();
            let counts: Vec<f64> = (first..first + window).map(calls).collect();
            place(&counts, *rate, replay, &mut random)
        };
        Ok(replay.rates.iter().enumerate().map(stream).collect())
    }
}

/// Poisson arrivals whose rate follows the counts, with this mean over the window.
fn place(counts: &[f64], rate: f64, replay: &Replay, random: &mut fastrand::Rng) -> Vec<Duration> {
    let mean = (counts.iter().sum::<f64>() / counts.len() as f64).max(f64::MIN_POSITIVE);
    let levels: Vec<f64> =
        counts.iter().map(|count| (1.0 + replay.burstiness * (count / mean - 1.0)).max(0.0)).collect();
    let level = (levels.iter().sum::<f64>() / levels.len() as f64).max(f64::MIN_POSITIVE);
    let minute = replay.minute.as_secs_f64();
    let (mut times, mut left) = (Vec::new(), exponential(random));
    // Exponential distances are used up at the rate of the minute they pass through.
    for (index, of_minute) in levels.iter().enumerate() {
        let per_second = rate * of_minute / level;
        let (mut at, end) = (index as f64 * minute, (index + 1) as f64 * minute);
        while per_second > 0.0 && at + left / per_second < end {
            at += left / per_second;
            if at >= replay.length.as_secs_f64() {
                return times;
            }
            times.push(Duration::from_secs_f64(at));
            left = exponential(random);
        }
        left -= (end - at) * per_second;
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(burstiness: f64, seed: u64) -> Vec<Vec<Duration>> {
        let length = Duration::from_secs(240);
        let rates = vec![100.0, 40.0, 10.0];
        let replay = Replay { rates, length, minute: Duration::from_secs(1), burstiness, seed };
        FunctionTrace::azure_2019().replay(&replay).unwrap()
    }

    #[test]
    fn every_model_has_its_rate() {
        for (times, rate) in replay(1.0, 3).iter().zip([100.0, 40.0, 10.0]) {
            let have = times.len() as f64 / 240.0;
            assert!((have / rate - 1.0).abs() < 0.08, "{have} instead of {rate}");
            assert!(times.is_sorted());
        }
    }

    #[test]
    fn burstiness_scales_the_unevenness_and_a_seed_means_one_load() {
        let dispersion = |times: &[Duration]| {
            let mut counts = vec![0.0_f64; 240];
            times.iter().for_each(|time| counts[time.as_secs() as usize] += 1.0);
            let mean = counts.iter().sum::<f64>() / 240.0;
            counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / 240.0 / mean
        };
        let (even, bursty) = (replay(0.0, 5), replay(3.0, 5));
        let sum = |load: &[Vec<Duration>]| load.iter().map(|times| dispersion(times)).sum::<f64>();
        assert!((sum(&even) / 3.0 - 1.0).abs() < 0.3, "{}", sum(&even));
        assert!(sum(&bursty) > 1.5 * sum(&even), "{} {}", sum(&bursty), sum(&even));
        assert_eq!(replay(1.0, 7), replay(1.0, 7));
        assert_ne!(replay(1.0, 7), replay(1.0, 8));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let parse = |text| FunctionTrace::parse(text).unwrap_err().to_string();
        assert_eq!(parse(""), "trace, line `1`: there is no header with a column for each minute");
        assert_eq!(parse("a,b,c,d,1,2\nx,y,z,t,1\n"), "trace, line `2`: `1` counts instead of `2`");
        assert_eq!(parse("a,b,c,d,1\nx,y,z,t,-1\n"), "trace, line `2`: `-1` is not a number of calls");
        let tiny = FunctionTrace::parse("a,b,c,d,1\nx,y,z,t,99\n").unwrap();
        let two = Replay {
            rates: vec![1.0, 1.0],
            length: Duration::from_secs(1),
            minute: Duration::from_secs(1),
            burstiness: 1.0,
            seed: 0,
        };
        assert!(tiny.replay(&two).unwrap_err().to_string().contains("too few"));
    }
}
