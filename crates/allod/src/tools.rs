//! Tools for any cloud: `allod certify`, `allod probe` and `allod tempest-config`, in the whole binary and, alone, in the small one.

use std::process::ExitCode;

use anyhow::Result;

/// Runs a tool to its end on one thread. 2: it could not do what it was asked.
pub fn finish(tool: impl Future<Output = Result<ExitCode>>) -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        // Installed before: the same.
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(tool)).unwrap_or_else(|error| {
        eprintln!("allod: {error:#}");
        ExitCode::from(2)
    })
}

#[cfg(not(feature = "server"))]
pub use alone::main;

#[cfg(not(feature = "server"))]
mod alone {
    use std::process::ExitCode;

    use clap::{CommandFactory, Parser, Subcommand};

    /// Tools for any OpenStack cloud.
    #[derive(Parser)]
    #[command(name = "allod", version, about, arg_required_else_help = true)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    #[derive(Subcommand)]
    enum Command {
        /// Judge a cloud by the rules of Sovereign Cloud Stack.
        Certify(Box<certify::cli::Certify>),
        /// Watch a cloud as its tenants feel it.
        Probe(Box<probe::cli::Probe>),
        /// Write what Tempest must know of a cloud to run the tests that scs-0128 asks for.
        TempestConfig(Box<certify::tempest::TempestConfig>),
        /// Print a completion script.
        Completions {
            /// For which shell.
            shell: clap_complete::Shell,
        },
    }

    /// The small binary.
    pub fn main() -> ExitCode {
        match Cli::parse().command {
            Command::Certify(args) => super::finish(args.main()),
            Command::Probe(args) => super::finish(args.main()),
            Command::TempestConfig(args) => super::finish(args.main()),
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "allod", &mut std::io::stdout());
                ExitCode::SUCCESS
            }
        }
    }
}
