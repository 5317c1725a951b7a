//! Best effort: who among the tenants is next.
//!
//! Work without a deadline is divided among tenants by weight: each is charged for what its requests ran,
//! divided by its weight, and the one that was charged least is next (start-time fair queueing, Goyal et
//! al., SIGCOMM 1996). One that was away starts from where the others are, so it can neither save up time
//! nor owe any. Within a tenant the more important request goes first, then the earlier one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quadrant_types::{Priority, RequestId, TenantId};

/// Tenants that are away and still remembered.
const REMEMBERED_MAX: usize = 1_024;

/// All best-effort requests that wait.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shares {
    weights: BTreeMap<TenantId, u32>,
    flows: BTreeMap<TenantId, Flow>,
    /// Those that have something waiting, by what they were charged.
    order: BTreeSet<(u64, TenantId)>,
    /// What the one served last had been charged.
    present: u64,
    waiting: usize,
}

#[derive(Clone, Debug, Default)]
struct Flow {
    /// Weighted nanoseconds.
    charged: u64,
    waiting: BTreeSet<(Priority, RequestId)>,
}

impl Shares {
    pub(crate) fn set_weight(&mut self, tenant: TenantId, weight: u32) {
        self.weights.insert(tenant, weight.max(1));
    }

    /// The tenant is like one never named. What of it waits is still served.
    pub(crate) fn forget(&mut self, tenant: TenantId) {
        self.weights.remove(&tenant);
        if self.flows.get(&tenant).is_some_and(|flow| flow.waiting.is_empty()) {
            self.flows.remove(&tenant);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting
    }

    pub(crate) fn add(&mut self, tenant: TenantId, priority: Priority, id: RequestId) {
        let present = self.present;
        let flow = self.flows.entry(tenant).or_default();
        if flow.waiting.is_empty() {
            flow.charged = flow.charged.max(present);
            self.order.insert((flow.charged, tenant));
        }
        flow.waiting.insert((priority, id));
        self.waiting += 1;
    }

    pub(crate) fn remove(&mut self, tenant: TenantId, priority: Priority, id: RequestId) {
        let flow = self.flows.get_mut(&tenant).expect("a tenant with a waiting request is known");
        let removed = flow.waiting.remove(&(priority, id));
        assert!(removed, "what is removed waits");
        self.waiting -= 1;
        if flow.waiting.is_empty() {
            self.order.remove(&(flow.charged, tenant));
            if self.flows.len() > REMEMBERED_MAX {
                self.flows.retain(|_, flow| !flow.waiting.is_empty());
            }
        }
    }

    /// Charges a tenant for work that begins.
    pub(crate) fn charge(&mut self, tenant: TenantId, work: Duration) {
        let weight = u64::from(self.weights.get(&tenant).copied().unwrap_or(1));
        let Some(flow) = self.flows.get_mut(&tenant) else { return };
        self.present = self.present.max(flow.charged);
        let waits = self.order.remove(&(flow.charged, tenant));
        flow.charged += u64::try_from(work.as_nanos()).unwrap_or(u64::MAX >> 8) / weight;
        if waits {
            self.order.insert((flow.charged, tenant));
        }
    }

    /// Waiting requests, the next one first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = RequestId> {
        let of = |(_, tenant): &(u64, TenantId)| self.flows[tenant].waiting.iter().map(|(_, id)| *id);
        self.order.iter().flat_map(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Serves so many requests of 1 ms; says how many each tenant had.
    fn serve(shares: &mut Shares, count: usize, owner: impl Fn(RequestId) -> u32) -> Vec<usize> {
        let mut served = vec![0; 3];
        for _ in 0..count {
            let id = shares.iter().next().unwrap();
            let tenant = TenantId(owner(id));
            shares.remove(tenant, Priority(1), id);
            shares.charge(tenant, MS);
            served[tenant.0 as usize] += 1;
        }
        served
    }

    #[test]
    fn time_is_divided_by_weight() {
        let mut shares = Shares::default();
        shares.set_weight(TenantId(1), 3);
        for id in 0..400 {
            shares.add(TenantId(u32::try_from(id % 2).unwrap()), Priority(1), RequestId(id));
        }
        assert_eq!(serve(&mut shares, 200, |id| u32::try_from(id.0 % 2).unwrap()), [50, 150, 0]);
    }

    #[test]
    fn who_is_forgotten_leaves_nothing_but_what_waits() {
        let mut shares = Shares::default();
        shares.set_weight(TenantId(1), 3);
        shares.add(TenantId(1), Priority(1), RequestId(1));
        shares.forget(TenantId(1));
        assert!(shares.weights.is_empty() && shares.len() == 1);
        shares.remove(TenantId(1), Priority(1), RequestId(1));
        shares.forget(TenantId(1));
        assert!(shares.flows.is_empty() && shares.order.is_empty());
    }

    #[test]
    fn who_was_away_has_saved_nothing_up() {
        let mut shares = Shares::default();
        for id in 0..200 {
            shares.add(TenantId(0), Priority(1), RequestId(id));
        }
        let owner = |id: RequestId| u32::from(id.0 >= 200);
        serve(&mut shares, 100, owner);
        for id in 200..300 {
            shares.add(TenantId(1), Priority(1), RequestId(id));
        }
        let served = serve(&mut shares, 60, owner);
        assert!(served[0].abs_diff(served[1]) <= 2, "{served:?}");
    }

    #[test]
    fn within_a_tenant_the_more_important_goes_first() {
        let mut shares = Shares::default();
        for (id, priority) in [(0, 5), (1, 2), (2, 5)] {
            shares.add(TenantId(0), Priority(priority), RequestId(id));
        }
        assert_eq!(shares.iter().map(|id| id.0).collect::<Vec<_>>(), [1, 0, 2]);
        assert_eq!(shares.len(), 3);
    }
}
