//! The cloud's own certificate authority: one CA per state directory, a server certificate, one client certificate
//! per host. ECDSA P-256; leaves live a year and are made anew when less than a third of it is left.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use base::{HostId, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::files;

const CA_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;

/// The files of the PKI below `DIR/pki`.
pub struct Pki {
    dir: PathBuf,
    now: Timestamp,
}

impl Pki {
    /// Opens the PKI, making the CA where there is none.
    pub fn open(dir: &Path, now: Timestamp) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let pki = Pki { dir: dir.to_owned(), now };
        if !pki.path("ca.key").exists() {
            let mut params = pki.params("Allod CA", CA_DAYS);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let key = KeyPair::generate()?;
            let cert = params.self_signed(&key)?;
            files::write_secret(&pki.path("ca.crt"), cert.pem().as_bytes())?;
            files::write_secret(&pki.path("ca.key"), key.serialize_pem().as_bytes())?;
        }
        Ok(pki)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The CA certificate in PEM.
    pub fn ca_pem(&self) -> Result<String> {
        fs::read_to_string(self.path("ca.crt")).context("cannot read ca.crt")
    }

    fn params(&self, name: &str, days: i64) -> CertificateParams {
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        params.distinguished_name = subject;
        // An hour of slack for clients whose clock is behind.
        params.not_before = moment(self.now.plus_secs(-3600));
        params.not_after = moment(self.now.plus_secs(days * 86_400));
        params
    }

    fn leaf(&self, name: &str, sans: Vec<SanType>, usage: ExtendedKeyUsagePurpose) -> Result<()> {
        let stamp = self.path(&format!("{name}.stamp"));
        let wanted = format!("{sans:?}");
        let held = fs::read_to_string(&stamp).unwrap_or_default();
        let (made, names) = held.split_once('\n').unwrap_or_default();
        let fresh = made.parse::<i64>().is_ok_and(|t| self.now.as_secs() - t < LEAF_DAYS * 86_400 * 2 / 3);
        if fresh && names == wanted && self.path(&format!("{name}.key")).exists() {
            return Ok(());
        }
        let ca_key = KeyPair::from_pem(&fs::read_to_string(self.path("ca.key"))?)?;
        let issuer = Issuer::from_ca_cert_pem(&self.ca_pem()?, ca_key)?;
        let mut params = self.params(name, LEAF_DAYS);
        params.subject_alt_names = sans;
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &issuer)?;
        files::write_secret(&self.path(&format!("{name}.crt")), cert.pem().as_bytes())?;
        files::write_secret(&self.path(&format!("{name}.key")), key.serialize_pem().as_bytes())?;
        files::write_secret(&stamp, format!("{}\n{wanted}", self.now.as_secs()).as_bytes())
    }

    /// TLS of the listener: our certificate for `addresses`; client certificates are optional and must be ours.
    pub fn server_config(&self, addresses: &[IpAddr], names: &[String]) -> Result<ServerConfig> {
        self.listener_config("server", addresses, names)
    }

    /// TLS of the agent's listener.
    pub fn agent_config(&self, addresses: &[IpAddr], names: &[String]) -> Result<ServerConfig> {
        self.listener_config("agent", addresses, names)
    }

    fn listener_config(&self, leaf: &str, addresses: &[IpAddr], names: &[String]) -> Result<ServerConfig> {
        let mut sans: Vec<SanType> = addresses.iter().map(|ip| SanType::IpAddress(*ip)).collect();
        for name in names {
            sans.push(SanType::DnsName(name.as_str().try_into().context("not a host name")?));
        }
        self.leaf(leaf, sans, ExtendedKeyUsagePurpose::ServerAuth)?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.path("ca.crt"))?)?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build()?;
        let mut config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(
            vec![certificate(&self.path(&format!("{leaf}.crt")))?, certificate(&self.path("ca.crt"))?],
            key(&self.path(&format!("{leaf}.key")))?,
        )?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// An HTTP client that speaks for `host`.
    pub fn host_client(&self, host: HostId) -> Result<reqwest::Client> {
        let name = format!("host-{host}");
        let san = SanType::URI(format!("urn:uuid:{host}").as_str().try_into()?);
        self.leaf(&name, vec![san], ExtendedKeyUsagePurpose::ClientAuth)?;
        let cert = certificate(&self.path(&format!("{name}.crt")))?;
        self.client(Some((cert, key(&self.path(&format!("{name}.key")))?)))
    }

    /// An HTTP client that trusts only this cloud.
    pub fn plain_client(&self) -> Result<reqwest::Client> {
        self.client(None)
    }

    fn client(
        &self,
        identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> Result<reqwest::Client> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.path("ca.crt"))?)?;
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
        let mut tls = match identity {
            Some((cert, key)) => builder.with_client_auth_cert(vec![cert], key)?,
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(reqwest::Client::builder()
            .use_preconfigured_tls(tls)
            .connect_timeout(std::time::Duration::from_secs(5))
            .build()?)
    }
}

/// The host named by a verified client certificate: its `urn:uuid:` subject alternative name.
pub fn host_of(certificate: &CertificateDer<'_>) -> Option<HostId> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("urn:uuid:")?.parse().ok(),
        _ => None,
    })
}

fn certificate(path: &Path) -> Result<CertificateDer<'static>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    rustls_pemfile::certs(&mut bytes.as_slice()).next().context("no certificate in file")?.context("not PEM")
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    rustls_pemfile::private_key(&mut bytes.as_slice())?.context("no key in file")
}

fn moment(at: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(at.as_secs()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_certificate_names_its_host() {
        let dir = tempfile::tempdir().unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pki = Pki::open(dir.path(), Timestamp::from_secs(1_767_225_600)).unwrap();
        let host = HostId::random(&base::Entropy::seeded(1));
        pki.host_client(host).unwrap();
        let cert = certificate(&pki.path(&format!("host-{host}.crt"))).unwrap();
        assert_eq!(host_of(&cert), Some(host));
        pki.server_config(&["127.0.0.1".parse().unwrap()], &["localhost".into()]).unwrap();
        let server = certificate(&pki.path("server.crt")).unwrap();
        assert_eq!(host_of(&server), None);
        let before = fs::read(pki.path("server.crt")).unwrap();
        pki.server_config(&["127.0.0.1".parse().unwrap()], &["localhost".into()]).unwrap();
        assert_eq!(before, fs::read(pki.path("server.crt")).unwrap(), "a fresh certificate is kept");
    }
}
