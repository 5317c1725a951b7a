//! From measurements to a decision: which widths are kept, and how many rows are worth joining.
//!
//! One-core lanes side by side serve the most; all cores on one step answer the soonest. Both are measured,
//! and both are kept where the wide one is so much sooner that it is worth its bytes.

use std::time::Duration;

use super::measure::Measured;
use super::{Cost, Profile};

/// Options within this share of the best rate are equal; the one with the shorter step wins. A wider share
/// would give away throughput at saturation, where only rows that wait anyway are batched.
const EQUAL_RATE: f64 = 0.98;
/// How many times sooner a step must end on all cores than on one for the wide width to be kept.
pub(super) const WIDE_GAIN: f64 = 1.25;

/// One way to run the model, and how it went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tried {
    pub(super) cost: Cost,
    pub(super) rows_per_second: f64,
    /// Whether it gave work to every core there is.
    pub(super) all_busy: bool,
}

impl Tried {
    pub(super) fn new(
        measured: Measured,
        (width, rows): (usize, usize),
        beside: bool,
        all_busy: bool,
    ) -> Self {
        let cost = Cost { width, rows, beside, step: measured.step };
        Self { cost, rows_per_second: measured.rows_per_second, all_busy }
    }
}

/// Whether more rows at once were worth it: the rate grew by more than its noise.
pub(super) fn is_better(rate: f64, best: f64) -> bool {
    rate * EQUAL_RATE > best
}

/// What the measurements say. `demanded` is the width that the configuration fixes. The reason why the
/// model batches or does not is left to be added. `None` if nothing was measured.
pub(super) fn decide(tried: &[Tried], demanded: Option<usize>) -> Option<Profile> {
    let narrowest = tried.iter().map(|option| option.cost.width).min()?;
    let widest = tried.iter().map(|option| option.cost.width).max()?;
    let gain = gain(tried, narrowest, widest);
    let worth_it = gain.is_some_and(|(_, gain)| gain >= WIDE_GAIN);
    let widths = match demanded {
        Some(_) => vec![widest],
        None if narrowest < widest && worth_it => vec![narrowest, widest],
        None => vec![narrowest],
    };
    let busy = |option: &&Tried| option.all_busy && widths.contains(&option.cost.width);
    let width = best(tried.iter().filter(busy))?.cost.width;
    let joined = best(tried.iter().filter(busy).filter(|option| option.cost.width == widths[0]))?;
    let mut costs: Vec<_> = tried.iter().map(|option| option.cost).collect();
    costs.sort_unstable();
    let reason = describe(&widths, joined, gain.filter(|_| demanded.is_none()), tried);
    let rows_max = joined.cost.rows;
    Some(Profile { width, widths, rows_max, costs, reason, ..Profile::unmeasured() })
}

/// The fastest; among those that are nearly as fast, the one with the shortest step.
fn best<'a>(options: impl Iterator<Item = &'a Tried> + Clone) -> Option<&'a Tried> {
    let best = options.clone().map(|option| option.rows_per_second).fold(0.0, f64::max);
    let nearly = options.filter(|option| option.rows_per_second >= EQUAL_RATE * best);
    nearly.min_by_key(|option| option.cost.step)
}

/// The number of rows for which all cores gain the most over one that computes alone, and how much.
fn gain(tried: &[Tried], narrow: usize, wide: usize) -> Option<(usize, f64)> {
    let alone = |width, rows| {
        let is = |option: &&Tried| {
            let Cost { width: its_width, rows: its_rows, beside, .. } = option.cost;
            (its_width, its_rows, beside) == (width, rows, false)
        };
        tried.iter().find(is).map(|option| option.cost.step.max(Duration::from_nanos(1)).as_secs_f64())
    };
    let rows = tried.iter().filter(|option| option.cost.width == wide).map(|option| option.cost.rows);
    let gains = rows.filter_map(|rows| Some((rows, alone(narrow, rows)? / alone(wide, rows)?)));
    if narrow == wide { None } else { gains.max_by(|left, right| left.1.total_cmp(&right.1)) }
}

