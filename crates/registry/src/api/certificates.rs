//! Certificates: issued and revoked by administrators, seen and verified by everybody.

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json as value};
use store::{Order, Query};

use super::{Answer, Caller, LARGEST, Parameters, Site, body, content_type, json, login, permit};
use crate::Registry;
use crate::accounts::ADMIN;
use crate::certificate::{self, CRL_NAMESPACE, Issue, NAMESPACE, Wish};
use crate::model::Certificate;

/// Characters of a reason.
const LONGEST_REASON: usize = 500;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    subject: String,
    scope: String,
    version: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {
    reason: String,
}

async fn read<T: DeserializeOwned>(headers: &HeaderMap, content: Body) -> Result<T> {
    if content_type(headers).map(|t| t.split(';').next().unwrap_or_default().trim())
        != Some("application/json")
    {
        return Err(Error::unsupported_media_type("Content-Type is application/json."));
    }
    let content = body(content, LARGEST).await?;
    serde_json::from_slice(&content).map_err(|e| Error::unprocessable(format!("body: {e}")))
}

/// A certificate as lists show it.
fn shown(registry: &Registry, certificate: &Certificate) -> Value {
    let place = format!("{}certificates/{}", registry.url(), certificate.id);
    value!({
        "id": certificate.id, "subject": certificate.subject, "scope": certificate.scope, "version": certificate.version,
        "issued_at": certificate.issued_at.iso_seconds(), "expires_at": certificate.expires_at.iso_seconds(),
        "status": certificate::standing(certificate, registry.now()),
        "revoked_at": certificate.revoked_at.map(base::Timestamp::iso_seconds), "reason": certificate.reason,
        "document": place, "signature": format!("{place}/signature"), "credential": format!("{place}/credential"),
    })
}

/// `POST /certificates`: of what a subject has passed now.
pub(super) async fn issue(State(registry): Site, caller: Caller, content: Body) -> Answer {
    let account = login(&registry, &caller).await?;
    permit(&account, None, ADMIN)?;
    let asked: Asked = read(&caller.headers, content).await?;
    if registry.accounts().get(&asked.subject).is_none() {
        return Err(Error::unprocessable("subject: there is no such account").into());
    }
    let known = registry.scope(&asked.scope);
    let rules = known.map_err(|_| Error::unprocessable("scope: there is no such scope"))?.clone();
    let state = registry.state(&asked.subject, &rules, true).await?;
    let wish = Wish { subject: asked.subject, version: asked.version };
    certificate::deserved(&state, &wish)?;
    let (id, site) = (registry.entropy.uuid().to_string(), registry.clone());
    let made = registry.store().write(move |tx| {
        let last = tx.first::<Certificate>(&Query::new().sort("number", Order::Desc).limit(1))?;
        let (key, url, now) = (site.key(), site.url(), tx.now());
        let number = last.map_or(0, |c| c.number + 1);
        let issue = Issue { key, url, rules: &rules, state: &state, id: id.clone(), number, now };
        let mut certificate = issue.certificate(wish.clone())?;
        tx.insert(&mut certificate)?;
        Ok(certificate)
    });
    let made = made.await?;
    tracing::info!(certificate = made.id, subject = made.subject, by = account.subject, "issued");
    Ok(json(StatusCode::CREATED, &shown(&registry, &made)))
}

/// `POST /certificates/{id}/revoke`.
pub(super) async fn revoke(
    State(registry): Site,
    caller: Caller,
    Path(id): Path<String>,
    content: Body,
) -> Answer {
    let account = login(&registry, &caller).await?;
    permit(&account, None, ADMIN)?;
    let Revocation { reason } = read(&caller.headers, content).await?;
    let length = reason.chars().count();
    if reason.trim().is_empty() || length > LONGEST_REASON || reason.contains('\0') {
        let wanted = format!("reason: a text of 1 to {LONGEST_REASON} characters is wanted");
        return Err(Error::unprocessable(wanted).into());
    }
    let revoked = registry.store().write(move |tx| {
        let found = tx.get::<Certificate>(&id)?;
        let mut certificate = found.ok_or_else(|| Error::not_found("Not Found"))?;
        if certificate.revoked_at.is_some() {
            return Err(Error::conflict("The certificate is revoked already."));
        }
        certificate.revoked_at = Some(tx.now());
        certificate.reason = Some(reason.clone());
        tx.update_status(&mut certificate)?;
        Ok(certificate)
    });
    let revoked = revoked.await?;
    tracing::info!(certificate = revoked.id, subject = revoked.subject, by = account.subject, "revoked");
    Ok(json(StatusCode::OK, &shown(&registry, &revoked)))
}

