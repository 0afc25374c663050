//! `allod probe`: arguments, and what is printed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base::{Clock, Entropy, SystemClock};
use clap::{Args, Subcommand};
use osclient::cleanup::{self, Cleaned, Pace};
use osclient::journal::{Header, Journal, state_dir};
use osclient::{Cloud, Environment, Options, Session};
use tokio::sync::watch;

use crate::engine::{Engine, Witness, micros};
use crate::hands::Ssh;
use crate::learned::{Learned, Unusual};
use crate::meter::{Meter, Told};
use crate::peers::WINDOW;
use crate::push::Pusher;
use crate::record::{Class, Iteration, Place, Record};
use crate::report::Report;
use crate::scenario::{BUILTIN, Scenario};
use crate::view::View;

/// First pause between two looks at something that changes.
const PAUSE: Duration = Duration::from_millis(250);

/// Watch a cloud as its tenants feel it.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Probe {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Args)]
struct Run {
    /// Name of the cloud in clouds.yaml [default: OS_CLOUD, OS_* or the only one].
    #[arg(long, value_name = "NAME")]
    cloud: Option<String>,
    /// Its region [default: the first].
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// What is done: a name of `allod probe scenarios`, or a file.
    #[arg(long, value_name = "NAME|FILE", default_value = "default")]
    scenario: String,
    /// Override a value of the scenario (guests=8).
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Only these steps, and what they need.
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    only: Vec<String>,
    /// How many iterations.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, conflicts_with = "forever")]
    iterations: u64,
    /// Until somebody stops it.
    #[arg(long)]
    forever: bool,
    /// Seconds between the beginnings of two iterations; one that takes longer is followed at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    interval: f64,
    /// Seconds that a call may take, instead of the scenario's.
    #[arg(long, value_name = "SECONDS")]
    call_limit: Option<f64>,
    /// The agent for guests (`allod-probe-agent`, static) [default: beside this program].
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Directory of the reports: report.json, report.xml (JUnit), report.html, records.jsonl.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Serve metrics for Prometheus here (`GET /metrics`).
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<std::net::SocketAddr>,
    /// Write metrics into this file after each iteration (node_exporter's textfile collector).
    #[arg(long, value_name = "FILE")]
    textfile: Option<PathBuf>,
    /// Send Influx lines there (`http://telegraf:8186/write?db=cicd`).
    #[arg(long, value_name = "URL")]
    influx: Option<String>,
    /// Measurement of the Influx lines [default: the cloud].
    #[arg(long, value_name = "NAME")]
    influx_name: Option<String>,
    /// Send OTLP metrics (HTTP, JSON) there (`http://collector:4318/v1/metrics`).
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// Share of operations that shall work: what burn rates are about.
    #[arg(long, value_name = "SHARE", default_value_t = 0.99)]
    objective: f64,
    /// Tell of every step as it begins and every operation as it ends, on stderr.
    #[arg(long)]
    verbose: bool,
    /// Print iterations as JSON, one a line, with every record.
    #[arg(long)]
    json: bool,
    /// Where journals and what was learned are kept [default: ~/.local/state/allod/probe].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Remove what killed runs left in the cloud.
    Cleanup {
        /// Only in this cloud [default: wherever a journal says].
        #[arg(long, value_name = "NAME")]
        cloud: Option<String>,
        /// Where journals are kept [default: ~/.local/state/allod/probe].
        #[arg(long, value_name = "DIR")]
        state: Option<PathBuf>,
        /// Print what is left as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a Grafana dashboard for the metrics.
    Dashboard,
    /// Print the scenarios that are built in, or one of them.
    Scenarios {
        /// Which.
        name: Option<String>,
    },
}

impl Probe {
    /// Does it. 0: all was well; 1: something failed, or is left.
    pub async fn main(self) -> Result<ExitCode> {
        match self.command {
            None => run(self.run).await,
            Some(Command::Cleanup { cloud, state, json }) => clean(cloud.as_deref(), state, json).await,
            Some(Command::Dashboard) => {
                print(&format!("{:#}\n", crate::grafana::dashboard()));
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Scenarios { name }) => scenarios(name.as_deref()),
        }
    }
}

/// Prints, and does not mind a reader that went away.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn state(given: Option<PathBuf>) -> Result<PathBuf> {
    given.or_else(|| state_dir("probe")).context("no HOME: --state DIR")
}

