//! The programs that users of this cloud may log in to: clients of the OIDC provider.

use ::api::{Op, Reply, Request};
use base::Result;
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::{Cx, Entity, entity, inserted, listed_all, one};
use crate::federation::model::{OidcClient, OidcGrant};
use crate::federation::no_such;
use crate::logic::body::{Doc, Fields, Kind, invalid, may, must, shape};
use crate::oidc::{GRANT_TYPES, grants};
use crate::password::digest;
use crate::state::State;

shape!(
    ClientCreate,
    "client",
    false,
    [
        must("name", Kind::Text(1, 255)),
        may("enabled", Kind::Bool),
        may("public", Kind::Bool),
        may("redirect_uris", Kind::Texts(1024)),
        may("grant_types", Kind::Texts(64)),
        may("audiences", Kind::Texts(255)),
    ]
);

shape!(
    ClientUpdate,
    "client",
    false,
    [
        may("name", Kind::Text(1, 255)),
        may("enabled", Kind::Bool),
        may("redirect_uris", Kind::Texts(1024)),
        may("grant_types", Kind::Texts(64)),
        may("audiences", Kind::Texts(255)),
    ]
);

const CLIENTS: &str = "/v3/OS-OIDC/clients";
const CLIENT: &str = "/v3/OS-OIDC/clients/{client_id}";
const RULE: &str = "rule:admin_required";

pub(super) fn ops() -> Vec<Op<State>> {
    vec![
        Op::get(CLIENTS, "identity:list_oidc_clients", list)
            .default_rule(RULE)
            .summary("Lists clients of the OIDC provider."),
        Op::post(CLIENTS, "identity:create_oidc_client", create)
            .default_rule(RULE)
            .status(201)
            .summary("Makes a client of the OIDC provider; its secret is told once."),
        Op::get(CLIENT, "identity:get_oidc_client", show)
            .default_rule(RULE)
            .summary("Shows a client of the OIDC provider."),
        Op::patch(CLIENT, "identity:update_oidc_client", update)
            .default_rule(RULE)
            .summary("Changes a client of the OIDC provider."),
        Op::delete(CLIENT, "identity:delete_oidc_client", delete)
            .default_rule(RULE)
            .summary("Deletes a client of the OIDC provider, and its codes."),
    ]
}

fn wire(cx: &Cx, client: &OidcClient) -> Value {
    let own = json!({
        "id": client.id, "name": client.name, "enabled": client.enabled, "public": client.secret.is_none(),
        "redirect_uris": client.redirect_uris, "grant_types": client.grant_types, "audiences": client.audiences,
    });
    entity(cx, &format!("{CLIENTS}/{}", client.id), own, &Map::new())
}

fn need(tx: &mut Tx<'_>, id: &str) -> Result<OidcClient> {
    tx.get::<OidcClient>(&id.to_owned())?.ok_or_else(|| no_such("OIDC client", id))
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    listed_all::<OidcClient, _>(&cx, &req, "clients", wire, &["name", "enabled"]).await
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    CLIENT_ENTITY.show(&cx, req.param("client_id")).await
}

const CLIENT_ENTITY: Entity<OidcClient> = Entity { key: "client", need, wire };

/// HTTPS; plain HTTP and schemes of their own for programs on the user's machine.
fn redirect_is_fine(uri: &str) -> bool {
    let fine = |c: char| c.is_ascii_graphic() && !"\"'<>\\^`{|}#;,".contains(c);
    let (scheme, _) = uri.split_once(':').unwrap_or_default();
    let own = scheme.contains('.') && scheme.chars().all(|c| c.is_ascii_alphanumeric() || ".-+".contains(c));
    uri.chars().all(fine) && (own || federation::issuer::may_ask(uri))
}

fn change(client: &mut OidcClient, fields: &mut Fields) -> Result<()> {
    if let Some(name) = fields.text("name") {
        client.name = name;
    }
    if let Some(flag) = fields.flag("enabled") {
        client.enabled = flag;
    }
    if let Some(uris) = fields.tags("redirect_uris") {
        if let Some(i) = uris.iter().position(|u| !redirect_is_fine(u)) {
            return Err(invalid(
                &format!("client/redirect_uris/{i}"),
                "it must be an https URL without a fragment",
            ));
        }
        client.redirect_uris = uris;
    }
    if let Some(types) = fields.tags("grant_types") {
        if let Some(i) = types.iter().position(|t| !GRANT_TYPES.contains(&t.as_str())) {
            return Err(invalid(&format!("client/grant_types/{i}"), "it is no grant type there is"));
        }
        client.grant_types = types;
    }
    if let Some(audiences) = fields.tags("audiences") {
        client.audiences = audiences;
    }
    Ok(())
}

async fn create(cx: Cx, req: Request<Doc<ClientCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    let secret = grants::secret(&cx.entropy);
    let public = fields.flag("public").unwrap_or(false);
    let mut client = OidcClient {
        id: cx.entropy.uuid().simple().to_string(),
        meta: store::Meta::default(),
        name: String::new(),
        enabled: true,
        secret: (!public).then(|| digest(&secret)),
        redirect_uris: Vec::new(),
        grant_types: vec![
            "authorization_code".into(),
            crate::oidc::DEVICE_CODE.into(),
            "refresh_token".into(),
        ],
        audiences: Vec::new(),
    };
    change(&mut client, &mut fields)?;
    let made = inserted(&cx, client).await?;
    let mut shown = wire(&cx, &made);
    if let (false, Some(map)) = (public, shown.as_object_mut()) {
        map.insert("secret".into(), json!(secret));
    }
    Ok(one("client", shown))
}

async fn update(cx: Cx, req: Request<Doc<ClientUpdate>>) -> Result<Reply> {
    let id = req.param("client_id").to_owned();
    let fields = req.body.check()?;
    let change = move |_: &mut Tx<'_>, client: &mut OidcClient| change(client, &mut fields.clone());
    CLIENT_ENTITY.update(&cx, &id, change).await
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = req.param("client_id").to_owned();
    cx.write(move |tx| {
        need(tx, &id)?;
        for grant in tx.list::<OidcGrant>(&Query::new())? {
            if grant.client_id == id {
                tx.delete::<OidcGrant>(&grant.id)?;
            }
        }
        tx.delete::<OidcClient>(&id)?;
        Ok(())
    })
    .await?;
    Ok(Reply::empty())
}
