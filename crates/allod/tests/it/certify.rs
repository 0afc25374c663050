//! `allod certify` as an operator runs it: a report that is signed, a credential of it, and what becomes of both when a byte is
//! another.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::World;

const CASES: &str = "scs-0123-service-|scs-0114-syntax-check";

fn certify(world: &World, dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_allod"));
    for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("OS_")) {
        command.env_remove(name);
    }
    command.arg("certify").args(arguments).current_dir(dir);
    command.env("OS_CLIENT_CONFIG_FILE", world.state().join("clouds.yaml")).output().unwrap()
}

fn keygen(dir: &Path, arguments: &[&str], input: Option<&str>) -> bool {
    let input = input.map_or_else(Stdio::null, |file| std::fs::File::open(dir.join(file)).unwrap().into());
    let mut command = Command::new("ssh-keygen");
    command.args(arguments).current_dir(dir).stdin(input).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap().success()
}

/// The same file with one byte another, beside it: `NAME.other`.
fn changed(dir: &Path, name: &str, at: usize) -> String {
    let mut bytes = std::fs::read(dir.join(name)).unwrap();
    // Still text: a letter for a letter.
    bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
    let other = format!("{name}.other");
    std::fs::write(dir.join(&other), bytes).unwrap();
    other
}

#[test]
fn a_report_and_its_credential_are_believed_as_they_were_written() {
    let world = World::up("");
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    for name in ["reporter", "issuer", "stranger"] {
        assert!(keygen(dir, &["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", name], None));
    }
    let run = ["--cloud", "allod", "--subject", "my-cloud", "--tests", CASES, "--journals", "journals"];
    let kept = ["--output", "out", "--sign", "reporter", "--credential", "issuer"];
    let made = certify(&world, dir, &[&run[..], &kept].concat());
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.code().is_some_and(|c| c < 2), "{told}");
    let report: Value = serde_json::from_slice(&std::fs::read(dir.join("out/report.json")).unwrap()).unwrap();
    let results = report["results"].as_array().unwrap();
    assert!(results.len() > 3, "{report}");

    // The signature, for OpenSSH.
    let public = std::fs::read_to_string(dir.join("reporter.pub")).unwrap();
    std::fs::write(dir.join("signers"), format!("mail@csp.eu {public}")).unwrap();
    let believed = |text: &str| {
        let arguments = ["-Y", "verify", "-f", "signers", "-I", "mail@csp.eu", "-n", "report", "-s"];
        keygen(dir, &[&arguments[..], &["out/report.yaml.sig"]].concat(), Some(text))
    };
    assert!(believed("out/report.yaml"));
    let yaml = std::fs::read_to_string(dir.join("out/report.yaml")).unwrap();
    let other = changed(dir, "out/report.yaml", yaml.find("my-cloud").unwrap());
    assert!(!believed(&other));

    // The credential, for us.
    let verify = |arguments: &[&str]| certify(&world, dir, &[&["verify"], arguments].concat());
    let good = verify(&["out/report.jwt", "--report", "out/report.yaml"]);
    assert_eq!(good.status.code(), Some(0), "{}", String::from_utf8_lossy(&good.stderr));
    let mut values = serde_json::Deserializer::from_slice(&good.stdout).into_iter::<Value>();
    let credential = values.next().unwrap().unwrap();
    let subject = &credential["credentialSubject"];
    assert_eq!(subject["name"], "my-cloud");
    for result in results {
        let value = match result["verdict"].as_str().unwrap() {
            "PASS" => 1,
            "FAIL" => -1,
            _ => 0,
        };
        assert_eq!(subject["results"][result["id"].as_str().unwrap()], value, "{result}");
    }
    let issuer = credential["issuer"].as_str().unwrap();
    assert!(issuer.starts_with("did:key:z6Mk"), "{issuer}");
    let whole = ["out/report.jwt", "--issuer", issuer, "--report", "out/report.yaml"];
    assert!(verify(&whole).status.success());
    let refused = |arguments: &[&str], why: &str| {
        let output = verify(arguments);
        let text = [output.stdout.as_slice(), &output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(!output.status.success() && text.contains(why), "{arguments:?}: {text}");
    };
    refused(&["out/report.jwt", "--report", &other], "it belongs to another report");
    refused(&["out/report.jwt", "--issuer", "did:key:z6MkSomebodyElse"], "issued by");
    // Head, claims and signature: no byte of them may be another.
    let token = std::fs::read_to_string(dir.join("out/report.jwt")).unwrap();
    let dots: Vec<usize> = token.match_indices('.').map(|(at, _)| at).collect();
    for at in [3, dots[0] + 40, (dots[0] + dots[1]) / 2, dots[1] + 10] {
        refused(&[&changed(dir, "out/report.jwt", at)], "");
    }
    // Whoever makes one of the same report with another key is another issuer.
    let kept = ["--output", "again", "--credential", "stranger"];
    assert!(certify(&world, dir, &[&run[..], &kept].concat()).status.code().is_some_and(|c| c < 2));
    refused(&["again/report.jwt", "--issuer", issuer], "issued by did:key:");
    // A key behind a passphrase is told before the cloud is asked anything.
    assert!(keygen(dir, &["-q", "-t", "ed25519", "-N", "secret words", "-f", "locked"], None));
    let kept = ["--output", "never", "--credential", "locked"];
    let output = certify(&world, dir, &[&run[..], &kept].concat());
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!dir.join("never").exists());
}
