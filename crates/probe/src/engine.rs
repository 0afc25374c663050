//! The course of an iteration: step after step, the items of a step at once; at the end everything is removed.
//!
//! Invariant: what is made stands in the journal before ([`osclient::journal`]); one operation gives one [`Record`],
//! however many calls it took; a stop is heeded before the next step.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base::{Clock, Entropy};
use futures::StreamExt;
use osclient::cleanup::{self, Pace};
use osclient::journal::{Entry, Journal};
use osclient::{Call, Ear, Error, Session};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;

use crate::board::{Board, Item, Unfit};
use crate::hands::Hands;
use crate::key::Key;
use crate::record::{Class, Iteration, Measure, Place, Record};
use crate::scenario::{Scenario, Step};
use crate::{checks, guests, make, template};

/// How often a call is tried that finds something in no state for it, and a question that was not answered.
const ATTEMPTS: usize = 3;

/// Why an operation did not end well.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The kind.
    pub class: Class,
    /// For people.
    pub message: String,
    /// Of the call.
    pub request_id: Option<String>,
    /// Where it was, if that became known.
    pub place: Option<Box<Place>>,
}

impl Failure {
    /// One without a call.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Failure { class, message: message.into(), request_id: None, place: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let class = Class::of_error(&error);
        Failure { class, request_id: error.request_id.clone(), message: error.to_string(), place: None }
    }
}

/// What an operation gave.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// What the cloud showed.
    pub value: Value,
    /// What was measured.
    pub measures: Vec<Measure>,
    /// How often was looked.
    pub looks: u32,
    /// Where it was, if that became known.
    pub place: Option<Place>,
}

impl From<Value> for Done {
    fn from(value: Value) -> Self {
        Done { value, ..Done::default() }
    }
}

/// Hears of what happens, while it happens. Must not block.
pub trait Witness: Send + Sync {
    /// A step begins, for so many items.
    fn step(&self, _step: &str, _items: usize) {}
    /// An operation ended.
    fn record(&self, _record: &Record) {}
    /// A call ended, so: that what was removed is not found any more is well.
    fn call(&self, _call: &Call, _class: Class) {}
}

/// Nobody.
pub struct Unseen;
impl Witness for Unseen {}

/// Everything that iterations have in common.
pub struct Engine {
    /// The login.
    pub session: Session,
    /// What is done.
    pub scenario: Scenario,
    /// What was made.
    pub journal: Journal,
    /// The run: part of every name.
    pub run: String,
    /// Present time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Entropy,
    /// The way into guests.
    pub hands: Arc<dyn Hands>,
    /// The agent for guests.
    pub agent: Option<Vec<u8>>,
    /// Where the key of an iteration lies.
    pub keys: PathBuf,
    /// First pause between two looks, and between two attempts.
    pub pause: Duration,
    /// Who hears of it.
    pub witness: Arc<dyn Witness>,
    /// Set when somebody asks for the end.
    pub stop: tokio::sync::watch::Receiver<bool>,
    /// Number of the next record.
    pub next: AtomicU64,
}

/// An iteration that goes on.
pub(crate) struct Pass<'a> {
    pub engine: &'a Engine,
    pub number: u64,
    pub board: RwLock<Board>,
    pub key: Key,
    pub key_file: PathBuf,
    /// Steps whose items others refer to: what the cloud answered to other calls is not kept.
    pub referred: BTreeSet<String>,
    records: Mutex<Vec<Record>>,
    counts: Arc<(AtomicU64, AtomicU64)>,
}

/// What a step did for an item.
pub(crate) struct Worked {
    /// The item as it is now.
    pub item: Item,
    /// The record that makes it useless.
    pub failed: Option<u64>,
}

/// What a record is about.
#[derive(Default, Clone)]
pub(crate) struct About {
    pub op: String,
    pub service: String,
    pub name: Option<String>,
    pub id: Option<String>,
    pub place: Place,
    /// When what is measured began, if before the operation.
    pub begun: Option<Instant>,
}

impl Engine {
    /// Whether somebody asked for the end.
    pub fn stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Where the private key of an iteration lies while it goes on.
    pub fn key_file(&self, number: u64) -> PathBuf {
        self.keys.join(format!("{}-{number}.key", self.run))
    }

