//! The API compatibility tables of the book, generated from the op tables: `allod api-docs --output docs/api`. A test
//! compares them with what is checked in.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use api::{Op, OpInfo};

/// All pages by file name.
pub fn pages() -> BTreeMap<&'static str, String> {
    let mut pages = BTreeMap::new();
    pages.insert("identity.md", page("Identity", "Keystone v3", &infos(&identity::ops())));
    pages.insert("image.md", page("Image", "Glance v2", &infos(&image::ops())));
    pages.insert("placement.md", page("Placement", "Placement", &infos(&placement::ops())));
    pages.insert("compute.md", page("Compute", "Nova v2.1, microversions to 2.96", &infos(&compute::ops())));
    pages.insert("network.md", page("Network", "Neutron v2.0", &infos(&network::ops())));
    pages.insert("volume.md", page("Block storage", "Cinder v3", &infos(&volume::ops())));
    let mut index = String::from(
        "# API compatibility\n\nGenerated from the op tables (`allod api-docs`); what is not listed is not served.\n\n| service | operations |\n|---|---|\n",
    );
    for (name, text) in &pages {
        let rows = text.lines().filter(|l| l.starts_with("| `")).count();
        let title = text.lines().next().unwrap_or_default().trim_start_matches("# ");
        let _ = writeln!(index, "| [{title}]({name}) | {rows} |");
    }
    pages.insert("README.md", index);
    pages
}

fn infos<S: Send + Sync + 'static>(ops: &[Op<S>]) -> Vec<&OpInfo> {
    ops.iter().map(Op::info).collect()
}

fn page(title: &str, standard: &str, ops: &[&OpInfo]) -> String {
    let mut text = format!(
        "# {title}\n\n{standard}. `since` and `until` are microversions; `rule` is the policy's name and its default.\n\n\
         | operation | since | until | status | rule | default |\n|---|---|---|---|---|---|\n"
    );
    for op in ops {
        let until = if op.until == api::Mv::MAX { String::new() } else { op.until.to_string() };
        let _ = writeln!(
            text,
            "| `{}` | {} | {until} | {} | {} | `{}` |",
            op.id,
            op.since,
            op.status,
            op.policy,
            op.rule().replace('|', "\\|"),
        );
    }
    text
}

/// Writes the pages.
pub fn write(output: &Path) -> Result<()> {
    std::fs::create_dir_all(output).with_context(|| format!("cannot make {}", output.display()))?;
    for (name, text) in pages() {
        std::fs::write(output.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_says_what_is_served() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api");
        for (name, text) in pages() {
            let held = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
            assert!(
                held == text,
                "docs/api/{name} is old: run `cargo run -p allod -- api-docs --output docs/api`"
            );
        }
    }
}
