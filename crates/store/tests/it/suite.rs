//! What every engine must do.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base::{Entropy, Error, Kind, ManualClock, NetworkId, ProjectId, SystemClock};
use store::{Migration, Order, Query, Schema, Step, Store, unique_violation};

store::resource! {
    /// A thing.
    pub struct Thing, table "things", id NetworkId {
        unique: [[project_id, name], [address]],
        index: [project_id, size, shared],
    } {
        /// Owner.
        pub project_id: ProjectId,
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
    }
}

store::resource! {
    /// Fields that SQL has other uses for.
    pub struct Word, table "words", id NetworkId {
        unique: [[user, group]],
        index: [order, default],
    } {
        /// A keyword.
        pub user: String,
        /// A keyword.
        pub order: Option<i64>,
        /// A keyword.
        pub group: String,
        /// A keyword.
        pub default: bool,
    }
}

const MIGRATIONS: &[Migration] =
    &[Migration::new(1, "things", &[Step::table::<Thing>(), Step::table::<Word>()])];
pub const SCHEMA: &[Schema] = &[("test", MIGRATIONS)];

pub fn thing(entropy: &Entropy, name: &str) -> Thing {
    Thing {
        id: NetworkId::random(entropy),
        meta: store::Meta::default(),
        project_id: ProjectId::new("p"),
        name: name.into(),
        address: None,
        size: 1,
        shared: false,
        tags: vec!["ä'\"".into()],
    }
}

pub async fn add(store: &Store, thing: Thing) -> Result<Thing, Error> {
    store
        .write(move |tx| {
            let mut thing = thing.clone();
            tx.insert(&mut thing)?;
            Ok(thing)
        })
        .await
}

pub async fn all(store: &Store) -> Vec<Thing> {
    store.read(|tx| tx.list::<Thing>(&Query::new())).await.unwrap()
}

pub async fn crud(store: Store) {
    let entropy = Entropy::seeded(1);
    let made = add(&store, thing(&entropy, "a")).await.unwrap();
    let id = made.id;
    assert_eq!((made.meta.generation, made.meta.revision), (1, 1));
    assert_eq!(store.read(move |tx| tx.need::<Thing>(&id)).await.unwrap(), made);
    let changed = store
        .write(move |tx| {
            let mut thing = tx.need::<Thing>(&id)?;
            thing.size = 9;
            tx.update(&mut thing)?;
            tx.update_status(&mut thing)?;
            Ok(thing)
        })
        .await
        .unwrap();
    assert_eq!((changed.meta.generation, changed.meta.revision, changed.size), (2, 3, 9));
    assert_eq!(store.read(move |tx| tx.get::<Thing>(&id)).await.unwrap(), Some(changed));
    assert!(store.write(move |tx| tx.delete::<Thing>(&id)).await.unwrap());
    assert!(!store.write(move |tx| tx.delete::<Thing>(&id)).await.unwrap());
    let missing = store.read(move |tx| tx.need::<Thing>(&id)).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
    assert!(missing.public().contains(&id.to_string()));
}

pub async fn a_glance_sees_what_is_committed(store: Store) {
    let entropy = Entropy::seeded(1);
    let (mut last, two) = (add(&store, thing(&entropy, "a")).await.unwrap(), thing(&entropy, "b"));
    let (id, ids) = (last.id, vec![last.id, two.id]);
    assert_eq!(store.glance::<Thing>(ids.clone()).await.unwrap(), [last.clone()]);
    assert!(store.glance::<Thing>(Vec::new()).await.unwrap().is_empty());
    let two = add(&store, two).await.unwrap();
    // One that is dropped before its answer is there leaves nobody else's answer to the next.
    for _ in 0..20 {
        let (at_once, other) = (store.clone(), two.id);
        let dropped = tokio::spawn(async move { at_once.glance::<Thing>(vec![other]).await });
        tokio::task::yield_now().await;
        dropped.abort();
        let grow = move |tx: &mut store::Tx<'_>| {
            let mut thing = tx.need::<Thing>(&id)?;
            thing.size += 1;
            tx.update(&mut thing)?;
            Ok(thing)
        };
        last = store.write(grow).await.unwrap();
        assert_eq!(store.glance::<Thing>(vec![last.id]).await.unwrap(), [last.clone()]);
    }
    store.write(move |tx| tx.delete::<Thing>(&id)).await.unwrap();
    assert_eq!(store.glance::<Thing>(ids).await.unwrap(), [two]);
}

