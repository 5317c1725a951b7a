//! Who asks, and what he may ask for: API keys, the models of each tenant, who may administer.
//!
//! Keys are kept as SHA-256 digests. Keys that were generated have 256 bits of randomness, so nothing is to
//! be gained by guessing and a slow password hash would only slow every request down. While no tenant is
//! configured everybody may ask for everything, as the tenant that the gateway's headers name.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use constant_time_eq::constant_time_eq_32;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use quadrant_types::{Error, ErrorCode, TenantId};
use sha2::{Digest as _, Sha256};
use smallvec::SmallVec;

use crate::Shared;
use crate::terms;

/// The other usual place for a key.
const KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");
/// A longer one is not read; it is nobody's.
const KEY_BYTES_MAX: usize = 512;
/// How a digest is written.
const DIGEST_PREFIX: &str = "sha256:";

/// The digest of an API key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The digest of this key.
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Where it is looked up. That comparing these bytes takes longer the more of them are right gives
    /// nothing away: whoever can choose a key cannot choose its digest.
    fn bucket(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    fn is(&self, other: &Self) -> bool {
        constant_time_eq_32(&self.0, &other.0)
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DIGEST_PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

impl FromStr for KeyHash {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.strip_prefix(DIGEST_PREFIX).ok_or(())?.as_bytes();
        let (pairs, rest) = digits.as_chunks::<2>();
        let mut digest = [0; 32];
        if pairs.len() != digest.len() || !rest.is_empty() {
            return Err(());
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
            *byte = digit(*high).ok_or(())? << 4 | digit(*low).ok_or(())?;
        }
        Ok(Self(digest))
    }
}

/// What a tenant may do. What it may have is the scheduler's business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Its name.
    pub name: String,
    /// Its keys; any of them will do.
    pub keys: Vec<KeyHash>,
    /// The models that it may ask for, as names, or beginnings of names that end in `*`.
    pub models: Vec<String>,
    /// It may load and unload models and change settings.
    pub admin: bool,
    /// It may say on whose account its requests are, with the gateway's headers.
    pub gateway: bool,
    /// Requests without a key are its own.
    pub anonymous: bool,
}

impl Grant {
    fn covers(&self, model: &str) -> bool {
        self.models.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => model.starts_with(beginning),
            None => model == pattern,
        })
    }
}

/// A tenant with its number in the node.
#[derive(Debug)]
struct Granted {
    grant: Grant,
    tenant: TenantId,
}

/// Those whose keys are looked up in one place.
type Holders = SmallVec<[(KeyHash, Arc<Granted>); 1]>;

/// All that is granted; replaced as a whole.
#[derive(Debug, Default)]
pub(crate) struct Access {
    names: BTreeMap<String, Arc<Granted>>,
    keys: BTreeMap<u64, Holders>,
    anonymous: Option<Arc<Granted>>,
}

impl Access {
    /// `number` is the node's number of the tenant of a name.
    pub(crate) fn new(grants: Vec<Grant>, number: impl Fn(&str) -> TenantId) -> Self {
        let mut access = Self::default();
        for grant in grants {
            let granted = Arc::new(Granted { tenant: number(&grant.name), grant });
            for key in &granted.grant.keys {
                access.keys.entry(key.bucket()).or_default().push((*key, Arc::clone(&granted)));
            }
            if granted.grant.anonymous {
                access.anonymous = Some(Arc::clone(&granted));
            }
            access.names.insert(granted.grant.name.clone(), granted);
        }
        access
    }

    /// Whether nobody needs to say who he is, because no tenant was configured.
    pub(crate) fn is_open(&self) -> bool {
        self.names.is_empty()
    }

    fn holder(&self, key: &[u8]) -> Option<&Arc<Granted>> {
        if key.len() > KEY_BYTES_MAX {
            return None;
        }
        let hash = KeyHash::of(key);
        let candidates = self.keys.get(&hash.bucket())?;
        candidates.iter().find(|(known, _)| known.is(&hash)).map(|(_, granted)| granted)
    }
}

/// Whoever sent a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// On whose account it is; `None` while no tenant is configured.
    granted: Option<Arc<Granted>>,
    tenant: TenantId,
    /// Whose key it was, which for a gateway is not the account.
    holder: Option<Arc<Granted>>,
}

