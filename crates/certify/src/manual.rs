//! Cases that people answer: a questionnaire, and the evidence that goes with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::checks::{Level, Note, Verdict};
use crate::rules::{Check, Scope};
use crate::run::CaseResult;

/// What a person said about one case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    /// To each question, in order.
    answers: Vec<bool>,
    /// Who answers for it.
    by: String,
    /// Files, from the questionnaire's directory.
    #[serde(default)]
    evidence: Vec<PathBuf>,
}

/// A questionnaire to fill in.
pub(crate) fn questionnaire(scope: &Scope) -> String {
    let mut out = format!(
        "# {}: what no program can check. Answer each question with true or false, say who answers for it, and name the\n\
         # files that show it (from the directory of this file). Cases left out are not reported.\n",
        scope.name
    );
    for case in &scope.testcases {
        let Check::Manual { questions } = &case.check else { continue };
        out.push_str(&format!(
            "\n# {} ({})\n{}:\n  by: \"\"\n  evidence: []\n  answers:\n",
            case.title,
            case.url.as_deref().unwrap_or(""),
            case.id
        ));
        for question in questions {
            out.push_str(&format!("  # {question}\n  - false\n"));
        }
    }
    out
}

/// Verdicts of a questionnaire. A case passes when every answer is yes, somebody answers for it, and its evidence is there.
pub(crate) fn judge(scope: &Scope, path: &Path) -> Result<Vec<CaseResult>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let given: BTreeMap<String, Answer> =
        serde_norway::from_str(&text).with_context(|| format!("{}", path.display()))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut results = Vec::new();
    for (id, answer) in given {
        let Some(Check::Manual { questions }) = scope.case(&id).map(|c| &c.check) else {
            bail!("{}: {id} is no manual case of {}", path.display(), scope.name);
        };
        if answer.answers.len() != questions.len() {
            bail!("{}: {id} has {} questions, not {}", path.display(), questions.len(), answer.answers.len());
        }
        let mut notes = Vec::new();
        let mut note = |level, text| notes.push(Note { level, text });
        for (question, _) in questions.iter().zip(&answer.answers).filter(|(_, yes)| !**yes) {
            note(Level::Error, format!("answered no: {question}"));
        }
        if answer.by.trim().is_empty() {
            note(Level::Error, "nobody answers for it (by)".into());
        }
        if answer.evidence.is_empty() {
            note(Level::Error, "no evidence".into());
        }
        for file in &answer.evidence {
            let bytes = std::fs::read(dir.join(file))
                .with_context(|| format!("evidence of {id}: {}", file.display()))?;
            let hash = hex::encode(Sha256::digest(&bytes));
            note(Level::Info, format!("evidence {} (sha256 {hash})", file.display()));
        }
        note(Level::Info, format!("answered by {}", answer.by));
        let verdict =
            if notes.iter().any(|n| n.level == Level::Error) { Verdict::Fail } else { Verdict::Pass };
        results.push(CaseResult { id, verdict, notes, millis: 0 });
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Kind;

    #[test]
    fn a_questionnaire_passes_when_all_is_shown() {
        let scope = Scope::builtin(Kind::Iaas).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.yaml");
        let blank = questionnaire(&scope);
        std::fs::write(&path, &blank).unwrap();
        let verdicts =
            |path: &Path| judge(&scope, path).unwrap().into_iter().map(|r| r.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts(&path), [Verdict::Fail; 3]);
        let filled = blank
            .replace("- false", "- true")
            .replace("by: \"\"", "by: somebody")
            .replace("evidence: []", "evidence: [proof.txt]");
        std::fs::write(&path, &filled).unwrap();
        assert!(judge(&scope, &path).unwrap_err().to_string().contains("proof.txt"));
        std::fs::write(dir.path().join("proof.txt"), "shown").unwrap();
        assert_eq!(verdicts(&path), [Verdict::Pass; 3]);
        std::fs::write(&path, "scs-0100-syntax-check: {answers: [], by: me}").unwrap();
        assert!(judge(&scope, &path).is_err());
    }
}
