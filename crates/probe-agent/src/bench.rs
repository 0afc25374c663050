//! What the guest itself can do: one core, and the disk under a directory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use crate::{Json, median_us};

/// Rounds of the arithmetic.
const ROUNDS: u64 = 50_000_000;
/// Written and read in one go.
const BLOCK: usize = 64 * 1024;
const BLOCKS: u32 = 256;
/// Small writes, each waited for.
const SYNCS: usize = 64;
/// Slower than that is slow.
const SLOW: Duration = Duration::from_millis(10);

/// Measures all of it.
pub(crate) fn bench(directory: &Path) -> Result<String> {
    let cpu = cpu();
    let path = directory.join(format!(".allod-probe-{}", std::process::id()));
    let measured = disk(&path);
    // It may not have come to be.
    let _ = std::fs::remove_file(&path);
    let disk = measured?;
    let mut json = Json::default().number("cpu_seconds", cpu).number("disk_write", disk.write);
    if let Some(read) = disk.read {
        json = json.number("disk_read", read);
    }
    Ok(json.number("disk_sync", disk.sync_ms).number("disk_slow", disk.slow).done())
}

/// Seconds for a fixed piece of work that no compiler takes apart.
fn cpu() -> f64 {
    let begin = Instant::now();
    let mut x = std::hint::black_box(0x9e37_79b9_7f4a_7c15u64);
    for _ in 0..ROUNDS {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    std::hint::black_box(x);
    begin.elapsed().as_secs_f64()
}

struct Disk {
    write: f64,
    read: Option<f64>,
    sync_ms: f64,
    slow: f64,
}

#[expect(clippy::cast_precision_loss, reason = "sizes and counts")]
fn disk(path: &Path) -> Result<Disk> {
    let block: Vec<u8> = (0..BLOCK).map(|i| u8::try_from(i * 7 % 251).unwrap_or(0)).collect();
    let mib = BLOCK as f64 * f64::from(BLOCKS) / (1024.0 * 1024.0);
    let mut file = File::create(path)?;
    let begin = Instant::now();
    for _ in 0..BLOCKS {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    let write = mib / begin.elapsed().as_secs_f64();
    let read = read(path).ok().map(|seconds| mib / seconds);
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let begin = Instant::now();
        file.write_all(block.get(..4096).unwrap_or_default())?;
        file.sync_data()?;
        times.push(begin.elapsed());
    }
    let slow = times.iter().filter(|t| **t > SLOW).count() as f64 / SYNCS as f64 * 100.0;
    Ok(Disk { write, read, sync_ms: median_us(times) / 1000.0, slow })
}

/// Seconds to read it from the disk itself; not every file system can.
fn read(path: &Path) -> Result<f64> {
    const ALIGN: usize = 4096;
    let mut file = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(path)?;
    let mut buffer = vec![0; BLOCK + ALIGN];
    let skip = buffer.as_ptr().align_offset(ALIGN);
    let Some(aligned) = buffer.get_mut(skip..skip + BLOCK) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let begin = Instant::now();
    while file.read(aligned)? > 0 {}
    Ok(begin.elapsed().as_secs_f64())
}
