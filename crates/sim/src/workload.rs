//! The traffic of a scenario as a list of requests.
//!
//! Drawn in full before the run begins: what clients do does not depend on what the server does, which
//! is what makes the load open-loop. Ids are given in the order in which the scheduler hears of them.

use std::sync::Arc;
use std::time::Duration;

use quadrant_types::{
    ModelId, Objective, PageHash, Priority, Request, RequestId, ShapeId, TenantId, Time, Work,
};

use crate::{Arrivals, GenerationPlan, Scenario, Traffic};

/// A request, and what only the simulator knows of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) request: Request,
    /// When the scheduler hears of it.
    pub(crate) submitted: Time,
    /// When its client leaves.
    pub(crate) leaves: Option<Time>,
    /// Every step with it fails.
    pub(crate) poisoned: bool,
    /// Every step with it stalls.
    pub(crate) stalling: bool,
    /// Tokens of its answer, if it generates,
    pub(crate) new_tokens: u32,
    /// and with whom it has how many tokens in common at the beginning of its prompt.
    pub(crate) prefix: (u64, u32),
}

impl Sent {
    /// What tells the whole pages of its prompt from others.
    pub(crate) fn page_hashes(&self, page_tokens: u32) -> Arc<[PageHash]> {
        let (group, shared) = self.prefix;
        let hash = |page: u32| {
            let is_shared = (page + 1) * page_tokens <= shared;
            let whose =
                if is_shared { u128::from(group) << 1 } else { u128::from(self.request.id.0) << 1 | 1 };
            PageHash(whose << 32 | u128::from(page))
        };
        (0..self.request.work.rows() / page_tokens.max(1)).map(hash).collect()
    }
}

/// Every request of the scenario; the index is its id.
pub(crate) fn draw(scenario: &Scenario, random: &mut fastrand::Rng) -> Vec<Sent> {
    let mut all = Vec::new();
    for (model, plan) in (0..).map(ModelId).zip(&scenario.models) {
        for traffic in &plan.traffic {
            let times = arrival_times(&traffic.arrivals, random);
            let group = all.len() as u64;
            for (index, arrived) in times.into_iter().enumerate() {
                let sent = send(model, traffic, arrived, random);
                all.push(match &traffic.generation {
                    None => sent,
                    Some(generation) => generating(sent, generation, (group, index)),
                });
            }
        }
    }
    // Sorted by index, because what is sorted is large.
    let mut order: Vec<(Time, usize)> = all.iter().map(|sent| sent.submitted).zip(0..).collect();
    order.sort();
    let mut sorted: Vec<Sent> = order.into_iter().map(|(_, index)| all[index]).collect();
    for (id, sent) in (0..).map(RequestId).zip(&mut sorted) {
        sent.request.id = id;
    }
    sorted
}

fn send(model: ModelId, traffic: &Traffic, arrived: Time, random: &mut fastrand::Rng) -> Sent {
    let rows = traffic.rows.draw(random);
    let submitted = arrived + traffic.submit_delay.draw(random);
    let objective = match traffic.objective {
        None => Objective::BestEffort,
        Some(range) if traffic.hard => Objective::EndBy(arrived + range.draw(random)),
        Some(range) => Objective::Target { by: arrived + range.draw(random), until: Time::MAX },
    };
    let leaves = random.f64() < traffic.leaves;
    let leaves_after = traffic.leaves_after.draw(random);
    Sent {
        request: Request {
            id: RequestId::default(),
            model,
            tenant: TenantId(traffic.tenant),
            priority: Priority(traffic.priority.draw(random)),
            arrived,
            objective,
            work: Work::Once {
                rows,
                shape: ShapeId(random.u32(0..traffic.shapes.max(1))),
                bytes_in: u64::from(rows) * traffic.row_bytes,
            },
        },
        submitted,
        leaves: leaves.then(|| submitted + leaves_after),
        poisoned: random.f64() < traffic.poisoned,
        stalling: random.f64() < traffic.stalling,
        new_tokens: 0,
        prefix: (0, 0),
    }
}

/// The same for tokens instead of rows: the request of this index among those of its group.
fn generating(sent: Sent, plan: &GenerationPlan, (group, index): (u64, usize)) -> Sent {
    let (prompt, new_max) = plan.lengths[index % plan.lengths.len()];
    let request = sent.request;
    let objective = match request.objective {
        Objective::Target { by, until } => Objective::Tokens { first_by: by, each: plan.each, until },
        other @ (Objective::BestEffort | Objective::EndBy(_) | Objective::Tokens { .. }) => other,
    };
    let work = Work::Generate { prompt, new_max, bytes_in: request.work.bytes_in() };
    Sent {
        request: Request { objective, work, ..request },
        new_tokens: new_max,
        prefix: (group, plan.shared_prefix),
        ..sent
    }
}

fn arrival_times(arrivals: &Arrivals, random: &mut fastrand::Rng) -> Vec<Time> {
    match *arrivals {
        Arrivals::At(ref times) => times.clone(),
        Arrivals::Constant { start, every, count } => {
            (0..count).map(|index| start + every.saturating_mul(as_u32(index))).collect()
        }
        Arrivals::Poisson { start, mean, count } => {
            let mut time = start;
            let next = |_| {
                time = time + exponential(mean, random);
                time
            };
            (0..count).map(next).collect()
        }
        Arrivals::Bursts { start, every, size, count } => {
            let group = |index: usize| as_u32(index / size.max(1));
            (0..count).map(|index| start + every.saturating_mul(group(index))).collect()
        }
    }
}

/// Exponentially distributed, with this mean.
pub(crate) fn exponential(mean: Duration, random: &mut fastrand::Rng) -> Duration {
    // `f64()` is below 1, so the logarithm's argument is above 0.
    mean.mul_f64(-(1.0 - random.f64()).ln())
}

fn as_u32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn times(arrivals: &Arrivals) -> Vec<u64> {
        let times = arrival_times(arrivals, &mut fastrand::Rng::with_seed(1));
        times.into_iter().map(|time| time.as_nanos() / 1_000_000).collect()
    }

    #[test]
    fn arrivals_follow_their_kind() {
        let start = Time::ZERO + MS;
        assert_eq!(times(&Arrivals::Constant { start, every: 2 * MS, count: 3 }), [1, 3, 5]);
        assert_eq!(times(&Arrivals::Bursts { start, every: 2 * MS, size: 2, count: 5 }), [1, 1, 3, 3, 5]);
        let poisson = times(&Arrivals::Poisson { start, mean: 10 * MS, count: 10_000 });
        let mean_ms = poisson[9_999] as f64 / 10_000.0;
        assert!((9.7..10.3).contains(&mean_ms), "{mean_ms}");
    }
}
