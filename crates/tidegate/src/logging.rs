//! Log lines: their format, and their level while the program runs.
//!
//! Only the program starts this; who embeds the library keeps their own subscriber. Lines go to standard output, errors
//! that end the program to standard error. No line holds a payload.

use clap::ValueEnum;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, reload};

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people: time, level, sentence.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Which log lines are written: those of this level and above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What ended something.
    Error,
    /// What somebody should look at.
    Warn,
    /// Start, stop, statistics.
    Info,
    /// Each connection as well.
    Debug,
    /// Each message as well (its kind and size, never its payload).
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> LevelFilter {
        match level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}

/// Changes the level while the program runs.
#[derive(Clone, Debug)]
pub struct LogHandle(reload::Handle<LevelFilter, Registry>);

impl LogHandle {
    /// From now on lines of `level` and above are written.
    pub fn set_level(&self, level: LogLevel) {
        // The only error is that the subscriber is gone, and then there is nothing to set.
        let _ = self.0.reload(LevelFilter::from(level));
    }
}

/// Starts logging for the whole process. Does nothing but return a handle without effect if something else did.
pub fn start(format: LogFormat, level: LogLevel) -> LogHandle {
    let (filter, handle) = reload::Layer::new(LevelFilter::from(level));
    let lines = match format {
        LogFormat::Text => fmt::layer().with_target(false).with_ansi(is_terminal()).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_target(false).boxed(),
    };
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    LogHandle(handle)
}

fn is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stdout())
}
