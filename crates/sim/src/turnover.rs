//! More models than memory: the shipped scheduler loads and evicts, and is compared with one that knows the
//! future.
//!
//! The clairvoyant evicts, greedily, what is next asked for latest for what it costs: the distance of the
//! next request times the bytes, over the time to load. (Without sizes and costs that is Belady's MIN, 1966.)
//! It knows nothing of queues: requests are served in the order in which they came.

use std::time::Duration;

use quadrant_policy::{
    Cost, Discipline, Eviction, Holding, LaneShape, Limits, MemoryBudget, ModelTerms, Residency, Unmet,
};
use quadrant_types::{CoreSet, LaneId, SchedulingClass, Time};

use crate::{
    Arrivals, Faults, ModelPlan, Report, Scenario, Traffic, Truth, Unsteady, Violation, run_unchecked,
};

/// A model of which there is not always room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Bytes that it takes.
    pub bytes: u64,
    /// How long it takes to load.
    pub load_time: Duration,
    /// How long a request takes on one core.
    pub step_time: Duration,
}

/// Models, and requests for them, each the index of its model.
#[derive(Clone, Debug)]
pub struct Crowd {
    /// The models.
    pub guests: Vec<Guest>,
    /// Who is asked for, in order.
    pub requests: Vec<(Time, usize)>,
    /// Bytes for models.
    pub room: u64,
}

impl Crowd {
    /// How long a clairvoyant spends on loading, in all.
    ///
    /// # Panics
    /// If a model does not fit into the room by itself.
    pub fn clairvoyant(&self) -> Duration {
        let next = self.next_uses();
        let mut next_of = vec![usize::MAX; self.guests.len()];
        let mut inside: Vec<usize> = Vec::new();
        let (mut taken, mut loading) = (0, Duration::ZERO);
        for (at, (_, model)) in self.requests.iter().enumerate() {
            next_of[*model] = next[at];
            if inside.contains(model) {
                continue;
            }
            let guest = self.guests[*model];
            assert!(guest.bytes <= self.room, "a model fits into the room by itself");
            while taken + guest.bytes > self.room {
                let regret = |model: &usize| {
                    let Guest { bytes, load_time, .. } = self.guests[*model];
                    (next_of[*model] - at) as f64 * bytes as f64 / load_time.as_secs_f64().max(1e-9)
                };
                let worst = (0..inside.len())
                    .max_by(|one, other| regret(&inside[*one]).total_cmp(&regret(&inside[*other])));
                let gone = inside.swap_remove(worst.expect("whoever takes room is inside"));
                taken -= self.guests[gone].bytes;
            }
            inside.push(*model);
            taken += guest.bytes;
            loading += guest.load_time;
        }
        loading
    }

    /// For each request, when its model is asked for next.
    fn next_uses(&self) -> Vec<usize> {
        let mut next = vec![usize::MAX; self.requests.len()];
        let mut last = vec![usize::MAX; self.guests.len()];
        for (at, (_, model)) in self.requests.iter().enumerate().rev() {
            next[at] = last[*model];
            last[*model] = at;
        }
        next
    }

    /// Plays the requests against the shipped scheduler on a device of two cores.
    ///
    /// # Errors
    /// If the device refused a step.
    pub fn play(&self, eviction: Eviction, seed: u64) -> Result<Report, Violation> {
        let cores = [0, 1].map(|core| CoreSet::from_cores([core]));
        let classes = [SchedulingClass::Urgent, SchedulingClass::Idle];
        let lanes = classes.into_iter().flat_map(|class| cores.map(|cores| (cores, class)));
        let lanes = (0..).zip(lanes).map(|(id, (cores, class))| LaneShape { id: LaneId(id), cores, class });
        let tensors = self.room;
        let limits = Limits {
            eviction,
            loads_max: cores.len(),
            bytes_in_max: tensors / 4,
            memory: MemoryBudget { bytes: self.room + tensors / 4, process_bytes: 0 },
            ..Limits::default()
        };
        let plan = |(index, guest): (usize, &Guest)| {
            let of_model = self.requests.iter().filter(|(_, model)| *model == index);
            model_plan(guest, of_model.map(|(at, _)| *at).collect())
        };
        let last = self.requests.last().map_or(Time::ZERO, |(at, _)| *at);
        let scenario = Scenario {
            lanes: lanes.collect(),
            discipline: Discipline::Quadrant,
            limits,
            tenants: Vec::new(),
            models: self.guests.iter().enumerate().map(plan).collect(),
            unsteady: Unsteady::NONE,
            faults: Faults::NONE,
            drain_at: last + Duration::from_secs(120),
        };
        run_unchecked(&scenario, seed)
    }
}

fn model_plan(guest: &Guest, arrivals: Vec<Time>) -> ModelPlan {
    let Guest { bytes, load_time, step_time } = *guest;
    let residency = Residency::OnDemand { idle_after: None };
    ModelPlan {
        terms: ModelTerms {
            rows_max: 1,
            widths: vec![1],
            lane: None,
            queue_max: usize::MAX,
            delay_max: Duration::ZERO,
            costs: vec![Cost { rows: 1, width: 1, beside: false, time: step_time }],
            row_bytes: 1,
            unmet: Unmet::Refuse,
            sequences: None,
        },
        up_at: Time::ZERO,
        down_at: None,
        holding: Some(Holding { bytes, load_bytes: bytes, load_time, residency, objective: None }),
        load_fails: 0.0,
        truth: Truth::exact(step_time, Duration::ZERO),
        traffic: vec![Traffic::plain(Arrivals::At(arrivals))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crowd(requests: &[usize], room: u64) -> Crowd {
        let guest = |load_ms| Guest {
            bytes: 10,
            load_time: Duration::from_millis(load_ms),
            step_time: Duration::from_millis(1),
        };
        let at = |index: u64| Time::ZERO + Duration::from_secs(index);
        Crowd {
            guests: vec![guest(10), guest(10), guest(10), guest(100)],
            requests: (0..).map(at).zip(requests.iter().copied()).collect(),
            room,
        }
    }

    #[test]
    fn the_clairvoyant_keeps_what_comes_next() {
        // LRU would load each of them every time.
        let crowd = crowd(&[0, 1, 2, 0, 1, 2, 0, 1, 2], 20);
        assert_eq!(crowd.clairvoyant(), Duration::from_millis(10 * (3 + 3)));
        let report = crowd.play(Eviction::Lru, 1).unwrap();
        let loads: u64 = report.models.iter().map(|model| model.loads).sum();
        assert_eq!(loads, 9);
    }

    #[test]
    fn what_is_dear_to_load_stays() {
        let requests = [3, 0, 1, 3, 0, 1, 3, 0, 1, 3];
        let loads = |eviction| {
            let report = crowd(&requests, 20).play(eviction, 1).unwrap();
            assert!(report.models.iter().all(|model| model.ended("completed") == model.arrivals));
            report.models[3].loads
        };
        assert_eq!((loads(Eviction::Worth), loads(Eviction::Lru)), (1, 4));
    }
}
