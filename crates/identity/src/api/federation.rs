//! OS-FEDERATION: identity providers, protocols, mappings, service providers, and the way in.

use std::sync::Arc;

use ::api::{Op, Reply, Request};
use base::{DomainId, Error, Result};
use federation::issuer::{check_ca, may_ask};
use federation::mapping::Rules;
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::{Cx, Entity, entity, listed, listed_all, one};
use crate::directory;
use crate::federation::model::{
    FederatedUser, FrontEnd, IdentityProvider, Mapping, Oidc, OidcOwnClient, Protocol, RemoteId,
    ServiceProvider,
};
use crate::federation::{Entered, admitted, no_such, unscoped};
use crate::logic::body::{Doc, Fields, Kind, invalid, may, may_null, must, shape};
use crate::model::Domain;
use crate::state::State;
use crate::tokens::Validated;
use crate::words::told;

shape!(
    IdpCreate,
    "identity_provider",
    false,
    [
        may("enabled", Kind::Bool),
        may_null("description", Kind::Text(0, 65_535)),
        may_null("authorization_ttl", Kind::Int(0, 525_600)),
        may_null("remote_ids", Kind::Texts(255)),
        may_null("domain_id", Kind::Id),
        may_null("oidc", Kind::Object),
        may_null("front_end", Kind::Object),
    ]
);

shape!(
    IdpUpdate,
    "identity_provider",
    false,
    [
        may("enabled", Kind::Bool),
        may_null("description", Kind::Text(0, 65_535)),
        may_null("authorization_ttl", Kind::Int(0, 525_600)),
        may_null("remote_ids", Kind::Texts(255)),
        may_null("oidc", Kind::Object),
        may_null("front_end", Kind::Object),
    ]
);

shape!(
    ProtocolCreate,
    "protocol",
    false,
    [must("mapping_id", Kind::Id), may_null("remote_id_attribute", Kind::Text(0, 64))]
);

shape!(
    ProtocolUpdate,
    "protocol",
    false,
    [may("mapping_id", Kind::Id), may_null("remote_id_attribute", Kind::Text(0, 64))]
);

shape!(
    MappingBody,
    "mapping",
    false,
    [must("rules", Kind::Objects), may("schema_version", Kind::OneOf(&["1.0", "2.0"]))]
);

shape!(
    SpCreate,
    "service_provider",
    false,
    [
        must("auth_url", Kind::Url),
        must("sp_url", Kind::Url),
        may_null("description", Kind::Text(0, 65_535)),
        may("enabled", Kind::Bool),
        may("relay_state_prefix", Kind::Text(1, 256)),
    ]
);

shape!(
    SpUpdate,
    "service_provider",
    false,
    [
        may("auth_url", Kind::Url),
        may("sp_url", Kind::Url),
        may_null("description", Kind::Text(0, 65_535)),
        may("enabled", Kind::Bool),
        may("relay_state_prefix", Kind::Text(1, 256)),
    ]
);

const IDPS: &str = "/v3/OS-FEDERATION/identity_providers";
const IDP: &str = "/v3/OS-FEDERATION/identity_providers/{idp_id}";
const PROTOCOLS: &str = "/v3/OS-FEDERATION/identity_providers/{idp_id}/protocols";
const PROTOCOL: &str = "/v3/OS-FEDERATION/identity_providers/{idp_id}/protocols/{protocol_id}";
const WAY_IN: &str = "/v3/OS-FEDERATION/identity_providers/{idp_id}/protocols/{protocol_id}/auth";
const MAPPINGS: &str = "/v3/OS-FEDERATION/mappings";
const MAPPING: &str = "/v3/OS-FEDERATION/mappings/{mapping_id}";
const SPS: &str = "/v3/OS-FEDERATION/service_providers";
const SP: &str = "/v3/OS-FEDERATION/service_providers/{sp_id}";

