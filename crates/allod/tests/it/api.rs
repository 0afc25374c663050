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

    pub fn token(&self) -> &str {
        &self.token
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

    /// Status and body of what is read with a microversion.
    pub async fn read(&self, path: &str, microversion: &str) -> (u16, Value) {
        let mut request = self.http.get(format!("{}{path}", self.url)).header("x-auth-token", &self.token);
        if !microversion.is_empty() {
            request = request.header("openstack-api-version", microversion);
        }
        let answer = request.timeout(Duration::from_secs(20)).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Text of an answer without the address of the cloud.
    pub fn without_url(&self, body: &Value) -> String {
        body.to_string().replace(&self.url, "URL")
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
