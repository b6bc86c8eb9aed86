//! The driver on readiness, through `mio`: epoll on Linux, kqueue and IOCP elsewhere.
//!
//! A socket is registered once, edge-triggered, for both directions, and the system is not asked again: a flag in its
//! entry remembers readiness until the socket would block. A write goes to the system at once; only what it does not
//! take is kept. The entry is all that an idle connection holds.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use bytes::{Buf, Bytes};
use engine::{Close, ConnectionId, SocketEnd, Wrote};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::SockRef;

use crate::Options;
use crate::driver::{Counters, Driver, Event, GATHER_BYTES, Signal};

/// Memory for one read, shared by all sockets of the thread.
const SCRATCH_BYTES: usize = 64 * 1024;

/// On Linux a read that did not fill the buffer has emptied the socket, and an edge announces what comes later.
/// Other systems promise that only after a read that would block.
const SHORT_READ_DRAINS: bool = cfg!(target_os = "linux");

/// Parts that one vectored write takes without memory from the heap.
const SLICES_INLINE: usize = 64;

/// Parts that one vectored write may have at most (`IOV_MAX` of Linux and the BSDs).
const SLICES_MAX: usize = 1024;

/// Names the waker; sockets are named by their index, which is below it.
const WAKE: Token = Token(usize::MAX);

/// The system reported something to read, an end, or an error.
const READABLE: u8 = 1;
/// The system reported room to write.
const WRITABLE: u8 = 1 << 1;
/// The last report said that the peer sends no more, so a short read does not mean drained.
const CLOSING: u8 = 1 << 2;
/// End of stream was read, or the socket broke: no more reads.
const READ_OVER: u8 = 1 << 3;
/// The socket broke: no more writes.
const BROKEN: u8 = 1 << 4;
/// The index stands in `ready`. Belongs to the slot and outlives the socket.
const QUEUED: u8 = 1 << 5;
/// The index stands in `parked`. Belongs to the slot and outlives the socket.
const PARKED: u8 = 1 << 6;

/// A slot of the socket table. Fan-out touches one of these for each receiver, so it stays small.
#[derive(Default)]
struct Entry {
    stream: Option<TcpStream>,
    generation: u32,
    flags: u8,
    /// What the system did not take yet; `None` if nothing.
    pending: Option<Box<Pending>>,
}

#[cfg(all(target_os = "linux", target_pointer_width = "64", not(debug_assertions)))]
const _: () = assert!(size_of::<Entry>() <= 24);

/// Bytes waiting for room, and what follows them.
#[derive(Default)]
struct Pending {
    parts: VecDeque<Bytes>,
    /// The sending side ends after `parts`.
    then_shutdown: bool,
}

/// How far a series of system calls came.
enum Sent {
    All,
    /// The system took this many bytes and would block.
    Part(usize),
    Broken,
}

impl Signal for Waker {
    fn signal(&self) {
        // A wake-up that fails leaves the sleeper to its deadline; there is nobody here who could do better.
        if let Err(error) = self.wake() {
            tracing::error!(%error, "cannot wake a shard");
        }
    }
}

/// Sockets of one thread, by readiness.
pub(crate) struct Epoll {
    poll: Poll,
    events: Events,
    entries: Vec<Entry>,
    /// Slots with something to do, oldest first; each at most once.
    ready: VecDeque<u32>,
    /// Slots that wait for reading to resume.
    parked: Vec<u32>,
    /// Where small parts are put together.
    gathered: Vec<u8>,
    batch: usize,
    /// How many of `ready` this turn may still serve.
    budget: usize,
    paused: bool,
    counters: Counters,
}

impl Driver for Epoll {
    type Scratch = Box<[u8]>;

