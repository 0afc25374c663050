//! `allod certify`: arguments, and what is printed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use attest::SigningKey;
use base::{Clock, Entropy, SystemClock};
use clap::{Args, Subcommand};
use osclient::cleanup::{self, Cleaned, Pace};
use osclient::journal::state_dir;
use osclient::{Cloud, Environment, Options, Session, Trust, http_client};

use crate::checks::{Level, Verdict};
use crate::facts::{Facts, Settings};
use crate::journal::{Header, Journal};
use crate::report::Report;
use crate::rules::{Kind, Scope, TestCase};
use crate::run::{self, CaseResult, Choice};
use crate::{credential, journal, kube, manual, sign};

/// What stutters is not tried again: that is for the verdict to say. The time limit of one request is upstream's.
const OPTIONS: Options = Options { retries: 0, timeout: Duration::from_secs(32) };
/// How long a volume, backup or restore may take: the sum of upstream's waits.
const STORAGE_SECONDS: u64 = 110;

/// Judge a cloud by the rules of Sovereign Cloud Stack.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Certify {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Args)]
struct CloudArgs {
    /// Name of the cloud in clouds.yaml [default: OS_CLOUD, OS_* or the only one].
    #[arg(long, value_name = "NAME")]
    cloud: Option<String>,
    /// Its region [default: the first].
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    cloud: CloudArgs,
    /// What to judge.
    #[arg(long, value_enum, default_value = "iaas")]
    scope: Kind,
    /// Only this version of the scope [default: all that hold today].
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// Rules to judge by, instead of those built in (YAML).
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Versions as they hold on that day [default: today].
    #[arg(long, value_name = "YYYY-MM-DD")]
    date: Option<String>,
    /// Only cases whose id begins with a match.
    #[arg(long, value_name = "REGEX")]
    tests: Option<String>,
    /// Only cases of these sections.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    sections: Vec<String>,
    /// Recommended cases, too.
    #[arg(long)]
    recommended: bool,
    /// What the texts demand and upstream does not check, too (kept apart).
    #[arg(long)]
    beyond: bool,
    /// Boot no guest: the two cases about entropy stay open.
    #[arg(long)]
    no_guest: bool,
    /// Resolver of the guest, instead of the rules'.
    #[arg(long, value_name = "ADDRESS")]
    guest_dns: Option<String>,
    /// Package mirror of the guest, instead of the rules'; what is for security is beside it (debian-security).
    #[arg(long, value_name = "URL")]
    guest_mirror: Option<String>,
    /// How long a volume, a backup or a restore may take.
    #[arg(long, value_name = "N", default_value_t = STORAGE_SECONDS)]
    storage_seconds: u64,
    /// Kubeconfig of the cluster (scope kaas).
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How conformance tests run (scope kaas).
    #[arg(long, value_name = "MODE", default_value = "parallel", value_parser = ["parallel", "serial", "dry"])]
    execution_mode: String,
    /// Releases of Kubernetes as GitHub lists them: URL or file.
    #[arg(long, value_name = "PLACE")]
    kubernetes_releases: Option<String>,
    /// Vulnerabilities of Kubernetes as its site lists them: URL or file.
    #[arg(long, value_name = "PLACE")]
    kubernetes_vulnerabilities: Option<String>,
    /// Where one of them is explained: URL or directory.
    #[arg(long, value_name = "PLACE")]
    kubernetes_records: Option<String>,
    /// Under which name the cloud is reported [default: the cloud's].
    #[arg(long, value_name = "NAME")]
    subject: Option<String>,
    /// Questionnaire, filled in (`allod certify questionnaire`).
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Directory of the reports: report.yaml, report.json, report.html.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Sign report.yaml with this SSH key (or a public key whose private half an agent holds).
    #[arg(long, value_name = "KEY", requires = "output")]
    sign: Option<PathBuf>,
    /// Write the report as a verifiable credential, too (report.jwt), issued with this Ed25519 key (OpenSSH without a
    /// passphrase, or PKCS#8 in PEM).
    #[arg(long, value_name = "KEY", requires = "output")]
    credential: Option<PathBuf>,
    /// Print the whole report as JSON instead.
    #[arg(long)]
    json: bool,
    /// Where journals are kept [default: ~/.local/state/allod/certify].
    #[arg(long, value_name = "DIR")]
    journals: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Remove what killed runs left in the cloud.
    Cleanup {
        #[command(flatten)]
        cloud: CloudArgs,
        /// Where journals are kept [default: ~/.local/state/allod/certify].
        #[arg(long, value_name = "DIR")]
        journals: Option<PathBuf>,
    },
    /// Send a signed report to a compliance monitor.
    Upload {
        /// The report; its signature is beside it (report.yaml.sig).
        report: PathBuf,
        /// The monitor.
        #[arg(long, value_name = "URL", default_value = "https://compliance.sovereignit.cloud/")]
        url: String,
        /// Account there.
        #[arg(long, value_name = "NAME")]
        account: String,
        /// File with the account's password.
        #[arg(long, value_name = "FILE")]
        password_file: PathBuf,
        /// CA bundle for the monitor.
        #[arg(long, value_name = "FILE")]
        cacert: Option<PathBuf>,
    },
    /// Check a verifiable credential: a report's, or a certificate of a registry.
    Verify {
        /// The credential (report.jwt).
        credential: PathBuf,
        /// Who must have issued it (`did:key:…`): without, anybody may have.
        #[arg(long, value_name = "DID")]
        issuer: Option<String>,
        /// The report that it must belong to.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
    /// Print the questions that people have to answer.
    Questionnaire {
        /// Of which scope.
        #[arg(long, value_enum, default_value = "iaas")]
        scope: Kind,
    },
    /// Print the cases, and which versions ask for them.
    List {
        /// Of which scope.
        #[arg(long, value_enum, default_value = "iaas")]
        scope: Kind,
    },
}

impl Certify {
    /// Does it. 0: all passed; 1: something failed or aborted.
    pub async fn main(self) -> Result<ExitCode> {
        match self.command {
            None => judge(self.run).await,
            Some(Command::Cleanup { cloud, journals }) => clean(&cloud, journals).await,
            Some(Command::Upload { report, url, account, password_file, cacert }) => {
                upload(&report, &url, &account, &password_file, cacert.as_deref()).await
            }
            Some(Command::Verify { credential, issuer, report }) => {
                verify(&credential, issuer.as_deref(), report.as_deref())
            }
            Some(Command::Questionnaire { scope }) => {
                print(&manual::questionnaire(&Scope::builtin(scope)?));
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::List { scope }) => list(&Scope::builtin(scope)?),
        }
    }
}

/// Prints, and does not mind a reader that went away.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn journals(given: Option<PathBuf>) -> Result<PathBuf> {
    given.or_else(|| state_dir("certify")).context("no HOME: --journals DIR")
}

