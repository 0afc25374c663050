//! Credentials (`/v3/credentials`): secrets kept for a user, sealed in the tables; and the EC2 key pairs among them in
//! their older form (`/v3/users/{id}/credentials/OS-EC2`).

use std::sync::Arc;

use ::api::{Op, Reply, Request, Target};
use base::{Error, ProjectId, Result, UserId};
use serde_json::{Map, Value, json};
use store::Query;

use super::{Cx, enforce, entity, listed, one};
use crate::directory;
use crate::logic::body::{Doc, Kind, invalid, may, may_null, missing, must, shape};
use crate::model::Credential;
use crate::password::digest;
use crate::state::State;
use crate::tokens::Validated;
use crate::words::{expected, forbidden, no_credential, told};

shape!(
    CredentialCreate,
    "credential",
    true,
    [
        must("blob", Kind::Secret),
        must("type", Kind::Text(1, 255)),
        must("user_id", Kind::Id),
        may_null("project_id", Kind::Id),
    ]
);

shape!(
    CredentialUpdate,
    "credential",
    true,
    [
        may("blob", Kind::Secret),
        may("type", Kind::Text(1, 255)),
        may("user_id", Kind::Id),
        may_null("project_id", Kind::Id),
    ]
);

shape!(Ec2Create, "", true, [must("tenant_id", Kind::Id)]);

/// What of a blob says how far its owner delegated: set by the token it was made with, never by the body.
const BOUND: [&str; 3] = ["trust_id", "app_cred_id", "access_token_id"];

pub(super) fn ops() -> Vec<Op<State>> {
    const EC2: &str = "/v3/users/{user_id}/credentials/OS-EC2";
    const EC2_ONE: &str = "/v3/users/{user_id}/credentials/OS-EC2/{credential_id}";
    const ONE: &str = "/v3/credentials/{credential_id}";
    vec![
        Op::get("/v3/credentials", "identity:list_credentials", list)
            .summary("Lists the credentials the caller may see."),
        Op::post("/v3/credentials", "identity:create_credential", create)
            .status(201)
            .summary("Keeps a credential."),
        Op::get(ONE, "identity:get_credential", show).summary("Shows a credential."),
        Op::patch(ONE, "identity:update_credential", update).summary("Changes a credential."),
        Op::delete(ONE, "identity:delete_credential", delete).summary("Forgets a credential."),
        Op::get(EC2, "identity:ec2_list_credentials", ec2_list).summary("Lists a user's EC2 keys."),
        Op::post(EC2, "identity:ec2_create_credential", ec2_create)
            .status(201)
            .summary("Makes a pair of EC2 keys."),
        Op::get(EC2_ONE, "identity:ec2_get_credential", ec2_show).summary("Shows a pair of EC2 keys."),
        Op::delete(EC2_ONE, "identity:ec2_delete_credential", ec2_delete)
            .summary("Forgets a pair of EC2 keys."),
    ]
}

fn wire(cx: &Cx, credential: &Credential) -> Result<Value> {
    let own = json!({
        "id": credential.id, "user_id": credential.user_id, "project_id": credential.project_id,
        "type": credential.kind, "blob": cx.open_secret(&credential.sealed)?,
    });
    Ok(entity(cx, &format!("/v3/credentials/{}", credential.id), own, &credential.extra))
}

fn whose(user: &UserId) -> Target {
    Target::none().set("target.credential.user_id", user.as_str()).set("target.user.id", user.as_str())
}

/// A delegated token reaches credentials of its own project only, and none that are for no project (a TOTP seed): who
/// got hold of it must not get the user's other secrets, nor remove its second factor.
fn in_bounds(valid: &Validated, project: Option<&ProjectId>) -> bool {
    !valid.delegated() || (project.is_some() && project == valid.auth.project_id())
}

fn bounded(valid: &Validated, project: Option<&ProjectId>) -> Result<()> {
    if in_bounds(valid, project) {
        return Ok(());
    }
    Err(forbidden("Credential project does not match the project scope of the delegated token."))
}

fn not_restricted(valid: &Validated) -> Result<()> {
    match &valid.application_credential {
        Some(by) if !by.unrestricted => Err(forbidden(
            "Using method 'application_credential' is not allowed for managing additional credentials.",
        )),
        _ => Ok(()),
    }
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let valid = cx.caller(&req).await?;
    enforce(&cx, &whose(cx.user_id()))?;
    let pairs = req.query_pairs();
    let (user, kind) = (pairs.get("user_id").map(UserId::new), pairs.get("type").map(str::to_owned));
    // Who may see only one's own need not have everybody's read.
    let all = cx.allows("admin_or_reader", &Target::none());
    let own = cx.user_id().clone();
    let found = cx
        .read(move |tx| {
            let mut query = Query::new();
            if let Some(user) = &user {
                query = query.eq("user_id", user);
            }
            if !all {
                query = query.eq("user_id", &own);
            }
            if let Some(kind) = &kind {
                query = query.eq("kind", kind);
            }
            tx.list::<Credential>(&query)
        })
        .await?;
    let seen = |c: &&Credential| {
        in_bounds(&valid, c.project_id.as_ref()) && cx.allows("identity:get_credential", &whose(&c.user_id))
    };
    let items: Result<Vec<Value>> = found.iter().filter(seen).map(|c| wire(&cx, c)).collect();
    listed(&cx, &req, "credentials", items?, &["user_id", "type"])
}

