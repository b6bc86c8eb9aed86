//! The `tidegate` program: reads the command line, starts what it asks for, and ends it on a signal.
//!
//! Its allocator is the system's. Measured against mimalloc 3 on Linux with 16,000 connections: 0.4 KiB resident for an idle
//! connection instead of 1.1, 1 MiB at the start instead of 10, and no difference in CPU time for upgrades or deliveries.

use std::process::ExitCode;

use tidegate::cli::broadcast::BroadcastArgs;
use tidegate::cli::{self, Command, Stop};
use tidegate::{BroadcastServer, Logging, Metrics, Recovery, RunningServer, Tracking, logging};

/// Wrong flags, or what they ask for is not to be had on this machine.
const WRONG: u8 = 2;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(cli) => match cli.command {
            Command::Broadcast(arguments) => broadcast(*arguments),
            Command::Bench(arguments) => bench(*arguments),
        },
        Err(Stop::Told(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(Stop::Unfinished(help)) => {
            eprint!("{help}");
            ExitCode::from(WRONG)
        }
        Err(Stop::Wrong(line)) => wrong(&line),
    }
}

/// One line on standard error, and the exit code for it.
fn wrong(line: &str) -> ExitCode {
    let line = line.strip_prefix("error: ").unwrap_or(line);
    eprintln!("error: {line}");
    ExitCode::from(WRONG)
}

fn bench(arguments: load::cli::BenchArgs) -> ExitCode {
    match load::cli::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn broadcast(arguments: BroadcastArgs) -> ExitCode {
    let log = logging::start(arguments.log_format(), arguments.log_level());
    let config = match arguments.config() {
        Ok(config) => config,
        Err(error) => return wrong(&error.to_string()),
    };
    let drain = config.drain;
    let signals = match signals::Signals::new() {
        Ok(signals) => signals,
        Err(error) => return wrong(&format!("cannot wait for signals: {error}")),
    };
    let started = BroadcastServer::builder(config)
        .layer(Recovery::new())
        .layer(Logging)
        .layer(Tracking::new())
        .layer(Metrics::new())
        .log(log)
        .start();
    let server = match started {
        Ok(server) => server,
        Err(error) => return wrong(&error.to_string()),
    };
    for line in server.introduction() {
        tracing::info!("{line}");
    }
    signals.shut_down_on_first(&server, drain);
    end(server)
}

/// Waits for the end of the drain and says what was closed.
fn end(server: RunningServer) -> ExitCode {
    let summary = server.join();
    let (closed, seconds) = (summary.closed, summary.took.as_secs_f64());
    let cut = summary.connections - closed;
    tracing::info!("stopped: {closed} connections closed with 1001, {cut} cut, in {seconds:.1} s");
    ExitCode::SUCCESS
}

mod signals {
    //! The signals that end the program: the first one in order, the second at once.

    use std::io;
    use std::thread;
    use std::time::Duration;

    use tidegate::RunningServer;
    use tokio::runtime::{Builder, Runtime};

    /// Listens for SIGINT and SIGTERM (elsewhere: ctrl-C) from the moment it is made.
    pub struct Signals {
        runtime: Runtime,
        #[cfg(unix)]
        interrupt: tokio::signal::unix::Signal,
        #[cfg(unix)]
        terminate: tokio::signal::unix::Signal,
    }

    impl Signals {
        pub fn new() -> io::Result<Signals> {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            #[cfg(unix)]
            {
                use tokio::signal::unix::{SignalKind, signal};

                let _entered = runtime.enter();
                let interrupt = signal(SignalKind::interrupt())?;
                let terminate = signal(SignalKind::terminate())?;
                drop(_entered);
                Ok(Signals {
                    runtime,
                    interrupt,
                    terminate,
                })
            }
            #[cfg(not(unix))]
            Ok(Signals { runtime })
        }

        /// Waits for the first signal and begins the shutdown; from then on the next signal ends the process at once.
        pub fn shut_down_on_first(mut self, server: &RunningServer, drain: Duration) {
            let (name, _) = self.next();
            tracing::info!("{name}: shutting down within {drain:?}; once more to stop at once");
            server.shutdown();
            thread::spawn(move || {
                let (name, code) = self.next();
                tracing::warn!("{name} again: stopping at once");
                std::process::exit(code);
            });
        }

        /// The next signal and the exit code of a program that it ends.
        #[cfg(unix)]
        fn next(&mut self) -> (&'static str, i32) {
            let (interrupt, terminate) = (&mut self.interrupt, &mut self.terminate);
            self.runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => ("SIGINT", 128 + 2),
                    _ = terminate.recv() => ("SIGTERM", 128 + 15),
                }
            })
        }

        #[cfg(not(unix))]
        fn next(&mut self) -> (&'static str, i32) {
            // Without a way to hear of it the program is ended by other means.
            if self.runtime.block_on(tokio::signal::ctrl_c()).is_err() {
                loop {
                    thread::park();
                }
            }
            ("ctrl-C", 130)
        }
    }
}
