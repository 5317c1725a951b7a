//! "Why was it slow?" as JSON, on the port of the metrics: one request by its number, or the slowest of the
//! last minutes. It shows what other requests did, so it is not for clients.

use http::{HeaderName, HeaderValue, Response};
use quadrant_node::{Explanation, GenerationRecord, Handle, Overlap};
use quadrant_types::{Error, ErrorCode, RequestId, Time};

use crate::http::error_response;
use crate::http::fields::Fields;
use crate::http::response::json;
use crate::http::route::decoded;
use crate::http::segments::Segments;
use crate::http::text::push_list;

/// Carries a request's number on its answer.
pub(crate) const REQUEST_HEADER: HeaderName = HeaderName::from_static("x-quadrant-request");

/// Where explanations are, followed by a number or `slowest`.
pub(crate) const PATH: &str = "/requests/";

/// The number of a request as a header's value.
pub(crate) fn header(id: RequestId) -> HeaderValue {
    HeaderValue::from(id.0)
}

/// The page of a request, or of the slowest: of all, or with `tenant=NAME` of one tenant.
pub(crate) fn page(handle: &Handle, which: &str, query: Option<&str>) -> Response<Segments> {
    let mut out = Vec::new();
    let write = |out: &mut Vec<u8>, explanation: &Explanation| write(out, handle, explanation);
    if which == "slowest" {
        let tenant = query.and_then(|query| query.strip_prefix("tenant="));
        let tenant = tenant.and_then(decoded).map(|name| handle.tenant_named(&name));
        let slowest = match tenant {
            None => handle.slowest(),
            Some(tenant) => tenant.map(|tenant| handle.slowest_of(tenant)).unwrap_or_default(),
        };
        push_list(&mut out, &slowest, write);
        return json(out);
    }
    let number = which.parse().map_err(|_| {
        Error::invalid(format!(
            "`{which}` is not the number of a request; answers carry it as `{REQUEST_HEADER}`"
        ))
    });
    let found = number.and_then(|number| {
        handle.explain(RequestId(number)).ok_or_else(|| {
            let text =
                format!("request `{number}` is not remembered: it has not ended, or it ended long ago");
            Error::new(ErrorCode::NotFound, text)
        })
    });
    match found {
        Ok(explanation) => {
            write(&mut out, &explanation);
            json(out)
        }
        Err(error) => error_response(&error),
    }
}

fn write(out: &mut Vec<u8>, handle: &Handle, explanation: &Explanation) {
    let Explanation { request, step, waited_for, beside, gap, preempted_by } = explanation;
    let timing = &request.timing;
    let ran = step.is_some();
    let began = ran || request.generation.is_some_and(|generation| generation.steps > 0);
    let mut fields = Fields::begin(out);
    fields.number("request", request.id.0);
    fields.text("model", &request.model);
    let tenant = handle.tenant_name(request.tenant);
    if !tenant.is_empty() {
        fields.text("tenant", &tenant);
    }
    fields.text("outcome", request.outcome);
    if let Some(reason) = request.reason {
        fields.text("reason", reason.name());
    }
    fields.milliseconds("total_ms", request.ended.since(timing.arrived));
    if let Some(by) = request.wanted_by {
        fields.milliseconds("objective_ms", by.since(timing.arrived));
    }
    fields.milliseconds("parse_ms", timing.submitted.since(timing.arrived));
    let began = if began { timing.began } else { request.ended };
    fields.milliseconds("queue_ms", began.since(timing.submitted));
    if ran {
        fields.milliseconds("gather_ms", timing.gathered.since(timing.began));
        fields.milliseconds("compute_ms", timing.computed.since(timing.gathered));
        fields.milliseconds("scatter_ms", timing.scattered.since(timing.computed));
    }
    if let Some(step) = step {
        fields.key("step");
        let mut of_step = Fields::begin(fields.out());
        of_step.number("step", step.id.0);
        of_step.number("rows", u64::from(step.rows));
        of_step.number("batch_mates", step.requests.saturating_sub(1) as u64);
        of_step.number("width", step.cores.len() as u64);
        of_step.text("cores", &step.cores.to_string());
        of_step.text("class", step.class.name());
        of_step.milliseconds("predicted_ms", step.predicted);
        of_step.milliseconds("real_ms", step.real());
        of_step.end();
    }
    if let Some(generation) = &request.generation {
        fields.key("generation");
        write_generation(fields.out(), generation, timing.arrived, gap);
    }
    for (name, overlaps) in [("waited_for", waited_for), ("beside", beside), ("preempted_by", preempted_by)] {
        fields.key(name);
        push_list(fields.out(), overlaps, overlap);
    }
    fields.end();
}

fn write_generation(out: &mut Vec<u8>, generation: &GenerationRecord, arrived: Time, gap: &[Overlap]) {
    let mut fields = Fields::begin(out);
    fields.number("prompt_tokens", u64::from(generation.prompt));
    fields.number("known_tokens", u64::from(generation.known));
    fields.number("tokens", u64::from(generation.tokens));
    fields.number("steps", u64::from(generation.steps));
    fields.milliseconds("steps_ms", generation.in_steps);
    fields.number("preempted", u64::from(generation.preempted));
    if let Some(first) = generation.first_at {
        fields.milliseconds("first_token_ms", first.since(arrived));
    }
    if let Some((from, until)) = generation.gap {
        fields.milliseconds("longest_gap_ms", until.since(from));
        fields.key("longest_gap_for");
        push_list(fields.out(), gap, overlap);
    }
    fields.end();
}

fn overlap(out: &mut Vec<u8>, overlap: &Overlap) {
    let mut fields = Fields::begin(out);
    fields.text("model", &overlap.model);
    fields.number("steps", u64::from(overlap.steps));
    fields.milliseconds("ms", overlap.time);
    fields.end();
}
