//! Tokens: made, read, checked against the tables, remembered.
//!
//! A token says who and what for; whether that still holds is asked of the tables at every validation. What was found
//! is remembered with the two epochs (of everything, and of the user) it was found under, and is used again only after
//! one indexed read has shown that both still stand there (where no other process can write to the database, a count of
//! our own writes in memory says it without the read). So a change takes effect on every server that shares the
//! database with the first request that begins after it was committed; nothing depends on time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use base::{
    ApplicationCredentialId, Clock, DomainId, EndpointId, Entropy, ProjectId, Result, RoleId, Timestamp,
    UserId,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use contract::auth::{AuthContext, Authenticator, Moment, Presented, Scope};
use parking_lot::{Mutex, RwLock};
use reconcile::Together;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use store::{Store, Tx};

use crate::cache::Cache;
use crate::directory;
use crate::federation;
use crate::federation::model::ServiceProvider;
use crate::jws::Jws;
use crate::keys::Keys;
use crate::logic::access;
use crate::logic::catalog::fill;
use crate::logic::certificate;
use crate::logic::payload::{self, Federated, Payload, PayloadScope};
use crate::model::{
    AccessToken, ApplicationCredential, Domain, Endpoint, Epoch, Place, Project, Revocation, RuleOfAccess,
    Service, Trust, User,
};
use crate::revocations;
use crate::words;

/// Tokens whose epochs are looked at together.
const LOOKS: usize = 64;

/// What tokens tell of the cloud, as of one epoch.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Services with their endpoints.
    pub services: Vec<(Service, Vec<Endpoint>)>,
    /// Clouds that take the word of this one for its users.
    pub service_providers: Vec<ServiceProvider>,
}

/// When a look at rows of epochs began, and what it saw.
type Look = (Moment, Arc<Vec<Epoch>>);

/// A token that was valid when its epochs stood where they are noted.
#[derive(Debug)]
pub struct Validated {
    /// Who is calling.
    pub auth: Arc<AuthContext>,
    /// Ids and names of the roles, by name.
    pub roles: Vec<(RoleId, String)>,
    /// Its own audit id, then that of the chain's first token.
    pub audit_ids: Vec<String>,
    /// The application credential it was got with.
    pub application_credential: Option<Delegation>,
    /// The trust it was got by.
    pub trust: Option<ByTrust>,
    /// The OAuth 1.0a access token it was got with.
    pub access_token: Option<ByAccessToken>,
    /// The identity provider it came through, and the groups claimed now.
    pub federated: Option<Federated>,
    /// The thumbprint of the client certificate without which it is worth nothing.
    pub thumbprint: Option<String>,
    catalog: Arc<Catalog>,
    /// The endpoints its project sees, if not all.
    visible: Option<BTreeSet<EndpointId>>,
    password_expires_at: Option<Timestamp>,
    /// The users whose affairs it depends on.
    users: Vec<UserId>,
    /// When what it was got by ends, if that is before the token does.
    good_until: Option<Timestamp>,
    epochs: (u64, u64),
    /// The count of this process's writes under which the epochs were last seen standing.
    seen: AtomicU64,
    /// When the last look began that saw them stand.
    looked: Mutex<Moment>,
    whole: OnceLock<Bytes>,
    bare: OnceLock<Bytes>,
}

/// Who lets whom act by a trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByTrust {
    /// The trust.
    pub id: String,
    /// Who delegates.
    pub trustor: UserId,
    /// To whom.
    pub trustee: UserId,
    /// Whether the token names the trustor as its user.
    pub impersonation: bool,
}

/// Which program acts for a user by OAuth 1.0a.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByAccessToken {
    /// The access token.
    pub id: String,
    /// The program.
    pub consumer_id: String,
}

/// What an application credential limits a token to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    /// Its id.
    pub id: ApplicationCredentialId,
    /// Its name.
    pub name: String,
    /// Whether it may manage application credentials.
    pub unrestricted: bool,
    /// What it may be used for; `None` = everything.
    pub access_rules: Option<Vec<RuleOfAccess>>,
}

