//! TLS of a listener, and whose a client certificate is.
//!
//! Client certificates are optional. Two kinds of authority may have signed one: the cloud's own CA, which certifies hosts and
//! replicas of the server, and the operator's authorities for clients of the API (`[identity.oauth2] client_ca`), which
//! certify whom they like under any name. Invariant: a certificate counts as a host's or a replica's only if the cloud's own
//! CA verifies it by itself, whatever its names are and whatever comes with it; all others are clients', never more.
//!
//! The file of the authorities is read again when it changes. Connections that are open stay what they were found to be; a
//! session that began before is not resumed afterwards, so that nobody comes back without being verified again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use base::HostId;
use parking_lot::{Mutex, RwLock};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use tokio_rustls::TlsAcceptor;

use crate::pki;

/// How long a look at the file of the authorities is good for.
const LOOK: Duration = Duration::from_secs(10);

/// The listener's own certificate, with what comes after it, and its key.
pub struct Leaf {
    /// The certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

/// TLS of a listener.
pub struct Tls {
    current: RwLock<Arc<Current>>,
    clients: Option<Clients>,
}

/// What new connections are made with.
pub struct Current {
    config: Arc<ServerConfig>,
    own: Option<Arc<dyn ClientCertVerifier>>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// Where the authorities for clients of the API are.
struct Clients {
    file: PathBuf,
    ca: CertificateDer<'static>,
    leaf: Leaf,
    looked: Mutex<(Instant, Option<Print>)>,
}

/// What tells that a file has changed.
type Print = (SystemTime, u64);

/// Who a client is by its certificate.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// The host that the cloud's own CA certified.
    pub host: Option<HostId>,
    /// Whether the cloud's own CA certified a replica of the server.
    pub replica: bool,
    /// The certificate, if one of the operator's authorities for clients signed it.
    pub client: Option<api::Certificate>,
}

impl Tls {
    /// Without client certificates.
    pub fn plain(config: ServerConfig) -> Self {
        let current = Current { config: Arc::new(config), own: None, clients: None };
        Tls { current: RwLock::new(Arc::new(current)), clients: None }
    }

    /// With certificates of the cloud's own CA, and those of the authorities in `file`.
    pub fn new(leaf: Leaf, ca: CertificateDer<'static>, file: Option<&Path>) -> Result<Self> {
        let current = |file| Ok::<_, anyhow::Error>(RwLock::new(Arc::new(Current::new(&leaf, &ca, file)?)));
        let Some(file) = file else { return Ok(Tls { current: current(None)?, clients: None }) };
        // Looked at before it is read: what changes in between is seen at the next look.
        let looked = Mutex::new((Instant::now(), print(file)));
        let current = current(Some(file))?;
        Ok(Tls { current, clients: Some(Clients { file: file.to_owned(), ca, leaf, looked }) })
    }

    /// What a connection made at `now` is made with.
    pub fn at(&self, now: Instant) -> Arc<Current> {
        if let Some(clients) = &self.clients
            && clients.changed(now)
        {
            match Current::new(&clients.leaf, &clients.ca, Some(&clients.file)) {
                Ok(fresh) => {
                    *self.current.write() = Arc::new(fresh);
                    tracing::info!(file = %clients.file.display(), "the authorities for clients were read again");
                }
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the authorities for clients stay as they were"
                    );
                }
            }
        }
        self.current.read().clone()
    }
}

impl Clients {
    fn changed(&self, now: Instant) -> bool {
        let mut looked = self.looked.lock();
        if now.saturating_duration_since(looked.0) < LOOK {
            return false;
        }
        let fresh = print(&self.file);
        let changed = fresh.is_some() && fresh != looked.1;
        *looked = (now, if changed { fresh } else { looked.1 });
        changed
    }
}

