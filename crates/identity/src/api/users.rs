//! Users.

use ::api::{Op, Reply, Request, Target};
use base::{DomainId, Error, ProjectId, Result, UserId};
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::grants::not_of_administrators;
use super::{
    Cx, default_domain, enforce, entity, groups, listed, listed_from, one, options, own_domain_target,
    projects, token_domain,
};
use crate::compliance::{self, By};
use crate::directory;
use crate::ldap;
use crate::logic::body::{Doc, Fields, Kind, invalid, may, may_null, must, shape};
use crate::model::{
    AccessRule, Actor, ApplicationCredential, Assignment, Credential, Domain, Group, LoginRecord, Membership,
    User,
};
use crate::revocations::{self, Of};
use crate::state::State;
use crate::words::{no_user, told, unauthorized};

shape!(
    UserCreate,
    "user",
    true,
    [
        must("name", Kind::Text(1, 255)),
        may_null("password", Kind::Secret),
        may("domain_id", Kind::Id),
        may_null("default_project_id", Kind::Id),
        may_null("description", Kind::Text(0, 65_535)),
        may("enabled", Kind::Bool),
        may("options", Kind::Object),
    ]
);

shape!(
    UserUpdate,
    "user",
    true,
    [
        may("name", Kind::Text(1, 255)),
        may_null("password", Kind::Secret),
        may("domain_id", Kind::Id),
        may_null("default_project_id", Kind::Id),
        may_null("description", Kind::Text(0, 65_535)),
        may("enabled", Kind::Bool),
        may("options", Kind::Object),
    ]
);

shape!(
    OwnPassword,
    "user",
    false,
    [must("original_password", Kind::Secret), must("password", Kind::Secret),]
);

/// Options of a user that Keystone knows, and whether they are flags.
const OPTIONS: &[(&str, bool)] = &[
    ("ignore_change_password_upon_first_use", true),
    ("ignore_password_expiry", true),
    ("ignore_lockout_failure_attempts", true),
    ("lock_password", true),
    ("ignore_user_inactivity", true),
    ("multi_factor_auth_enabled", true),
    ("multi_factor_auth_rules", false),
];

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v3/users", "identity:list_users", list).summary("Lists users."),
        Op::post("/v3/users", "identity:create_user", create).status(201).summary("Makes a user."),
        Op::get("/v3/users/{user_id}", "identity:get_user", show).summary("Shows a user."),
        Op::patch("/v3/users/{user_id}", "identity:update_user", update).summary("Changes a user."),
        Op::delete("/v3/users/{user_id}", "identity:delete_user", delete).summary("Deletes a user."),
        Op::post("/v3/users/{user_id}/password", "", change_password)
            .public()
            .status(204)
            .summary("Changes the own password; needs the present one and no token."),
        Op::get("/v3/users/{user_id}/projects", "identity:list_user_projects", list_projects)
            .summary("Lists the projects a user has a role on."),
        Op::get("/v3/users/{user_id}/groups", "identity:list_groups_for_user", list_groups)
            .summary("Lists the groups a user is in."),
    ]
}

pub(super) fn wire(cx: &Cx, user: &User) -> Value {
    let mut own = Map::new();
    own.insert("id".into(), json!(user.id));
    own.insert("name".into(), json!(user.name));
    own.insert("domain_id".into(), json!(user.domain_id));
    own.insert("enabled".into(), json!(user.enabled));
    if let Some(project) = &user.default_project_id {
        own.insert("default_project_id".into(), json!(project));
    }
    if let Some(description) = &user.description {
        own.insert("description".into(), json!(description));
    }
    let expires = user.password_expires_at.map(base::Timestamp::iso_micros);
    own.insert("password_expires_at".into(), json!(expires));
    own.insert("options".into(), json!(user.options));
    entity(cx, &format!("/v3/users/{}", user.id), Value::Object(own), &user.extra)
}

/// The policy target of a user; of one that does not exist: nothing.
pub(super) fn target(user: Option<&User>) -> Target {
    match user {
        None => Target::none(),
        Some(user) => Target::none()
            .set("target.user.id", user.id.as_str())
            .set("target.user.domain_id", user.domain_id.as_str()),
    }
}

