//! The same suite on SQLite (file and memory) and on PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod dialect;
mod moving;
mod places;
#[allow(dead_code, reason = "other crates' tests start this server, too")]
mod postgres;
mod suite;
mod tls;

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
    a_glance_sees_what_is_committed,
    uniqueness_names_its_columns,
    compare_and_set,
    queries_agree_with_a_model,
    paging_visits_everything_once,
    concurrent_increments_lose_nothing,
    many_writers_of_one_row_all_get_through,
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

macro_rules! on_every_place_moving {
    ($($test:ident),* $(,)?) => {
        mod sqlite_moving {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() {
                crate::moving::$test(crate::places::Place::sqlite()).await;
            })*
        }
        mod postgresql_moving {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() {
                crate::moving::$test(crate::places::Place::postgresql()).await;
            })*
        }
    };
}

on_every_place_moving!(
    everything_moves_to_the_other_engine_and_back,
    a_dump_is_of_one_moment,
    a_damaged_dump_and_a_full_database_are_refused,
    an_older_server_works_on_and_keeps_what_it_does_not_know,
    a_backfill_reaches_every_row_while_others_write,
    pending_migrations_are_told_and_nothing_is_done,
    shares_are_fair_and_a_late_replica_is_fenced,
    what_older_servers_wrote_is_settled_when_they_are_gone,
    one_that_is_alone_suffers_nobody,
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

/// A file that may not grow: every write is refused as unavailable, whole batches leave nothing behind, and what was
/// acknowledged before stays.
#[test]
fn a_full_disk_loses_nothing_and_tells_the_truth() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Ok(path) = std::env::var("STORE_TEST_FULL") {
        runtime.block_on(suite::write_until_full(std::path::Path::new(&path)));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sqlite");
    // With the signal ignored, a write beyond the limit fails like one to a full disk.
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 6000; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["a_full_disk_loses_nothing_and_tells_the_truth", "--exact", "--nocapture"])
        .env("STORE_TEST_FULL", &path)
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    let of =
        |word: &str| told.lines().filter_map(|l| l.strip_prefix(word)).map(str::to_owned).collect::<Vec<_>>();
    let acknowledged: std::collections::BTreeSet<String> = of("ack ").into_iter().collect();
    assert!(acknowledged.len() > 20 && of("nak ").len() >= 20, "{told}");
    assert_eq!(
        of("read "),
        [acknowledged.len().to_string()],
        "readers go on, and see no more than was acknowledged"
    );
    runtime.block_on(suite::exactly_present(&path, acknowledged));
}

/// The file, its log and its copies hold secrets.
#[tokio::test]
async fn files_are_their_owners_alone_and_backups_are_whole() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path()).await;
    let made = suite::add(&store, suite::thing(&Entropy::seeded(1), "a")).await.unwrap();
    let copy = dir.path().join("copy.sqlite");
    store.backup(&copy).await.unwrap();
    assert!(store.backup(&copy).await.is_err(), "never over an older one");
    for file in std::fs::read_dir(dir.path()).unwrap().flatten() {
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.path().display());
    }
    let restored =
        Store::sqlite(&copy, Arc::new(ManualClock::default()), Entropy::seeded(1), SCHEMA).await.unwrap();
    assert_eq!(suite::all(&restored).await, [made]);
}
