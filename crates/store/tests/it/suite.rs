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

const MIGRATIONS: &[Migration] = &[Migration::new(1, "things", &[Step::table::<Thing>()])];
pub const SCHEMA: &[Schema] = &[("test", MIGRATIONS)];

fn thing(entropy: &Entropy, name: &str) -> Thing {
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

async fn add(store: &Store, thing: Thing) -> Result<Thing, Error> {
    store
        .write(move |tx| {
            let mut thing = thing.clone();
            tx.insert(&mut thing)?;
            Ok(thing)
        })
        .await
}

async fn all(store: &Store) -> Vec<Thing> {
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

/// Writes and acknowledges on standard output until it is killed.
pub fn write_for_ever(path: &Path) -> ! {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Store::sqlite(path, Arc::new(SystemClock), Entropy::system(), SCHEMA).await.unwrap();
        let entropy = Entropy::system();
        loop {
            let made = add(&store, thing(&entropy, &entropy.uuid().to_string())).await.unwrap();
            println!("ack {}", made.id);
        }
    })
}

/// Every id is in the reopened database.
pub async fn all_present(path: &Path, ids: Vec<String>) {
    let store =
        Store::sqlite(path, Arc::new(ManualClock::default()), Entropy::seeded(1), SCHEMA).await.unwrap();
    let present: BTreeSet<String> = all(&store).await.iter().map(|t| t.id.to_string()).collect();
    for id in ids {
        assert!(present.contains(&id), "{id} was acknowledged and is lost");
    }
}