/// A token to be made.
#[derive(Debug, Clone)]
pub struct Order {
    /// The user.
    pub user_id: UserId,
    /// Methods that were passed.
    pub methods: Vec<&'static str>,
    /// What for.
    pub scope: PayloadScope,
    /// When it shall end; `None` = the usual time from now.
    pub expires_at: Option<Timestamp>,
    /// Audit id of the first token of the chain.
    pub parent_audit_id: Option<String>,
    /// The application credential that was passed.
    pub application_credential_id: Option<ApplicationCredentialId>,
    /// The trust that is used.
    pub trust_id: Option<String>,
    /// The OAuth 1.0a access token that was proved.
    pub access_token_id: Option<String>,
    /// The identity provider the user came through.
    pub federated: Option<Federated>,
    /// The thumbprint of the client certificate it shall be bound to.
    pub thumbprint: Option<String>,
    /// The generation under which the user was authenticated: a password changed since then makes no token. With a trust,
    /// the trustor's is added.
    pub generation: u64,
}

impl Order {
    /// An unscoped token for a user who was authenticated under this generation.
    pub fn of(user_id: UserId, generation: u64) -> Self {
        Order {
            user_id,
            methods: Vec::new(),
            scope: PayloadScope::Unscoped,
            expires_at: None,
            parent_audit_id: None,
            application_credential_id: None,
            trust_id: None,
            access_token_id: None,
            federated: None,
            thumbprint: None,
            generation,
        }
    }
}

/// Lifetimes and sizes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Seconds a token lives.
    pub lifetime: i64,
    /// Seconds after its end in which `allow_expired` still reads it.
    pub expired_window: i64,
    /// Most tokens remembered.
    pub remembered: usize,
    /// Name and domain name of the administrators' project.
    pub admin_project: (String, String),
    /// Whether other processes may write to the database.
    pub shared: bool,
}

/// The tokens of this cloud.
pub struct Tokens {
    store: Store,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    keys: Arc<Keys>,
    /// Signs tokens where they are not sealed.
    jws: Option<Jws>,
    limits: Limits,
    cache: Cache<[u8; 32], Validated>,
    catalog: RwLock<Option<(u64, Arc<Catalog>)>>,
    /// Looks at the rows of epochs with these ids.
    looks: Together<BTreeSet<String>, Option<Look>>,
    /// Grows after each write of this process.
    writes: AtomicU64,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({} remembered)", self.cache.len())
    }
}

/// What the tables say about a payload.
struct Facts {
    user: User,
    user_domain: Domain,
    scope: Scope,
    roles: Vec<(RoleId, String)>,
    application_credential: Option<Delegation>,
    trust: Option<ByTrust>,
    access_token: Option<ByAccessToken>,
    visible: Option<BTreeSet<EndpointId>>,
    users: Vec<UserId>,
    good_until: Option<Timestamp>,
    federated: Option<Federated>,
    epochs: (u64, u64),
    catalog: Option<Catalog>,
}

impl Tokens {
    /// Tokens about what is in `store`: signed by `jws` where there is one, else sealed with `keys`.
    pub fn new(
        store: Store,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
        keys: Arc<Keys>,
        jws: Option<Jws>,
        limits: Limits,
    ) -> Self {
        let cache = Cache::new(limits.remembered);
        Tokens {
            store,
            clock,
            entropy,
            keys,
            jws,
            limits,
            cache,
            catalog: RwLock::new(None),
            looks: Together::new(LOOKS),
            writes: AtomicU64::new(0),
        }
    }

    /// The keys.
    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// How many tokens are remembered.
    pub fn remembered(&self) -> usize {
        self.cache.len()
    }

    /// What a token says, if it is valid now.
    ///
    /// # Errors
    /// Only the store's; a token that is not valid is `None`.
    pub async fn validate(&self, token: &str) -> Result<Option<Arc<Validated>>> {
        self.validate_for(token, Moment::next(), None).await
    }