pub async fn uniqueness_names_its_columns(store: Store) {
    let entropy = Entropy::seeded(1);
    let first = add(&store, Thing { address: Some("x".into()), ..thing(&entropy, "a") }).await.unwrap();
    let twice = |t: Thing| {
        let store = store.clone();
        async move {
            let error = add(&store, t).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Conflict);
            unique_violation(&error).unwrap().columns
        }
    };
    assert_eq!(twice(thing(&entropy, "a")).await, ["project_id", "name"]);
    assert_eq!(twice(Thing { address: Some("x".into()), ..thing(&entropy, "b") }).await, ["address"]);
    assert_eq!(twice(Thing { name: "c".into(), address: None, ..first }).await, ["id"]);
    add(&store, thing(&entropy, "d")).await.unwrap();
    add(&store, Thing { project_id: ProjectId::new("q"), ..thing(&entropy, "d") }).await.unwrap();
    assert_eq!(all(&store).await.len(), 3, "nulls do not conflict, and refused ones left nothing");
}

pub async fn compare_and_set(store: Store) {
    let made = add(&store, thing(&Entropy::seeded(1), "a")).await.unwrap();
    let stale = made.clone();
    store.write(move |tx| tx.update(&mut made.clone())).await.unwrap();
    let error = store.write(move |tx| tx.update(&mut stale.clone())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict, "a stale copy is refused for good");
}

/// The same random things in the store and in a vector answer the same to the same questions.
pub async fn queries_agree_with_a_model(store: Store) {
    let entropy = Entropy::seeded(7);
    let mut model = Vec::new();
    for n in 0..60 {
        let t = Thing {
            project_id: ProjectId::new(format!("p{}", entropy.below(3))),
            address: (entropy.below(2) == 0).then(|| format!("addr_{n}%")),
            size: entropy.below(10),
            shared: entropy.below(2) == 0,
            ..thing(&entropy, &format!("n{n:02}"))
        };
        model.push(add(&store, t).await.unwrap());
    }
    type Test = Box<dyn Fn(&Thing) -> bool>;
    let some: Vec<NetworkId> = model.iter().take(7).map(|t| t.id).collect();
    let cases: Vec<(Query, Test)> = vec![
        (Query::new(), Box::new(|_| true)),
        (Query::new().eq("project_id", "p1"), Box::new(|t| t.project_id.as_str() == "p1")),
        (Query::new().eq("shared", true).ge("size", 4), Box::new(|t| t.shared && t.size >= 4)),
        (
            Query::new().lt("size", 3).ne("project_id", "p0"),
            Box::new(|t| t.size < 3 && t.project_id.as_str() != "p0"),
        ),
        (Query::new().gt("size", 3).le("size", 6), Box::new(|t| t.size > 3 && t.size <= 6)),
        (Query::new().is_null("address"), Box::new(|t| t.address.is_none())),
        (Query::new().eq("address", None::<String>), Box::new(|t| t.address.is_none())),
        (Query::new().is_not_null("address"), Box::new(|t| t.address.is_some())),
        (
            Query::new().prefix("address", "addr_1"),
            Box::new(|t| t.address.as_ref().is_some_and(|a| a.starts_with("addr_1"))),
        ),
        (Query::new().contains("address", "%"), Box::new(|t| t.address.is_some())),
        (Query::new().contains("address", "_1%"), Box::new(|t| t.address.as_deref() == Some("addr_1%"))),
        (Query::new().is_in("size", [1_u64, 3]), Box::new(|t| [1, 3].contains(&t.size))),
        (Query::new().is_in("id", some.clone()), Box::new(move |t| some.contains(&t.id))),
        (Query::new().is_in("id", Vec::<NetworkId>::new()), Box::new(|_| false)),
        (Query::new().eq("size", "3"), Box::new(|_| false)),
        (
            Query::new()
                .any_of([Query::new().eq("project_id", "p2"), Query::new().eq("shared", true).eq("size", 5)]),
            Box::new(|t| t.project_id.as_str() == "p2" || t.shared && t.size == 5),
        ),
        (Query::new().any_of([]), Box::new(|_| false)),
    ];
    for (query, test) in cases {
        let want: BTreeSet<NetworkId> = model.iter().filter(|t| test(t)).map(|t| t.id).collect();
        let (q, c) = (query.clone(), query.clone());
        let got = store.read(move |tx| tx.list::<Thing>(&q)).await.unwrap();
        assert_eq!(got.iter().map(|t| t.id).collect::<BTreeSet<_>>(), want, "{query:?}");
        let (count, sum) =
            store.read(move |tx| Ok((tx.count::<Thing>(&c)?, tx.sum::<Thing>("size", &c)?))).await.unwrap();
        assert_eq!(count, want.len() as u64);
        assert_eq!(sum, got.iter().map(|t| t.size).sum::<u64>());
    }
}