fn scenario(args: &Run) -> Result<Scenario> {
    let named = BUILTIN.iter().any(|(n, _)| *n == args.scenario);
    let mut scenario = if named {
        Scenario::builtin(&args.scenario)?
    } else {
        let text = std::fs::read_to_string(&args.scenario)
            .with_context(|| format!("{}: neither built in nor a file", args.scenario))?;
        Scenario::parse(&text).with_context(|| args.scenario.clone())?
    };
    for assignment in &args.set {
        scenario.set(assignment)?;
    }
    if let Some(limit) = args.call_limit {
        if !(limit > 0.0 && limit < 1e6) {
            bail!("--call-limit: {limit} is no number of seconds");
        }
        scenario.call_limit = limit;
    }
    if !args.only.is_empty() {
        scenario.only(&args.only)?;
    }
    Ok(scenario)
}

/// The agent, if it is there: without it guests are looked at by SSH alone.
fn agent(given: Option<&PathBuf>) -> Result<Option<Vec<u8>>> {
    if let Some(path) = given {
        return Ok(Some(std::fs::read(path).with_context(|| format!("{}", path.display()))?));
    }
    let beside = std::env::current_exe().ok().map(|p| p.with_file_name("allod-probe-agent"));
    Ok(beside.and_then(|p| std::fs::read(p).ok()))
}

/// Hears the signals: the first asks for the end after this step, the second for the end now.
fn signals() -> Result<(watch::Receiver<bool>, watch::Receiver<bool>)> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let ((stop, stopped), (hurry, hurried)) = (watch::channel(false), watch::channel(false));
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
            if stop.send_replace(true) {
                hurry.send_replace(true);
            } else {
                say("stopping after this step, then removing what was made; again: at once");
            }
        }
    });
    Ok((stopped, hurried))
}

/// Iterations that stay in memory for the report, and how many records they have together; those that hosts are judged by
/// stay whatever they have.
const KEPT: usize = 200;
const KEPT_RECORDS: usize = 20_000;

/// An iteration, for programs.
#[derive(serde::Serialize)]
struct Line<'a> {
    iteration: &'a Iteration,
    told: &'a Told,
}

/// Where results go.
struct Results {
    view: Arc<View>,
    meter: Arc<Meter>,
    learned: Learned,
    told: Told,
    kept: Vec<Iteration>,
    influx: Option<(Pusher, String)>,
    otlp: Option<Pusher>,
}

impl Results {
    async fn new(args: &Run, cloud: &Cloud, scenario: &str, state: &Path) -> Result<Results> {
        if !(args.objective > 0.0 && args.objective < 1.0) {
            bail!("--objective: {} is no share between 0 and 1", args.objective);
        }
        std::fs::create_dir_all(state).with_context(|| format!("{}", state.display()))?;
        let meter = Arc::new(Meter::new(&cloud.name, cloud.region.as_deref())?);
        if let Some(address) = args.listen {
            let listener = tokio::net::TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("--listen {address}"))?;
            say(&format!("metrics: http://{}/metrics", listener.local_addr()?));
            tokio::spawn(crate::meter::serve(listener, meter.clone()));
            let alive = meter.clone();
            tokio::spawn(async move {
                loop {
                    alive.heartbeat(epoch());
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
            });
        }
        // Not named as journals are, which lie beside it.
        let spool = |name: &str| state.join(format!("{name}.spool"));
        let influx = match &args.influx {
            None => None,
            Some(url) => {
                let pusher = Pusher::start(url.clone(), "text/plain; charset=utf-8", spool("influx"))?;
                Some((pusher, args.influx_name.clone().unwrap_or_else(|| cloud.name.clone())))
            }
        };
        let otlp =
            args.otlp.as_ref().map(|url| Pusher::start(url.clone(), "application/json", spool("otlp")));
        Ok(Results {
            view: Arc::new(View::new(!args.json, args.verbose)),
            meter,
            learned: Learned::load(state, &cloud.name, scenario)?,
            told: Told::default(),
            kept: Vec::new(),
            influx,
            otlp: otlp.transpose()?,
        })
    }