const READS: &str = "rule:admin_or_reader";
const WRITES: &str = "rule:admin_required";

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::get(IDPS, "identity:list_identity_providers", list_idps)
            .default_rule(READS)
            .summary("Lists identity providers."),
        Op::put(IDP, "identity:create_identity_provider", create_idp)
            .default_rule(WRITES)
            .status(201)
            .summary("Makes an identity provider."),
        Op::get(IDP, "identity:get_identity_provider", show_idp)
            .default_rule(READS)
            .summary("Shows an identity provider."),
        Op::patch(IDP, "identity:update_identity_provider", update_idp)
            .default_rule(WRITES)
            .summary("Changes an identity provider."),
        Op::delete(IDP, "identity:delete_identity_provider", delete_idp)
            .default_rule(WRITES)
            .summary("Deletes an identity provider; what it claimed of users ends at once."),
        Op::get(PROTOCOLS, "identity:list_protocols", list_protocols)
            .default_rule(READS)
            .summary("Lists the protocols of an identity provider."),
        Op::put(PROTOCOL, "identity:create_protocol", create_protocol)
            .default_rule(WRITES)
            .status(201)
            .summary("Makes a protocol of an identity provider."),
        Op::get(PROTOCOL, "identity:get_protocol", show_protocol)
            .default_rule(READS)
            .summary("Shows a protocol."),
        Op::patch(PROTOCOL, "identity:update_protocol", update_protocol)
            .default_rule(WRITES)
            .summary("Changes a protocol."),
        Op::delete(PROTOCOL, "identity:delete_protocol", delete_protocol)
            .default_rule(WRITES)
            .summary("Deletes a protocol; what was claimed through it ends at once."),
        Op::get(WAY_IN, "", enter)
            .public()
            .status(201)
            .summary("Makes a token for the bearer of an access token."),
        Op::post(WAY_IN, "", enter)
            .public()
            .status(201)
            .summary("Makes a token for the bearer of an access token."),
        Op::get(MAPPINGS, "identity:list_mappings", list_mappings)
            .default_rule(READS)
            .summary("Lists mappings."),
        Op::put(MAPPING, "identity:create_mapping", create_mapping)
            .default_rule(WRITES)
            .status(201)
            .summary("Makes a mapping."),
        Op::get(MAPPING, "identity:get_mapping", show_mapping)
            .default_rule(READS)
            .summary("Shows a mapping."),
        Op::patch(MAPPING, "identity:update_mapping", update_mapping)
            .default_rule(WRITES)
            .summary("Changes a mapping."),
        Op::delete(MAPPING, "identity:delete_mapping", delete_mapping)
            .default_rule(WRITES)
            .summary("Deletes a mapping."),
        Op::get(SPS, "identity:list_service_providers", list_sps)
            .default_rule(READS)
            .summary("Lists service providers."),
        Op::put(SP, "identity:create_service_provider", create_sp)
            .default_rule(WRITES)
            .status(201)
            .summary("Makes a service provider."),
        Op::get(SP, "identity:get_service_provider", show_sp)
            .default_rule(READS)
            .summary("Shows a service provider."),
        Op::patch(SP, "identity:update_service_provider", update_sp)
            .default_rule(WRITES)
            .summary("Changes a service provider."),
        Op::delete(SP, "identity:delete_service_provider", delete_sp)
            .default_rule(WRITES)
            .summary("Deletes a service provider."),
        Op::get("/v3/OS-FEDERATION/projects", "identity:get_auth_projects", super::auth::own_projects)
            .summary("Lists the projects the caller can have a token for."),
        Op::get("/v3/OS-FEDERATION/domains", "identity:get_auth_domains", super::auth::own_domains)
            .summary("Lists the domains the caller can have a token for."),
    ]
}

/// An id from a path under which something shall be made.
fn new_id(req: &Request<impl Sized>, name: &str) -> Result<String> {
    let id = req.param(name);
    crate::logic::body::check(name, Kind::Id, false, &Value::String(id.to_owned()))?;
    Ok(id.to_owned())
}

// ---- identity providers

fn idp_wire(cx: &Cx, idp: &IdentityProvider) -> Value {
    let path = format!("{IDPS}/{}", idp.id);
    let mut wire = json!({
        "id": idp.id, "enabled": idp.enabled, "description": idp.description, "domain_id": idp.domain_id,
        "remote_ids": idp.remote_ids, "authorization_ttl": idp.authorization_ttl,
    });
    if let (Some(oidc), Some(map)) = (&idp.oidc, wire.as_object_mut()) {
        let mut shown = json!({"issuer": oidc.issuer, "audiences": oidc.audiences, "jwks_uri": oidc.jwks_uri, "ca": oidc.ca});
        if let Some(client) = &oidc.client {
            shown["client_id"] = json!(client.id);
            shown["scope"] = json!(client.scope);
        }
        map.insert("oidc".into(), shown);
    }
    if let (Some(front), Some(map)) = (&idp.front_end, wire.as_object_mut()) {
        map.insert("front_end".into(), json!({"attributes": front.attributes}));
    }
    let mut wire = entity(cx, &path, wire, &Map::new());
    if let Some(links) = wire.get_mut("links").and_then(Value::as_object_mut) {
        links.insert("protocols".into(), json!(cx.url(&format!("{path}/protocols"))));
    }
    wire
}