pub async fn paging_visits_everything_once(store: Store) {
    let entropy = Entropy::seeded(9);
    for n in 0..37 {
        let address = (n % 3 == 0).then(|| format!("a{n}"));
        add(&store, Thing { size: entropy.below(4), address, ..thing(&entropy, &format!("n{n}")) })
            .await
            .unwrap();
    }
    for sort in [
        vec![],
        vec![("size", Order::Asc)],
        vec![("size", Order::Desc)],
        vec![("size", Order::Asc), ("address", Order::Asc)],
        vec![("address", Order::Desc), ("size", Order::Desc)],
        vec![("address", Order::Asc), ("size", Order::Desc)],
        vec![("created_at", Order::Desc)],
    ] {
        let query = sort.iter().fold(Query::new(), |q, (column, order)| q.sort(column, *order));
        let whole = query.clone();
        let whole = store.read(move |tx| tx.list_ids::<Thing>(&whole)).await.unwrap();
        let mut paged: Vec<String> = Vec::new();
        loop {
            let page = query.clone().after(paged.last()).limit(5);
            let ids = store.read(move |tx| tx.list_ids::<Thing>(&page)).await.unwrap();
            if ids.is_empty() {
                break;
            }
            paged.extend(ids);
        }
        assert_eq!(paged, whole, "{sort:?}");
        assert_eq!(paged.len(), 37);
    }
    let unknown = Query::new().after(Some("no such thing"));
    let error = store.read(move |tx| tx.list_ids::<Thing>(&unknown)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::BadRequest);
}

pub async fn concurrent_increments_lose_nothing(store: Store) {
    let id = add(&store, Thing { size: 0, ..thing(&Entropy::seeded(1), "a") }).await.unwrap().id;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    let work = move |tx: &mut store::Tx<'_>| {
                        let mut t = tx.need::<Thing>(&id)?;
                        t.size += 1;
                        tx.update(&mut t)
                    };
                    // Conflict after many attempts is an honest answer; the caller tries again.
                    while let Err(error) = store.write(work).await {
                        assert_eq!(error.kind(), Kind::Conflict);
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(all(&store).await[0].size, 80);
}

pub async fn many_writers_of_one_row_all_get_through(store: Store) {
    let entropy = Entropy::seeded(1);
    let id = add(&store, Thing { size: 0, ..thing(&entropy, "a") }).await.unwrap().id;
    add(&store, thing(&entropy, "taken")).await.unwrap();
    let tasks: Vec<_> = (0..48)
        .map(|n| {
            let (store, entropy) = (store.clone(), Entropy::seeded(100 + n));
            tokio::spawn(async move {
                for turn in 0..10 {
                    let name = if n % 3 == 1 { "taken".to_owned() } else { format!("{n}-{turn}") };
                    let new = thing(&entropy, &name);
                    let done = store.write(move |tx| {
                        let mut t = tx.need::<Thing>(&id)?;
                        t.size += 1;
                        tx.update(&mut t)?;
                        tx.insert(&mut new.clone())?;
                        match n % 3 {
                            2 => Err(Error::bad_request("no")),
                            _ => Ok(()),
                        }
                    });
                    let done = done.await;
                    match n % 3 {
                        0 => done.unwrap(),
                        1 => assert!(unique_violation(&done.unwrap_err()).is_some()),
                        _ => assert_eq!(done.unwrap_err().kind(), Kind::BadRequest),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let all = all(&store).await;
    assert_eq!(all.iter().find(|t| t.id == id).unwrap().size, 160, "each that was not refused counts once");
    assert_eq!(all.len(), 162);
}

pub async fn quota_is_never_exceeded(store: Store) {
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let t = thing(&Entropy::seeded(n), &format!("n{n}"));
                store
                    .write(move |tx| {
                        if tx.count::<Thing>(&Query::new().eq("project_id", "p"))? >= 5 {
                            return Err(Error::over_quota("full"));
                        }
                        tx.insert(&mut t.clone())
                    })
                    .await
            })
        })
        .collect();
    let mut made = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => made += 1,
            Err(error) => assert!(matches!(error.kind(), Kind::OverQuota | Kind::Conflict), "{error:?}"),
        }
    }
    assert!(made <= 5 && all(&store).await.len() == made);
}

