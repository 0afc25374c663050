//! Tokens and what a token may find out about itself.

use std::borrow::Cow;
use std::sync::Arc;

use ::api::{JsonSchema, Op, Reply, Request, Target};
use base::{Error, Result};
use schemars::{Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Cx, domains, enforce, listed, projects};
use crate::audit::authentication;
use crate::directory;
use crate::login::{Beside, Login, claimed, login};
use crate::model::Place;
use crate::state::State;
use crate::tokens::Validated;
use crate::words::{no_token, unauthorized};

/// The body of `POST /v3/auth/tokens`; read by `login`, which knows what depends on what.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct Credentials(Value);

impl JsonSchema for Credentials {
    fn schema_name() -> Cow<'static, str> {
        "Credentials".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let text = json!({"type": "string"});
        let name = json!({"type": "string", "maxLength": 255});
        let domain = json!({"type": "object", "properties": {"id": name, "name": name}});
        let of_domain = json!({"type": "object", "properties": {"id": name, "name": name, "domain": domain}});
        let mut user = of_domain.clone();
        user["properties"]["password"] = text.clone();
        user["required"] = json!(["password"]);
        let mut coded = of_domain.clone();
        coded["properties"]["passcode"] = text.clone();
        coded["required"] = json!(["passcode"]);
        let identity = json!({
            "type": "object", "required": ["methods"],
            "properties": {
                "methods": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                "password": {"type": "object", "required": ["user"], "properties": {"user": user}},
                "token": {"type": "object", "required": ["id"], "properties": {"id": text}},
                "oauth1": {"type": "object"},
                "external": {"type": "object"},
                "mapped": {
                    "type": "object",
                    "properties": {"identity_provider": name, "protocol": name, "id": text},
                },
                "totp": {"type": "object", "required": ["user"], "properties": {"user": coded}},
                "application_credential": {
                    "type": "object", "required": ["secret"],
                    "properties": {"id": name, "name": name, "secret": text, "user": of_domain},
                },
            },
        });
        let system =
            json!({"type": "object", "properties": {"all": {"type": "boolean"}}, "required": ["all"]});
        let trust = json!({"type": "object", "properties": {"id": name}, "required": ["id"]});
        let scope = json!({
            "type": "object",
            "properties": {"project": of_domain, "domain": domain, "system": system, "OS-TRUST:trust": trust},
        });
        let auth = json!({"type": "object", "required": ["identity"], "properties": {"identity": identity, "scope": scope}});
        schemars::json_schema!({"type": "object", "required": ["auth"], "properties": {"auth": auth}})
    }
}

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::post("/v3/auth/tokens", "", issue).public().status(201).summary("Makes a token."),
        Op::get("/v3/auth/tokens", "identity:validate_token", validate).summary("Shows what a token says."),
        Op::head("/v3/auth/tokens", "identity:check_token", check).status(200).summary("Checks a token."),
        Op::delete("/v3/auth/tokens", "identity:revoke_token", revoke).summary("Revokes a token."),
        Op::get("/v3/auth/catalog", "identity:get_auth_catalog", catalog)
            .summary("Shows the token's catalog."),
        Op::get("/v3/auth/projects", "identity:get_auth_projects", own_projects)
            .summary("Lists the projects the caller can have a token for."),
        Op::get("/v3/auth/domains", "identity:get_auth_domains", own_domains)
            .summary("Lists the domains the caller can have a token for."),
        Op::get("/v3/auth/system", "identity:get_auth_system", own_system)
            .summary("Tells whether the caller can have a token for the system."),
    ]
}

fn body_of(valid: &Validated, with_catalog: bool, token: &str) -> Reply {
    Reply::bytes("application/json", valid.body(with_catalog)).header("x-subject-token", token)
}

async fn issue(cx: Cx, req: Request<Credentials>) -> Result<Reply> {
    let with_catalog = !req.query_pairs().has("nocatalog");
    let beside = Beside {
        from: req.peer(),
        receipt: req.header("openstack-auth-receipt").map(str::to_owned),
        certificate: req.certificate().cloned(),
        signed: super::oauth1::signed(&cx, &req),
        headers: req.headers().clone(),
    };
    let made = login(cx.state(), &req.body.0, &beside).await;
    let claimed = claimed(&req.body.0);
    match &made {
        Ok(Login::Token(_, valid)) => authentication(&cx, req.peer(), claimed, Ok(valid)),
        Ok(Login::Receipt(..)) => authentication(&cx, req.peer(), claimed, Err(&unauthorized())),
        Err(error) => authentication(&cx, req.peer(), claimed, Err(error)),
    }
    match made? {
        Login::Token(token, valid) => Ok(body_of(&valid, with_catalog, &token)),
        Login::Receipt(receipt, body) => {
            Ok(Reply::json(&body).status(401).header("openstack-auth-receipt", receipt))
        }
    }
}

