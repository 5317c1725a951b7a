//! What a tenant may have: so many requests a second, so many at once, so many bytes, and a share of the
//! device's time, which is what is really shared.
//!
//! A rate is a bucket that fills as time passes. All that is kept of it is when it will be full again (the
//! virtual scheduling algorithm of ITU-T I.371), so nothing is to be done meanwhile and rounding adds nothing
//! up. Of device time the predicted work is taken when a request is admitted, and set right by the real
//! processor time when its step has ended. Whoever owes nothing is let in, however long the step: otherwise
//! one that is longer than the bucket would be shut out for ever. What was too much is paid off afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use quadrant_types::{Error, ErrorCode, Reason, Request, RequestId, ShapeId, TenantId, Time, Work};
use rustc_hash::FxHashMap;

use crate::cost::{Beside, Kind};
use crate::iteration_cost::keys_of;
use crate::running::Running;
use crate::{Policy, RequestRate, TenantTerms};

/// How long a tenant may save its share of the device up.
const DEVICE_BURST: Duration = Duration::from_secs(1);

/// The tenants that have quotas, and what each of their requests holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quotas {
    accounts: BTreeMap<TenantId, Account>,
    held: FxHashMap<RequestId, Held>,
}

/// What a tenant uses of its quotas at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantUsage {
    /// Requests that were admitted and have not ended.
    pub requests: u32,
    /// Bytes of their inputs.
    pub bytes_in: u64,
    /// How long until it may send the next request by its request rate; zero if it may now.
    pub rate_wait: Duration,
    /// The same by its share of the device.
    pub device_wait: Duration,
}

#[derive(Clone, Debug)]
struct Account {
    terms: TenantTerms,
    requests: Bucket,
    device: Bucket,
    live: u32,
    /// The most that may be live: the quota, or what was when it was lowered.
    live_max: u32,
    bytes: u64,
}

/// What a request holds of its tenant's quotas, until it has ended and no step runs with it.
#[derive(Clone, Copy, Debug)]
struct Held {
    tenant: TenantId,
    bytes: u64,
    /// Core time that was taken for a step of it that has not ended.
    reserved: Duration,
    /// It has ended, and its step has not.
    over: bool,
}

/// A bucket, by the time at which it is full again if nothing more is taken.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: Time,
}

impl Bucket {
    /// How long until no more is missing than what fills within `most`.
    fn wait(self, now: Time, most: Duration) -> Duration {
        self.full_at.since(now + most)
    }

    /// Takes what fills within this time.
    fn take(&mut self, now: Time, filling: Duration) {
        self.full_at = self.full_at.max(now) + filling;
    }

    fn give_back(&mut self, filling: Duration) {
        self.full_at = self.full_at - filling;
    }

    /// Fills so many times slower from now on; what is missing stays the same.
    fn slow_down(&mut self, now: Time, factor: f64) {
        self.full_at = now + self.full_at.since(now).mul_f64(factor.clamp(1e-9, 1e9));
    }
}

impl RequestRate {
    /// What may be missing of the bucket while one request is left in it.
    fn missing_max(self) -> Duration {
        self.every.saturating_mul(self.burst.saturating_sub(1))
    }
}

impl Account {
    fn new(terms: TenantTerms) -> Self {
        let live_max = terms.concurrency_max.unwrap_or(u32::MAX);
        let (requests, device) = (Bucket::default(), Bucket::default());
        Self { terms, requests, device, live: 0, live_max, bytes: 0 }
    }

    /// Takes new terms over. What is owed stays owed.
    fn change(&mut self, now: Time, terms: TenantTerms) {
        let nanos = |rate: RequestRate| rate.every.as_secs_f64().max(1e-9);
        match (self.terms.requests, terms.requests) {
            (Some(old), Some(new)) => self.requests.slow_down(now, nanos(new) / nanos(old)),
            (_, None) | (None, _) => self.requests = Bucket::default(),
        }
        match (self.terms.device_ppm, terms.device_ppm) {
            (Some(old), Some(new)) => {
                self.device.slow_down(now, f64::from(old.max(1)) / f64::from(new.max(1)));
            }
            (_, None) | (None, _) => self.device = Bucket::default(),
        }
        self.live_max = terms.concurrency_max.unwrap_or(u32::MAX).max(self.live);
        self.terms = terms;
    }