pub async fn a_failing_closure_takes_nothing_with_it(store: Store) {
    let tasks: Vec<_> = (0..30)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let t = thing(&Entropy::seeded(n), &format!("n{n}"));
                store
                    .write(move |tx| {
                        tx.insert(&mut t.clone())?;
                        match n % 3 {
                            0 => Ok(()),
                            1 => Err(Error::bad_request("no")),
                            _ => panic!("in a transaction"),
                        }
                    })
                    .await
                    .map_err(|e| e.kind())
            })
        })
        .collect();
    for (n, task) in tasks.into_iter().enumerate() {
        let want = [Ok(()), Err(Kind::BadRequest), Err(Kind::Internal)][n % 3];
        assert_eq!(task.await.unwrap(), want);
    }
    assert_eq!(all(&store).await.len(), 10);
}

pub async fn wakes_come_after_the_commit_and_until_acknowledged(store: Store) {
    let mut wakes = store.subscribe("thing").await.unwrap();
    let refused: Result<(), Error> = store
        .write(|tx| {
            tx.wake("thing", "never");
            Err(Error::bad_request("no"))
        })
        .await;
    assert!(refused.is_err());
    store
        .write(|tx| {
            tx.wake("thing", "a");
            tx.wake("thing", "a");
            tx.wake("other", "x");
            Ok(())
        })
        .await
        .unwrap();
    let wake = tokio::time::timeout(Duration::from_secs(20), wakes.next()).await.unwrap().unwrap();
    assert_eq!(wake.key, "a");
    store.poll_outbox().await.unwrap();
    assert!(wakes.try_next().is_none(), "once");
    let mut other = store.subscribe("other").await.unwrap();
    assert_eq!(other.next().await.unwrap().key, "x", "one that came before anybody listened");
    store.acknowledge(vec![wake.seq]).await.unwrap();
    let mut again = store.subscribe("thing").await.unwrap();
    store.poll_outbox().await.unwrap();
    assert!(again.try_next().is_none(), "acknowledged ones are gone");
}

pub async fn leases_have_one_holder(store: Store) {
    let minute = Duration::from_secs(60);
    let first = store.lease("l", "a", minute).await.unwrap().unwrap();
    assert_eq!(store.lease("l", "b", minute).await.unwrap(), None);
    assert_eq!(store.lease("l", "a", minute).await.unwrap().unwrap().token, first.token);
    store.release("l", "b").await.unwrap();
    assert_eq!(store.lease("l", "b", minute).await.unwrap(), None, "only the holder gives it back");
    store.release("l", "a").await.unwrap();
    assert!(store.lease("l", "b", minute).await.unwrap().unwrap().token > first.token);
}

pub async fn nul_is_bad_input(store: Store) {
    let entropy = Entropy::seeded(1);
    for bad in [thing(&entropy, "a\0b"), Thing { tags: vec!["\0".into()], ..thing(&entropy, "c") }] {
        assert_eq!(add(&store, bad).await.unwrap_err().kind(), Kind::BadRequest);
    }
    for query in [
        Query::new().eq("name", "\0"),
        Query::new().contains("address", "\0"),
        Query::new().is_in("id", ["\0"]),
    ] {
        assert_eq!(
            store.read(move |tx| tx.list::<Thing>(&query)).await.unwrap_err().kind(),
            Kind::BadRequest
        );
    }
    add(&store, thing(&entropy, "\\u0000")).await.unwrap();
}

pub async fn reads_cannot_write(store: Store) {
    let t = thing(&Entropy::seeded(1), "a");
    assert!(store.read(move |tx| tx.insert(&mut t.clone())).await.is_err());
    assert!(all(&store).await.is_empty());
}