    /// As [`Tokens::validate`], for a request that began at `began`: what was seen since then is good enough for it. What
    /// has to be looked at of `subject`, the token the request is about, is looked at together with this one.
    ///
    /// # Errors
    /// As [`Tokens::validate`].
    pub async fn validate_for(
        &self,
        token: &str,
        began: Moment,
        subject: Option<&str>,
    ) -> Result<Option<Arc<Validated>>> {
        let key = key_of(token);
        let writes = self.writes.load(Ordering::SeqCst);
        let now = self.clock.now();
        if self.cache.get(&key).is_some_and(|known| known.auth.expires_at <= now) {
            self.cache.remove(&key);
            return Ok(None);
        }
        if let Some(known) = self.cache.get(&key).filter(|k| k.good_until.is_none_or(|end| end > now)) {
            // Where no other process can write, none of our own writes means nothing has changed.
            let alone = !self.limits.shared && known.seen.load(Ordering::SeqCst) == writes;
            if alone || *known.looked.lock() > began {
                return Ok(Some(known));
            }
            let subject = subject.filter(|s| *s != token).and_then(|s| self.cache.get(&key_of(s)));
            let both: Vec<&Validated> = std::iter::once(&*known).chain(subject.as_deref()).collect();
            if self.stand(&both, writes).await? {
                return Ok(Some(known));
            }
        }
        let valid = self.resolve(token, 0).await?;
        match &valid {
            Some(valid) => self.cache.put(key, valid.clone()),
            None => self.cache.remove(&key),
        }
        Ok(valid)
    }

    /// Whether the epochs of the first of `tokens` stand where they were; what is found is noted with all of them. Who asks
    /// at the same time shares a look, which begins after all of them asked.
    async fn stand(&self, tokens: &[&Validated], writes: u64) -> Result<bool> {
        let look = |all: Vec<BTreeSet<String>>| async move {
            let ids: BTreeSet<String> = all.iter().flatten().cloned().collect();
            let began = Moment::next();
            let rows = self.store.glance::<Epoch>(ids.into_iter().collect()).await;
            let seen = rows.ok().map(|rows| (began, Arc::new(rows)));
            vec![seen; all.len()]
        };
        let ids: BTreeSet<String> = tokens.iter().flat_map(|t| directory::epoch_ids(&t.users)).collect();
        let (began, rows) = match self.looks.call(ids.clone(), look).await {
            Some(seen) => seen,
            // What is wrong with the database is told to each.
            None => {
                let began = Moment::next();
                (began, Arc::new(self.store.glance(ids.into_iter().collect()).await?))
            }
        };
        let mut stand = tokens.iter().map(|token| {
            let stands = directory::epochs_in(&rows, &token.users) == token.epochs;
            if stands {
                token.seen.store(writes, Ordering::SeqCst);
                let mut looked = token.looked.lock();
                *looked = (*looked).max(began);
            }
            stands
        });
        let first = stand.next().unwrap_or(false);
        stand.for_each(drop);
        Ok(first)
    }

    /// As [`Tokens::validate`], also for tokens that ended within the window of `allow_expired`.
    ///
    /// # Errors
    /// As [`Tokens::validate`].
    pub async fn validate_late(&self, token: &str) -> Result<Option<Arc<Validated>>> {
        match self.validate(token).await? {
            Some(valid) => Ok(Some(valid)),
            None => self.resolve(token, self.limits.expired_window).await,
        }
    }

    /// What a token says and the whole second it was issued in, if one of our keys made it.
    fn open(&self, token: &str, now: Timestamp) -> Option<(Payload, i64)> {
        if let Some((bytes, seconds)) = self.keys.open_token(token, now) {
            return Some((payload::unpack(&bytes)?, seconds));
        }
        self.jws.as_ref()?.open_token(token, now)
    }

    fn make(&self, payload: &Payload, now: Timestamp) -> Result<String> {
        if let Some(jws) = &self.jws {
            return jws.seal(payload, now);
        }
        let bytes =
            payload::pack(payload).ok_or_else(|| base::Error::internal("a token that cannot be packed"))?;
        Ok(self.keys.seal(&bytes, now))
    }

    async fn resolve(&self, token: &str, window: i64) -> Result<Option<Arc<Validated>>> {
        let (now, writes, began) = (self.clock.now(), self.writes.load(Ordering::SeqCst), Moment::next());
        let Some((payload, seconds)) = self.open(token, now) else { return Ok(None) };
        if payload.expires_at.plus_secs(window) <= now {
            return Ok(None);
        }
        let micros = i64::from(payload.issued_micros.unwrap_or(0));
        let issued_at = Timestamp(Timestamp::from_secs(seconds).0.saturating_add(micros));
        let payload = Arc::new(payload);
        let (known, of) = (self.catalog.read().as_ref().map(|c| c.0), payload.clone());
        let facts = self.store.read(move |tx| facts(tx, &of, Some(issued_at), now, known)).await?;
        Ok(facts.map(|facts| Arc::new(self.validated(&payload, issued_at, facts, writes, began))))
    }