    /// How long its share of so many cores takes to yield this core time.
    fn filling(&self, work: Duration, cores: usize) -> Duration {
        let Some(ppm) = self.terms.device_ppm else { return Duration::ZERO };
        let share = u128::from(ppm.max(1)) * cores.max(1) as u128;
        let nanos = work.as_nanos().saturating_mul(1_000_000) / share;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn rate_wait(&self, now: Time) -> Duration {
        let rate = self.terms.requests;
        rate.map_or(Duration::ZERO, |rate| self.requests.wait(now, rate.missing_max()))
    }

    fn device_wait(&self, now: Time) -> Duration {
        self.terms.device_ppm.map_or(Duration::ZERO, |_| self.device.wait(now, DEVICE_BURST))
    }

    fn check(&self, now: Time, bytes_in: u64) -> Result<(), Error> {
        let refuse = |reason, what: String| {
            Err(Error::new(ErrorCode::ResourceExhausted, format!("the tenant's quota is used up: {what}"))
                .because(reason))
        };
        let (live, live_max) = (self.live, self.terms.concurrency_max.unwrap_or(u32::MAX));
        if live >= live_max {
            let what = format!("`{live}` of `{live_max}` requests are under way");
            return refuse(Reason::TenantConcurrency, what);
        }
        if let Some(bytes_max) = self.terms.bytes_in_max {
            if bytes_in > bytes_max {
                let what =
                    format!("the inputs have `{bytes_in}` bytes, above the tenant's quota of `{bytes_max}`");
                return Err(Error::new(ErrorCode::TooLarge, what));
            }
            let held = self.bytes;
            if held.saturating_add(bytes_in) > bytes_max {
                let what = format!("`{held}` of `{bytes_max}` bytes of inputs are in flight");
                return refuse(Reason::TenantBytes, what);
            }
        }
        let waits = [
            (Reason::TenantRequests, self.rate_wait(now), "requests per second"),
            (Reason::TenantDeviceTime, self.device_wait(now), "its share of the device's time"),
        ];
        let longest =
            waits.into_iter().max_by_key(|(_, wait, _)| *wait).filter(|(_, wait, _)| !wait.is_zero());
        let Some((reason, wait, what)) = longest else { return Ok(()) };
        refuse(reason, what.to_owned()).map_err(|error| error.retry_after(wait))
    }
}

impl Quotas {
    fn set(&mut self, now: Time, tenant: TenantId, terms: TenantTerms) {
        if !terms.has_quotas() {
            return self.forget(tenant);
        }
        match self.accounts.get_mut(&tenant) {
            Some(account) => {
                if account.terms.device_ppm.is_none() || terms.device_ppm.is_none() {
                    // Nothing was taken from the bucket that begins.
                    let own = self.held.values_mut().filter(|held| held.tenant == tenant);
                    own.for_each(|held| held.reserved = Duration::ZERO);
                }
                account.change(now, terms);
            }
            None => drop(self.accounts.insert(tenant, Account::new(terms))),
        }
    }

    fn forget(&mut self, tenant: TenantId) {
        if self.accounts.remove(&tenant).is_some() {
            self.held.retain(|_, held| held.tenant != tenant);
        }
    }

    /// The request as its tenant may send it: no more important than that is allowed to be.
    pub(crate) fn bounded(&self, request: Request) -> Request {
        let ceiling = self.accounts.get(&request.tenant).and_then(|account| account.terms.priority_max);
        Request { priority: ceiling.map_or(request.priority, |most| request.priority.max(most)), ..request }
    }

    /// Whether its tenant has room for the request now.
    pub(crate) fn check(&self, now: Time, request: &Request) -> Result<(), Error> {
        let bytes_in = request.work.bytes_in();
        self.accounts.get(&request.tenant).map_or(Ok(()), |account| account.check(now, bytes_in))
    }

    /// The request has ended; `runs` says whether a step still runs with it.
    pub(crate) fn ended(&mut self, id: RequestId, runs: bool, cores: usize) {
        if self.held.is_empty() {
            return;
        }
        let Some(held) = self.held.get_mut(&id) else { return };
        let account = self.accounts.get_mut(&held.tenant).expect("what is held has an account");
        account.live -= 1;
        account.bytes -= held.bytes;
        account.live_max = account.terms.concurrency_max.unwrap_or(u32::MAX).max(account.live);
        if runs {
            (held.over, held.bytes) = (true, 0);
            return;
        }
        let unused = account.filling(held.reserved, cores);
        account.device.give_back(unused);
        self.held.remove(&id);
    }

    /// What a tenant uses at present, if it has quotas.
    pub(crate) fn usage(&self, now: Time, tenant: TenantId) -> Option<TenantUsage> {
        let account = self.accounts.get(&tenant)?;
        Some(TenantUsage {
            requests: account.live,
            bytes_in: account.bytes,
            rate_wait: account.rate_wait(now),
            device_wait: account.device_wait(now),
        })
    }
}

impl Policy {
    /// What a tenant uses of its quotas at present; `None` for one that has none.
    pub fn tenant_usage(&self, now: Time, tenant: TenantId) -> Option<TenantUsage> {
        self.quotas.usage(now, tenant)
    }