    /// An iteration is over.
    fn ended(&mut self, iteration: Iteration, args: &Run) -> Result<()> {
        let now = SystemClock.now();
        self.told.unusual = self.learned.judge(&iteration, now);
        self.told.burns = self.learned.burns(args.objective, now);
        // Others read this while it is written anew.
        self.learned.save()?;
        self.kept.push(iteration);
        let many = |kept: &[Iteration]| {
            kept.len() > KEPT || kept.iter().map(|i| i.records.len()).sum::<usize>() > KEPT_RECORDS
        };
        while self.kept.len() > WINDOW && many(&self.kept) {
            self.kept.remove(0);
        }
        self.told.suspects = crate::peers::suspects(&self.kept);
        let Some(iteration) = self.kept.last() else { return Ok(()) };
        self.view.ended(iteration);
        self.meter.iteration(iteration, &self.told, epoch());
        if let Some(path) = &args.textfile {
            let new = path.with_extension("new");
            std::fs::write(&new, self.meter.text()).with_context(|| format!("{}", new.display()))?;
            std::fs::rename(&new, path).with_context(|| format!("{}", path.display()))?;
        }
        if let Some((pusher, name)) = &self.influx {
            pusher.push(crate::push::influx(name, iteration));
        }
        if let Some(pusher) = &self.otlp {
            let nanos = u64::try_from(now.0).unwrap_or(0).saturating_mul(1000);
            pusher.push(crate::push::otlp(iteration, nanos).to_string());
        }
        if let Some(dir) = &args.output {
            Report::new(&self.kept, &self.told).write(dir)?;
            let path = dir.join("records.jsonl");
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
            for record in &iteration.records {
                writeln!(file, "{}", serde_json::to_string(record)?)?;
            }
        }
        if args.json {
            // Of ten thousand calls it is megabytes: not made whole in memory.
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            let _ = serde_json::to_writer(&mut out, &Line { iteration, told: &self.told });
            let _ = out.write_all(b"\n").and_then(|()| out.flush());
        } else {
            print(&told(iteration, &self.told));
        }
        if args.output.is_none()
            && let Some(iteration) = self.kept.last_mut()
        {
            // No report will show the others again.
            iteration.records.retain(crate::peers::judges);
            iteration.records.shrink_to_fit();
        }
        Ok(())
    }

    async fn finish(self) -> Result<()> {
        if let Some((pusher, _)) = self.influx {
            pusher.finish().await?;
        }
        if let Some(pusher) = self.otlp {
            pusher.finish().await?;
        }
        Ok(())
    }
}

/// Seconds of the epoch.
fn epoch() -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a moment")]
    let micros = SystemClock.now().0 as f64;
    micros / 1e6
}

/// Who hears of what happens while it happens.
struct Heard {
    view: Arc<View>,
    meter: Arc<Meter>,
}

impl Witness for Heard {
    fn step(&self, step: &str, items: usize) {
        self.view.step(step, items);
    }

    fn record(&self, record: &Record) {
        self.view.record(record);
        self.meter.record(record);
    }

    fn call(&self, call: &osclient::Call, class: Class) {
        self.view.call(call, class);
        self.meter.call(call, class);
    }
}

