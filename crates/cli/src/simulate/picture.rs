//! What simulations gave, as pictures: attainment over load, and what ran on which lane.

use std::collections::BTreeMap;
use std::fmt::Write;

use quadrant_policy::LaneShape;
use quadrant_sim::Span;
use quadrant_types::SchedulingClass;

use super::Cell;
use super::workload::Workload;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const MARGIN: f64 = 50.0;
const COLOURS: [&str; 8] =
    ["#0b6e4f", "#c1121f", "#1d4e89", "#e09f3e", "#8d6a9f", "#4f772d", "#006d77", "#7f5539"];

/// A picture under construction.
struct Svg(String);

impl Svg {
    fn new(width: f64, height: f64) -> Self {
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        ))
    }

    fn add(&mut self, element: &str) {
        writeln!(self.0, "{element}").expect("a string takes every text");
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.add(&format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"));
    }

    fn end(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

/// The worst model's attainment over the load, one line for each policy.
pub(super) fn attainment(cells: &[Cell]) -> String {
    let mut curves: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for cell in cells {
        curves.entry(cell.policy).or_default().push((cell.load, cell.attainment));
    }
    let loads = || cells.iter().map(|cell| cell.load);
    let (first, last) = (loads().fold(f64::MAX, f64::min), loads().fold(0.0, f64::max));
    let x = |load: f64| MARGIN + (load - first) / (last - first).max(1e-9) * (WIDTH - 2.0 * MARGIN);
    let y = |share: f64| HEIGHT - MARGIN - share * (HEIGHT - 2.0 * MARGIN);
    let mut svg = Svg::new(WIDTH, HEIGHT);
    for share in [0.0, 0.25, 0.5, 0.75, 0.99] {
        let (left, right, at) = (MARGIN, WIDTH - MARGIN, y(share));
        svg.add(&format!(
            "<line x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>"
        ));
        svg.text((left - 6.0, at + 4.0), "end", &share.to_string());
    }
    for (index, (policy, points)) in curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let points: Vec<String> =
            points.iter().map(|(load, share)| format!("{:.1},{:.1}", x(*load), y(*share))).collect();
        let points = points.join(" ");
        svg.add(&format!(
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        ));
        let at = HEIGHT - MARGIN - 12.0 - 16.0 * index as f64;
        svg.add(&format!("<text x=\"{}\" y=\"{at}\" fill=\"{colour}\">{policy}</text>", MARGIN + 10.0));
    }
    let mut shown: Vec<f64> = loads().collect();
    shown.sort_by(f64::total_cmp);
    shown.dedup();
    shown.iter().for_each(|load| svg.text((x(*load), HEIGHT - MARGIN + 16.0), "middle", &load.to_string()));
    svg.text((WIDTH / 2.0, HEIGHT - 12.0), "middle", "offered load, share of the device");
    svg.text((WIDTH / 2.0, 24.0), "middle", "requests of the worst model answered in time");
    svg.end()
}

/// What ran on which lane in the first so many milliseconds.
pub(super) fn timeline(workload: &Workload, lanes: &[LaneShape], spans: &[Span], length_ms: f64) -> String {
    const ROW: f64 = 26.0;
    let (left, width) = (130.0, 1_200.0);
    let names = || workload.experiment.models.iter().map(|model| model.name.as_str());
    let height = 40.0 + ROW * lanes.len() as f64 + 30.0;
    let mut svg = Svg::new(left + width + 20.0, height);
    let scale = width / length_ms;
    for (row, lane) in lanes.iter().enumerate() {
        let top = 30.0 + ROW * row as f64;
        let class = match lane.class {
            SchedulingClass::Urgent => "urgent",
            SchedulingClass::Idle => "preemptible",
        };
        svg.text((left - 8.0, top + 15.0), "end", &format!("cores {} {class}", lane.cores));
        svg.add(&format!(
            "<line x1=\"{left}\" x2=\"{}\" y1=\"{top}\" y2=\"{top}\" stroke=\"#ddd\"/>",
            left + width
        ));
        for span in spans.iter().filter(|span| span.lane == lane.id) {
            let (began, ended) = (span.began.as_nanos() as f64 / 1e6, span.ended.as_nanos() as f64 / 1e6);
            if began < length_ms {
                let (at, long) = (left + began * scale, (ended.min(length_ms) - began) * scale);
                let colour = COLOURS[span.model % COLOURS.len()];
                svg.add(&format!(
                    "<rect x=\"{at:.2}\" y=\"{:.1}\" width=\"{long:.2}\" height=\"20\" fill=\"{colour}\"/>",
                    top + 3.0
                ));
            }
        }
    }
    let bottom = height - 10.0;
    for (index, name) in names().enumerate() {
        let at = left + 180.0 * index as f64;
        let colour = COLOURS[index % COLOURS.len()];
        svg.add(&format!(
            "<rect x=\"{at}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>",
            bottom - 11.0
        ));
        svg.text((at + 18.0, bottom), "start", name);
    }
    svg.text((left, 18.0), "start", "0 ms");
    svg.text((left + width, 18.0), "end", &format!("{length_ms} ms"));
    svg.end()
}
