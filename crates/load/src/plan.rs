//! What a run does: plain values, checked once, then never changed.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::payload::{PAYLOAD_BYTES_MAX, STAMP_BYTES};
use crate::target::Target;

/// Most sockets that a run may hold in this process.
pub const SOCKETS_MAX: u32 = 19_500;
/// Most pairs of receiver and sender that are checked; 4 bytes each.
const PAIRS_MAX: u64 = 1 << 26;
/// Most messages in flight for one sender.
const IN_FLIGHT_MAX: u32 = 4_096;
/// Longest warm-up or measurement.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

/// What goes wrong before, during or after a run, other than what the run measures. One line each.
#[derive(Debug)]
pub enum BenchError {
    /// The options do not fit together.
    Plan(String),
    /// The system refused something that the loader needs.
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        error: io::Error,
    },
    /// The run ended without a result.
    Broken(String),
    /// The run has a result, and it is a failure: violations, failed connections, a stall.
    Failed(String),
    /// A result could not be written.
    Write {
        /// Where to.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

impl BenchError {
    /// The exit code for it: 2 for what the user asked wrongly, 1 for all else.
    pub fn exit_code(&self) -> u8 {
        match self {
            BenchError::Plan(_) => 2,
            _ => 1,
        }
    }

    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> BenchError {
        move |error| BenchError::System {
            what: what.into(),
            error,
        }
    }
}

impl fmt::Display for BenchError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BenchError::Plan(text) | BenchError::Broken(text) => formatter.write_str(text),
            BenchError::Failed(text) => write!(formatter, "failed: {text}"),
            BenchError::System { what, error } => write!(formatter, "{what}: {error}"),
            BenchError::Write { path, error } => {
                write!(formatter, "cannot write {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for BenchError {}

/// How clients talk above WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Each message is one WebSocket message, nothing else is said.
    Plain,
    /// Engine.IO 4 and Socket.IO 5: each message is the event `m` with one string.
    SocketIo,
}

/// Which kind of WebSocket message carries the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text messages.
    Text,
    /// Binary messages.
    Binary,
}

/// When senders send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many messages for each sender at a time; the next goes when one has reached all its receivers.
    InFlight(u32),
    /// So many messages a second in all, whatever the server does. Each sender is evenly paced, at a phase of its own
    /// that is the same in each run. Latency counts from when a message was due, so that a server that stalls is charged for the messages it kept from being sent.
    Rate(f64),
}

/// Who sends, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// The first so many connections send.
    pub senders: u32,
    /// When they send.
    pub pace: Pace,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scenario {
    /// Each message goes to all other connections.
    Fanout(Traffic),
    /// Each message comes back to its sender.
    Echo(Traffic),
    /// Connections are held, nothing is sent.
    Idle,
    /// Connections are opened as fast as the window allows, then closed, so many times over.
    Connect {
        /// How often.
        rounds: u32,
    },
    /// A fan-out, while further connections come and go.
    Churn {
        /// The fan-out among the connections that stay.
        traffic: Traffic,
        /// Connections opened each second.
        rate: f64,
        /// How long each of them stays.
        hold: Duration,
    },
    /// A fan-out in which a share of the connections never reads.
    Slow {
        /// The fan-out among those that read.
        traffic: Traffic,
        /// Which share of the connections does not read, above 0 and below 1.
        share: f64,
    },
}

impl Scenario {
    /// Its name on the command line and in results.
    pub fn name(&self) -> &'static str {
        match self {
            Scenario::Fanout(_) => "fanout",
            Scenario::Echo(_) => "echo",
            Scenario::Idle => "idle",
            Scenario::Connect { .. } => "connect",
            Scenario::Churn { .. } => "churn",
            Scenario::Slow { .. } => "slow",
        }
    }

    /// Its traffic, if it has any.
    pub fn traffic(&self) -> Option<Traffic> {
        match self {
            Scenario::Fanout(traffic) | Scenario::Echo(traffic) => Some(*traffic),
            Scenario::Churn { traffic, .. } | Scenario::Slow { traffic, .. } => Some(*traffic),
            Scenario::Idle | Scenario::Connect { .. } => None,
        }
    }
}

/// All that a run needs to know. Made by the command line or by hand, given to [`crate::run`].
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is measured.
    pub scenario: Scenario,
    /// The server.
    pub target: Target,
    /// How clients talk.
    pub protocol: Protocol,
    /// What carries the payload.
    pub format: Format,
    /// Connections in all, without those that `churn` adds.
    pub connections: u32,
    /// Length of each payload, bytes.
    pub size: usize,
    /// Traffic before the measurement.
    pub warmup: Duration,
    /// Length of the measurement.
    pub duration: Duration,
    /// Loopback source addresses; 0 takes one for each 4,000 connections. Ignored unless the target is loopback.
    pub sources: u32,
    /// Connects under way at one time.
    pub connect_window: u32,
    /// How long one connect may take, with TLS and upgrade.
    pub connect_timeout: Duration,
    /// The server's process, if it is on this machine and its CPU and memory are wanted.
    pub server_pid: Option<u32>,
    /// The loader's own driver.
    pub driver: reactor::DriverKind,
    /// Pins the loader's thread to this CPU.
    pub cpu: Option<usize>,
}