impl Caller {
    /// Who sent these headers. Nothing else of a request needs to be looked at to refuse a stranger.
    ///
    /// # Errors
    /// `Unauthenticated` if a key is needed and there is none, or nobody's. A key that is nobody's is refused
    /// also where none would be needed: who shows one means to be somebody.
    pub(crate) fn of(shared: &Shared, headers: &HeaderMap) -> Result<Self, Error> {
        let access = shared.access();
        if access.is_open() {
            let name = terms::tenant_name(headers)?;
            let tenant = name.map(|name| shared.handle.tenant(name)).unwrap_or_default();
            return Ok(Self { granted: None, tenant, holder: None });
        }
        let holder = match key(headers) {
            Some(key) => {
                access.holder(key).ok_or_else(|| refused(shared, "unknown_key", "the key is not known"))
            }
            None => access.anonymous.as_ref().ok_or_else(|| {
                let what = "a key is needed, as `Authorization: Bearer KEY` or `x-api-key: KEY`";
                refused(shared, "no_key", what)
            }),
        }?;
        let named = if holder.grant.gateway { terms::tenant_name(headers)? } else { None };
        // Whom the configuration does not name is on the gateway's own account.
        let granted = named.and_then(|name| access.names.get(name)).unwrap_or(holder);
        let (tenant, holder) = (granted.tenant, Some(Arc::clone(holder)));
        Ok(Self { granted: Some(Arc::clone(granted)), tenant, holder })
    }

    /// Its number in the node.
    pub(crate) fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The tenant's name; `anybody` while no tenant is configured.
    pub fn name(&self) -> &str {
        self.holder.as_ref().map_or("anybody", |holder| &holder.grant.name)
    }

    /// Whether it may know that there is a model of this name.
    pub(crate) fn sees(&self, model: &str) -> bool {
        self.granted.as_ref().is_none_or(|granted| granted.grant.covers(model))
    }

    /// Whether it may ask for a model of this name, be there one or not.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub(crate) fn may_use(&self, shared: &Shared, model: &str) -> Result<(), Error> {
        if self.sees(model) {
            return Ok(());
        }
        shared.handle.record_denied("model");
        let name = self.granted.as_ref().map_or("", |granted| &granted.grant.name);
        let what = format!("tenant `{name}` may not use model `{model}`");
        Err(Error::new(ErrorCode::PermissionDenied, what))
    }

    /// Whether it may administer. While no tenant is configured everybody may.
    pub(crate) fn administers(&self) -> bool {
        self.holder.as_ref().is_none_or(|holder| holder.grant.admin)
    }
}

fn refused(shared: &Shared, why: &'static str, what: &'static str) -> Error {
    shared.handle.record_denied(why);
    Error::new(ErrorCode::Unauthenticated, what)
}

/// The key that the headers show, if any. Another scheme of `Authorization` is a proxy's business.
fn key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    let key = bearer.or_else(|| headers.get(KEY_HEADER).map(http::HeaderValue::as_bytes));
    key.map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_digest_reads_as_it_is_written() {
        let hash = KeyHash::of(b"abc");
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((hash.to_string().as_str(), text.parse()), (text, Ok(hash)));
        assert_eq!(format!("{hash:?}"), "KeyHash(ba78..)", "not even digests belong into logs");
        for wrong in ["", "sha256:", &text[7..], &text[..70], &format!("{text}0"), &text.replace("ba", "xy")]
        {
            assert_eq!(wrong.parse::<KeyHash>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn keys_are_found_in_both_places() {
        for (lines, expect) in [
            (&[][..], None),
            (&[("authorization", "Bearer k1")], Some("k1")),
            (&[("authorization", "bearer  k1 ")], Some("k1")),
            (&[("x-api-key", "k2")], Some("k2")),
            (&[("authorization", "Basic abc"), ("x-api-key", "k2")], Some("k2")),
            (&[("authorization", "Bearer k1"), ("x-api-key", "k2")], Some("k1")),
            (&[("authorization", "Bearer ")], Some("")),
        ] {
            assert_eq!(key(&headers(lines)), expect.map(str::as_bytes), "{lines:?}");
        }
    }

    #[test]
    fn a_key_opens_its_own_tenant_and_no_other() {
        let grant = |name: &str, key: &[u8]| Grant {
            name: name.to_owned(),
            keys: vec![KeyHash::of(key)],
            ..Grant::default()
        };
        let access = Access::new(vec![grant("a", b"one"), grant("b", b"two")], |_| TenantId(1));
        let name = |key: &[u8]| access.holder(key).map(|granted| granted.grant.name.as_str());
        assert_eq!(
            (name(b"one"), name(b"two"), name(b"three"), name(b"")),
            (Some("a"), Some("b"), None, None)
        );
        assert_eq!(name(&[b'x'; KEY_BYTES_MAX + 1]), None);
        assert!(!access.is_open() && Access::default().is_open());
    }

    #[test]
    fn models_are_covered_by_name_or_by_beginning() {
        let grant = |models: &[&str]| Grant {
            models: models.iter().map(|&model| model.to_owned()).collect(),
            ..Grant::default()
        };
        for (models, model, expect) in [
            (&["*"][..], "anything", true),
            (&["a", "b-*"], "a", true),
            (&["a", "b-*"], "ab", false),
            (&["a", "b-*"], "b-1", true),
            (&["a", "b-*"], "b", false),
            (&[], "a", false),
        ] {
            assert_eq!(grant(models).covers(model), expect, "{models:?} {model}");
        }
    }
}
