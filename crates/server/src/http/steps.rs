//! The steps that ran lately, as JSON on the port of the metrics: what was predicted and what was real, for
//! `quadrant observe`, which makes a workload of them, and for anybody who doubts the predictions.

use http::Response;
use quadrant_node::{Handle, StepRecord};
use quadrant_types::{Error, StepId, Time};

use crate::http::error_response;
use crate::http::fields::Fields;
use crate::http::response::json;
use crate::http::segments::Segments;
use crate::http::text::push_list;

/// Where they are; `?after=STEP` leaves out what was seen before.
pub(crate) const PATH: &str = "/steps";

/// The page.
pub(crate) fn page(handle: &Handle, query: Option<&str>) -> Response<Segments> {
    let after = match query.map(|query| query.strip_prefix("after=").map(str::parse)) {
        None => None,
        Some(Some(Ok(number))) => Some(StepId(number)),
        Some(_) => return error_response(&Error::invalid("the only query is `after=STEP`, with a number")),
    };
    let mut out = Vec::new();
    push_list(&mut out, handle.steps(after), |out, step| write(out, &step));
    json(out)
}

fn write(out: &mut Vec<u8>, step: &StepRecord) {
    let mut fields = Fields::begin(out);
    fields.number("step", step.id.0);
    fields.text("model", &step.model);
    fields.number("lane", u64::from(step.lane.0));
    fields.text("cores", &step.cores.to_string());
    fields.number("width", step.cores.len() as u64);
    fields.text("class", step.class.name());
    fields.number("rows", u64::from(step.rows));
    fields.number("requests", step.requests as u64);
    if let Some(beside) = &step.beside {
        fields.text("beside", beside);
    }
    fields.milliseconds("began_ms", step.began.since(Time::ZERO));
    fields.milliseconds("ended_ms", step.ended.since(Time::ZERO));
    fields.milliseconds("predicted_ms", step.predicted);
    fields.milliseconds("real_ms", step.real());
    fields.end();
}
