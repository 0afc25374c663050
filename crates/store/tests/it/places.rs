//! What holds when a database is opened again, by several, or after a crash: on SQLite files and on PostgreSQL.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base::{Clock, Entropy, Error, Kind, ManualClock, NetworkId, ProjectId};
use store::{Migration, Query, Schema, Step, Store, Subscription, unique_violation};

use crate::suite::{SCHEMA, Thing, add, all, thing};

/// A database that can be opened several times.
pub struct Place {
    pub url: String,
    pub clock: Arc<ManualClock>,
    _keep: Box<dyn Any>,
}

impl Place {
    pub fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/s.sqlite", dir.path().display());
        Place { url, clock: Arc::default(), _keep: Box::new(dir) }
    }

    pub fn postgresql() -> Self {
        let server = crate::postgres::Server::start();
        Place { url: server.url(), clock: Arc::default(), _keep: Box::new(server) }
    }

    pub async fn open(&self, schemas: &[Schema]) -> Result<Store, Error> {
        let entropy = Entropy::system();
        Store::open(&self.url, self.clock.clone(), entropy, schemas).await
    }

    pub async fn store(&self) -> Store {
        self.open(SCHEMA).await.unwrap()
    }

    pub fn is_postgres(&self) -> bool {
        self.url.starts_with("postgres")
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("in time")
}

async fn next_key(wakes: &mut Subscription) -> String {
    within(wakes.next()).await.expect("the store is there").key
}

async fn wake(store: &Store, key: &'static str) {
    let wake = move |tx: &mut store::Tx<'_>| {
        tx.wake("thing", key);
        Ok(())
    };
    store.write(wake).await.unwrap();
}

pub async fn what_was_written_is_there_when_opened_again(place: Place) {
    let store = place.store().await;
    let made = add(&store, thing(&Entropy::seeded(1), "a")).await.unwrap();
    drop(store);
    assert_eq!(all(&place.store().await).await, [made]);
}

pub async fn wakes_survive_until_acknowledged(place: Place) {
    let store = place.store().await;
    wake(&store, "a").await;
    wake(&store, "b").await;
    let mut wakes = store.subscribe("thing").await.unwrap();
    let first = within(wakes.next()).await.unwrap();
    assert_eq!((first.key.as_str(), wakes.waiting().count()), ("a", 2), "the first is not handled yet");
    assert_eq!(next_key(&mut wakes).await, "b");
    store.acknowledge(vec![first.seq]).await.unwrap();
    assert_eq!(store.unacknowledged().await.unwrap(), [("thing".to_owned(), 1)].into());
    drop((store, wakes));
    let store = place.store().await;
    let mut wakes = store.subscribe("thing").await.unwrap();
    assert_eq!(next_key(&mut wakes).await, "b", "given out and not acknowledged");
    assert!(wakes.try_next().is_none());
    drop(wakes);
    let mut again = store.subscribe("thing").await.unwrap();
    assert_eq!(next_key(&mut again).await, "b", "the next subscription takes over what the last one left");
}

pub async fn a_newer_database_is_refused(place: Place) {
    const NEWER: &[Migration] = &[
        Migration::new(1, "things", &[Step::table::<Thing>()]),
        Migration::new(2, "less", &[Step::drop_index("things", "size")]),
    ];
    drop(place.open(&[("test", NEWER)]).await.unwrap());
    let error = place.open(SCHEMA).await.err().expect("refused");
    assert!(
        error.public().contains("newer version") && error.public().contains("test migration 2"),
        "{error}"
    );
    drop(place.open(&[("other", &[])]).await.unwrap());
}

pub mod later {
    store::resource! {
        /// What `Thing` became: another column, another uniqueness.
        pub struct Thing, table "things", id base::NetworkId {
            unique: [[project_id, name, colour]],
            index: [project_id, size, shared, colour],
        } {
            /// Owner.
            pub project_id: base::ProjectId,
            /// Name.
            pub name: String,
            /// A number.
            pub size: u64,
            /// A flag.
            pub shared: bool,
            /// New.
            #[serde(default)]
            pub colour: Option<String>,
        }
    }
}

fn paint(tx: &mut store::Tx<'_>) -> Result<(), Error> {
    for mut thing in tx.list::<later::Thing>(&Query::new())? {
        thing.colour = Some("red".into());
        tx.update_status(&mut thing)?;
    }
    Ok(())
}