    /// One iteration, teardown included.
    pub async fn iterate(&self, number: u64) -> anyhow::Result<Iteration> {
        let begin = Instant::now();
        let at = self.clock.now().iso_micros();
        let key = Key::generate(&self.entropy, &format!("allod-{}-{number}", self.run))?;
        let key_file = self.key_file(number);
        write_secret(&key_file, &key.private)?;
        let pass = Pass {
            engine: self,
            number,
            board: RwLock::default(),
            key,
            key_file,
            referred: self.scenario.referred(),
            records: Mutex::default(),
            counts: Arc::default(),
        };
        for step in &self.scenario.steps {
            if self.stopped() {
                break;
            }
            pass.step(step).await;
        }
        let stopped = self.stopped();
        let left = pass.teardown().await;
        // A key that stays is of no use to anybody: its guests are gone.
        let _ = std::fs::remove_file(&pass.key_file);
        let cloud = self.session.cloud();
        let mut records = pass.records.into_inner();
        records.sort_by_key(|r| r.seq);
        Ok(Iteration {
            number,
            run: self.run.clone(),
            cloud: cloud.name.clone(),
            region: cloud.region.clone(),
            scenario: self.scenario.name.clone(),
            at,
            us: micros(begin),
            stopped,
            calls: pass.counts.0.load(Ordering::Relaxed),
            failed_calls: pass.counts.1.load(Ordering::Relaxed),
            records,
            left,
        })
    }
}

