//! Questions to a directory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{Error, Result};
use ldap3::adapters::{Adapter, EntriesOnly, PagedResults};
use ldap3::{Ldap, LdapConnAsync, LdapConnSettings, LdapError, Scope, SearchEntry};

use super::mirror::{Person, Team};
use super::settings::{Kind, Settings};

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// Results of a bind that say no to this password; others say that something is wrong with the directory.
const REFUSED: [u32; 5] = [19, 32, 48, 49, 53];

/// Attributes do not care for the case of their names.
#[derive(Debug, Clone)]
pub struct Entry {
    pub dn: String,
    values: BTreeMap<String, Vec<String>>,
}

impl Entry {
    pub fn new(dn: &str, values: impl IntoIterator<Item = (String, Vec<String>)>) -> Self {
        let values = values.into_iter().map(|(name, all)| (name.to_ascii_lowercase(), all)).collect();
        Entry { dn: dn.to_owned(), values }
    }

    pub fn all(&self, attribute: &str) -> &[String] {
        self.values.get(&attribute.to_ascii_lowercase()).map_or(&[], Vec::as_slice)
    }

    pub fn first(&self, attribute: &str) -> Option<&str> {
        self.all(attribute).first().map(String::as_str).filter(|v| !v.is_empty())
    }
}

/// The directory does not do what it is there for.
pub fn silent(why: impl std::fmt::Display) -> Error {
    Error::unavailable("The directory of the domain does not answer.").caused_by(why.to_string())
}

fn failed(error: LdapError) -> Error {
    silent(error)
}

/// A connection of who may read.
pub struct Directory {
    ldap: Ldap,
    settings: Arc<Settings>,
}

async fn connect(settings: &Settings) -> Result<Ldap> {
    let mut how =
        LdapConnSettings::new().set_conn_timeout(Duration::from_secs(5)).set_starttls(settings.start_tls);
    if !settings.verify {
        how = how.set_no_tls_verify(true);
    } else if let Some(file) = &settings.ca_file {
        how = how.set_config(trusting(file).await?);
    }
    let (connection, ldap) = LdapConnAsync::with_settings(how, &settings.url).await.map_err(failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.drive().await {
            tracing::debug!(%error, "a connection to a directory ended");
        }
    });
    Ok(ldap)
}

/// TLS that trusts who a file names, and nobody else.
async fn trusting(file: &str) -> Result<Arc<rustls::ClientConfig>> {
    let unreadable = |why: String| silent(format!("ldap/tls_cacertfile {file}: {why}"));
    let pem = tokio::fs::read(file).await.map_err(|e| unreadable(e.to_string()))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_pemfile::certs(&mut pem.as_slice()) {
        let certificate = certificate.map_err(|e| unreadable(e.to_string()))?;
        roots.add(certificate).map_err(|e| unreadable(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unreadable("there is no certificate in it".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(silent)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl Directory {
    pub async fn open(settings: &Arc<Settings>) -> Result<Self> {
        let mut ldap = connect(settings).await?;
        if let Some((dn, password)) = &settings.bind {
            let bound = ldap.with_timeout(ANSWER).simple_bind(dn, password).await.map_err(failed)?;
            bound.success().map_err(failed)?;
        }
        Ok(Directory { ldap, settings: settings.clone() })
    }

    pub async fn close(mut self) {
        let _ = self.ldap.unbind().await;
    }

    async fn search(&mut self, kind: &Kind, filter: &str) -> Result<Vec<Entry>> {
        let scope = if self.settings.subtree { Scope::Subtree } else { Scope::OneLevel };
        let adapters: Vec<Box<dyn Adapter<'_, String, Vec<String>>>> =
            vec![Box::new(EntriesOnly::new()), Box::new(PagedResults::new(self.settings.page))];
        let ldap = self.ldap.with_timeout(ANSWER);
        let search = ldap.streaming_search_with(adapters, &kind.tree, scope, filter, kind.attributes.clone());
        let mut search = search.await.map_err(failed)?;
        let mut found = Vec::new();
        while let Some(entry) = search.next().await.map_err(failed)? {
            let entry = SearchEntry::construct(entry);
            found.push(Entry::new(&entry.dn, entry.attrs));
        }
        search.finish().await.success().map_err(failed)?;
        Ok(found)
    }

    /// All entries of a kind.
    pub async fn all(&mut self, kind: &Kind) -> Result<Vec<Entry>> {
        self.search(kind, &kind.filter(None)).await
    }

    /// Entries of a kind by an attribute.
    pub async fn find(&mut self, kind: &Kind, attribute: &str, value: &str) -> Result<Vec<Entry>> {
        self.search(kind, &kind.filter(Some((attribute, value)))).await
    }

    /// The groups somebody is in.
    pub async fn teams_of(&mut self, settings: &Settings, person: &Person) -> Result<Vec<Team>> {
        let member = if settings.members_are_ids { &person.local_id } else { &person.dn };
        let found = self.find(&settings.groups, &settings.member, member).await?;
        Ok(found.iter().filter_map(|entry| settings.team(entry)).collect())
    }

    /// Whether a password is an entry's. By a connection of its own: this one stays who it is.
    pub async fn proves(&self, dn: &str, password: &str) -> Result<bool> {
        let mut ldap = connect(&self.settings).await?;
        let said = ldap.with_timeout(ANSWER).simple_bind(dn, password).await.map_err(failed)?;
        let _ = ldap.unbind().await;
        match said.rc {
            0 => Ok(true),
            code if REFUSED.contains(&code) => Ok(false),
            _ => Err(silent(said)),
        }
    }
}