pub async fn a_transaction_goes_on_after_a_conflict(store: Store) {
    let entropy = Entropy::seeded(1);
    add(&store, Thing { address: Some("1".into()), ..thing(&entropy, "a") }).await.unwrap();
    add(&store, Thing { address: Some("2".into()), ..thing(&entropy, "b") }).await.unwrap();
    let new = thing(&entropy, "c");
    let tried = store
        .write(move |tx| {
            let mut new = new.clone();
            let mut tried = Vec::new();
            for address in ["1", "2", "3"] {
                new.address = Some(address.into());
                match tx.insert(&mut new) {
                    Ok(()) => break,
                    Err(error) => tried.push(unique_violation(&error).unwrap().columns),
                }
            }
            new.name = "b".into();
            tried.push(unique_violation(&tx.update(&mut new).unwrap_err()).unwrap().columns);
            new.name = "d".into();
            tx.update(&mut new)?;
            Ok(tried)
        })
        .await
        .unwrap();
    assert_eq!(tried, [&["address"][..], &["address"], &["project_id", "name"]]);
    let names: Vec<String> = all(&store).await.into_iter().map(|t| t.name).collect();
    assert_eq!(names.len(), 3);
    assert!(names.contains(&"d".to_owned()));
}

pub async fn a_stale_copy_is_told_at_once(store: Store) {
    let made = add(&store, thing(&Entropy::seeded(1), "a")).await.unwrap();
    let newer = made.clone();
    store.write(move |tx| tx.update_status(&mut newer.clone())).await.unwrap();
    let runs = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = runs.clone();
    let stale = move |tx: &mut store::Tx<'_>| {
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        tx.update(&mut made.clone())
    };
    assert_eq!(store.write(stale).await.unwrap_err().kind(), Kind::Conflict);
    let runs = runs.load(std::sync::atomic::Ordering::SeqCst);
    // PostgreSQL runs it once in hope, and once waiting for each answer.
    assert!(runs <= 2, "another try reads the same stale copy, and that was tried {runs} times");
}

/// Small reads run in the caller's task, this one cannot; the same closure is asked for both.
pub async fn big_lists_are_whole(store: Store) {
    let entropy = Entropy::seeded(1);
    let many: Vec<Thing> = (0..500).map(|n| thing(&entropy, &format!("n{n}"))).collect();
    store.write(move |tx| many.iter().cloned().try_for_each(|mut t| tx.insert(&mut t))).await.unwrap();
    for limit in [3, 64, 65, 500, 1, 499] {
        let query = Query::new().limit(limit);
        let found = store.read(move |tx| tx.list::<Thing>(&query)).await.unwrap();
        assert_eq!(found.len(), limit);
    }
    let twice = |tx: &mut store::Tx<'_>| {
        let some = Query::new().limit(40);
        Ok((tx.list_ids::<Thing>(&some)?.len(), tx.list_ids::<Thing>(&some)?.len()))
    };
    assert_eq!(store.read(twice).await.unwrap(), (40, 40));
}

pub async fn keywords_may_be_columns(store: Store) {
    let entropy = Entropy::seeded(1);
    let mut word = Word {
        id: NetworkId::random(&entropy),
        meta: store::Meta::default(),
        user: "u".into(),
        order: Some(3),
        group: "g".into(),
        default: true,
    };
    let (made, mut twin) = (word.clone(), word.clone());
    twin.id = NetworkId::random(&entropy);
    store.write(move |tx| tx.insert(&mut made.clone())).await.unwrap();
    let error = store.write(move |tx| tx.insert(&mut twin.clone())).await.unwrap_err();
    assert_eq!(unique_violation(&error).unwrap().columns, ["user", "group"]);
    let query =
        Query::new().eq("user", "u").is_in("order", [3]).is_not_null("default").sort("group", Order::Desc);
    let found = store
        .read(move |tx| {
            assert_eq!(tx.sum::<Word>("order", &query)?, 3);
            tx.first::<Word>(&query)
        })
        .await
        .unwrap();
    word.meta = found.as_ref().unwrap().meta;
    assert_eq!(found, Some(word));
}

pub async fn creation_order_is_the_default(store: Store) {
    // All in one moment: then the id decides, on every engine alike.
    let entropy = Entropy::seeded(3);
    for n in 0..10 {
        add(&store, thing(&entropy, &format!("n{n}"))).await.unwrap();
    }
    let ids: Vec<String> = all(&store).await.iter().map(|t| t.id.to_string()).collect();
    assert!(ids.is_sorted());
}

type Predicate = Box<dyn Fn(&Thing) -> bool>;

