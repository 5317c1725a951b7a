//! What the scheduler's decisions cost, and how fast it is simulated: one process each, on an otherwise idle
//! machine, the median of the repetitions.

use std::process::Command;

use anyhow::{Context, Result};

use super::{MeasureArgs, program, spread};
use crate::run::{printed, say};

/// Measures both.
pub(super) fn measure(args: &MeasureArgs) -> Result<()> {
    let (mut few, mut many, mut rare, mut overload) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut off, mut on) = (Vec::new(), Vec::new());
    for _ in 0..args.repetitions {
        let lines = baseline(&["decisions", "--models", "10,1000", "--queued", "100000"])?;
        let of = |line: usize, figure: &str| {
            lines[line][figure].as_f64().with_context(|| format!("a line without `{figure}`"))
        };
        few.push(of(0, "p99_us")?);
        many.push(of(1, "p99_us")?);
        rare.push(of(1, "p999_us")?);
        overload.push(of(3, "p99_us")?);
        let speed = baseline(&["simulation"])?;
        let figure = |name: &str| speed[0][name].as_f64().context("a line without its figure");
        off.push(figure("checkers_off_per_second")?);
        on.push(figure("checkers_on_per_second")?);
    }
    let ratios: Vec<f64> = many.iter().zip(&few).map(|(many, few)| many / few).collect();
    say(&format!(
        "decision with 100000 requests waiting, p99: {} at 1000 models, bar 10 us; {} of that at 10 models, bar \
         3; p99.9 {}; p99 in an overload of tight deadlines {}",
        spread(&many, " us"),
        spread(&ratios, ""),
        spread(&rare, " us"),
        spread(&overload, " us")
    ));
    say(&format!(
        "simulated requests a second on one core: {} without checkers, bar 500000; {} with them, bar 100000",
        spread(&off, ""),
        spread(&on, "")
    ));
    Ok(())
}

fn baseline(arguments: &[&str]) -> Result<Vec<serde_json::Value>> {
    let text = printed(Command::new(program("quadrant-baseline")).args(arguments))?;
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}