pub async fn migrations_bring_an_old_database_up_to_date(place: Place) {
    const LATER: &[Migration] = &[
        Migration::new(1, "things", &[Step::table::<Thing>()]),
        Migration::new(
            2,
            "colours",
            &[
                Step::drop_unique("things", &["project_id", "name"]),
                Step::drop_unique("things", &["address"]),
                Step::drop_column("things", "address"),
                Step::table::<later::Thing>(),
                Step::data(paint),
            ],
        ),
    ];
    let store = place.store().await;
    let old =
        add(&store, Thing { address: Some("x".into()), ..thing(&Entropy::seeded(1), "a") }).await.unwrap();
    drop(store);
    for _ in 0..2 {
        let store = place.open(&[("test", LATER)]).await.unwrap();
        let red = Query::new().eq("colour", "red");
        let found = store.read(move |tx| tx.list::<later::Thing>(&red)).await.unwrap();
        assert_eq!(found.iter().map(|t| t.id).collect::<Vec<_>>(), [old.id]);
        assert_eq!(found[0].meta.revision, 2, "painted once");
    }
    let store = place.open(&[("test", LATER)]).await.unwrap();
    let twin = move |colour: Option<&'static str>| {
        let store = store.clone();
        async move {
            let insert = move |tx: &mut store::Tx<'_>| {
                let mut twin = tx.need::<later::Thing>(&old.id)?;
                (twin.id, twin.colour) = (NetworkId::random(&Entropy::system()), colour.map(Into::into));
                tx.insert(&mut twin)
            };
            store.write(insert).await
        }
    };
    twin(Some("blue")).await.unwrap();
    let error = twin(Some("red")).await.unwrap_err();
    assert_eq!(unique_violation(&error).unwrap().columns, ["project_id", "name", "colour"]);
}

pub async fn replicas_that_start_at_once_migrate_once(place: Place) {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    fn seed(tx: &mut store::Tx<'_>) -> Result<(), Error> {
        RUNS.fetch_add(1, Ordering::SeqCst);
        tx.insert(&mut thing(&Entropy::system(), "seeded"))
    }
    const MIGRATIONS: &[Migration] = &[
        Migration::new(1, "things", &[Step::table::<Thing>()]),
        Migration::new(2, "seed", &[Step::data(seed)]),
        Migration::new(3, "later", &[Step::table::<later::Thing>()]),
    ];
    let replicas = futures::future::join_all((0..6).map(|_| place.open(&[("test", MIGRATIONS)]))).await;
    let stores: Vec<Store> = replicas.into_iter().map(|r| r.unwrap()).collect();
    let seeded = stores[5].read(|tx| tx.list::<later::Thing>(&Query::new())).await.unwrap();
    assert_eq!(seeded.len(), 1);
    assert!(RUNS.load(Ordering::SeqCst) >= 1);
}

pub async fn a_table_has_one_owner(place: Place) {
    const MIGRATIONS: &[Migration] = &[Migration::new(1, "things", &[Step::table::<Thing>()])];
    let error = place.open(&[("one", MIGRATIONS), ("two", MIGRATIONS)]).await.err().expect("refused");
    assert!(error.chain().contains("things"), "{error:?}");
}

/// What a read saw first it sees to the end, whatever is written meanwhile.
pub async fn reads_see_a_snapshot(place: Place) {
    let store = place.store().await;
    add(&store, thing(&Entropy::seeded(1), "a")).await.unwrap();
    let (looked, first_look) = std::sync::mpsc::channel();
    let (written, go_on) = std::sync::mpsc::channel::<()>();
    let (looked, go_on) = (std::sync::Mutex::new(looked), std::sync::Mutex::new(go_on));
    let reader = store.clone();
    // A runtime of its own: this closure waits, as no real one does.
    let reading = std::thread::spawn(move || {
        tokio::runtime::Runtime::new().unwrap().block_on(reader.read(move |tx| {
            let before = tx.count::<Thing>(&Query::new())?;
            looked.lock().unwrap().send(()).unwrap();
            go_on.lock().unwrap().recv_timeout(Duration::from_secs(30)).unwrap();
            Ok((before, tx.count::<Thing>(&Query::new())?))
        }))
    });
    tokio::task::spawn_blocking(move || first_look.recv_timeout(Duration::from_secs(30)).unwrap())
        .await
        .unwrap();
    add(&store, thing(&Entropy::seeded(2), "b")).await.unwrap();
    written.send(()).unwrap();
    let seen = tokio::task::spawn_blocking(move || reading.join().unwrap()).await.unwrap().unwrap();
    assert_eq!(seen, (1, 1));
    assert_eq!(all(&store).await.len(), 2);
}

