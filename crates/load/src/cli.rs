//! The command line of `tidegate bench`, to be mounted by the program.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use reactor::DriverKind;

use crate::limit::{Limit, Mode};
use crate::plan::{BenchError, Format, Pace, Plan, Protocol, Scenario, Traffic};
use crate::report::Report;
use crate::run::{Manner, run as run_plan};
use crate::target::{Target, Trust};

/// Where a broadcast server listens by default.
const URL: &str = "ws://127.0.0.1:9002/";
/// Where it echoes.
const ECHO_URL: &str = "ws://127.0.0.1:9002/echo";

/// Length of a message, bytes.
const SIZE: usize = 128;
/// The same of `slow`, where small ones would hardly fill the buffers of those that do not read.
const SIZE_SLOW: usize = 4 << 10;

/// Measures a WebSocket server with real sockets.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Examples:
  A server on one core, this on the other, 1,000 connections, one message at a time:
    taskset -c 0 tidegate broadcast --workers 1 &
    tidegate bench fanout --connections 1000 --cpu 1 --server-pid $!

  The same against the bare loop, which is what is physically possible:
    taskset -c 0 tidegate bench limit &
    tidegate bench fanout --url ws://127.0.0.1:9003 --connections 1000 --cpu 1 --server-pid $!

  100 senders, 2,000 messages a second in all, with a page to look at:
    tidegate bench fanout --senders 100 --rate 2000 --html run.html

  What 16,000 idle connections cost:
    tidegate bench idle --connections 16000 --duration 60s --server-pid PID

