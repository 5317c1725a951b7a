//! A line in the log for everything that changes what is served and for whom: who, what, on what, and what
//! came of it. Its target is `quadrant::audit`, so that it can be kept apart and kept on while other lines
//! are off.

use quadrant_types::{Error, ErrorCode};

use crate::Shared;
use crate::access::Caller;

/// Says that something was done, or tried. `who` is a tenant, or what else had it done.
pub fn record(who: &str, action: &str, on: &str, outcome: &str) {
    tracing::info!(target: "quadrant::audit", who, action, on, outcome, "audit");
}

/// Somebody who may do what he is about to do. What comes of it is to be said with [`AdminAct::ended`]; if it
/// never is, the log says so.
#[derive(Debug)]
#[must_use = "what comes of it is to be said"]
pub struct AdminAct {
    who: String,
    action: &'static str,
    on: String,
    said: bool,
}

impl Caller {
    /// To be called before anything is administered: `action`, such as `load`, on `on`, such as a model.
    ///
    /// # Errors
    /// `PermissionDenied`, which is also said in the log, unless this caller may.
    pub fn require_admin(&self, shared: &Shared, action: &'static str, on: &str) -> Result<AdminAct, Error> {
        let act = AdminAct { who: self.name().to_owned(), action, on: on.to_owned(), said: false };
        if self.administers() {
            return Ok(act);
        }
        shared.handle.record_denied("admin");
        let what = format!("`{action}` needs a tenant with `admin = true`, which `{}` is not", act.who);
        let error = Error::new(ErrorCode::PermissionDenied, what);
        act.ended(&Err::<(), _>(error.clone()));
        Err(error)
    }
}

impl AdminAct {
    /// Says what came of it.
    pub fn ended<T>(mut self, result: &Result<T, Error>) {
        self.said = true;
        match result {
            Ok(_) => record(&self.who, self.action, &self.on, "done"),
            Err(error) => {
                record(&self.who, self.action, &self.on, &format!("{}: {error}", error.code.name()))
            }
        }
    }
}

impl Drop for AdminAct {
    fn drop(&mut self) {
        if !self.said {
            record(&self.who, self.action, &self.on, "given up");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use http::HeaderMap;
    use quadrant_node::{Config, ModelSettings, Node, TenantTerms};
    use quadrant_types::CoreSet;

    use super::*;
    use crate::{Grant, KeyHash, Limits};

    /// A node without models.
    fn node() -> Node {
        let models_dir = std::env::temp_dir().join(format!("quadrant-audit-{}", std::process::id()));
        std::fs::create_dir_all(&models_dir).unwrap();
        let config = Config {
            models_dir: models_dir.clone(),
            cores: CoreSet::from_cores([0]),
            onnxruntime: None,
            discipline: quadrant_policy::Discipline::Quadrant,
            tenants: BTreeMap::new(),
            limits: quadrant_policy::Limits::default(),
            probe_budget: Duration::from_secs(1),
            engine_host: None,
            poll: None,
            profiles_dir: None,
            defaults: ModelSettings::default(),
            models: BTreeMap::new(),
        };
        let node = Node::start(config).unwrap();
        drop(std::fs::remove_dir(models_dir));
        node
    }

    #[test]
    fn administering_needs_a_tenant_that_may() {
        let node = node();
        let shared = Shared::new(node.handle().clone(), Limits::default()).unwrap();
        let open = Caller::of(&shared, &HeaderMap::new()).unwrap();
        open.require_admin(&shared, "load", "m").unwrap().ended(&Ok(()));
        let grant = |name: &str, admin| Grant {
            name: name.to_owned(),
            keys: vec![KeyHash::of(name.as_bytes())],
            admin,
            ..Grant::default()
        };
        let terms = |name: &str| (name.to_owned(), TenantTerms::default());
        node.handle().set_tenants(&[terms("ops"), terms("user")].into());
        shared.grant(vec![grant("ops", true), grant("user", false)]);
        let by = |key: &str| {
            let headers: HeaderMap =
                [(http::HeaderName::from_static("x-api-key"), key.parse().unwrap())].into_iter().collect();
            Caller::of(&shared, &headers).and_then(|caller| caller.require_admin(&shared, "load", "m"))
        };
        by("ops").unwrap().ended(&Ok(()));
        let error = by("user").unwrap_err();
        assert_eq!(error.code, ErrorCode::PermissionDenied);
        assert_eq!(error.message, "`load` needs a tenant with `admin = true`, which `user` is not");
        assert_eq!(by("nobody").unwrap_err().code, ErrorCode::Unauthenticated);
        let metrics = node.handle().metrics();
        assert!(metrics.contains("quadrant_denied_requests_total{why=\"admin\"} 1"), "{metrics}");
    }
}