async fn login(args: &CloudArgs) -> Result<Session> {
    let cloud = Cloud::load(&Environment::of_process(), args.cloud.as_deref(), args.region.as_deref())?;
    Ok(Session::connect(cloud, OPTIONS).await?)
}

/// What a run came to.
struct Judged {
    subject: String,
    results: Vec<CaseResult>,
    beyond: Vec<CaseResult>,
    calls: usize,
    assignment: Vec<(String, String)>,
}

async fn judge(args: Run) -> Result<ExitCode> {
    let clock = SystemClock;
    let begin = Instant::now();
    let at = clock.now();
    let scope = match &args.rules {
        Some(path) => {
            Scope::parse(&std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?)?
        }
        None => Scope::builtin(args.scope)?,
    };
    let date = args.date.clone().unwrap_or_else(|| at.iso_seconds().chars().take(10).collect());
    // A key that cannot be read is told before the cloud is asked anything.
    let issuer = args.credential.as_deref().map(key).transpose()?;
    let choice = Choice {
        versions: Choice::versions(&scope, &date, args.version.as_deref())?,
        tests: args.tests.clone(),
        sections: args.sections.clone(),
        recommended: args.recommended,
        no_guest: args.no_guest,
    };
    let cases = choice.cases(&scope)?;
    let beyond_rules = if args.beyond { Scope::beyond(args.scope)? } else { Vec::new() };
    let answered = match &args.answers {
        Some(path) => manual::judge(&scope, path)?,
        None => Vec::new(),
    };
    let judged = match args.scope {
        Kind::Iaas => iaas(&args, &scope, &cases, &beyond_rules).await?,
        Kind::Kaas => kaas(&args, &scope, &cases, &beyond_rules).await?,
    };
    let mut all = judged.results.clone();
    all.extend(answered.iter().cloned());
    let summaries = run::summaries(&scope, &choice.versions, &all);
    let entropy = Entropy::system();
    let report = Report {
        scope: &scope,
        subject: &judged.subject,
        at,
        date: &date,
        run: entropy.uuid().to_string(),
        argv: std::env::args().skip(1).collect(),
        assignment: judged.assignment,
        sections: args.sections.clone(),
        forced_version: args.version.clone(),
        forced_tests: args.tests.clone(),
        results: &judged.results,
        manual: &answered,
        beyond: &judged.beyond,
        beyond_rules: &beyond_rules,
        summaries: &summaries,
        calls: judged.calls,
        millis: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    if let Some(dir) = &args.output {
        write(&report, dir, &entropy, args.sign.as_deref(), issuer.as_ref())?;
    }
    if args.json {
        print(&format!("{:#}\n", report.json()));
    } else {
        print(&told(&report));
    }
    Ok(if report.fine() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn key(path: &Path) -> Result<SigningKey> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    SigningKey::read(&text).with_context(|| format!("{}", path.display()))
}

fn write(
    report: &Report<'_>,
    dir: &Path,
    entropy: &Entropy,
    key: Option<&Path>,
    issuer: Option<&SigningKey>,
) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
    let file = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
        anyhow::Ok(path)
    };
    let text = report.yaml(|| entropy.uuid().to_string());
    if let Some(issuer) = issuer {
        file("report.jwt", credential::of_report(issuer, report, &text))?;
    }
    let yaml = file("report.yaml", text)?;
    file("report.json", format!("{:#}\n", report.json()))?;
    file("report.html", report.html())?;
    if let Some(key) = key {
        sign::sign(key, &yaml)?;
    }
    Ok(())
}

