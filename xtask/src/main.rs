//! `cargo xtask tidy`: checks that no compiler makes.
//!
//! Arrows between crates against the table in `ARCHITECTURE.md`, SQL outside `store`, size signs, module comments,
//! forbidden leftovers. Run by `make test`. Errors fail; size signs are printed as warnings.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Files that read dumps of other programs' databases: the SQL in them is never sent to one.
const READS_DUMPS: &[(&str, &str)] = &[("identity", "src/import/dump.rs")];
/// Signs, not laws: a room larger than this wants a wall.
const CRATE_LINES: usize = 10_000;
const FILE_LINES: usize = 1_000;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => tidy(),
        _ => {
            eprintln!("usage: cargo xtask tidy");
            ExitCode::from(2)
        }
    }
}

fn tidy() -> ExitCode {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut findings = Findings::default();
    match arrows(&root) {
        Ok(allowed) => check_crates(&root, &allowed, &mut findings),
        Err(text) => findings.errors.push(text),
    }
    for text in &findings.signs {
        println!("sign: {text}");
    }
    for text in &findings.errors {
        println!("error: {text}");
    }
    println!("tidy: {} errors, {} signs", findings.errors.len(), findings.signs.len());
    if findings.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Default)]
struct Findings {
    errors: Vec<String>,
    signs: Vec<String>,
}

/// The table of `ARCHITECTURE.md`: crate → crates it may depend on; `None` = everything.
fn arrows(root: &Path) -> Result<BTreeMap<String, Option<BTreeSet<String>>>, String> {
    let text =
        fs::read_to_string(root.join("ARCHITECTURE.md")).map_err(|e| format!("ARCHITECTURE.md: {e}"))?;
    let mut allowed = BTreeMap::new();
    for line in text.lines().filter(|l| l.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let [name, _, may] = cells.as_slice() else {
            return Err(format!("ARCHITECTURE.md: not a row of the crate table: {line}"));
        };
        let names =
            |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
        let may = if may.contains("everything") { None } else { Some(names(may)) };
        allowed.extend(names(name).into_iter().map(|n| (n, may.clone())));
    }
    if allowed.is_empty() { Err("ARCHITECTURE.md: no crate table found".into()) } else { Ok(allowed) }
}

fn check_crates(root: &Path, allowed: &BTreeMap<String, Option<BTreeSet<String>>>, findings: &mut Findings) {
    let mut dirs: Vec<PathBuf> = fs::read_dir(root.join("crates"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.join("Cargo.toml").is_file())
        .collect();
    dirs.sort();
    for dir in dirs {
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        match allowed.get(&name) {
            None => findings.errors.push(format!("ARCHITECTURE.md does not name the crate `{name}`")),
            Some(Some(may)) => check_manifest(&dir, &name, may, allowed, findings),
            Some(None) => {}
        }
        check_sources(&dir, &name, findings);
    }
}

fn check_manifest(
    dir: &Path,
    name: &str,
    may: &BTreeSet<String>,
    ours: &BTreeMap<String, Option<BTreeSet<String>>>,
    findings: &mut Findings,
) {
    let text = fs::read_to_string(dir.join("Cargo.toml")).unwrap_or_default();
    let section = text.split("\n[dependencies]").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    for line in section.lines() {
        let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
        if ours.contains_key(dependency) && !may.contains(dependency) {
            findings.errors.push(format!("`{name}` may not depend on `{dependency}` (see ARCHITECTURE.md)"));
        }
    }
}

fn check_sources(dir: &Path, name: &str, findings: &mut Findings) {
    let mut total = 0;
    for file in sources(&dir.join("src")) {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let lines = text.lines().count();
        let shown = file.strip_prefix(dir).unwrap_or(&file).display().to_string();
        total += lines;
        if lines > FILE_LINES {
            findings.signs.push(format!("{name}/{shown} has {lines} lines"));
        }
        if shown == "src/lib.rs" && !text.starts_with("//!") {
            findings.errors.push(format!("{name}/{shown} does not open with a module comment"));
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if code.starts_with("//") {
                continue;
            }
            if name != "store"
                && !READS_DUMPS.contains(&(name, shown.as_str()))
                && ["\"SELECT ", "\"INSERT INTO ", "\"UPDATE ", "\"DELETE FROM ", "\"CREATE TABLE "]
                    .iter()
                    .any(|s| line.contains(s))
            {
                findings.errors.push(format!("{name}/{shown}:{}: SQL outside store", number + 1));
            }
            if ["todo!(", "unimplemented!("].iter().any(|s| code.contains(s)) {
                findings.errors.push(format!("{name}/{shown}:{}: unfinished code", number + 1));
            }
        }
    }
    if total > CRATE_LINES {
        findings.signs.push(format!("crate `{name}` has {total} lines"));
    }
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()) {
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}
