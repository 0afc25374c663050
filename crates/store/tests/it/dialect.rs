//! The operator guide names the SQL that is used, for those who want to judge an engine that speaks PostgreSQL's dialect.

use std::collections::BTreeSet;
use std::path::Path;

/// Every engine has these.
const COMMON: &str = "SELECT FROM WHERE AND OR NOT IN IS NULL AS ON BY ORDER GROUP ASC DESC LIMIT LIKE ESCAPE COUNT SUM MAX \
    CAST COALESCE INSERT INTO VALUES UPDATE SET DELETE CREATE ALTER DROP TABLE INDEX UNIQUE COLUMN ADD IF EXISTS PRIMARY KEY \
    DEFAULT TEXT JOIN BEGIN COMMIT ROLLBACK RELEASE TO DO LOCAL READ ONLY WRITE";
/// SQLite's, beside another word for PostgreSQL; and words of messages.
const OTHERS: &str = "INTEGER AUTOINCREMENT URL TLS NUL BODY PAGE FILE CA JSON SQL UTF8 ID pg_dump";

/// What stands in the string literals of a source text.
fn literals(source: &str) -> String {
    let (mut found, mut inside, mut escaped) = (String::new(), false, false);
    let lines = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    for c in lines.flat_map(|line| line.chars().chain(['\n'])) {
        match (inside, c) {
            (_, _) if std::mem::take(&mut escaped) => {}
            (true, '\\') => escaped = true,
            (_, '"') => {
                inside = !inside;
                found.push(' ');
            }
            (true, c) => found.push(c),
            _ => {}
        }
    }
    found
}

/// Keywords, and names that are PostgreSQL's own.
fn words(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let keyword = |w: &str| w.len() > 1 && w.bytes().all(|b| b.is_ascii_uppercase());
    let own = |w: &str| ["pg_", "jsonb_", "information_"].iter().any(|p| w.starts_with(p));
    words.filter(|w| keyword(w) || own(w)).map(str::to_owned).collect()
}

#[test]
fn the_guide_names_all_sql_that_is_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut used = BTreeSet::new();
    for entry in std::fs::read_dir(root.join("src")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "sqlite.rs" {
            used.extend(words(&literals(&std::fs::read_to_string(path).unwrap())));
        }
    }
    for expected in ["SERIALIZABLE", "RETURNING", "pg_try_advisory_lock"] {
        assert!(used.contains(expected), "{expected}: {used:?}");
    }
    let guide = std::fs::read_to_string(root.join("../../docs/operator-guide.md")).unwrap();
    let (_, section) = guide.split_once("**Which SQL is used**").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let told = words(section);
    let plain: BTreeSet<&str> = COMMON.split_whitespace().chain(OTHERS.split_whitespace()).collect();
    let missing: Vec<&String> =
        used.iter().filter(|w| !plain.contains(w.as_str()) && !told.contains(*w)).collect();
    assert!(missing.is_empty(), "docs/operator-guide.md, \"Which SQL is used\", does not name {missing:?}");
}
