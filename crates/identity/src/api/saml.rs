//! Keystone to Keystone, the half of an identity provider: what this cloud says of a user to a service provider, in SAML.

use std::sync::Arc;

use ::api::{JsonSchema, Op, Reply, Request};
use base::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

use super::Cx;
use super::federation::need_sp;
use crate::audit;
use crate::directory;
use crate::federation::model::ServiceProvider;
use crate::logic::saml::Statement;
use crate::model::{Domain, Group};
use crate::saml::Provider;
use crate::state::State;
use crate::tokens::Validated;
use crate::words::{forbidden, no_token};
use contract::Scope;

/// What Keystone's answers are.
const XML: &str = "text/xml";

/// The body of a request for an assertion: the token of the user it is about, and who shall believe it. Beside `auth`
/// anything may stand, as in Keystone.
#[derive(Debug, Deserialize, JsonSchema)]
struct Asked {
    auth: Auth,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Auth {
    identity: Identity,
    scope: To,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Identity {
    token: ById,
    /// Not read: it is always the token.
    #[serde(default)]
    #[allow(dead_code)]
    methods: Vec<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct To {
    service_provider: ById,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ById {
    id: String,
}

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::post("/v3/auth/OS-FEDERATION/saml2", "", assertion)
            .public()
            .summary("Says to a service provider, in SAML, who the user of a token is."),
        Op::post("/v3/auth/OS-FEDERATION/saml2/ecp", "", enveloped)
            .public()
            .summary("Says to a service provider, in SAML and an envelope, who the user of a token is."),
        Op::get("/v3/OS-FEDERATION/saml2/metadata", "", metadata)
            .public()
            .summary("Shows what this cloud says of itself as an identity provider, in SAML."),
    ]
}

/// 501 where nothing is configured that could say anything; Keystone's 500 would be a fault of the cloud that anybody can cause.
fn provider(cx: &Cx) -> Result<&Provider> {
    cx.saml.as_ref().ok_or_else(|| {
        Error::not_implemented(
            "This cloud is no identity provider in SAML: identity.saml.idp_entity_id is not set.",
        )
    })
}

/// What shall be said of whom, to whom.
struct Vouched {
    to: ServiceProvider,
    valid: Arc<Validated>,
    groups: Vec<(String, String)>,
}

async fn vouched(cx: &Cx, req: &Request<Asked>) -> Result<Vouched> {
    let auth = &req.body.auth;
    // Before anything else, so that nobody without a token learns which service providers there are.
    let valid = cx.tokens.validate(&auth.identity.token.id).await?;
    let valid = valid.filter(|v| v.good_with(req.certificate().map(|c| &*c.0))).ok_or_else(no_token)?;
    // Good for some requests only, and the rules cannot speak of what other clouds do.
    if valid.application_credential.as_ref().is_some_and(|a| a.access_rules.is_some()) {
        return Err(no_token());
    }
    let (sp, user) = (auth.scope.service_provider.id.clone(), valid.auth.user_id.clone());
    // Groups are the user's, whatever was delegated: by a delegation nobody is told of them.
    let delegated = valid.delegated();
    let (to, groups) = cx
        .read(move |tx| {
            let to = need_sp(tx, &sp)?;
            if !to.enabled {
                return Err(Error::forbidden(format!("Service Provider {sp} is disabled")));
            }
            let mut groups = Vec::new();
            let ids = if delegated { Vec::new() } else { directory::groups_of(tx, &user)? };
            for id in ids {
                let Some(group) = tx.get::<Group>(&id)? else { continue };
                let Some(domain) = tx.get::<Domain>(&group.domain_id)? else { continue };
                groups.push((group.name, domain.name));
            }
            groups.sort_unstable();
            Ok((to, groups))
        })
        .await?;
    if valid.auth.project_id().is_none() {
        return Err(forbidden("Use a project scoped token when attempting to create a SAML assertion"));
    }
    Ok(Vouched { to, valid, groups })
}

impl Vouched {
    /// Has `write` write it for the service provider.
    fn written(
        &self,
        by: &Provider,
        write: impl FnOnce(&Provider, &Statement<'_>, &ServiceProvider) -> Result<String>,
    ) -> Result<Reply> {
        let auth = &self.valid.auth;
        let Scope::Project { name, domain_name, .. } = &auth.scope else { return Err(no_token()) };
        let statement = Statement {
            issuer: &by.name,
            recipient: &self.to.sp_url,
            user: &auth.user_name,
            user_domain: &auth.user_domain_name,
            roles: self.valid.roles.iter().map(|(_, name)| name.as_str()).collect(),
            project: name,
            project_domain: domain_name,
            groups: self.groups.clone(),
        };
        let reply = Reply::bytes(XML, write(by, &statement, &self.to)?).header("cache-control", "no-store");
        Ok(reply.header("x-sp-url", &self.to.sp_url).header("x-auth-url", &self.to.auth_url))
    }
}

/// Says it, and notes that it was said.
async fn say(
    cx: &Cx,
    req: &Request<Asked>,
    write: impl FnOnce(&Provider, &Statement<'_>, &ServiceProvider) -> Result<String>,
) -> Result<Reply> {
    let made = vouched(cx, req).await.and_then(|vouched| {
        let reply = vouched.written(provider(cx)?, write)?;
        Ok((vouched.valid, reply))
    });
    let to = &req.body.auth.scope.service_provider.id;
    audit::vouching(cx, req.peer(), to, made.as_ref().map(|(valid, _)| valid.as_ref()));
    made.map(|(_, reply)| reply)
}

async fn assertion(cx: Cx, req: Request<Asked>) -> Result<Reply> {
    say(&cx, &req, |by, statement, _| by.response(statement, &cx.entropy, cx.now())).await
}

async fn enveloped(cx: Cx, req: Request<Asked>) -> Result<Reply> {
    let write = |by: &Provider, statement: &Statement<'_>, to: &ServiceProvider| {
        by.envelope(statement, &to.relay_state_prefix, &cx.entropy, cx.now())
    };
    say(&cx, &req, write).await
}

async fn metadata(cx: Cx, _: Request<()>) -> Result<Reply> {
    let told = provider(&cx)?.metadata();
    let told = told.ok_or_else(|| {
        Error::not_implemented(
            "This cloud has no metadata in SAML: identity.saml.idp_sso_endpoint is not set.",
        )
    })?;
    Ok(Reply::bytes(XML, told?))
}
