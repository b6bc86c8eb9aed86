//! Every command a developer of Tidegate runs: `cargo xtask` alone lists them.
//!
//! Each command installs what it needs, under `target/` wherever it can; starts real servers on free ports and ends
//! them however it ends itself; and fails with a sentence where it cannot do its whole work. Nothing is skipped in
//! silence.
#![forbid(unsafe_code)]

mod autobahn;
mod compare;
mod install;
mod peers;
mod process;
mod purity;
mod server;
mod steps;
mod table;
mod targets;
mod test;
mod tools;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// What `cargo xtask` prints below its list of commands.
const EXAMPLES: &str = "\
Before a commit:
  cargo xtask test --quick          formatting, lints, purity and tests: a minute or two
  cargo xtask test                  all that CI runs: also documentation, rival servers and a part of Autobahn

When the protocol changed:
  cargo xtask autobahn              all 517 cases, on epoll and on io_uring: about 20 minutes
  cargo xtask autobahn --driver epoll --cases '9.*,12.1.*'
  cargo xtask fuzz --seconds 300    every fuzz target for five minutes

When the delivery path changed:
  cargo xtask compare --only fanout-8     one row of the table of ratios
  cargo xtask compare                     the whole table, kept under bench-runs/";

/// The developer's commands of Tidegate.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every check: the command that must be green before a commit, and all that CI runs.
    Test(test::Options),
    /// Prove that `wire` and `engine` see no clock, socket, thread, runtime or randomness of the system.
    Purity,
    /// Run the Autobahn suite against `tidegate broadcast`, path /echo.
    Autobahn(autobahn::Options),
    /// Measure Tidegate against the bare loop, `ws`, Socket.IO and tokio-tungstenite, in turn and pinned.
    Compare(compare::Options),
    /// Run each fuzz target for a while.
    Fuzz(tools::FuzzOptions),
    /// Check licences, sources and banned crates of every dependency.
    Deny,
    /// Type-check for Windows and macOS the crates that build no C.
    #[command(long_about = targets::HELP)]
    Targets,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = run(arguments.command);
    process::leave_the_end_to_signals();
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Carries the command out in the workspace's root; `false` where what it checks does not hold.
fn run(command: Command) -> anyhow::Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in the workspace")?;
    std::env::set_current_dir(root).with_context(|| format!("cannot enter {}", root.display()))?;
    process::end_children_on_signals()?;
    match command {
        Command::Test(options) => test::run(&options),
        Command::Purity => purity::run(),
        Command::Autobahn(options) => autobahn::run(&options),
        Command::Compare(options) => compare::run(&options),
        Command::Fuzz(options) => tools::fuzz(&options),
        Command::Deny => tools::deny(),
        Command::Targets => targets::run(),
    }
}
