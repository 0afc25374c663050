//! The cloud's own certificate authority: one CA per state directory, a server certificate, one client certificate
//! per host. ECDSA P-256; leaves live a year and are made anew when less than a third of it is left. Hosts that join keep
//! their keys to themselves and have them certified for a shorter time.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base::{HostId, Timestamp};
use nix::fcntl::{Flock, FlockArg};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

use crate::files;
use crate::tls::{Leaf, Tls};

/// Certificates are dated back by so many seconds, for those whose clock is behind.
const SLACK: i64 = 3600;
/// Names a replica in its certificate.
const REPLICA: &str = "urn:allod:replica";
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
        let _turn = pki.turn()?;
        if !pki.path("ca.key").exists() {
            if pki.path("ca.crt").exists() {
                bail!("this machine joined a cloud whose server is elsewhere: ask there");
            }
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

    /// Server and agent start at the same time: what one makes, the other must not make again.
    fn turn(&self) -> Result<Flock<File>> {
        let lock = File::options().create(true).truncate(false).write(true).open(self.path("lock"))?;
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).context("cannot lock the PKI")
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
        params.not_before = moment(self.now.plus_secs(-SLACK));
        params.not_after = moment(self.now.plus_secs(days * 86_400));
        params
    }

    fn leaf(&self, name: &str, sans: Vec<SanType>, usage: ExtendedKeyUsagePurpose) -> Result<()> {
        let _turn = self.turn()?;
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

    /// TLS of a listener on `address` that others know by `names` (of hosts, or addresses), and this machine as itself; with the
    /// authorities in the file `clients`, if any.
    pub fn listener(&self, address: IpAddr, names: &[String], clients: Option<&Path>) -> Result<Tls> {
        let mut addresses = vec![address, [127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()];
        addresses.extend(names.iter().filter_map(|n| n.parse::<IpAddr>().ok()));
        addresses.sort_unstable();
        addresses.dedup();
        let names: Vec<String> = names.iter().filter(|n| n.parse::<IpAddr>().is_err()).cloned().collect();
        Tls::new(self.listener_leaf("server", &addresses, &names)?, self.ca()?, clients)
    }

    /// TLS of the agent's listener.
    pub fn agent_listener(&self, addresses: &[IpAddr], names: &[String]) -> Result<Tls> {
        Tls::new(self.listener_leaf("agent", addresses, names)?, self.ca()?, None)
    }

    fn ca(&self) -> Result<CertificateDer<'static>> {
        certificate(&self.path("ca.crt"))
    }

    /// Our certificate for `addresses` and `names`.
    fn listener_leaf(&self, leaf: &str, addresses: &[IpAddr], names: &[String]) -> Result<Leaf> {
        let mut sans: Vec<SanType> = addresses.iter().map(|ip| SanType::IpAddress(*ip)).collect();
        for name in names {
            sans.push(SanType::DnsName(name.as_str().try_into().context("not a host name")?));
        }
        self.leaf(leaf, sans, ExtendedKeyUsagePurpose::ServerAuth)?;
        let chain = vec![certificate(&self.path(&format!("{leaf}.crt")))?, self.ca()?];
        Ok(Leaf { chain, key: key(&self.path(&format!("{leaf}.key")))? })
    }

    /// SHA-256 of the CA's certificate, hex.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(fingerprint(&self.ca()?))
    }

    /// Files with which the Southbound database speaks: the server's key and certificate.
    pub fn server_files(&self) -> ovn::engines::Tls {
        ovn::engines::Tls {
            key: self.path("server.key"),
            certificate: self.path("server.crt"),
            ca: self.path("ca.crt"),
        }
    }

    /// Reads a PKCS#10 request and checks that its sender has the key.
    pub fn read_request(pem: &str) -> Result<CertificateSigningRequestParams> {
        CertificateSigningRequestParams::from_pem(pem).context("not a PKCS#10 request in PEM")
    }

    /// Certifies a host's key. Of the request nothing but the key is used.
    pub fn sign_host(
        &self,
        request: CertificateSigningRequestParams,
        host: HostId,
        name: &str,
        seconds: u32,
    ) -> Result<String> {
        let mut params = self.params(name, 0);
        params.not_after = moment(self.now.plus_secs(seconds.into()));
        params.subject_alt_names = vec![host_name(host)?];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let ca_key = KeyPair::from_pem(&fs::read_to_string(self.path("ca.key"))?)?;
        let issuer = Issuer::from_ca_cert_pem(&self.ca_pem()?, ca_key)?;
        let certificate =
            CertificateSigningRequestParams { params, public_key: request.public_key }.signed_by(&issuer)?;
        Ok(certificate.pem())
    }

    /// An HTTP client that speaks for `host`.
    pub fn host_client(&self, host: HostId) -> Result<reqwest::Client> {
        let name = format!("host-{host}");
        self.leaf(&name, vec![host_name(host)?], ExtendedKeyUsagePurpose::ClientAuth)?;
        let cert = certificate(&self.path(&format!("{name}.crt")))?;
        self.client(Some((cert, key(&self.path(&format!("{name}.key")))?)))
    }

    /// An HTTP client that speaks for a replica of the server.
    pub fn replica_client(&self) -> Result<reqwest::Client> {
        http(self.replica_tls()?)
    }

    /// With what a replica of the server speaks to others.
    pub fn replica_tls(&self) -> Result<rustls::ClientConfig> {
        let san = SanType::URI(REPLICA.try_into()?);
        self.leaf("replica", vec![san], ExtendedKeyUsagePurpose::ClientAuth)?;
        self.client_tls(Some((certificate(&self.path("replica.crt"))?, key(&self.path("replica.key"))?)))
    }

    /// An HTTP client that trusts only this cloud.
    pub fn plain_client(&self) -> Result<reqwest::Client> {
        self.client(None)
    }

    fn client(
        &self,
        identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> Result<reqwest::Client> {
        http(self.client_tls(identity)?)
    }

    fn client_tls(
        &self,
        identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> Result<rustls::ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca()?)?;
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
        Ok(match identity {
            Some((cert, key)) => builder.with_client_auth_cert(vec![cert], key)?,
            None => builder.with_no_client_auth(),
        })
    }
}

