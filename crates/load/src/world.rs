//! What the client machine asks of the world outside sockets: a finer clock, new sockets, the processes' counters.

use std::io;
use std::time::Instant;

use bytes::Bytes;
use reactor::{Adoption, Handle};

use crate::machine::{Clients, Opening};
use crate::process::{Memory, Process, thread_cpu_ns};
use crate::target::Dialer;

/// What the processes' counters say at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// CPU time of all threads of the server, ns.
    pub(crate) server_cpu_ns: Option<u64>,
    /// Resident memory of the server, bytes.
    pub(crate) server_rss_bytes: Option<u64>,
    /// CPU time of the loader's thread, ns.
    pub(crate) loader_cpu_ns: Option<u64>,
}

/// The outside of the client machine. Real in a run, made up in tests.
pub(crate) trait World: Send {
    /// Time since the loader's start, ns. Read for each delivery, since a turn of the reactor takes too long to be
    /// one moment.
    fn now_ns(&self) -> u64;

    /// Opens a socket and sees that the machine gets it.
    fn dial(&mut self, opening: Opening) -> io::Result<()>;

    /// CPU time of the loader's thread, ns; cheap enough for each turn.
    fn loader_cpu_ns(&self) -> Option<u64>;

    /// Reads the counters; cheap.
    fn sample(&self) -> Sample;

    /// Reads the server's memory exactly; not cheap.
    fn memory(&self) -> Option<Memory>;
}

/// The real one. Made by [`crate::run`], owned by the machine.
pub(crate) struct System {
    pub(crate) start: Instant,
    pub(crate) dialer: Dialer,
    /// The machine's own.
    pub(crate) handle: Handle<Clients>,
    pub(crate) server: Option<Process>,
}

impl World for System {
    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn dial(&mut self, opening: Opening) -> io::Result<()> {
        let dialed = self.dialer.dial()?;
        let adoption = Adoption {
            stream: dialed.stream,
            tls: dialed.tls.map(|tls| Box::new(tls.into())),
            received: Bytes::new(),
            opening,
        };
        self.handle
            .adopt(adoption)
            .map_err(|_| io::Error::from(io::ErrorKind::ResourceBusy))
    }

    fn loader_cpu_ns(&self) -> Option<u64> {
        thread_cpu_ns()
    }

    fn sample(&self) -> Sample {
        Sample {
            server_cpu_ns: self.server.as_ref().and_then(Process::cpu_ns),
            server_rss_bytes: self.server.as_ref().and_then(Process::resident_bytes),
            loader_cpu_ns: thread_cpu_ns(),
        }
    }

    fn memory(&self) -> Option<Memory> {
        self.server.as_ref().and_then(Process::memory)
    }
}