    fn new(options: &Options) -> io::Result<(Epoll, Box<[u8]>, Box<dyn Signal>)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let batch = options.batch.max(1);
        let epoll = Epoll {
            poll,
            events: Events::with_capacity(batch),
            entries: Vec::new(),
            ready: VecDeque::new(),
            parked: Vec::new(),
            gathered: Vec::with_capacity(GATHER_BYTES),
            batch,
            budget: 0,
            paused: false,
            counters: Counters::default(),
        };
        Ok((epoll, vec![0; SCRATCH_BYTES].into_boxed_slice(), Box::new(waker)))
    }

    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if self.ready.len() < self.batch {
            #[cfg(target_os = "linux")]
            let timeout = crate::nap::nap(self.poll.registry(), timeout)?;
            match self.poll.poll(&mut self.events, timeout) {
                Ok(()) => self.queue_events(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.budget = self.ready.len().min(self.batch);
        Ok(())
    }

    fn next_event<'scratch>(&mut self, scratch: &'scratch mut Box<[u8]>) -> Option<Event<'scratch>> {
        while self.budget > 0 {
            let &index = self.ready.front()?;
            let entry = &mut self.entries[index as usize];
            let id = ConnectionId {
                index,
                generation: entry.generation,
            };
            if entry.flags & WRITABLE != 0 {
                entry.flags &= !WRITABLE;
                if entry.pending.is_some() {
                    match self.send_pending(index) {
                        Sent::All => return Some(Event::Flushed(id)),
                        Sent::Part(_) => {}
                        Sent::Broken => return Some(Event::Ended(id, SocketEnd::Reset)),
                    }
                    continue;
                }
            }
            self.budget -= 1;
            self.ready.pop_front();
            entry.flags &= !QUEUED;
            if entry.flags & READABLE == 0 {
                continue;
            }
            if self.paused {
                if entry.flags & PARKED == 0 {
                    entry.flags |= PARKED;
                    self.parked.push(index);
                }
                continue;
            }
            match self.read(index, scratch) {
                Reading::Bytes(length) => return Some(Event::Received(id, &mut scratch[..length])),
                Reading::Nothing => {}
                Reading::End(end) => return Some(Event::Ended(id, end)),
            }
        }
        None
    }

    fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    fn pause_reading(&mut self, paused: bool) {
        self.paused = paused;
        if paused {
            return;
        }
        for index in self.parked.drain(..) {
            let entry = &mut self.entries[index as usize];
            entry.flags &= !PARKED;
            if entry.flags & QUEUED == 0 {
                entry.flags |= QUEUED;
                self.ready.push_back(index);
            }
        }
    }

    fn adopt(&mut self, id: ConnectionId, stream: std::net::TcpStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let mut stream = TcpStream::from_std(stream);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(id.index as usize), interest)?;
        let index = id.index as usize;
        if index >= self.entries.len() {
            self.entries.resize_with(index + 1, Entry::default);
        }
        let entry = &mut self.entries[index];
        assert!(entry.stream.is_none(), "slot {index} is adopted twice");
        entry.stream = Some(stream);
        entry.generation = id.generation;
        self.counters.sockets += 1;
        Ok(())
    }

    fn is_open(&self, id: ConnectionId) -> bool {
        let entry = self.entries.get(id.index as usize);
        entry.is_some_and(|entry| entry.generation == id.generation && entry.stream.is_some())
    }

    #[inline]
    fn write(&mut self, id: ConnectionId, parts: &[Bytes]) -> Wrote {
        let Some(entry) = self.entries.get_mut(id.index as usize) else {
            return Wrote::Failed;
        };
        if entry.generation != id.generation || entry.flags & BROKEN != 0 {
            return Wrote::Failed;
        }
        let Some(stream) = &entry.stream else {
            return Wrote::Failed;
        };
        assert!(
            entry.pending.is_none(),
            "connection {id} is written to while a write is pending"
        );
        match send(stream, parts, &mut self.gathered, &mut self.counters) {
            Sent::All => Wrote::Done,
            Sent::Part(taken) => {
                entry.pending = Some(Box::new(Pending {
                    parts: rest(parts, taken),
                    then_shutdown: false,
                }));
                Wrote::Pending
            }
            Sent::Broken => {
                entry.flags |= BROKEN | READ_OVER;
                Wrote::Failed
            }
        }
    }

    fn shutdown(&mut self, id: ConnectionId) {
        if !self.is_open(id) {
            return;
        }
        let entry = &mut self.entries[id.index as usize];
        match &mut entry.pending {
            Some(pending) => pending.then_shutdown = true,
            None => shutdown(entry),
        }
    }

    fn close(&mut self, id: ConnectionId, how: Close) {
        if !self.is_open(id) {
            return;
        }
        let entry = &mut self.entries[id.index as usize];
        if let Some(stream) = entry.stream.take()
            && how == Close::Abort
        {
            // Fails only for a socket that is broken already.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
        entry.pending = None;
        entry.flags &= QUEUED | PARKED;
        self.counters.sockets -= 1;
    }

    fn finish(&mut self) {
        self.entries.clear();
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

/// What one read brought.
enum Reading {
    Bytes(usize),
    Nothing,
    End(SocketEnd),
}

impl Epoll {
    /// Notes what the system reported and queues the slots.
    fn queue_events(&mut self) {
        for event in &self.events {
            if event.token() == WAKE {
                continue;
            }
            self.counters.events += 1;
            let index = event.token().0;
            let entry = &mut self.entries[index];
            if event.is_read_closed() || event.is_error() {
                entry.flags |= READABLE | CLOSING;
            } else if event.is_readable() {
                entry.flags |= READABLE;
            }
            if event.is_writable() || event.is_write_closed() || event.is_error() {
                entry.flags |= WRITABLE;
            }
            if entry.flags & QUEUED == 0 {
                entry.flags |= QUEUED;
                self.ready.push_back(index as u32);
            }
        }
    }

    /// Reads once. If more may be there, the slot is queued again for the next turn.
    fn read(&mut self, index: u32, scratch: &mut [u8]) -> Reading {
        let entry = &mut self.entries[index as usize];
        let Some(stream) = &entry.stream else {
            return Reading::Nothing;
        };
        if entry.flags & READ_OVER != 0 {
            entry.flags &= !READABLE;
            return Reading::Nothing;
        }
        loop {
            return match (&*stream).read(scratch) {
                Ok(0) => {
                    entry.flags |= READ_OVER;
                    entry.flags &= !READABLE;
                    Reading::End(SocketEnd::Eof)
                }
                Ok(length) => {
                    self.counters.reads += 1;
                    self.counters.read_bytes += length as u64;
                    if SHORT_READ_DRAINS && length < scratch.len() && entry.flags & CLOSING == 0 {
                        entry.flags &= !READABLE;
                    } else {
                        entry.flags |= QUEUED;
                        self.ready.push_back(index);
                    }
                    Reading::Bytes(length)
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if would_block(&error) => {
                    entry.flags &= !(READABLE | CLOSING);
                    Reading::Nothing
                }
                Err(_) => {
                    entry.flags |= READ_OVER | BROKEN;
                    entry.flags &= !READABLE;
                    entry.pending = None;
                    Reading::End(SocketEnd::Reset)
                }
            };
        }
    }

    /// Sends what is pending of an open socket, and ends its sending side if that was asked for.
    fn send_pending(&mut self, index: u32) -> Sent {
        let entry = &mut self.entries[index as usize];
        let (Some(stream), Some(pending)) = (&entry.stream, &mut entry.pending) else {
            return Sent::All;
        };
        let parts = pending.parts.make_contiguous();
        let sent = send(stream, parts, &mut self.gathered, &mut self.counters);
        match sent {
            Sent::All => {
                let then_shutdown = pending.then_shutdown;
                entry.pending = None;
                if then_shutdown {
                    shutdown(entry);
                }
            }
            Sent::Part(taken) => drop_front(&mut pending.parts, taken),
            Sent::Broken => {
                entry.flags |= BROKEN | READ_OVER;
                entry.pending = None;
            }
        }
        sent
    }
}

/// Ends the sending side. It fails only for a socket that is broken already, which a read will tell.
fn shutdown(entry: &Entry) {
    if let Some(stream) = &entry.stream {
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// A socket that still connects reports "not connected" on some systems where Linux says it would block.
fn would_block(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
        || (cfg!(not(target_os = "linux")) && error.kind() == ErrorKind::NotConnected)
}

/// Sends `parts` until all have left or the system would block: one call in the usual case.
#[inline]
fn send(stream: &TcpStream, parts: &[Bytes], gathered: &mut Vec<u8>, counters: &mut Counters) -> Sent {
    let bytes: &[u8] = match parts {
        [part] => part,
        _ if parts.iter().map(Bytes::len).sum::<usize>() <= GATHER_BYTES => {
            gathered.clear();
            parts.iter().for_each(|part| gathered.extend_from_slice(part));
            gathered
        }
        _ => return send_rest(stream, parts, 0, counters),
    };
    match (&*stream).write(bytes) {
        Ok(length) if length == bytes.len() => {
            counters.writes += 1;
            counters.write_bytes += length as u64;
            Sent::All
        }
        Ok(length) => send_rest(stream, parts, length, counters),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Sent::Part(0),
        Err(_) => send_rest(stream, parts, 0, counters),
    }
}

/// Sends what follows the first `taken` bytes of `parts`.
fn send_rest(stream: &TcpStream, parts: &[Bytes], mut taken: usize, counters: &mut Counters) -> Sent {
    if taken > 0 {
        counters.writes += 1;
        counters.write_bytes += taken as u64;
    }
    let total: usize = parts.iter().map(Bytes::len).sum();
    while taken < total {
        match send_slices(stream, parts, taken) {
            // A system that takes nothing and does not say why would be asked for ever.
            Ok(0) => return Sent::Broken,
            Ok(length) => {
                counters.writes += 1;
                counters.write_bytes += length as u64;
                taken += length;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if would_block(&error) => return Sent::Part(taken),
            Err(_) => return Sent::Broken,
        }
    }
    Sent::All
}

/// One vectored write of what follows the first `taken` bytes of `parts`, as many parts as one call may have.
fn send_slices(mut stream: &TcpStream, parts: &[Bytes], mut taken: usize) -> io::Result<usize> {
    let mut first = 0;
    while taken >= parts[first].len() {
        taken -= parts[first].len();
        first += 1;
    }
    let slices = parts[first..].iter().enumerate().map(|(number, part)| {
        let skip = if number == 0 { taken } else { 0 };
        IoSlice::new(&part[skip..])
    });
    let count = (parts.len() - first).min(SLICES_MAX);
    if count <= SLICES_INLINE {
        let mut inline = [IoSlice::new(&[]); SLICES_INLINE];
        inline
            .iter_mut()
            .zip(slices)
            .for_each(|(place, slice)| *place = slice);
        stream.write_vectored(&inline[..count])
    } else {
        stream.write_vectored(&slices.take(count).collect::<Vec<_>>())
    }
}

/// What follows the first `taken` bytes of `parts`.
fn rest(parts: &[Bytes], taken: usize) -> VecDeque<Bytes> {
    let mut rest: VecDeque<Bytes> = parts.iter().cloned().collect();
    drop_front(&mut rest, taken);
    rest
}

/// Removes the first `taken` bytes of `parts`.
fn drop_front(parts: &mut VecDeque<Bytes>, mut taken: usize) {
    while taken > 0 {
        let front = &mut parts[0];
        if taken < front.len() {
            front.advance(taken);
            return;
        }
        taken -= front.len();
        parts.pop_front();
    }
}