pub async fn an_expired_lease_is_taken_over_with_a_new_token(place: Place) {
    let (one, two) = (place.store().await, place.store().await);
    let minute = Duration::from_secs(60);
    let first = one.lease("l", "a", minute).await.unwrap().unwrap();
    assert_eq!(first.expires_at, place.clock.now().plus(minute));
    place.clock.advance(Duration::from_secs(30));
    assert_eq!(two.lease("l", "b", minute).await.unwrap(), None);
    assert_eq!(one.lease("l", "a", minute).await.unwrap().unwrap().token, first.token, "renewed");
    place.clock.advance(Duration::from_secs(61));
    let second = two.lease("l", "b", minute).await.unwrap().unwrap();
    assert!(second.token > first.token);
    assert_eq!(one.lease("l", "a", minute).await.unwrap(), None);
    let holders = futures::future::join_all((0..8).map(|n| {
        let store = if n % 2 == 0 { one.clone() } else { two.clone() };
        async move { store.lease("race", &format!("h{n}"), minute).await.unwrap() }
    }))
    .await;
    assert_eq!(holders.iter().flatten().count(), 1, "one winner");
}

/// Two replicas of a service choose free numbers; neither needs to know of the other.
pub async fn who_meets_another_chooses_again(place: Place) {
    let stores = [place.store().await, place.store().await];
    let tasks: Vec<_> = (0..16_u64)
        .map(|n| {
            let store = stores[usize::try_from(n % 2).unwrap()].clone();
            tokio::spawn(async move {
                let free = thing(&Entropy::seeded(n), &format!("n{n}"));
                let allocate = move |tx: &mut store::Tx<'_>| {
                    let taken = tx.count::<Thing>(&Query::new().is_not_null("address"))?;
                    let mut free = Thing { address: Some(format!("address{taken}")), ..free.clone() };
                    tx.insert(&mut free)?;
                    Ok(free.address)
                };
                loop {
                    match store.write(allocate.clone()).await {
                        Ok(address) => return address,
                        // Others were faster twelve times: an honest answer to an API caller, tried again here.
                        Err(error) => assert_eq!(error.kind(), Kind::Conflict, "{error:?}"),
                    }
                }
            })
        })
        .collect();
    let mut addresses = Vec::new();
    for task in tasks {
        addresses.push(within(task).await.unwrap().unwrap());
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 16, "each its own, none lost");
}

pub async fn other_replicas_hear_of_wakes(place: Place) {
    if !place.is_postgres() {
        // A SQLite file has one process; its second handle finds them by polling.
        let (one, two) = (place.store().await, place.store().await);
        let mut wakes = two.subscribe("thing").await.unwrap();
        wake(&one, "a").await;
        two.poll_outbox().await.unwrap();
        assert_eq!(next_key(&mut wakes).await, "a");
        return;
    }
    let (one, two) = (place.store().await, place.store().await);
    let mut wakes = two.subscribe("thing").await.unwrap();
    for key in ["a", "b", "c"] {
        wake(&one, key).await;
        assert_eq!(next_key(&mut wakes).await, key);
    }
}

/// Ends all other connections to this database.
const TERMINATE: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
     WHERE datname = current_database() AND pid <> pg_backend_pid()";

pub async fn lost_connections_are_made_again(place: Place) {
    let store = place.store().await;
    let made = [add(&store, thing(&Entropy::seeded(1), "a")).await.unwrap()];
    let look = async || store.glance::<Thing>(vec![made[0].id]).await.unwrap();
    assert_eq!(look().await, made);
    let mut wakes = store.subscribe("thing").await.unwrap();
    if place.is_postgres() {
        crate::postgres::execute(&place.url, TERMINATE);
    }
    assert_eq!(look().await, made, "by a transaction, if need be");
    assert_eq!(look().await, made);
    assert_eq!(all(&store).await, made);
    let (url, runs) = (place.url.clone(), Arc::new(AtomicU32::new(0)));
    let counted = runs.clone();
    let insert = move |tx: &mut store::Tx<'_>| {
        tx.count::<Thing>(&Query::new())?;
        if counted.fetch_add(1, Ordering::SeqCst) == 0 && url.starts_with("postgres") {
            // In the middle of this very transaction.
            crate::postgres::execute(&url, TERMINATE);
        }
        tx.insert(&mut thing(&Entropy::seeded(2), "b"))
    };
    store.write(insert).await.unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), if place.is_postgres() { 2 } else { 1 });
    let other = place.store().await;
    wake(&other, "after").await;
    if !place.is_postgres() {
        store.poll_outbox().await.unwrap();
    }
    assert_eq!(next_key(&mut wakes).await, "after", "the listener is back, too");
}

pub async fn overlong_values_are_bad_input_or_stored(place: Place) {
    let store = place.store().await;
    // Does not compress, so that it is beyond what a PostgreSQL index can hold.
    let name = Entropy::seeded(1).password(20_000);
    match add(&store, thing(&Entropy::seeded(1), &name)).await {
        Ok(_) => assert!(!place.is_postgres()),
        Err(error) => assert_eq!(error.kind(), Kind::BadRequest),
    }
    let project_id = ProjectId::new("p");
    add(&store, Thing { project_id, tags: vec![name], ..thing(&Entropy::seeded(2), "short") }).await.unwrap();
}