    /// Makes a token.
    ///
    /// # Errors
    /// `Unauthenticated` where the user may not have it.
    pub async fn issue(&self, order: Order) -> Result<(String, Arc<Validated>)> {
        let (now, writes, began) = (self.clock.now(), self.writes.load(Ordering::SeqCst), Moment::next());
        let mut id = [0; 16];
        self.entropy.fill(&mut id);
        let mut audit_ids = vec![URL_SAFE_NO_PAD.encode(id)];
        audit_ids.extend(order.parent_audit_id);
        let usual = Timestamp::from_secs(now.plus_secs(self.limits.lifetime).as_secs());
        let micros = u32::try_from(now.0.rem_euclid(1_000_000)).unwrap_or(0);
        let payload = Arc::new(Payload {
            user_id: order.user_id.as_str().to_owned(),
            // In Keystone's order, which is how they come out of the token's bit set.
            methods: payload::ordered(&order.methods),
            scope: order.scope,
            expires_at: order.expires_at.map_or(usual, |e| e.min(usual)),
            audit_ids,
            application_credential_id: order.application_credential_id.map(|a| a.as_str().to_owned()),
            trust_id: order.trust_id,
            access_token_id: order.access_token_id,
            federated: order.federated,
            thumbprint: order.thumbprint,
            issued_micros: Some(micros),
            generation: Some(order.generation),
        });
        let (known, of) = (self.catalog.read().as_ref().map(|c| c.0), payload.clone());
        let facts = self.store.read(move |tx| facts(tx, &of, None, now, known)).await?;
        let facts = facts.ok_or_else(words::unauthorized)?;
        let token = self.make(&payload, now)?;
        let valid = Arc::new(self.validated(&payload, now, facts, writes, began));
        self.cache.put(key_of(&token), valid.clone());
        Ok((token, valid))
    }

    /// Revokes a token for good.
    ///
    /// # Errors
    /// The store's.
    pub async fn revoke(self: &Arc<Self>, valid: &Validated) -> Result<()> {
        let Some(audit_id) = valid.audit_ids.first().cloned() else { return Ok(()) };
        let (expires_at, user) = (valid.auth.expires_at, valid.auth.user_id.clone());
        let window = self.limits.expired_window;
        self.write(move |tx| {
            revocations::note(tx, revocations::Of::Token(&audit_id))?;
            if tx.get::<Revocation>(&audit_id)?.is_none() {
                // `allow_expired` must not bring it back.
                let expires_at = expires_at.plus_secs(window);
                directory::insert_once(
                    tx,
                    &mut Revocation { id: audit_id.clone(), meta: store::Meta::default(), expires_at },
                )?;
            }
            directory::touch_user(tx, &user)
        })
        .await
    }

    /// A write of this service. It is counted once it is on disk, also if the caller has gone away meanwhile: what is
    /// remembered must not outlive it.
    ///
    /// # Errors
    /// The store's, and those of `work`.
    pub async fn write<T, F>(self: &Arc<Self>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Tx<'_>) -> Result<T> + Send + Sync + 'static,
    {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let result = this.store.write(work).await;
            this.writes.fetch_add(1, Ordering::SeqCst);
            result
        });
        task.await.map_err(base::Error::internal)?
    }

    fn validated(
        &self,
        payload: &Payload,
        issued_at: Timestamp,
        facts: Facts,
        writes: u64,
        looked: Moment,
    ) -> Validated {
        let catalog = match facts.catalog {
            Some(fresh) => {
                let fresh = Arc::new(fresh);
                *self.catalog.write() = Some((facts.epochs.0, fresh.clone()));
                fresh
            }
            None => self.catalog.read().as_ref().map(|c| c.1.clone()).unwrap_or_default(),
        };
        let (name, domain) = (&self.limits.admin_project.0, &self.limits.admin_project.1);
        let is_admin_project = matches!(&facts.scope, Scope::Project { name: n, domain_name: d, .. } if n == name && d == domain);
        let mut roles: Vec<String> = facts.roles.iter().map(|(_, name)| name.to_lowercase()).collect();
        roles.sort_unstable();
        let password_expires_at = facts.user.password_expires_at;
        let auth = Arc::new(AuthContext {
            user_id: facts.user.id,
            user_name: facts.user.name,
            user_domain_id: facts.user_domain.id,
            user_domain_name: facts.user_domain.name,
            scope: facts.scope,
            roles,
            is_admin_project,
            expires_at: payload.expires_at,
            issued_at,
            methods: payload.methods.iter().map(|m| (*m).to_owned()).collect(),
            audit_id: payload.audit_ids.first().cloned().unwrap_or_default(),
        });
        Validated {
            auth,
            roles: facts.roles,
            audit_ids: payload.audit_ids.clone(),
            application_credential: facts.application_credential,
            trust: facts.trust,
            access_token: facts.access_token,
            federated: facts.federated,
            thumbprint: payload.thumbprint.clone(),
            catalog,
            visible: facts.visible,
            password_expires_at,
            users: facts.users,
            good_until: facts.good_until,
            epochs: facts.epochs,
            seen: AtomicU64::new(writes),
            looked: Mutex::new(looked),
            whole: OnceLock::new(),
            bare: OnceLock::new(),
        }
    }
}

