//! Tenants as they are written, in `quadrant.toml` or in a file of their own, and what is meant: terms for
//! the scheduler, and grants for the server. Both are checked before anything serves, and again at every
//! change.

mod watch;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use quadrant_node::{Handle, TenantTerms};
use quadrant_policy::RequestRate;
use quadrant_server::{Grant, KeyHash, Shared};
use quadrant_types::Priority;
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

pub(crate) use watch::watch;

/// Tenants at most.
const TENANTS_MAX: usize = 1_024;
/// Keys of one tenant at most: the one in use, the next, and a few that are forgotten.
const KEYS_MAX: usize = 64;
/// Bytes of a name at most: it travels in a header.
const NAME_BYTES_MAX: usize = 128;
/// Requests per second that can be asked for.
const RATE_MAX: f64 = 1e6;
/// The label of all others in the metrics.
const RESERVED: &str = "other";

/// What can be said of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TenantFields {
    /// Digests of its API keys, as `quadrant tenant new-key` prints them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    keys: Vec<String>,
    /// The models it may use: names, or beginnings of names that end in `*`. All if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<Vec<String>>,
    /// Its share of best-effort time, relative to the others' 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    /// None of its requests counts as more important than this; 1 is the highest.
    #[serde(skip_serializing_if = "Option::is_none")]
    priority_max: Option<u32>,
    /// Requests that are admitted per second,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests_per_second: Option<f64>,
    /// and how many at once after a pause; by default those of a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<u32>,
    /// Requests under way at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<u32>,
    /// Bytes of inputs in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Its share of the time of all cores that compute.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_share: Option<f64>,
    /// Whether it may load and unload models and change settings.
    admin: bool,
    /// Whether it may say on whose account its requests are.
    gateway: bool,
    /// Whether requests without a key are its own.
    anonymous: bool,
}

/// The file that `tenants_file` names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantsFile {
    tenants: BTreeMap<String, TenantFields>,
}

/// Tenants that were read and checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tenancy {
    fields: BTreeMap<String, TenantFields>,
    terms: BTreeMap<String, TenantTerms>,
    grants: Vec<Grant>,
}

impl Tenancy {
    /// The tenants of the configuration, from wherever it has them.
    ///
    /// # Errors
    /// The first value that cannot be meant, with its name.
    pub(crate) fn read(settings: &Settings) -> Result<Self> {
        let Some(path) = &settings.tenants_file else { return Self::check(settings, &settings.tenants) };
        ensure!(settings.tenants.is_empty(), "tenants are either in the configuration or in `tenants_file`");
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read `tenants_file`, `{}`", path.display()))?;
        let within = || format!("in `tenants_file`, `{}`", path.display());
        let file: TenantsFile = toml::from_str(&text).with_context(within)?;
        Self::check(settings, &file.tenants).with_context(within)
    }

    fn check(settings: &Settings, fields: &BTreeMap<String, TenantFields>) -> Result<Self> {
        let weights = &settings.scheduler.tenant_weights;
        let one_of = fields.is_empty() || weights.is_empty();
        ensure!(
            one_of,
            "with tenants, a weight is said as `tenants.NAME.weight`, not `scheduler.tenant_weights`"
        );
        ensure!(fields.len() <= TENANTS_MAX, "there are more than `{TENANTS_MAX}` tenants");
        let gateways = fields.values().any(|tenant| tenant.gateway);
        let mut tenancy = Self { fields: fields.clone(), ..Self::default() };
        for (name, tenant) in fields {
            let within = || format!("in `tenants.{name}`");
            tenancy.terms.insert(name.clone(), tenant.terms().with_context(within)?);
            tenancy.grants.push(tenant.grant(name, gateways).with_context(within)?);
        }
        let anonymous: Vec<&str> =
            tenancy.grants.iter().filter(|grant| grant.anonymous).map(|grant| grant.name.as_str()).collect();
        ensure!(
            anonymous.len() <= 1,
            "only one tenant can be `anonymous`, not `{}`",
            anonymous.join("` and `")
        );
        let mut owners: BTreeMap<KeyHash, &str> = BTreeMap::new();
        for grant in &tenancy.grants {
            for key in &grant.keys {
                if let Some(other) = owners.insert(*key, &grant.name) {
                    bail!("one key is named twice, by `tenants.{other}` and `tenants.{}`", grant.name);
                }
            }
        }
        Ok(tenancy)
    }

    /// Whether there are none, so that everybody may ask.
    pub(crate) fn is_open(&self) -> bool {
        self.grants.is_empty()
    }

    /// Tells the node and the server. While there are none, the node has the weights it was started with.
    pub(crate) fn apply(&self, handle: &Handle, shared: &Shared) {
        if !self.is_open() {
            handle.set_tenants(&self.terms);
            shared.grant(self.grants.clone());
        }
    }