impl Plan {
    /// How many connections never read.
    pub fn stalled(&self) -> u32 {
        match self.scenario {
            Scenario::Slow { share, .. } => (f64::from(self.connections) * share).ceil() as u32,
            _ => 0,
        }
    }

    /// How many connections take part from start to end.
    pub fn members(&self) -> u32 {
        self.connections - self.stalled().min(self.connections)
    }

    /// How many connections `churn` may have open at once beside the members.
    pub fn guests(&self) -> u32 {
        match self.scenario {
            // Half more than the mean, for connects and closes under way.
            Scenario::Churn { rate, hold, .. } => (rate * hold.as_secs_f64() * 1.5).ceil() as u32 + 16,
            _ => 0,
        }
    }

    /// Loopback source addresses in use.
    pub fn sources(&self) -> u32 {
        match self.sources {
            0 => (self.connections + self.guests()).div_ceil(4_000).max(1),
            sources => sources,
        }
    }

    /// Sees that the values fit together.
    ///
    /// # Errors
    /// [`BenchError::Plan`], with a sentence that names the option.
    pub fn check(&self) -> Result<(), BenchError> {
        let complain = |text: String| Err(BenchError::Plan(text));
        if self.connections == 0 {
            return complain("--connections must be at least 1".to_owned());
        }
        let sockets = u64::from(self.connections) + u64::from(self.guests());
        if sockets > u64::from(SOCKETS_MAX) {
            return complain(format!(
                "{sockets} sockets are more than one loader process may hold ({SOCKETS_MAX}): lower --connections \
                 or run several loaders"
            ));
        }
        if !(STAMP_BYTES..=PAYLOAD_BYTES_MAX).contains(&self.size) {
            return complain(format!(
                "--size must be from {STAMP_BYTES} to {PAYLOAD_BYTES_MAX} bytes"
            ));
        }
        if self.protocol == Protocol::SocketIo && self.format == Format::Binary {
            return complain("--protocol socketio carries text only: leave --binary away".to_owned());
        }
        if self.connect_window == 0 {
            return complain("--connect-window must be at least 1".to_owned());
        }
        if self.connect_timeout.is_zero() || self.duration.is_zero() {
            return complain("--duration and --connect-timeout must be above 0".to_owned());
        }
        if self.duration > DURATION_MAX || self.warmup > DURATION_MAX {
            return complain("--duration and --warmup may be a day at most".to_owned());
        }
        if self.sources() > 250 {
            return complain("--sources may be 250 at most".to_owned());
        }
        self.check_scenario()
    }

    fn check_scenario(&self) -> Result<(), BenchError> {
        let complain = |text: String| Err(BenchError::Plan(text));
        match self.scenario {
            Scenario::Connect { rounds: 0 } => return complain("--rounds must be at least 1".to_owned()),
            Scenario::Churn { rate, hold, .. } if !(rate > 0.0 && rate <= 100_000.0) || hold.is_zero() => {
                return complain(
                    "--churn-rate must be from above 0 to 100,000, --churn-hold above 0".to_owned(),
                );
            }
            Scenario::Slow { share, .. } if !(share > 0.0 && share < 1.0) => {
                return complain("--slow-share must be above 0 and below 1".to_owned());
            }
            _ => {}
        }
        let Some(Traffic { senders, pace }) = self.scenario.traffic() else {
            return Ok(());
        };
        let members = self.members();
        let listeners_min = if matches!(self.scenario, Scenario::Echo(_)) {
            0
        } else {
            1
        };
        if senders == 0 || senders > members || members < 1 + listeners_min {
            return complain(format!(
                "{senders} senders do not fit {members} connections that read: --senders must be from 1 to that, \
                 and somebody must be there to receive"
            ));
        }
        let receivers = u64::from(members + self.guests());
        if receivers * u64::from(senders) > PAIRS_MAX {
            return complain(format!(
                "{senders} senders to {receivers} receivers are more pairs than can be checked ({PAIRS_MAX}): \
                 lower --senders"
            ));
        }
        match pace {
            Pace::InFlight(window) if window == 0 || window > IN_FLIGHT_MAX => {
                complain(format!("--in-flight must be from 1 to {IN_FLIGHT_MAX}"))
            }
            Pace::Rate(rate) if !(rate > 0.0 && rate <= 10_000_000.0) => {
                complain("--rate must be above 0 and at most 10,000,000".to_owned())
            }
            _ => Ok(()),
        }
    }
}
