//! Certificates: issued, verified by others, revoked.

use std::io::Read;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::json;

use crate::world::{IAAS, World};

fn verified(world: &World, namespace: &str, document: &str, signature: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let signers = file("signers", &format!("registry {}\n", world.registry.key().ssh()));
    let signature = file("signature", signature);
    let document = std::fs::File::open(file("document", document)).unwrap();
    Command::new("ssh-keygen")
        .args(["-Y", "verify", "-I", "registry", "-n", namespace, "-f"])
        .arg(signers)
        .arg("-s")
        .arg(signature)
        .stdin(document)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}

/// Bits of the status list.
async fn bits(world: &World) -> Vec<u8> {
    let token = world.get("/credentials/status", None).await;
    assert_eq!(token.headers["content-type"], "application/vc+jwt");
    let list = attest::credential::verify(&token.text).unwrap();
    assert_eq!(list["type"][1], "BitstringStatusListCredential");
    let packed = list["credentialSubject"]["encodedList"].as_str().unwrap().strip_prefix('u').unwrap();
    let packed = BASE64_URL_SAFE_NO_PAD.decode(packed).unwrap();
    let mut bits = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bits).unwrap();
    assert_eq!(bits.len(), 16 << 10);
    bits
}

#[tokio::test]
async fn a_certificate_is_issued_for_what_passed_and_verified_and_revoked() {
    let world = World::new().await;
    let asked = json!({"subject": "cloud-a", "scope": "scs-compatible-iaas", "version": "v5.1"});
    let none = world.post("/certificates", Some("reviewer"), asked.clone()).await;
    assert_eq!(none.status, 409);
    assert!(none.detail().contains("scs-0100-semantics-check is missing"), "{}", none.text);
    let mut results = World::all(1);
    results[3].1 = 0;
    let (_, text) = world.report("cloud-a", "2026-11-22 05:00:00", &results);
    assert_eq!(world.upload("cloud-a", &text).await.status, 200);
    let open = world.post("/certificates", Some("reviewer"), asked.clone()).await;
    assert!(open.status == 409 && open.detail().contains("inconclusive"), "{}", open.text);
    let (run, text) = world.report("cloud-a", "2026-11-22 06:00:00", &World::all(1));
    assert_eq!(world.upload("cloud-a", &text).await.status, 200);
    for (field, value) in [("subject", "x"), ("scope", "x"), ("version", "v9"), ("more", "x")] {
        let mut wrong = asked.clone();
        wrong[field] = json!(value);
        let answer = world.post("/certificates", Some("reviewer"), wrong).await;
        assert!(answer.status == 422 || answer.status == 404, "{}", answer.text);
        assert!(answer.detail().contains(field), "{}", answer.text);
    }
    let draft = json!({"subject": "cloud-a", "scope": IAAS, "version": "next"});
    assert_eq!(world.post("/certificates", Some("reviewer"), draft).await.status, 409);

    let mut ids = Vec::new();
    for _ in 0..2 {
        let made = world.post("/certificates", Some("reviewer"), asked.clone()).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let made = made.json();
        assert_eq!((&made["status"], &made["expires_at"]), (&json!("valid"), &json!("2027-11-22T08:00:00Z")));
        ids.push(made["id"].as_str().unwrap().to_owned());
    }
    let id = &ids[1];
    let document = world.get(&format!("/certificates/{id}"), None).await;
    let signature = world.get(&format!("/certificates/{id}/signature"), None).await.text;
    assert!(verified(&world, "certificate", &document.text, &signature));
    assert!(!verified(&world, "certificate", &document.text.replace("cloud-a", "cloud-b"), &signature));
    assert!(!verified(&world, "report", &document.text, &signature));
    let document = document.json();
    assert_eq!((&document["subject"], &document["scope"]["version"]), (&json!("cloud-a"), &json!("v5.1")));
    assert_eq!(document["evidence"]["scs-0100-syntax-check"], json!(run));
    let token = world.get(&format!("/certificates/{id}/credential"), None).await.text;
    let credential = attest::credential::verify(&token).unwrap();
    assert_eq!(credential["credentialSubject"]["name"], "cloud-a");
    assert_eq!(credential["issuer"], json!(world.registry.key().did()));
    assert_eq!(credential["credentialStatus"]["statusListIndex"], "1");
    assert!(bits(&world).await.iter().all(|b| *b == 0));

    let page = world.get(&format!("/page/certificate/{id}"), None).await;
    assert!(page.text.contains(&world.registry.key().ssh()) && page.text.contains("ssh-keygen -Y verify"));
    for (body, status) in
        [(json!({"reason": " "}), 422), (json!({}), 422), (json!({"reason": "x".repeat(501)}), 422)]
    {
        let answer = world.post(&format!("/certificates/{id}/revoke"), Some("reviewer"), body).await;
        assert!(answer.status.as_u16() == status && answer.detail().contains("reason"), "{}", answer.text);
    }
    let reason = json!({"reason": "<b>operator asked</b>"});
    let revoked = world.post(&format!("/certificates/{id}/revoke"), Some("reviewer"), reason.clone()).await;
    assert_eq!((revoked.status.as_u16(), &revoked.json()["status"]), (200, &json!("revoked")));
    assert_eq!(
        world.post(&format!("/certificates/{id}/revoke"), Some("reviewer"), reason.clone()).await.status,
        409
    );
    assert_eq!(world.post("/certificates/x/revoke", Some("reviewer"), reason).await.status, 404);

    let list = world.get("/crl", None).await;
    let signature = world.get("/crl/signature", None).await.text;
    assert!(verified(&world, "certificate-revocation-list", &list.text, &signature));
    let list = list.json();
    assert_eq!(list["revoked"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&list["revoked"][0]["id"], &list["this_update"]),
        (&json!(id), &json!("2026-11-22T08:00:00Z"))
    );
    let bits = bits(&world).await;
    assert_eq!((bits[0], bits[1..].iter().all(|b| *b == 0)), (0x40, true), "the second from the left");
    let all = world.get("/certificates?subject=cloud-a&scope=scs-compatible-iaas", None).await.json();
    let states: Vec<_> = all.as_array().unwrap().iter().map(|c| c["status"].as_str().unwrap()).collect();
    assert_eq!(states, ["revoked", "valid"]);
    let table = world.get("/page/table", None).await.text;
    assert!(table.contains("v5.1 valid"), "the best one is shown");
    assert!(world.get("/page/certificates", None).await.text.contains("&lt;b&gt;operator asked"));
    world.days(366);
    let all = world.get("/certificates", None).await.json();
    assert_eq!(all[1]["status"], "expired");
}