/// What a token is remembered by.
fn key_of(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Checks a payload against the tables: `None` where it gives no right any more. `issued_at` is `None` for a token
/// that is just being made.
fn facts(
    tx: &mut Tx<'_>,
    payload: &Payload,
    issued_at: Option<Timestamp>,
    now: Timestamp,
    known_catalog: Option<u64>,
) -> Result<Option<Facts>> {
    if let Some(audit_id) = payload.audit_ids.first()
        && tx.get::<Revocation>(audit_id)?.is_some()
    {
        return Ok(None);
    }
    let revoked = |before: Option<Timestamp>| matches!((issued_at, before), (Some(i), Some(b)) if i <= b);
    let Some((trustee, trustee_domain)) = usable(tx, &UserId::new(payload.user_id.clone()), revoked)? else {
        return Ok(None);
    };
    let (mut user, mut user_domain) = (trustee, trustee_domain);
    let mut users = vec![user.id.clone()];
    let mut generation = user.token_generation;
    let mut trusted = None;
    let mut good_until = None;
    if let Some(id) = &payload.trust_id {
        let Some(chain) = holding(tx, id, &user.id, now)? else { return Ok(None) };
        let (Some(trust), Some(origin)) = (chain.first(), chain.last()) else { return Ok(None) };
        let Some((trustor, trustor_domain)) = usable(tx, &trust.trustor_user_id, revoked)? else {
            return Ok(None);
        };
        generation += trustor.token_generation;
        if payload.generation.is_none() && revoked(trustor.password_changed_at) {
            return Ok(None);
        }
        good_until = chain.iter().filter_map(|t| t.expires_at).min();
        users.extend(chain.iter().flat_map(|t| [t.trustor_user_id.clone(), t.trustee_user_id.clone()]));
        users.sort_unstable();
        users.dedup();
        let by = ByTrust {
            id: id.clone(),
            trustor: trustor.id.clone(),
            trustee: user.id.clone(),
            impersonation: trust.impersonation,
        };
        trusted = Some((by, trust.roles.clone(), origin.trustor_user_id.clone(), trust.project_id.clone()));
        if trust.impersonation {
            (user, user_domain) = (trustor, trustor_domain);
        }
    }
    let epochs = directory::epochs(tx, &users)?;
    if payload.generation.is_some_and(|g| g != generation) {
        return Ok(None);
    }
    // Tokens of a Python Keystone carry no generation: the time of the password must do.
    if payload.generation.is_none() && revoked(user.password_changed_at) {
        return Ok(None);
    }
    let place = match &payload.scope {
        PayloadScope::Unscoped => None,
        PayloadScope::System => Some((Scope::System, Place::System)),
        PayloadScope::Domain(id) => {
            let domain = tx.get::<Domain>(&DomainId::new(id.clone()))?;
            let Some(domain) = domain.filter(|d| d.enabled && !revoked(d.revoked_before)) else {
                return Ok(None);
            };
            Some((Scope::Domain { id: domain.id.clone(), name: domain.name }, Place::Domain(domain.id)))
        }
        PayloadScope::Project(id) => {
            let project = tx.get::<Project>(&ProjectId::new(id.clone()))?;
            let Some(project) = project.filter(|p| p.enabled && !revoked(p.revoked_before)) else {
                return Ok(None);
            };
            let domain = tx.get::<Domain>(&project.domain_id)?;
            let Some(domain) = domain.filter(|d| d.enabled && !revoked(d.revoked_before)) else {
                return Ok(None);
            };
            let (id, domain_id) = (project.id.clone(), domain.id);
            let scope =
                Scope::Project { id: project.id, name: project.name, domain_id, domain_name: domain.name };
            Some((scope, Place::Project(id)))
        }
    };
    let mut federated = payload.federated.clone();
    if let Some(by) = &mut federated {
        if !federation::stands(tx, &user.id, by)? {
            return Ok(None);
        }
        // Told are the groups claimed now; a token of a Python Keystone has them nowhere but in itself.
        if payload.generation.is_some() {
            let claims = federation::claimed(tx, &user.id)?;
            by.group_ids = claims.into_iter().flat_map(|c| c.groups).map(|g| g.as_str().to_owned()).collect();
        }
    }
    let claims_end = federation::claims_end(tx, &users)?;
    let mut roles = Vec::new();
    let mut scope = Scope::Unscoped;
    let mut visible = None;
    if let Some((named, place)) = place {
        if let Place::Project(project) = &place {
            visible = directory::visible_endpoints(tx, project)?;
        }
        roles = match &trusted {
            Some((_, roles, origin, of)) => {
                if of.is_none() || named_project(&named) != of.as_ref() {
                    return Ok(None);
                }
                let Some(roles) = delegated(tx, roles, origin, &place)? else { return Ok(None) };
                roles
            }
            None => directory::roles_on(tx, &user.id, &place)?.into_iter().map(|r| (r.id, r.name)).collect(),
        };
        scope = named;
    }
    if trusted.is_some() && scope == Scope::Unscoped {
        return Ok(None);
    }
    let mut application_credential = None;
    if let Some(id) = &payload.application_credential_id {
        let found = tx.get::<ApplicationCredential>(&ApplicationCredentialId::new(id.clone()))?;
        let Some(found) = found else { return Ok(None) };
        let same_project =
            matches!(&payload.scope, PayloadScope::Project(p) if p == found.project_id.as_str());
        let over = found.expires_at.is_some_and(|e| e <= now);
        // A credential is worth nothing once its user has lost one of its roles: it must not come back with it.
        let lost = found.roles.iter().any(|role| roles.iter().all(|(id, _)| id != role));
        if found.user_id != user.id || !same_project || over || lost {
            return Ok(None);
        }
        good_until = found.expires_at;
        roles.retain(|(id, _)| found.roles.contains(id));
        let ApplicationCredential { id, name, unrestricted, access_rules, .. } = found;
        application_credential = Some(Delegation { id, name, unrestricted, access_rules });
    }
    let mut access_token = None;
    if let Some(id) = &payload.access_token_id {
        // Two limits at once have no form; whoever made such a token is not believed.
        if trusted.is_some() || application_credential.is_some() {
            return Ok(None);
        }
        let Some(found) = tx.get::<AccessToken>(id)? else { return Ok(None) };
        let here = named_project(&scope) == Some(&found.project_id);
        if found.authorizing_user_id != user.id || !here || found.expires_at.is_some_and(|e| e <= now) {
            return Ok(None);
        }
        // As in Keystone: those given that the user still has.
        let given = directory::expand(tx, &found.roles.iter().cloned().collect())?;
        roles.retain(|(id, _)| given.iter().any(|r| r.id == *id));
        good_until = found.expires_at;
        access_token = Some(ByAccessToken { id: found.id, consumer_id: found.consumer_id });
    }
    if roles.is_empty() && scope != Scope::Unscoped {
        return Ok(None);
    }
    let catalog = if known_catalog == Some(epochs.0) { None } else { Some(directory::catalog(tx)?) };
    let trust = trusted.map(|(by, ..)| by);
    let good_until = [good_until, claims_end].into_iter().flatten().min();
    Ok(Some(Facts {
        user,
        user_domain,
        scope,
        roles,
        application_credential,
        trust,
        access_token,
        federated,
        visible,
        users,
        good_until,
        epochs,
        catalog,
    }))
}

/// An enabled user with an enabled domain none of whose tokens of that age are revoked.
fn usable(
    tx: &mut Tx<'_>,
    id: &UserId,
    revoked: impl Fn(Option<Timestamp>) -> bool,
) -> Result<Option<(User, Domain)>> {
    let Some(user) = tx.get::<User>(id)?.filter(|u| u.enabled) else { return Ok(None) };
    let domain = tx.get::<Domain>(&user.domain_id)?;
    Ok(domain.filter(|d| d.enabled && !revoked(d.revoked_before)).map(|domain| (user, domain)))
}

fn named_project(scope: &Scope) -> Option<&ProjectId> {
    if let Scope::Project { id, .. } = scope { Some(id) } else { None }
}

/// The chain of a trust that `trustee` may use now: every trust in it still stands and all in between are enabled.
fn holding(tx: &mut Tx<'_>, id: &str, trustee: &UserId, now: Timestamp) -> Result<Option<Vec<Trust>>> {
    let Some(trust) = tx.get::<Trust>(&id.to_owned())? else { return Ok(None) };
    if trust.trustee_user_id != *trustee {
        return Ok(None);
    }
    let chain = directory::pedigree(tx, trust)?;
    let whole = chain.last().is_some_and(|t| t.redelegated_trust_id.is_none());
    if !whole || chain.iter().any(|t| t.expires_at.is_some_and(|e| e <= now)) {
        return Ok(None);
    }
    for trust in &chain {
        if usable(tx, &trust.trustor_user_id, |_| false)?.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(chain))
}

/// The roles of a trust and those they imply, if the one who first delegated them still has them all. A domain's own
/// roles are not shown, as everywhere.
fn delegated(
    tx: &mut Tx<'_>,
    roles: &[RoleId],
    origin: &UserId,
    place: &Place,
) -> Result<Option<Vec<(RoleId, String)>>> {
    let held = directory::roles_on(tx, origin, place)?;
    let roles = directory::expand(tx, &roles.iter().cloned().collect())?;
    if roles.iter().any(|role| held.iter().all(|h| h.id != role.id)) {
        return Ok(None);
    }
    Ok(Some(roles.into_iter().map(|r| (r.id, r.name)).collect()))
}

impl Validated {
    /// The answer to a validation, `{"token": {…}}`; made once.
    pub fn body(&self, with_catalog: bool) -> Bytes {
        let cell = if with_catalog { &self.whole } else { &self.bare };
        cell.get_or_init(|| serde_json::to_vec(&self.wire(with_catalog)).unwrap_or_default().into()).clone()
    }

    /// The catalog as this token sees it.
    pub fn catalog(&self) -> Value {
        let project = self.auth.project_id().map(ProjectId::as_str);
        let shown = |endpoints: &[Endpoint]| {
            self.visible.as_ref().is_none_or(|v| endpoints.iter().any(|e| v.contains(&e.id)))
        };
        let services = self.catalog.services.iter().filter(|(_, e)| shown(e)).map(|(service, endpoints)| {
            let endpoints: Vec<Value> = endpoints
                .iter()
                .filter(|e| self.visible.as_ref().is_none_or(|v| v.contains(&e.id)))
                .filter_map(|e| {
                    let url = fill(&e.url, project, self.auth.user_id.as_str())?;
                    Some(json!({
                        "id": e.id, "interface": e.interface, "region_id": e.region_id, "url": url, "region": e.region_id,
                    }))
                })
                .collect();
            json!({"endpoints": endpoints, "id": service.id, "type": service.service_type, "name": service.name})
        });
        services.collect()
    }

    fn wire(&self, with_catalog: bool) -> Value {
        let auth = &self.auth;
        let mut token = Map::new();
        let mut put = |key: &str, value: Value| token.insert(key.to_owned(), value);
        put("methods", json!(auth.methods));
        let mut user = json!({
            "domain": {"id": auth.user_domain_id, "name": auth.user_domain_name},
            "id": auth.user_id, "name": auth.user_name,
            "password_expires_at": self.password_expires_at.map(Timestamp::iso_micros),
        });
        if let (Some(by), Some(map)) = (&self.federated, user.as_object_mut()) {
            let groups: Vec<Value> = by.group_ids.iter().map(|id| json!({"id": id})).collect();
            let (provider, protocol) = (json!({"id": by.idp_id}), json!({"id": by.protocol_id}));
            let told = json!({"identity_provider": provider, "protocol": protocol, "groups": groups});
            map.insert("OS-FEDERATION".into(), told);
        }
        put("user", user);
        put("audit_ids", json!(self.audit_ids));
        put("expires_at", json!(auth.expires_at.iso_micros()));
        put("issued_at", json!(auth.issued_at.iso_micros()));
        let roles: Vec<Value> = self.roles.iter().map(|(id, name)| json!({"id": id, "name": name})).collect();
        match &auth.scope {
            Scope::Unscoped => {}
            Scope::System => {
                put("roles", Value::Array(roles));
                put("system", json!({"all": true}));
            }
            Scope::Domain { id, name } => {
                put("domain", json!({"id": id, "name": name}));
                put("roles", Value::Array(roles));
            }
            Scope::Project { id, name, domain_id, domain_name } => {
                put(
                    "project",
                    json!({"domain": {"id": domain_id, "name": domain_name}, "id": id, "name": name}),
                );
                put("is_domain", json!(false));
                put("roles", Value::Array(roles));
                put("is_admin_project", json!(auth.is_admin_project));
            }
        }
        if with_catalog && auth.scope != Scope::Unscoped {
            put("catalog", self.catalog());
        }
        if !self.catalog.service_providers.is_empty() {
            let told = self.catalog.service_providers.iter();
            let told = told.map(|sp| json!({"id": sp.id, "auth_url": sp.auth_url, "sp_url": sp.sp_url}));
            put("service_providers", told.collect());
        }
        if let Some(credential) = &self.application_credential {
            let mut shown = json!({
                "id": credential.id, "name": credential.name, "restricted": !credential.unrestricted,
            });
            if let (Some(rules), Some(map)) = (&credential.access_rules, shown.as_object_mut()) {
                map.insert("access_rules".into(), json!(rules));
            }
            put("application_credential", shown);
        }
        if let Some(trust) = &self.trust {
            put(
                "OS-TRUST:trust",
                json!({
                    "id": trust.id, "impersonation": trust.impersonation,
                    "trustor_user": {"id": trust.trustor}, "trustee_user": {"id": trust.trustee},
                }),
            );
        }
        if let Some(by) = &self.access_token {
            put("OS-OAUTH1", json!({"access_token_id": by.id, "consumer_id": by.consumer_id}));
        }
        if let Some(thumbprint) = &self.thumbprint {
            put("oauth2_credential", json!({"x5t#S256": thumbprint}));
        }
        json!({"token": token})
    }

    /// Whether the token was got by a trust, an application credential or an OAuth 1.0a access token: it acts for a user in
    /// one project only.
    pub fn delegated(&self) -> bool {
        self.trust.is_some() || self.application_credential.is_some() || self.access_token.is_some()
    }

    /// Whether it is good in the hands of who made the connection with this client certificate (DER), if with any: a bound
    /// token wants the very certificate it was got with (RFC 8705, section 3).
    pub fn good_with(&self, certificate: Option<&[u8]>) -> bool {
        let held = || certificate.map(certificate::thumbprint);
        self.thumbprint.is_none() || self.thumbprint == held()
    }
}

#[async_trait]
impl Authenticator for Tokens {
    async fn authenticate(&self, token: &str) -> Result<Arc<AuthContext>> {
        let valid = self.validate(token).await?.ok_or_else(words::unauthorized)?;
        // Who asks this way does not say for which request, so that rules and certificates cannot be checked: refuse, as
        // Keystone does where a middleware does not know of access rules.
        let limited = valid.application_credential.as_ref().is_some_and(|a| a.access_rules.is_some());
        if limited || !valid.good_with(None) {
            return Err(words::unauthorized());
        }
        Ok(valid.auth.clone())
    }

    async fn authenticate_for(&self, token: &str, request: Presented<'_>) -> Result<Arc<AuthContext>> {
        let valid = self.validate_for(token, request.began, request.subject).await?;
        let valid = valid.ok_or_else(words::unauthorized)?;
        let rules = valid.application_credential.as_ref().and_then(|a| a.access_rules.as_ref());
        let allowed = rules.is_none_or(|rules| {
            rules.iter().any(|rule| {
                rule.method == request.method
                    && access::same_service(&rule.service, request.service)
                    && access::path_matches(&rule.path, request.path)
            })
        });
        let allowed = allowed && valid.good_with(request.certificate);
        if allowed { Ok(valid.auth.clone()) } else { Err(words::unauthorized()) }
    }
}
