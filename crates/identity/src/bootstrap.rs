//! What is there from the start. Everything here makes what is missing and leaves alone what is there, so that it can
//! be run at every start and by several servers at once.

use base::{DomainId, Error, ProjectId, RegionId, Result, RoleId, ServiceId, UserId};
use serde_json::Map;
use store::{Query, Tx};

use crate::api::{PasswordChange, plain_region};
use crate::compliance::By;
use crate::directory;
use crate::model::{
    Actor, Assignment, Domain, Endpoint, ImpliedRole, Place, Project, Region, Role, Service, User,
};
use crate::state::State;

/// The domain everything is in unless said otherwise.
pub const DEFAULT_DOMAIN: &str = "default";

/// Roles there are from the start.
const ROLES: [&str; 6] = ["admin", "manager", "member", "reader", "service", "load-balancer_member"];

/// Which of them imply which.
const IMPLIED: [(&str, &str); 3] = [("admin", "manager"), ("manager", "member"), ("member", "reader")];

/// What the cloud begins with, besides domain `default`, project and user `admin`, project `service` and the roles.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// Password of the user `admin`, set if there is no such user yet.
    pub admin_password: String,
    /// The region of the endpoints, e.g. `RegionOne`.
    pub region: String,
    /// The catalog: an endpoint for each interface is made, or its URL brought up to date.
    pub endpoints: Vec<BootstrapEndpoint>,
}

/// One service of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapEndpoint {
    /// `identity`, `compute`, …
    pub service_type: String,
    /// `keystone`, `nova`, …
    pub name: String,
    /// URL, possibly with `%(project_id)s`.
    pub url: String,
}

/// Makes what is missing.
///
/// # Errors
/// The store's.
pub async fn bootstrap(state: &State, what: Bootstrap) -> Result<()> {
    let ids: Vec<RoleId> = ROLES.iter().map(|_| RoleId::random(&state.entropy)).collect();
    state.write(move |tx| domain_and_roles(tx, &ids)).await?;
    let admin = state.ensure_project("admin", "Bootstrap project for initializing the cloud.").await?;
    state.ensure_project("service", "Project of the services.").await?;
    let user = state.ensure_user("admin", &what.admin_password, None).await?;
    state.ensure_assignment(&user, "admin", &Place::Project(admin)).await?;
    state.ensure_assignment(&user, "admin", &Place::System).await?;
    let fresh: Vec<[String; 4]> = what
        .endpoints
        .iter()
        .map(|_| std::array::from_fn(|_| state.entropy.uuid().simple().to_string()))
        .collect();
    let Bootstrap { region, endpoints, .. } = what;
    state
        .write(move |tx| {
            let region = RegionId::new(region.clone());
            if tx.get::<Region>(&region)?.is_none() {
                directory::insert_once(tx, &mut plain_region(region.clone()))?;
            }
            for (endpoint, [service, ids @ ..]) in endpoints.iter().zip(&fresh) {
                ensure_endpoint(tx, &region, endpoint, service, ids)?;
            }
            Ok(())
        })
        .await
}

fn domain_and_roles(tx: &mut Tx<'_>, ids: &[RoleId]) -> Result<()> {
    let default = DomainId::new(DEFAULT_DOMAIN);
    if tx.get::<Domain>(&default)?.is_none() {
        directory::insert_once(
            tx,
            &mut Domain {
                id: default,
                meta: store::Meta::default(),
                name: "Default".into(),
                description: "The default domain".into(),
                enabled: true,
                tags: Vec::new(),
                options: Map::new(),
                extra: Map::new(),
                revoked_before: None,
            },
        )?;
    }
    let mut made = false;
    for (name, id) in ROLES.iter().zip(ids) {
        if directory::role_named(tx, name)?.is_none() {
            made = true;
            directory::insert_once(
                tx,
                &mut Role {
                    id: id.clone(),
                    meta: store::Meta::default(),
                    name: (*name).into(),
                    domain_key: String::new(),
                    description: None,
                    options: Map::from_iter([("immutable".to_owned(), true.into())]),
                    extra: Map::new(),
                },
            )?;
        }
    }
    for (prior, implied) in IMPLIED {
        let (Some(prior), Some(implied)) =
            (directory::role_named(tx, prior)?, directory::role_named(tx, implied)?)
        else {
            continue;
        };
        let mut rule = ImpliedRole::new(&prior.id, &implied.id);
        if tx.get::<ImpliedRole>(&rule.id)?.is_none() {
            made = true;
            directory::insert_once(tx, &mut rule)?;
        }
    }
    if made { directory::touch_all(tx) } else { Ok(()) }
}

