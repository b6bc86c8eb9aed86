//! Short waits, as long as they were asked for: epoll itself counts in whole milliseconds, and `mio` rounds up.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use mio::Registry;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};

/// A wait from here on may be a millisecond longer than asked for, and costs one system call less.
const SHORT: Duration = Duration::from_millis(10);

/// Waits until `registry` has an event or a short `timeout` is over, and gives the time that is left to wait in epoll.
/// A timeout that is not short, or that epoll can count, is given back as it is.
pub(crate) fn nap(registry: &Registry, timeout: Option<Duration>) -> io::Result<Option<Duration>> {
    let Some(wanted) = timeout.filter(|wanted| *wanted < SHORT && wanted.subsec_nanos() % 1_000_000 != 0)
    else {
        return Ok(timeout);
    };
    // An epoll instance is readable when it has an event; looking does not take it.
    let mut instance = [PollFd::new(registry.as_fd(), PollFlags::POLLIN)];
    match ppoll(&mut instance, Some(wanted.into()), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(Some(Duration::ZERO)),
        Err(error) => Err(error.into()),
    }
}