/// The user of the path, if the caller may.
pub(super) async fn allowed<T>(cx: &Cx, req: &Request<T>) -> Result<User> {
    let text = req.param("user_id").to_owned();
    let id = UserId::new(text.clone());
    let user = cx.read(move |tx| tx.get::<User>(&id)).await?;
    enforce(cx, &target(user.as_ref()))?;
    user.ok_or_else(|| no_user(&text))
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &own_domain_target(&cx))?;
    let pairs = req.query_pairs();
    let (name, domain) = (pairs.get("name").map(str::to_owned), pairs.get("domain_id").map(str::to_owned));
    let mut query = Query::new();
    if let Some(name) = &name {
        query = query.eq("name", name);
    }
    for domain in domain.into_iter().chain(token_domain(&cx).map(|d| d.as_str().to_owned())) {
        query = query.eq("domain_id", domain);
    }
    let expiring = expiring(&req)?;
    let keep = move |user: &User| expiring.as_ref().is_none_or(|fits| fits(user));
    listed_from(&cx, &req, "users", query, keep, wire, &["domain_id", "enabled", "name"]).await
}

/// `password_expires_at=lt:2026-11-21T00:00:00Z`: of the users with passwords that end, those that do so then.
pub(super) fn expiring<T>(req: &Request<T>) -> Result<Option<impl Fn(&User) -> bool + use<T>>> {
    let Some(wanted) = req.query_pairs().get("password_expires_at") else { return Ok(None) };
    let (how, moment) = match wanted.split_once(':') {
        Some((how, moment)) if how.chars().all(|c| c.is_ascii_alphabetic()) => (how, moment),
        _ => ("eq", wanted),
    };
    let at = base::Timestamp::parse(moment).ok_or_else(|| {
        invalid("password_expires_at", "must be a date and time, maybe after 'lt:', 'gte:', …")
    })?;
    let fits: fn(base::Timestamp, base::Timestamp) -> bool = match how {
        "lt" => |end, at| end < at,
        "lte" => |end, at| end <= at,
        "gt" => |end, at| end > at,
        "gte" => |end, at| end >= at,
        "eq" => |end, at| end == at,
        "neq" => |end, at| end != at,
        _ => return Err(invalid("password_expires_at", "the operator is one of eq, neq, lt, lte, gt, gte")),
    };
    Ok(Some(move |user: &User| user.password_expires_at.is_some_and(|end| fits(end, at))))
}

fn conflict(name: &str, domain: &DomainId) -> String {
    format!("Duplicate entry found with name {name} at domain ID {domain}")
}

/// Checks what the fields name; a wrong default project is no error, as in Keystone, unless it is a domain.
fn default_project(fields: &mut Fields) -> Option<Option<ProjectId>> {
    fields.nullable("default_project_id").map(|id| id.map(ProjectId::new))
}

async fn create(cx: Cx, req: Request<Doc<UserCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    let domain = fields.text("domain_id");
    let asked = match &domain {
        None => Target::none(),
        Some(domain) => Target::none().set("target.user.domain_id", domain.as_str()),
    };
    enforce(&cx, &asked)?;
    let domain_id = domain.map_or_else(|| default_domain(&cx), DomainId::new);
    let password = match fields.nullable("password").flatten() {
        Some(password) => {
            cx.check_new_password(&password)?;
            Some(cx.passwords.hash(&password, &cx.entropy).await?)
        }
        None => None,
    };
    let given = options(fields.object("options"), OPTIONS)?.unwrap_or_default();
    if let Some(rules) = given.get("multi_factor_auth_rules") {
        crate::login::method_rules(rules)?;
    }
    let mut user = User {
        id: UserId::random(&cx.entropy),
        meta: store::Meta::default(),
        domain_id,
        name: fields.text("name").unwrap_or_default(),
        enabled: fields.flag("enabled").unwrap_or(true),
        default_project_id: default_project(&mut fields).flatten(),
        description: fields.nullable("description").flatten(),
        options: given,
        password_changed_at: password.as_ref().map(|_| cx.now()),
        password,
        password_expires_at: None,
        password_self_service: false,
        former_passwords: Vec::new(),
        token_generation: 1,
        extra: fields.extra(),
    };
    if user.password.is_some() {
        let rules = &cx.config.operator.security_compliance;
        user.password_expires_at = rules.password_ends(&user, By::Administrator, cx.now());
    }
    let made = cx
        .write(move |tx| {
            let mut user = user.clone();
            directory::domain(tx, &user.domain_id)?;
            ldap::not_in_directory(tx, &user.domain_id)?;
            told(tx.insert(&mut user), "user", || conflict(&user.name, &user.domain_id))?;
            Ok(user)
        })
        .await?;
    Ok(one("user", wire(&cx, &made)))
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let user = allowed(&cx, &req).await?;
    Ok(one("user", wire(&cx, &user)))
}

