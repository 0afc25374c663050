//! Tokens of the `jws` provider.

use std::path::Path;
use std::sync::Arc;

use base::ManualClock;
use identity::{Config, Operator, Repository, TokenProvider};
use serde_json::json;
use store::Store;

use crate::world::{World, config, password_of};

fn with(directory: &Path, token_provider: TokenProvider) -> Config {
    let keys = Repository::Directory(directory.join("fernet"));
    Config { keys, operator: Operator { token_provider, ..Operator::default() }, ..config() }
}

async fn empty(clock: &Arc<ManualClock>) -> Store {
    Store::memory(clock.clone(), &[("identity", identity::MIGRATIONS)]).await.unwrap()
}

#[tokio::test]
async fn tokens_are_signed_claims() {
    let world = World::with(Config {
        operator: Operator { token_provider: TokenProvider::Jws, ..Operator::default() },
        ..config()
    })
    .await;
    world.later(1);
    for scope in [
        None,
        Some(json!({"project": {"name": "demo", "domain": {"name": "Default"}}})),
        Some(json!({"unscoped": {}})),
    ] {
        let answer = world.login("demo", &password_of("demo"), scope).await.expect(201);
        let token = answer.header("x-subject-token").to_owned();
        assert!(token.starts_with("eyJ") && token.split('.').count() == 3, "{token}");
        let shown = world.validate(&token).await.expect(200);
        assert_eq!(shown.json(), answer.json());
        // One letter of the claims, of the signature; another algorithm; none.
        let parts: Vec<&str> = token.split('.').collect();
        let flip = |text: &str| {
            let at = text.len() / 2;
            let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
            format!("{}{other}{}", &text[..at], &text[at + 1..])
        };
        let none = "eyJhbGciOiJub25lIn0";
        for forged in [
            format!("{}.{}.{}", parts[0], flip(parts[1]), parts[2]),
            format!("{}.{}.{}", parts[0], parts[1], flip(parts[2])),
            format!("{none}.{}.", parts[1]),
            format!("{none}.{}.{}", parts[1], parts[2]),
            format!("{}.{}", parts[0], parts[1]),
        ] {
            world.validate(&forged).await.expect(404);
            world.anyone.with_token(&forged).get("/v3/auth/projects").await.expect(401);
        }
    }
    let system = world.login("admin", &password_of("admin"), Some(json!({"system": {"all": true}}))).await;
    let system = system.expect(201);
    assert_eq!(world.validate(system.header("x-subject-token")).await.expect(200).json(), system.json());
    // It ends, by itself and when it is revoked.
    let token = world.login("demo", &password_of("demo"), None).await.expect(201);
    let token = token.header("x-subject-token").to_owned();
    let other = world.login("demo", &password_of("demo"), None).await.expect(201);
    let other = other.header("x-subject-token").to_owned();
    world.admin.with_header("x-subject-token", &token).delete("/v3/auth/tokens").await.expect(204);
    world.validate(&token).await.expect(404);
    world.validate(&other).await.expect(200);
    world.later(3600);
    world.anyone.with_token(&other).get("/v3/auth/projects").await.expect(401);
}

#[tokio::test]
async fn a_cloud_changes_over_and_keys_turn_over() {
    let place = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let store = empty(&clock).await;
    let before = World::on(with(place.path(), TokenProvider::Fernet), store.clone(), clock.clone(), 1).await;
    assert!(!place.path().join("jws-private-keys").exists());
    let fernet = before.login("demo", &password_of("demo"), None).await.expect(201);
    let fernet = fernet.header("x-subject-token").to_owned();
    // The same cloud with signed tokens, on two servers that share the keys.
    let one = World::on(with(place.path(), TokenProvider::Jws), store.clone(), clock.clone(), 2).await;
    let two = World::on(with(place.path(), TokenProvider::Jws), store, clock, 3).await;
    one.validate(&fernet).await.expect(200);
    let first = one.login("demo", &password_of("demo"), None).await.expect(201);
    let first = first.header("x-subject-token").to_owned();
    two.validate(&first).await.expect(200);
    // A server of the other provider does not take it.
    before.validate(&first).await.expect(404);

    // An operator puts another key in: what the old one signed is good while its public half stays.
    let (private, public) = (place.path().join("jws-private-keys"), place.path().join("jws-public-keys"));
    let old: Vec<_> = std::fs::read_dir(&public).unwrap().map(|e| e.unwrap().path()).collect();
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = World::with(with(elsewhere.path(), TokenProvider::Jws)).await;
    let strange = stranger.login("demo", &password_of("demo"), None).await.expect(201);
    let strange = strange.header("x-subject-token").to_owned();
    one.validate(&strange).await.expect(404);
    for entry in std::fs::read_dir(elsewhere.path().join("jws-public-keys")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, public.join(path.file_name().unwrap())).unwrap();
    }
    let fresh = elsewhere.path().join("jws-private-keys/private.pem");
    std::fs::copy(fresh, private.join("private.pem")).unwrap();
    one.later(11);
    let second = one.login("demo", &password_of("demo"), None).await.expect(201);
    let second = second.header("x-subject-token").to_owned();
    for token in [&first, &second] {
        one.validate(token).await.expect(200);
        two.validate(token).await.expect(200);
    }
    for path in old {
        std::fs::remove_file(path).unwrap();
    }
    two.later(11);
    let third =
        World::on(with(place.path(), TokenProvider::Jws), two.store.clone(), two.clock.clone(), 4).await;
    third.validate(&first).await.expect(404);
    third.validate(&second).await.expect(200);

    // A private key that others can read is refused.
    use std::os::unix::fs::PermissionsExt as _;
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(private.join("private.pem"), open).unwrap();
    let entropy = base::Entropy::seeded(5);
    let refused =
        identity::State::new(with(place.path(), TokenProvider::Jws), third.store, third.clock, entropy);
    assert!(refused.unwrap_err().public().contains("chmod 600"));
}
