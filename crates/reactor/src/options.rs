//! What the owner of a group chooses: driver, bounds of a turn, pinning, names of threads.

use std::fmt;
use std::str::FromStr;

use crate::Pinning;

/// How a thread talks to the operating system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverKind {
    /// What measured best on this system.
    #[default]
    Auto,
    /// Readiness through `mio`: epoll on Linux, kqueue on the BSDs and macOS, IOCP on Windows.
    Epoll,
    /// io_uring. Where it is missing or not permitted, `Epoll` is used and a warning logged.
    Uring,
}

impl fmt::Display for DriverKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            DriverKind::Auto => "auto",
            DriverKind::Epoll => "epoll",
            DriverKind::Uring => "uring",
        })
    }
}

/// A text that names no [`DriverKind`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownDriver(pub String);

impl fmt::Display for UnknownDriver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "unknown driver {:?}: expected auto, epoll or uring",
            self.0
        )
    }
}

impl std::error::Error for UnknownDriver {}

impl FromStr for DriverKind {
    type Err = UnknownDriver;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(DriverKind::Auto),
            "epoll" => Ok(DriverKind::Epoll),
            "uring" => Ok(DriverKind::Uring),
            other => Err(UnknownDriver(other.to_owned())),
        }
    }
}

/// How a group of threads runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The driver of all threads of the group.
    pub driver: DriverKind,
    /// Most sockets served in one turn, and most mails taken in one. At least 1.
    pub batch: usize,
    /// Entries of each of the two mail rings of an ordered pair, of each machine's inbox, and of the io_uring queue. At least 1.
    pub ring: usize,
    /// Which CPUs the threads run on.
    pub pin: Pinning,
    /// Threads are called `<name>-<shard>`.
    pub name: String,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            driver: DriverKind::Auto,
            batch: 64,
            ring: 2048,
            pin: Pinning::Off,
            name: "shard".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_named_as_they_are_parsed() {
        for driver in [DriverKind::Auto, DriverKind::Epoll, DriverKind::Uring] {
            assert_eq!(driver.to_string().parse(), Ok(driver));
        }
        assert_eq!(
            "kqueue".parse::<DriverKind>(),
            Err(UnknownDriver("kqueue".to_owned()))
        );
    }
}