/// A random filter and the same as a predicate.
fn random_filter(entropy: &Entropy, depth: u32) -> (Query, Predicate) {
    let number = entropy.below(6);
    let word =
        format!("{}{}", ["a", "A", "b%", "_"][usize::try_from(entropy.below(4)).unwrap()], entropy.below(4));
    let part: String = word.chars().take(1 + usize::try_from(entropy.below(2)).unwrap()).collect();
    let folded = part.to_ascii_lowercase();
    match entropy.below(if depth == 0 { 12 } else { 14 }) {
        0 => (Query::new().eq("size", number), Box::new(move |t| t.size == number)),
        1 => (Query::new().ne("size", number), Box::new(move |t| t.size != number)),
        2 => (Query::new().lt("size", number), Box::new(move |t| t.size < number)),
        3 => (Query::new().ge("size", number), Box::new(move |t| t.size >= number)),
        4 => (Query::new().eq("shared", number > 2), Box::new(move |t| t.shared == (number > 2))),
        5 => (Query::new().eq("address", &word), Box::new(move |t| t.address.as_ref() == Some(&word))),
        6 => {
            let query = Query::new().ne("address", &word);
            (query, Box::new(move |t| t.address.as_ref().is_some_and(|a| *a != word)))
        }
        7 => (
            Query::new().gt("address", &word),
            Box::new(move |t| t.address.as_ref().is_some_and(|a| *a > word)),
        ),
        8 => (
            Query::new().prefix("address", &part),
            Box::new(move |t| {
                t.address.as_ref().is_some_and(|a| a.to_ascii_lowercase().starts_with(&folded))
            }),
        ),
        9 => (
            Query::new().contains("address", &part),
            Box::new(move |t| t.address.as_ref().is_some_and(|a| a.to_ascii_lowercase().contains(&folded))),
        ),
        10 => (
            Query::new().is_in("size", [number, number + 2]),
            Box::new(move |t| [number, number + 2].contains(&t.size)),
        ),
        11 => (Query::new().is_null("address"), Box::new(|t| t.address.is_none())),
        _ => {
            let parts: Vec<_> =
                (0..1 + entropy.below(3)).map(|_| random_filter(entropy, depth - 1)).collect();
            let (queries, tests): (Vec<Query>, Vec<_>) = parts.into_iter().unzip();
            (Query::new().any_of(queries), Box::new(move |t| tests.iter().any(|test| test(t))))
        }
    }
}

/// As the store orders: by the columns in turn, nulls as the empty string, then by id.
fn model_order(sort: &[(&'static str, Order)], a: &Thing, b: &Thing) -> std::cmp::Ordering {
    let mut last = Order::Asc;
    for (column, order) in sort {
        last = *order;
        let compared = match *column {
            "size" => a.size.cmp(&b.size),
            "shared" => a.shared.cmp(&b.shared),
            "address" => {
                a.address.as_deref().unwrap_or_default().cmp(b.address.as_deref().unwrap_or_default())
            }
            other => unreachable!("{other}"),
        };
        let compared = if *order == Order::Asc { compared } else { compared.reverse() };
        if compared.is_ne() {
            return compared;
        }
    }
    let ids = a.id.to_string().cmp(&b.id.to_string());
    if last == Order::Asc { ids } else { ids.reverse() }
}

/// Random filters, orders, markers and limits answer as a vector would. A seed replays.
pub async fn random_questions_agree_with_a_model(store: Store) {
    let entropy = Entropy::seeded(11);
    let mut things = Vec::new();
    for n in 0..40 {
        let address = match entropy.below(3) {
            0 => None,
            1 => Some(format!("{}{n}", ["a", "A", "b%"][usize::try_from(entropy.below(3)).unwrap()])),
            _ => Some(format!("_{n}")),
        };
        things.push(Thing {
            address,
            size: entropy.below(6),
            shared: entropy.below(2) == 0,
            ..thing(&entropy, &format!("n{n}"))
        });
    }
    let insert = things.clone();
    store.write(move |tx| insert.iter().cloned().try_for_each(|mut t| tx.insert(&mut t))).await.unwrap();
    for round in 0..300 {
        let (mut query, test) = random_filter(&entropy, 2);
        let mut sort = Vec::new();
        for _ in 0..entropy.below(3) {
            let column = ["size", "shared", "address"][usize::try_from(entropy.below(3)).unwrap()];
            let order = if entropy.below(2) == 0 { Order::Asc } else { Order::Desc };
            query = query.sort(column, order);
            sort.push((column, order));
        }
        let mut want: Vec<&Thing> = things.iter().filter(|t| test(t)).collect();
        want.sort_by(|a, b| model_order(&sort, a, b));
        let matching = want.len() as u64;
        if entropy.below(2) == 0 {
            let marker = &things[usize::try_from(entropy.below(40)).unwrap()];
            query = query.after(Some(marker.id));
            want.retain(|t| model_order(&sort, t, marker).is_gt());
        }
        let limit = usize::try_from(entropy.below(50)).unwrap();
        want.truncate(limit);
        let want: Vec<String> = want.iter().map(|t| t.id.to_string()).collect();
        let asked = query.clone().limit(limit);
        let ask = move |tx: &mut store::Tx<'_>| {
            Ok((tx.list_ids::<Thing>(&asked)?, tx.count::<Thing>(&asked)?, tx.exists::<Thing>(&asked)?))
        };
        let (got, count, exists) = store.read(ask).await.unwrap();
        assert_eq!(got, want, "round {round}: {query:?}");
        assert_eq!(count, matching, "round {round}: {query:?}");
        assert!(exists || limit == 0 || got.is_empty());
    }
}

/// Writes and acknowledges on standard output until it is killed.
pub fn write_for_ever(path: &Path) -> ! {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Store::sqlite(path, Arc::new(SystemClock), Entropy::system(), SCHEMA).await.unwrap();
        let entropy = Entropy::system();
        loop {
            let new = thing(&entropy, &entropy.uuid().to_string());
            let id = new.id;
            let write = move |tx: &mut store::Tx<'_>| {
                tx.wake("thing", id);
                tx.insert(&mut new.clone())
            };
            store.write(write).await.unwrap();
            println!("ack {id}");
        }
    })
}

