//! What the scheduler was told of each model, as JSON on the port of the metrics: objectives, widths, rows,
//! and what its steps cost when they were measured.

use http::Response;
use quadrant_node::{Handle, ModelEntry};

use crate::http::fields::Fields;
use crate::http::response::json;
use crate::http::segments::Segments;
use crate::http::text::{push_integer, push_list};

/// Where they are.
pub(crate) const PATH: &str = "/models";

/// The page.
pub(crate) fn page(handle: &Handle) -> Response<Segments> {
    let mut out = Vec::new();
    push_list(&mut out, handle.models(), |out, model| write(out, &model));
    json(out)
}

fn write(out: &mut Vec<u8>, model: &ModelEntry) {
    let terms = &model.terms;
    let mut fields = Fields::begin(out);
    fields.text("model", &model.spec.name);
    fields.number("version", model.spec.version);
    fields.text("engine", model.engine);
    if let Some(objective) = model.latency_objective {
        fields.milliseconds("objective_ms", objective);
    }
    fields.number("priority", u64::from(model.priority.0));
    fields.number("rows_max", u64::from(terms.rows_max));
    fields.milliseconds("delay_ms", terms.delay_max);
    fields.key("widths");
    push_list(fields.out(), &terms.widths, |out, width| push_integer(out, *width));
    fields.key("costs");
    push_list(fields.out(), &terms.costs, |out, cost| {
        let mut fields = Fields::begin(out);
        fields.number("rows", u64::from(cost.rows));
        fields.number("width", cost.width as u64);
        fields.number("beside", u64::from(cost.beside));
        fields.milliseconds("ms", cost.time);
        fields.end();
    });
    fields.text("rationale", &model.rationale);
    fields.end();
}