fn ensure_endpoint(
    tx: &mut Tx<'_>,
    region: &RegionId,
    wanted: &BootstrapEndpoint,
    fresh_service: &str,
    fresh_ids: &[String],
) -> Result<()> {
    let found = tx.first::<Service>(&Query::new().eq("service_type", &wanted.service_type))?;
    let service = match found {
        Some(service) => service,
        None => {
            let mut service = Service {
                id: ServiceId::new(fresh_service),
                meta: store::Meta::default(),
                service_type: wanted.service_type.clone(),
                name: wanted.name.clone(),
                description: None,
                enabled: true,
                extra: Map::new(),
            };
            directory::insert_once(tx, &mut service)?;
            service
        }
    };
    let held = tx.list::<Endpoint>(&Query::new().eq("service_id", &service.id).eq("region_id", region))?;
    let mut changed = false;
    for (interface, id) in ["public", "internal", "admin"].into_iter().zip(fresh_ids) {
        match held.iter().find(|e| e.interface == interface) {
            Some(endpoint) if endpoint.url == wanted.url => {}
            Some(endpoint) => {
                let mut endpoint = endpoint.clone();
                endpoint.url.clone_from(&wanted.url);
                tx.update(&mut endpoint)?;
                changed = true;
            }
            None => {
                directory::insert_once(
                    tx,
                    &mut Endpoint {
                        id: base::EndpointId::new(id.as_str()),
                        meta: store::Meta::default(),
                        service_id: service.id.clone(),
                        interface: interface.into(),
                        region_id: Some(region.clone()),
                        url: wanted.url.clone(),
                        enabled: true,
                        extra: Map::new(),
                    },
                )?;
                changed = true;
            }
        }
    }
    if changed { directory::touch_all(tx) } else { Ok(()) }
}

impl State {
    /// The project `name` of the default domain, made if it is missing.
    ///
    /// # Errors
    /// The store's.
    pub async fn ensure_project(&self, name: &str, description: &str) -> Result<ProjectId> {
        let (fresh, name, description) =
            (ProjectId::random(&self.entropy), name.to_owned(), description.to_owned());
        self.write(move |tx| {
            let domain = DomainId::new(DEFAULT_DOMAIN);
            if let Some(project) = directory::project_named(tx, &domain, &name)? {
                return Ok(project.id);
            }
            directory::insert_once(
                tx,
                &mut Project {
                    id: fresh.clone(),
                    meta: store::Meta::default(),
                    parent_id: domain.as_str().to_owned(),
                    domain_id: domain,
                    name: name.clone(),
                    description: description.clone(),
                    enabled: true,
                    tags: Vec::new(),
                    options: Map::new(),
                    extra: Map::new(),
                    revoked_before: None,
                },
            )?;
            Ok(fresh.clone())
        })
        .await
    }

    /// The user `name` of the default domain, made with `password` if it is missing; the password of one that is there
    /// is left alone.
    ///
    /// # Errors
    /// The store's.
    pub async fn ensure_user(
        &self,
        name: &str,
        password: &str,
        default_project: Option<&ProjectId>,
    ) -> Result<UserId> {
        let (domain, known) = (DomainId::new(DEFAULT_DOMAIN), name.to_owned());
        let (of, user_name) = (domain.clone(), known.clone());
        if let Some(user) = self.read(move |tx| directory::user_named(tx, &of, &user_name)).await? {
            return Ok(user.id);
        }
        let hash = self.passwords.hash(password, &self.entropy).await?;
        let (fresh, default_project_id) = (UserId::random(&self.entropy), default_project.cloned());
        self.write(move |tx| {
            if let Some(user) = directory::user_named(tx, &domain, &known)? {
                return Ok(user.id);
            }
            directory::insert_once(
                tx,
                &mut User {
                    id: fresh.clone(),
                    meta: store::Meta::default(),
                    domain_id: domain.clone(),
                    name: known.clone(),
                    enabled: true,
                    default_project_id: default_project_id.clone(),
                    description: None,
                    options: Map::new(),
                    extra: Map::new(),
                    password: Some(hash.clone()),
                    former_passwords: Vec::new(),
                    password_changed_at: Some(tx.now()),
                    password_expires_at: None,
                    password_self_service: false,
                    token_generation: 1,
                },
            )?;
            Ok(fresh.clone())
        })
        .await
    }

    /// Sets the password of a user; all of the user's tokens end.
    ///
    /// # Errors
    /// `NotFound` where there is no such user.
    pub async fn set_password(&self, user: &UserId, password: &str) -> Result<()> {
        let hash = self.passwords.hash(password, &self.entropy).await?;
        let (user, keep) =
            (user.clone(), self.config.operator.security_compliance.unique_last_password_count);
        self.write(move |tx| {
            let mut user = directory::user(tx, &user)?;
            let change = PasswordChange { hash: Some(hash.clone()), by: By::Installation, ends: None };
            crate::api::set_password(&mut user, change, tx.now(), keep);
            tx.update(&mut user)?;
            directory::touch_user(tx, &user.id)
        })
        .await
    }

    /// Gives the user the role, named, on `place`, if it does not have it.
    ///
    /// # Errors
    /// `NotFound` where there is no such role.
    pub async fn ensure_assignment(&self, user: &UserId, role: &str, place: &Place) -> Result<()> {
        let (actor, role, place) = (Actor::User(user.clone()), role.to_owned(), place.clone());
        self.write(move |tx| {
            let found = directory::role_named(tx, &role)?;
            let found = found.ok_or_else(|| Error::not_found(format!("Could not find role: {role}.")))?;
            let mut assignment = Assignment::new(&actor, &place, &found.id, false);
            if tx.get::<Assignment>(&assignment.id)?.is_none() {
                directory::insert_once(tx, &mut assignment)?;
                directory::touch(tx, &actor)?;
            }
            Ok(())
        })
        .await
    }
}
