//! PostgreSQL over TCP and TLS.

use std::sync::Arc;

use base::{Entropy, Error, ManualClock};
use store::Store;

use crate::postgres::Server;
use crate::suite::{SCHEMA, add, all, thing};

async fn open(url: &str) -> Result<Store, Error> {
    Store::open(url, Arc::new(ManualClock::default()), Entropy::system(), SCHEMA).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_counts_and_so_does_its_name() {
    let (_server, ca, port) = Server::with_tls("localhost");
    let ca = ca.display().to_string();
    let url = |host: &str, mode: &str, root: bool| {
        let root = if root { format!("&sslrootcert={ca}") } else { String::new() };
        format!("postgresql://postgres@{host}:{port}/postgres?sslmode={mode}{root}")
    };
    let store = open(&url("localhost", "verify-full", true)).await.unwrap();
    let made = add(&store, thing(&Entropy::seeded(1), "a")).await.unwrap();
    assert_eq!(all(&store).await, [made]);
    // Another replica's wake-ups come over TLS, too.
    let mut wakes = store.subscribe("thing").await.unwrap();
    let other = open(&url("127.0.0.1", "require", true)).await.expect("the CA counts, the name does not");
    other
        .write(|tx| {
            tx.wake("thing", "k");
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(wakes.next().await.unwrap().key, "k");
    open(&url("127.0.0.1", "require", false)).await.expect("encrypted, to whoever answers");
    open(&url("127.0.0.1", "disable", false)).await.unwrap();

    let error = open(&url("127.0.0.1", "verify-full", true)).await.err().expect("not its name");
    assert!(error.chain().contains("certificate"), "{}", error.chain());
    let (_stranger, other_ca, _) = Server::with_tls("localhost");
    let stranger = format!(
        "postgresql://postgres@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={}",
        other_ca.display()
    );
    let error = open(&stranger).await.err().expect("not its CA");
    assert!(error.chain().contains("certificate"), "{}", error.chain());
}