/// The token asked about, if it is valid and the caller may ask.
async fn subject(cx: &Cx, req: &Request<()>) -> Result<(Arc<Validated>, String)> {
    let token = req.header("x-subject-token").filter(|t| !t.is_empty());
    let token = token.ok_or_else(|| Error::not_found("No token in the request"))?.to_owned();
    let late = req.query_pairs().get("allow_expired").is_some_and(super::truth);
    let valid = if late {
        cx.tokens.validate_late(&token).await?
    } else {
        cx.tokens.validate_for(&token, req.began(), None).await?
    };
    let valid = valid.ok_or_else(no_token)?;
    enforce(cx, &Target::none().set("target.token.user_id", valid.auth.user_id.as_str()))?;
    let limited = valid.application_credential.as_ref().is_some_and(|a| a.access_rules.is_some());
    let understood = req.header("openstack-identity-access-rules").and_then(|v| v.trim().parse::<f64>().ok());
    if limited && understood.is_none_or(|v| v < 1.0) {
        // Who asks does not know that the token is good for some requests only.
        return Err(no_token());
    }
    Ok((valid, token))
}

async fn validate(cx: Cx, req: Request<()>) -> Result<Reply> {
    let with_catalog = !req.query_pairs().has("nocatalog");
    let (valid, token) = subject(&cx, &req).await?;
    Ok(body_of(&valid, with_catalog, &token))
}

async fn check(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (_, token) = subject(&cx, &req).await?;
    Ok(Reply::empty().header("x-subject-token", token))
}

async fn revoke(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (valid, _) = subject(&cx, &req).await?;
    cx.tokens.revoke(&valid).await?;
    Ok(Reply::empty())
}

impl State {
    /// The caller's token with what the other services do not see of it.
    pub(crate) async fn caller<T>(&self, req: &Request<T>) -> Result<Arc<Validated>> {
        let token = req.header("x-auth-token").unwrap_or("");
        let valid = self.tokens.validate_for(token, req.began(), None).await?;
        valid.filter(|v| v.good_with(req.certificate().map(|c| &*c.0))).ok_or_else(unauthorized)
    }
}

async fn catalog(cx: Cx, req: Request<()>) -> Result<Reply> {
    let valid = cx.caller(&req).await?;
    if valid.auth.project_id().is_none() {
        return Err(Error::forbidden("A project-scoped token is required to produce a service catalog."));
    }
    Ok(Reply::json(&json!({
        "catalog": valid.catalog(),
        "links": {"next": null, "self": cx.url("/v3/auth/catalog"), "previous": null},
    })))
}

pub(super) async fn own_projects(cx: Cx, req: Request<()>) -> Result<Reply> {
    let user = cx.user_id().clone();
    let found = cx.read(move |tx| directory::projects_of(tx, &user)).await?;
    let items = found.iter().filter(|p| p.enabled).map(|p| projects::wire(&cx, p)).collect();
    listed(&cx, &req, "projects", items, &["domain_id", "name", "enabled"])
}

pub(super) async fn own_domains(cx: Cx, req: Request<()>) -> Result<Reply> {
    let user = cx.user_id().clone();
    let found = cx.read(move |tx| directory::domains_of(tx, &user)).await?;
    let items = found.iter().filter(|d| d.enabled).map(|d| domains::wire(&cx, d)).collect();
    listed(&cx, &req, "domains", items, &["name", "enabled"])
}

async fn own_system(cx: Cx, _: Request<()>) -> Result<Reply> {
    let user = cx.user_id().clone();
    let roles = cx.read(move |tx| directory::roles_on(tx, &user, &Place::System)).await?;
    let system = if roles.is_empty() { json!([]) } else { json!([{"all": true}]) };
    Ok(Reply::json(&json!({"system": system, "links": {"self": cx.url("/v3/auth/system")}})))
}
