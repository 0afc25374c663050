//! What the tests share: an engine on a stub.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use base::{Entropy, SystemClock};
use futures::FutureExt;
use futures::future::BoxFuture;
use osclient::cleanup::{self, Pace};
use osclient::journal::{Header, Journal};
use osclient::{Options, Session};
use parking_lot::Mutex;
use probe::engine::{Engine, Failure, Unseen, Witness};
use probe::hands::{Hands, Output, Target};
use probe::record::Class;
use probe::scenario::Scenario;
use tokio::sync::watch;

use crate::stub::Stub;

pub const PACE: Pace = Pace { poll: Duration::from_millis(2), limit: Duration::from_secs(20), parallel: 8 };

type Answer = Box<dyn Fn(&Target, &str) -> Result<Output, Failure> + Send + Sync>;

/// Guests that answer as told.
pub struct Fake {
    pub answer: Answer,
    pub said: Mutex<Vec<(Target, String)>>,
}

impl Fake {
    pub fn new(
        answer: impl Fn(&Target, &str) -> Result<Output, Failure> + Send + Sync + 'static,
    ) -> Arc<Fake> {
        Arc::new(Fake { answer: Box::new(answer), said: Mutex::default() })
    }

    /// Nobody lets us in.
    pub fn closed() -> Arc<Fake> {
        Fake::new(|_, _| Err(Failure::new(Class::DataPlane, "connection refused")))
    }
}

impl Hands for Fake {
    fn run<'a>(
        &'a self,
        target: &'a Target,
        command: &'a str,
        _: Option<&'a [u8]>,
        _: Duration,
    ) -> BoxFuture<'a, Result<Output, Failure>> {
        self.said.lock().push((target.clone(), command.to_owned()));
        std::future::ready((self.answer)(target, command)).boxed()
    }
}

pub fn control() -> Scenario {
    Scenario::builtin("control").unwrap()
}

/// An engine, and what stops it.
pub struct Setup {
    pub engine: Engine,
    pub stop: watch::Sender<bool>,
    pub dir: tempfile::TempDir,
}

pub async fn setup(stub: &Stub, scenario: Scenario, hands: Arc<dyn Hands>) -> Setup {
    setup_seen(stub, scenario, hands, Arc::new(Unseen), Duration::from_secs(20)).await
}

pub async fn setup_seen(
    stub: &Stub,
    scenario: Scenario,
    hands: Arc<dyn Hands>,
    witness: Arc<dyn Witness>,
    timeout: Duration,
) -> Setup {
    // What hangs by mistake shall not hang for minutes.
    let mut scenario = scenario;
    scenario.change_limit = scenario.change_limit.min(20.0);
    let dir = tempfile::tempdir().unwrap();
    let session = Session::connect(stub.cloud(), Options { retries: 0, timeout }).await.unwrap();
    let run = format!("{:06x}", Entropy::system().below(1 << 24));
    let journal = Journal::begin(dir.path(), &Header::of(&session, &run)).unwrap();
    let (stop, stopped) = watch::channel(false);
    let engine = Engine {
        session,
        scenario,
        journal,
        run,
        clock: Arc::new(SystemClock),
        entropy: Entropy::system(),
        hands,
        agent: None,
        keys: dir.path().join("keys"),
        pause: Duration::from_millis(2),
        witness,
        stop: stopped,
        next: AtomicU64::new(1),
    };
    Setup { engine, stop, dir }
}

/// What `allod probe cleanup` does with what a killed run left.
pub async fn clean(stub: &Stub, dir: &Path) -> Vec<String> {
    let session = Session::connect(stub.cloud(), Options::default()).await.unwrap();
    let mut told = Vec::new();
    for path in Journal::all(dir) {
        let (_, journal) = Journal::open(&path).unwrap();
        let left = cleanup::remove(&session, &journal, &journal.left(), PACE).await;
        told.extend(left.into_iter().map(|(e, why)| format!("{}: {why}", e.name)));
        assert!(journal.finish().unwrap());
    }
    told
}