fn describe(widths: &[usize], joined: &Tried, gain: Option<(usize, f64)>, tried: &[Tried]) -> String {
    let widths: Vec<_> = widths.iter().map(usize::to_string).collect();
    let gain = gain.map_or_else(String::new, |(rows, gain)| {
        format!(" (all cores end a step {gain:.2} times as soon with rows {rows})")
    });
    let one = |option: &Tried| {
        let Cost { width, rows, beside, step } = option.cost;
        let beside = if beside { " beside others" } else { "" };
        format!("{rows} on {width}{beside}: {:.1}/s in {step:.2?}", option.rows_per_second)
    };
    let all: Vec<_> = tried.iter().map(one).collect();
    format!(
        "rows {} of cores {} chosen{gain}; measured rows on cores {}",
        joined.cost.rows,
        widths.join(" and "),
        all.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORES: usize = 2;

    /// Rows on a number of cores, beside others, took so long.
    fn option(width: usize, rows: usize, beside: bool, step_ms: u64) -> Tried {
        let step = Duration::from_millis(step_ms);
        let lanes = if beside { CORES / width } else { 1 };
        let rows_per_second = (lanes * rows) as f64 / step.as_secs_f64();
        let all_busy = beside || width == CORES;
        Tried::new(Measured { rows_per_second, step }, (width, rows), beside, all_busy)
    }

    #[test]
    fn a_wide_width_is_kept_where_it_answers_sooner() {
        let check = |tried: &[Tried], demanded, widths: &[usize], width| {
            let profile = decide(tried, demanded).unwrap();
            assert_eq!((&*profile.widths, profile.width), (widths, width), "{}", profile.reason);
        };
        let narrow = [option(1, 1, true, 22), option(1, 1, false, 20)];
        let with = |wide_ms| [&narrow[..], &[option(2, 1, false, wide_ms)]].concat();
        check(&with(16), None, &[1, 2], 1);
        check(&with(17), None, &[1], 1);
        check(&with(10), None, &[1, 2], 2);
        check(&[option(2, 1, false, 17)], Some(2), &[2], 2);
        check(&narrow, Some(1), &[1], 1);
        check(&narrow, None, &[1], 1);
        // Only larger steps gain.
        let rows = [option(1, 8, true, 160), option(1, 8, false, 150), option(2, 8, false, 90)];
        check(&[&with(20)[..], &rows].concat(), None, &[1, 2], 1);
        assert!(decide(&[], None).is_none());
    }

    #[test]
    fn rows_are_joined_while_the_rate_of_busy_narrow_lanes_grows() {
        let check = |beside_ms: &[(usize, u64)], rows_max| {
            let beside = beside_ms.iter().map(|(rows, step_ms)| option(1, *rows, true, *step_ms));
            // What one lane does alone, or all cores on one step, does not count.
            let others = [option(1, 64, false, 1), option(2, 64, false, 1)];
            let tried: Vec<_> = beside.chain(others).collect();
            assert_eq!(decide(&tried, None).unwrap().rows_max, rows_max, "{beside_ms:?}");
        };
        check(&[(1, 20), (2, 39)], 2);
        check(&[(1, 20), (2, 40)], 1);
        check(&[(1, 20), (2, 39), (8, 130)], 8);
        check(&[(1, 100), (2, 199), (8, 800)], 1);
    }

    #[test]
    fn costs_are_in_order_and_say_how_they_were_measured() {
        let tried =
            [option(2, 1, false, 9), option(1, 2, true, 30), option(1, 1, true, 16), option(1, 1, false, 15)];
        let costs = decide(&tried, None).unwrap().costs;
        let order: Vec<_> = costs.iter().map(|cost| (cost.width, cost.rows, cost.beside)).collect();
        assert_eq!(order, [(1, 1, false), (1, 1, true), (1, 2, true), (2, 1, false)]);
    }
}
