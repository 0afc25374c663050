//! Logging in at Keystone v3: password, token, application credential, and OpenID Connect without a browser (password,
//! client credentials, access token).

use base::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::catalog::Catalog;
use crate::config::Cloud;
use crate::transport::{Answer, Outgoing, Transport};
use crate::{Error, Kind, Result};

/// What a login gave.
#[derive(Clone)]
pub struct Token {
    /// The token itself; a secret.
    pub(crate) secret: String,
    /// Names of the roles.
    pub roles: Vec<String>,
    /// The project it is good for.
    pub project_id: Option<String>,
    /// Its name.
    pub project_name: Option<String>,
    /// The user.
    pub user_id: String,
    /// Until when it is good.
    pub expires_at: Option<Timestamp>,
    /// The services.
    pub catalog: Catalog,
    /// The whole `token` of the answer.
    pub body: Value,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("user_id", &self.user_id)
            .field("roles", &self.roles)
            .finish_non_exhaustive()
    }
}

/// `auth_url` with `/v3` at its end.
pub fn identity_url(cloud: &Cloud) -> String {
    let url = cloud.auth(&["auth_url"]).unwrap_or_default().trim_end_matches('/');
    match url.rsplit('/').next() {
        Some("v3") => url.to_owned(),
        Some("v2.0") => format!("{}/v3", url.trim_end_matches("/v2.0")),
        _ => format!("{url}/v3"),
    }
}

pub(crate) async fn login(cloud: &Cloud, transport: &Transport) -> Result<Token> {
    let url = identity_url(cloud);
    let kind = cloud.auth_type.trim_start_matches("v3");
    let (identity, scoped) = match kind {
        "password" => (json!({"methods": ["password"], "password": {"user": password_user(cloud)?}}), true),
        "token" => (by_token(need(cloud, &["token"])?), true),
        "applicationcredential" => (application_credential(cloud)?, false),
        "oidcpassword" | "oidcclientcredentials" | "oidcaccesstoken" => {
            let unscoped = federated(cloud, transport, &url, kind).await?;
            (by_token(&unscoped), true)
        }
        other => {
            return Err(Error::config(format!(
                "cloud {:?}: auth_type {other:?} is not supported (password, token, v3applicationcredential, \
                 v3oidcpassword, v3oidcclientcredentials, v3oidcaccesstoken)",
                cloud.name
            )));
        }
    };
    let mut auth = json!({ "identity": identity });
    if scoped && let (Some(scope), Some(auth)) = (scope(cloud), auth.as_object_mut()) {
        auth.insert("scope".into(), scope);
    }
    let target = format!("{url}/auth/tokens");
    let answer = post(transport, &target, &json!({ "auth": auth })).await?;
    token(answer, &target)
}

fn need<'a>(cloud: &'a Cloud, names: &[&str]) -> Result<&'a str> {
    cloud.auth(names).ok_or_else(|| {
        Error::config(format!("cloud {:?} has no {}", cloud.name, names.first().unwrap_or(&"value")))
    })
}

fn by_token(token: &str) -> Value {
    json!({"methods": ["token"], "token": {"id": token}})
}

/// The domain of a user or project.
fn domain(cloud: &Cloud, of: &str) -> Value {
    let (id, name) = (format!("{of}_domain_id"), format!("{of}_domain_name"));
    if let Some(id) = cloud.auth(&[&id]) {
        json!({ "id": id })
    } else if let Some(name) = cloud.auth(&[&name]) {
        json!({ "name": name })
    } else if let Some(name) = cloud.auth(&["default_domain_name"]) {
        json!({ "name": name })
    } else {
        json!({"id": cloud.auth(&["default_domain_id", "default_domain"]).unwrap_or("default")})
    }
}

fn password_user(cloud: &Cloud) -> Result<Value> {
    let password = need(cloud, &["password"])?;
    Ok(match cloud.auth(&["user_id"]) {
        Some(id) => json!({"id": id, "password": password}),
        None => {
            json!({"name": need(cloud, &["username"])?, "password": password, "domain": domain(cloud, "user")})
        }
    })
}

fn application_credential(cloud: &Cloud) -> Result<Value> {
    let secret = need(cloud, &["application_credential_secret"])?;
    let credential = match cloud.auth(&["application_credential_id"]) {
        Some(id) => json!({"id": id, "secret": secret}),
        None => {
            let user = match cloud.auth(&["user_id"]) {
                Some(id) => json!({ "id": id }),
                None => json!({"name": need(cloud, &["username"])?, "domain": domain(cloud, "user")}),
            };
            json!({"name": need(cloud, &["application_credential_name"])?, "secret": secret, "user": user})
        }
    };
    Ok(json!({"methods": ["application_credential"], "application_credential": credential}))
}

fn scope(cloud: &Cloud) -> Option<Value> {
    if let Some(id) = cloud.auth(&["project_id", "tenant_id"]) {
        Some(json!({"project": {"id": id}}))
    } else if let Some(name) = cloud.auth(&["project_name", "tenant_name"]) {
        Some(json!({"project": {"name": name, "domain": domain(cloud, "project")}}))
    } else if let Some(id) = cloud.auth(&["domain_id"]) {
        Some(json!({"domain": {"id": id}}))
    } else if let Some(name) = cloud.auth(&["domain_name"]) {
        Some(json!({"domain": {"name": name}}))
    } else if let Some(id) = cloud.auth(&["trust_id"]) {
        Some(json!({"OS-TRUST:trust": {"id": id}}))
    } else {
        cloud.auth(&["system_scope"]).map(|_| json!({"system": {"all": true}}))
    }
}

