//! Moving a database: to the other engine, into a file and back, to the next schema while others work on it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::{Clock, Entropy, Error, Kind, NetworkId};
use store::{Backfill, Content, Fence, Migration, Query, Replica, Schema, Step, StepKind, Store, fenced};

use crate::places::{Place, later};
use crate::suite::{SCHEMA, Thing, add, all, thing};

async fn peek(place: &Place) -> Store {
    Store::peek(&place.url, place.clock.clone(), Entropy::system(), true).await.unwrap()
}

async fn fill(store: &Store, count: u64) {
    for n in 0..count {
        let text = format!("n{n} \"quoted\" \\ ü \u{1F600} \u{7f} line\nbreak");
        let address = (n % 2 == 0).then(|| format!("a{n}"));
        let one = Thing { address, size: n << 40, shared: n % 3 == 0, ..thing(&Entropy::seeded(n), &text) };
        add(store, one).await.unwrap();
    }
    let wakes = |tx: &mut store::Tx<'_>| {
        tx.wake("thing", "first");
        tx.wake("thing", "second");
        Ok(())
    };
    store.write(wakes).await.unwrap();
}

/// The place of the other engine.
fn other(place: &Place) -> Place {
    if place.is_postgres() { Place::sqlite() } else { Place::postgresql() }
}

async fn moved(from: &Store, to: &Place, path: &Path) -> (Content, Content) {
    let dumped = from.dump(SCHEMA, path).await.unwrap();
    (dumped, peek(to).await.load(path).await.unwrap())
}

pub async fn everything_moves_to_the_other_engine_and_back(place: Place) {
    let dir = tempfile::tempdir().unwrap();
    let store = place.store().await;
    fill(&store, 1234).await;
    let there = other(&place);
    let (dumped, loaded) = moved(&store, &there, &dir.path().join("one")).await;
    assert_eq!(dumped, loaded);
    assert_eq!((dumped["things"].rows, dumped["allod_outbox"].rows), (1234, 2));
    let moved_store = there.store().await;
    assert_eq!(all(&moved_store).await, all(&store).await);
    // It is a database like any other: uniqueness holds, wake-ups come, in order.
    let twin = all(&store).await.remove(0);
    assert_eq!(add(&moved_store, twin).await.unwrap_err().kind(), Kind::Conflict);
    let mut wakes = moved_store.subscribe("thing").await.unwrap();
    assert_eq!(wakes.next().await.unwrap().key, "first");
    let back = if place.is_postgres() { Place::postgresql() } else { Place::sqlite() };
    let (_, again) = moved(&moved_store, &back, &dir.path().join("two")).await;
    assert_eq!(again, dumped);
}

pub async fn a_dump_is_of_one_moment(place: Place) {
    let dir = tempfile::tempdir().unwrap();
    let store = place.store().await;
    let stop = Arc::new(AtomicBool::new(false));
    // Every transaction adds two things or none.
    let writer = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let mut n = 0_u64;
            while !stop.load(Ordering::SeqCst) {
                let pair = move |tx: &mut store::Tx<'_>| {
                    tx.insert(&mut thing(&Entropy::seeded(n), &format!("a{n}")))?;
                    tx.insert(&mut thing(&Entropy::seeded(n + 1), &format!("b{n}")))
                };
                store.write(pair).await.unwrap();
                n += 2;
            }
            n
        }
    });
    let mut seen = Vec::new();
    for n in 0..20 {
        let path = dir.path().join(format!("dump{n}"));
        seen.push(store.dump(SCHEMA, &path).await.unwrap()["things"].rows);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    stop.store(true, Ordering::SeqCst);
    let written = writer.await.unwrap();
    assert!(seen.iter().all(|rows| rows % 2 == 0), "{seen:?}");
    assert!(seen.is_sorted() && written >= *seen.last().unwrap());
}