async fn update(cx: Cx, req: Request<Doc<UserUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    let held = allowed(&cx, &req).await?;
    not_of_administrators(&cx, Actor::User(held.id.clone())).await?;
    fields.same_id(held.id.as_str())?;
    if fields.text("domain_id").is_some_and(|d| d != held.domain_id.as_str()) {
        return Err(Error::bad_request("Invalid input for field 'domain_id': Cannot change Domain ID"));
    }
    let name = fields.text("name");
    let enabled = fields.flag("enabled");
    let default = default_project(&mut fields);
    let description = fields.nullable("description");
    let given = options(fields.object("options"), OPTIONS)?;
    if let Some(rules) = given.as_ref().and_then(|o| o.get("multi_factor_auth_rules")) {
        crate::login::method_rules(rules)?;
    }
    let password = match fields.nullable("password") {
        None => None,
        Some(None) => Some(None),
        Some(Some(new)) => {
            cx.check_new_password(&new)?;
            Some(Some(cx.passwords.hash(&new, &cx.entropy).await?))
        }
    };
    let (extra, id, keep) =
        (fields.extra(), held.id, cx.config.operator.security_compliance.unique_last_password_count);
    let rules = cx.config.operator.security_compliance.clone();
    let changed = cx
        .write(move |tx| {
            let mut user = directory::user(tx, &id)?;
            ldap::not_mirrored(tx, id.as_str())?;
            if let Some(name) = &name {
                user.name.clone_from(name);
            }
            if let Some(default) = &default {
                user.default_project_id.clone_from(default);
            }
            if let Some(description) = &description {
                user.description.clone_from(description);
            }
            if let Some(given) = &given {
                super::merge_options(&mut user.options, given.clone());
            }
            user.extra.extend(extra.clone());
            if let Some(hash) = &password {
                let (by, hash) = (By::Administrator, hash.clone());
                let ends = hash.as_ref().and_then(|_| rules.password_ends(&user, by, tx.now()));
                set_password(&mut user, PasswordChange { hash, by, ends }, tx.now(), keep);
                revocations::note(tx, Of::User(&user.id))?;
            }
            if let Some(enabled) = enabled {
                if user.enabled && !enabled {
                    user.token_generation += 1;
                    revocations::note(tx, Of::User(&user.id))?;
                }
                if enabled {
                    compliance::forgive(tx, &user.id)?;
                }
                user.enabled = enabled;
            }
            told(tx.update(&mut user), "user", || conflict(&user.name, &user.domain_id))?;
            directory::touch_user(tx, &user.id)?;
            Ok(user)
        })
        .await?;
    Ok(one("user", wire(&cx, &changed)))
}

/// A password to be set.
#[derive(Debug, Clone)]
pub(crate) struct PasswordChange {
    /// Its hash; `None` = no login by password any more.
    pub hash: Option<String>,
    /// Who sets it.
    pub by: By,
    /// When it must be changed.
    pub ends: Option<base::Timestamp>,
}

/// Sets the hash of a new password; every token of the user ends.
pub(crate) fn set_password(user: &mut User, change: PasswordChange, now: base::Timestamp, keep: usize) {
    user.password_expires_at = change.ends;
    user.password_self_service = change.by == By::User;
    if let Some(old) = std::mem::replace(&mut user.password, change.hash) {
        user.former_passwords.insert(0, old);
    }
    // The present one counts too.
    user.former_passwords.truncate(keep.saturating_sub(1));
    user.password_changed_at = Some(now);
    user.token_generation += 1;
}