async fn list_idps(cx: Cx, req: Request<()>) -> Result<Reply> {
    listed_all::<IdentityProvider, _>(&cx, &req, "identity_providers", idp_wire, &["id", "enabled"]).await
}

async fn show_idp(cx: Cx, req: Request<()>) -> Result<Reply> {
    IDP_ENTITY.show(&cx, req.param("idp_id")).await
}

const IDP_ENTITY: Entity<IdentityProvider> =
    Entity { key: "identity_provider", need: need_idp, wire: idp_wire };

fn need_idp(tx: &mut Tx<'_>, id: &str) -> Result<IdentityProvider> {
    tx.get::<IdentityProvider>(&id.to_owned())?.ok_or_else(|| no_such("Identity Provider", id))
}

/// What an identity provider's `oidc` may say.
const OIDC: [&str; 7] = ["issuer", "audiences", "jwks_uri", "ca", "client_id", "client_secret", "scope"];

/// How tokens are verified, checked; `seal` keeps our secret there.
fn read_oidc(map: &Map<String, Value>, seal: &dyn Fn(&str) -> String) -> Result<Oidc> {
    const PATH: &str = "identity_provider/oidc";
    if let Some(other) = map.keys().find(|k| !OIDC.contains(&k.as_str())) {
        let other: String = other.chars().filter(|c| !c.is_control()).take(64).collect();
        return Err(invalid(
            PATH,
            &format!("Additional properties are not allowed ('{other}' was unexpected)"),
        ));
    }
    let text = |name: &str| match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() <= 65_536 => Ok(Some(text.clone())),
        Some(_) => Err(invalid(&format!("{PATH}/{name}"), "it is not of type 'string'")),
    };
    let url = |name: &str, url: &str| match may_ask(url) && url.len() <= 255 {
        true => Ok(()),
        false => Err(invalid(&format!("{PATH}/{name}"), "it must be an https URL")),
    };
    let issuer = text("issuer")?.ok_or_else(|| invalid(PATH, "'issuer' is a required property"))?;
    url("issuer", &issuer)?;
    let audiences = map.get("audiences").and_then(Value::as_array).filter(|a| (1..=32).contains(&a.len()));
    let audiences = audiences.and_then(|items| {
        items
            .iter()
            .map(|a| a.as_str().filter(|a| !a.is_empty() && a.len() <= 255).map(str::to_owned))
            .collect()
    });
    // A token made for anybody would let every service its user talks to act as the user here.
    let audiences: Option<Vec<String>> = audiences;
    let audiences = audiences
        .ok_or_else(|| invalid(&format!("{PATH}/audiences"), "it must be a list of 1 to 32 texts"))?;
    let (jwks_uri, ca) = (text("jwks_uri")?, text("ca")?);
    if let Some(uri) = &jwks_uri {
        url("jwks_uri", uri)?;
    }
    if let Some(pem) = &ca {
        check_ca(pem).map_err(|e| invalid(&format!("{PATH}/ca"), e.public()))?;
    }
    let client = match (text("client_id")?, text("client_secret")?, text("scope")?) {
        (None, None, None) => None,
        (None, ..) => return Err(invalid(PATH, "'client_id' is a required property of a client")),
        (Some(id), ..) if id.is_empty() || id.len() > 255 => {
            return Err(invalid(&format!("{PATH}/client_id"), "it must be a text of 1 to 255 characters"));
        }
        (Some(id), secret, scope) => {
            let scope = scope.unwrap_or_else(|| "openid profile email".to_owned());
            if !scope.split(' ').any(|s| s == "openid") || scope.len() > 255 {
                return Err(invalid(&format!("{PATH}/scope"), "it must name 'openid'"));
            }
            Some(OidcOwnClient { id, sealed: secret.map(|s| seal(&s)), scope })
        }
    };
    Ok(Oidc { issuer, audiences, jwks_uri, ca, client })
}