    /// A tenant has these terms from now on, or is no more.
    pub(crate) fn set_tenant(&mut self, now: Time, tenant: TenantId, terms: Option<TenantTerms>) {
        match terms {
            Some(terms) => {
                self.shares.set_weight(tenant, terms.weight);
                self.quotas.set(now, tenant, terms);
            }
            None => {
                self.shares.forget(tenant);
                self.quotas.forget(tenant);
            }
        }
    }

    /// An admitted request takes its part of its tenant's quotas. Of the device it takes what it would
    /// alone on the fewest cores; in a batch it costs less, and the difference is given back.
    pub(crate) fn take_quota(&mut self, now: Time, request: &Request) {
        let Some(account) = self.quotas.accounts.get_mut(&request.tenant) else { return };
        let bytes_in = request.work.bytes_in();
        let (shape, size) = match request.work {
            Work::Once { shape, bytes_in, .. } => (shape, bytes_in),
            Work::Generate { prompt, .. } => (ShapeId(0), keys_of(0, prompt)),
        };
        let rows = request.work.rows();
        let queue = &self.models[&request.model];
        let width = queue.terms.widths[0];
        let kind = Kind { shape, rows, width, beside: Beside::Usual };
        let alone = queue.costs.predict(kind, size).saturating_mul(u32::try_from(width).unwrap_or(1));
        let reserved = if account.terms.device_ppm.is_some() { alone } else { Duration::ZERO };
        account.device.take(now, account.filling(reserved, self.cores.len()));
        if let Some(rate) = account.terms.requests {
            account.requests.take(now, rate.every);
        }
        account.live += 1;
        account.bytes += bytes_in;
        let held = Held { tenant: request.tenant, bytes: bytes_in, reserved, over: false };
        self.quotas.held.insert(request.id, held);
    }

    /// A step has ended that took so much processor time: each of its requests is charged its part, by rows,
    /// instead of what was taken for it.
    pub(crate) fn settle_quotas(&mut self, now: Time, step: &Running, core_time: Duration) {
        let Quotas { accounts, held } = &mut self.quotas;
        if held.is_empty() {
            return;
        }
        for (id, rows) in step.requests.iter().zip(&step.parts) {
            let Some(one) = held.get_mut(id) else { continue };
            let account = accounts.get_mut(&one.tenant).expect("what is held has an account");
            let part = core_time.mul_f64(f64::from(*rows) / f64::from(step.kind.rows.max(1)));
            let cores = self.cores.len();
            let (taken, due) = (account.filling(one.reserved, cores), account.filling(part, cores));
            match due.checked_sub(taken) {
                Some(more) if !more.is_zero() => account.device.take(now, more),
                Some(_) | None => account.device.give_back(taken.saturating_sub(due)),
            }
            one.reserved = Duration::ZERO;
            if one.over {
                held.remove(id);
            }
        }
    }

    /// For the invariants: each account is the sum of what its requests hold, which are live or in a step.
    pub(crate) fn quotas_match(&self) -> bool {
        let Quotas { accounts, held } = &self.quotas;
        let sums = accounts.iter().all(|(tenant, account)| {
            let own = || held.values().filter(|held| held.tenant == *tenant);
            let live = own().filter(|held| !held.over).count();
            live == account.live as usize && own().map(|held| held.bytes).sum::<u64>() == account.bytes
        });
        sums && held.iter().all(|(id, held)| {
            let runs = || self.running.iter().any(|step| step.requests.contains(id));
            accounts.contains_key(&held.tenant) && if held.over { runs() } else { self.live.contains_key(id) }
        })
    }

    /// For the invariants: none has more at once than it may, or had when its quota was lowered.
    pub(crate) fn quotas_hold(&self) -> bool {
        self.quotas.accounts.values().all(|account| account.live <= account.live_max)
    }
}

#[cfg(test)]
mod tests {
    use quadrant_types::{ModelId, Objective, Priority, ShapeId};

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const ONE: TenantId = TenantId(1);

    fn at(ms: u32) -> Time {
        Time::ZERO + MS * ms
    }

    fn terms() -> TenantTerms {
        TenantTerms::default()
    }

    fn request(id: u64, bytes_in: u64) -> Request {
        Request {
            id: RequestId(id),
            model: ModelId(0),
            tenant: ONE,
            priority: Priority(5),
            arrived: Time::ZERO,
            objective: Objective::BestEffort,
            work: Work::Once { rows: 1, shape: ShapeId(0), bytes_in },
        }
    }

    fn account(terms: TenantTerms) -> Account {
        Account::new(terms)
    }