/// The end of a run, for the terminal.
fn told(report: &Report<'_>) -> String {
    let mut out = String::new();
    for result in report.results.iter().chain(report.manual).filter(|r| r.verdict != Verdict::Pass) {
        out.push_str(&format!("{:<5} {}: {}\n", result.verdict.name(), result.id, report.title(&result.id)));
        for note in result.notes.iter().filter(|n| n.level != Level::Info) {
            out.push_str(&format!("      {}\n", note.text));
        }
    }
    for (index, result) in report.beyond.iter().enumerate() {
        if index == 0 {
            out.push_str("Beyond the standard's checks:\n");
        }
        out.push_str(&format!("{:<5} {}: {}\n", result.verdict.name(), result.id, report.title(&result.id)));
        for note in result.notes.iter().filter(|n| n.level != Level::Info && result.verdict != Verdict::Pass)
        {
            out.push_str(&format!("      {}\n", note.text));
        }
    }
    for s in report.summaries {
        let mut counts = format!("{} passed", s.passed.len());
        for (list, word) in [(&s.failed, "failed"), (&s.aborted, "aborted"), (&s.missing, "not run")] {
            if !list.is_empty() {
                counts.push_str(&format!(", {} {word}", list.len()));
            }
        }
        let (subject, name) = (report.subject, &report.scope.name);
        out.push_str(&format!(
            "{subject} {name} {} ({}), {}: {} ({counts})\n",
            s.version, s.validity, s.target, s.verdict
        ));
    }
    let seconds = Duration::from_millis(report.millis).as_secs_f64();
    out.push_str(&format!("{} cases, {} calls, {seconds:.1} s\n", report.results.len(), report.calls));
    out
}

