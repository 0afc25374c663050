//! OAuth 2.0 by client certificate (RFC 8705), over TLS.

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use crate::World;
use crate::api::Answer;

/// `0.9.2342.19200300.100.1.1`: the id of a user.
const UID: &[u64] = &[0, 9, 2342, 19_200_300, 100, 1, 1];

type Authority = Issuer<'static, KeyPair>;

fn authority(name: &str) -> (Authority, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

/// A client of the cloud whose certificate is for the user `id` and, if it may say so itself, for a host.
fn holder(world: &World, by: &Authority, id: &str, host: Option<&str>) -> reqwest::Client {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CustomDnType(UID.to_vec()), id);
    if let Some(host) = host {
        for name in [format!("urn:uuid:{host}"), "urn:allod:replica".to_owned()] {
            params.subject_alt_names.push(SanType::URI(name.as_str().try_into().unwrap()));
        }
    }
    let key = KeyPair::generate().unwrap();
    let certificate: CertificateDer<'static> = params.signed_by(&key, by).unwrap().der().clone();
    world.client_with(Some((vec![certificate], PrivateKeyDer::try_from(key.serialize_der()).unwrap())))
}

async fn token(world: &World, http: &reqwest::Client, id: &str) -> (u16, Value) {
    let form = format!("grant_type=client_credentials&client_id={id}");
    let call = http.post(format!("{}/identity/v3/OS-OAUTH2/token", world.url()));
    let answer = call.header("content-type", "application/x-www-form-urlencoded").body(form).send().await;
    let answer = answer.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_a_client_gets_a_token_and_nothing_of_a_host() {
    let ((ca, pem), (stranger, _)) = (authority("Clients of the cloud"), authority("Clients of the cloud"));
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("clients.pem");
    std::fs::write(&file, pem).unwrap();
    let world = World::up(&format!("[identity.oauth2]\nclient_ca = {file:?}\n"));
    let admin = world.login("admin").await;
    let rules = json!([{
        "local": [{"user": {"id": "{0}"}}],
        "remote": [
            {"type": "SSL_CLIENT_SUBJECT_DN_UID"},
            {"type": "SSL_CLIENT_ISSUER_DN_CN", "any_one_of": ["Clients of the cloud"]},
        ],
    }]);
    let mapping = json!({"mapping": {"rules": rules}});
    let made = admin.call("PUT", "/identity/v3/OS-FEDERATION/mappings/oauth2_mapping", Some(mapping)).await;
    assert!(matches!(made, Answer::Told(201, _)), "{made:?}");
    let demo = admin.get("/identity/v3/users?name=demo").await;
    let id = demo["users"][0]["id"].as_str().unwrap().to_owned();

    let mine = holder(&world, &ca, &id, None);
    let (status, answer) = token(&world, &mine, &id).await;
    assert_eq!(status, 200, "{answer}");
    let bound = answer["access_token"].as_str().unwrap().to_owned();
    // Makes the certificate of this machine's host.
    world.allod(&["status"]);
    let host = world.read("host_id").trim().to_owned();
    let pretender = holder(&world, &ca, &id, Some(&host));
    assert_eq!(token(&world, &pretender, &id).await.0, 200, "it is a client's certificate");
    assert_eq!(token(&world, &world.client(false), &id).await.0, 401);
    let lost = holder(&world, &stranger, &id, None);
    let call = lost.get(format!("{}/identity/v3", world.url()));
    assert!(call.send().await.is_err(), "the handshake fails");

    // Services want the very certificate.
    for (http, expected) in [
        (&mine, 200),
        (&pretender, 401),
        (&world.client(false), 401),
        (&world.client(true), 401),
        (&mine, 200),
    ] {
        for path in [
            "/compute/v2.1/servers",
            "/network/v2.0/networks",
            "/image/v2/images",
            "/identity/v3/auth/projects",
        ] {
            let call = http.get(format!("{}{path}", world.url())).header("x-auth-token", &bound);
            assert_eq!(call.send().await.unwrap().status().as_u16(), expected, "{path}");
        }
    }
    // What is for hosts is for those of the cloud's own CA.
    for path in ["/agent/v1/spec?after=0", "/agent/v1/questions", "/metrics", "/v1/ops/tasks"] {
        for http in [&mine, &pretender, &world.client(false)] {
            let answer = http.get(format!("{}{path}", world.url())).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 401, "{path}");
        }
    }
    let metrics = world.client(true).get(format!("{}/metrics", world.url())).send().await.unwrap();
    assert_eq!(metrics.status().as_u16(), 200);
}