/// Deletes a user and what is the user's.
pub(super) fn remove(tx: &mut Tx<'_>, id: &UserId) -> Result<()> {
    tx.delete_where::<Membership>(&Query::new().eq("user_id", id))?;
    tx.delete_where::<Assignment>(&Query::new().eq("user_id", id))?;
    tx.delete_where::<ApplicationCredential>(&Query::new().eq("user_id", id))?;
    tx.delete_where::<AccessRule>(&Query::new().eq("user_id", id))?;
    tx.delete_where::<Credential>(&Query::new().eq("user_id", id))?;
    tx.delete::<LoginRecord>(id)?;
    super::trusts::of_user_end(tx, id)?;
    crate::oauth1::of_user_end(tx, id)?;
    revocations::note(tx, Of::User(id))?;
    tx.delete::<User>(id)?;
    directory::touch_user(tx, id)
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = allowed(&cx, &req).await?.id;
    not_of_administrators(&cx, Actor::User(id.clone())).await?;
    cx.write(move |tx| {
        directory::user(tx, &id)?;
        ldap::not_mirrored(tx, id.as_str())?;
        remove(tx, &id)
    })
    .await?;
    Ok(Reply::empty())
}

async fn change_password(cx: Cx, req: Request<Doc<OwnPassword>>) -> Result<Reply> {
    let id = UserId::new(req.param("user_id"));
    let mut fields = req.body.check()?;
    let original = fields.raw_text("original_password").unwrap_or_default();
    let new = fields.raw_text("password").unwrap_or_default();
    let of = id.clone();
    let held = cx
        .read(move |tx| {
            let Some(user) = tx.get::<User>(&of)? else { return Ok(None) };
            let enabled = user.enabled && tx.get::<Domain>(&user.domain_id)?.is_some_and(|d| d.enabled);
            Ok(enabled.then_some(user))
        })
        .await?;
    let (from, whom) = (req.peer(), format!("id {id}"));
    cx.throttle.admit(from, &whom, cx.now())?;
    let hash = held.as_ref().and_then(|u| u.password.as_deref());
    let right = cx.passwords.verify(&original, hash).await?;
    let noted = match &held {
        None => Err(unauthorized()),
        Some(user) => {
            let of = user.id.clone();
            let record = cx.read(move |tx| tx.get::<LoginRecord>(&of)).await?;
            cx.note_login(user, record.as_ref(), right).await
        }
    };
    if noted.is_err() {
        cx.throttle.failed(from, &whom, cx.now());
    }
    noted?;
    let held = held.ok_or_else(unauthorized)?;
    if held.options.get("lock_password") == Some(&Value::Bool(true)) {
        return Err(Error::bad_request(
            "Password validation error: You cannot change your password at this time due to password policy disallowing password changes. Please contact your administrator to reset your password.",
        ));
    }
    cx.check_password_age(&held)?;
    cx.check_new_password(&new)?;
    let unique = cx.config.operator.security_compliance.unique_last_password_count;
    if unique > 1 {
        let known = held.password.iter().chain(held.former_passwords.iter().take(unique - 1));
        for hash in known {
            if cx.passwords.verify(&new, Some(hash)).await? {
                return Err(Error::bad_request(format!(
                    "The new password cannot be identical to a previous password. The total number which includes the new password must be unique is {unique}."
                )));
            }
        }
    }
    let hash = cx.passwords.hash(&new, &cx.entropy).await?;
    let ends = cx.config.operator.security_compliance.password_ends(&held, By::User, cx.now());
    cx.write(move |tx| {
        let mut user = directory::user(tx, &id)?;
        // The password that was proved must still be the password.
        if user.password != held.password || !user.enabled {
            return Err(unauthorized());
        }
        let change = PasswordChange { hash: Some(hash.clone()), by: By::User, ends };
        set_password(&mut user, change, tx.now(), unique);
        revocations::note(tx, Of::User(&user.id))?;
        tx.update(&mut user)?;
        directory::touch_user(tx, &user.id)
    })
    .await?;
    Ok(Reply::empty())
}

async fn list_projects(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = allowed(&cx, &req).await?.id;
    let found = cx.read(move |tx| directory::projects_of(tx, &id)).await?;
    let items = found.iter().map(|p| projects::wire(&cx, p)).collect();
    listed(&cx, &req, "projects", items, &["domain_id", "enabled", "name"])
}

async fn list_groups(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = allowed(&cx, &req).await?.id;
    let found = cx
        .read(move |tx| {
            let ids = directory::groups_of(tx, &id)?;
            tx.list::<Group>(&Query::new().is_in("id", &ids))
        })
        .await?;
    let items = found.iter().map(|g| groups::wire(&cx, g)).collect();
    listed(&cx, &req, "groups", items, &["name"])
}
