//! The rules: which cases there are, which of them a version of the standard asks for, and how each is evaluated.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

/// IaaS as of this build.
const IAAS: &str = include_str!("../data/iaas.yaml");
/// KaaS as of this build.
const KAAS: &str = include_str!("../data/kaas.yaml");
/// What upstream does not check.
const BEYOND_IAAS: &str = include_str!("../data/beyond-iaas.yaml");
const BEYOND_KAAS: &str = include_str!("../data/beyond-kaas.yaml");

/// What is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Infrastructure.
    Iaas,
    /// Kubernetes clusters.
    Kaas,
}

/// A scope: all cases ever asked for, and the versions that ask.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// Its name.
    pub name: String,
    /// Under which the monitor knows it.
    pub uuid: String,
    /// Where upstream keeps it.
    pub url: String,
    /// What a run must be told.
    #[serde(default)]
    pub variables: Vec<String>,
    /// The guest of the entropy cases.
    #[serde(default)]
    pub guest: Option<Guest>,
    /// Kubernetes branches and their end.
    #[serde(default)]
    pub branches: Vec<Branch>,
    /// Conformance tests that may fail.
    #[serde(default)]
    pub ok_to_fail: Vec<OkToFail>,
    /// The cases.
    pub testcases: Vec<TestCase>,
    /// Groups of cases: one standard each.
    pub modules: Vec<Module>,
    /// Which versions hold from when on.
    pub timeline: Vec<Moment>,
    /// The versions.
    pub versions: Vec<Version>,
}

/// The guest of scs-0101.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Its network.
    pub cidr: String,
    /// Its resolvers.
    pub dns: Vec<String>,
    /// Least size of its volume.
    pub volume_gib: i64,
    /// How long it may take to become active.
    pub boot_seconds: u64,
    /// How long it may take to finish.
    pub run_seconds: u64,
    /// What it installs.
    pub package: String,
    /// Where from, by distribution.
    pub mirrors: BTreeMap<String, BTreeMap<String, String>>,
}

impl Guest {
    /// Packages come from this mirror. Debian's archive of security updates is another tree, which mirrors have beside the first.
    pub fn lead(&mut self, mirror: &str) {
        for (kind, url) in self.mirrors.values_mut().flatten() {
            *url = match kind.as_str() {
                "security" => format!("{}-security/", mirror.trim_end_matches('/')),
                _ => mirror.to_owned(),
            };
        }
    }
}

/// A branch of Kubernetes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Branch {
    /// `1.36`.
    pub branch: String,
    /// First day without support.
    pub end_of_life: String,
}

/// A conformance test that may fail.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OkToFail {
    /// Found anywhere in its name.
    pub pattern: String,
    /// Why.
    pub reason: String,
}

/// A case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestCase {
    /// Its id upstream.
    pub id: String,
    /// What must hold.
    pub title: String,
    /// Upstream's page about it.
    #[serde(default)]
    pub url: Option<String>,
    /// The text it comes from, for cases of `beyond`.
    #[serde(default)]
    pub standard: Option<String>,
    /// How long a result holds (`day`, `week`, `month`, `quarter`, `year`); a week if not told.
    #[serde(default)]
    pub lifetime: Option<String>,
    /// For choosing what to run (`light`, `heavy`).
    #[serde(default)]
    pub section: Option<String>,
    /// How it is evaluated.
    pub check: Check,
}

/// A value of a property that is accepted.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accept {
    /// Not there at all.
    Absent,
    /// Not there, or empty.
    Unset,
    /// There, and neither empty nor 0.
    Set,
    /// A date.
    Date,
    /// One of these texts.
    OneOf(Vec<String>),
    /// A URL with one of these schemes.
    Url(Vec<String>),
    /// A text that matches wholly.
    Pattern(String),
    /// A number of at least this.
    AtLeast(i64),
}

