//! Tenants' quotas by another way of counting: what is missing of each bucket as a number that shrinks, and
//! who is under way by looking through all who are.
//!
//! Of device time only what steps really took is known here, not what the scheduler predicted; so what is
//! asked is that nobody is let in who was given more than his share since it was set.

use quadrant_policy::{Step, StepReport, TenantTerms};
use quadrant_types::{CoreSet, Error, ErrorCode, Priority, Reason, Request, TenantId, Time};

use super::{Broken, Checker, Known, Place, hold_or};

/// Differences that are rounding: of a request, and of a core-second.
const ROUNDING: f64 = 1e-6;
/// A share of the device can be saved up for so many seconds.
const DEVICE_BURST_S: f64 = 1.0;

/// What is known of a tenant with quotas.
#[derive(Clone, Debug)]
pub(super) struct Book {
    terms: TenantTerms,
    /// Until when time was counted.
    at: Time,
    /// Requests that are missing of a full bucket.
    missing: f64,
    /// Core-seconds that steps took since the share was set, and that it was worth since.
    used_s: f64,
    worth_s: f64,
}

/// A request's part of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    tenant: TenantId,
    share: f64,
}

impl Book {
    /// Core-seconds a second.
    fn share(&self, cores: CoreSet) -> f64 {
        self.terms.device_ppm.map_or(0.0, |ppm| f64::from(ppm) / 1e6 * cores.len() as f64)
    }

    fn advance(&mut self, now: Time, cores: CoreSet) {
        let passed_s = now.since(self.at).as_secs_f64();
        self.at = now;
        let refilled = self.terms.requests.map_or(0.0, |rate| passed_s / rate.every.as_secs_f64());
        self.missing = (self.missing - refilled).max(0.0);
        self.worth_s += passed_s * self.share(cores);
    }

    /// How many requests there is room for by the rate.
    fn left(&self) -> f64 {
        self.terms.requests.map_or(f64::INFINITY, |rate| f64::from(rate.burst) - self.missing)
    }
}

impl Checker {
    /// A tenant's terms change.
    pub(super) fn set_book(&mut self, now: Time, tenant: TenantId, terms: Option<TenantTerms>) {
        let only_weight =
            |terms: &TenantTerms| *terms == TenantTerms { weight: terms.weight, ..TenantTerms::default() };
        let Some(terms) = terms.filter(|terms| !only_weight(terms)) else {
            self.books.remove(&tenant);
            let own = self.live.values_mut().filter(|known| known.request.tenant == tenant);
            own.for_each(|known| known.counted = false);
            self.steps.values_mut().for_each(|step| step.parts.retain(|part| part.tenant != tenant));
            return;
        };
        let cores = self.cores();
        let new = Book { terms, at: now, missing: 0.0, used_s: 0.0, worth_s: 0.0 };
        let book = self.books.entry(tenant).or_insert(new);
        book.advance(now, cores);
        if book.terms.requests.is_none() || terms.requests.is_none() {
            book.missing = 0.0;
        }
        if book.terms.device_ppm.is_none() || terms.device_ppm.is_none() {
            (book.used_s, book.worth_s) = (0.0, 0.0);
        }
        book.terms = terms;
    }

    /// What a step will be charged to, once it has ended.
    pub(super) fn parts(members: &[Known], step: &Step) -> Vec<Part> {
        let counted = members.iter().enumerate().filter(|(_, known)| known.counted);
        let part = |(index, known): (usize, &Known)| {
            let rows = step.slices.get(index).map_or(known.work().0, |slice| slice.tokens);
            Part { tenant: known.request.tenant, share: f64::from(rows) / f64::from(step.rows.max(1)) }
        };
        counted.map(part).collect()
    }

    /// A step has ended.
    pub(super) fn charge(&mut self, parts: &[Part], report: &StepReport) {
        for part in parts {
            if let Some(book) = self.books.get_mut(&part.tenant) {
                book.used_s += report.core_time.as_secs_f64() * part.share;
            }
        }
    }

    /// How important a request counts as.
    pub(super) fn priority(&self, request: &Request) -> Priority {
        let ceiling = self.books.get(&request.tenant).and_then(|book| book.terms.priority_max);
        ceiling.map_or(request.priority, |most| most.max(request.priority))
    }

    fn cores(&self) -> CoreSet {
        self.lanes.iter().fold(CoreSet::EMPTY, |cores, lane| cores.union(lane.cores))
    }

    /// What of this tenant's counts towards its quotas, but for the request at the door.
    fn under_way(&self, tenant: TenantId) -> (u32, u64) {
        let own = self.live.values().filter(|known| known.counted && known.request.tenant == tenant);
        own.filter(|known| known.place != Place::AtTheDoor)
            .fold((0, 0), |(count, bytes), known| (count + 1, bytes + known.work().2))
    }

    /// A request is let in: its tenant must have had room for it.
    pub(super) fn admit(&mut self, now: Time, known: &Known) -> Result<bool, Broken> {
        let tenant = known.request.tenant;
        if !self.books.contains_key(&tenant) {
            return Ok(false);
        }
        let ((count, bytes), cores) = (self.under_way(tenant), self.cores());
        let Some(book) = self.books.get_mut(&tenant) else { return Ok(false) };
        book.advance(now, cores);
        let terms = book.terms;
        let name = "who is let in has not used its tenant's quota up";
        let detail = |what: &str| format!("{} of {tenant}: {what}, {book:?}", known.request.id);
        hold_or(name, terms.concurrency_max.is_none_or(|most| count < most), || detail("concurrency"))?;
        let fits = terms.bytes_in_max.is_none_or(|most| bytes + known.work().2 <= most);
        hold_or(name, fits, || detail("bytes"))?;
        hold_or(name, book.left() >= 1.0 - ROUNDING, || detail("requests"))?;
        let most_s = book.share(cores) * DEVICE_BURST_S + book.worth_s + ROUNDING;
        hold_or(name, terms.device_ppm.is_none() || book.used_s <= most_s, || detail("device time"))?;
        book.missing += 1.0;
        Ok(true)
    }

    /// Whether the tenant's quotas are a reason to refuse the request.
    pub(super) fn quota_is_used_up(&self, now: Time, known: &Known, error: &Error) -> bool {
        let tenant = known.request.tenant;
        let Some(mut book) = self.books.get(&tenant).cloned() else { return false };
        book.advance(now, self.cores());
        let (terms, (count, bytes)) = (book.terms, self.under_way(tenant));
        let of_request = known.work().2;
        match error.reason {
            Some(Reason::TenantRequests) => book.left() < 1.0 + ROUNDING && error.retry_after.is_some(),
            Some(Reason::TenantConcurrency) => terms.concurrency_max.is_some_and(|most| count >= most),
            Some(Reason::TenantBytes) => terms.bytes_in_max.is_some_and(|most| bytes + of_request > most),
            Some(Reason::TenantDeviceTime) => terms.device_ppm.is_some() && error.retry_after.is_some(),
            None => {
                error.code == ErrorCode::TooLarge && terms.bytes_in_max.is_some_and(|most| of_request > most)
            }
            Some(
                Reason::DeadlineUnmeetable
                | Reason::Shed
                | Reason::Expired
                | Reason::QueueFull
                | Reason::ServerFull
                | Reason::BytesFull
                | Reason::MemoryFull
                | Reason::EngineAway
                | Reason::Lethal,
            ) => false,
        }
    }
}
