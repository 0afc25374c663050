//! Three servers on one PostgreSQL behind a TCP balancer, with simulated hosts on the real link, under load: one is
//! killed after the other, one is stopped for longer than its leases and comes back, the database is restarted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::api::{Answer, Api, until};
use crate::load::{self, Books, HOSTS, Process};
use crate::postgres;

const LEASE: u64 = 3;

/// Whichever replica is asked, the one that works on the host acts, and soon.
async fn every_replica_reaches_every_host(demo: &Api, backends: &[SocketAddr], body: &Value) {
    for address in backends {
        let api = demo.at(&format!("https://{address}"));
        let made = api.make("/compute/v2.1/servers", body.clone()).await;
        let path = format!("/compute/v2.1/servers/{}", made["server"]["id"].as_str().unwrap());
        // Far less than the half minute that a host's question for news is held.
        let active = async || api.get(&path).await["server"]["status"] == "ACTIVE";
        until("a change made anywhere wakes the host", Duration::from_secs(15), active).await;
        for other in backends {
            let api = demo.at(&format!("https://{other}"));
            let ask = json!({"os-getConsoleOutput": {"length": 5}});
            let answer = api.call("POST", &format!("{path}/action"), Some(ask)).await;
            assert!(matches!(answer, Answer::Told(200, _)), "{address} by {other}: {answer:?}");
        }
        let ask = json!({"console_log": {"server": made["server"]["id"], "length": 5}});
        let answer = api.call("POST", "/agent/v1/ask", Some(ask)).await;
        assert!(matches!(answer, Answer::Told(401, _)), "only replicas may ask: {answer:?}");
    }
}

/// The errors of the moments around a restart of the database, and all others.
fn split(errors: &[(Instant, String)], from: Instant, to: Instant) -> (usize, Vec<String>) {
    let (during, others): (Vec<_>, Vec<_>) = errors.iter().partition(|(at, _)| *at >= from && *at <= to);
    (during.len(), others.into_iter().map(|(_, text)| text.clone()).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_lose_nothing_whatever_falls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut database = postgres::Server::start();
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let config = format!(
        "listen = \"127.0.0.1:0\"\nbcrypt_rounds = 4\nsim_hosts = {HOSTS}\npublic_url = \"{url}\"\n\
         database = \"{}\"\n[replica]\nshared_dir = \"{}\"\nlease_secs = {LEASE}\n",
        database.url(),
        dir.path().join("shared").display()
    );
    let binary = load::ours();
    let mut replicas: Vec<Process> = ["a", "b", "c"]
        .iter()
        .map(|name| Process::start(&binary, "server", dir.path(), name, &config))
        .collect();
    let backends = Arc::new(Mutex::new(Vec::new()));
    for replica in &replicas {
        let address = replica.listens().await;
        backends.lock().push(address);
    }
    tokio::spawn(load::balance(listener, backends.clone()));
    let agents = Process::start(&binary, "sim-agents", dir.path(), "agents", &config);

    let (demo, admin) = load::logins(&dir.path().join("shared"), &url).await;
    load::quotas(&admin, &demo).await;
    let body = load::server_body(&demo).await;
    load::all_up(&admin).await;
    let books = Arc::new(Books::default());
    let workers = load::clients(&demo, &books, &body);
    let pause = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
    let begin = Instant::now();
    pause(3).await;
    // `make test` has three; the long run kills one every five seconds for two minutes.
    let rounds: usize = std::env::var("ALLOD_TEST_KILLS").map_or(3, |n| n.parse().unwrap());
    for round in 0..rounds {
        let replica = &mut replicas[round % 3];
        replica.kill();
        pause(LEASE + 1).await;
        replica.again();
        replica.listens().await;
        pause(1).await;
    }
    // It is stopped, its work is taken over, it comes back and thinks that nothing happened.
    let (stopped_at, held) = (Instant::now(), backends.lock().remove(0));
    replicas[0].signal("-STOP");
    pause(3 * LEASE).await;
    replicas[0].signal("-CONT");
    backends.lock().push(held);
    let stopped_until = Instant::now() + Duration::from_secs(1);
    pause(3).await;
    let restart_from = Instant::now();
    database.restart();
    let restart_to = Instant::now() + Duration::from_secs(3);
    pause(6).await;
    books.stop.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.unwrap();
    }
    let seconds = begin.elapsed().as_secs_f64();

    books.agree(&demo, &agents.state).await;
    let addresses = backends.lock().clone();
    every_replica_reaches_every_host(&demo, &addresses, &body).await;

    // Errors of the cloud only while its database was away.
    let failures = books.failures.lock();
    let (during, others) = split(&failures, restart_from, restart_to);
    let answered = books.answered.load(Ordering::SeqCst);
    let nothing = books.nothing.lock();
    let stopped = nothing.iter().filter(|at| (stopped_at..stopped_until).contains(*at)).count();
    drop(nothing);
    println!(
        "{rounds} kills in {seconds:.0} s: {} ({stopped} while a replica was stopped), {during} failures while the \
         database restarted, {} others",
        books.summary(),
        others.len()
    );
    assert!(others.is_empty(), "{others:?}");
    assert!(answered > 300 && books.servers.lock().len() > 20, "there was load");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_do_not_share_suffer_no_other() {
    let database = postgres::Server::start();
    let dir = tempfile::tempdir().unwrap();
    let binary = load::ours();
    // Whoever takes over a database knows its passwords.
    let passwords = "[passwords]\nadmin = \"first-of-all\"\ndemo = \"second-of-all\"\nalt = \"third-of-all\"";
    let config = |more: &str| {
        format!(
            "listen = \"127.0.0.1:0\"\nbcrypt_rounds = 4\nsim_hosts = 1\ndatabase = \"{}\"\n{passwords}\n[replica]\nlease_secs = 2\n{more}",
            database.url()
        )
    };
    let start = |name: &str, config: &str| Process::start(&binary, "server", dir.path(), name, config);
    let mut first = start("first", &config(""));
    first.listens().await;
    let told = start("second", &config("")).refused().await;
    assert!(told.contains("another server works on this database") && told.contains("@127.0.0.1:"), "{told}");
    let shared = format!("shared_dir = \"{}\"\n", dir.path().join("shared").display());
    let told = start("replica", &config(&shared)).refused().await;
    assert!(told.contains("another server works on this database"), "{told}");
    let file = dir.path().join("twin.toml");
    let twin = Process::start_in(&binary, "server", first.state.clone(), &file, &config(""));
    assert!(twin.refused().await.contains("another server runs in"));

    // Killed and started again it need not wait for itself.
    first.kill();
    let killed = Instant::now();
    first.again();
    first.listens().await;
    println!("killed and serving again after {:.1?}", killed.elapsed());

    // Away for longer than its lease, it finds that it was replaced.
    first.signal("-STOP");
    let heir = start("heir", &config(""));
    heir.listens().await;
    first.signal("-CONT");
    let told = first.refused().await;
    assert!(told.contains("another server took this database over"), "{told}");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let answer = reqwest::Client::builder().danger_accept_invalid_certs(true).build().unwrap();
    let answer = answer.get(format!("https://{}/identity/v3", heir.listens().await)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}
