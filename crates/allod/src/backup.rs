//! `allod backup` and `allod restore`: the whole control plane in one file.
//!
//! Gzip of lines of JSON, encrypted if asked for: a head, the files (keys of tokens and credentials, CA, passwords, images if
//! asked for) in pieces, the database's dump, and at last the SHA-256 of all lines before. The database is of one moment; images are linked before that
//! moment and after it, so that every image it knows is there, whoever uploads or deletes meanwhile.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use store::{Content, Schema};

use crate::config::{Config, State};
use crate::moving::{self, Dump};
use crate::seal::{self, Key, Seal, Sink};
use crate::shared;

const FORMAT: u32 = 1;
/// Bytes of a file in one line.
const PIECE: usize = 768 * 1024;
/// Directories of keys, each in a file of its own whose name is a number, or ends so.
const KEYS: [&str; 5] = ["fernet", "credential-keys", "oidc-keys", "jws-private-keys", "jws-public-keys"];
const PEM: &str = ".pem";
/// Longest line: a piece, or a row.
const LINE: u64 = 64 * 1024 * 1024;

/// What a backup is of: none is restored as the other.
#[derive(Serialize, Deserialize, Default, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Of {
    /// A cloud (`allod backup`).
    #[default]
    Cloud,
    /// A registry of conformance (`allod registry backup`).
    Registry,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Backup {
        format: u32,
        version: String,
        at: i64,
        images: bool,
        #[serde(default)]
        of: Of,
    },
    File {
        path: String,
        mode: u32,
    },
    Bytes(String),
    Database,
    Sha256(String),
}

/// Writes lines, and what they come to.
struct Writer {
    out: GzEncoder<Sink>,
    hash: Sha256,
}

impl Writer {
    fn raw(&mut self, line: &[u8]) -> Result<()> {
        self.hash.update(line);
        self.hash.update(b"\n");
        self.out.write_all(line)?;
        Ok(self.out.write_all(b"\n")?)
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        self.raw(&serde_json::to_vec(line)?)
    }

    fn file(&mut self, from: &Path, path: &str) -> Result<()> {
        let mut file = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        self.line(&Line::File { path: path.to_owned(), mode })?;
        let mut piece = vec![0; PIECE];
        loop {
            let read = file.read(&mut piece)?;
            match piece.get(..read) {
                Some(bytes) if read > 0 => self.line(&Line::Bytes(BASE64.encode(bytes)))?,
                _ => return Ok(()),
            }
        }
    }
}

/// Hard links of images as they were; gone with their owner.
struct Links(PathBuf);

impl Links {
    fn new(images: &Path) -> Result<Self> {
        let links = Links(images.join(format!("backup-{}", std::process::id())));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&links.0)?;
        Ok(links)
    }

    fn take(&self, images: &Path) -> Result<()> {
        let Ok(entries) = fs::read_dir(images.join("data")) else { return Ok(()) };
        for entry in entries {
            let entry = entry?;
            match fs::hard_link(entry.path(), self.0.join(entry.file_name())) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotFound
                    ) =>
                {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// A backup that is written aside; it has its name when it is whole.
pub struct Output<'a> {
    path: &'a Path,
    aside: PathBuf,
    encryptor: Option<age::Encryptor>,
}

impl<'a> Output<'a> {
    /// Says no before anything is read.
    pub fn new(path: &'a Path, seal: &Seal) -> Result<Self> {
        let (encryptor, aside) = (seal.check()?, path.with_extension("partial"));
        let _ = fs::remove_file(&aside);
        if path.exists() {
            bail!("{} is there already", path.display());
        }
        Ok(Output { path, aside, encryptor })
    }

    /// Writes files, each under a name, and a database's dump (mode 0600); `row` sees the dump's lines.
    pub fn write(
        self,
        of: Of,
        images: bool,
        files: &[(PathBuf, String)],
        dump: &Dump,
        mut row: impl FnMut(&str),
    ) -> Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.aside);
        let file = file.with_context(|| format!("cannot write {}", self.aside.display()))?;
        let out = GzEncoder::new(seal::sink(file, self.encryptor)?, Compression::fast());
        let mut writer = Writer { out, hash: Sha256::new() };
        let (version, at) = (env!("CARGO_PKG_VERSION").to_owned(), moving::clock().now().as_secs());
        writer.line(&Line::Backup { format: FORMAT, version, at, images, of })?;
        for (from, name) in files {
            writer.file(from, name)?;
        }
        writer.line(&Line::Database)?;
        for line in BufReader::with_capacity(1 << 20, File::open(&dump.0)?).lines() {
            let line = line?;
            row(&line);
            writer.raw(line.as_bytes())?;
        }
        let hash = hex::encode(std::mem::take(&mut writer.hash).finalize());
        writer.line(&Line::Sha256(hash))?;
        writer.out.finish()?.finish()?;
        Ok(fs::rename(&self.aside, self.path)?)
    }
}