async fn post(transport: &Transport, url: &str, body: &Value) -> Result<Answer> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    transport
        .send(Outgoing { method: Method::POST, url, headers, body: Some(body.to_string().into_bytes()) })
        .await
}

fn token(answer: Answer, url: &str) -> Result<Token> {
    let failed = |kind: Kind, message: String| Error {
        kind,
        message,
        call: Some(format!("POST {url}")),
        request_id: answer.request_id.clone(),
    };
    if answer.status == StatusCode::UNAUTHORIZED {
        return Err(failed(Kind::Auth, "the cloud does not accept these credentials (401)".into()));
    }
    if !answer.status.is_success() {
        return Err(failed(Kind::Status(answer.status.as_u16()), "no token".into()));
    }
    let secret = answer.headers.get("x-subject-token").and_then(|v| v.to_str().ok());
    let secret =
        secret.ok_or_else(|| failed(Kind::Protocol, "no X-Subject-Token in the answer".into()))?.to_owned();
    let body: Value = serde_json::from_slice(&answer.body)
        .map_err(|_| failed(Kind::Protocol, "the answer is not JSON".into()))?;
    let body = body.get("token").cloned().unwrap_or_default();
    let text = |path: &str| body.pointer(path).and_then(Value::as_str).map(str::to_owned);
    Ok(Token {
        roles: body
            .get("roles")
            .and_then(Value::as_array)
            .map(|roles| roles.iter().filter_map(|r| Some(r.get("name")?.as_str()?.to_owned())).collect())
            .unwrap_or_default(),
        project_id: text("/project/id"),
        project_name: text("/project/name"),
        user_id: text("/user/id").unwrap_or_default(),
        expires_at: text("/expires_at").and_then(|t| Timestamp::parse(&t)),
        catalog: body
            .get("catalog")
            .map(|c| serde_json::from_value(c.clone()))
            .transpose()
            .map_err(|e| failed(Kind::Protocol, format!("the catalog cannot be read: {e}")))?
            .unwrap_or_default(),
        secret,
        body,
    })
}

/// An access token of the identity provider, turned into an unscoped token of the cloud.
async fn federated(cloud: &Cloud, transport: &Transport, url: &str, kind: &str) -> Result<String> {
    let access = match cloud.auth(&["access_token"]) {
        Some(token) => token.to_owned(),
        None => access_token(cloud, transport, kind).await?,
    };
    let (provider, protocol) = (need(cloud, &["identity_provider"])?, need(cloud, &["protocol"])?);
    let target = format!("{url}/OS-FEDERATION/identity_providers/{provider}/protocols/{protocol}/auth");
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, header(&format!("Bearer {access}"))?);
    let answer = transport.send(Outgoing { method: Method::POST, url: &target, headers, body: None }).await?;
    Ok(token(answer, &target)?.secret)
}

async fn access_token(cloud: &Cloud, transport: &Transport, kind: &str) -> Result<String> {
    let endpoint = match cloud.auth(&["access_token_endpoint"]) {
        Some(url) => url.to_owned(),
        None => {
            let url = need(cloud, &["discovery_endpoint"])?;
            let out = Outgoing { method: Method::GET, url, headers: HeaderMap::new(), body: None };
            let answer = transport.send(out).await?;
            let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let found = body.get("token_endpoint").and_then(Value::as_str);
            found.ok_or_else(|| Error::protocol(format!("{url} names no token_endpoint")))?.to_owned()
        }
    };
    let mut form = vec![("scope", cloud.auth(&["openid_scope"]).unwrap_or("openid profile"))];
    form.push(("client_id", need(cloud, &["client_id"])?));
    if let Some(secret) = cloud.auth(&["client_secret"]) {
        form.push(("client_secret", secret));
    }
    match kind {
        "oidcpassword" => form.extend([
            ("grant_type", "password"),
            ("username", need(cloud, &["username"])?),
            ("password", need(cloud, &["password"])?),
        ]),
        "oidcclientcredentials" => form.push(("grant_type", "client_credentials")),
        _ => return Err(Error::config(format!("cloud {:?} has no access_token", cloud.name))),
    }
    let body: Vec<String> = form.iter().map(|(k, v)| format!("{k}={}", encoded(v))).collect();
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    let out =
        Outgoing { method: Method::POST, url: &endpoint, headers, body: Some(body.join("&").into_bytes()) };
    let answer = transport.send(out).await?;
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let access = body.get("access_token").and_then(Value::as_str).map(str::to_owned);
    access.ok_or_else(|| {
        Error::new(Kind::Auth, format!("{endpoint}: no access token ({})", answer.status.as_u16()))
    })
}

pub(crate) fn header(value: &str) -> Result<HeaderValue> {
    let mut value =
        HeaderValue::from_str(value).map_err(|_| Error::config("a credential is no text for a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Percent-encoding of everything that is not plain.
pub(crate) fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}
