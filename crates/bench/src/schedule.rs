//! When requests are sent in an open loop: a sequence of times, fixed by the seed.

use std::time::Duration;

use crate::plan::Arrivals;
use crate::{BenchError, Plan};

/// Intended send times from the start of the run, ascending, without end.
#[derive(Debug)]
pub(crate) struct Schedule {
    kind: Kind,
    next_s: f64,
}

#[derive(Debug)]
enum Kind {
    Constant { interval_s: f64 },
    Poisson(PoissonTimes),
    Trace { times_s: Vec<f64>, models: Vec<usize>, index: usize, lap_s: f64 },
}

impl Schedule {
    /// The schedule of an open loop; `None` for a closed one.
    pub(crate) fn new(plan: &Plan) -> Option<Self> {
        let kind = match &plan.arrivals {
            Arrivals::Closed { .. } => return None,
            Arrivals::Constant { rate } => Kind::Constant { interval_s: 1.0 / rate },
            Arrivals::Poisson { rate } => Kind::Poisson(PoissonTimes::new(*rate, plan.seed)),
            Arrivals::Trace { times_ms, models, speed } => {
                let times_s: Vec<f64> = times_ms.iter().map(|time| time / 1e3 / speed).collect();
                // A lap ends one mean interval after its last arrival.
                let last = times_s.last().copied().unwrap_or(0.0);
                let lap_s = last + (last / times_s.len() as f64).max(1e-3);
                Kind::Trace { times_s, models: models.clone(), index: 0, lap_s }
            }
        };
        Some(Self { kind, next_s: 0.0 })
    }
}

/// Poisson-distributed times of so many a second, without end.
#[derive(Debug)]
pub struct PoissonTimes {
    rate: f64,
    random: fastrand::Rng,
    at_s: f64,
}

impl PoissonTimes {
    /// Those of a seed; `rate` is above 0.
    pub fn new(rate: f64, seed: u64) -> Self {
        Self { rate, random: fastrand::Rng::with_seed(seed), at_s: 0.0 }
    }
}

impl Iterator for PoissonTimes {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        // The inverse of the exponential distribution; `1 - x` is never 0.
        self.at_s += -(1.0 - self.random.f64()).ln() / self.rate;
        Some(Duration::from_secs_f64(self.at_s))
    }
}

impl Iterator for Schedule {
    /// When, and for which model if that is given.
    type Item = (Duration, Option<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let mut model = None;
        let at_s = match &mut self.kind {
            Kind::Constant { interval_s } => {
                let at = self.next_s;
                self.next_s += *interval_s;
                at
            }
            Kind::Poisson(times) => return times.next().map(|at| (at, None)),
            Kind::Trace { times_s, models, index, lap_s } => {
                let at = self.next_s + times_s[*index];
                model = models.get(*index).copied();
                *index += 1;
                if *index == times_s.len() {
                    *index = 0;
                    self.next_s += *lap_s;
                }
                at
            }
        };
        Some((Duration::from_secs_f64(at_s), model))
    }
}

/// Arrivals by time, with the name of the model if the trace has one for each.
pub type Trace = Vec<(f64, Option<String>)>;

/// A trace: a CSV file with a column `arrival_ms` and, if requests are for certain models, a column `model`.
///
/// # Errors
/// If the file cannot be read or is not of this form.
pub fn read_trace(path: &str) -> Result<Trace, BenchError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| BenchError::File { path: path.to_owned(), source })?;
    parse_trace(&text).map_err(|reason| BenchError::Plan(format!("trace `{path}`: {reason}")))
}

fn parse_trace(text: &str) -> Result<Trace, String> {
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let header = lines.next().ok_or("the file is empty")?;
    let position = |wanted| header.split(',').position(|name| name.trim() == wanted);
    let (column, model_column) = (position("arrival_ms"), position("model"));
    let column = column.ok_or_else(|| format!("no column `arrival_ms` in `{header}`"))?;
    let mut times = Vec::new();
    for (index, line) in lines.enumerate() {
        let time = line.split(',').nth(column).and_then(|cell| cell.trim().parse::<f64>().ok());
        let time = time.filter(|time| time.is_finite() && *time >= 0.0);
        let time = time.ok_or_else(|| format!("no time in row {}: `{line}`", index + 1))?;
        let model =
            model_column.map(|column| line.split(',').nth(column).unwrap_or_default().trim().to_owned());
        times.push((time, model));
    }
    times.sort_by(|one, other| one.0.total_cmp(&other.0));
    if times.is_empty() { Err("the trace has no arrivals".to_owned()) } else { Ok(times) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Encoding, Length, Protocol};

    fn times(arrivals: Arrivals, seed: u64, count: usize) -> Vec<f64> {
        let plan = Plan {
            protocol: Protocol::Http,
            address: String::new(),
            mix: vec![],
            encoding: Encoding::Binary,
            arrivals,
            length: Length::Requests(1),
            warmup: Duration::ZERO,
            outstanding_max: 1,
            timeout: None,
            tenant: None,
            api_key: None,
            tries_first: true,
            seed,
        };
        Schedule::new(&plan).unwrap().take(count).map(|(time, _)| time.as_secs_f64()).collect()
    }

    #[test]
    fn constant_arrivals_are_even() {
        let times = times(Arrivals::Constant { rate: 4.0 }, 0, 3);
        assert_eq!(times, [0.0, 0.25, 0.5]);
    }

    #[test]
    fn poisson_arrivals_have_the_mean_and_the_spread_and_follow_the_seed() {
        let arrivals = Arrivals::Poisson { rate: 100.0 };
        let first = times(arrivals.clone(), 1, 10_000);
        assert_eq!(first, times(arrivals.clone(), 1, 10_000));
        assert_ne!(first, times(arrivals, 2, 10_000));
        let gaps: Vec<f64> = first.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.01).abs() < 0.0005, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{variance}");
    }

    #[test]
    fn poisson_times_have_their_rate() {
        let times: Vec<Duration> = PoissonTimes::new(100.0, 1).take(10_000).collect();
        assert!(times.is_sorted());
        assert!((times[9_999].as_secs_f64() - 100.0).abs() < 5.0, "{:?}", times[9_999]);
        assert_ne!(times[0], PoissonTimes::new(100.0, 2).next().unwrap());
    }

    #[test]
    fn a_trace_is_scaled_and_repeated() {
        let trace = Arrivals::Trace { times_ms: vec![0.0, 100.0, 300.0], models: vec![], speed: 2.0 };
        let times = times(trace, 0, 5);
        assert_eq!(times[..3], [0.0, 0.05, 0.15]);
        assert!((times[3] - 0.2).abs() < 1e-9 && (times[4] - 0.25).abs() < 1e-9, "{times:?}");
        assert_eq!(parse_trace("a,arrival_ms\n1,50\n2,20\n"), Ok(vec![(20.0, None), (50.0, None)]));
        let named = parse_trace("arrival_ms,model\n5,m\n").unwrap();
        assert_eq!(named, [(5.0, Some("m".to_owned()))]);
        assert!(parse_trace("a,b\n1,2\n").unwrap_err().contains("no column"));
        assert!(parse_trace("arrival_ms\nx\n").unwrap_err().contains("row 1"));
    }
}