/// Which web server speaks for an identity provider, checked: `{"secret", "attributes"}`.
fn read_front_end(map: &Map<String, Value>, seal: &dyn Fn(&str) -> String) -> Result<FrontEnd> {
    const PATH: &str = "identity_provider/front_end";
    if map.keys().any(|k| !["secret", "attributes"].contains(&k.as_str())) {
        return Err(invalid(PATH, "Additional properties are not allowed"));
    }
    let secret = map.get("secret").and_then(Value::as_str).filter(|s| (32..=255).contains(&s.len()));
    let secret = secret.filter(|s| s.bytes().all(|b| b.is_ascii_graphic())).ok_or_else(|| {
        invalid(&format!("{PATH}/secret"), "it must be 32 to 255 visible characters of ASCII")
    })?;
    let is_name = |name: &&str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=64).contains(&name.len()) && name.bytes().all(plain)
    };
    let given = map.get("attributes").and_then(Value::as_array).filter(|a| (1..=64).contains(&a.len()));
    let names: Option<Vec<String>> =
        given.and_then(|items| items.iter().map(|a| a.as_str().filter(is_name).map(str::to_owned)).collect());
    let attributes = names.ok_or_else(|| {
        invalid(&format!("{PATH}/attributes"), "it must be a list of 1 to 64 names of headers")
    })?;
    Ok(FrontEnd { sealed: seal(secret), attributes })
}

/// Takes over what was sent.
fn change_idp(idp: &mut IdentityProvider, fields: &mut Fields, seal: &dyn Fn(&str) -> String) -> Result<()> {
    if let Some(flag) = fields.flag("enabled") {
        idp.enabled = flag;
    }
    if let Some(text) = fields.nullable("description") {
        idp.description = text;
    }
    if fields.has("authorization_ttl") {
        idp.authorization_ttl = fields.int("authorization_ttl");
    }
    if fields.has("remote_ids") {
        idp.remote_ids = fields.tags("remote_ids").unwrap_or_default();
    }
    if fields.has("oidc") {
        idp.oidc = fields.object("oidc").map(|map| read_oidc(&map, seal)).transpose()?;
    }
    if fields.has("front_end") {
        idp.front_end = fields.object("front_end").map(|map| read_front_end(&map, seal)).transpose()?;
    }
    Ok(())
}

/// Each remote id belongs to one identity provider.
fn keep_remote_ids(tx: &mut Tx<'_>, idp: &IdentityProvider) -> Result<()> {
    tx.delete_where::<RemoteId>(&Query::new().eq("idp_id", &idp.id))?;
    for remote in &idp.remote_ids {
        let mut row =
            RemoteId { id: RemoteId::id_of(remote), meta: store::Meta::default(), idp_id: idp.id.clone() };
        told(tx.insert(&mut row), "identity_provider", || format!("Duplicate remote ID: {remote}"))?;
    }
    Ok(())
}

async fn create_idp(cx: Cx, req: Request<Doc<IdpCreate>>) -> Result<Reply> {
    let id = new_id(&req, "idp_id")?;
    let mut fields = req.body.check()?;
    let domain = fields.text("domain_id").map(DomainId::new);
    let fresh = DomainId::random(&cx.entropy);
    let mut idp = IdentityProvider {
        id,
        meta: store::Meta::default(),
        domain_id: domain.clone().unwrap_or_else(|| fresh.clone()),
        enabled: false,
        description: None,
        remote_ids: Vec::new(),
        authorization_ttl: None,
        oidc: None,
        front_end: None,
    };
    change_idp(&mut idp, &mut fields, &|text| cx.seal_secret(text))?;
    let made = cx
        .write(move |tx| {
            let mut idp = idp.clone();
            match &domain {
                Some(domain) => {
                    directory::domain(tx, domain)?;
                }
                None => {
                    let mut domain = own_domain(&fresh, &idp.id);
                    tx.insert(&mut domain)?;
                }
            }
            told(tx.insert(&mut idp), "identity_provider", || {
                format!("Duplicate entry found with ID {}", idp.id)
            })?;
            keep_remote_ids(tx, &idp)?;
            Ok(idp)
        })
        .await?;
    Ok(one("identity_provider", idp_wire(&cx, &made)))
}