/// The blob of an EC2 credential.
fn ec2_blob(blob: &str) -> Result<Map<String, Value>> {
    let value: Value =
        serde_json::from_str(blob).map_err(|_| Error::bad_request("Invalid blob in credential"))?;
    let Value::Object(map) = value else { return Err(expected("blob", "credential")) };
    if map.get("access").and_then(Value::as_str).is_none() {
        return Err(expected("access", "credential"));
    }
    Ok(map)
}

/// Binds an EC2 credential to what its maker's token is limited to, so that what is got with it is limited too.
fn bind(map: &mut Map<String, Value>, valid: &Validated) {
    for key in BOUND {
        map.remove(key);
    }
    if let Some(trust) = &valid.trust {
        map.insert("trust_id".into(), json!(trust.id));
    }
    if let Some(credential) = &valid.application_credential {
        map.insert("app_cred_id".into(), json!(credential.id));
    }
    if let Some(by) = &valid.access_token {
        map.insert("access_token_id".into(), json!(by.id));
    }
}

async fn create(cx: Cx, req: Request<Doc<CredentialCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    let user = UserId::new(fields.text("user_id").unwrap_or_default());
    enforce(&cx, &whose(&user))?;
    let valid = cx.caller(&req).await?;
    let kind = fields.text("type").unwrap_or_default();
    let project = fields.nullable("project_id").flatten().map(ProjectId::new);
    let mut blob = fields.raw_text("blob").unwrap_or_default();
    bounded(&valid, project.as_ref())?;
    let mut id = cx.entropy.uuid().simple().to_string();
    if kind.eq_ignore_ascii_case("ec2") {
        not_restricted(&valid)?;
        if project.is_none() {
            return Err(missing("project_id"));
        }
        let mut map = ec2_blob(&blob)?;
        bind(&mut map, &valid);
        id = digest(map.get("access").and_then(Value::as_str).unwrap_or_default());
        blob = Value::Object(map).to_string();
    }
    let credential = Credential {
        id,
        meta: store::Meta::default(),
        user_id: user,
        project_id: project,
        kind,
        sealed: cx.seal_secret(&blob),
        extra: fields.extra(),
    };
    let made = keep(&cx, credential).await?;
    Ok(one("credential", wire(&cx, &made)?))
}

async fn keep(cx: &Cx, credential: Credential) -> Result<Credential> {
    cx.write(move |tx| {
        let mut credential = credential.clone();
        told(tx.insert(&mut credential), "credential", || {
            format!("Duplicate entry found with ID {}", credential.id)
        })?;
        Ok(credential)
    })
    .await
}

/// The credential of the path, if the caller may.
async fn allowed<T>(cx: &Cx, req: &Request<T>) -> Result<(Credential, Arc<Validated>)> {
    let text = req.param("credential_id").to_owned();
    let id = text.clone();
    let found = cx.read(move |tx| tx.get::<Credential>(&id)).await?;
    enforce(cx, &found.as_ref().map_or_else(Target::none, |c| whose(&c.user_id)))?;
    let found = found.ok_or_else(|| no_credential(&text))?;
    let valid = cx.caller(req).await?;
    bounded(&valid, found.project_id.as_ref())?;
    Ok((found, valid))
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (credential, _) = allowed(&cx, &req).await?;
    Ok(one("credential", wire(&cx, &credential)?))
}

