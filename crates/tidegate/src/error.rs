//! Why a server does not start.

use std::fmt;
use std::io;

use crate::config::ConfigError;

/// Why a server does not start. Its text is one line that says what to do; none of it is a bug.
#[derive(Debug)]
pub enum StartError {
    /// The settings do not hold together.
    Config(ConfigError),
    /// This is no `host:port`, or the host is not known.
    Address(String),
    /// The address cannot be listened on.
    Listen {
        /// As it was given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Certificate or key cannot be used; the sentence says why.
    Tls(String),
    /// The shards' threads could not be started: driver, pinning or NUMA node.
    Shards(io::Error),
    /// The thread that serves HTTP could not be started.
    Http(io::Error),
}

impl StartError {
    pub(crate) fn listen(address: &str, source: io::Error) -> StartError {
        StartError::Listen {
            address: address.to_owned(),
            source,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Config(error) => error.fmt(formatter),
            StartError::Address(address) => write!(
                formatter,
                "cannot listen on {address:?}: write --addr as HOST:PORT with a known host, such as 127.0.0.1:9002 or :9002"
            ),
            StartError::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => write!(
                formatter,
                "cannot listen on {address}: the port is in use; stop what uses it, or choose another with --addr (port 0 takes a free one)"
            ),
            StartError::Listen { address, source } => {
                write!(
                    formatter,
                    "cannot listen on {address}: {source}; choose another with --addr"
                )
            }
            StartError::Tls(sentence) => formatter.write_str(sentence),
            StartError::Shards(error) if error.kind() == io::ErrorKind::InvalidInput => {
                write!(
                    formatter,
                    "{error}; choose another with --numa, or -1 for automatic"
                )
            }
            StartError::Shards(error) => {
                write!(
                    formatter,
                    "cannot start the workers: {error}; try --driver epoll or fewer --workers"
                )
            }
            StartError::Http(error) => write!(formatter, "cannot start serving HTTP: {error}"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Config(error) => Some(error),
            StartError::Listen { source, .. } => Some(source),
            StartError::Shards(error) | StartError::Http(error) => Some(error),
            StartError::Address(_) | StartError::Tls(_) => None,
        }
    }
}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> StartError {
        StartError::Config(error)
    }
}