/// The domain of an identity provider that was given none.
fn own_domain(id: &DomainId, idp: &str) -> Domain {
    Domain {
        id: id.clone(),
        meta: store::Meta::default(),
        name: id.as_str().to_owned(),
        description: format!("Auto generated federated domain for Identity Provider: {idp}"),
        enabled: true,
        tags: Vec::new(),
        options: Map::new(),
        extra: Map::new(),
        revoked_before: None,
    }
}

async fn update_idp(cx: Cx, req: Request<Doc<IdpUpdate>>) -> Result<Reply> {
    let id = req.param("idp_id").to_owned();
    let fields = req.body.check()?;
    let own = cx.clone();
    let change = move |tx: &mut Tx<'_>, idp: &mut IdentityProvider| {
        change_idp(idp, &mut fields.clone(), &|text| own.seal_secret(text))?;
        keep_remote_ids(tx, idp)?;
        directory::touch_all(tx)
    };
    IDP_ENTITY.update(&cx, &id, change).await
}

async fn delete_idp(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = req.param("idp_id").to_owned();
    cx.write(move |tx| {
        let idp = need_idp(tx, &id)?;
        tx.delete_where::<Protocol>(&Query::new().eq("idp_id", &idp.id))?;
        tx.delete_where::<RemoteId>(&Query::new().eq("idp_id", &idp.id))?;
        tx.delete_where::<FederatedUser>(&Query::new().eq("idp_id", &idp.id))?;
        tx.delete::<IdentityProvider>(&idp.id)?;
        directory::touch_all(tx)
    })
    .await?;
    Ok(Reply::empty())
}

// ---- protocols

fn protocol_wire(cx: &Cx, protocol: &Protocol) -> Value {
    let idp = format!("{IDPS}/{}", protocol.idp_id);
    let own = json!({
        "id": protocol.name, "mapping_id": protocol.mapping_id,
        "remote_id_attribute": protocol.remote_id_attribute,
    });
    let mut wire = entity(cx, &format!("{idp}/protocols/{}", protocol.name), own, &Map::new());
    if let Some(links) = wire.get_mut("links").and_then(Value::as_object_mut) {
        links.insert("identity_provider".into(), json!(cx.url(&idp)));
    }
    wire
}

fn need_protocol(tx: &mut Tx<'_>, idp: &str, name: &str) -> Result<Protocol> {
    let found = tx.get::<Protocol>(&Protocol::id_of(idp, name))?;
    found.ok_or_else(|| no_such("federated protocol", name))
}

fn need_mapping(tx: &mut Tx<'_>, id: &str) -> Result<Mapping> {
    tx.get::<Mapping>(&id.to_owned())?.ok_or_else(|| no_such("mapping", id))
}

async fn list_protocols(cx: Cx, req: Request<()>) -> Result<Reply> {
    let idp = req.param("idp_id").to_owned();
    let found = cx
        .read(move |tx| {
            need_idp(tx, &idp)?;
            tx.list::<Protocol>(&Query::new().eq("idp_id", &idp))
        })
        .await?;
    let items = found.iter().map(|p| protocol_wire(&cx, p)).collect();
    listed(&cx, &req, "protocols", items, &["id", "mapping_id"])
}

async fn show_protocol(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (idp, name) = (req.param("idp_id").to_owned(), req.param("protocol_id").to_owned());
    let found = cx.read(move |tx| need_protocol(tx, &idp, &name)).await?;
    Ok(one("protocol", protocol_wire(&cx, &found)))
}

async fn create_protocol(cx: Cx, req: Request<Doc<ProtocolCreate>>) -> Result<Reply> {
    let name = new_id(&req, "protocol_id")?;
    let idp = req.param("idp_id").to_owned();
    let mut fields = req.body.check()?;
    let protocol = Protocol {
        id: Protocol::id_of(&idp, &name),
        meta: store::Meta::default(),
        idp_id: idp,
        name,
        mapping_id: fields.text("mapping_id").unwrap_or_default(),
        remote_id_attribute: fields.nullable("remote_id_attribute").flatten(),
    };
    let made = cx
        .write(move |tx| {
            let mut protocol = protocol.clone();
            need_idp(tx, &protocol.idp_id)?;
            usable_mapping(tx, &protocol.mapping_id)?;
            told(tx.insert(&mut protocol), "federation_protocol", || {
                format!("Duplicate entry found with ID {}", protocol.name)
            })?;
            Ok(protocol)
        })
        .await?;
    Ok(one("protocol", protocol_wire(&cx, &made)))
}

