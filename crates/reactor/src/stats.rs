//! What a thread knows about its own work.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::driver::Counters;

/// The longest turn the histogram can tell apart, in microseconds: one minute.
const TURN_US_MAX: u64 = 60_000_000;

/// Counters of one thread since it started. Given to [`Handle::call`](crate::Handle::call).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TurnStats {
    /// Turns of the loop.
    pub turns: u64,
    /// Readiness events or completions taken.
    pub events: u64,
    /// Reads that brought bytes.
    pub reads: u64,
    /// Bytes read (ciphertext, with TLS).
    pub read_bytes: u64,
    /// System calls that sent bytes; with io_uring, send operations.
    pub writes: u64,
    /// Bytes the operating system took (ciphertext, with TLS).
    pub write_bytes: u64,
    /// Mails from other machines and threads.
    pub mails: u64,
    /// How often another thread had to wake this one from sleep.
    pub wakeups: u64,
    /// Time spent in turns, from the return of the wait to the next wait. With io_uring the sends themselves happen
    /// inside the wait and are not in it.
    pub busy: Duration,
    /// Length of turns in microseconds.
    pub turn_us: Histogram<u64>,
    /// Mails to other machines held back now because their rings are full.
    pub mails_held: usize,
    /// Bytes of these.
    pub mail_bytes_held: usize,
    /// Mails, sockets and calls of other threads waiting in the inbox now.
    pub inbox_depth: usize,
    /// Open sockets now.
    pub sockets: usize,
}

impl TurnStats {
    pub(crate) fn new() -> TurnStats {
        let turn_us = Histogram::new_with_bounds(1, TURN_US_MAX, 2).expect("bounds are constants that fit");
        TurnStats {
            turns: 0,
            events: 0,
            reads: 0,
            read_bytes: 0,
            writes: 0,
            write_bytes: 0,
            mails: 0,
            wakeups: 0,
            busy: Duration::ZERO,
            turn_us,
            mails_held: 0,
            mail_bytes_held: 0,
            inbox_depth: 0,
            sockets: 0,
        }
    }

    /// Counts one turn of `us` microseconds.
    pub(crate) fn turn(&mut self, us: u64) {
        self.turns += 1;
        self.busy += Duration::from_micros(us);
        self.turn_us.saturating_record(us);
    }

    /// Takes over what the driver counted.
    pub(crate) fn refresh(&mut self, counters: Counters) {
        self.events = counters.events;
        self.reads = counters.reads;
        self.read_bytes = counters.read_bytes;
        self.writes = counters.writes;
        self.write_bytes = counters.write_bytes;
        self.sockets = counters.sockets;
    }
}
