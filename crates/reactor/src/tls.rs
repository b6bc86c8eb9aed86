//! TLS of sockets, between driver and machine: rustls connections by slot.
//!
//! A session turns plaintext into ciphertext for a pipe (the driver's write) and back. It never touches a socket.
//! What it may hold for a slow peer is bounded: ciphertext of [`BUFFER_BYTES`] in rustls and as much in the driver;
//! the rest stays shared plaintext. An idle session holds what rustls holds and no buffer of its own.

use std::collections::VecDeque;
use std::io::{Read, Write};

use bytes::{Buf, Bytes};
use engine::{SocketEnd, Wrote};
use rustls::Connection;

/// Most ciphertext (or, before the handshake ends, plaintext) that rustls keeps of one connection.
const BUFFER_BYTES: usize = 64 * 1024;

/// How far [`Session::push`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// All there was to send is with the operating system.
    Idle,
    /// The rest waits for the pipe or for the handshake.
    Blocked,
    /// The pipe is broken.
    Failed,
}

/// How far the end of the sending side is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    Asked,
    /// `close_notify` is in rustls or beyond.
    Noted,
    /// The socket's sending side was ended as well.
    Done,
}

/// TLS of one socket.
pub(crate) struct Session {
    connection: Box<Connection>,
    /// Plaintext that rustls did not take yet.
    waiting: VecDeque<Bytes>,
    /// The pipe has a write of this session pending.
    pipe_busy: bool,
    /// The machine waits for `flushed`.
    owes_flush: bool,
    ending: Ending,
    close_notify_seen: bool,
    peer_ended: bool,
}

impl Session {
    fn new(mut connection: Box<Connection>) -> Session {
        connection.set_buffer_limit(Some(BUFFER_BYTES));
        Session {
            connection,
            waiting: VecDeque::new(),
            pipe_busy: false,
            owes_flush: false,
            ending: Ending::No,
            close_notify_seen: false,
            peer_ended: false,
        }
    }

