#![allow(warnings)]
use quadrant_policy::*;
use quadrant_types::*;
use std::time::*;
fn main() {
    for n in [10u32, 1000] {
        let lanes: Vec<LaneShape> = vec![
            LaneShape { id: LaneId(0), cores: CoreSet::from_cores([0]), class: SchedulingClass::Urgent },
            LaneShape { id: LaneId(1), cores: CoreSet::from_cores([1]), class: SchedulingClass::Urgent },
            LaneShape { id: LaneId(2), cores: CoreSet::from_cores([0]), class: SchedulingClass::Idle },
            LaneShape { id: LaneId(3), cores: CoreSet::from_cores([1]), class: SchedulingClass::Idle },
            LaneShape { id: LaneId(4), cores: CoreSet::from_cores([0, 1]), class: SchedulingClass::Urgent },
        ];
        let mut p = Policy::new(
            lanes,
            Limits { queued_requests_max: 1 << 20, wait_max: Duration::from_secs(60), ..Limits::default() },
            Discipline::Quadrant,
        );
        let mut r = fastrand::Rng::with_seed(1);
        let mut acts = vec![];
        let mut now = Time::ZERO;
        for m in 0..n {
            let t = Duration::from_micros(100 + r.u64(0..300));
            let costs = vec![
                Cost { rows: 1, width: 1, beside: false, time: t },
                Cost { rows: 8, width: 1, beside: false, time: t * 4 },
                Cost { rows: 1, width: 2, beside: false, time: t * 2 / 3 },
            ];
            p.on_event(
                now,
                Event::ModelUp(
                    ModelId(m),
                    ModelTerms {
                        rows_max: 8,
                        widths: vec![1, 2],
                        lane: None,
                        queue_max: 1 << 20,
                        delay_max: Duration::ZERO,
                        costs,
                        row_bytes: 1,
                        unmet: Unmet::Refuse,
                    },
                ),
                &mut acts,
            );
        }
        let mut id = 0u64;
        let mut times: Vec<(u64, u8)> = vec![];
        let mut running: std::collections::BTreeMap<Time, Step> = Default::default();
        let mut step = |p: &mut Policy,
                        now: Time,
                        e: Event,
                        times: &mut Vec<(u64, u8)>,
                        running: &mut std::collections::BTreeMap<Time, Step>,
                        rec: bool,
                        k: u8| {
            acts.clear();
            let t = Instant::now();
            p.on_event(now, e, &mut acts);
            let d = t.elapsed().as_nanos() as u64;
            if rec {
                times.push((d, k));
            }
            let mut ended = 0;
            for a in acts.drain(..) {
                match a {
                    Action::Run(s) => {
                        let mut at = now + s.predicted;
                        while running.contains_key(&at) {
                            at = at + Duration::from_nanos(1);
                        }
                        running.insert(at, s);
                    }
                    _ => {}
                }
            }
        };
        let arrive = |id: u64, now: Time, r: &mut fastrand::Rng, n: u32| Request {
            id: RequestId(id),
            model: ModelId(r.u32(0..n)),
            tenant: TenantId(r.u32(0..20)),
            priority: Priority(1000 + r.u32(0..3)),
            arrived: now,
            objective: if r.f64() < 0.5 {
                Objective::EndBy(now + Duration::from_millis(30_000 + r.u64(0..29_000)))
            } else {
                Objective::BestEffort
            },
            work: Work::Once { rows: 1, shape: ShapeId(0), bytes_in: 1 },
        };
        while p_queued(&p, n) < 100_000 {
            for _ in 0..1000 {
                let rq = arrive(id, now, &mut r, n);
                id += 1;
                step(&mut p, now, Event::Arrived(rq), &mut times, &mut running, false, 0);
            }
        }
        for i in 0..200_000u32 {
            now = now + Duration::from_micros(20);
            let rq = arrive(id, now, &mut r, n);
            id += 1;
            step(&mut p, now, Event::Arrived(rq), &mut times, &mut running, i > 20_000, 0);
            while let Some((at, _)) = running.first_key_value() {
                if *at > now {
                    break;
                }
                let (at, s) = running.pop_first().unwrap();
                step(
                    &mut p,
                    now,
                    Event::Ended(StepReport {
                        step: s.id,
                        began: at - s.predicted,
                        ended: at,
                        outcome: StepOutcome::Completed,
                    }),
                    &mut times,
                    &mut running,
                    i > 20_000,
                    1,
                );
            }
        }
        println!("n {n} queued {}", p_queued(&p, n));
        for k in 0..2 {
            let mut v: Vec<u64> = times.iter().filter(|x| x.1 == k).map(|x| x.0).collect();
            v.sort();
            if v.is_empty() {
                continue;
            }
            println!(
                "  kind {k}: {} p50 {} p99 {} p999 {} max {}",
                v.len(),
                v[v.len() / 2],
                v[v.len() * 99 / 100],
                v[v.len() * 999 / 1000],
                v[v.len() - 1]
            );
        }
    }
}
fn p_queued(p: &Policy, n: u32) -> usize {
    (0..n).map(|m| p.queued(ModelId(m))).sum()
}
