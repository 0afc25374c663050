//! The program itself, with its arguments, its exit code and its files: this test binary again, as a process of its own.

use std::path::Path;
use std::process::{ExitCode, Output, Stdio};
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::stub::{Fault, Stub, World};

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    probe: probe::cli::Probe,
}

const ARGUMENTS: &str = "ALLOD_TEST_PROBE_ARGUMENTS";

/// What the others start.
#[test]
#[ignore = "only as a child of the other tests"]
fn as_the_program() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    let arguments: Vec<String> = serde_json::from_str(&arguments).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The test runner began a line.
    println!();
    let program = Program::parse_from(["probe".to_owned()].into_iter().chain(arguments));
    let ended = tokio::runtime::Runtime::new().unwrap().block_on(program.probe.main());
    std::process::exit(match ended {
        Ok(code) if code == ExitCode::SUCCESS => 0,
        Ok(_) => 1,
        Err(error) => {
            eprintln!("{error:#}");
            2
        }
    });
}

fn strings(arguments: &[&str]) -> String {
    json!(arguments).to_string()
}

/// A state directory with the cloud's configuration beside it.
struct Place(tempfile::TempDir);

impl Place {
    fn new(stub: &Stub) -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        let auth = json!({"auth_url": format!("{}/identity/v3", stub.base), "username": "u", "password": "p",
            "project_name": "p", "user_domain_name": "Default", "project_domain_name": "Default"});
        let clouds = json!({"clouds": {"stub": {"auth": auth, "verify": false}}});
        std::fs::write(place.path("clouds.yaml"), clouds.to_string()).unwrap();
        std::fs::create_dir(place.path("state")).unwrap();
        place
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(["--ignored", "--exact", "program::as_the_program", "--nocapture"]);
        self.dress(&mut command, arguments);
        command
    }

    /// Environment and pipes.
    fn dress(&self, command: &mut Command, arguments: &[&str]) {
        let state = self.path("state");
        let all: Vec<&str> = arguments.iter().copied().chain(["--state", &state]).collect();
        command.env_clear().env(ARGUMENTS, strings(&all));
        command.env("OS_CLIENT_CONFIG_FILE", self.path("clouds.yaml"));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    }

    async fn run(&self, arguments: &[&str]) -> (Option<i32>, Vec<Value>, String) {
        told(self.command(&std::env::current_exe().unwrap(), arguments).output().await.unwrap())
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

/// Exit code, what it printed as JSON, and all it said.
fn told(output: Output) -> (Option<i32>, Vec<Value>, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let json = stdout.lines().filter(|l| l.starts_with(['{', '[']));
    (output.status.code(), json.map(|l| serde_json::from_str(l).unwrap()).collect(), stdout.clone() + &stderr)
}

/// D09: 256 failures are as good as one for the exit code, and are 256 in the outputs.
#[tokio::test]
async fn d09_any_number_of_failures_is_a_failure() {
    let stub = Stub::start(World::default()).await;
    stub.with(|w| w.judge = Box::new(|_, s| s.is("POST", "/broken").then_some(Fault::Status(500))));
    let place = Place::new(&stub);
    let scenario = "name: many\nsteps:\n- {id: call, count: 256, call: {service: network, op: thing.create, method: POST, path: /broken}}\n";
    std::fs::write(place.path("many.yaml"), scenario).unwrap();
    let (file, out) = (place.path("many.yaml"), place.path("out"));
    let (code, told, said) =
        place.run(&["--cloud", "stub", "--scenario", &file, "--json", "--output", &out]).await;
    assert_eq!((code, told.len()), (Some(1), 1), "{said}");
    let records = told[0]["iteration"]["records"].as_array().unwrap();
    assert_eq!(records.iter().filter(|r| r["class"] == "server").count(), 256);
    assert_eq!(told[0]["iteration"]["failed_calls"], 256);
    assert!(std::fs::read_to_string(place.path("out/report.xml")).unwrap().contains("failures=\"256\""));
    // An outage that is over is over.
    stub.with(|w| w.judge = Box::new(|_, _| None));
    let (code, _, said) = place.run(&["--cloud", "stub", "--scenario", "control"]).await;
    assert_eq!(code, Some(0), "{said}");
}

/// D31: cleanup that leaves something says so by its exit code, and names it for programs; the spool of a metrics server that
/// is away is no journal.
#[tokio::test]
async fn d31_cleanup_that_leaves_something_says_so() {
    let stub = Stub::start(World::default()).await;
    stub.with(|w| w.judge = Box::new(|_, s| s.is("DELETE", "/volumes/").then_some(Fault::Status(500))));
    let place = Place::new(&stub);
    let away = ["--influx", "http://127.0.0.1:9/write"];
    let run = ["--cloud", "stub", "--scenario", "control", "--only", "volume"];
    let (code, _, said) = place.run(&[&run[..], &away].concat()).await;
    assert!(code == Some(1) && said.contains("left behind: volume "), "{said}");
    let (code, told, said) = place.run(&["cleanup", "--json"]).await;
    let names: Vec<&Value> = told[0].as_array().unwrap().iter().map(|l| &l["name"]).collect();
    assert!(code == Some(1) && names.len() == 4 && told[0][0]["kind"] == "volume", "{said}");
    assert!(told[0][0]["id"].is_string() && told[0][0]["why"].as_str().unwrap().contains("500"), "{said}");
    stub.with(|w| w.judge = Box::new(|_, _| None));
    let (code, told, said) = place.run(&["cleanup", "--json"]).await;
    assert_eq!((code, &told[0]), (Some(0), &json!([])), "{said}");
    assert_eq!(stub.left(), Vec::<String>::new());
}

/// D36: once, so many times, for ever, and some steps only: the same records in the same files.
#[tokio::test]
async fn d36_every_mode_writes_the_same_records() {
    let stub = Stub::start(World::default()).await;
    let fields = |record: &Value| -> Vec<String> {
        let all = record.as_object().unwrap().keys().cloned();
        let always = ["seq", "iteration", "step", "op", "service", "at", "us", "class", "looks"];
        all.filter(|k| always.contains(&k.as_str())).collect()
    };
    for (mode, arguments) in [
        ("once", vec!["--scenario", "control"]),
        ("twice", vec!["--scenario", "control", "-n", "2"]),
        ("checks", vec!["--scenario", "control", "--only", "catalogue,token,lists", "-n", "2"]),
        ("forever", vec!["--scenario", "control", "--forever"]),
    ] {
        let place = Place::new(&stub);
        let (out, metrics) = (place.path("out"), place.path("metrics.prom"));
        let common = ["--cloud", "stub", "--json", "--output", &out, "--textfile", &metrics];
        let all: Vec<&str> = common.into_iter().chain(arguments).collect();
        let (code, told, said) = if mode == "forever" {
            let mut child = place.command(&std::env::current_exe().unwrap(), &all);
            let child = child.spawn().unwrap();
            // Two iterations are over when their records are there.
            let records = place.path("out/records.jsonl");
            let second = |text: String| text.contains("\"iteration\":2,");
            let waiting = async {
                while !std::fs::read_to_string(&records).is_ok_and(second) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap();
            let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            told(child.wait_with_output().await.unwrap())
        } else {
            place.run(&all).await
        };
        // The last one of those that would go on for ever was stopped.
        assert_eq!(
            code.unwrap(),
            i32::from(mode == "forever" && told.last().unwrap()["iteration"]["stopped"] == true),
            "{said}"
        );
        let printed: Vec<Value> =
            told.iter().flat_map(|t| t["iteration"]["records"].as_array().unwrap().clone()).collect();
        let written = place.lines("out/records.jsonl");
        assert_eq!(written, printed, "{mode}");
        assert!(!written.is_empty() && written.iter().all(|r| fields(r).len() == 9), "{mode}: {written:?}");
        let counted: u64 = std::fs::read_to_string(&metrics)
            .unwrap()
            .lines()
            .filter(|l| l.starts_with("allod_probe_operations_total{"))
            .map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        assert_eq!(counted, u64::try_from(written.len()).unwrap(), "{mode}");
        assert!(Path::new(&place.path("state/learned-stub-control.json")).exists(), "{mode}");
    }
    assert_eq!(stub.left(), Vec::<String>::new());
}

/// D34: nobody's rights, and a file system on which nothing but the state directory can be written. Needs root, to take it away.
#[tokio::test]
async fn d34_it_needs_no_rights_and_writes_only_its_state() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("not root: left out");
        return;
    }
    let stub = Stub::start(World::default()).await;
    let place = Place::new(&stub);
    let program = place.path("program");
    std::fs::write(&program, "").unwrap();
    let script = r#"
        mount --bind "$EXE" "$DIR/program" && mount --bind "$DIR/state" "$DIR/state" && chown 65534:65534 "$DIR/state" && chmod 711 "$DIR" || exit 90
        while read -r _ on kind _; do
            case $kind in proc|sysfs|cgroup*|devpts|mqueue) continue;; esac
            [ "$on" = "$DIR/state" ] || mount -o remount,bind,ro "$on" 2>/dev/null
        done < /proc/self/mounts
        free='setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all'
        for at in /tmp /var/tmp /dev/shm "$DIR" .; do ! $free touch "$at/written" 2>/dev/null || exit 91; done
        touch "$DIR/written" 2>/dev/null && exit 92
        exec $free "$DIR/program" --ignored --exact program::as_the_program --nocapture
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    place.dress(&mut command, &["--cloud", "stub", "--scenario", "control", "--json"]);
    command.env("EXE", std::env::current_exe().unwrap()).env("DIR", place.0.path());
    let (code, iterations, said) = told(command.output().await.unwrap());
    assert_eq!((code, iterations.len()), (Some(0), 1), "{said}");
    assert!(iterations[0]["iteration"]["records"].as_array().unwrap().len() > 40, "{said}");
    assert_eq!(stub.left(), Vec::<String>::new());
}