async fn run(args: Run) -> Result<ExitCode> {
    let scenario = scenario(&args)?;
    let cloud = Cloud::load(&Environment::of_process(), args.cloud.as_deref(), args.region.as_deref())?;
    let state = state(args.state.clone())?;
    let entropy = Entropy::system();
    let agent = agent(args.agent.as_ref())?;
    let (stop, mut hurry) = signals()?;
    let mut results = Results::new(&args, &cloud, &scenario.name, &state).await?;
    let runner = Runner {
        run: format!("{:06x}", entropy.below(1 << 24)),
        cloud,
        scenario,
        agent,
        state,
        entropy,
        next: AtomicU64::new(1),
        witness: Arc::new(Heard { view: results.view.clone(), meter: results.meter.clone() }),
        stop: stop.clone(),
    };
    let mut session = None;
    let (mut number, mut fine) = (0, true);
    while (args.forever || number < args.iterations) && !*stop.borrow() {
        number += 1;
        let begin = Instant::now();
        let iteration = runner.iteration(&mut session, number, &mut hurry).await?;
        fine &= iteration.fine();
        let shut_out = session.is_none();
        results.ended(iteration, &args)?;
        if !args.forever && number >= args.iterations {
            break;
        }
        // A cloud that lets nobody in is not hammered.
        let least = Duration::from_secs(if shut_out { 5 } else { 0 });
        let pause =
            Duration::try_from_secs_f64(args.interval).unwrap_or_default().saturating_sub(begin.elapsed());
        let mut asked = stop.clone();
        tokio::select! {
            () = tokio::time::sleep(pause.max(least)) => {}
            _ = asked.wait_for(|s| *s) => {}
        }
    }
    results.finish().await?;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What iterations are made with.
struct Runner {
    run: String,
    cloud: Cloud,
    scenario: Scenario,
    agent: Option<Vec<u8>>,
    state: PathBuf,
    entropy: Entropy,
    next: AtomicU64,
    witness: Arc<dyn Witness>,
    stop: watch::Receiver<bool>,
}

impl Runner {
    /// One iteration, whatever the cloud does: a cloud that does not let us in is a result, too.
    async fn iteration(
        &self,
        session: &mut Option<Session>,
        number: u64,
        hurry: &mut watch::Receiver<bool>,
    ) -> Result<Iteration> {
        let (begin, at) = (Instant::now(), SystemClock.now().iso_micros());
        let session = match session {
            Some(session) => session,
            None => {
                let timeout = Duration::from_secs_f64(self.scenario.call_limit);
                match Session::connect(self.cloud.clone(), Options { retries: 0, timeout }).await {
                    Ok(connected) => session.insert(connected),
                    Err(error) if error.kind == osclient::Kind::Config => return Err(error.into()),
                    Err(error) => return Ok(self.shut_out(number, at, begin, &error)),
                }
            }
        };
        let run = format!("{}-{number}", self.run);
        let journal = Journal::begin(&self.state, &Header::of(session, &run))?;
        let engine = Engine {
            session: session.clone(),
            scenario: self.scenario.clone(),
            journal,
            run: self.run.clone(),
            clock: Arc::new(SystemClock),
            entropy: self.entropy.clone(),
            hands: Arc::new(Ssh),
            agent: self.agent.clone(),
            keys: self.state.join("keys"),
            pause: PAUSE,
            witness: self.witness.clone(),
            stop: self.stop.clone(),
            next: AtomicU64::new(self.next.load(Ordering::Relaxed)),
        };
        let iteration = tokio::select! {
            iteration = engine.iterate(number) => Some(iteration?),
            _ = hurry.wait_for(|h| *h) => None,
        };
        self.next.store(engine.next.load(Ordering::Relaxed), Ordering::Relaxed);
        let iteration = match iteration {
            Some(iteration) => iteration,
            None => {
                say("removing what was made");
                // It opens nothing that stays.
                let _ = std::fs::remove_file(engine.key_file(number));
                let left =
                    cleanup::remove(session, &engine.journal, &engine.journal.left(), Pace::default()).await;
                let left = left
                    .into_iter()
                    .map(|(e, why)| format!("{} {}: {why}", e.thing.name(), e.name))
                    .collect();
                Iteration { stopped: true, left, ..self.empty(number, at, begin) }
            }
        };
        if !engine.journal.finish()? {
            say(&format!("something is left in the cloud: allod probe cleanup --cloud {}", self.cloud.name));
        }
        Ok(iteration)
    }

    fn empty(&self, number: u64, at: String, begin: Instant) -> Iteration {
        Iteration {
            number,
            run: self.run.clone(),
            cloud: self.cloud.name.clone(),
            region: self.cloud.region.clone(),
            scenario: self.scenario.name.clone(),
            at,
            us: micros(begin),
            stopped: false,
            calls: 0,
            failed_calls: 0,
            records: Vec::new(),
            left: Vec::new(),
        }
    }

    /// An iteration that ended at the login.
    fn shut_out(&self, number: u64, at: String, begin: Instant, error: &osclient::Error) -> Iteration {
        let mut iteration = Iteration { calls: 1, failed_calls: 1, ..self.empty(number, at.clone(), begin) };
        let record = Record {
            seq: self.next.fetch_add(1, Ordering::Relaxed),
            iteration: number,
            step: "login".into(),
            op: "token.issue".into(),
            service: "identity".into(),
            name: None,
            id: None,
            at,
            us: iteration.us,
            class: Class::of_error(error),
            message: Some(error.to_string()),
            request_id: error.request_id.clone(),
            attempts: Vec::new(),
            looks: 0,
            place: Place::default(),
            cause: None,
            measures: Vec::new(),
        };
        self.witness.record(&record);
        iteration.records.push(record);
        iteration
    }
}

/// An iteration, for the terminal.
fn told(iteration: &Iteration, more: &Told) -> String {
    let mut out = String::new();
    for record in iteration.failures() {
        out.push_str(&format!("  {}\n", record.told()));
    }
    for left in &iteration.left {
        out.push_str(&format!("  left behind: {left}\n"));
    }
    for suspect in &more.suspects {
        out.push_str(&format!("  host {} is worse than its peers: {}\n", suspect.host, suspect.told));
    }
    for unusual in &more.unusual {
        let Unusual { at, now, usual, .. } = unusual;
        out.push_str(&format!("  {at} is slower than usual: {now:.3}, usually {usual:.3}\n"));
    }
    let verdict = match (iteration.stopped, iteration.fine()) {
        (true, _) => "stopped",
        (_, true) => "ok",
        _ => "FAILED",
    };
    out.push_str(&format!(
        "{} {} iteration {}: {verdict}; {} operations, {} failed, {} skipped; {} calls, {} failed; {:.1} s\n",
        iteration.cloud,
        iteration.scenario,
        iteration.number,
        iteration.records.len(),
        iteration.failures().count(),
        iteration.count(Class::Skipped),
        iteration.calls,
        iteration.failed_calls,
        crate::record::seconds(iteration.us),
    ));
    out
}

async fn clean(cloud: Option<&str>, dir: Option<PathBuf>, json: bool) -> Result<ExitCode> {
    let dir = state(dir)?;
    let options = Options { retries: 2, timeout: Duration::from_secs(60) };
    let cleaned = cleanup::journals(&dir, cloud, options, Pace::default()).await?;
    let left: Vec<_> = cleaned.iter().flat_map(|c| c.left.iter().map(move |(e, why)| (c, e, why))).collect();
    if json {
        let rows: Vec<_> = left
            .iter()
            .map(|(c, e, why)| {
                serde_json::json!({"cloud": c.header.cloud, "run": c.header.run, "kind": e.thing.name(),
                    "name": e.name, "id": e.id, "why": why})
            })
            .collect();
        print(&format!("{}\n", serde_json::Value::Array(rows)));
    } else if cleaned.is_empty() {
        print(&format!("nothing to remove: no journal in {}\n", dir.display()));
    } else {
        for Cleaned { header, removed, left } in &cleaned {
            print(&format!(
                "run {} in {}: {removed} removed, {} left\n",
                header.run,
                header.cloud,
                left.len()
            ));
        }
        for (_, entry, why) in &left {
            print(&format!("  {} {} is left behind: {why}\n", entry.thing.name(), entry.name));
        }
    }
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn scenarios(name: Option<&str>) -> Result<ExitCode> {
    match name {
        Some(name) => {
            Scenario::builtin(name)?;
            print(BUILTIN.iter().find(|(n, _)| *n == name).map_or("", |(_, text)| text));
        }
        None => {
            for (name, _) in BUILTIN {
                print(&format!("{name:<10} {}\n", Scenario::builtin(name)?.about));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