/// A mapping named in a body: where there is none, the body is wrong.
fn usable_mapping(tx: &mut Tx<'_>, id: &str) -> Result<()> {
    need_mapping(tx, id).map(|_| ()).map_err(|e| Error::bad_request(e.public().to_owned()))
}

async fn update_protocol(cx: Cx, req: Request<Doc<ProtocolUpdate>>) -> Result<Reply> {
    let (idp, name) = (req.param("idp_id").to_owned(), req.param("protocol_id").to_owned());
    let fields = req.body.check()?;
    let made = cx
        .write(move |tx| {
            let mut fields = fields.clone();
            let mut protocol = need_protocol(tx, &idp, &name)?;
            if let Some(mapping) = fields.text("mapping_id") {
                usable_mapping(tx, &mapping)?;
                protocol.mapping_id = mapping;
            }
            if let Some(text) = fields.nullable("remote_id_attribute") {
                protocol.remote_id_attribute = text;
            }
            tx.update(&mut protocol)?;
            Ok(protocol)
        })
        .await?;
    Ok(one("protocol", protocol_wire(&cx, &made)))
}

async fn delete_protocol(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (idp, name) = (req.param("idp_id").to_owned(), req.param("protocol_id").to_owned());
    cx.write(move |tx| {
        let protocol = need_protocol(tx, &idp, &name)?;
        for user in tx.list::<FederatedUser>(&Query::new().eq("idp_id", &idp))? {
            if user.protocol == name {
                tx.delete::<FederatedUser>(&user.id)?;
            }
        }
        tx.delete::<Protocol>(&protocol.id)?;
        directory::touch_all(tx)
    })
    .await?;
    Ok(Reply::empty())
}

// ---- the way in

/// An unscoped token for who came from a provider, or why there is none; noted either way.
pub(super) async fn logged_in(
    cx: &Cx,
    req: &Request<()>,
    idp: &str,
    who: Result<Entered>,
) -> Result<(String, Arc<Validated>)> {
    let made = match who {
        Ok(who) => unscoped(cx.state(), who).await,
        Err(error) => Err(error),
    };
    let by = Some(format!("somebody of {idp}"));
    crate::audit::authentication(cx, req.peer(), by, made.as_ref().map(|(_, v)| v.as_ref()));
    made
}

async fn enter(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (idp, protocol) = (req.param("idp_id"), req.param("protocol_id"));
    let who = admitted(cx.state(), idp, protocol, req.headers()).await;
    let (token, valid) = logged_in(&cx, &req, idp, who).await?;
    Ok(Reply::bytes("application/json", valid.body(true)).header("x-subject-token", token))
}

// ---- mappings

fn mapping_wire(cx: &Cx, mapping: &Mapping) -> Value {
    let own = json!({"id": mapping.id, "rules": mapping.rules, "schema_version": mapping.schema_version});
    entity(cx, &format!("{MAPPINGS}/{}", mapping.id), own, &Map::new())
}

async fn list_mappings(cx: Cx, req: Request<()>) -> Result<Reply> {
    listed_all::<Mapping, _>(&cx, &req, "mappings", mapping_wire, &["id"]).await
}

async fn show_mapping(cx: Cx, req: Request<()>) -> Result<Reply> {
    MAPPING_ENTITY.show(&cx, req.param("mapping_id")).await
}

const MAPPING_ENTITY: Entity<Mapping> = Entity { key: "mapping", need: need_mapping, wire: mapping_wire };

fn checked_rules(fields: &mut Fields) -> Result<Value> {
    let rules = fields.objects("rules").unwrap_or_default();
    let rules = Value::Array(rules.into_iter().map(Value::Object).collect());
    Rules::parse(&rules)?;
    Ok(rules)
}

async fn create_mapping(cx: Cx, req: Request<Doc<MappingBody>>) -> Result<Reply> {
    let id = new_id(&req, "mapping_id")?;
    let mut fields = req.body.check()?;
    let mapping = Mapping {
        id: id.clone(),
        meta: store::Meta::default(),
        rules: checked_rules(&mut fields)?,
        schema_version: fields.text("schema_version").unwrap_or_else(|| "1.0".into()),
    };
    MAPPING_ENTITY.create(&cx, mapping, &id, |_| Ok(())).await
}

