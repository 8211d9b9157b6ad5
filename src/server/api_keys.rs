//! API keys: which keys are valid, and which tenant and priority each stands for.

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::error::ApiError;
use crate::request::Tenant;

/// SHA-256 digest of an API key. The key itself is not kept.
struct KeyDigest([u8; 32]);

impl KeyDigest {
    fn new(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// The key's label in metrics and logs: 8 hexadecimal digits of its digest, enough to tell keys apart
    /// and too few to reconstruct one.
    fn label(&self) -> String {
        self.0[..4].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Compares in constant time, so that a nearly right key takes as long as a wrong one.
    fn matches(&self, other: &Self) -> bool {
        bool::from(self.0.ct_eq(&other.0))
    }
}

/// The tenant and priority that an API key stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Caller {
    /// Tenant of every request with the key.
    pub tenant: Tenant,
    /// Added to the priority of each request with the key. A request cannot undercut it: its own priority is
    /// at least 0 where the operator gives keys priorities.
    pub priority: i32,
}

/// All valid API keys, each with its caller if it is a named key. Without any, every request is valid.
#[derive(Default)]
pub(crate) struct ApiKeys(Vec<(KeyDigest, Option<Caller>)>);

impl ApiKeys {
    /// Makes the list from the optional key that all clients share and the named keys.
    pub(crate) fn new(shared: Option<&str>, named: &[(String, Caller)]) -> Self {
        let shared = shared.map(|key| (KeyDigest::new(key.as_bytes()), None));
        let named = named.iter().map(|(key, caller)| (KeyDigest::new(key.as_bytes()), Some(caller.clone())));
        Self(shared.into_iter().chain(named).collect())
    }

    /// Labels of usage in metrics and logs, one for each key, or one for requests without a key if there are
    /// no keys.
    pub(crate) fn usage_labels(&self) -> Vec<String> {
        let default = Tenant::default();
        let label =
            |caller: &Option<Caller>| self.usage_label(caller.as_ref().map_or(&default, |c| &c.tenant));
        let without_keys = self.0.is_empty().then(|| self.usage_label(&default));
        without_keys.into_iter().chain(self.0.iter().map(|(_, caller)| label(caller))).collect()
    }

    /// Label of a tenant's usage in metrics and logs: the tenant's name, or the shared key's label if the
    /// tenant has no name.
    pub(crate) fn usage_label(&self, tenant: &Tenant) -> String {
        let shared = self.0.iter().find(|(_, caller)| caller.is_none());
        let shared = shared.map_or_else(|| "none".to_owned(), |(key, _)| key.label());
        match tenant.name.strip_prefix("user:") {
            // Clients choose their users' names. A name that equals another label keeps its prefix `user:`.
            Some(user) if user.starts_with("key:") || user.starts_with("user:") => tenant.name.to_string(),
            Some(user) if ["none", "other", &shared].contains(&user) => tenant.name.to_string(),
            Some(user) => user.to_owned(),
            None if tenant.name.is_empty() => shared,
            None => tenant.name.to_string(),
        }
    }

    /// The caller whose tenant has this name. A key that was removed since has weight 1 and priority 0.
    pub(crate) fn caller_named(&self, name: &str) -> Option<Caller> {
        let known = self.0.iter().filter_map(|(_, caller)| caller.as_ref());
        let found = known.into_iter().find(|caller| &*caller.tenant.name == name).cloned();
        let removed = || Caller { tenant: Tenant { name: name.into(), weight: 1 }, priority: 0 };
        (!name.is_empty()).then(|| found.unwrap_or_else(removed))
    }

    /// Returns true if every client has access.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks the key of a request. Returns the caller if the key is a named one.
    ///
    /// Every key is compared, so that the time does not depend on which one matches.
    ///
    /// # Errors
    /// [`ApiError::BadKey`] if keys are configured and `given` is none of them.
    pub(crate) fn authenticate(&self, given: Option<&[u8]>) -> Result<Option<Caller>, ApiError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let given = given.map(KeyDigest::new).ok_or(ApiError::BadKey)?;
        let found = self.0.iter().fold(None, |found, (key, caller)| match key.matches(&given) {
            true => Some(caller),
            false => found,
        });
        found.cloned().ok_or(ApiError::BadKey)
    }
}

/// The API key that a request carries: the token of `Authorization: Bearer`, or the value of `x-api-key`,
/// which clients of Anthropic's API send. An `Authorization` header of another scheme is ignored.
///
/// # Errors
/// [`ApiError::BadKey`] if the request carries different keys.
pub(crate) fn given(headers: &HeaderMap) -> Result<Option<&[u8]>, ApiError> {
    let bearer = headers.get_all(AUTHORIZATION).iter().filter_map(|value| bearer_token(value.as_bytes()));
    let plain = headers.get_all("x-api-key").iter().map(HeaderValue::as_bytes);
    let mut keys = bearer.chain(plain.filter(|key| !key.is_empty()));
    let first = keys.next();
    if keys.all(|key| Some(key) == first) { Ok(first) } else { Err(ApiError::BadKey) }
}

/// The token of `Bearer <token>`; the scheme's case does not matter.
fn bearer_token(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}