/// Certificates, newest first.
pub(super) async fn some(
    registry: &Registry,
    subject: Option<String>,
    scope: Option<String>,
) -> Result<Vec<Certificate>> {
    let found = registry.store().read(move |tx| {
        let mut query = Query::new().sort("number", Order::Desc);
        if let Some(subject) = &subject {
            query = query.eq("subject", subject);
        }
        if let Some(scope) = &scope {
            query = query.eq("scope", scope);
        }
        tx.list::<Certificate>(&query)
    });
    found.await
}

/// A certificate.
pub(super) async fn one(registry: &Registry, id: String) -> Result<Certificate> {
    let found = registry.store().read(move |tx| tx.get::<Certificate>(&id)).await?;
    found.ok_or_else(|| Error::not_found("Not Found"))
}

/// `GET /certificates?subject&scope`.
pub(super) async fn list(State(registry): Site, query: RawQuery) -> Answer {
    let parameters = Parameters::parse(query, &["subject", "scope"])?;
    let scope = parameters.text("scope").map(|name| registry.scope(name)).transpose()?;
    let uuid = scope.map(|r| r.scope.uuid.clone());
    let found = some(&registry, parameters.text("subject").map(str::to_owned), uuid).await?;
    let all: Vec<Value> = found.iter().map(|c| shown(&registry, c)).collect();
    Ok(json(StatusCode::OK, &all))
}

fn file(kind: &'static str, name: String, content: String) -> Response {
    let disposition = format!("inline; filename=\"{name}\"");
    ([(CONTENT_TYPE, kind.to_owned()), (CONTENT_DISPOSITION, disposition)], content).into_response()
}

/// `GET /certificates/{id}`: the document, byte for byte as it was signed.
pub(super) async fn document(State(registry): Site, Path(id): Path<String>) -> Answer {
    let found = one(&registry, id).await?;
    Ok(file("application/json", format!("{}.json", found.id), found.document))
}

/// `GET /certificates/{id}/signature`.
pub(super) async fn signature(State(registry): Site, Path(id): Path<String>) -> Answer {
    let found = one(&registry, id).await?;
    Ok(file("text/plain; charset=utf-8", format!("{}.json.sig", found.id), found.signature))
}

/// `GET /certificates/{id}/credential`.
pub(super) async fn credential(State(registry): Site, Path(id): Path<String>) -> Answer {
    let found = one(&registry, id).await?;
    Ok(file("application/vc+jwt", format!("{}.jwt", found.id), found.credential))
}

/// `GET /crl`.
pub(super) async fn crl(State(registry): Site) -> Answer {
    let all = some(&registry, None, None).await?;
    let text = certificate::revoked(registry.key(), &all, registry.now());
    Ok(file("application/json", "crl.json".into(), text))
}

/// `GET /crl/signature`.
pub(super) async fn crl_signature(State(registry): Site) -> Answer {
    let all = some(&registry, None, None).await?;
    let text = certificate::revoked(registry.key(), &all, registry.now());
    let signature = attest::sshsig::sign(registry.key(), CRL_NAMESPACE, text.as_bytes());
    Ok(file("text/plain; charset=utf-8", "crl.json.sig".into(), signature))
}

/// `GET /credentials/status`: revocation as wallets read it.
pub(super) async fn status_list(State(registry): Site) -> Answer {
    let all = some(&registry, None, None).await?;
    let revoked: Vec<i64> = all.iter().filter(|c| c.revoked_at.is_some()).map(|c| c.number).collect();
    let token = certificate::status_list(registry.key(), registry.url(), &revoked, registry.now())?;
    Ok(file("application/vc+jwt", "status.jwt".into(), token))
}

/// `GET /issuer`: the key, in each form that somebody verifies with.
pub(super) async fn issuer(State(registry): Site) -> Answer {
    let key = registry.key();
    let signers = format!("registry namespaces=\"{NAMESPACE},{CRL_NAMESPACE}\" {}\n", key.ssh());
    let shown = value!({
        "did": key.did(), "jwk": key.jwk(), "ssh": key.ssh(), "fingerprint": key.verifying().fingerprint(),
        "allowed_signers": signers,
    });
    Ok(json(StatusCode::OK, &shown))
}