Exit code: 0 if all went well, 1 if deliveries were wrong, connections failed or the run stalled, 2 if the options \
do not fit together.")]
pub struct BenchArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Each message goes to all other connections; done when all have it.
    Fanout {
        #[command(flatten)]
        traffic: TrafficArgs,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Each message comes back to its sender (a server's `/echo`).
    Echo {
        #[command(flatten)]
        traffic: TrafficArgs,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Connections are held and nothing is sent: memory for each, CPU of the server.
    Idle {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Storms of connects, as fast as the window allows: CPU for each, time until open.
    Connect {
        /// How many storms; the figure for CPU is their median
        #[arg(long, default_value_t = 1)]
        rounds: u32,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// A fan-out, while further connections come and go.
    Churn {
        /// Connections that come each second
        #[arg(long, default_value_t = 100.0)]
        churn_rate: f64,
        /// How long each of them stays
        #[arg(long, default_value = "1s", value_parser = parse_duration)]
        churn_hold: Duration,
        #[command(flatten)]
        traffic: TrafficArgs,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// A fan-out in which a share of the connections never reads. Loss at these is expected, at the others not.
    Slow {
        /// Which share of the connections does not read
        #[arg(long, default_value_t = 0.1)]
        slow_share: f64,
        #[command(flatten)]
        traffic: TrafficArgs,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Serves: the bare gathering loop, one thread, no queues, rooms or limits; the physical limit to compare with.
    Limit {
        /// Where to listen
        #[arg(long, default_value = "127.0.0.1:9003")]
        addr: SocketAddr,
        /// To whom a message goes
        #[arg(long, value_enum, default_value_t = LimitMode::Fanout)]
        mode: LimitMode,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LimitMode {
    /// To all other connections
    Fanout,
    /// Back to its sender
    Echo,
}

#[derive(Args, Clone, Debug)]
struct TrafficArgs {
    /// How many connections send [default: 1; for echo all]
    #[arg(long)]
    senders: Option<u32>,
    /// Messages under way for each sender: the next goes when one has reached all [default: 1]
    #[arg(long, conflicts_with = "rate", value_name = "N")]
    in_flight: Option<u32>,
    /// Messages a second in all, whatever the server does; latency counts from when a message was due
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// Length of a message, bytes, from 32 [default: 128; for slow 4096, to fill up those that do not read]
    #[arg(long)]
    size: Option<usize>,
    /// Traffic before the measurement
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    warmup: Duration,
    /// Binary messages
    #[arg(long, conflicts_with = "text")]
    binary: bool,
    /// Text messages [default]
    #[arg(long)]
    text: bool,
}

#[derive(Args, Clone, Debug)]
struct CommonArgs {
    /// The server: ws:// or wss:// [default: ws://127.0.0.1:9002/, for echo with /echo]
    #[arg(long)]
    url: Option<Target>,
    /// How clients talk
    #[arg(long, value_enum, default_value_t = ProtocolArg::Plain)]
    protocol: ProtocolArg,
    /// Connections in all
    #[arg(long, short = 'n', default_value_t = 100)]
    connections: u32,
    /// Length of the measurement
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// Process of the server, if it runs here: its CPU and memory are measured
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Pin the loader to this CPU (Linux)
    #[arg(long, value_name = "NUMBER")]
    cpu: Option<usize>,
    /// The loader's own driver: auto, epoll or uring
    #[arg(long, default_value_t = DriverKind::Auto)]
    driver: DriverKind,
    /// Loopback source addresses from 127.0.0.1 on, each good for about 25,000 connections [default: one for 4,000]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    sources: u32,
    /// Connects under way at one time
    #[arg(long, default_value_t = 256)]
    connect_window: u32,
    /// How long one connect may take, with TLS and upgrade
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    connect_timeout: Duration,
    /// With wss://, take only certificates that this PEM file vouches for [default: take any]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Write the result as JSON ("-" is standard output)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the result as a page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// No progress on standard error
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProtocolArg {
    /// WebSocket messages, nothing else
    #[value(alias = "tidegate", alias = "ws")]
    Plain,
    /// Engine.IO 4 and Socket.IO: the event "m" with one string
    #[value(name = "socketio")]
    SocketIo,
}

/// Runs what the command line says; prints the table.
///
/// # Errors
/// One line; [`BenchError::exit_code`] is the program's exit code.
pub fn run(args: BenchArgs) -> Result<(), BenchError> {
    let (scenario, traffic, common) = match args.command {
        Command::Limit { addr, mode } => return serve(addr, mode),
        Command::Idle { common } => (Scenario::Idle, None, common),
        Command::Connect { rounds, common } => (Scenario::Connect { rounds }, None, common),
        Command::Fanout { traffic, common } => (Scenario::Fanout(traffic.traffic(1)), Some(traffic), common),
        Command::Echo { traffic, common } => (
            Scenario::Echo(traffic.traffic(common.connections)),
            Some(traffic),
            common,
        ),
        Command::Churn {
            churn_rate,
            churn_hold,
            traffic,
            common,
        } => {
            let scenario = Scenario::Churn {
                traffic: traffic.traffic(1),
                rate: churn_rate,
                hold: churn_hold,
            };
            (scenario, Some(traffic), common)
        }
        Command::Slow {
            slow_share,
            traffic,
            common,
        } => {
            let scenario = Scenario::Slow {
                traffic: traffic.traffic(1),
                share: slow_share,
            };
            (scenario, Some(traffic), common)
        }
    };
    let plan = common.plan(scenario, traffic.as_ref())?;
    let trust = common.ca.clone().map_or(Trust::Anybody, Trust::Roots);
    let report = run_plan(
        &plan,
        &Manner {
            trust,
            quiet: common.quiet,
        },
    )?;
    common.publish(&report)?;
    match report.verdict() {
        None => Ok(()),
        Some(verdict) => Err(BenchError::Failed(verdict)),
    }
}

fn serve(address: SocketAddr, mode: LimitMode) -> Result<(), BenchError> {
    let mode = match mode {
        LimitMode::Fanout => Mode::Fanout,
        LimitMode::Echo => Mode::Echo,
    };
    let (server, address) = Limit::bind(address, mode)
        .and_then(|server| server.local_addr().map(|address| (server, address)))
        .map_err(|error| BenchError::Plan(format!("cannot listen at {address}: {error}")))?;
    println!("the bare loop listens at ws://{address}/ (drops a connection that would block)");
    server
        .run()
        .map(|_| ())
        .map_err(BenchError::system("the bare loop cannot go on"))
}

impl TrafficArgs {
    fn traffic(&self, senders: u32) -> Traffic {
        Traffic {
            senders: self.senders.unwrap_or(senders),
            pace: match self.rate {
                Some(rate) => Pace::Rate(rate),
                None => Pace::InFlight(self.in_flight.unwrap_or(1)),
            },
        }
    }
}

impl CommonArgs {
    fn plan(&self, scenario: Scenario, traffic: Option<&TrafficArgs>) -> Result<Plan, BenchError> {
        let url = if matches!(scenario, Scenario::Echo(_)) {
            ECHO_URL
        } else {
            URL
        };
        let target = match &self.url {
            Some(target) => target.clone(),
            None => url.parse().map_err(BenchError::Plan)?,
        };
        let size_default = match scenario {
            Scenario::Slow { .. } => SIZE_SLOW,
            _ => SIZE,
        };
        let plan = Plan {
            scenario,
            target,
            protocol: match self.protocol {
                ProtocolArg::Plain => Protocol::Plain,
                ProtocolArg::SocketIo => Protocol::SocketIo,
            },
            format: match traffic {
                Some(TrafficArgs { binary: true, .. }) => Format::Binary,
                _ => Format::Text,
            },
            connections: self.connections,
            size: traffic.and_then(|traffic| traffic.size).unwrap_or(size_default),
            warmup: traffic.map_or(Duration::ZERO, |traffic| traffic.warmup),
            duration: self.duration,
            sources: self.sources,
            connect_window: self.connect_window,
            connect_timeout: self.connect_timeout,
            server_pid: self.server_pid,
            driver: self.driver,
            cpu: self.cpu,
        };
        plan.check()?;
        Ok(plan)
    }

    /// Prints and writes the report.
    fn publish(&self, report: &Report) -> Result<(), BenchError> {
        let to_stdout = self.json.as_deref() == Some(Path::new("-"));
        let text = if to_stdout {
            report.to_json() + "\n"
        } else {
            report.to_string()
        };
        let path = PathBuf::from("standard output");
        io::stdout()
            .write_all(text.as_bytes())
            .map_err(|error| BenchError::Write { path, error })?;
        if let Some(path) = self.json.as_ref().filter(|_| !to_stdout) {
            write_file(path, &(report.to_json() + "\n"))?;
        }
        match &self.html {
            Some(path) => write_file(path, &report.to_html()),
            None => Ok(()),
        }
    }
}

fn write_file(path: &Path, text: &str) -> Result<(), BenchError> {
    fs::write(path, text).map_err(|error| BenchError::Write {
        path: path.to_owned(),
        error,
    })
}

/// A duration as `250ms`, `10s`, `2m` or `1h`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits_end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("write a number and a unit, as 250ms, 10s, 2m or 1h".to_owned()),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| "write a number before the unit, as 10s".to_owned())?;
    Duration::try_from_secs_f64(number * factor).map_err(|_| "this is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn plan(line: &str) -> Result<Plan, String> {
        let words = ["bench"].into_iter().chain(line.split_whitespace());
        let program = Program::try_parse_from(words).map_err(|error| error.to_string())?;
        let planned = match program.bench.command {
            Command::Idle { common } => common.plan(Scenario::Idle, None),
            Command::Connect { rounds, common } => common.plan(Scenario::Connect { rounds }, None),
            Command::Fanout { traffic, common } => {
                common.plan(Scenario::Fanout(traffic.traffic(1)), Some(&traffic))
            }
            Command::Slow {
                slow_share,
                traffic,
                common,
            } => common.plan(
                Scenario::Slow {
                    traffic: traffic.traffic(1),
                    share: slow_share,
                },
                Some(&traffic),
            ),
            other => panic!("{other:?}"),
        };
        planned.map_err(|error| error.to_string())
    }

    fn refused(line: &str, part: &str) {
        let error = plan(line).expect_err(line);
        assert!(error.contains(part), "{line}: {error}");
    }

    #[test]
    fn the_command_line_is_sound() {
        Program::command().debug_assert();
    }

    #[test]
    fn options_become_a_plan() {
        let plan = plan(
            "fanout --url ws://127.0.0.1:7 -n 1000 --senders 3 --in-flight 8 --size 64 --duration 250ms --binary",
        )
        .unwrap();
        assert_eq!(
            plan.scenario,
            Scenario::Fanout(Traffic {
                senders: 3,
                pace: Pace::InFlight(8)
            })
        );
        assert_eq!(
            (plan.connections, plan.size, plan.format),
            (1000, 64, Format::Binary)
        );
        assert_eq!(plan.duration, Duration::from_millis(250));
        assert_eq!(plan.target.to_string(), "ws://127.0.0.1:7/");
    }

    #[test]
    fn defaults_are_one_sender_one_in_flight_and_ten_seconds() {
        let plan = plan("fanout").unwrap();
        assert_eq!(
            plan.scenario,
            Scenario::Fanout(Traffic {
                senders: 1,
                pace: Pace::InFlight(1)
            })
        );
        assert_eq!(
            (plan.duration, plan.warmup),
            (Duration::from_secs(10), Duration::from_secs(1))
        );
        assert_eq!(plan.target.to_string(), URL);
    }

    #[test]
    fn readers_that_stall_are_a_share_of_all() {
        let plan = plan("slow -n 100 --slow-share 0.25").unwrap();
        assert_eq!((plan.stalled(), plan.members()), (25, 75));
    }

    #[test]
    fn messages_are_larger_where_they_must_fill_readers_up() {
        assert_eq!(plan("fanout").unwrap().size, 128);
        assert_eq!(plan("slow").unwrap().size, 4096);
        assert_eq!(plan("slow --size 64").unwrap().size, 64);
    }

    #[test]
    fn what_does_not_fit_together_is_refused_in_one_sentence() {
        refused("fanout --rate 5 --in-flight 2", "cannot be used with");
        refused("fanout -n 30000", "19500");
        refused("fanout -n 1", "receive");
        refused("fanout --senders 101", "--senders");
        refused("fanout --size 31", "--size");
        refused("fanout --in-flight 0", "--in-flight");
        refused("fanout --rate 0", "--rate");
        refused("fanout -n 19000 --senders 10000", "pairs");
        refused("fanout --protocol socketio --binary", "text only");
        refused("slow --slow-share 1", "--slow-share");
        refused("connect --rounds 0", "--rounds");
        refused("idle --duration 10", "unit");
        refused("idle --duration 0s", "--duration");
        refused("idle --url http://x/", "WebSocket address");
        refused("idle --driver kqueue", "driver");
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_duration("s").is_err());
        assert!(parse_duration("-1s").is_err());
        assert!(parse_duration("1e3s").is_err());
    }
}
