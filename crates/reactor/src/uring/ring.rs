//! The ring itself: operations in, completions out, and how many of them the kernel still has.
//!
//! It knows nothing of sockets. The queue never overflows: what does not fit goes to the kernel at once, and each
//! call takes all completions out, so that there is room for as many as can be in flight.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::memory::{Buffers, Lent};

/// How long one attempt to cancel all operations may take.
const CANCEL_MAX: Duration = Duration::from_millis(100);

/// No socket key. Keys have 30 bits.
pub(super) const NO_KEY: u32 = u32::MAX >> 2;

/// What an operation is, in the low bits of its user data. Above are the socket's key and which use of the key it is,
/// so that a late cancellation never meets the key's next socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Receive = 0,
    Send = 1,
    Wake = 2,
    Cancel = 3,
}

impl Kind {
    pub(super) fn user_data(self, key: u32, usage: u32) -> u64 {
        u64::from(usage) << 32 | u64::from(key) << 2 | self as u64
    }
}

/// A completion, taken from the ring.
#[derive(Clone, Copy)]
pub(super) struct Completion {
    user_data: u64,
    /// As of the system call: bytes, or an error number below 0.
    pub result: i32,
    flags: u32,
}

impl Completion {
    pub(super) fn key(self) -> u32 {
        self.user_data as u32 >> 2
    }

    pub(super) fn kind(self) -> Kind {
        match self.user_data & 3 {
            0 => Kind::Receive,
            1 => Kind::Send,
            2 => Kind::Wake,
            _ => Kind::Cancel,
        }
    }

    /// True if more completions of this operation follow.
    pub(super) fn goes_on(self) -> bool {
        cqueue::more(self.flags)
    }

    /// The receive buffer that this brings, which must be given back.
    pub(super) fn buffer(self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// An io_uring with its receive buffers.
pub(super) struct Ring {
    ring: IoUring,
    pub buffers: Buffers,
    /// Completions not served yet.
    taken: VecDeque<Completion>,
    /// Operations whose last completion was not served yet.
    in_flight: usize,
    /// Why the ring cannot go on.
    failure: Option<io::Error>,
    /// Completions taken from the kernel.
    pub events: u64,
}

impl Ring {
    /// Makes a ring that runs only after [`Ring::enable`].
    pub(super) fn new(entries: usize) -> io::Result<(Ring, Lent)> {
        let ring = IoUring::builder()
            .setup_clamp()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            // The thread that enables the ring becomes its issuer.
            .setup_r_disabled()
            .build(u32::try_from(entries).unwrap_or(u32::MAX))?;
        let (buffers, lent) = Buffers::new(&ring)?;
        let taken = VecDeque::new();
        Ok((
            Ring {
                ring,
                buffers,
                taken,
                in_flight: 0,
                failure: None,
                events: 0,
            },
            lent,
        ))
    }

    /// Binds the ring to the calling thread.
    pub(super) fn enable(&self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()
    }

    /// Queues an operation.
    ///
    /// # Safety
    /// The memory that `operation` names stays valid and unmoved until its last completion was served; if this value
    /// is dropped before that, for ever.
    pub(super) unsafe fn start(&mut self, operation: &squeue::Entry) {
        self.in_flight += 1;
        self.push(operation);
    }

    /// Queues the cancellation of the operation with this user data.
    pub(super) fn cancel(&mut self, target: u64) {
        let entry = opcode::AsyncCancel::new(target).build();
        self.push(&entry.user_data(Kind::Cancel.user_data(NO_KEY, 0)));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: cancellations name no memory, and for the rest the caller of `start` vouches.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            if let Err(error) = self.call_kernel(Some(Duration::ZERO)) {
                self.failure.get_or_insert(error);
                return;
            }
        }
    }

    /// Gives the queue to the kernel, waits at most `timeout` for a completion, and takes all there are.
    pub(super) fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => self.call_kernel(timeout),
        }
    }

    fn call_kernel(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let waited = match timeout {
            Some(Duration::ZERO) => self.ring.submit(),
            Some(timeout) => {
                let timespec = types::Timespec::from(timeout);
                let arguments = types::SubmitArgs::new().timespec(&timespec);
                self.ring.submitter().submit_with_args(1, &arguments)
            }
            None => self.ring.submit_and_wait(1),
        };
        match waited.map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => {}
            Err((_, error)) => return Err(error),
        }
        for entry in self.ring.completion() {
            let completion = Completion {
                user_data: entry.user_data(),
                result: entry.result(),
                flags: entry.flags(),
            };
            self.events += 1;
            if completion.buffer().is_some() {
                self.buffers.taken();
            }
            self.taken.push_back(completion);
        }
        Ok(())
    }

    /// The oldest completion not served yet.
    pub(super) fn next(&mut self) -> Option<Completion> {
        let completion = self.taken.pop_front()?;
        if completion.kind() != Kind::Cancel && !completion.goes_on() {
            self.in_flight -= 1;
        }
        Some(completion)
    }

    /// Completions not served yet.
    pub(super) fn ready(&self) -> usize {
        self.taken.len()
    }

    /// Operations whose last completion was not served yet.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Cancels all operations that the kernel has. Their completions follow.
    pub(super) fn cancel_all(&self) {
        let patience = types::Timespec::from(CANCEL_MAX);
        // It fails if nothing is left to cancel: then completions are on their way.
        let _ = self
            .ring
            .submitter()
            .register_sync_cancel(Some(patience), types::CancelBuilder::any());
    }
}
