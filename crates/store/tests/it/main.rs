//! The same suite on SQLite (file and memory) and on PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod places;
mod postgres;
mod suite;

use std::sync::Arc;

use base::{Entropy, ManualClock};
use store::Store;

use crate::suite::SCHEMA;

macro_rules! on_every_engine {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test] async fn $test() {
                crate::suite::$test(crate::memory().await).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() {
                let dir = tempfile::tempdir().unwrap();
                crate::suite::$test(crate::sqlite(dir.path()).await).await;
            })*
        }
        mod postgresql {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() {
                let server = crate::postgres::Server::start();
                crate::suite::$test(crate::postgresql(&server.url()).await).await;
            })*
        }
    };
}

on_every_engine!(
    crud,
    uniqueness_names_its_columns,
    compare_and_set,
    queries_agree_with_a_model,
    paging_visits_everything_once,
    concurrent_increments_lose_nothing,
    quota_is_never_exceeded,
    a_failing_closure_takes_nothing_with_it,
    wakes_come_after_the_commit_and_until_acknowledged,
    leases_have_one_holder,
    nul_is_bad_input,
    reads_cannot_write,
    a_transaction_goes_on_after_a_conflict,
    a_stale_copy_is_told_at_once,
    big_lists_are_whole,
    keywords_may_be_columns,
    creation_order_is_the_default,
    random_questions_agree_with_a_model,
);

macro_rules! on_every_place {
    ($($test:ident),* $(,)?) => {
        mod sqlite_place {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() {
                crate::places::$test(crate::places::Place::sqlite()).await;
            })*
        }
        mod postgresql_place {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() {
                crate::places::$test(crate::places::Place::postgresql()).await;
            })*
        }
    };
}

on_every_place!(
    what_was_written_is_there_when_opened_again,
    wakes_survive_until_acknowledged,
    a_newer_database_is_refused,
    migrations_bring_an_old_database_up_to_date,
    replicas_that_start_at_once_migrate_once,
    a_table_has_one_owner,
    reads_see_a_snapshot,
    an_expired_lease_is_taken_over_with_a_new_token,
    who_meets_another_chooses_again,
    other_replicas_hear_of_wakes,
    lost_connections_are_made_again,
    overlong_values_are_bad_input_or_stored,
);

async fn memory() -> Store {
    Store::memory(Arc::new(ManualClock::default()), SCHEMA).await.unwrap()
}

async fn sqlite(dir: &std::path::Path) -> Store {
    Store::sqlite(&dir.join("s.sqlite"), Arc::new(ManualClock::default()), Entropy::seeded(1), SCHEMA)
        .await
        .unwrap()
}

async fn postgresql(url: &str) -> Store {
    Store::open(url, Arc::new(ManualClock::default()), Entropy::seeded(1), SCHEMA).await.unwrap()
}

/// Every acknowledged write is there after `kill -9`.
#[test]
fn kill_dash_nine_loses_nothing_acknowledged() {
    use std::io::{BufRead, BufReader};
    if let Ok(path) = std::env::var("STORE_TEST_WRITER") {
        suite::write_for_ever(std::path::Path::new(&path));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sqlite");
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["kill_dash_nine_loses_nothing_acknowledged", "--exact", "--nocapture"])
        .env("STORE_TEST_WRITER", &path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut acknowledged = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(id) = line.strip_prefix("ack ") {
            acknowledged.push(id.to_owned());
        }
        if acknowledged.len() == 500 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(acknowledged.len() >= 500);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(suite::all_present(&path, acknowledged));
}
