#![allow(warnings)]
use quadrant_policy::*;
use quadrant_sim::*;
use quadrant_types::*;
use std::time::Duration;
fn main() {
    let ms = |x: f64| Duration::from_secs_f64(x / 1e3);
    let mk = |name: &str, t1: f64, gain: f64| {
        let truth = Truth {
            step_cost: ms(t1),
            row_cost: ms(0.0),
            wide_gain: gain,
            noise: 0.06,
            sensitivity: 0.05,
            pressure: 1.0,
            crowding: 0.25,
        };
        Served {
            name: name.into(),
            truth,
            rows_max: 1,
            wide: true,
            objective: Some(ms(4.0 * t1 / gain + 20.0)),
            priority: Priority::default(),
            share: 1.0,
            delay_max: Duration::ZERO,
        }
    };
    let models = vec![
        mk("magika", 3.5, 1.53),
        mk("rec", 10.6, 1.35),
        mk("minilm", 3.4, 1.5),
        mk("cls", 2.8, 1.46),
        mk("vad", 0.17, 1.0),
    ];
    let e =
        Experiment { cores: 2, limits: Limits { queued_requests_max: 1 << 20, ..Limits::default() }, models };
    let secs = 1000.0;
    let load = 0.7;
    let mut r = fastrand::Rng::with_seed(1);
    let arrivals: Vec<Vec<Duration>> = e
        .rates(load)
        .iter()
        .map(|rate| {
            let mut v = vec![];
            let mut t = 0.0;
            loop {
                t += -(1.0 - r.f64()).ln() / rate;
                if t > secs {
                    break;
                }
                v.push(Duration::from_secs_f64(t));
            }
            v
        })
        .collect();
    let n: usize = arrivals.iter().map(Vec::len).sum();
    let t = std::time::Instant::now();
    let o = e.play(Discipline::Quadrant, (load, secs), &arrivals, 1).unwrap();
    let el = t.elapsed().as_secs_f64();
    println!(
        "{n} requests in {el:.2} s: {:.0}/s, {} events; worst {:.4}",
        n as f64 / el,
        o.report.events,
        o.worst
    );
}