/// How a case is evaluated, and with what.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "each is explained where it is evaluated")]
pub enum Check {
    FlavorSyntax {
        prefix: String,
    },
    FlavorSemantics {
        prefix: String,
    },
    Flavor {
        name: String,
        vcpus: i64,
        ram_mib: i64,
        disk_gib: i64,
        extra_specs: Map<String, Value>,
    },
    FlavorExtraSpecs,
    ImageProperty {
        property: String,
        accept: Vec<Accept>,
    },
    ImageMinDisk,
    ImageBuildDate,
    ImageRecency {
        slack: f64,
        periods: BTreeMap<String, i64>,
        exempt: Vec<String>,
        no_promise: Vec<String>,
    },
    ImageUnique {
        purpose: String,
    },
    ImageSource {
        #[serde(default)]
        name: Option<String>,
        #[serde(default)]
        pattern: Option<String>,
        sources: Vec<String>,
    },
    ImagePresent {
        #[serde(default)]
        name: Option<String>,
        #[serde(default)]
        pattern: Option<String>,
    },
    ImageUpload,
    VolumeTypeSyntax {
        aspects: Vec<String>,
    },
    VolumeTypeAspect {
        aspect: String,
    },
    DefaultRules,
    CustomGroup,
    Service {
        any_of: Vec<String>,
    },
    ObjectStoreS3,
    KeyManager,
    SecretPayload,
    VolumeBackup,
    RestoredContent,
    GuestEntropy {
        expect: String,
    },
    GuestFips {
        failures: u64,
    },
    EndpointsAnswer {
        services: Vec<String>,
    },
    CatalogHttps,
    DefaultNetwork,
    DefaultSubnetPool,
    NetworkExtension {
        alias: String,
    },
    KubernetesVersion {
        patch_days: i64,
        vulnerable_days: i64,
        vulnerable_warn_days: i64,
        severity: f64,
    },
    Sonobuoy {
        results: String,
        arguments: Vec<String>,
    },
    NodeLabels {
        labels: Vec<String>,
    },
    DefaultStorageClass,
    Manual {
        questions: Vec<String>,
    },
    Unavailable,
}

impl Check {
    /// Whether a person answers, not a program.
    pub fn is_manual(&self) -> bool {
        matches!(self, Check::Manual { .. })
    }

    /// Whether it boots a guest.
    pub fn wants_guest(&self) -> bool {
        matches!(self, Check::GuestEntropy { .. } | Check::GuestFips { .. })
    }
}

/// A standard within a scope.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Module {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its text.
    pub url: String,
    /// Cases by target (`main`, `recommended`, `preview`).
    #[serde(default)]
    pub targets: BTreeMap<String, Vec<String>>,
}

/// From when on which versions hold.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moment {
    /// First day.
    pub date: String,
    /// Version → `effective`, `warn`, `draft`, `deprecated`.
    pub versions: BTreeMap<String, String>,
}

/// A version of a scope.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// Its name.
    pub version: String,
    /// Since when it does not change.
    #[serde(default)]
    pub stabilized_at: Option<String>,
    /// Modules it consists of.
    pub include: Vec<String>,
}

/// Cases without versions: the set `beyond`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Beyond {
    testcases: Vec<TestCase>,
}

impl Scope {
    /// The rules built in.
    pub fn builtin(kind: Kind) -> Result<Scope> {
        Scope::parse(match kind {
            Kind::Iaas => IAAS,
            Kind::Kaas => KAAS,
        })
    }

    /// Rules of a text; every reference in them must lead somewhere.
    pub fn parse(text: &str) -> Result<Scope> {
        let value: Value = serde_norway::from_str(text).context("rules")?;
        let scope: Scope = serde_json::from_value(value).context("rules")?;
        let ids: BTreeSet<&str> = scope.testcases.iter().map(|t| t.id.as_str()).collect();
        if ids.len() != scope.testcases.len() {
            bail!("rules: an id is used twice");
        }
        for module in &scope.modules {
            for id in module.targets.values().flatten() {
                if !ids.contains(id.as_str()) {
                    bail!("rules: module {} names the unknown case {id}", module.id);
                }
            }
        }
        for version in &scope.versions {
            for id in &version.include {
                if !scope.modules.iter().any(|m| m.id == *id) {
                    bail!("rules: version {} names the unknown module {id}", version.version);
                }
            }
        }
        for name in scope.timeline.iter().flat_map(|m| m.versions.keys()) {
            if !scope.versions.iter().any(|v| v.version == *name) {
                bail!("rules: the timeline names the unknown version {name}");
            }
        }
        Ok(scope)
    }

