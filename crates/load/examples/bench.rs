//! The load generator as a program of its own: `cargo run --release -p tidegate-load --example bench -- --help`.

use std::process::ExitCode;

use clap::Parser;

/// Measures a WebSocket server with real sockets.
#[derive(Parser)]
struct Program {
    #[command(flatten)]
    bench: load::cli::BenchArgs,
}

fn main() -> ExitCode {
    match load::cli::run(Program::parse().bench) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