/// Writes a backup of a cloud, running or not, into a new file.
pub async fn backup(state: &State, output: &Path, images: bool, seal: &Seal) -> Result<()> {
    let output = Output::new(output, seal)?;
    let config = state.config()?;
    let places = shared::places(state, &config);
    let bar = crate::up::spinner("reading the database");
    let store = moving::source(&config.database_url(state), cloud::SCHEMAS).await?;
    let links = images.then(|| Links::new(&places.images)).transpose()?;
    if let Some(links) = &links {
        links.take(&places.images)?;
    }
    // Where the database is as well: the backup may be going to a place that shall see nothing in clear.
    let dump = Dump(state.path(&format!("db/backup-{}.dump", std::process::id())));
    let content = store.dump(cloud::SCHEMAS, &dump.0).await?;
    if let Some(links) = &links {
        links.take(&places.images)?;
    }
    bar.set_message("writing");
    let mut files = Vec::new();
    for keys in KEYS {
        let directory = places.base.join(keys);
        for name in names(&directory)?.iter().filter(|n| n.parse::<u64>().is_ok() || n.ends_with(PEM)) {
            files.push((directory.join(name), format!("{keys}/{name}")));
        }
    }
    for name in ["pki/ca.crt", "pki/ca.key", "secrets.json", "config.json", "host_id"] {
        if state.path(name).exists() {
            files.push((state.path(name), name.to_owned()));
        }
    }
    if let Some(links) = &links {
        files
            .extend(names(&links.0)?.into_iter().map(|name| (links.0.join(&name), format!("images/{name}"))));
    }
    let mut missing = BTreeSet::new();
    output.write(Of::Cloud, images, &files, &dump, |line| {
        if let Some(links) = &links
            && let Some(id) = active_image(line)
            && !links.0.join(&id).exists()
        {
            missing.insert(id);
        }
    })?;
    bar.finish_and_clear();
    moving::print(&content);
    for id in missing {
        eprintln!("allod: image {id} has no bytes, here and in the backup");
    }
    Ok(())
}

/// The id of an image with bytes, if that is what a row of the dump is.
fn active_image(line: &str) -> Option<String> {
    if !line.contains("\\\"disk_format\\\"") {
        return None;
    }
    let row: Value = serde_json::from_str(line).ok()?;
    let body: Value = serde_json::from_str(row["row"][1].as_str()?).ok()?;
    let has = matches!(body["status"].as_str()?, "active" | "deactivated");
    has.then(|| body["id"].as_str().map(str::to_owned)).flatten()
}

/// A backup to read, and what decrypts it.
pub struct Backup<'a> {
    /// The file.
    pub path: &'a Path,
    /// What opens it.
    pub key: &'a Key,
}

/// Lines of a backup; the last is checked against the others.
fn lines(input: &Backup) -> Result<impl Iterator<Item = Result<String>>> {
    let mut reader = BufReader::with_capacity(1 << 20, GzDecoder::new(input.key.open(input.path)?));
    Ok(std::iter::from_fn(move || {
        let mut line = Vec::new();
        match reader.by_ref().take(LINE).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) if line.pop() != Some(b'\n') => Some(Err(anyhow::anyhow!("the backup is cut off"))),
            Ok(_) => Some(String::from_utf8(line).context("the backup is damaged")),
            Err(error) => Some(Err(anyhow::Error::new(error).context("the backup is damaged"))),
        }
    }))
}

/// Reads all of it once: only what is whole is restored, and only as what it is. Whether it has images.
pub fn verify(input: &Backup, wanted: Of) -> Result<bool> {
    let (mut hash, mut with_images, mut first, mut whole) = (Sha256::new(), false, true, false);
    for line in lines(input)? {
        let line = line?;
        if std::mem::take(&mut first) {
            match serde_json::from_str(&line) {
                Ok(Line::Backup { format: FORMAT, of: Of::Cloud, .. }) if wanted != Of::Cloud => {
                    bail!("{} is a backup of a cloud: `allod restore`", input.path.display())
                }
                Ok(Line::Backup { format: FORMAT, of: Of::Registry, .. }) if wanted != Of::Registry => {
                    bail!("{} is a backup of a registry: `allod registry restore`", input.path.display())
                }
                Ok(Line::Backup { format: FORMAT, images, .. }) => with_images = images,
                Ok(Line::Backup { format, .. }) => bail!("format {format} of the backup is not known here"),
                _ => bail!("{} is no backup of Allod", input.path.display()),
            }
        }
        if let Ok(Line::Sha256(told)) = serde_json::from_str(&line) {
            whole = hex::encode(std::mem::take(&mut hash).finalize()) == told;
            continue;
        }
        whole = false;
        hash.update(line.as_bytes());
        hash.update(b"\n");
    }
    if whole { Ok(with_images) } else { bail!("{} is cut off or damaged", input.path.display()) }
}