pub async fn a_damaged_dump_and_a_full_database_are_refused(place: Place) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dump");
    let store = place.store().await;
    fill(&store, 30).await;
    store.dump(SCHEMA, &path).await.unwrap();
    let error = store.load(&path).await.unwrap_err();
    assert!(error.kind() == Kind::Conflict && error.public().contains("not empty"), "{error}");
    let whole = std::fs::read_to_string(&path).unwrap();
    let target = other(&place);
    let cut: Vec<&str> = whole.lines().collect();
    let without_end = cut[..cut.len() - 1].join("\n");
    let without_row = [&cut[..3], &cut[4..]].concat().join("\n");
    let renamed = whole.replace("\"things\"", "\"things; --\"");
    for (damage, text) in [("end", without_end), ("name", renamed), ("json", whole[..whole.len() / 2].into())]
    {
        std::fs::write(&path, text).unwrap();
        let error = peek(&target).await.load(&path).await.unwrap_err();
        assert_eq!(error.kind(), Kind::BadRequest, "{damage}: {error:?}");
    }
    std::fs::write(&path, whole).unwrap();
    let (fresh, lacking) = (peek(&target).await, dir.path().join("lacking"));
    fresh.load(&path).await.unwrap();
    std::fs::write(&lacking, without_row).unwrap();
    let error = peek(&other(&place)).await.load(&lacking).await.unwrap_err();
    assert!(error.chain().contains("things"), "what is read back is compared: {error:?}");
}

const NEXT: &[Schema] = &[(
    "test",
    &[
        Migration::new(1, "things", &[Step::table::<Thing>()]),
        Migration::new(2, "colours", &[Step::table::<wider::Thing>(), Step::backfill::<Paint>()]),
    ],
)];

mod wider {
    store::resource! {
        /// `Thing` with a field more: what an older program does not know.
        pub struct Thing, table "things", id base::NetworkId {
            unique: [[project_id, name], [address]],
            index: [project_id, size, shared, colour, tags],
        } {
            /// Owner.
            pub project_id: base::ProjectId,
            /// Name.
            pub name: String,
            /// Unique where there is one.
            pub address: Option<String>,
            /// A number.
            pub size: u64,
            /// A flag.
            pub shared: bool,
            /// No column.
            pub tags: Vec<String>,
            /// New.
            #[serde(default)]
            pub colour: Option<String>,
        }
    }
}

struct Paint;

impl Backfill for Paint {
    type Row = wider::Thing;
    fn change(tx: &mut store::Tx<'_>, mut thing: wider::Thing) -> Result<(), Error> {
        if thing.colour.is_none() {
            thing.colour = Some("red".into());
            tx.update_status(&mut thing)?;
        }
        Ok(())
    }
}

async fn coloured(store: &Store, colour: &'static str) -> usize {
    let query = Query::new().eq("colour", colour);
    store.read(move |tx| tx.list::<wider::Thing>(&query)).await.unwrap().len()
}

pub async fn an_older_server_works_on_and_keeps_what_it_does_not_know(place: Place) {
    let old = place.store().await;
    let made = add(&old, thing(&Entropy::seeded(1), "a")).await.unwrap();
    if place.is_postgres() {
        // It lives, so the new one gives it time to notice.
        let text = || "old".to_owned();
        let me = Replica { id: text(), name: text(), address: text(), version: text(), ..Default::default() };
        place.clock.advance(Duration::from_secs(1));
        old.share("g", &me, 1, &BTreeSet::new(), Duration::from_secs(60)).await.unwrap();
    }
    let new = place.open(NEXT).await.unwrap();
    // On SQLite there is one process at a time: the older program is started again.
    let old = if place.is_postgres() { old } else { place.store().await };
    let rename = move |tx: &mut store::Tx<'_>| {
        let mut thing = tx.need::<Thing>(&made.id)?;
        thing.name = "renamed".into();
        tx.update(&mut thing)
    };
    old.write(rename).await.unwrap();
    let found = new.read(move |tx| tx.need::<wider::Thing>(&made.id)).await.unwrap();
    assert_eq!((found.name.as_str(), found.colour.as_deref()), ("renamed", Some("red")));
    assert_eq!(coloured(&new, "red").await, 1);
    drop(old);
    place.store().await;
}

async fn tagged(store: &Store, tag: &'static str) -> usize {
    let query = Query::new().eq("tags", [tag]);
    store.read(move |tx| tx.count::<wider::Thing>(&query)).await.unwrap() as usize
}

