//! The curves as a picture.

use std::fmt::Write;

use super::Curves;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const MARGIN: f64 = 50.0;
const COLOURS: [&str; 4] = ["#0b6e4f", "#c1121f", "#1d4e89", "#8d6a9f"];

/// The worst model's attainment over the load: one line for each policy, through the medians, and a dot for
/// each run.
pub(super) fn attainment(loads: &[f64], curves: &Curves) -> String {
    let (first, last) = (loads[0], loads[loads.len() - 1]);
    let x = |load: f64| MARGIN + (load - first) / (last - first).max(1e-9) * (WIDTH - 2.0 * MARGIN);
    let y = |share: f64| HEIGHT - MARGIN - share * (HEIGHT - 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut add = |line: String| writeln!(svg, "{line}").expect("a string takes every text");
    for share in [0.0, 0.25, 0.5, 0.75, 0.99] {
        let (left, right, at) = (MARGIN, WIDTH - MARGIN, y(share));
        add(format!("<line x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>"));
        add(format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{share}</text>",
            left - 6.0,
            at + 4.0
        ));
    }
    for load in loads {
        let (at, bottom) = (x(*load), HEIGHT - MARGIN + 16.0);
        add(format!("<text x=\"{at:.1}\" y=\"{bottom}\" text-anchor=\"middle\">{load}</text>"));
    }
    for (index, (policy, runs)) in curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let mut path = String::new();
        for (column, load) in loads.iter().enumerate() {
            let mut worst: Vec<f64> =
                runs.iter().filter_map(|run| run.get(column)).map(|run| run.worst).collect();
            worst.sort_by(f64::total_cmp);
            for share in &worst {
                let (cx, cy) = (x(*load), y(*share));
                add(format!("<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"2\" fill=\"{colour}\"/>"));
            }
            if !worst.is_empty() {
                let (command, middle) = (if column == 0 { 'M' } else { 'L' }, crate::measure::median(&worst));
                write!(path, "{command}{:.1} {:.1} ", x(*load), y(middle))
                    .expect("a string takes every text");
            }
        }
        add(format!("<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"));
        let (left, at) = (MARGIN + 10.0, HEIGHT - MARGIN - 12.0 - 16.0 * index as f64);
        add(format!("<text x=\"{left}\" y=\"{at}\" fill=\"{colour}\">{policy}</text>"));
    }
    let (middle, bottom) = (WIDTH / 2.0, HEIGHT - 12.0);
    add(format!(
        "<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">offered load, share of both cores</text>"
    ));
    add(format!(
        "<text x=\"{middle}\" y=\"24\" text-anchor=\"middle\">requests of the worst model answered in time</text>"
    ));
    svg.push_str("</svg>\n");
    svg
}
