//! Random scenarios: everything holds in all of them, and a seed means one run.

use quadrant_sim::{Report, Scenario, run};

fn play(seed: u64) -> Report {
    run(&Scenario::random(seed), seed).unwrap_or_else(|violation| panic!("{violation}"))
}

#[test]
fn two_thousand_random_scenarios_hold() {
    let (mut endings, mut requests) = (std::collections::BTreeMap::new(), 0);
    let (mut loads, mut loaded_again, mut generating) = (0, 0, 0);
    for seed in 0..2_000 {
        for model in play(seed).models {
            requests += model.arrivals;
            loads += model.loads;
            loaded_again += u64::from(model.loads > 2);
            generating += u64::from(!model.token_times(1.0).0.is_zero());
            for (how, count) in model.endings {
                *endings.entry(how).or_insert(0) += count;
            }
        }
    }
    // A generator that misses a way to end would prove nothing about it.
    println!("{requests} requests: {endings:?}; {loads} loads, {loaded_again} models more than twice");
    assert!(loads > 2_000 && loaded_again > 150, "{loads} loads, {loaded_again} models more than twice");
    assert!(generating > 400, "{generating} models gave tokens");
    for how in [
        "completed",
        "cancelled",
        "deadline_exceeded",
        "internal",
        "invalid_argument",
        "resource_exhausted",
        "unavailable",
    ] {
        assert!(endings.get(how).is_some_and(|count| *count > 1_000), "{how} is rare: {endings:?}");
    }
    assert_eq!(endings.values().sum::<u64>(), requests);
}

#[test]
fn ten_thousand_random_scenarios_hold() {
    for seed in 10_000..20_000 {
        play(seed);
    }
}

#[test]
fn a_seed_means_one_run() {
    for seed in 0..200 {
        assert_eq!(play(seed), play(seed), "seed {seed}");
    }
    assert_ne!(play(1).log_hash, play(2).log_hash);
}