pub async fn what_older_servers_wrote_is_settled_when_they_are_gone(place: Place) {
    let old = place.store().await;
    let made = add(&old, thing(&Entropy::seeded(1), "a")).await.unwrap();
    if place.is_postgres() {
        let me = Replica { id: "old".into(), ..Replica::default() };
        old.share("g", &me, 1, &BTreeSet::new(), Duration::from_secs(60)).await.unwrap();
    }
    let new = place.open(NEXT).await.unwrap();
    // The upgrade is taken back on SQLite; on PostgreSQL both work.
    let (old, new) = if place.is_postgres() { (old, Some(new)) } else { (place.store().await, None) };
    let retag = move |tx: &mut store::Tx<'_>| {
        let mut thing = tx.need::<Thing>(&made.id)?;
        thing.tags = vec!["late".into()];
        tx.update(&mut thing)
    };
    old.write(retag).await.unwrap();
    add(&old, thing(&Entropy::seeded(2), "b")).await.unwrap();
    let new = match new {
        Some(new) => {
            assert_eq!(
                (tagged(&new, "late").await, coloured(&new, "red").await),
                (0, 1),
                "as the old one left it"
            );
            assert!(!new.settle(NEXT, "new").await.unwrap(), "the old one lives");
            assert_eq!(coloured(&new, "red").await, 1);
            place.clock.advance(Duration::from_secs(61));
            assert!(new.settle(NEXT, "new").await.unwrap());
            new
        }
        None => place.open(NEXT).await.unwrap(),
    };
    assert_eq!((tagged(&new, "late").await, coloured(&new, "red").await), (1, 2));
    assert!(new.settle(NEXT, "new").await.unwrap(), "there is nothing left");
}

pub async fn one_that_is_alone_suffers_nobody(place: Place) {
    let ttl = Duration::from_secs(10);
    let store = place.store().await;
    let server = |id: &str, home: &str| Replica {
        id: id.into(),
        name: format!("server {id}"),
        alone: true,
        home: home.into(),
        ..Replica::default()
    };
    let (a, b, c) = (server("a", "x"), server("b", "y"), server("c", "x"));
    store.alone(&a, ttl).await.unwrap();
    let refused = store.alone(&b, ttl).await.unwrap_err();
    assert!(refused.kind() == Kind::Conflict && refused.public().contains("server a"), "{refused}");
    // Of two with the same home the first is dead.
    store.alone(&c, ttl).await.unwrap();
    assert_eq!(store.replicas().await.unwrap(), std::slice::from_ref(&c));
    place.clock.advance(Duration::from_secs(11));
    store.alone(&b, ttl).await.unwrap();
    let refused = store.alone(&c, ttl).await.unwrap_err();
    assert!(refused.public().contains("server b"), "c was away for longer than its lease: {refused}");
    store.leave("alone", "b").await.unwrap();
    let replica = Replica { id: "r".into(), name: "replica r".into(), ..Replica::default() };
    store.share("g", &replica, 1, &BTreeSet::new(), ttl).await.unwrap();
    let refused = store.alone(&c, ttl).await.unwrap_err();
    assert!(refused.public().contains("replica r"), "{refused}");
}

pub async fn a_backfill_reaches_every_row_while_others_write(place: Place) {
    let old = place.store().await;
    fill(&old, 1700).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, stop) = (old.clone(), stop.clone());
        async move {
            let (mut longest, mut writes) = (Duration::ZERO, 0);
            while !stop.load(Ordering::SeqCst) {
                let ids: Vec<NetworkId> = all(&store).await.iter().take(5).map(|t| t.id).collect();
                let began = std::time::Instant::now();
                let touch = move |tx: &mut store::Tx<'_>| {
                    for id in &ids {
                        let mut thing = tx.need::<Thing>(id)?;
                        thing.size += 1;
                        tx.update(&mut thing)?;
                    }
                    Ok(())
                };
                store.write(touch).await.unwrap();
                longest = longest.max(began.elapsed());
                writes += 1;
            }
            (longest, writes)
        }
    });
    let new = place.open(NEXT).await.unwrap();
    stop.store(true, Ordering::SeqCst);
    let (longest, writes) = writer.await.unwrap();
    assert!(longest < Duration::from_secs(5), "a writer waited for {longest:?}");
    // The five that were written by the older program in between may have to be painted again; the rest is red.
    let red = coloured(&new, "red").await;
    assert!(red >= 1695, "{red} of 1700 after {writes} writes");
}

