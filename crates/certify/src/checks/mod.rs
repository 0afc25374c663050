//! The functions that evaluate cases. Each says what it found wrong; a case fails when something was.

pub(crate) mod backup;
mod beyond;
mod flavors;
pub mod guest;
mod images;
mod network;
mod secrets;
mod services;
mod volume_types;

use serde::Serialize;

use crate::facts::{Abort, Facts, Known};
use crate::rules::Check;

/// What a case came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// It holds.
    Pass,
    /// It does not.
    Fail,
    /// It could not be found out.
    Abort,
}

impl Verdict {
    /// As reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "PASS",
            Verdict::Fail => "FAIL",
            Verdict::Abort => "ABORT",
        }
    }

    /// As reports count it.
    pub fn value(self) -> i8 {
        match self {
            Verdict::Pass => 1,
            Verdict::Abort => 0,
            Verdict::Fail => -1,
        }
    }
}

/// How much a note weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// Good to know.
    Info,
    /// Looks wrong, is allowed.
    Warning,
    /// Breaks the case.
    Error,
}

/// Something found.
#[derive(Debug, Clone, Serialize)]
pub struct Note {
    /// Its weight.
    pub level: Level,
    /// What.
    pub text: String,
}

/// All that was found on the way to a verdict.
#[derive(Debug, Clone, Default)]
pub struct Notes(pub Vec<Note>);

impl Notes {
    /// Breaks the case.
    pub fn error(&mut self, text: impl Into<String>) {
        self.0.push(Note { level: Level::Error, text: text.into() });
    }

    /// Looks wrong, is allowed.
    pub fn warning(&mut self, text: impl Into<String>) {
        self.0.push(Note { level: Level::Warning, text: text.into() });
    }

    /// Good to know.
    pub fn info(&mut self, text: impl Into<String>) {
        self.0.push(Note { level: Level::Info, text: text.into() });
    }

    /// Breaks the case for all of `names`, if there are any.
    pub fn offenders(&mut self, what: &str, names: Vec<&str>) {
        if !names.is_empty() {
            self.error(format!("{what}: {}", names.join(", ")));
        }
    }

    /// Whether nothing broke the case.
    pub fn fine(&self) -> bool {
        self.0.iter().all(|n| n.level != Level::Error)
    }
}

/// A verdict and what led to it.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What the case came to.
    pub verdict: Verdict,
    /// Why.
    pub notes: Vec<Note>,
}

/// Evaluates a case.
pub async fn evaluate(check: &Check, facts: &Facts) -> Finding {
    match notes(check, facts).await {
        Ok(notes) => {
            let verdict = if notes.fine() { Verdict::Pass } else { Verdict::Fail };
            Finding { verdict, notes: notes.0 }
        }
        Err(Abort(text)) => {
            Finding { verdict: Verdict::Abort, notes: vec![Note { level: Level::Error, text }] }
        }
    }
}

async fn notes(check: &Check, facts: &Facts) -> Known<Notes> {
    match check {
        Check::FlavorSyntax { prefix } => flavors::syntax(&facts.flavors().await?, prefix),
        Check::FlavorSemantics { prefix } => flavors::semantics(&facts.flavors().await?, prefix),
        Check::Flavor { name, vcpus, ram_mib, disk_gib, extra_specs } => {
            let wanted = flavors::Wanted { name, vcpus: *vcpus, ram: *ram_mib, disk: *disk_gib, extra_specs };
            flavors::present(&facts.flavors().await?, &wanted)
        }
        Check::FlavorExtraSpecs => flavors::extra_specs(&facts.flavors().await?),
        Check::ImageProperty { property, accept } => {
            images::property(&facts.images().await?, property, accept)
        }
        Check::ImageMinDisk => images::min_disk(&facts.images().await?),
        Check::ImageBuildDate => images::build_date(&facts.images().await?, facts.now()),
        Check::ImageRecency { slack, periods, exempt, no_promise } => {
            let rule = images::Recency { slack: *slack, periods, exempt, no_promise, now: facts.now() };
            images::recency(&facts.images().await?, &rule)
        }
        Check::ImageUnique { purpose } => images::unique(&facts.images().await?, purpose),
        Check::ImageSource { name, pattern, sources } => {
            images::source(&facts.images().await?, name.as_deref(), pattern.as_deref(), sources)
        }
        Check::ImagePresent { name, pattern } => {
            images::present(&facts.images().await?, name.as_deref(), pattern.as_deref())
        }
        Check::VolumeTypeSyntax { aspects } => volume_types::syntax(&facts.volume_types().await?, aspects),
        Check::VolumeTypeAspect { aspect } => volume_types::aspect(&facts.volume_types().await?, aspect),
        Check::DefaultRules => network::default_rules(facts).await,
        Check::CustomGroup => network::custom_group(facts).await,
        Check::DefaultNetwork => network::default_network(facts).await,
        Check::DefaultSubnetPool => network::default_pool(facts).await,
        Check::NetworkExtension { alias } => network::extension(facts, alias).await,
        Check::Service { any_of } => services::any_of(facts, any_of),
        Check::ObjectStoreS3 => services::swift_s3(facts).await,
        Check::EndpointsAnswer { services } => services::answer(facts, services).await,
        Check::CatalogHttps => services::https(facts),
        Check::KeyManager => secrets::permissions(facts).await,
        Check::SecretPayload => secrets::payload(facts).await,
        Check::VolumeBackup => Ok(backup::api(facts).await),
        Check::RestoredContent => beyond::restored_content(facts).await,
        Check::ImageUpload => beyond::image_upload(facts).await,
        Check::GuestEntropy { expect } => guest::entropy(facts.guest().await?.as_ref(), expect),
        Check::GuestFips { failures } => guest::fips(facts.guest().await?.as_ref(), *failures),
        Check::KubernetesVersion { .. }
        | Check::Sonobuoy { .. }
        | Check::NodeLabels { .. }
        | Check::DefaultStorageClass => Err(Abort("this case is about a cluster".into())),
        Check::Manual { .. } => Err(Abort("a person has to answer this".into())),
        Check::Unavailable => Err(Abort("there is no check behind this case".into())),
    }
}
