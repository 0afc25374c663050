//! How long `/status` and the table take with many clouds: `status [CLOUDS]` (default 10,000) fills a database in a directory
//! of its own and asks. The first clouds upload reports; the others get rows like theirs. Prints seconds and bytes; nothing is
//! judged.

use std::sync::Arc;
use std::time::Instant;

use attest::{SigningKey, sshsig};
use axum::body::Body;
use axum::http::Request;
use base::{Clock, Entropy, SystemClock};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use certify::rules::{Kind, Scope};
use http_body_util::BodyExt;
use registry::Registry;
use registry::accounts::Accounts;
use registry::model::Standing;
use store::{Query, Store};
use tower::ServiceExt;

/// Clouds that upload, all in one.
const UPLOADED: usize = 40;

type Failure = Box<dyn std::error::Error>;

async fn ask(registry: &Arc<Registry>, what: &str, request: Request<Body>) -> Result<(), Failure> {
    let begin = Instant::now();
    let response = registry::api::router(registry.clone()).oneshot(request).await?;
    let (status, mut body, mut bytes) = (response.status(), response.into_body(), 0);
    // As a client that keeps nothing.
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, bytes::Bytes::len);
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("{what:<34} {seconds:>8.3} s {bytes:>12} bytes, peak {} MiB", peak()?);
    if status.is_success() { Ok(()) } else { Err(format!("{what}: {status}").into()) }
}

/// The most memory this process has had, in MiB.
fn peak() -> Result<u64, Failure> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? / 1024)
}

fn upload(
    key: &SigningKey,
    clouds: std::ops::Range<usize>,
    entropy: &Entropy,
) -> Result<Request<Body>, Failure> {
    let scope = Scope::builtin(Kind::Iaas)?;
    let at = SystemClock.now().iso_seconds();
    let mut text = String::new();
    for cloud in clouds {
        let results = scope.testcases.iter().filter(|c| !c.check.is_manual());
        let result = |n: usize| if cloud % 3 == 0 && n == cloud % 40 { -1 } else { 1 };
        let results: String =
            results.enumerate().map(|(n, c)| format!("        {}: {}\n", c.id, result(n))).collect();
        text.push_str(&format!(
            "---\nspec: {{uuid: {}}}\nchecked_at: {at}\nsubject: cloud-{cloud}\nrun:\n  uuid: {}\n  invocations:\n    one:\n      results:\n{results}",
            scope.uuid, entropy.uuid(),
        ));
    }
    let body = format!("{}&{text}", sshsig::sign(key, "report", text.as_bytes()));
    let login = BASE64_STANDARD.encode("tester:tester");
    let request = Request::post("/reports").header("content-type", "application/x-signed-yaml");
    Ok(request.header("authorization", format!("Basic {login}")).body(body.into())?)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let clouds: usize = std::env::args().nth(1).map_or(Ok(10_000), |n| n.parse())?;
    let entropy = Entropy::system();
    let key = SigningKey::read(&SigningKey::generate(&entropy))?;
    let public = key.ssh().split(' ').nth(1).unwrap_or_default().to_owned();
    let hash = bcrypt::hash("tester", 4)?;
    let mut accounts = format!(
        "accounts:\n- {{subject: tester, api_keys: ['{hash}'], roles: [append_any], keys: [{{public_key: {public}, public_key_type: ssh-ed25519, public_key_name: k}}]}}\n"
    );
    for cloud in 0..clouds {
        accounts.push_str(&format!("- {{subject: cloud-{cloud}, delegates: [tester]}}\n"));
    }
    let dir = tempfile::tempdir()?;
    let url = format!("sqlite://{}", dir.path().join("registry.db").display());
    let store = Store::open(&url, Arc::new(SystemClock), entropy.clone(), registry::model::SCHEMAS).await?;
    let scopes = vec![Scope::builtin(Kind::Iaas)?, Scope::builtin(Kind::Kaas)?];
    let issuer = SigningKey::read(&SigningKey::generate(&entropy))?;
    let registry = Registry::new(
        store,
        entropy.clone(),
        issuer,
        scopes,
        Accounts::parse(&accounts)?,
        "https://registry.example/",
    )?;
    ask(&registry, "a report of 40 clouds", upload(&key, 0..UPLOADED, &entropy)?).await?;
    let filled = registry.store().write(move |tx| {
        let like = tx.list::<Standing>(&Query::new())?;
        let of = |n: usize| like.get(n % like.len()).map(|row| (format!("cloud-{n}"), row));
        let rows = (UPLOADED..clouds).filter_map(of).map(|(subject, row)| Standing {
            results: row.results.clone(),
            ..Standing::new(&subject, &row.scope)
        });
        tx.insert_many(&mut rows.collect::<Vec<_>>())
    });
    filled.await?;
    println!("{clouds} clouds, peak {} MiB", peak()?);
    let get = |path: &str| Request::get(path).body(Body::empty());
    for what in ["first", "second", "third"] {
        ask(&registry, &format!("/status, {what}"), get("/status")?).await?;
    }
    ask(&registry, "/status of one", get("/status?subject=cloud-7")?).await?;
    for what in ["first", "second"] {
        ask(&registry, &format!("/page/table, {what}"), get("/page/table")?).await?;
    }
    ask(&registry, "a report of one more", upload(&key, 0..1, &entropy)?).await?;
    ask(&registry, "/status after it", get("/status")?).await?;
    ask(&registry, "/badge of one", get("/badge/cloud-7/scs-compatible-iaas.svg")?).await?;
    Ok(())
}