/// Where a file of the backup goes.
fn target(state: &State, places: &shared::Places, path: &str) -> Option<PathBuf> {
    match path.split_once('/') {
        Some((keys, name)) if KEYS.contains(&keys) => Some(places.base.join(keys).join(name)),
        Some(("images", name)) => Some(places.images.join("data").join(name)),
        Some(("pki", _)) => Some(state.path(path)),
        None if path == "secrets.json" || path == "host_id" => Some(state.path(path)),
        _ => None,
    }
}

/// The configuration that stands in a backup.
fn kept_config(input: &Backup) -> Result<Option<Config>> {
    let (mut wanted, mut bytes) = (false, Vec::new());
    for line in lines(input)? {
        match serde_json::from_str(&line?) {
            Ok(Line::File { path, .. }) => wanted = path == "config.json",
            Ok(Line::Bytes(piece)) if wanted => bytes.extend(BASE64.decode(piece)?),
            Ok(Line::Database) => break,
            _ => {}
        }
    }
    if bytes.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&bytes)?)) }
}

/// Makes a cloud from a backup, in an empty state directory and an empty database.
pub async fn restore(dir: &Path, input: &Path, config: Option<Config>, key: &Key) -> Result<()> {
    let input = &Backup { path: input, key };
    let bar = crate::up::spinner("checking the backup");
    let with_images = verify(input, Of::Cloud)?;
    let state = State::create(dir)?;
    let config = match config {
        Some(config) => config,
        None => kept_config(input)?.unwrap_or_default(),
    };
    let places = shared::places(&state, &config);
    for taken in [state.path("secrets.json"), state.path("pki/ca.key"), state.path("db/allod.sqlite")] {
        if taken.exists() {
            bail!("{} is there already: a backup is restored into an empty state directory", taken.display());
        }
    }
    let mut directories = KEYS.map(|keys| places.base.join(keys)).to_vec();
    directories.push(places.images.join("data"));
    for directory in directories {
        if !names(&directory)?.is_empty() {
            bail!("there are keys or images in {} already", directory.display());
        }
    }
    // The database first: it refuses where it is not empty, and then nothing was done.
    bar.set_message("writing the database");
    let dump = Dump(state.path("db/restore.dump"));
    let content = load(input, dump, &config.database_url(&state), cloud::SCHEMAS).await?;
    bar.set_message("writing files");
    unpack_files(input, |path| target(&state, &places, path))?;
    if let Some(shared) = &config.replica.shared_dir {
        for name in ["pki/ca.crt", "pki/ca.key", "secrets.json"] {
            let to = shared.join(name);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(to.parent().context("a file")?)?;
            crate::files::write_secret(&to, &fs::read(state.path(name))?)?;
        }
    }
    state.keep(&config)?;
    bar.finish_and_clear();
    moving::print(&content);
    if !with_images {
        eprintln!(
            "allod: the backup has no images: copy their files to {}",
            places.images.join("data").display()
        );
    }
    Ok(())
}

/// Fills an empty database; `dump` is where its dump lies meanwhile.
pub async fn load(input: &Backup<'_>, dump: Dump, url: &str, schemas: &'static [Schema]) -> Result<Content> {
    unpack_dump(input, &dump.0)?;
    let database = moving::peek(url, true).await?;
    let content = database.load(&dump.0).await?;
    // The first server brings the schema up to date; one that is too new is told now.
    database.pending(schemas).await?;
    Ok(content)
}

fn unpack_dump(input: &Backup, dump: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(dump)?;
    let mut out = BufWriter::new(file);
    let mut inside = false;
    for line in lines(input)? {
        let line = line?;
        match serde_json::from_str(&line) {
            Ok(Line::Database) => inside = true,
            Ok(Line::Sha256(_)) => break,
            _ if inside => writeln!(out, "{line}")?,
            _ => {}
        }
    }
    Ok(out.flush()?)
}

/// Writes the files that have a `target`, where none may be.
pub fn unpack_files(input: &Backup, target: impl Fn(&str) -> Option<PathBuf>) -> Result<()> {
    let mut open: Option<File> = None;
    for line in lines(input)? {
        match serde_json::from_str(&line?) {
            Ok(Line::File { path, mode }) => {
                if !Path::new(&path).components().all(|c| matches!(c, Component::Normal(_))) {
                    bail!("the backup names a file '{path}'");
                }
                open = match target(&path) {
                    Some(path) => {
                        let parent = path.parent().context("a file")?;
                        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
                        let mode = mode & 0o700;
                        Some(OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?)
                    }
                    None => None,
                };
            }
            Ok(Line::Bytes(piece)) => {
                if let Some(file) = &mut open {
                    file.write_all(&BASE64.decode(piece)?)?;
                }
            }
            Ok(Line::Database) => break,
            _ => {}
        }
    }
    Ok(())
}
