//! `allod image build`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};

/// Commands about guest images.
#[derive(Subcommand)]
pub enum Command {
    /// Build an image from Debian packages.
    #[command(subcommand)]
    Build(Recipe),
}

/// What to build.
#[derive(Subcommand)]
pub enum Recipe {
    /// Kernel, busybox and dropbear: boots in seconds, at most 40 MB.
    Mini {
        /// The qcow2 file to make.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        source: Source,
    },
    /// Debian with cloud-init.
    Debian {
        /// The qcow2 file to make.
        #[arg(long, value_name = "FILE", default_value = "debian.qcow2")]
        output: PathBuf,
        #[command(flatten)]
        source: Source,
    },
}

/// Where packages come from.
#[derive(clap::Args)]
pub struct Source {
    /// Debian release by code name.
    #[arg(long, default_value = "bookworm")]
    release: String,
    /// Debian mirror [default: that of this machine].
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Where packages are kept between builds.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/allod-image-cache", env = "ALLOD_IMAGE_CACHE")]
    cache: PathBuf,
}

/// Builds; shows progress on a terminal, a line per step elsewhere.
pub async fn run(command: Command) -> Result<()> {
    let Command::Build(recipe) = command;
    let (mini, output, source) = match recipe {
        Recipe::Mini { output, source } => (true, output, source),
        Recipe::Debian { output, source } => (false, output, source),
    };
    let options =
        imagebuild::Options { output, cache: source.cache, release: source.release, mirror: source.mirror };
    let report = tokio::task::spawn_blocking(move || {
        let bar = ProgressBar::new(1);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {elapsed}") {
            bar.set_style(style);
        }
        let tell = |progress: &imagebuild::Progress| {
            if bar.is_hidden() {
                eprintln!("[{}/{}] {}", progress.done, progress.total, progress.step);
            }
            bar.set_length(progress.total.into());
            bar.set_position(progress.done.into());
            bar.set_message(progress.step.clone());
        };
        let built = if mini {
            imagebuild::build_mini(&options, &tell)
        } else {
            imagebuild::build_debian(&options, &tell)
        };
        bar.finish_and_clear();
        built
    })
    .await??;
    println!("{} ({:.1} MB)", report.output.display(), report.size as f64 / 1e6);
    Ok(())
}