/// Tells of each case as it ends, on stderr.
fn progress(count: usize) -> impl FnMut(&CaseResult) {
    let mut ended = 0;
    move |result| {
        ended += 1;
        let seconds = Duration::from_millis(result.millis).as_secs_f64();
        let _ = writeln!(
            std::io::stderr(),
            "[{ended:>3}/{count}] {:<5} {} ({seconds:.1} s)",
            result.verdict.name(),
            result.id
        );
    }
}

async fn iaas(args: &Run, scope: &Scope, cases: &[&TestCase], beyond: &[TestCase]) -> Result<Judged> {
    let session = login(&args.cloud).await?;
    let dir = journals(args.journals.clone())?;
    let run = Entropy::system().uuid().simple().to_string().chars().take(12).collect::<String>();
    let journal = Journal::begin(&dir, &Header::of(&session, &run))?;
    let mut guest = scope.guest.clone();
    if let Some(guest) = &mut guest {
        if let Some(dns) = &args.guest_dns {
            guest.dns = vec![dns.clone()];
        }
        if let Some(mirror) = &args.guest_mirror {
            guest.lead(mirror);
        }
    }
    let settings = Settings {
        run,
        guest,
        storage_seconds: args.storage_seconds,
        poll: Duration::from_millis(250),
        output: args.output.clone().unwrap_or_default(),
    };
    let name = session.cloud().name.clone();
    let facts = Facts::new(session, Arc::new(SystemClock), settings, journal);
    let (results, more) = match run::refused(&facts.session.token().roles) {
        Some(reason) => {
            (run::aborted(cases, &reason), run::aborted(&beyond.iter().collect::<Vec<_>>(), &reason))
        }
        None => {
            let both = async {
                let results = run::run(&facts, cases, progress(cases.len())).await;
                let beyond: Vec<&TestCase> = beyond.iter().collect();
                let more = run::run(&facts, &beyond, progress(beyond.len())).await;
                (results, more)
            };
            tokio::select! {
                both = both => both,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted?;
                    let _ = writeln!(std::io::stderr(), "interrupted: removing what was made");
                    let left = facts.journal.left();
                    let told = journal::remove(&facts.session, &facts.journal, &left, facts.settings.poll).await;
                    facts.journal.finish()?;
                    bail!("interrupted {}", told.join("; "));
                }
            }
        }
    };
    if !facts.journal.finish()? {
        let _ = writeln!(
            std::io::stderr(),
            "something is left in the cloud: allod certify cleanup --cloud {name}"
        );
    }
    Ok(Judged {
        subject: args.subject.clone().unwrap_or_else(|| name.clone()),
        results,
        beyond: more,
        calls: facts.session.calls().len(),
        assignment: vec![("os_cloud".into(), name)],
    })
}

async fn kaas(args: &Run, scope: &Scope, cases: &[&TestCase], beyond: &[TestCase]) -> Result<Judged> {
    let kubeconfig = args.kubeconfig.clone().context("--scope kaas needs --kubeconfig FILE")?;
    let subject =
        args.subject.clone().context("--scope kaas needs --subject NAME (NAME-1.36: each branch is one)")?;
    let mut sources = kube::Sources::default();
    let given = [
        (&args.kubernetes_releases, &mut sources.releases),
        (&args.kubernetes_vulnerabilities, &mut sources.vulnerabilities),
        (&args.kubernetes_records, &mut sources.records),
    ];
    for (given, place) in given {
        if let Some(given) = given {
            place.clone_from(given);
        }
    }
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from("."));
    let cluster = kube::Cluster {
        kubeconfig: kubeconfig.clone(),
        sonobuoy: "sonobuoy".into(),
        mode: args.execution_mode.clone(),
        output: output.clone(),
        sources,
        now: SystemClock.now(),
    };
    let results = kube::run(&cluster, scope, cases, progress(cases.len())).await;
    let beyond: Vec<&TestCase> = beyond.iter().collect();
    let more = kube::run(&cluster, scope, &beyond, progress(beyond.len())).await;
    Ok(Judged {
        subject,
        results,
        beyond: more,
        calls: 0,
        assignment: vec![
            ("execution_mode".into(), args.execution_mode.clone()),
            ("subject_root".into(), output.display().to_string()),
            ("kubeconfig".into(), kubeconfig.display().to_string()),
        ],
    })
}

