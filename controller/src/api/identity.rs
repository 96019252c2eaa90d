//! Who asks, and what they may do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{extract::FromRequestParts, http::request::Parts};
use tokio::net::unix::UCred;

use super::{
    App,
    policies::author,
    problem::{Kind, Problem},
};

/// A process as the kernel knows it (`SO_PEERCRED`, unix(7)). Each request carries the one of its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// The user's name, the number where nobody has it.
    pub name: String,
    /// It may change what is in force.
    pub applies: bool,
}

/// Users who may change what is in force, beside root. Who may read is whom the socket's group and mode let in.
#[derive(Clone, Debug, Default)]
pub struct Appliers(pub BTreeSet<u32>);

impl Appliers {
    /// What a peer may do.
    #[must_use]
    pub fn identify(&self, peer: UCred) -> Identity {
        let uid = peer.uid();
        let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
        let name = user.map_or_else(|| uid.to_string(), |user| user.name);
        Identity { uid, name, applies: uid == 0 || self.0.contains(&uid) }
    }
}

impl<S: Sync> FromRequestParts<S> for Identity {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let identity = parts.extensions.get::<Self>().cloned();
        identity.ok_or_else(|| Problem::new(Kind::Forbidden, "the connection does not say who asks"))
    }
}

/// Somebody who may change what is in force.
#[derive(Clone, Debug)]
pub struct Applier(pub Identity);

/// Whom the audit log has been told of lately, and since when: who asks again and again does not fill it.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(Arc<Mutex<BTreeMap<u32, Instant>>>);

/// For so long a user who may not is told of once.
const ONCE: Duration = Duration::from_secs(60);

impl Told {
    fn is_news(&self, uid: u32) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, since| since.elapsed() < ONCE);
        let news = !told.contains_key(&uid);
        told.entry(uid).or_insert_with(Instant::now);
        news
    }
}

impl FromRequestParts<App> for Applier {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let identity = Identity::from_request_parts(parts, app).await?;
        if identity.applies {
            return Ok(Self(identity));
        }
        if app.told.is_news(identity.uid) {
            let (author, what) = (author(&identity), format!("{} {}", parts.method, parts.uri.path()));
            app.handle.ask(move |agent| agent.forbidden(&author, &what)).await?;
        }
        let who = &identity.name;
        let remedy = format!("user {who} may read, not apply; root and the users of `--apply-uid` may");
        Err(Problem::new(Kind::Forbidden, remedy))
    }
}
