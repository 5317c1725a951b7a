//! Tenants by name. A tenant is whoever a request says it is for; the names that were configured have
//! weights, others are told apart as they appear, up to a bound.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use quadrant_types::TenantId;

/// Names that are told apart; later ones share the account of those who give none.
const TENANTS_MAX: usize = 1_024;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Tenants {
    configured: Vec<(TenantId, u32)>,
    names: RwLock<BTreeMap<String, TenantId>>,
}

impl Tenants {
    pub(crate) fn new(weights: &BTreeMap<String, u32>) -> Self {
        let ids = (1..).map(TenantId);
        let names = weights.keys().cloned().zip(ids.clone()).collect();
        Self { configured: ids.zip(weights.values().copied()).collect(), names: RwLock::new(names) }
    }

    /// Those whose weight was configured.
    pub(crate) fn weights(&self) -> impl Iterator<Item = (TenantId, u32)> {
        self.configured.iter().copied()
    }

    /// The name of a tenant; empty for those who give none.
    pub(crate) fn name(&self, tenant: TenantId) -> String {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.iter().find(|(_, id)| **id == tenant).map(|(name, _)| name.clone()).unwrap_or_default()
    }

    pub(crate) fn find(&self, name: &str) -> TenantId {
        let known = self.names.read().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        known.unwrap_or_else(|| {
            let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
            if names.len() >= TENANTS_MAX {
                return names.get(name).copied().unwrap_or_default();
            }
            let next = TenantId(u32::try_from(names.len() + 1).unwrap_or(0));
            *names.entry(name.to_owned()).or_insert(next)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_number_and_are_bounded() {
        let tenants = Tenants::new(&BTreeMap::from([("gold".to_owned(), 3)]));
        let gold = tenants.find("gold");
        assert_eq!(tenants.weights().collect::<Vec<_>>(), [(gold, 3)]);
        let other = tenants.find("other");
        assert!(other != gold && other == tenants.find("other") && other != TenantId::default());
        for number in 0..2_000 {
            tenants.find(&number.to_string());
        }
        assert_eq!(tenants.find("one too many"), TenantId::default());
        assert_eq!(tenants.find("gold"), gold);
    }
}
