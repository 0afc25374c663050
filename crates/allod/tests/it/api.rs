//! A client of the APIs, as little as tests need.

use std::time::Duration;

use serde_json::{Value, json};

/// Logged in to a cloud.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    url: String,
    token: String,
}

/// What became of a request.
#[derive(Debug)]
pub enum Answer {
    /// A status and its body.
    Told(u16, Value),
    /// No answer: it may or may not have been done.
    Nothing,
}

impl Api {
    pub async fn login(http: reqwest::Client, url: &str, user: &str, password: &str) -> Result<Self, String> {
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {
                "user": {"name": user, "domain": {"id": "default"}, "password": password}}},
            "scope": {"project": {"name": user, "domain": {"id": "default"}}},
        }});
        let sent = http.post(format!("{url}/identity/v3/auth/tokens")).json(&body).send().await;
        let answer = sent.map_err(|e| format!("{e:?}"))?;
        if answer.status() != 201 {
            return Err(format!("{} {}", answer.status(), answer.text().await.unwrap_or_default()));
        }
        let token = answer.headers()["x-subject-token"].to_str().unwrap().to_owned();
        Ok(Api { http, url: url.to_owned(), token })
    }

    /// The same caller at another address of the cloud.
    pub fn at(&self, url: &str) -> Self {
        Api { url: url.to_owned(), ..self.clone() }
    }

    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let method = method.parse().unwrap();
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .header("x-auth-token", &self.token)
            .timeout(Duration::from_secs(8));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let Ok(answer) = request.send().await else { return Answer::Nothing };
        let status = answer.status().as_u16();
        let Ok(text) = answer.text().await else { return Answer::Nothing };
        Answer::Told(status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// What must be answered with success.
    pub async fn get(&self, path: &str) -> Value {
        match self.call("GET", path, None).await {
            Answer::Told(200, body) => body,
            other => panic!("GET {path}: {other:?}"),
        }
    }

    pub async fn make(&self, path: &str, body: Value) -> Value {
        match self.call("POST", path, Some(body)).await {
            Answer::Told(200..=202, body) => body,
            other => panic!("POST {path}: {other:?}"),
        }
    }

    /// The lists that a tenant sees, without what names the address of the cloud, and without the times and counts of
    /// writes: a host that comes back says anew that ports are up.
    pub async fn everything(&self) -> Vec<(String, String)> {
        let paths = [
            "/network/v2.0/networks",
            "/network/v2.0/subnets",
            "/network/v2.0/ports",
            "/network/v2.0/routers",
            "/network/v2.0/floatingips",
            "/network/v2.0/security-groups",
            "/compute/v2.1/servers/detail",
            "/compute/v2.1/os-keypairs",
            "/compute/v2.1/flavors/detail",
            "/compute/v2.1/limits",
            "/image/v2/images",
            "/identity/v3/auth/projects",
        ];
        let project = self.get("/identity/v3/auth/projects").await["projects"][0]["id"].clone();
        let volumes = format!("/volume/v3/{}/volumes/detail", project.as_str().unwrap());
        let mut all = Vec::new();
        for path in paths.into_iter().chain([volumes.as_str()]) {
            let mut body = self.get(path).await;
            forget(&mut body, &["updated_at", "updated", "revision_number"]);
            let text = body.to_string().replace(&self.url, "URL");
            all.push((path.to_owned(), text));
        }
        all
    }
}

fn forget(value: &mut Value, names: &[&str]) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !names.contains(&name.as_str()));
            fields.values_mut().for_each(|field| forget(field, names));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| forget(item, names)),
        _ => {}
    }
}

/// Waits until `what` holds.
pub async fn until(what: &str, within: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + within;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not in {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
