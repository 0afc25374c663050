//! Several servers on one PostgreSQL: what one changes the others know with their next request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base::{Entropy, Error, ManualClock};
use futures::FutureExt as _;
use futures::future::join_all;
use identity::{Config, Repository};
use serde_json::json;
use store::{Fate, Gate, Store};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

use crate::postgres::Server;
use crate::world::{World, config, password_of};

async fn two(server: &Server, keys: &std::path::Path) -> (World, World) {
    two_by(&[server.url(), server.url()], keys).await
}

async fn two_by(urls: &[String; 2], keys: &std::path::Path) -> (World, World) {
    let clock = Arc::new(ManualClock::default());
    let schemas = &[("identity", identity::MIGRATIONS)];
    let open = |seed| {
        let (url, clock) = (urls[usize::from(seed == 2)].clone(), clock.clone());
        async move { Store::postgres(&url, clock, Entropy::seeded(seed), schemas).await.unwrap() }
    };
    let (one, two) = (open(1).await, open(2).await);
    let config = Config { keys: Repository::Directory(keys.to_owned()), ..config() };
    // Both start at once on an empty database and an empty key repository.
    tokio::join!(World::on(config.clone(), one, clock.clone(), 3), World::on(config, two, clock.clone(), 4))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_start_at_once_make_one_cloud_and_hear_of_each_other() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let (one, two) = two(&server, &dir.path().join("keys")).await;
    assert_eq!((&one.demo, &one.demo_project), (&two.demo, &two.demo_project));
    for list in
        ["users", "projects", "domains", "roles", "services", "endpoints", "regions", "role_inferences"]
    {
        let path = format!("/v3/{list}");
        assert_eq!(
            one.admin.get(&path).await.expect(200).json(),
            two.admin.get(&path).await.expect(200).json()
        );
    }
    let endpoints = one.admin.get("/v3/endpoints").await.expect(200).at("/endpoints");
    assert_eq!(endpoints.as_array().unwrap().len(), 9, "three services with three interfaces");
    let scope = one.project_scope(&one.demo_project);
    let token = one.token("demo", scope.clone()).await;
    for world in [&two, &one, &two] {
        assert_eq!(world.roles_of(&token).await, ["member", "reader"]);
    }
    let reader = one.role("reader").await;
    let group = one.make_id("group", json!({"name": "g"})).await;
    one.admin
        .put(&format!("/v3/projects/{}/groups/{group}/roles/{reader}", one.demo_project), json!({}))
        .await
        .expect(204);
    let member = two.role("member").await;
    let grant = format!("/v3/projects/{}/users/{}/roles/{member}", one.demo_project, one.demo);
    two.admin.delete(&grant).await.expect(204);
    assert!(one.roles_of(&token).await.is_empty());
    let within = format!("/v3/groups/{group}/users/{}", one.demo);
    one.admin.put(&within, json!({})).await.expect(204);
    assert_eq!(two.roles_of(&token).await, ["reader"]);
    two.admin.with_header("x-subject-token", &token).delete("/v3/auth/tokens").await.expect(204);
    assert_eq!(one.validate(&token).await.status, 404);
    let token = two.token("demo", scope).await;
    assert_eq!(one.roles_of(&token).await, ["reader"]);
    let path = format!("/v3/users/{}/password", one.demo);
    let change = json!({"user": {"original_password": password_of("demo"), "password": "another"}});
    one.anyone.post(&path, change).await.expect(204);
    assert_eq!(two.validate(&token).await.status, 404);
    assert_eq!(two.login("demo", &password_of("demo"), None).await.status, 401);
    assert_eq!(two.login("demo", "another", None).await.status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_servers_do_at_once_is_done_once_and_told_rightly() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let (one, two) = two(&server, &dir.path().join("keys")).await;
    let group = one.make_id("group", json!({"name": "g"})).await;
    let reader = one.role("reader").await;
    let sides = || [&one, &two, &one, &two, &one, &two].into_iter();
    let named =
        sides().map(|w| async move { w.admin.post("/v3/users", json!({"user": {"name": "same"}})).await });
    let mut told: Vec<u16> = join_all(named).await.iter().map(|a| a.status).collect();
    told.sort_unstable();
    assert_eq!(told, [201, 409, 409, 409, 409, 409]);
    for path in [
        format!("/v3/groups/{group}/users/{}", one.demo),
        format!("/v3/projects/{}/groups/{group}/roles/{reader}", one.alt_project),
        format!("/v3/system/users/{}/roles/{reader}", one.demo),
    ] {
        let puts = join_all(sides().map(|w| w.admin.put(&path, json!({})).boxed())).await;
        assert!(
            puts.iter().all(|a| a.status == 204),
            "{path}: {:?}",
            puts.iter().map(|a| a.text()).collect::<Vec<_>>()
        );
        let mut deletes: Vec<u16> =
            join_all(sides().map(|w| w.admin.delete(&path).boxed())).await.iter().map(|a| a.status).collect();
        deletes.sort_unstable();
        assert_eq!(deletes, [204, 404, 404, 404, 404, 404], "{path}");
    }
    let edits = sides().enumerate().map(|(i, w)| {
        let body = json!({"user": {(format!("key-{i}")): i}});
        let path = format!("/v3/users/{}", one.demo);
        async move { w.admin.patch(&path, body).await }
    });
    assert!(join_all(edits).await.iter().all(|a| a.status == 200));
    let user = two.admin.get(&format!("/v3/users/{}", one.demo)).await.expect(200).at("/user");
    assert!((0..6).all(|i| user[format!("key-{i}")] == i), "no edit is lost: {user}");
}

/// The same database through a line on which each answer takes 5 ms.
async fn far(server: &Server) -> String {
    let url = server.url();
    let (_, place) = url.split_once('@').unwrap();
    let (dir, name) = place.split_once('/').unwrap();
    let socket = format!("{}/.s.PGSQL.5432", dir.replace("%2F", "/"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (mut asks, mut hears) = near.into_split();
            let (mut answers, mut takes) = UnixStream::connect(&socket).await.unwrap().into_split();
            tokio::spawn(async move { tokio::io::copy(&mut asks, &mut takes).await });
            tokio::spawn(async move {
                let mut part = vec![0; 65536];
                while let Ok(n @ 1..) = answers.read(&mut part).await {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    if hears.write_all(&part[..n]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    format!("postgresql://postgres@127.0.0.1:{port}/{name}")
}

/// Validations at the same time share a look at the database: none may use one that began before it was asked, however late
/// its answer comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_validation_that_begins_after_a_revocation_finds_the_token_good() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let (one, two) = two_by(&[server.url(), far(&server).await], &dir.path().join("keys")).await;
    let (one, two) = (&one, &two);
    let mut answers = [0; 2];
    for _ in 0..10 {
        let tokens = join_all((0..4).map(|_| one.token("demo", json!("unscoped")))).await;
        let revoked = AtomicUsize::new(0);
        let found_good = tokio::sync::Notify::new();
        let (revoked, tokens, found_good) = (&revoked, &tokens, &found_good);
        let revoking = async move {
            for (n, token) in tokens.iter().enumerate() {
                found_good.notified().await;
                one.admin.with_header("x-subject-token", token).delete("/v3/auth/tokens").await.expect(204);
                revoked.store(n + 1, Ordering::SeqCst);
            }
        };
        let validating = (0..8).map(|i| async move {
            let (token, mut seen) = (&tokens[i % 4], [0; 2]);
            loop {
                let gone = revoked.load(Ordering::SeqCst) > i % 4;
                let status = two.validate(token).await.status;
                assert!(
                    [200, 404].contains(&status) && (status == 404 || !gone),
                    "{status}, revoked before: {gone}"
                );
                seen[usize::from(status == 404)] += 1;
                if status == 200 {
                    found_good.notify_one();
                }
                if gone {
                    return seen;
                }
            }
        });
        for [good, bad] in futures::join!(revoking, join_all(validating)).1 {
            answers = [answers[0] + good, answers[1] + bad];
        }
    }
    assert!(answers.iter().all(|n| *n >= 40), "{answers:?}");
}

/// Counts what is asked of the database.
#[derive(Default)]
struct Counted(AtomicUsize);

impl Gate for Counted {
    fn read(&self) -> Result<(), Error> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn write(&self) -> Fate {
        Fate::Carry
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validation_looks_once_at_both_tokens() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let (clock, counted) = (Arc::new(ManualClock::default()), Arc::new(Counted::default()));
    let (url, schemas) = (server.url(), &[("identity", identity::MIGRATIONS)]);
    let store = Store::postgres(&url, clock.clone(), Entropy::seeded(1), schemas).await.unwrap();
    let store = store.behind(counted.clone());
    let config = Config { keys: Repository::Directory(dir.path().join("keys")), ..config() };
    let world = World::on(config, store, clock, 3).await;
    let token = world.token("demo", json!("unscoped")).await;
    let own = world.anyone.with_token(&token);
    world.validate(&token).await.expect(200);
    for (asker, about) in [
        (&world.admin, &token),
        (&own, &token),
        (&world.admin, &world.token("demo", json!("unscoped")).await),
    ] {
        let before = counted.0.load(Ordering::SeqCst);
        asker.with_header("x-subject-token", about).get("/v3/auth/tokens").await.expect(200);
        assert_eq!(counted.0.load(Ordering::SeqCst) - before, 1);
    }
}
