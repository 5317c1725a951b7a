//! What the transport says of a request besides its content: its time, its importance, on whose account.
//! The headers are those that inference gateways use; what the request itself says of its time and its
//! importance comes on top.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use quadrant_types::{Error, Priority, TenantId};

use crate::{Shared, deadline};

/// The tenant, in the gateway API's spelling and in llm-d's.
const TENANT_HEADERS: [HeaderName; 2] = [
    HeaderName::from_static("x-gateway-inference-fairness-id"),
    HeaderName::from_static("x-llm-d-inference-fairness-id"),
];
/// The name of a configured objective, in both spellings.
const OBJECTIVE_HEADERS: [HeaderName; 2] = [
    HeaderName::from_static("x-gateway-inference-objective"),
    HeaderName::from_static("x-llm-d-inference-objective"),
];
/// A longer name is not a tenant's.
const TENANT_BYTES_MAX: usize = 128;

/// An objective that requests refer to by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamedObjective {
    /// By when an answer is wanted.
    pub latency: Option<Duration>,
    /// How important it is.
    pub priority: Option<Priority>,
}

/// The objectives that were configured, by name.
pub type NamedObjectives = BTreeMap<String, NamedObjective>;

/// See the module's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The time after which the answer is of no use.
    pub(crate) timeout: Option<Duration>,
    /// By when the answer is wanted.
    pub(crate) latency: Option<Duration>,
    pub(crate) priority: Option<Priority>,
    pub(crate) tenant: TenantId,
}

impl Terms {
    /// What the headers say, of a request on this tenant's account.
    ///
    /// # Errors
    /// A time that is none, or an objective that is not configured.
    pub(crate) fn from_headers(
        shared: &Shared,
        headers: &HeaderMap,
        tenant: TenantId,
    ) -> Result<Self, Error> {
        let timeout = deadline::from_headers(headers)?;
        let timeout = timeout.into_iter().chain(shared.limits.request_timeout).min();
        let named = match text(headers, &OBJECTIVE_HEADERS)? {
            None => NamedObjective::default(),
            Some(name) => *shared.objectives.get(name).ok_or_else(|| unknown(name, &shared.objectives))?,
        };
        Ok(Self { timeout, latency: named.latency, priority: named.priority, tenant })
    }

    /// The same for a request that came so long after the headers.
    pub(crate) fn after(self, elapsed: Duration) -> Self {
        let left = |time: Option<Duration>| time.map(|time| time.saturating_sub(elapsed));
        Self { timeout: left(self.timeout), ..self }
    }
}

/// The tenant that a gateway names. Whether it is to be believed is for `access` to say.
///
/// # Errors
/// It is no name.
pub(crate) fn tenant_name(headers: &HeaderMap) -> Result<Option<&str>, Error> {
    text(headers, &TENANT_HEADERS)
}

fn text<'a>(headers: &'a HeaderMap, names: &[HeaderName]) -> Result<Option<&'a str>, Error> {
    let Some((name, value)) = names.iter().find_map(|name| Some((name, headers.get(name)?))) else {
        return Ok(None);
    };
    let text = value.to_str().ok().filter(|text| !text.is_empty() && text.len() <= TENANT_BYTES_MAX);
    let wrong = || Error::invalid(format!("`{name}` must be 1 to {TENANT_BYTES_MAX} bytes of ASCII text"));
    text.map(Some).ok_or_else(wrong)
}

fn unknown(name: &str, objectives: &NamedObjectives) -> Error {
    let known: Vec<String> = objectives.keys().take(8).map(|name| format!("`{name}`")).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Error::invalid(format!("objective `{name}` is not configured; known are: {known}"))
}