    #[test]
    fn a_request_bucket_lets_its_burst_in_and_then_its_rate() {
        let rate = RequestRate { every: 10 * MS, burst: 3 };
        let mut one = account(TenantTerms { requests: Some(rate), ..terms() });
        let mut admitted = Vec::new();
        for ms in 1_000..1_100 {
            if one.check(at(ms), 0).is_ok() {
                one.requests.take(at(ms), rate.every);
                admitted.push(ms);
            }
        }
        assert_eq!(admitted[..5], [1_000, 1_001, 1_002, 1_010, 1_020]);
        let error = one.check(at(1_099), 0).unwrap_err();
        assert_eq!((error.reason, error.retry_after), (Some(Reason::TenantRequests), Some(MS)));
        assert!(one.check(at(1_100), 0).is_ok(), "after exactly what it was told to wait");
    }

    #[test]
    fn a_bucket_neither_makes_nor_loses_anything() {
        // A rate that no number of nanoseconds divides, asked far too often for a hundred seconds.
        let rate = RequestRate { every: Duration::from_nanos(333_333_333), burst: 2 };
        let mut one = account(TenantTerms { requests: Some(rate), ..terms() });
        let mut admitted = 0;
        for tick in 0..1_000_000_u64 {
            let now = Time::from_nanos(tick * 100_000);
            if one.check(now, 0).is_ok() {
                one.requests.take(now, rate.every);
                admitted += 1;
            }
        }
        assert_eq!(admitted, 301, "two at once, and then three a second");
    }

    #[test]
    fn device_time_is_owed_and_paid_off() {
        // A tenth of two cores is 200 ms of core time a second.
        let mut one = account(TenantTerms { device_ppm: Some(100_000), ..terms() });
        assert_eq!(one.filling(200 * MS, 2), Duration::from_secs(1));
        one.device.take(at(0), one.filling(1_000 * MS, 2));
        let error = one.check(at(0), 0).unwrap_err();
        assert_eq!(error.reason, Some(Reason::TenantDeviceTime));
        assert_eq!(
            error.retry_after,
            Some(Duration::from_secs(4)),
            "five seconds' worth, one of them saved up"
        );
        // It took only half as long.
        one.device.give_back(one.filling(500 * MS, 2));
        assert!(one.check(at(1_499), 0).is_err() && one.check(at(1_500), 0).is_ok());
    }

    #[test]
    fn changed_terms_keep_what_is_owed() {
        let mut one = account(TenantTerms { device_ppm: Some(100_000), ..terms() });
        one.device.take(at(0), one.filling(1_000 * MS, 1));
        one.change(at(0), TenantTerms { device_ppm: Some(500_000), ..terms() });
        assert_eq!(one.device.full_at, at(2_000), "five times as fast");
        one.change(at(0), terms());
        assert!(one.check(at(0), 0).is_ok());
    }

    #[test]
    fn what_is_at_once_is_bounded_and_lowering_it_breaks_nothing() {
        let quota = |concurrency_max| TenantTerms { concurrency_max: Some(concurrency_max), ..terms() };
        let mut one = account(quota(2));
        one.live = 2;
        assert_eq!(one.check(at(0), 0).unwrap_err().reason, Some(Reason::TenantConcurrency));
        one.change(at(0), quota(1));
        assert_eq!(one.live_max, 2);
        let bytes = account(TenantTerms { bytes_in_max: Some(10), ..terms() });
        assert!(bytes.check(at(0), 10).is_ok());
        assert_eq!(bytes.check(at(0), 11).unwrap_err().code, ErrorCode::TooLarge, "it could never fit");
    }

    #[test]
    fn a_tenant_that_is_gone_leaves_nothing() {
        let mut quotas = Quotas::default();
        quotas.set(at(0), ONE, TenantTerms { concurrency_max: Some(1), ..terms() });
        let held = Held { tenant: ONE, bytes: 0, reserved: Duration::ZERO, over: false };
        quotas.held.insert(RequestId(1), held);
        quotas.forget(ONE);
        assert!(quotas.accounts.is_empty() && quotas.held.is_empty());
        quotas.ended(RequestId(1), true, 1);
        quotas.set(at(0), ONE, terms());
        assert!(quotas.accounts.is_empty(), "nothing to account for without a quota");
    }

    #[test]
    fn importance_has_a_ceiling() {
        let mut quotas = Quotas::default();
        quotas.set(at(0), ONE, TenantTerms { priority_max: Some(Priority(7)), ..terms() });
        assert_eq!(quotas.bounded(request(1, 0)).priority, Priority(7));
        let less = Request { priority: Priority(9), ..request(1, 0) };
        assert_eq!(quotas.bounded(less).priority, Priority(9));
        assert_eq!(quotas.bounded(Request { tenant: TenantId(2), ..request(1, 0) }).priority, Priority(5));
    }
}
