#![allow(warnings)]
use quadrant_policy::*;
use quadrant_sim::*;
use quadrant_types::*;
use std::time::Duration;
fn main() {
    let ms = |x: f64| Duration::from_secs_f64(x / 1e3);
    let noise = 0.06;
    let mk = |name: &str, t1: f64, gain: f64| {
        let truth = Truth {
            step_cost: ms(0.0),
            row_cost: ms(t1),
            wide_gain: gain,
            noise,
            sensitivity: 0.15,
            pressure: 1.0,
            crowding: 0.25,
        };
        let solo = t1 / gain;
        Served {
            name: name.into(),
            truth,
            rows_max: 1,
            wide: true,
            objective: Some(ms(4.0 * solo + 20.0)),
            priority: Priority::default(),
            share: 1.0,
            delay_max: Duration::ZERO,
        }
    };
    let mix: String = std::env::args().nth(1).unwrap_or("b".into());
    let mut models = vec![
        mk("magika", 3.5, 1.53),
        mk("rec", 10.6, 1.35),
        mk("minilm", 3.4, 1.5),
        mk("cls", 2.8, 1.46),
        mk("vad", 0.17, 1.0),
    ];
    if mix == "a" {
        models.insert(0, mk("det", 37.0, 1.2));
    }
    let e =
        Experiment { cores: 2, limits: Limits { queued_requests_max: 1 << 20, ..Limits::default() }, models };
    let secs = 60.0;
    let burst: f64 = std::env::args().nth(2).and_then(|x| x.parse().ok()).unwrap_or(0.0);
    for load in [0.7] {
        let mut line = format!("{load:.2}");
        for d in [Discipline::Quadrant] {
            let mut worst = vec![];
            let mut good = vec![];
            let mut kept = vec![];
            let mut per = String::new();
            for seed in 0..5u64 {
                let mut r = fastrand::Rng::with_seed(seed);
                let arrivals: Vec<Vec<Duration>> = e
                    .rates(load)
                    .iter()
                    .map(|rate| {
                        let mut v = vec![];
                        let mut t = 0.0;
                        let mut level = 1.0;
                        let mut until = 0.0;
                        loop {
                            if t >= until {
                                until = t + 1.0;
                                level = if burst > 0.0 {
                                    (burst * (r.f64() + r.f64() + r.f64() - 1.5)).exp()
                                        / (burst * burst * 0.125).exp()
                                } else {
                                    1.0
                                };
                            }
                            t += -(1.0 - r.f64()).ln() / (rate * level);
                            if t > secs {
                                break;
                            }
                            v.push(Duration::from_secs_f64(t));
                        }
                        v
                    })
                    .collect();
                let o = e.play(d, (load, secs), &arrivals, seed).unwrap();
                worst.push(o.worst);
                good.push(o.goodput);
                kept.push(o.kept);
                if seed == 0 {
                    per = o
                        .report
                        .models
                        .iter()
                        .map(|m| format!("{:.3}", m.attainment()))
                        .collect::<Vec<_>>()
                        .join(" ");
                }
            }
            let mean = |v: &Vec<f64>| v.iter().sum::<f64>() / v.len() as f64;
            line += &format!(
                " | {} {:.4} good {:.0} kept {:.4} [{per}]",
                d.name(),
                mean(&worst),
                mean(&good),
                mean(&kept)
            );
        }
        println!("{line}");
    }
}