fn write_secret(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

pub(crate) fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

impl Pass<'_> {
    /// Seconds that something of a step may take.
    pub(crate) fn limit(&self, step: &Step, otherwise: f64) -> Duration {
        Duration::from_secs_f64(step.limit.unwrap_or(otherwise).clamp(0.001, 1e6))
    }

    async fn step(&self, step: &Step) {
        if let Some(reason) = self.not_now(step) {
            self.engine.witness.step(&step.id, 0);
            self.skip(
                step,
                &About { op: format!("{}.skip", step.id), ..About::default() },
                &Unfit::Missing(reason),
            );
            return;
        }
        let planned = self.board.read().plan(step, &self.engine.scenario.set);
        let items = match planned {
            Ok(items) => items,
            Err(reason) => {
                self.skip(
                    step,
                    &About { op: format!("{}.plan", step.id), ..About::default() },
                    &Unfit::Missing(reason),
                );
                return;
            }
        };
        self.engine.witness.step(&step.id, items.len());
        if let Some(find) = step.find {
            let found = checks::find(self, step, find).await;
            self.board.write().items.insert(step.id.clone(), found);
            return;
        }
        let at_once = step.parallel.unwrap_or(self.engine.scenario.parallel).max(1);
        let working = items.into_iter().map(|item| self.work(step, item));
        let mut worked: Vec<Worked> =
            futures::stream::iter(working).buffer_unordered(at_once).collect().await;
        worked.sort_by_key(|w| w.item.index);
        let mut board = self.board.write();
        // What is awaited or removed is another step's.
        let of = step.wait.as_ref().or(step.remove.as_ref());
        for Worked { mut item, failed } in worked {
            let Some(of) = of else {
                item.failed = item.failed.or(failed);
                board.items.entry(step.id.clone()).or_default().push(item);
                continue;
            };
            if let Some(old) = board.item_mut(of, item.index) {
                old.failed = old.failed.or(failed);
                old.place = item.place;
                if !item.value.is_null() {
                    old.value = item.value;
                }
            }
        }
    }

    /// Why a step is not for this cloud.
    fn not_now(&self, step: &Step) -> Option<String> {
        let when = step.when.as_deref()?;
        if let Some(service) = when.strip_prefix("service ") {
            return self.engine.session.endpoint(service).err().map(|e| e.message);
        }
        self.engine.scenario.unmet(when)
    }

    async fn work(&self, step: &Step, mut item: Item) -> Worked {
        if let Some(needs) = &step.needs {
            let board = self.board.read();
            let needed = board.of(needs);
            let other = needed.get(item.index % needed.len().max(1));
            item.failed = item.failed.or(other.and_then(|o| o.failed));
        }
        // Deep inside, a future as large as all deeds together would be moved about.
        if step.make.is_some() {
            Box::pin(make::make(self, step, item)).await
        } else if let Some(call) = &step.call {
            Box::pin(make::call(self, step, call, item)).await
        } else if let Some(target) = &step.wait {
            Box::pin(make::wait(self, step, target, item)).await
        } else if let Some(target) = &step.remove {
            Box::pin(make::remove(self, step, target, item)).await
        } else if let Some(check) = step.check {
            if check.in_guests() {
                Box::pin(guests::check(self, step, check, item)).await
            } else {
                Box::pin(checks::check(self, step, check, item)).await
            }
        } else {
            Worked { item, failed: None }
        }
    }

    /// What a name in a scenario stands for to an item.
    pub(crate) fn lookup(&self, item: &Item, name: &str) -> Result<Value, Unfit> {
        if let Some(number) = template::number(name, item.index) {
            return Ok(number.into());
        }
        match name {
            "run" => return Ok(self.engine.run.clone().into()),
            "iteration" => return Ok(self.number.into()),
            "name" => return Ok(item.name.clone().into()),
            "public_key" => return Ok(self.key.public.clone().into()),
            "user_data" => return Ok(guests::user_data(&item.name).into()),
            _ => {}
        }
        match self.engine.scenario.set.get(name) {
            Some(value) => Ok(value.clone()),
            None => self.board.read().refer(item, name),
        }
    }

    /// A body with everything filled in.
    pub(crate) fn filled(&self, item: &Item, value: &Value) -> Result<Value, Unfit> {
        let mut unfit = None;
        let cell = std::cell::RefCell::new(&mut unfit);
        let result = template::fill(value, &|name| {
            self.lookup(item, name).map_err(|why| {
                let told = format!("{why:?}");
                **cell.borrow_mut() = Some(why);
                told
            })
        });
        result.map_err(|text| unfit.unwrap_or(Unfit::Missing(text)))
    }

    /// Does something once or, if that may help, some times; one record comes of it.
    pub(crate) async fn operate<F, R>(
        &self,
        step: &Step,
        about: About,
        limit: Duration,
        again: bool,
        deed: F,
    ) -> (Result<Done, Failure>, u64)
    where
        F: Fn(Session) -> R,
        R: Future<Output = Result<Done, Failure>>,
    {
        let begin = Instant::now();
        let at = self.engine.clock.now().iso_micros();
        let heard: Arc<Mutex<Vec<Call>>> = Arc::default();
        let session = self.engine.session.heard_by(self.ear(&about, heard.clone()));
        let trying = async {
            let mut tried = 1;
            loop {
                let result = deed(session.clone()).await;
                let worth = |f: &Failure| {
                    f.class == Class::Conflict
                        || (again && matches!(f.class, Class::Transport | Class::Server))
                };
                if tried >= ATTEMPTS || !result.as_ref().is_err_and(worth) {
                    return result;
                }
                tokio::time::sleep(self.engine.pause * (1 << tried)).await;
                tried += 1;
            }
        };
        let result = tokio::time::timeout(limit, trying).await.unwrap_or_else(|_| {
            Err(Failure::new(Class::Timeout, format!("no end within {} s", limit.as_secs_f32())))
        });
        let attempts = std::mem::take(&mut *heard.lock());
        let mut record = self.record(step, about, at, begin);
        record.request_id = attempts.last().and_then(|c| c.request_id.clone());
        match &result {
            Ok(done) => {
                record.class = Class::Ok;
                record.looks = done.looks;
                record.measures = done.measures.clone();
                record.place = done.place.clone().unwrap_or(record.place);
            }
            Err(failure) => {
                record.class = failure.class;
                record.message = Some(failure.message.clone());
                record.request_id = failure.request_id.clone().or(record.request_id);
                record.place = failure.place.clone().map_or(record.place, |p| *p);
            }
        }
        // Looks are many and alike: only the last says something.
        record.attempts = if record.looks > 0 || attempts.len() > 50 {
            attempts.into_iter().rev().take(1).collect()
        } else {
            attempts
        };
        let seq = record.seq;
        self.keep(record);
        (result, seq)
    }

    /// Hears of calls: for the witness, the counts, and a record.
    fn ear(&self, about: &About, heard: Arc<Mutex<Vec<Call>>>) -> Ear {
        let (witness, counts) = (self.engine.witness.clone(), self.counts.clone());
        let removing = about.op.ends_with(".delete");
        Arc::new(move |call: &Call| {
            let class = match Class::of_call(call) {
                Class::NotFound if removing => Class::Ok,
                class => class,
            };
            counts.0.fetch_add(1, Ordering::Relaxed);
            counts.1.fetch_add(u64::from(class.failed()), Ordering::Relaxed);
            witness.call(call, class);
            heard.lock().push(call.clone());
        })
    }

    fn record(&self, step: &Step, about: About, at: String, begin: Instant) -> Record {
        Record {
            seq: self.engine.next.fetch_add(1, Ordering::Relaxed),
            iteration: self.number,
            step: step.id.clone(),
            op: about.op,
            service: about.service,
            name: about.name,
            id: about.id,
            at,
            us: micros(about.begun.unwrap_or(begin)),
            class: Class::Ok,
            message: None,
            request_id: None,
            attempts: Vec::new(),
            looks: 0,
            place: about.place,
            cause: None,
            measures: Vec::new(),
        }
    }

    /// Notes that something was not tried; the number of the record that is to blame.
    pub(crate) fn skip(&self, step: &Step, about: &About, why: &Unfit) -> u64 {
        let mut record =
            self.record(step, about.clone(), self.engine.clock.now().iso_micros(), Instant::now());
        record.us = 0;
        record.class = Class::Skipped;
        let seq = record.seq;
        let blame = match why {
            Unfit::Because(cause) => {
                record.cause = Some(*cause);
                record.message = Some(format!("needs what failed in record {cause}"));
                *cause
            }
            Unfit::Missing(what) => {
                record.message = Some(what.clone());
                seq
            }
        };
        self.keep(record);
        blame
    }

    /// A record of something that was not called but seen.
    pub(crate) fn note(
        &self,
        step: &Step,
        about: About,
        us: u64,
        result: Result<Vec<Measure>, (Failure, Vec<Measure>)>,
    ) -> u64 {
        let mut record = self.record(step, about, self.engine.clock.now().iso_micros(), Instant::now());
        record.us = us;
        match result {
            Ok(measures) => record.measures = measures,
            Err((failure, measures)) => {
                record.class = failure.class;
                record.message = Some(failure.message);
                record.measures = measures;
            }
        }
        let seq = record.seq;
        self.keep(record);
        seq
    }

    /// Puts a finished record to the others.
    pub(crate) fn keep(&self, record: Record) {
        self.engine.witness.record(&record);
        self.records.lock().push(record);
    }

    /// Removes everything that is still there, kind after kind; tells what stays.
    async fn teardown(&self) -> Vec<String> {
        let (mut left, mut past) = (Vec::new(), None);
        loop {
            // Looked at anew for each kind: a server that goes tells of volumes that came with it.
            let mut kind = self.engine.journal.left();
            kind.retain(|e| past.is_none_or(|past| e.thing > past));
            let Some(thing) = kind.first().map(|e| e.thing) else { return left };
            kind.retain(|e| e.thing == thing);
            past = Some(thing);
            let step = Step { id: format!("remove-{}", thing.name()), ..Step::default() };
            self.engine.witness.step(&step.id, kind.len());
            let removing = kind.iter().map(|entry| self.removed(&step, entry, Place::default()));
            let at_once = self.engine.scenario.parallel.max(1);
            let results: Vec<_> = futures::stream::iter(removing).buffer_unordered(at_once).collect().await;
            left.extend(results.into_iter().flatten());
        }
    }

    /// Removes what stands in the journal; what is left of it.
    pub(crate) async fn removed(&self, step: &Step, entry: &Entry, place: Place) -> Option<String> {
        let limit = self.limit(step, self.engine.scenario.change_limit);
        let pace = Pace { poll: self.engine.pause, limit, parallel: 1 };
        let about = About {
            op: format!("{}.delete", entry.thing.name()),
            service: make::service(entry.thing).to_owned(),
            name: Some(entry.name.clone()),
            id: entry.id.clone(),
            place,
            begun: None,
        };
        let slack = Duration::from_secs(5);
        let (result, _) = self
            .operate(step, about, limit + slack, true, |session| async move {
                cleanup::brought(&session, &self.engine.journal, entry, pace).await.map_err(Failure::from)?;
                cleanup::one(&session, entry, pace).await.map_err(Failure::from)?;
                Ok(Done { looks: 1, ..Done::default() })
            })
            .await;
        let noted = result
            .map_err(|f| f.message)
            .and_then(|_| self.engine.journal.gone(entry.seq).map_err(|e| e.to_string()));
        noted.err().map(|why| format!("{} {}: {why}", entry.thing.name(), entry.name))
    }
}
