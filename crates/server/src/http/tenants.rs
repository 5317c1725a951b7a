//! The tenants that were configured, as JSON on the port of the metrics: what each may have, and what it
//! uses.

use http::Response;
use quadrant_node::{Handle, TenantEntry};

use crate::http::fields::Fields;
use crate::http::response::json;
use crate::http::segments::Segments;
use crate::http::text::push_list;

/// Where they are.
pub(crate) const PATH: &str = "/tenants";

/// The page.
pub(crate) fn page(handle: &Handle) -> Response<Segments> {
    let mut out = Vec::new();
    push_list(&mut out, &handle.tenants(), write);
    json(out)
}

fn write(out: &mut Vec<u8>, entry: &TenantEntry) {
    let TenantEntry { name, terms, usage } = entry;
    let mut fields = Fields::begin(out);
    fields.text("tenant", name);
    fields.number("weight", u64::from(terms.weight));
    if let Some(priority) = terms.priority_max {
        fields.number("priority_max", u64::from(priority.0));
    }
    if let Some(rate) = terms.requests {
        fields.milliseconds("request_every_ms", rate.every);
        fields.number("burst", u64::from(rate.burst));
        fields.milliseconds("request_wait_ms", usage.rate_wait);
    }
    if let Some(concurrency) = terms.concurrency_max {
        fields.number("concurrency", u64::from(concurrency));
    }
    if let Some(bytes) = terms.bytes_in_max {
        fields.number("bytes", bytes);
    }
    if let Some(ppm) = terms.device_ppm {
        fields.number("device_share_ppm", u64::from(ppm));
        fields.milliseconds("device_wait_ms", usage.device_wait);
    }
    fields.number("requests_in_flight", u64::from(usage.requests));
    fields.number("bytes_in_flight", usage.bytes_in);
    fields.end();
}
