//! Bearer tokens on the clients' port.

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use rookery_proto::{
    server::Peer,
    status::{Reason, refuse},
};
use tonic::Status;
use tower::{Layer, Service};
use tracing::error;

use super::{BearerToken, Caller, Refusals, Role, hash_of, token::same, unauthenticated};
use crate::{domain::Millis, store::Store};

/// How long a token that was found good is not looked up again; a revoked one works for so long at most.
const REMEMBERED: Duration = Duration::from_secs(2);

/// Tokens remembered; beyond that all are forgotten, and looked up again.
const MOST_REMEMBERED: usize = 1024;

/// What may be called without a token: whether somebody is at home.
const OPEN: &str = "/grpc.health.v1.Health/";

/// Finds out who calls. Clones share what they remember.
#[derive(Clone)]
pub struct Access {
    tokens: Option<Tokens>,
}

#[derive(Clone)]
struct Tokens {
    store: Store,
    refusals: Refusals,
    remembered: Arc<Mutex<HashMap<String, Remembered>>>,
}

#[derive(Clone)]
struct Remembered {
    caller: Caller,
    ends: Option<Millis>,
    until: Instant,
}

impl Access {
    /// Everybody may do everything, as on a loopback port without TLS.
    pub fn everybody() -> Self {
        Self { tokens: None }
    }

    /// Only who has a token of the store.
    pub fn tokens(store: Store, refusals: Refusals) -> Self {
        Self { tokens: Some(Tokens { store, refusals, remembered: Arc::default() }) }
    }

    /// Who sent these headers.
    ///
    /// # Errors
    /// UNAUTHENTICATED, always with the same message for a token that is unknown or has ended; UNAVAILABLE while the
    /// store fails.
    pub async fn caller(&self, headers: &HeaderMap, peer: Option<SocketAddr>) -> Result<Caller, Status> {
        let Some(tokens) = &self.tokens else { return Ok(Caller::local()) };
        let found = tokens.find(headers).await?;
        found.map_err(|why| {
            if let Some(peer) = peer {
                tokens.refusals.note(peer, "bearer token", "", why);
            }
            match why {
                NONE => unauthenticated(),
                _ => refuse(Reason::Unauthenticated, "the bearer token is unknown or has ended"),
            }
        })
    }
}

const NONE: &str = "no bearer token";

impl Tokens {
    /// `Ok(Err(why))`: not a good token; `Err`: nobody can tell now.
    async fn find(&self, headers: &HeaderMap) -> Result<Result<Caller, &'static str>, Status> {
        let Some(text) = bearer(headers) else { return Ok(Err(NONE)) };
        if !BearerToken::looks_like(text) {
            return Ok(Err("not a token of this control plane"));
        }
        let hash = hash_of(text);
        let now = Millis::now();
        if let Some(known) = self.remembered(&hash) {
            return Ok(if has_ended(known.ends, now) {
                Err("the token has ended")
            } else {
                Ok(known.caller)
            });
        }
        let record = self.store.token_by_hash(&hash).await.map_err(|error| {
            error!(error = rookery_proto::server::chain(&error), "bearer tokens cannot be looked up");
            refuse(Reason::StorageFailed, "tokens cannot be checked at this moment")
        })?;
        let Some(record) = record.filter(|record| same(&record.hash, &hash)) else {
            return Ok(Err("an unknown token"));
        };
        if has_ended(record.ends, now) {
            return Ok(Err("the token has ended"));
        }
        let role: Role = record.role.parse().map_err(|error| {
            error!(token = record.name, %error, "the store has a token of an unknown role");
            refuse(Reason::Internal, "the token's role is unknown here")
        })?;
        let caller = Caller { name: record.name, role };
        self.remember(hash, &caller, record.ends);
        Ok(Ok(caller))
    }

    fn remembered(&self, hash: &str) -> Option<Remembered> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(hash).filter(|known| known.until > Instant::now()).cloned()
    }

    fn remember(&self, hash: String, caller: &Caller, ends: Option<Millis>) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MOST_REMEMBERED {
            remembered.clear();
        }
        let known = Remembered { caller: caller.clone(), ends, until: Instant::now() + REMEMBERED };
        remembered.insert(hash, known);
    }
}

fn has_ended(ends: Option<Millis>, now: Millis) -> bool {
    ends.is_some_and(|ends| ends <= now)
}

/// The token of `authorization: Bearer TOKEN`; the scheme's letters may be large or small.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Puts the [`Caller`] into every request of a server, and refuses those without.
#[derive(Clone)]
pub struct AccessLayer(pub Access);

impl<S> Layer<S> for AccessLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, access: self.0.clone() }
    }
}

/// A service behind an [`AccessLayer`].
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    access: Access,
}

impl<S, B, R> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The one that is ready goes along, its copy stays.
        let copy = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, copy);
        let access = self.access.clone();
        Box::pin(async move {
            if !request.uri().path().starts_with(OPEN) {
                let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
                match access.caller(request.headers(), peer).await {
                    Ok(caller) => {
                        request.extensions_mut().insert(caller);
                    }
                    Err(status) => return Ok(status.into_http()),
                }
            }
            inner.call(request).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_header_has_a_token() {
        let token = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(token("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(token("bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(token("Basic abc"), None);
        assert_eq!(token("Bearer"), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn everybody_is_local_without_tokens() {
        assert_eq!(Access::everybody().caller(&HeaderMap::new(), None).await.unwrap(), Caller::local());
    }
}
