//! Tenants by name. Those that were configured have terms and figures of their own, and can change while
//! the node runs. Other names are told apart as they appear, up to a bound.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use quadrant_policy::{TenantTerms, TenantUsage};
use quadrant_types::{Error, Reason, TenantId, Time};

use crate::telemetry::TenantMetrics;

/// Names that are told apart without being configured; later ones share the account of those who give none.
const TENANTS_MAX: usize = 1_024;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<String, TenantId>,
    configured: BTreeMap<TenantId, Arc<Tenant>>,
    /// The number given last; none is given twice.
    last: u32,
}

/// A tenant that was configured.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) terms: TenantTerms,
    pub(crate) metrics: TenantMetrics,
    /// Until when the scheduler would refuse whatever it sends, and in which words.
    closed: Mutex<Option<(Time, Error)>>,
}

/// A tenant as it is shown: its terms, and what it uses of them.
#[derive(Clone, Debug)]
pub struct TenantEntry {
    /// Its name.
    pub name: String,
    /// What it may have.
    pub terms: TenantTerms,
    /// What it uses at present.
    pub usage: TenantUsage,
}

impl Tenant {
    /// A refusal by a rate stays true for as long as it says, so requests that come meanwhile need not be
    /// read to be refused.
    pub(crate) fn note_refusal(&self, now: Time, error: &Error) {
        let by_rate = matches!(error.reason, Some(Reason::TenantRequests | Reason::TenantDeviceTime));
        if let Some(wait) = error.retry_after.filter(|_| by_rate) {
            *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = Some((now + wait, error.clone()));
        }
    }

    /// What the scheduler would say to anything that it sends now, if that is known.
    pub(crate) fn refusal(&self, now: Time) -> Option<Error> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, error) = closed.as_ref().filter(|(until, _)| now < *until)?;
        Some(error.clone().retry_after(until.since(now)))
    }
}

impl Tenants {
    /// Takes these in the place of those that were configured before. Returns what has changed.
    pub(crate) fn set(
        &self,
        wanted: &BTreeMap<String, TenantTerms>,
        metrics: impl Fn(&str) -> TenantMetrics,
    ) -> Vec<(TenantId, Option<TenantTerms>)> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Vec::new();
        let gone: Vec<TenantId> = state
            .configured
            .iter()
            .filter(|(_, tenant)| !wanted.contains_key(&tenant.name))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            if let Some(tenant) = state.configured.remove(&id) {
                state.names.remove(&tenant.name);
            }
            changes.push((id, None));
        }
        for (name, terms) in wanted {
            let id = state.intern(name);
            if state.configured.get(&id).is_some_and(|known| known.terms == *terms) {
                continue;
            }
            let (name, metrics) = (name.clone(), metrics(name));
            let tenant = Tenant { name, terms: *terms, metrics, closed: Mutex::default() };
            state.configured.insert(id, Arc::new(tenant));
            changes.push((id, Some(*terms)));
        }
        changes
    }

    /// The name of a tenant; empty for those who give none.
    pub(crate) fn name(&self, tenant: TenantId) -> String {
        let state = self.read();
        state.names.iter().find(|(_, id)| **id == tenant).map(|(name, _)| name.clone()).unwrap_or_default()
    }

    /// The tenant of this name, if it was ever met.
    pub(crate) fn known(&self, name: &str) -> Option<TenantId> {
        self.read().names.get(name).copied()
    }

    /// The tenant of this name, which need not be configured.
    pub(crate) fn find(&self, name: &str) -> TenantId {
        self.known(name).unwrap_or_else(|| {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let full = state.names.len() >= TENANTS_MAX.max(state.configured.len());
            if full { state.names.get(name).copied().unwrap_or_default() } else { state.intern(name) }
        })
    }

    /// The tenant, if it was configured.
    pub(crate) fn get(&self, tenant: TenantId) -> Option<Arc<Tenant>> {
        // Who says no name was not configured; most requests of an open server are such.
        if tenant == TenantId::default() { None } else { self.read().configured.get(&tenant).cloned() }
    }

    /// Those that were configured, by number.
    pub(crate) fn configured(&self) -> Vec<(TenantId, Arc<Tenant>)> {
        self.read().configured.iter().map(|(id, tenant)| (*id, Arc::clone(tenant))).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn intern(&mut self, name: &str) -> TenantId {
        if let Some(known) = self.names.get(name) {
            return *known;
        }
        self.last += 1;
        self.names.insert(name.to_owned(), TenantId(self.last));
        TenantId(self.last)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use quadrant_types::ErrorCode;

    use super::*;
    use crate::telemetry::Telemetry;

    fn set(tenants: &Tenants, wanted: &[(&str, u32)]) -> Vec<(TenantId, Option<u32>)> {
        let telemetry = Telemetry::new(Arc::new(Tenants::default()));
        let terms = |weight| TenantTerms { weight, ..TenantTerms::default() };
        let wanted = wanted.iter().map(|(name, weight)| ((*name).to_owned(), terms(*weight))).collect();
        let changes = tenants.set(&wanted, |name| telemetry.tenant(name));
        changes.into_iter().map(|(id, terms)| (id, terms.map(|terms| terms.weight))).collect()
    }

    #[test]
    fn names_keep_their_number_and_are_bounded() {
        let tenants = Tenants::default();
        set(&tenants, &[("gold", 3)]);
        let gold = tenants.find("gold");
        let other = tenants.find("other");
        assert!(other != gold && other == tenants.find("other") && other != TenantId::default());
        for number in 0..2_000 {
            tenants.find(&number.to_string());
        }
        assert_eq!(tenants.find("one too many"), TenantId::default());
        assert_eq!(tenants.find("gold"), gold);
    }

    #[test]
    fn only_what_has_changed_is_told_and_numbers_are_not_used_twice() {
        let tenants = Tenants::default();
        let first = set(&tenants, &[("a", 1), ("b", 2)]);
        assert_eq!(first, [(TenantId(1), Some(1)), (TenantId(2), Some(2))]);
        assert_eq!(set(&tenants, &[("a", 1), ("b", 3)]), [(TenantId(2), Some(3))]);
        assert_eq!(set(&tenants, &[("b", 3)]), [(TenantId(1), None)]);
        assert_eq!(set(&tenants, &[("a", 1), ("b", 3)]), [(TenantId(3), Some(1))]);
        assert!(tenants.get(TenantId(1)).is_none() && tenants.name(TenantId(1)).is_empty());
    }

    #[test]
    fn a_refusal_by_rate_holds_for_as_long_as_it_says() {
        let tenants = Tenants::default();
        set(&tenants, &[("a", 1)]);
        let tenant = tenants.get(TenantId(1)).unwrap();
        let (ms, at) = (Duration::from_millis, |ms| Time::ZERO + Duration::from_millis(ms));
        let refusal = |reason| Error::new(ErrorCode::ResourceExhausted, "no").because(reason);
        tenant.note_refusal(at(0), &refusal(Reason::TenantConcurrency).retry_after(ms(10)));
        assert_eq!(tenant.refusal(at(1)), None, "it may have room any moment");
        tenant.note_refusal(at(0), &refusal(Reason::TenantRequests).retry_after(ms(10)));
        let again = tenant.refusal(at(4)).unwrap();
        assert_eq!((again.reason, again.retry_after), (Some(Reason::TenantRequests), Some(ms(6))));
        assert_eq!(tenant.refusal(at(10)), None);
    }
}
