//! What the loop asks of a driver: raw bytes in and out of sockets, nothing of TLS, mail or machines.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use engine::{Close, ConnectionId, SocketEnd, Wrote};

use crate::Options;

/// Several parts of together no more than this are copied into one piece and sent as that: up to here copying costs
/// less than what the kernel takes for each part of a vectored write.
pub(crate) const GATHER_BYTES: usize = 16 * 1024;

/// Wakes a driver that sleeps in [`Driver::wait`], from any thread.
pub(crate) trait Signal: Send + Sync + 'static {
    /// Makes the present or the next `wait` return at once.
    fn signal(&self);
}

/// Something that happened to a socket. Bytes lie in the scratch memory of the loop.
pub(crate) enum Event<'scratch> {
    Received(ConnectionId, &'scratch mut [u8]),
    Flushed(ConnectionId),
    Ended(ConnectionId, SocketEnd),
}

/// What a driver counted since it was made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub events: u64,
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub sockets: usize,
}

/// Sockets of one thread.
///
/// After `close` no event names the id. `write` while an earlier one is pending is the caller's mistake.
pub(crate) trait Driver: Sized + Send {
    /// Memory that received bytes lie in. It is the loop's, not the driver's, so that the machine can hold bytes
    /// and driver at once.
    type Scratch: Send;

    /// Makes a driver, its scratch memory and what wakes it.
    fn new(options: &Options) -> io::Result<(Self, Self::Scratch, Box<dyn Signal>)>;

    /// Called once on the thread that will run it, before all else.
    fn start(&mut self) -> io::Result<()>;

    /// Hands queued work to the operating system and waits for events, at most `timeout` (`None`: as long as it takes).
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// The next event of this turn; `None` when the turn's batch is used up.
    fn next_event<'scratch>(&mut self, scratch: &'scratch mut Self::Scratch) -> Option<Event<'scratch>>;

    /// True if events are left for the next turn, which then must not sleep.
    fn has_ready(&self) -> bool;

    /// Stops (or resumes) reading from sockets; writing goes on.
    fn pause_reading(&mut self, paused: bool);

    /// Takes a socket under `id`. On error the socket is dropped and `id` is unknown.
    fn adopt(&mut self, id: ConnectionId, stream: TcpStream) -> io::Result<()>;

    /// True from `adopt` to `close`.
    fn is_open(&self, id: ConnectionId) -> bool;

    /// See [`engine::Actions::write`].
    fn write(&mut self, id: ConnectionId, parts: &[Bytes]) -> Wrote;

    /// Before an orderly close: `bytes` join a write of this turn that the operating system has not seen yet. Elsewhere
    /// they are dropped, as is all that is pending at a close.
    fn add_last(&mut self, _id: ConnectionId, _bytes: Bytes) {}

    /// See [`engine::Actions::shutdown`].
    fn shutdown(&mut self, id: ConnectionId);

    /// See [`engine::Actions::close`]. An unknown id is ignored.
    fn close(&mut self, id: ConnectionId, how: Close);

    /// Lets what was written before orderly closes leave, then drops all sockets.
    fn finish(&mut self);

    fn counters(&self) -> Counters;
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A wait that a clock of whole milliseconds would make 0.8 ms longer, tried often because the machine may be busy.
    fn short_waits_are_exact<D: Driver>() {
        let (mut driver, mut scratch, _signal) = match D::new(&Options::default()) {
            Ok(made) => made,
            Err(error) => return eprintln!("this driver cannot be used here: {error}"),
        };
        driver.start().unwrap();
        let wanted = Duration::from_micros(1_200);
        let waited = (0..50).map(|_| {
            let began = Instant::now();
            driver.wait(Some(wanted)).unwrap();
            while driver.next_event(&mut scratch).is_some() {}
            began.elapsed()
        });
        let shortest = waited.filter(|waited| *waited >= wanted).min();
        let late = shortest.expect("a wait without events takes its time") - wanted;
        assert!(late < Duration::from_micros(500), "{late:?} late");
    }

    #[test]
    fn short_waits_are_exact_with_each_driver() {
        short_waits_are_exact::<crate::epoll::Epoll>();
        short_waits_are_exact::<crate::uring::Uring>();
    }
}