fn print(file: &Path) -> Option<Print> {
    let meta = fs::metadata(file).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

impl Current {
    fn new(leaf: &Leaf, ca: &CertificateDer<'static>, file: Option<&Path>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        let own = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build()?;
        let clients = file.map(|file| authorities(file, ca)).transpose()?;
        let verifier = match &clients {
            None => own.clone(),
            Some(clients) => {
                let hints = [own.root_hint_subjects(), clients.root_hint_subjects()].concat();
                Arc::new(Either { own: own.clone(), clients: clients.clone(), hints })
            }
        };
        let config = ServerConfig::builder().with_client_cert_verifier(verifier);
        let mut config = config.with_single_cert(leaf.chain.clone(), leaf.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Current { config: Arc::new(config), own: Some(own), clients })
    }

    /// Takes a connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.config.clone().into()
    }

    /// Whose certificates these are that came in the handshake, the holder's first.
    pub fn holder(&self, chain: &[CertificateDer<'_>]) -> Holder {
        let Some((certificate, others)) = chain.split_first() else { return Holder::default() };
        // The handshake asked whether any authority signed it, not which: only that of the cloud may say who is a host.
        let by = |verifier: &Option<Arc<dyn ClientCertVerifier>>| {
            let verify = |v: &Arc<dyn ClientCertVerifier>| {
                v.verify_client_cert(certificate, others, UnixTime::now()).is_ok()
            };
            verifier.as_ref().is_some_and(verify)
        };
        if by(&self.own) {
            let (host, replica) = (pki::host_of(certificate), pki::is_replica(certificate));
            return Holder { host, replica, client: None };
        }
        let client = by(&self.clients).then(|| api::Certificate(Arc::from(certificate.as_ref())));
        Holder { client, ..Holder::default() }
    }
}

/// Verifies what an authority of the file signed, and its lists do not revoke. An authority without a list revokes nothing.
fn authorities(file: &Path, ca: &CertificateDer<'_>) -> Result<Arc<dyn ClientCertVerifier>> {
    let told = || format!("identity.oauth2.client_ca: {}", file.display());
    let text = fs::read(file).with_context(told)?;
    let (mut roots, mut lists) = (RootCertStore::empty(), Vec::new());
    for item in rustls_pemfile::read_all(&mut text.as_slice()) {
        match item.context("not PEM").with_context(told)? {
            rustls_pemfile::Item::X509Certificate(certificate) => {
                if pki::public_key_of(&certificate).with_context(told)? == pki::public_key_of(ca)? {
                    bail!("{}: the cloud's own CA certifies hosts, not clients", told());
                }
                roots.add(certificate).with_context(told)?;
            }
            rustls_pemfile::Item::Crl(list) => {
                lists.push(CertificateRevocationListDer::from(list.to_vec()));
            }
            _ => bail!("{}: something else than certificates and revocation lists", told()),
        }
    }
    if roots.is_empty() {
        bail!("{}: no certificate", told());
    }
    let builder = WebPkiClientVerifier::builder(Arc::new(roots)).with_crls(lists);
    builder.allow_unknown_revocation_status().allow_unauthenticated().build().with_context(told)
}

/// Takes a client certificate if one of both takes it; which one is asked again by [`Current::holder`].
#[derive(Debug)]
struct Either {
    own: Arc<dyn ClientCertVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
    hints: Vec<DistinguishedName>,
}

impl ClientCertVerifier for Either {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let own = self.own.verify_client_cert(end_entity, intermediates, now);
        own.or_else(|_| self.clients.verify_client_cert(end_entity, intermediates, now))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.own.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.own.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.own.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use base::{Clock, Entropy, SystemClock};
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
        ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
        SanType, SerialNumber,
    };
    use rustls::{ClientConfig, HandshakeKind};
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::pki::Pki;

    type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);
    type Authority = Issuer<'static, KeyPair>;

    struct World {
        dir: tempfile::TempDir,
        pki: Pki,
        host: HostId,
    }

    impl World {
        fn new() -> Self {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let dir = tempfile::tempdir().unwrap();
            let pki = Pki::open(dir.path(), SystemClock.now()).unwrap();
            let host = HostId::random(&Entropy::seeded(1));
            pki.host_client(host).unwrap();
            pki.replica_tls().unwrap();
            World { dir, pki, host }
        }

        fn file(&self) -> PathBuf {
            self.dir.path().join("clients.pem")
        }

        /// A listener with what `text` says of clients.
        fn with(&self, text: &str) -> Result<Tls> {
            fs::write(self.file(), text).unwrap();
            self.pki.listener([127, 0, 0, 1].into(), &["localhost".into()], Some(&self.file()))
        }

        /// A certificate of the cloud's own.
        fn own(&self, name: &str) -> Chain {
            let at = |kind: &str| self.dir.path().join(format!("{name}.{kind}"));
            (vec![pki::certificate(&at("crt")).unwrap()], pki::key(&at("key")).unwrap())
        }

        fn client(&self, identity: Option<Chain>) -> TlsConnector {
            let mut roots = RootCertStore::empty();
            roots.add(pki::certificate(&self.dir.path().join("ca.crt")).unwrap()).unwrap();
            let builder = ClientConfig::builder().with_root_certificates(roots);
            let config = match identity {
                Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
                None => builder.with_no_client_auth(),
            };
            Arc::new(config).into()
        }

        /// Who the listener takes a client for; `None` where it does not take it.
        async fn seen(&self, current: &Current, identity: Option<Chain>) -> Option<Holder> {
            meet(current, &self.client(identity)).await.map(|(holder, _)| holder)
        }
    }

    async fn meet(current: &Current, client: &TlsConnector) -> Option<(Holder, HandshakeKind)> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (near, far) = tokio::io::duplex(65_536);
        let client = client.clone();
        let other = tokio::spawn(async move {
            let mut stream = client.connect("localhost".try_into().unwrap(), far).await?;
            // What is read brings tickets to come back with.
            stream.read_u8().await
        });
        let met = match current.acceptor().accept(near).await {
            Ok(mut stream) => {
                let connection = stream.get_ref().1;
                let kind = connection.handshake_kind().unwrap();
                let holder = current.holder(connection.peer_certificates().unwrap_or_default());
                stream.write_u8(1).await.unwrap();
                stream.flush().await.unwrap();
                Some((holder, kind))
            }
            Err(_) => None,
        };
        let read = other.await.unwrap();
        assert!(met.is_none() || read.is_ok());
        met
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_identifier_method = KeyIdMethod::Sha256;
        params
    }

    fn of_authority(name: &str) -> CertificateParams {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    /// An authority and its certificate in PEM.
    fn authority(name: &str) -> (Authority, String) {
        let (params, key) = (of_authority(name), KeyPair::generate().unwrap());
        let pem = params.self_signed(&key).unwrap().pem();
        (Issuer::new(params, key), pem)
    }

    fn signed(params: &CertificateParams, by: &Authority, others: &[CertificateDer<'static>]) -> Chain {
        let key = KeyPair::generate().unwrap();
        let mut chain = vec![params.signed_by(&key, by).unwrap().der().clone()];
        chain.extend_from_slice(others);
        (chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// Names itself a host and a replica.
    fn pretender(host: HostId) -> CertificateParams {
        let mut params = params(&format!("host-{host}"));
        let names = [format!("urn:uuid:{host}"), "urn:allod:replica".to_owned()];
        params.subject_alt_names =
            names.iter().map(|n| SanType::URI(n.as_str().try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    fn client_of(chain: &Chain) -> Holder {
        Holder { client: Some(api::Certificate(Arc::from(chain.0[0].as_ref()))), ..Holder::default() }
    }

    #[tokio::test]
    async fn only_the_clouds_own_ca_says_who_is_a_host() {
        let world = World::new();
        let (root, pem) = authority("Client CA");
        let tls = world.with(&pem).unwrap();
        let current = tls.at(Instant::now());
        assert_eq!(world.seen(&current, None).await, Some(Holder::default()));
        let host = Holder { host: Some(world.host), ..Holder::default() };
        assert_eq!(world.seen(&current, Some(world.own(&format!("host-{}", world.host)))).await, Some(host));
        let replica = Holder { replica: true, ..Holder::default() };
        assert_eq!(world.seen(&current, Some(world.own("replica"))).await, Some(replica));

        // Of the other authority, whatever it certifies.
        let plain = signed(&params("client"), &root, &[]);
        assert_eq!(
            world.seen(&current, Some((plain.0.clone(), plain.1.clone_key()))).await,
            Some(client_of(&plain))
        );
        let mut chains = vec![signed(&pretender(world.host), &root, &[])];
        // Through an intermediate, also one that has the name of the cloud's CA.
        for name in ["Intermediate", "Allod CA"] {
            let (params, key) = (of_authority(name), KeyPair::generate().unwrap());
            let certificate = params.signed_by(&key, &root).unwrap().der().clone();
            let between = Issuer::new(params, key);
            chains.push(signed(&pretender(world.host), &between, std::slice::from_ref(&certificate)));
            // With a host's true certificate, and the cloud's CA, among what comes with it.
            let host = world.own(&format!("host-{}", world.host)).0.remove(0);
            let ca = pki::certificate(&world.dir.path().join("ca.crt")).unwrap();
            chains.push(signed(&pretender(world.host), &between, &[host, ca, certificate]));
        }
        for chain in chains {
            let expected = client_of(&chain);
            assert_eq!(world.seen(&current, Some(chain)).await, Some(expected));
        }
    }

    #[tokio::test]
    async fn who_has_no_certificate_of_either_is_not_taken() {
        let world = World::new();
        let (root, pem) = authority("Client CA");
        let tls = world.with(&pem).unwrap();
        let current = tls.at(Instant::now());
        for name in ["Stranger", "Client CA", "Allod CA"] {
            let (stranger, _) = authority(name);
            assert_eq!(
                world.seen(&current, Some(signed(&pretender(world.host), &stranger, &[]))).await,
                None
            );
        }
        // A host's key signs nothing.
        let own = world.own(&format!("host-{}", world.host));
        let key = KeyPair::try_from(&own.1).unwrap();
        let forger = Issuer::new(of_authority("host"), key);
        assert_eq!(world.seen(&current, Some(signed(&pretender(world.host), &forger, &own.0))).await, None);
        // Nor is what is for servers, or over, taken from clients.
        let mut server = params("client");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        assert_eq!(world.seen(&current, Some(signed(&server, &root, &[]))).await, None);
        let mut over = params("client");
        over.not_after = rcgen::date_time_ymd(2020, 1, 1);
        over.not_before = rcgen::date_time_ymd(2019, 1, 1);
        assert_eq!(world.seen(&current, Some(signed(&over, &root, &[]))).await, None);
        // Without authorities for clients, nobody but the cloud's own is.
        let none = world.pki.listener([127, 0, 0, 1].into(), &["localhost".into()], None).unwrap();
        let client = signed(&params("client"), &root, &[]);
        assert_eq!(world.seen(&none.at(Instant::now()), Some(client)).await, None);
    }

    #[tokio::test]
    async fn lists_of_the_file_revoke() {
        let world = World::new();
        let (root, pem) = authority("Client CA");
        let (other, second) = authority("Without a list");
        let numbered = |number: u64, by: &Authority| {
            let mut params = params("client");
            params.serial_number = Some(SerialNumber::from(number));
            signed(&params, by, &[])
        };
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(7),
                revocation_time: rcgen::date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&root).unwrap().pem().unwrap();
        let tls = world.with(&format!("{pem}{list}{second}")).unwrap();
        let current = tls.at(Instant::now());
        assert_eq!(world.seen(&current, Some(numbered(7, &root))).await, None);
        assert!(world.seen(&current, Some(numbered(8, &root))).await.is_some());
        assert!(world.seen(&current, Some(numbered(7, &other))).await.is_some());
    }

    #[test]
    fn a_file_that_cannot_be_is_told_at_the_start() {
        let world = World::new();
        let key = KeyPair::generate().unwrap().serialize_pem();
        let ca = fs::read_to_string(world.dir.path().join("ca.crt")).unwrap();
        let (_, pem) = authority("Client CA");
        for (text, why) in [
            (String::new(), "no certificate"),
            ("nonsense".into(), "no certificate"),
            ("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".into(), "client_ca"),
            (format!("{pem}{ca}"), "cloud's own CA"),
            (format!("{pem}{key}"), "something else"),
        ] {
            let error = world.with(&text).err().unwrap();
            assert!(format!("{error:#}").contains(why), "{error:#}");
        }
        fs::remove_file(world.file()).unwrap();
        let missing = world.pki.listener([127, 0, 0, 1].into(), &[], Some(&world.file())).err().unwrap();
        assert!(format!("{missing:#}").contains("clients.pem"), "{missing:#}");
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_nobody_comes_back_unverified() {
        let world = World::new();
        let ((first, one), (second, two)) = (authority("First"), authority("Second"));
        let tls = world.with(&one).unwrap();
        let now = Instant::now();
        let leaf = || signed(&params("client"), &first, &[]);
        let again = world.client(Some(leaf()));
        let before = tls.at(now);
        assert_eq!(meet(&before, &again).await.unwrap().1, HandshakeKind::Full);
        let (holder, kind) = meet(&before, &again).await.unwrap();
        assert_eq!(kind, HandshakeKind::Resumed);
        assert!(holder.client.is_some(), "who comes back is verified here");
        fs::write(world.file(), &two).unwrap();
        assert!(world.seen(&tls.at(now), Some(leaf())).await.is_some(), "not looked yet");
        let after = tls.at(now + LOOK);
        assert!(meet(&after, &again).await.is_none());
        assert!(world.seen(&after, Some(leaf())).await.is_none());
        let new = signed(&params("client"), &second, &[]);
        assert!(world.seen(&after, Some(new)).await.is_some());
        // What is wrong changes nothing.
        fs::write(world.file(), "nonsense").unwrap();
        let same = tls.at(now + LOOK * 2);
        assert!(world.seen(&same, Some(signed(&params("client"), &second, &[]))).await.is_some());
        fs::write(world.file(), &one).unwrap();
        assert!(world.seen(&tls.at(now + LOOK * 3), Some(leaf())).await.is_some());
    }
}