pub async fn pending_migrations_are_told_and_nothing_is_done(place: Place) {
    const CONTRACT: &[Schema] = &[(
        "test",
        &[
            Migration::new(1, "things", &[Step::table::<Thing>()]),
            Migration::new(2, "colours", &[Step::table::<later::Thing>()]),
            Migration::new(3, "less", &[Step::drop_index("things", "shared")]).compatible_from(2),
            Migration::new(4, "gone", &[Step::drop_table("words")]),
        ],
    )];
    let store = place.store().await;
    fill(&store, 25).await;
    store.vacuum().await;
    let pending = peek(&place).await.pending(CONTRACT).await.unwrap();
    let told: Vec<_> = pending.iter().map(|p| (p.number, p.kind, p.rows, p.compatible_from)).collect();
    assert_eq!(
        told,
        [(2, StepKind::Expand, 25, 0), (3, StepKind::Contract, 25, 2), (4, StepKind::Contract, 0, 4)]
    );
    assert!(peek(&place).await.pending(CONTRACT).await.unwrap().len() == 3, "nothing was done");
    drop(place.open(CONTRACT).await.unwrap());
    assert!(peek(&place).await.pending(CONTRACT).await.unwrap().is_empty());
    let error = place.open(SCHEMA).await.err().expect("it needs what was dropped");
    assert!(error.public().contains("migration 2") || error.public().contains("migration 3"), "{error}");
    assert!(place.open(NEXT).await.is_err(), "4 leaves only those that know it");
}

pub async fn shares_are_fair_and_a_late_replica_is_fenced(place: Place) {
    let ttl = Duration::from_secs(10);
    let none = BTreeSet::new();
    let store = place.store().await;
    let replica = |name: &str| {
        let text = || name.to_owned();
        Replica { id: text(), name: text(), address: text(), version: text(), ..Default::default() }
    };
    let (a, b, c) = (replica("a"), replica("b"), replica("c"));
    let share =
        async |me: &Replica, give_up: &BTreeSet<u32>| store.share("g", me, 8, give_up, ttl).await.unwrap();
    let first = share(&a, &none).await;
    assert_eq!((first.mine.len(), first.surplus.len()), (8, 0));
    assert_eq!(share(&b, &none).await.mine.len(), 0, "all are leased");
    let surplus = share(&a, &none).await.surplus;
    assert_eq!(surplus.len(), 4);
    assert_eq!(share(&a, &surplus).await.mine.len(), 4);
    let second = share(&b, &none).await;
    assert_eq!(second.mine.len(), 4);
    assert!(second.mine.values().all(|token| *token == 2), "another holder, another token");
    // a is stopped for longer than its lease; b lives.
    place.clock.advance(Duration::from_secs(6));
    share(&b, &none).await;
    place.clock.advance(Duration::from_secs(6));
    let taken = share(&b, &none).await;
    assert_eq!(taken.mine.len(), 8);
    let (shard, token) =
        share(&c, &none).await.holders.first_key_value().map(|(s, _)| (*s, first.mine[s])).unwrap();
    let fence = |token| Fence { name: store::shard_lease("g", shard), token };
    let late = fenced(fence(token), add(&store, thing(&Entropy::seeded(1), "late"))).await;
    assert_eq!(late.unwrap_err().kind(), Kind::Unavailable);
    fenced(fence(taken.mine[&shard]), add(&store, thing(&Entropy::seeded(2), "in time"))).await.unwrap();
    assert_eq!(all(&store).await.len(), 1);
    store.leave("g", "b").await.unwrap();
    let names: Vec<String> = store.replicas().await.unwrap().into_iter().map(|r| r.name).collect();
    assert_eq!(names, ["c"], "at {:?}", place.clock.now());
    assert_eq!(share(&c, &none).await.mine.len(), 8);
}
