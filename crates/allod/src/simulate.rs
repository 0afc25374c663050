//! `allod simulate`: a fleet in virtual time, checked all the time (`docs/simulate.md`).

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use fleet::fault::Script;
use fleet::profile::{DEFAULT, Profile};
use fleet::{Options, Outcome, Sample};
use parking_lot::Mutex;

/// What to simulate.
#[derive(clap::Args)]
pub struct Simulate {
    /// Hosts.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    hosts: u64,
    /// The fleet: hosts, links, tenants, how often things break (TOML; --print-profile shows the default).
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// The seed; the same seed replays the same run exactly.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Run so many seeds, beginning with --seed.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Runs at the same time.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: u64,
    /// Virtual minutes of work; the time until everything is at rest comes on top.
    #[arg(long, value_name = "M", default_value_t = 60)]
    minutes: u64,
    /// Servers that tenants keep, for each host; instead of the profile's.
    #[arg(long, value_name = "N")]
    servers_per_host: Option<u64>,
    /// What breaks (TOML), instead of what is drawn from the seed.
    #[arg(long, value_name = "FILE", conflicts_with = "no_faults")]
    faults: Option<PathBuf>,
    /// Nothing breaks.
    #[arg(long)]
    no_faults: bool,
    /// Guests go on without a lease: to see what fencing prevents.
    #[arg(long)]
    without_fencing: bool,
    /// Virtual seconds between two looks of the checker.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    check_every: u64,
    /// Write the result as JSON; with several seeds, `{seed}` in the name is replaced.
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Write a page with charts; with several seeds, `{seed}` in the name is replaced.
    #[arg(long, value_name = "FILE")]
    report: Option<String>,
    /// Write every event; with several seeds, `{seed}` in the name is replaced.
    #[arg(long, value_name = "FILE")]
    trace: Option<String>,
    /// Show no progress.
    #[arg(long)]
    quiet: bool,
    /// Print the default profile and exit.
    #[arg(long)]
    print_profile: bool,
}

/// Runs; fails where a run did or where something did not hold.
pub fn run(args: &Simulate) -> Result<ExitCode> {
    if args.print_profile {
        print!("{DEFAULT}");
        return Ok(ExitCode::SUCCESS);
    }
    let text = match &args.profile {
        Some(path) => read(path)?,
        None => DEFAULT.to_owned(),
    };
    let mut profile = Profile::parse(&text)?;
    if let Some(servers) = args.servers_per_host {
        profile.workload.servers_per_host = servers;
    }
    let script = match &args.faults {
        Some(path) => Some(Script::parse(&read(path)?, args.hosts)?),
        None => args.no_faults.then(Script::default),
    };
    let next = AtomicU64::new(0);
    let unsound = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let worker = || -> Result<()> {
            loop {
                let n = next.fetch_add(1, Ordering::SeqCst);
                if n >= args.seeds {
                    return Ok(());
                }
                let outcome = one(args, &profile, script.clone(), args.seed.wrapping_add(n))?;
                if !outcome.sound() {
                    unsound.lock().push(outcome.seed);
                }
            }
        };
        let workers: Vec<_> = (0..args.jobs.min(args.seeds)).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a run panicked"))??;
        }
        anyhow::Ok(())
    })?;
    let mut unsound = unsound.into_inner();
    unsound.sort_unstable();
    if args.seeds > 1 {
        println!("{} seeds, {} with violations {unsound:?}", args.seeds, unsound.len());
    }
    Ok(if unsound.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(path: &PathBuf) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn create(name: &str, seed: u64) -> Result<File> {
    let name = name.replace("{seed}", &seed.to_string());
    File::create(&name).with_context(|| format!("cannot write {name}"))
}

fn one(args: &Simulate, profile: &Profile, script: Option<Script>, seed: u64) -> Result<Outcome> {
    let trace = args.trace.as_ref().map(|name| create(name, seed)).transpose()?;
    let shown = !args.quiet;
    let progress = move |sample: &Sample| show(seed, sample);
    let options = Options {
        hosts: args.hosts,
        profile: profile.clone(),
        seed,
        minutes: args.minutes,
        script,
        fenced: !args.without_fencing,
        check_every: args.check_every,
        trace: trace.map(|file| Box::new(BufWriter::new(file)) as Box<dyn Write + Send>),
        progress: shown.then(|| Box::new(progress) as fleet::run::Progress),
    };
    let outcome = fleet::simulate(options)?;
    if shown && std::io::stderr().is_terminal() {
        eprintln!();
    }
    print!("{}", outcome.summary());
    if let Some(name) = &args.json {
        serde_json::to_writer(BufWriter::new(create(name, seed)?), &outcome)?;
    }
    if let Some(name) = &args.report {
        create(name, seed)?.write_all(outcome.page().as_bytes())?;
    }
    Ok(outcome)
}

/// One line: over the one before on a terminal, under it elsewhere.
fn show(seed: u64, sample: &Sample) {
    let servers: u64 = sample.servers.values().sum();
    let active = sample.servers.get("active").copied().unwrap_or(0);
    let line = format!(
        "seed {seed}: {:4} min, {servers} servers, {active} active, {} open, {} hosts well, {} violations, {:.0} s",
        sample.at / 60,
        sample.unconverged,
        sample.hosts_well,
        sample.violations,
        sample.wall_s
    );
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[2K{line}");
    } else {
        eprintln!("{line}");
    }
}