async fn update_mapping(cx: Cx, req: Request<Doc<MappingBody>>) -> Result<Reply> {
    let id = req.param("mapping_id").to_owned();
    let mut fields = req.body.check()?;
    let (rules, version) = (checked_rules(&mut fields)?, fields.text("schema_version"));
    let change = move |_: &mut Tx<'_>, mapping: &mut Mapping| {
        mapping.rules.clone_from(&rules);
        if let Some(version) = &version {
            mapping.schema_version.clone_from(version);
        }
        Ok(())
    };
    MAPPING_ENTITY.update(&cx, &id, change).await
}

async fn delete_mapping(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = req.param("mapping_id").to_owned();
    cx.write(move |tx| {
        let mapping = need_mapping(tx, &id)?;
        if tx.exists::<Protocol>(&Query::new().eq("mapping_id", &mapping.id))? {
            return Err(Error::conflict(format!("Mapping {id} is used by a protocol.")));
        }
        tx.delete::<Mapping>(&mapping.id)?;
        Ok(())
    })
    .await?;
    Ok(Reply::empty())
}

// ---- service providers

fn sp_wire(cx: &Cx, sp: &ServiceProvider) -> Value {
    let own = json!({
        "id": sp.id, "auth_url": sp.auth_url, "sp_url": sp.sp_url, "description": sp.description,
        "enabled": sp.enabled, "relay_state_prefix": sp.relay_state_prefix,
    });
    entity(cx, &format!("{SPS}/{}", sp.id), own, &Map::new())
}

pub(super) fn need_sp(tx: &mut Tx<'_>, id: &str) -> Result<ServiceProvider> {
    tx.get::<ServiceProvider>(&id.to_owned())?.ok_or_else(|| no_such("Service Provider", id))
}

fn change_sp(sp: &mut ServiceProvider, fields: &mut Fields) {
    for (field, name) in [
        (&mut sp.auth_url, "auth_url"),
        (&mut sp.sp_url, "sp_url"),
        (&mut sp.relay_state_prefix, "relay_state_prefix"),
    ] {
        if let Some(text) = fields.text(name) {
            *field = text;
        }
    }
    if let Some(text) = fields.nullable("description") {
        sp.description = text;
    }
    if let Some(flag) = fields.flag("enabled") {
        sp.enabled = flag;
    }
}

async fn list_sps(cx: Cx, req: Request<()>) -> Result<Reply> {
    listed_all::<ServiceProvider, _>(&cx, &req, "service_providers", sp_wire, &["id", "enabled"]).await
}

async fn show_sp(cx: Cx, req: Request<()>) -> Result<Reply> {
    SP_ENTITY.show(&cx, req.param("sp_id")).await
}

const SP_ENTITY: Entity<ServiceProvider> = Entity { key: "service_provider", need: need_sp, wire: sp_wire };

async fn create_sp(cx: Cx, req: Request<Doc<SpCreate>>) -> Result<Reply> {
    let id = new_id(&req, "sp_id")?;
    let mut fields = req.body.check()?;
    let mut sp = ServiceProvider {
        id: id.clone(),
        meta: store::Meta::default(),
        auth_url: String::new(),
        sp_url: String::new(),
        description: None,
        enabled: false,
        relay_state_prefix: cx.config.operator.saml.relay_state_prefix.clone(),
    };
    change_sp(&mut sp, &mut fields);
    // Tokens tell of it.
    SP_ENTITY.create(&cx, sp, &id, directory::touch_all).await
}

async fn update_sp(cx: Cx, req: Request<Doc<SpUpdate>>) -> Result<Reply> {
    let id = req.param("sp_id").to_owned();
    let fields = req.body.check()?;
    let change = move |tx: &mut Tx<'_>, sp: &mut ServiceProvider| {
        change_sp(sp, &mut fields.clone());
        directory::touch_all(tx)
    };
    SP_ENTITY.update(&cx, &id, change).await
}

async fn delete_sp(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = req.param("sp_id").to_owned();
    cx.write(move |tx| {
        need_sp(tx, &id)?;
        tx.delete::<ServiceProvider>(&id)?;
        directory::touch_all(tx)
    })
    .await?;
    Ok(Reply::empty())
}