/// Every id is in the reopened database.
pub async fn all_present(path: &Path, ids: Vec<String>) {
    let store =
        Store::sqlite(path, Arc::new(ManualClock::default()), Entropy::seeded(1), SCHEMA).await.unwrap();
    let present: BTreeSet<String> = all(&store).await.iter().map(|t| t.id.to_string()).collect();
    let mut wakes = store.subscribe("thing").await.unwrap();
    let woken: BTreeSet<String> = std::iter::from_fn(|| wakes.try_next()).map(|w| w.key).collect();
    for id in ids {
        assert!(present.contains(&id), "{id} was acknowledged and is lost");
        assert!(woken.contains(&id), "{id} was acknowledged and its wake-up is lost");
    }
    assert_eq!(present, woken, "one is never without the other");
}

/// Writes from many tasks until the file may not grow any more, and tells what became of each write.
pub async fn write_until_full(path: &Path) {
    let store = Store::sqlite(path, Arc::new(SystemClock), Entropy::system(), SCHEMA).await.unwrap();
    let entropy = Entropy::system();
    let mut refused = 0;
    while refused < 20 {
        let writes = (0..8).map(|n| {
            let big = Thing {
                tags: vec![entropy.password(30_000)],
                ..thing(&entropy, &entropy.uuid().to_string())
            };
            let (id, store) = (big.id, store.clone());
            async move {
                // One of each eight is refused by its own closure, in the middle of the others' batch.
                let write = move |tx: &mut store::Tx<'_>| {
                    tx.insert(&mut big.clone())?;
                    if n == 3 { Err(Error::forbidden("own refusal")) } else { Ok(()) }
                };
                (id, store.write(write).await)
            }
        });
        for (id, result) in futures::future::join_all(writes).await {
            match result.map_err(|e| e.kind()) {
                Ok(()) => println!("ack {id}"),
                Err(Kind::Forbidden) => println!("nak {id}"),
                Err(Kind::Unavailable) => {
                    println!("nak {id}");
                    refused += 1;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    println!("read {}", all(&store).await.len());
}

/// Exactly the acknowledged ones are there, and there is room for more.
pub async fn exactly_present(path: &Path, ids: BTreeSet<String>) {
    let store =
        Store::sqlite(path, Arc::new(ManualClock::default()), Entropy::seeded(1), SCHEMA).await.unwrap();
    let present: BTreeSet<String> = all(&store).await.iter().map(|t| t.id.to_string()).collect();
    assert_eq!(present, ids);
    add(&store, thing(&Entropy::seeded(1), "room again")).await.unwrap();
}
