//! Backups at rest: encrypted in the format of age (age-encryption.org/v1), to public keys or with a passphrase, so that
//! `age` and `rage` read them as well.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::iter;
use std::path::{Path, PathBuf};

use age::secrecy::SecretString;
use anyhow::{Context, Result, bail};

/// What every encrypted backup begins with.
const MAGIC: &[u8] = b"age-encryption.org/v1";
/// The most work that a passphrase may cost: about a minute.
const WORK: u8 = 24;
/// The shortest passphrase that is taken.
const SHORTEST: usize = 12;

/// How a backup is encrypted.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Seal {
    /// Encrypt to an age public key (`age1…`); may be given several times.
    #[arg(long, value_name = "KEY")]
    recipient: Vec<String>,
    /// Encrypt with the passphrase in this file.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Do not encrypt: whoever reads the file has every key of the cloud.
    #[arg(long)]
    unencrypted: bool,
}

/// How a backup is decrypted.
#[derive(clap::Args)]
#[group(multiple = false)]
pub struct Key {
    /// File with the age identity (secret key) that the backup was encrypted to.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// File with the passphrase.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// The first line of a file; secrets do not belong into command lines.
fn passphrase(path: &Path) -> Result<SecretString> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() < SHORTEST {
        bail!("{} has no passphrase of at least {SHORTEST} characters", path.display());
    }
    Ok(SecretString::from(line.to_owned()))
}

/// Where a backup is written to.
pub enum Sink {
    /// As it is.
    Plain(BufWriter<File>),
    /// Encrypted.
    Sealed(Box<age::stream::StreamWriter<BufWriter<File>>>),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::Plain(out) => out.write(bytes),
            Sink::Sealed(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::Plain(out) => out.flush(),
            Sink::Sealed(out) => out.flush(),
        }
    }
}

impl Sink {
    /// Everything is on disk.
    pub fn finish(self) -> Result<()> {
        let mut out = match self {
            Sink::Plain(out) => out,
            Sink::Sealed(out) => out.finish()?,
        };
        out.flush()?;
        Ok(out.get_ref().sync_all()?)
    }
}

impl Seal {
    /// Wraps the file of a backup. Wrong keys are told before anything is done.
    pub fn check(&self) -> Result<Option<age::Encryptor>> {
        if let Some(path) = &self.passphrase_file {
            return Ok(Some(age::Encryptor::with_user_passphrase(passphrase(path)?)));
        }
        let parse = |key: &String| {
            key.parse::<age::x25519::Recipient>()
                .map_err(|e| anyhow::anyhow!("{key} is no age public key: {e}"))
        };
        let keys: Vec<age::x25519::Recipient> = self.recipient.iter().map(parse).collect::<Result<_>>()?;
        if keys.is_empty() {
            return Ok(None);
        }
        let keys = keys.iter().map(|k| k as &dyn age::Recipient);
        Ok(Some(age::Encryptor::with_recipients(keys).context("these keys cannot be used together")?))
    }
}

/// Wraps the file of a backup.
pub fn sink(file: File, encryptor: Option<age::Encryptor>) -> Result<Sink> {
    let out = BufWriter::with_capacity(1 << 20, file);
    Ok(match encryptor {
        Some(encryptor) => Sink::Sealed(Box::new(encryptor.wrap_output(out)?)),
        None => Sink::Plain(out),
    })
}

impl Key {
    /// What a backup holds, decrypted if it has to be.
    pub fn open(&self, input: &Path) -> Result<Box<dyn Read>> {
        let file = File::open(input).with_context(|| format!("cannot read {}", input.display()))?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let sealed = reader.fill_buf()?.starts_with(MAGIC);
        let given = self.identity.is_some() || self.passphrase_file.is_some();
        if !sealed && given {
            // What somebody put in place of ours.
            bail!("{} is not encrypted, though a key was given", input.display());
        }
        if !sealed {
            return Ok(Box::new(reader));
        }
        let decryptor = age::Decryptor::new_buffered(reader).context("the backup is damaged")?;
        let wrong = || format!("{} cannot be decrypted with this", input.display());
        if let Some(path) = &self.passphrase_file {
            let mut identity = age::scrypt::Identity::new(passphrase(path)?);
            identity.set_max_work_factor(WORK);
            let opened = decryptor.decrypt(iter::once(&identity as &dyn age::Identity));
            return Ok(Box::new(opened.with_context(wrong)?));
        }
        let Some(path) = &self.identity else {
            bail!("{} is encrypted: give --identity FILE or --passphrase-file FILE", input.display());
        };
        let name = path.display().to_string();
        let file =
            age::IdentityFile::from_file(name.clone()).with_context(|| format!("cannot read {name}"))?;
        let identities = file.into_identities().with_context(|| format!("{name} has no age identity"))?;
        let opened = decryptor.decrypt(identities.iter().map(|i| i.as_ref() as &dyn age::Identity));
        Ok(Box::new(opened.with_context(wrong)?))
    }
}
