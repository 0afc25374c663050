//! Key pairs.

use serde_json::{Value, json};

use super::Lab;

const ALL: &str = "/v2.1/os-keypairs";
pub const ED25519: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@example";

fn import(name: &str) -> Value {
    json!({"keypair": {"name": name, "public_key": ED25519}})
}

#[tokio::test]
async fn an_imported_key_from_birth_to_end() {
    let lab = Lab::new().await;
    let own = lab.at("member:p1:u1", "2.96");
    let made = own.post(ALL, import("k@host.example")).await.expect(201);
    assert_eq!(made.at("/keypair/type"), "ssh");
    assert_eq!(made.at("/keypair/user_id"), "u1");
    assert_eq!(made.text_at("/keypair/fingerprint").len(), 47);
    assert_eq!(made.at("/keypair/private_key"), Value::Null);
    let path = format!("{ALL}/k@host.example");
    let shown = own.get(&path).await.expect(200);
    assert_eq!(shown.at("/keypair/public_key"), ED25519);
    assert_eq!(shown.at("/keypair/created_at"), "2026-01-01T00:00:00.000000");
    assert_eq!(shown.at("/keypair/deleted"), false);
    assert!(shown.at("/keypair/id").as_u64().unwrap() > 0);
    let again = own.post(ALL, import("k@host.example")).await.expect(409);
    assert_eq!(again.at("/conflictingRequest/message"), "Key pair 'k@host.example' already exists.");
    let _ = lab.at("member:p1:u2", "2.96").get(&path).await.expect(404);
    let _ = lab.at("member:p1:u2", "2.96").get(&format!("{path}?user_id=u1")).await.expect(403);
    let _ = lab.at("admin", "2.96").get(&format!("{path}?user_id=u1")).await.expect(200);
    let _ = own.delete(&path).await.expect(204);
    let gone = own.delete(&path).await.expect(404);
    assert_eq!(gone.at("/itemNotFound/message"), "Keypair k@host.example not found for user u1");
}

#[tokio::test]
async fn what_versions_have() {
    let lab = Lab::new().await;
    let at = |version: &str| lab.at("member:p1:u1", version);
    let made = at("2.1").post(ALL, json!({"keypair": {"name": "a"}})).await.expect(200);
    assert!(made.text_at("/keypair/private_key").starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
    assert!(made.text_at("/keypair/public_key").starts_with("ssh-ed25519 "));
    assert_eq!(made.at("/keypair/type"), Value::Null);
    let typed = json!({"keypair": {"name": "b", "type": "ssh"}});
    let _ = at("2.1").post(ALL, typed.clone()).await.expect(400);
    let made = at("2.2").post(ALL, typed).await.expect(201);
    assert_eq!(made.at("/keypair/type"), "ssh");
    let for_other = json!({"keypair": {"name": "c", "public_key": ED25519, "user_id": "u9"}});
    let _ = lab.at("admin", "2.9").post(ALL, for_other.clone()).await.expect(400);
    let _ = lab.at("admin", "2.10").post(ALL, for_other.clone()).await.expect(201);
    let _ = at("2.10").post(ALL, for_other).await.expect(403);
    let others = lab.at("admin", "2.10").get(&format!("{ALL}?user_id=u9")).await.expect(200);
    assert_eq!(others.at("/keypairs/0/keypair/name"), "c");
    // Pages since 2.35.
    let page = |version: &str| at(version).call(api::Method::GET, &format!("{ALL}?limit=1")).send();
    assert_eq!(page("2.34").await.expect(200).at("/keypairs").as_array().unwrap().len(), 2);
    let first = page("2.35").await.expect(200);
    assert_eq!(first.at("/keypairs").as_array().unwrap().len(), 1);
    assert!(first.text_at("/keypairs_links/0/href").contains("marker=a"));
    assert_eq!(
        at("2.35").get(&format!("{ALL}?marker=a")).await.expect(200).at("/keypairs/0/keypair/name"),
        "b"
    );
    let _ = at("2.35").get(&format!("{ALL}?marker=zz")).await.expect(400);
    // A key must be sent since 2.92, and names may be addresses.
    let missing = at("2.92").post(ALL, json!({"keypair": {"name": "d"}})).await.expect(400);
    assert!(missing.text().contains("public_key"));
    let _ = at("2.91").post(ALL, import("d@e.f")).await.expect(400);
    let _ = at("2.92").post(ALL, import("d@e.f")).await.expect(201);
    let _ = at("2.1").delete(&format!("{ALL}/a")).await.expect(202);
}

#[tokio::test]
async fn what_is_no_key_or_name_is_refused() {
    let lab = Lab::new().await;
    let own = lab.at("member:p1", "2.96");
    for key in ["", "hello", "ssh-rsa AAAA", "ssh-ed25519 AAAAB3NzaC1yc2EAAAADAQAB", "ssh-rsa !!!"] {
        let body = json!({"keypair": {"name": "k", "public_key": key}});
        let _ = own.post(ALL, body).await.expect(400);
    }
    for name in ["", " k", "k ", "k/l", "k\n", "ä", &"k".repeat(256)] {
        let _ = own.post(ALL, import(name)).await.expect(400);
    }
    let wrong_type = json!({"keypair": {"name": "k", "public_key": ED25519, "type": "gpg"}});
    let _ = own.post(ALL, wrong_type).await.expect(400);
    let certificate = json!({"keypair": {"name": "k", "public_key": ED25519, "type": "x509"}});
    let _ = own.post(ALL, certificate).await.expect(400);
    assert_eq!(own.get(ALL).await.expect(200).json(), json!({"keypairs": []}));
}

#[tokio::test]
async fn a_quota_bounds_them() {
    let lab = Lab::with(|config| {
        let _ = config.quota.insert("key_pairs".into(), 1);
    })
    .await;
    let own = lab.at("member:p1", "2.96");
    let _ = own.post(ALL, import("a")).await.expect(201);
    let over = own.post(ALL, import("b")).await.expect(403);
    assert_eq!(over.at("/forbidden/message"), "Quota exceeded, too many key pairs.");
    let _ = lab.at("member:p2", "2.96").post(ALL, import("b")).await.expect(201);
}