async fn update(cx: Cx, req: Request<Doc<CredentialUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    let (held, valid) = allowed(&cx, &req).await?;
    fields.same_id(&held.id)?;
    let mut changed = held.clone();
    if let Some(user) = fields.text("user_id") {
        changed.user_id = UserId::new(user);
    }
    if let Some(project) = fields.nullable("project_id") {
        changed.project_id = project.map(ProjectId::new);
    }
    if let Some(kind) = fields.text("type") {
        changed.kind = kind;
    }
    // Neither given away, nor moved out of bounds, nor made into a key for more than it was.
    enforce(&cx, &whose(&changed.user_id))?;
    bounded(&valid, changed.project_id.as_ref())?;
    let was_ec2 = held.kind.eq_ignore_ascii_case("ec2");
    if was_ec2 != changed.kind.eq_ignore_ascii_case("ec2") {
        return Err(invalid("type", "a credential does not become one of EC2, nor cease to be one"));
    }
    if was_ec2
        && (changed.user_id != held.user_id || changed.project_id != held.project_id)
        && valid.delegated()
    {
        return Err(forbidden("Credential project does not match the project scope of the delegated token."));
    }
    if let Some(blob) = fields.raw_text("blob") {
        if was_ec2 {
            let old = ec2_blob(&cx.open_secret(&held.sealed)?)?;
            let new = ec2_blob(&blob)?;
            for key in BOUND {
                if old.get(key) != new.get(key) {
                    return Err(invalid("blob", &format!("{key} can not be updated for credential")));
                }
            }
        }
        changed.sealed = cx.seal_secret(&blob);
    }
    changed.extra.extend(fields.extra());
    let written = cx
        .write(move |tx| {
            let mut changed = changed.clone();
            tx.update(&mut changed)?;
            Ok(changed)
        })
        .await?;
    Ok(one("credential", wire(&cx, &written)?))
}

async fn forget(cx: &Cx, id: String) -> Result<Reply> {
    cx.write(move |tx| if tx.delete::<Credential>(&id)? { Ok(()) } else { Err(no_credential(&id)) }).await?;
    Ok(Reply::empty())
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (credential, _) = allowed(&cx, &req).await?;
    forget(&cx, credential.id).await
}

// ---- EC2 keys

fn ec2_wire(cx: &Cx, credential: &Credential) -> Result<Value> {
    let blob = ec2_blob(&cx.open_secret(&credential.sealed)?)?;
    let access = blob.get("access").and_then(Value::as_str).unwrap_or_default();
    let path = format!("/v3/users/{}/credentials/OS-EC2/{access}", credential.user_id);
    Ok(json!({
        "user_id": credential.user_id, "tenant_id": credential.project_id, "access": access,
        "secret": blob.get("secret"), "trust_id": blob.get("trust_id"), "links": {"self": cx.url(&path)},
    }))
}

async fn ec2_list(cx: Cx, req: Request<()>) -> Result<Reply> {
    let user = UserId::new(req.param("user_id"));
    enforce(&cx, &whose(&user))?;
    let valid = cx.caller(&req).await?;
    let found = cx
        .read(move |tx| {
            directory::user(tx, &user)?;
            tx.list::<Credential>(&Query::new().eq("user_id", &user).eq("kind", "ec2"))
        })
        .await?;
    let seen = found.iter().filter(|c| in_bounds(&valid, c.project_id.as_ref()));
    let items: Result<Vec<Value>> = seen.map(|c| ec2_wire(&cx, c)).collect();
    listed(&cx, &req, "credentials", items?, &[])
}

async fn ec2_create(cx: Cx, req: Request<Doc<Ec2Create>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    let user = UserId::new(req.param("user_id"));
    enforce(&cx, &whose(&user))?;
    let valid = cx.caller(&req).await?;
    not_restricted(&valid)?;
    let project = ProjectId::new(fields.text("tenant_id").unwrap_or_default());
    bounded(&valid, Some(&project))?;
    let (of, on) = (user.clone(), project.clone());
    cx.read(move |tx| directory::user(tx, &of).and_then(|_| directory::project(tx, &on))).await?;
    let access = cx.entropy.uuid().simple().to_string();
    let mut blob = Map::new();
    blob.insert("access".into(), json!(access));
    blob.insert("secret".into(), json!(cx.entropy.uuid().simple().to_string()));
    bind(&mut blob, &valid);
    let credential = Credential {
        id: digest(&access),
        meta: store::Meta::default(),
        user_id: user,
        project_id: Some(project),
        kind: "ec2".into(),
        sealed: cx.seal_secret(&Value::Object(blob).to_string()),
        extra: Map::new(),
    };
    let made = keep(&cx, credential).await?;
    Ok(one("credential", ec2_wire(&cx, &made)?))
}

async fn ec2_allowed(cx: &Cx, req: &Request<()>) -> Result<Credential> {
    let (access, user) = (req.param("credential_id").to_owned(), UserId::new(req.param("user_id")));
    let id = digest(&access);
    let found = cx.read(move |tx| tx.get::<Credential>(&id)).await?.filter(|c| c.kind == "ec2");
    // An access key cannot be guessed: what is not there is told first, as in Keystone.
    let found = found.ok_or_else(|| no_credential(&access))?;
    enforce(cx, &whose(&found.user_id))?;
    if found.user_id != user {
        return Err(no_credential(&access));
    }
    let valid = cx.caller(req).await?;
    bounded(&valid, found.project_id.as_ref())?;
    Ok(found)
}

async fn ec2_show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let credential = ec2_allowed(&cx, &req).await?;
    Ok(one("credential", ec2_wire(&cx, &credential)?))
}

async fn ec2_delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    let credential = ec2_allowed(&cx, &req).await?;
    forget(&cx, credential.id).await
}