    /// How these differ from others, in words.
    fn changes(&self, before: &Self) -> String {
        let added = self.fields.keys().filter(|name| !before.fields.contains_key(*name));
        let gone = before.fields.keys().filter(|name| !self.fields.contains_key(*name));
        let differs = |(name, fields): &(&String, &TenantFields)| {
            before.fields.get(*name).is_some_and(|before| before != *fields)
        };
        let changed = self.fields.iter().filter(differs).map(|(name, _)| name);
        let list = |what: &str, names: Vec<&String>| {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            (!names.is_empty()).then(|| format!("{what} {}", names.join(", ")))
        };
        let parts =
            [list("new", added.collect()), list("changed", changed.collect()), list("gone", gone.collect())];
        parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

/// What the scheduler is told of the tenants as the server starts: their terms, or the weights of those whom
/// the gateway's headers name.
///
/// # Errors
/// The first value that cannot be meant, with its name.
pub(crate) fn terms(settings: &Settings) -> Result<BTreeMap<String, TenantTerms>> {
    let tenancy = Tenancy::read(settings)?;
    if !tenancy.is_open() {
        return Ok(tenancy.terms);
    }
    let weight = |(tenant, weight): (&String, &u32)| {
        let fits = (1..=1_000_000).contains(weight);
        ensure!(fits, "`scheduler.tenant_weights.{tenant}` must be from 1 to 1000000, not `{weight}`");
        Ok((tenant.clone(), TenantTerms { weight: *weight, ..TenantTerms::default() }))
    };
    settings.scheduler.tenant_weights.iter().map(weight).collect()
}

impl TenantFields {
    fn terms(&self) -> Result<TenantTerms> {
        let from_one = |name: &str, value: Option<u64>, most: u64| match value {
            Some(value) if !(1..=most).contains(&value) => {
                Err(anyhow!("`{name}` must be from 1 to {most}, not `{value}`"))
            }
            other => Ok(other),
        };
        let most = u64::from(u32::MAX);
        from_one("weight", self.weight.map(u64::from), 1_000_000)?;
        from_one("priority_max", self.priority_max.map(u64::from), most)?;
        from_one("burst", self.burst.map(u64::from), most)?;
        from_one("concurrency", self.concurrency.map(u64::from), most)?;
        from_one("bytes", self.bytes, u64::MAX)?;
        ensure!(
            self.burst.is_none() || self.requests_per_second.is_some(),
            "`burst` needs `requests_per_second`"
        );
        if let Some(share) = self.device_share {
            ensure!(
                (1e-6..=1.0).contains(&share),
                "`device_share` must be above 0 and at most 1, not `{share}`"
            );
        }
        Ok(TenantTerms {
            weight: self.weight.unwrap_or(1),
            priority_max: self.priority_max.map(Priority),
            requests: self.requests_per_second.map(|rate| request_rate(rate, self.burst)).transpose()?,
            concurrency_max: self.concurrency,
            bytes_in_max: self.bytes,
            device_ppm: self.device_share.map(|share| (share * 1e6).round() as u32),
        })
    }

    fn grant(&self, name: &str, gateways: bool) -> Result<Grant> {
        let is_name =
            !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(|b| b.is_ascii_graphic());
        ensure!(is_name, "a name has 1 to {NAME_BYTES_MAX} printable ASCII characters, and no space");
        ensure!(name != RESERVED, "`{RESERVED}` stands for all others in the metrics; choose another name");
        ensure!(self.keys.len() <= KEYS_MAX, "there are more than `{KEYS_MAX}` keys");
        let reachable = !self.keys.is_empty() || self.anonymous || gateways;
        ensure!(reachable, "nobody can be this tenant: give `keys`, which `quadrant tenant new-key` makes");
        let privileged = self.admin || self.gateway;
        ensure!(
            !(self.anonymous && privileged),
            "an `anonymous` tenant can be neither `admin` nor `gateway`"
        );
        let hash = |text: &String| {
            text.parse::<KeyHash>().map_err(|()| {
                // It might be a key itself, so it is not repeated.
                anyhow!("`keys` must be `sha256:` and 64 hexadecimal digits, as `quadrant tenant new-key` prints them")
            })
        };
        let models = self.models.clone().unwrap_or_else(|| vec!["*".to_owned()]);
        ensure!(!models.is_empty(), "`models` must name a model; leave it out to allow all");
        for model in &models {
            let fits = !model.is_empty() && !model[..model.len() - 1].contains('*');
            ensure!(fits, "in `models`, `{model}` must be a name, or a beginning that ends in `*`");
        }
        Ok(Grant {
            name: name.to_owned(),
            keys: self.keys.iter().map(hash).collect::<Result<_>>()?,
            models,
            admin: self.admin,
            gateway: self.gateway,
            anonymous: self.anonymous,
        })
    }
}

/// A rate, and what may come at once: by default what comes in a second.
///
/// # Errors
/// The rate is none.
pub(crate) fn request_rate(rate: f64, burst: Option<u32>) -> Result<RequestRate> {
    ensure!((0.001..=RATE_MAX).contains(&rate), "`requests_per_second` must be from 0.001 to {RATE_MAX}");
    let burst = burst.unwrap_or(rate.ceil() as u32).max(1);
    Ok(RequestRate { every: Duration::from_secs_f64(1.0 / rate), burst })
}

/// The file whose changes change the tenants.
fn watched(settings: &Settings) -> Option<&Path> {
    settings.tenants_file.as_deref().or(settings.read_from.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(toml: &str) -> Result<Tenancy> {
        Tenancy::read(&toml::from_str(toml).map_err(|error| anyhow!("{error}"))?)
    }

    fn key(digit: char) -> String {
        format!("keys = [\"sha256:{}\"]", digit.to_string().repeat(64))
    }

    #[test]
    fn tenants_are_understood() {
        let text = format!(
            "[tenants.a]\n{}\nweight = 3\npriority_max = 10\nrequests_per_second = 2.5\nconcurrency = 4\n\
             bytes = 1000\ndevice_share = 0.25\nmodels = [\"m\", \"n-*\"]\n[tenants.guest]\nanonymous = true\n",
            key('1')
        );
        let tenancy = read(&text).unwrap();
        let expect = TenantTerms {
            weight: 3,
            priority_max: Some(Priority(10)),
            requests: Some(RequestRate { every: Duration::from_millis(400), burst: 3 }),
            concurrency_max: Some(4),
            bytes_in_max: Some(1_000),
            device_ppm: Some(250_000),
        };
        assert_eq!(tenancy.terms["a"], expect);
        assert_eq!(tenancy.terms["guest"], TenantTerms::default());
        assert_eq!(tenancy.grants[0].models, ["m", "n-*"]);
        assert!(tenancy.grants[1].anonymous && tenancy.grants[1].models == ["*"] && !tenancy.is_open());
        assert!(read("").unwrap().is_open());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let one = key('1');
        for (text, part) in [
            ("[tenants.a]".to_owned(), "nobody can be this tenant"),
            ("[tenants.a]\nkeys = [\"secret\"]".to_owned(), "must be `sha256:`"),
            (format!("[tenants.a]\n{one}\n[tenants.b]\n{one}"), "by `tenants.a` and `tenants.b`"),
            (format!("[tenants.other]\n{one}"), "stands for all others"),
            (format!("[tenants.\"a b\"]\n{one}"), "no space"),
            (format!("[tenants.a]\n{one}\nweight = 0"), "`weight` must be from 1"),
            (format!("[tenants.a]\n{one}\nconcurrency = 0"), "`concurrency` must be from 1"),
            (format!("[tenants.a]\n{one}\nburst = 2"), "`burst` needs"),
            (format!("[tenants.a]\n{one}\nrequests_per_second = 0.0"), "`requests_per_second` must be"),
            (format!("[tenants.a]\n{one}\ndevice_share = 1.5"), "`device_share` must be"),
            (format!("[tenants.a]\n{one}\nmodels = []"), "must name a model"),
            (format!("[tenants.a]\n{one}\nmodels = [\"a*b\"]"), "`a*b` must be a name"),
            ("[tenants.a]\nanonymous = true\nadmin = true".to_owned(), "neither `admin` nor `gateway`"),
            ("[tenants.a]\nanonymous = true\n[tenants.b]\nanonymous = true".to_owned(), "`a` and `b`"),
            (format!("[tenants.a]\n{one}\n[scheduler.tenant_weights]\na = 2"), "`tenants.NAME.weight`"),
        ] {
            let error = format!("{:#}", read(&text).unwrap_err());
            assert!(error.contains(part), "`{text}` gave `{error}`");
            assert!(!error.contains("secret"), "a key is not repeated: {error}");
        }
    }

    #[test]
    fn changes_are_told_by_name() {
        let before = read(&format!("[tenants.a]\n{}\n[tenants.b]\n{}", key('1'), key('2'))).unwrap();
        let after =
            read(&format!("[tenants.b]\n{}\nweight = 2\n[tenants.c]\n{}", key('2'), key('3'))).unwrap();
        assert_eq!(after.changes(&before), "new `c`; changed `b`; gone `a`");
        assert_eq!(after.changes(&after), "");
    }
}