/// An HTTP client with this TLS.
pub fn http(mut tls: rustls::ClientConfig) -> Result<reqwest::Client> {
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let client = reqwest::Client::builder().use_preconfigured_tls(tls);
    // A connection into a host or network that is gone is noticed and made anew.
    let alive = std::time::Duration::from_secs(5);
    let client = client.http2_keep_alive_interval(alive).http2_keep_alive_timeout(alive);
    Ok(client.connect_timeout(alive).build()?)
}

/// An HTTP client that trusts a server whose certificate comes with, and is signed by, the CA of this fingerprint.
pub fn pinned_client(fingerprint: &str) -> Result<reqwest::Client> {
    let verifier = Arc::new(Pinned { fingerprint: fingerprint.to_ascii_lowercase() });
    let tls = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    http(tls)
}

/// Trusts one CA, known by its fingerprint; everything else is checked as always.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates.iter().find(|c| fingerprint(c) == self.fingerprint);
        let ca = ca.ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder(Arc::new(roots)).build();
        let verifier = verifier.map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex::encode(Sha256::digest(certificate))
}

/// The key of a request, for telling requests apart.
pub fn public_key(request: &CertificateSigningRequestParams) -> Vec<u8> {
    rcgen::PublicKeyData::der_bytes(&request.public_key).to_vec()
}

fn host_name(host: HostId) -> Result<SanType> {
    Ok(SanType::URI(format!("urn:uuid:{host}").as_str().try_into()?))
}

/// From when to when a certificate is good.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp)> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).context("not a certificate")?;
    let validity = parsed.validity();
    let at = |t: x509_parser::time::ASN1Time| Timestamp::from_secs(t.timestamp());
    Ok((at(validity.not_before), at(validity.not_after)))
}

/// When to renew: when a third of the life is left. Certificates are dated back by [`SLACK`].
pub fn renew_at(not_before: Timestamp, not_after: Timestamp) -> Timestamp {
    let life = not_after.0 - not_before.plus_secs(SLACK).0;
    Timestamp(not_after.0 - life.max(0) / 3)
}

/// The public key of a certificate.
pub fn public_key_of(certificate: &CertificateDer<'_>) -> Result<Vec<u8>> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).context("not a certificate")?;
    Ok(parsed.public_key().raw.to_vec())
}

/// Whether a client certificate that our CA verified is that of a replica of the server.
pub fn is_replica(certificate: &CertificateDer<'_>) -> bool {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| matches!(name, GeneralName::URI(REPLICA)))
}

/// The host named by a client certificate that our CA verified: its `urn:uuid:` subject alternative name.
pub fn host_of(certificate: &CertificateDer<'_>) -> Option<HostId> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("urn:uuid:")?.parse().ok(),
        _ => None,
    })
}

/// The certificate in a PEM file.
pub fn certificate(path: &Path) -> Result<CertificateDer<'static>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    rustls_pemfile::certs(&mut bytes.as_slice()).next().context("no certificate in file")?.context("not PEM")
}

/// The private key in a PEM file.
pub fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
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
        pki.listener("127.0.0.1".parse().unwrap(), &["localhost".into()], None).unwrap();
        let server = certificate(&pki.path("server.crt")).unwrap();
        assert_eq!(host_of(&server), None);
        let before = fs::read(pki.path("server.crt")).unwrap();
        pki.listener("127.0.0.1".parse().unwrap(), &["localhost".into()], None).unwrap();
        assert_eq!(before, fs::read(pki.path("server.crt")).unwrap(), "a fresh certificate is kept");
    }

    #[test]
    fn a_joining_host_gets_what_the_server_says_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let now = Timestamp::from_secs(1_767_225_600);
        let pki = Pki::open(dir.path(), now).unwrap();
        let host = HostId::random(&base::Entropy::seeded(1));
        let other = HostId::random(&base::Entropy::seeded(2));
        let key = KeyPair::generate().unwrap();
        let mut greedy = CertificateParams::default();
        greedy.subject_alt_names = vec![host_name(other).unwrap()];
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = greedy.serialize_request(&key).unwrap().pem().unwrap();
        let signed = pki.sign_host(Pki::read_request(&request).unwrap(), host, "h1", 90).unwrap();
        let cert = rustls_pemfile::certs(&mut signed.as_bytes()).next().unwrap().unwrap();
        assert_eq!(host_of(&cert), Some(host));
        use x509_parser::prelude::{FromDer, X509Certificate};
        let (_, parsed) = X509Certificate::from_der(&cert).unwrap();
        assert!(!parsed.is_ca());
        assert_eq!(parsed.subject().iter_common_name().next().unwrap().as_str().unwrap(), "h1");
        let (from, to) = validity(&cert).unwrap();
        assert_eq!((from, to), (now.plus_secs(-SLACK), now.plus_secs(90)));
        assert_eq!(renew_at(from, to), now.plus_secs(60), "a third is left");
        let torn = request.replacen("MII", "MIJ", 1);
        assert!(Pki::read_request(&torn).is_err());
        assert!(Pki::read_request("").is_err());
    }
}