    /// Feeds some of `ciphertext` and takes that off its front. Call [`Session::read`] until it gives nothing, then
    /// this again for the rest.
    pub(crate) fn take_in(&mut self, ciphertext: &mut &[u8]) -> Result<(), SocketEnd> {
        // An empty read would tell rustls that the stream has ended.
        if !ciphertext.is_empty() {
            match self.connection.read_tls(ciphertext) {
                // What follows `close_notify` is not TLS any more.
                Ok(0) => *ciphertext = &[],
                Ok(_) => {}
                Err(_) => return Err(SocketEnd::Tls),
            }
        }
        match self.connection.process_new_packets() {
            Ok(state) => {
                self.close_notify_seen |= state.peer_has_closed();
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%error, "TLS failed");
                Err(SocketEnd::Tls)
            }
        }
    }

    /// Reads decrypted bytes; `None` if there are no more now.
    pub(crate) fn read(&mut self, plaintext: &mut [u8]) -> Option<usize> {
        self.connection
            .reader()
            .read(plaintext)
            .ok()
            .filter(|&length| length > 0)
    }

    /// Sends `parts` through `pipe`. As [`engine::Actions::write`].
    pub(crate) fn write(&mut self, parts: &[Bytes], mut pipe: impl FnMut(Bytes) -> Wrote) -> Wrote {
        for (number, part) in parts.iter().enumerate() {
            let mut taken = self.offer(part);
            while taken < part.len() {
                if self.push(&mut pipe) == Progress::Failed {
                    return Wrote::Failed;
                }
                let more = self.offer(&part[taken..]);
                taken += more;
                if more == 0 {
                    self.waiting.push_back(part.slice(taken..));
                    self.waiting.extend(parts[number + 1..].iter().cloned());
                    self.owes_flush = true;
                    return Wrote::Pending;
                }
            }
        }
        match self.push(pipe) {
            Progress::Idle => Wrote::Done,
            Progress::Failed => Wrote::Failed,
            Progress::Blocked => {
                self.owes_flush = true;
                Wrote::Pending
            }
        }
    }

    /// Gives plaintext to rustls as far as its buffer's limit allows.
    fn offer(&mut self, plaintext: &[u8]) -> usize {
        // Writing to rustls' memory does not fail.
        self.connection.writer().write(plaintext).unwrap_or(0)
    }

    /// Sends what there is through `pipe` until it is busy.
    pub(crate) fn push(&mut self, mut pipe: impl FnMut(Bytes) -> Wrote) -> Progress {
        while !self.pipe_busy {
            while let Some(mut front) = self.waiting.pop_front() {
                front.advance(self.offer(&front));
                if !front.is_empty() {
                    self.waiting.push_front(front);
                    break;
                }
            }
            if self.ending == Ending::Asked && self.waiting.is_empty() {
                self.connection.send_close_notify();
                self.ending = Ending::Noted;
            }
            if !self.connection.wants_write() {
                let idle = self.waiting.is_empty() && !self.connection.is_handshaking();
                return if idle { Progress::Idle } else { Progress::Blocked };
            }
            match pipe(self.ciphertext()) {
                Wrote::Done => {}
                Wrote::Pending => self.pipe_busy = true,
                Wrote::Failed => return Progress::Failed,
            }
        }
        Progress::Blocked
    }

    /// All that rustls wants to send.
    fn ciphertext(&mut self) -> Bytes {
        let mut ciphertext = Vec::new();
        // Writing to memory does not fail.
        while self.connection.wants_write() && self.connection.write_tls(&mut ciphertext).is_ok() {}
        ciphertext.into()
    }

    /// Ends the session: `close_notify` and what comes before it leave through `pipe`. If that is busy, what is to
    /// follow its pending write is given back.
    pub(crate) fn finish(&mut self, pipe: impl FnMut(Bytes) -> Wrote) -> Option<Bytes> {
        self.end_sending();
        if self.push(pipe) == Progress::Blocked && self.pipe_busy && self.waiting.is_empty() {
            if self.ending == Ending::Asked {
                self.connection.send_close_notify();
            }
            return Some(self.ciphertext()).filter(|bytes| !bytes.is_empty());
        }
        None
    }

    /// The pipe has sent what was pending.
    pub(crate) fn pipe_is_free(&mut self) {
        self.pipe_busy = false;
    }

    /// True once after a write that was pending; ask when [`Session::push`] was idle.
    pub(crate) fn take_owed_flush(&mut self) -> bool {
        std::mem::take(&mut self.owes_flush)
    }

    /// After what waits, `close_notify` is to be sent.
    pub(crate) fn end_sending(&mut self) {
        if self.ending == Ending::No {
            self.ending = Ending::Asked;
        }
    }

    /// True once, when `close_notify` was given to the pipe and the socket's sending side may end.
    pub(crate) fn take_sending_ended(&mut self) -> bool {
        let now = self.ending == Ending::Noted && !self.connection.wants_write();
        if now {
            self.ending = Ending::Done;
        }
        now
    }

    /// True if the peer said in TLS that it sends no more.
    pub(crate) fn has_close_notify(&self) -> bool {
        self.close_notify_seen
    }

    /// Notes that the peer sends no more; true the first time.
    pub(crate) fn peer_ended(&mut self) -> bool {
        !std::mem::replace(&mut self.peer_ended, true)
    }
}

/// The sessions of one thread's sockets by slot. Without TLS it holds no memory and a lookup is one comparison.
#[derive(Default)]
pub(crate) struct Sessions {
    by_index: Vec<Option<Box<Session>>>,
}

impl Sessions {
    #[inline]
    pub(crate) fn get(&mut self, index: u32) -> Option<&mut Session> {
        self.by_index.get_mut(index as usize)?.as_deref_mut()
    }

    pub(crate) fn insert(&mut self, index: u32, connection: Box<Connection>) {
        let index = index as usize;
        if index >= self.by_index.len() {
            self.by_index.resize_with(index + 1, || None);
        }
        self.by_index[index] = Some(Box::new(Session::new(connection)));
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<Box<Session>> {
        self.by_index.get_mut(index as usize)?.take()
    }
}
