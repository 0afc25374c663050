//! What is known of the cloud: each list is asked for once, and a list that could not be had stays unknown to every case
//! that needs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::{Clock, Entropy};
use osclient::{Service, Session};
use serde_json::{Map, Value};
use tokio::sync::OnceCell;

use crate::checks::guest::Output;
use crate::journal::Journal;
use crate::rules::Guest;

/// Why a question has no answer.
#[derive(Debug, Clone)]
pub struct Abort(pub String);

impl From<osclient::Error> for Abort {
    fn from(error: osclient::Error) -> Self {
        Abort(error.to_string())
    }
}

/// An answer, or why there is none.
pub type Known<T> = Result<T, Abort>;

/// A flavor.
#[derive(Debug, Clone)]
pub struct Flavor {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// CPUs; `None`: not a number. So are the two below.
    pub vcpus: Option<i64>,
    /// MiB.
    pub ram: Option<i64>,
    /// GiB.
    pub disk: Option<i64>,
    /// What else it says.
    pub extra_specs: Map<String, Value>,
}

/// An image, with all its properties beside each other.
#[derive(Debug, Clone)]
pub struct Image(pub Map<String, Value>);

impl Image {
    /// A property; `None` when null, too.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    /// A property that is a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    /// A property that must be a text where it exists.
    pub fn texts(&self, name: &str) -> Known<Option<&str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(Abort(format!("image {}: {name} is no text", self.name()))),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.text("name").unwrap_or_default()
    }

    /// Its id.
    pub fn id(&self) -> &str {
        self.text("id").unwrap_or_default()
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.get(name).and_then(integer)
    }
}

/// A volume type.
#[derive(Debug, Clone)]
pub struct VolumeType {
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: Option<String>,
}

/// How the heavy cases go about their work.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The run: part of every name made.
    pub run: String,
    /// The guest of scs-0101.
    pub guest: Option<Guest>,
    /// How long a volume, backup or restore may take.
    pub storage_seconds: u64,
    /// Time between two looks.
    pub poll: std::time::Duration,
    /// Where results of others' tools go.
    pub output: std::path::PathBuf,
}

type Cell<T> = OnceCell<Known<Arc<T>>>;

/// The cloud, as far as it was asked.
pub struct Facts {
    /// The login.
    pub session: Session,
    /// Present time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Entropy,
    /// How.
    pub settings: Settings,
    /// What was made.
    pub journal: Journal,
    named: AtomicU64,
    flavors: Cell<Vec<Flavor>>,
    images: Cell<Vec<Image>>,
    volume_types: Cell<Vec<VolumeType>>,
    guest: Cell<Output>,
    compute: Cell<Service>,
    storage: Cell<Service>,
}

impl Facts {
    /// Nothing known yet.
    pub fn new(session: Session, clock: Arc<dyn Clock>, settings: Settings, journal: Journal) -> Self {
        Facts {
            session,
            clock,
            entropy: Entropy::system(),
            settings,
            journal,
            named: AtomicU64::new(0),
            flavors: Cell::new(),
            images: Cell::new(),
            volume_types: Cell::new(),
            guest: Cell::new(),
            compute: Cell::new(),
            storage: Cell::new(),
        }
    }

    /// Seconds since 1970.
    pub fn now(&self) -> i64 {
        self.clock.now().as_secs()
    }

    /// A name for a thing to make: never given before, with the prefix that upstream's janitor knows.
    pub fn name(&self, what: &str) -> String {
        let number = self.named.fetch_add(1, Ordering::Relaxed);
        format!("_scs-{what}-{}-{number}", self.settings.run)
    }

    /// How a thing made is described.
    pub fn description(&self) -> String {
        format!("made by allod certify, run {}", self.settings.run)
    }

    /// Compute.
    pub async fn compute(&self) -> Known<Arc<Service>> {
        let ask = || async {
            let mut service = self.session.service("compute", "v2.1")?;
            service.discover().await?;
            Ok(Arc::new(service))
        };
        self.compute.get_or_init(ask).await.clone()
    }

    /// Block storage.
    pub async fn storage(&self) -> Known<Arc<Service>> {
        let ask = || async {
            let mut service = self.session.service("block-storage", "v3")?;
            service.discover().await?;
            Ok(Arc::new(service))
        };
        self.storage.get_or_init(ask).await.clone()
    }

    /// Images.
    pub fn image(&self) -> Known<Service> {
        Ok(self.session.service("image", "v2")?)
    }

    /// Network.
    pub fn network(&self) -> Known<Service> {
        Ok(self.session.service("network", "v2.0")?)
    }

    /// Key manager.
    pub fn keys(&self) -> Known<Service> {
        Ok(self.session.service("key-manager", "v1")?)
    }

    /// All flavors the project sees.
    pub async fn flavors(&self) -> Known<Arc<Vec<Flavor>>> {
        self.flavors.get_or_init(|| async { Ok(Arc::new(self.ask_flavors().await?)) }).await.clone()
    }

    async fn ask_flavors(&self) -> Known<Vec<Flavor>> {
        let compute = self.compute().await?.at("2.61");
        let mut flavors = Vec::new();
        for value in compute.list("/flavors/detail?is_public=None", "flavors").await? {
            let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let number = |name: &str| value.get(name).map_or(Some(0), integer);
            let mut flavor = Flavor {
                id: text("id"),
                name: text("name"),
                vcpus: number("vcpus"),
                ram: number("ram"),
                disk: number("disk"),
                extra_specs: map(value.get("extra_specs")),
            };
            if !value.get("extra_specs").is_some_and(Value::is_object) {
                // Before 2.61 they are asked for one by one.
                let found = compute.get(&format!("/flavors/{}/os-extra_specs", flavor.id)).await?;
                flavor.extra_specs = map(found.get("extra_specs"));
            }
            flavors.push(flavor);
        }
        Ok(flavors)
    }

    /// Images that everybody may see.
    pub async fn images(&self) -> Known<Arc<Vec<Image>>> {
        let ask = || async {
            let all = self.image()?.list("/images?member_status=all", "images").await?;
            let images = all.into_iter().filter_map(|value| match value {
                Value::Object(map) => Some(Image(map)),
                _ => None,
            });
            let seen = images.filter(|i| {
                matches!(i.text("visibility"), Some("public" | "community"))
                    && !i.text("status").is_some_and(|s| s.eq_ignore_ascii_case("deleted"))
            });
            Ok(Arc::new(seen.collect()))
        };
        self.images.get_or_init(ask).await.clone()
    }

    /// Volume types.
    pub async fn volume_types(&self) -> Known<Arc<Vec<VolumeType>>> {
        let ask = || async {
            let all = self.storage().await?.list("/types", "volume_types").await?;
            let text = |v: &Value, name: &str| v.get(name).and_then(Value::as_str).map(str::to_owned);
            let types = all.iter().map(|v| VolumeType {
                name: text(v, "name").unwrap_or_default(),
                description: text(v, "description"),
            });
            Ok(Arc::new(types.collect()))
        };
        self.volume_types.get_or_init(ask).await.clone()
    }

    /// What the guest said.
    pub async fn guest(&self) -> Known<Arc<Output>> {
        let ask = || async { crate::checks::guest::boot(self).await.map(Arc::new) };
        self.guest.get_or_init(ask).await.clone()
    }
}

fn map(value: Option<&Value>) -> Map<String, Value> {
    value.and_then(Value::as_object).cloned().unwrap_or_default()
}

/// A whole number, also one written as text.
pub fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(n) => n.as_i64(),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    }
}