    /// The set `beyond` of a scope.
    pub fn beyond(kind: Kind) -> Result<Vec<TestCase>> {
        let text = match kind {
            Kind::Iaas => BEYOND_IAAS,
            Kind::Kaas => BEYOND_KAAS,
        };
        let value: Value = serde_norway::from_str(text).context("rules")?;
        Ok(serde_json::from_value::<Beyond>(value).context("rules")?.testcases)
    }

    /// Versions and how far they hold on `date` (`YYYY-MM-DD`), as the rules list them.
    pub fn on(&self, date: &str) -> Vec<(&Version, &str)> {
        let moment =
            self.timeline.iter().filter(|m| m.date.as_str() <= date).max_by(|a, b| a.date.cmp(&b.date));
        let Some(moment) = moment else { return Vec::new() };
        self.versions.iter().filter_map(|v| Some((v, moment.versions.get(&v.version)?.as_str()))).collect()
    }

    /// Cases of a version by target, each sorted.
    pub fn targets(&self, version: &Version) -> BTreeMap<String, Vec<String>> {
        let mut targets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for module in self.modules.iter().filter(|m| version.include.contains(&m.id)) {
            for (target, ids) in &module.targets {
                targets.entry(target.clone()).or_default().extend(ids.iter().cloned());
            }
        }
        targets.into_iter().map(|(t, ids)| (t, ids.into_iter().collect())).collect()
    }

    /// A case by its id.
    pub fn case(&self, id: &str) -> Option<&TestCase> {
        self.testcases.iter().find(|t| t.id == id)
    }

    /// Name of the module a case belongs to.
    pub fn module_of(&self, id: &str) -> Option<&Module> {
        self.modules.iter().find(|m| m.targets.values().flatten().any(|i| i == id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn main(scope: &Scope, name: &str) -> usize {
        let version = scope.versions.iter().find(|v| v.version == name).unwrap();
        scope.targets(version).get("main").map_or(0, Vec::len)
    }

    #[test]
    fn versions_have_the_cases_they_have_upstream() {
        let iaas = Scope::builtin(Kind::Iaas).unwrap();
        assert_eq!((main(&iaas, "v5.1"), main(&iaas, "next"), iaas.testcases.len()), (54, 55, 91));
        let today: Vec<_> = iaas.on("2026-11-21").into_iter().map(|(v, s)| (v.version.as_str(), s)).collect();
        assert_eq!(today, [("next", "draft"), ("v5.1", "effective")]);
        let union: BTreeSet<String> =
            iaas.on("2026-11-21").iter().flat_map(|(v, _)| iaas.targets(v).remove("main").unwrap()).collect();
        assert_eq!(union.len(), 57);
        assert_eq!(main(&Scope::builtin(Kind::Kaas).unwrap(), "v1"), 3);
        assert!([Kind::Iaas, Kind::Kaas].iter().all(|k| !Scope::beyond(*k).unwrap().is_empty()));
    }

    #[test]
    fn one_mirror_stands_for_all_of_a_distribution() {
        let mut guest = Scope::builtin(Kind::Iaas).unwrap().guest.unwrap();
        guest.lead("http://192.0.2.1:80/debian/");
        let of = |distro: &str, kind: &str| guest.mirrors[distro].get(kind).map(String::as_str);
        assert_eq!(of("debian", "primary"), Some("http://192.0.2.1:80/debian/"));
        assert_eq!(of("debian", "security"), Some("http://192.0.2.1:80/debian-security/"));
        assert_eq!(of("ubuntu", "security"), None);
    }

    #[test]
    fn references_must_lead_somewhere() {
        let broken = KAAS.replace("main: [version-policy-check]", "main: [version-check]");
        assert!(Scope::parse(&broken).unwrap_err().to_string().contains("version-check"));
    }
}
