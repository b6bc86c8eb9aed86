//! The flags of `tidegate broadcast`, and what they become.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::config::{BroadcastConfig, Compression, ConfigError, TlsFiles};
use crate::logging::{LogFormat, LogLevel};
use crate::units::{Size, UnitError, parse_duration};

const EXAMPLES: &str = "\
Examples:
  tidegate broadcast                               every interface, port 9002, a worker on each core
  tidegate broadcast --addr 127.0.0.1:0            this machine alone, any free port (is printed)
  tidegate broadcast --tls-cert cert.pem --tls-key key.pem
  tidegate broadcast --flush-delay 2ms             many senders: wait a little, write less often
  tidegate broadcast --on-full drop-oldest --queue-messages 256
  tidegate broadcast -addr :9002 -batch 64 -ring 2048 -workers 0 -numa -1

Try it with two clients:
  websocat ws://127.0.0.1:9002
Look inside:
  curl http://127.0.0.1:9002/metrics    /health    /debug/probes

Sizes: 65536, 64KiB, 16MiB. Durations: 500ms, 2s, 5m; 0 is off.
Flags take one dash or two, and a space or \"=\": -addr=:9002, --addr :9002.";

/// See `--help`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct BroadcastArgs {
    /// Where to listen: HOST:PORT; `:PORT` is every interface, port 0 any free one
    #[arg(
        long,
        value_name = "HOST:PORT",
        default_value = ":9002",
        help_heading = "Listening"
    )]
    addr: String,
    /// Certificate chain, PEM; serves wss:// and https://
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "Listening")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Listening")]
    tls_key: Option<PathBuf>,
    /// Connections at most; further upgrades get 503 [default: the limit of open files less 100, or less a quarter if that is less]
    #[arg(long, value_name = "NUMBER", help_heading = "Listening")]
    max_connections: Option<usize>,

    /// Threads that serve connections, each with its own; 0: one for each core this process may use
    #[arg(long, value_name = "NUMBER", default_value_t = 0, help_heading = "Engine")]
    workers: u16,
    /// Events taken in one turn of a worker
    #[arg(long, value_name = "NUMBER", default_value_t = 64, help_heading = "Engine")]
    batch: usize,
    /// Capacity of a worker's rings (queues between workers, io_uring)
    #[arg(long, value_name = "NUMBER", default_value_t = 2048, help_heading = "Engine")]
    ring: usize,
    /// NUMA node to pin workers to; -1: automatic
    #[arg(long, value_name = "NODE", default_value_t = -1, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1..), help_heading = "Engine")]
    numa: i32,
    /// How sockets are driven; auto: the one that measures best and is permitted
    #[arg(long, value_enum, default_value = "auto", help_heading = "Engine")]
    driver: Driver,
    /// How long frames due to a connection may wait to leave together: 0, 2ms, ..., or auto (grows with load)
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = parse_flush_delay, help_heading = "Engine")]
    flush_delay: FlushDelay,
    /// The longest wait of `--flush-delay auto`
    #[arg(long, value_name = "DURATION", default_value = "5ms", value_parser = parse_duration, help_heading = "Engine")]
    flush_delay_max: Duration,
    /// permessage-deflate for clients that offer it; shared: a message is compressed once for all receivers
    #[arg(
        long,
        value_name = "HOW",
        value_enum,
        default_value = "off",
        num_args = 0..=1,
        default_missing_value = "shared",
        help_heading = "Engine"
    )]
    compress: Compress,

    /// Largest message, after inflating; a larger one ends its connection with 1009
    #[arg(long, value_name = "SIZE", default_value = "1MiB", help_heading = "Limits")]
    max_message: Size,
    /// Messages that may wait for one connection
    #[arg(long, value_name = "NUMBER", default_value_t = 1024, help_heading = "Limits")]
    queue_messages: usize,
    /// Bytes that may wait for one connection [default: one largest message, at least 1MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    queue_bytes: Option<Size>,
    /// What happens to a connection whose queue is full. Disconnecting it, with close code 3008, is what tells its client that it
    /// missed something
    #[arg(long, value_enum, default_value = "disconnect", help_heading = "Limits")]
    on_full: OnFull,

    /// A connection silent this long is pinged; 0: never
    #[arg(long, value_name = "DURATION", default_value = "25s", value_parser = parse_duration, help_heading = "Deadlines")]
    ping_interval: Duration,
    /// A pinged connection silent this long is closed
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration, help_heading = "Deadlines")]
    pong_timeout: Duration,
    /// A connection that does not take a write within this time is cut: it reads too slowly, or not at all
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration, help_heading = "Deadlines")]
    write_timeout: Duration,
    /// A connection that sends no message this long is closed; 0: never
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = parse_duration, help_heading = "Deadlines")]
    idle_timeout: Duration,
    /// On SIGINT or SIGTERM: how long connections have to take what is due to them. One that has all of it must answer the
    /// close within 5s, or within this time if that is less
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration, help_heading = "Deadlines")]
    drain: Duration,

    /// How often a line of statistics is logged; 0: never
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_duration, help_heading = "Logs")]
    stats_interval: Duration,
    /// How log lines are written
    #[arg(long, value_enum, default_value = "text", help_heading = "Logs")]
    log_format: LogFormat,
    /// Which log lines are written; debug tells of each connection
    #[arg(long, value_enum, default_value = "info", help_heading = "Logs")]
    log_level: LogLevel,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Driver {
    Auto,
    Epoll,
    Uring,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Compress {
    Off,
    Shared,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnFull {
    /// Drop the message that waited longest
    DropOldest,
    /// Drop the message that found no room
    DropNewest,
    /// Close the connection with 3008
    Disconnect,
}

#[derive(Clone, Copy, Debug)]
enum FlushDelay {
    Fixed(Duration),
    Auto,
}

fn parse_flush_delay(text: &str) -> Result<FlushDelay, UnitError> {
    if text == "auto" {
        Ok(FlushDelay::Auto)
    } else {
        parse_duration(text).map(FlushDelay::Fixed)
    }
}

impl BroadcastArgs {
    /// How log lines are to be written.
    pub fn log_format(&self) -> LogFormat {
        self.log_format
    }

    /// Which log lines are to be written.
    pub fn log_level(&self) -> LogLevel {
        self.log_level
    }

    /// The configuration that these flags ask for, checked as far as it can be without touching the machine.
    pub fn config(self) -> Result<BroadcastConfig, ConfigError> {
        let mut config = BroadcastConfig {
            address: self.addr,
            tls: self
                .tls_cert
                .zip(self.tls_key)
                .map(|(certificate, key)| TlsFiles { certificate, key }),
            connections_max: self.max_connections,
            workers: self.workers,
            batch: self.batch,
            ring: self.ring,
            numa_node: u32::try_from(self.numa).ok(),
            driver: match self.driver {
                Driver::Auto => reactor::DriverKind::Auto,
                Driver::Epoll => reactor::DriverKind::Epoll,
                Driver::Uring => reactor::DriverKind::Uring,
            },
            flush_delay: match self.flush_delay {
                FlushDelay::Fixed(delay) => engine::FlushDelay::Fixed(delay),
                FlushDelay::Auto => engine::FlushDelay::Auto {
                    max: self.flush_delay_max,
                },
            },
            compression: match self.compress {
                Compress::Off => Compression::Off,
                Compress::Shared => Compression::Shared,
            },
            overflow: match self.on_full {
                OnFull::DropOldest => engine::Overflow::DropOldest,
                OnFull::DropNewest => engine::Overflow::DropNewest,
                OnFull::Disconnect => engine::Overflow::Disconnect,
            },
            stats_interval: some_unless_zero(self.stats_interval),
            drain: self.drain,
            ..BroadcastConfig::default()
        };
        config.heartbeat.ping_interval = some_unless_zero(self.ping_interval);
        config.heartbeat.pong_timeout = self.pong_timeout;
        config.heartbeat.write_timeout = self.write_timeout;
        config.heartbeat.idle_timeout = some_unless_zero(self.idle_timeout);
        config.limits.message_bytes_max = self.max_message.0;
        config.limits.queue_messages_max = self.queue_messages;
        match self.queue_bytes {
            Some(size) => config.limits.queue_bytes_max = size.0,
            None => config.fit_queue_to_message(),
        }
        config.validate()?;
        Ok(config)
    }
}

fn some_unless_zero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::{Command, parse};

    fn config(flags: &str) -> Result<BroadcastConfig, ConfigError> {
        let words = format!("tidegate broadcast {flags}");
        match parse(words.split_whitespace().map(OsString::from))
            .expect("parses")
            .command
        {
            Command::Broadcast(arguments) => arguments.config(),
            Command::Bench(_) => unreachable!("asked for broadcast"),
        }
    }

    #[test]
    fn flags_of_the_classic_spelling_reach_the_configuration() {
        let config = config("-addr 127.0.0.1:0 -batch=128 -ring=4096 -workers=8 -numa=0").expect("valid");
        assert_eq!(config.address, "127.0.0.1:0");
        assert_eq!(
            (config.batch, config.ring, config.workers, config.numa_node),
            (128, 4096, 8, Some(0))
        );
    }

    #[test]
    fn no_flags_are_the_default_configuration() {
        assert_eq!(config("").expect("valid"), BroadcastConfig::default());
    }

    #[test]
    fn the_queue_grows_with_the_message_unless_it_is_given() {
        let grown = config("--max-message 16MiB").expect("valid");
        assert!(grown.limits.queue_bytes_max >= 16 << 20);
        let error = config("--max-message 16MiB --queue-bytes 1MiB").expect_err("contradiction");
        let line = error.to_string();
        assert!(
            line.contains("--queue-bytes") && line.contains("--max-message") && !line.contains('\n'),
            "{line}"
        );
    }

    #[test]
    fn zero_turns_deadlines_off() {
        let config = config("--ping-interval 0 --idle-timeout 0 --stats-interval 0").expect("valid");
        assert_eq!(
            (config.heartbeat.ping_interval, config.heartbeat.idle_timeout),
            (None, None)
        );
        assert_eq!(config.stats_interval, None);
    }

    #[test]
    fn bare_compress_is_shared() {
        assert_eq!(
            config("--compress --batch 8").expect("valid").compression,
            Compression::Shared
        );
        assert_eq!(
            config("--compress off").expect("valid").compression,
            Compression::Off
        );
    }

    #[test]
    fn flush_delay_is_a_duration_or_auto() {
        let fixed = engine::FlushDelay::Fixed(Duration::from_millis(2));
        assert_eq!(config("--flush-delay 2ms").expect("valid").flush_delay, fixed);
        let auto = engine::FlushDelay::Auto {
            max: Duration::from_millis(4),
        };
        assert_eq!(
            config("--flush-delay auto --flush-delay-max 4ms")
                .expect("valid")
                .flush_delay,
            auto
        );
    }
}