async fn clean(args: &CloudArgs, dir: Option<PathBuf>) -> Result<ExitCode> {
    let dir = journals(dir)?;
    let cleaned = cleanup::journals(&dir, args.cloud.as_deref(), OPTIONS, Pace::default()).await?;
    if cleaned.is_empty() {
        print(&format!("nothing to remove: no journal in {}\n", dir.display()));
    }
    for Cleaned { header, removed, left } in &cleaned {
        print(&format!("run {} in {}: {removed} removed, {} left\n", header.run, header.cloud, left.len()));
        for (entry, why) in left {
            print(&format!("  {} {} is left behind: {why}\n", entry.thing.name(), entry.name));
        }
    }
    Ok(if cleaned.iter().all(|c| c.left.is_empty()) { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

async fn upload(
    report: &Path,
    url: &str,
    account: &str,
    password: &Path,
    cacert: Option<&Path>,
) -> Result<ExitCode> {
    let body = sign::envelope(report)?;
    let password = std::fs::read_to_string(password).with_context(|| format!("{}", password.display()))?;
    let ca = cacert.map(std::fs::read).transpose().context("--cacert")?;
    let client = http_client(&Trust { verify: true, ca, identity: None }, Duration::from_secs(60))?;
    let target = format!("{}/reports", url.trim_end_matches('/'));
    let request = client.post(&target).basic_auth(account, Some(password.trim_end())).body(body);
    let response = request.header("content-type", "application/x-signed-yaml").send().await;
    let response = response.with_context(|| format!("POST {target}"))?;
    let status = response.status();
    if !status.is_success() {
        let reason = match status.as_u16() {
            401 => "the monitor refuses: account, password, signature or subject",
            409 => "the monitor has this report already",
            _ => "the monitor refuses",
        };
        let told: String = response.text().await.unwrap_or_default().chars().take(300).collect();
        bail!("POST {target}: {status}: {reason} {told}");
    }
    print(&format!("{} is with {url}\n", report.display()));
    Ok(ExitCode::SUCCESS)
}

/// 0: its signature is right and nothing speaks against it; 1: something does.
fn verify(file: &Path, issuer: Option<&str>, report: Option<&Path>) -> Result<ExitCode> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("{}", path.display()));
    let found = attest::credential::verify(&read(file)?)?;
    let report = report.map(read).transpose()?;
    let wrong = credential::against(&found, issuer, report.as_deref(), SystemClock.now());
    print(&format!("{:#}\n", serde_json::Value::Object(found.clone())));
    if let Some(list) = found.get("credentialStatus").and_then(|s| s.get("statusListCredential")) {
        print(&format!("whether it is revoked is told by {list}\n"));
    }
    for why in &wrong {
        print(&format!("not good: {why}\n"));
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn list(scope: &Scope) -> Result<ExitCode> {
    for case in &scope.testcases {
        let asks = |v: &&crate::rules::Version| scope.targets(v).values().flatten().any(|id| *id == case.id);
        let versions: Vec<_> = scope.versions.iter().filter(asks).map(|v| v.version.as_str()).collect();
        let manual = if case.check.is_manual() { " (manual)" } else { "" };
        print(&format!("{:<34} {:<14} {}{manual}\n", case.id, versions.join(","), case.title));
    }
    Ok(ExitCode::SUCCESS)
}
