//! The driver on completions: io_uring, Linux 6.1 or later.
//!
//! Every socket has one multishot receive that takes memory from a ring of buffers shared by all, so an idle
//! connection holds none. Writes are queued and reach the kernel in the call that waits for the next turn; each
//! keeps its `Bytes` until its completion is in. Operations name a socket by a key of the driver's own, which is
//! free again only after the socket's last completion, so that the machine may reuse its slots at once.
//!
//! Sockets are in blocking mode here: the kernel then waits for room by itself instead of failing the operation.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::{Close, ConnectionId, SocketEnd, Wrote};
use io_uring::{opcode, types};
use nix::sys::eventfd::EventFd;
use socket2::SockRef;

use crate::Options;
use crate::driver::{Counters, Driver, Event, Signal};

mod memory;
mod ring;

use memory::{Lent, Sending};
use ring::{Completion, Kind, NO_KEY, Ring};

/// How long [`Driver::finish`] waits for what was written before orderly closes.
const FINISH_MAX: Duration = Duration::from_secs(1);

/// Entries that the ring's queue has at least.
const RING_MIN: usize = 64;

/// Sendings kept for reuse, each of at most about 1 KiB: 1 MiB a thread. Fan-out to so many sockets takes no memory anew.
const SPARE_MAX: usize = 1024;

/// A slot of the machine: which socket it names now.
#[derive(Clone, Copy)]
struct Slot {
    generation: u32,
    key: u32,
}

/// A socket from adoption until its last completion.
struct Link {
    /// `None` while the key is free.
    stream: Option<TcpStream>,
    id: ConnectionId,
    /// Which use of the key this is.
    usage: u32,
    sending: Option<Box<Sending>>,
    /// `sending` stands in the list of sends that the next call to the kernel takes along.
    queued: bool,
    receiving: bool,
    /// The machine let it go; no events any more.
    closing: bool,
    /// It broke and the machine was told.
    broken: bool,
    /// The sending side ends after what is in flight.
    then_shutdown: bool,
}

/// Wakes a ring by a completion: the ring always reads from this.
struct Doorbell(EventFd);

impl Signal for Arc<Doorbell> {
    fn signal(&self) {
        // The counter cannot be full: the ring empties it.
        if let Err(error) = self.0.write(1) {
            tracing::error!(%error, "cannot wake a shard");
        }
    }
}

/// Sockets of one thread, by completion.
pub(crate) struct Uring {
    ring: Ring,
    doorbell: Arc<Doorbell>,
    /// Where the ring reads the doorbell's counter to.
    rung: Box<[u8; 8]>,
    slots: Vec<Slot>,
    links: Vec<Link>,
    free: Vec<u32>,
    /// Receipts put aside while reading is paused.
    aside: VecDeque<Completion>,
    /// Sockets with a send, in order, and then operations to cancel, for the next call to the kernel.
    sends: Vec<u32>,
    cancels: Vec<u64>,
    /// Sockets whose receive ended for want of a buffer.
    starved: Vec<u32>,
    /// Emptied small sendings to be used again, at most [`SPARE_MAX`].
    #[expect(
        clippy::vec_box,
        reason = "a sending stays in its place while it is in flight, so boxes are reused"
    )]
    spare: Vec<Box<Sending>>,
    batch: usize,
    budget: usize,
    paused: bool,
    counters: Counters,
}

impl Driver for Uring {
    type Scratch = Lent;

    fn new(options: &Options) -> io::Result<(Uring, Lent, Box<dyn Signal>)> {
        let (ring, lent) = Ring::new(options.ring.max(RING_MIN))?;
        let doorbell = Arc::new(Doorbell(EventFd::new()?));
        let batch = options.batch.max(1);
        let uring = Uring {
            ring,
            doorbell: Arc::clone(&doorbell),
            rung: Box::new([0; 8]),
            slots: Vec::new(),
            links: Vec::new(),
            free: Vec::new(),
            aside: VecDeque::new(),
            sends: Vec::new(),
            cancels: Vec::new(),
            starved: Vec::new(),
            spare: Vec::new(),
            batch,
            budget: 0,
            paused: false,
            counters: Counters::default(),
        };
        Ok((uring, lent, Box::new(doorbell)))
    }

    fn start(&mut self) -> io::Result<()> {
        self.ring.enable()?;
        self.listen_for_doorbell();
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.feed_starved();
        if self.ready() < self.batch || !self.sends.is_empty() || !self.cancels.is_empty() {
            let timeout = if self.ready() == 0 {
                timeout
            } else {
                Some(Duration::ZERO)
            };
            self.enter(timeout)?;
        }
        self.budget = self.ready().min(self.batch);
        Ok(())
    }

    fn next_event<'scratch>(&mut self, scratch: &'scratch mut Lent) -> Option<Event<'scratch>> {
        scratch.give_back(&mut self.ring.buffers);
        while self.budget > 0 {
            self.budget -= 1;
            let completion = self.next()?;
            match completion.kind() {
                Kind::Receive if self.paused && !self.links[completion.key() as usize].closing => {
                    self.aside.push_back(completion);
                }
                Kind::Receive => match self.received(completion) {
                    Receipt::Bytes(id, buffer, length) => {
                        return Some(Event::Received(id, scratch.take(buffer, length)));
                    }
                    Receipt::Ended(id, end) => return Some(Event::Ended(id, end)),
                    Receipt::Nothing => {}
                },
                Kind::Send => match self.sent(completion) {
                    Outcome::Flushed(id) => return Some(Event::Flushed(id)),
                    Outcome::Broken(id) => return Some(Event::Ended(id, SocketEnd::Reset)),
                    Outcome::Nothing => {}
                },
                Kind::Wake => self.listen_for_doorbell(),
                Kind::Cancel => {}
            }
        }
        None
    }

    fn has_ready(&self) -> bool {
        self.ready() > 0
    }

    fn pause_reading(&mut self, paused: bool) {
        self.paused = paused;
    }

    fn adopt(&mut self, id: ConnectionId, stream: TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        let key = match self.free.pop() {
            Some(key) => {
                let usage = self.links[key as usize].usage.wrapping_add(1);
                self.links[key as usize] = Link::new(stream, id, usage);
                key
            }
            None => {
                self.links.push(Link::new(stream, id, 0));
                self.links.len() as u32 - 1
            }
        };
        let index = id.index as usize;
        if index >= self.slots.len() {
            self.slots.resize(
                index + 1,
                Slot {
                    generation: 0,
                    key: NO_KEY,
                },
            );
        }
        assert!(self.slots[index].key == NO_KEY, "slot {index} is adopted twice");
        self.slots[index] = Slot {
            generation: id.generation,
            key,
        };
        self.counters.sockets += 1;
        self.receive(key);
        Ok(())
    }

    fn is_open(&self, id: ConnectionId) -> bool {
        self.key(id).is_some()
    }

    fn write(&mut self, id: ConnectionId, parts: &[Bytes]) -> Wrote {
        let Some(key) = self.key(id) else {
            return Wrote::Failed;
        };
        let link = &mut self.links[key as usize];
        if link.broken {
            return Wrote::Failed;
        }
        assert!(
            link.sending.is_none(),
            "connection {id} is written to while a write is pending"
        );
        let mut sending = self.spare.pop().unwrap_or_default();
        sending.fill(parts);
        link.sending = Some(sending);
        self.send(key);
        Wrote::Pending
    }

    fn add_last(&mut self, id: ConnectionId, bytes: Bytes) {
        if let Some(key) = self.key(id)
            && let link = &mut self.links[key as usize]
            && link.queued
            && let Some(sending) = &mut link.sending
        {
            sending.fill(&[bytes]);
        }
    }

    fn shutdown(&mut self, id: ConnectionId) {
        if let Some(key) = self.key(id) {
            let link = &mut self.links[key as usize];
            match link.sending {
                Some(_) => link.then_shutdown = true,
                None => link.end_sending(),
            }
        }
    }

    fn close(&mut self, id: ConnectionId, how: Close) {
        let Some(key) = self.key(id) else { return };
        self.slots[id.index as usize].key = NO_KEY;
        self.counters.sockets -= 1;
        let link = &mut self.links[key as usize];
        link.closing = true;
        if let (Some(stream), Close::Abort) = (&link.stream, how) {
            // Fails only for a socket that is broken already.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
        self.forget_aside(key);
        let link = &self.links[key as usize];
        // A send of this turn is tried before the cancellation behind it, so last words still leave.
        if link.sending.is_some() {
            self.cancels.push(Kind::Send.user_data(key, link.usage));
        }
        if link.receiving {
            self.cancels.push(Kind::Receive.user_data(key, link.usage));
        }
        self.release_if_done(key);
    }

    fn finish(&mut self) {
        let deadline = Instant::now() + FINISH_MAX;
        let waits = |link: &Link| link.closing && link.sending.is_some();
        while self.links.iter().any(waits) && Instant::now() < deadline {
            if let Err(error) = self.enter(Some(Duration::from_millis(10))) {
                tracing::debug!(%error, "the ring cannot finish");
                return;
            }
            while let Some(completion) = self.ring.next() {
                match completion.kind() {
                    Kind::Send => drop(self.sent(completion)),
                    _ => self.discard(completion),
                }
            }
        }
    }

    fn counters(&self) -> Counters {
        Counters {
            events: self.ring.events,
            ..self.counters
        }
    }
}

/// What a completion of a receive means.
enum Receipt {
    Bytes(ConnectionId, u16, usize),
    Ended(ConnectionId, SocketEnd),
    Nothing,
}

/// What a completion of a send means.
enum Outcome {
    Flushed(ConnectionId),
    Broken(ConnectionId),
    Nothing,
}

impl Link {
    fn new(stream: TcpStream, id: ConnectionId, usage: u32) -> Link {
        Link {
            stream: Some(stream),
            id,
            usage,
            sending: None,
            queued: false,
            receiving: false,
            closing: false,
            broken: false,
            then_shutdown: false,
        }
    }

    /// Ends the sending side. It fails only for a socket that is broken already, which a receive will tell.
    fn end_sending(&self) {
        if let Some(stream) = &self.stream {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    fn fd(&self) -> types::Fd {
        types::Fd(self.stream.as_ref().map_or(-1, AsRawFd::as_raw_fd))
    }
}

impl Uring {
    /// Completions that may be served now.
    fn ready(&self) -> usize {
        self.ring.ready() + if self.paused { 0 } else { self.aside.len() }
    }

    fn next(&mut self) -> Option<Completion> {
        let put_aside = if self.paused { None } else { self.aside.pop_front() };
        put_aside.or_else(|| self.ring.next())
    }

    fn key(&self, id: ConnectionId) -> Option<u32> {
        let slot = self.slots.get(id.index as usize)?;
        (slot.generation == id.generation && slot.key != NO_KEY).then_some(slot.key)
    }

    /// Takes in a completion of a receive and arms the next where one is needed.
    fn received(&mut self, completion: Completion) -> Receipt {
        let key = completion.key();
        let link = &mut self.links[key as usize];
        let id = link.id;
        link.receiving = completion.goes_on();
        let buffer = completion.buffer();
        if link.closing || link.broken {
            if let Some(buffer) = buffer {
                self.ring.buffers.give_back(buffer);
            }
            self.release_if_done(key);
            return Receipt::Nothing;
        }
        match (completion.result, buffer) {
            (1.., Some(buffer)) => {
                self.counters.reads += 1;
                self.counters.read_bytes += completion.result as u64;
                if !completion.goes_on() {
                    self.receive(key);
                }
                Receipt::Bytes(id, buffer, completion.result as usize)
            }
            (0, buffer) => {
                if let Some(buffer) = buffer {
                    self.ring.buffers.give_back(buffer);
                }
                Receipt::Ended(id, SocketEnd::Eof)
            }
            (result, _) if result == -libc::ENOBUFS => {
                self.starved.push(key);
                Receipt::Nothing
            }
            (result, _) if result == -libc::EINTR || result == -libc::EAGAIN => {
                self.receive(key);
                Receipt::Nothing
            }
            _ => {
                link.broken = true;
                Receipt::Ended(id, SocketEnd::Reset)
            }
        }
    }

    /// Takes in a completion of a send; what was not taken is sent again.
    fn sent(&mut self, completion: Completion) -> Outcome {
        let key = completion.key();
        let link = &mut self.links[key as usize];
        let id = link.id;
        let mut sending = link
            .sending
            .take()
            .expect("a send completes once and keeps its bytes until then");
        let retry = completion.result == -libc::EINTR || completion.result == -libc::EAGAIN;
        if completion.result > 0 {
            self.counters.writes += 1;
            self.counters.write_bytes += completion.result as u64;
            sending.advance(completion.result as usize);
        }
        if (completion.result >= 0 || retry) && !sending.is_empty() && !link.closing && !link.broken {
            link.sending = Some(sending);
            self.send(key);
            return Outcome::Nothing;
        }
        let all_left = sending.is_empty();
        if self.spare.len() < SPARE_MAX && sending.is_small() {
            sending.clear();
            self.spare.push(sending);
        }
        if link.closing {
            self.release_if_done(key);
            return Outcome::Nothing;
        }
        if link.broken {
            return Outcome::Nothing;
        }
        if !all_left {
            link.broken = true;
            return Outcome::Broken(id);
        }
        if std::mem::take(&mut link.then_shutdown) {
            link.end_sending();
        }
        Outcome::Flushed(id)
    }

    /// Frees the key of a socket that was let go when its last completion is in, and closes it.
    fn release_if_done(&mut self, key: u32) {
        let link = &mut self.links[key as usize];
        if link.closing && !link.receiving && link.sending.is_none() && link.stream.take().is_some() {
            self.free.push(key);
        }
    }

    /// Takes in what was put aside of a socket that is let go, so that it need not stay open until reading resumes.
    fn forget_aside(&mut self, key: u32) {
        for _ in 0..self.aside.len() {
            match self.aside.pop_front() {
                Some(completion) if completion.key() == key => drop(self.received(completion)),
                other => self.aside.extend(other),
            }
        }
    }

    /// Arms the multishot receive of a socket.
    fn receive(&mut self, key: u32) {
        let link = &mut self.links[key as usize];
        link.receiving = true;
        let user_data = Kind::Receive.user_data(key, link.usage);
        let entry = opcode::RecvMulti::new(link.fd(), memory::GROUP)
            .build()
            .user_data(user_data);
        // SAFETY: it writes to the ring's own buffers only; `Drop` leaks them if the kernel may still do so.
        unsafe { self.ring.start(&entry) };
    }

    /// Arms receives again that had ended for want of a buffer, if there is one now.
    fn feed_starved(&mut self) {
        if self.starved.is_empty() || !self.ring.buffers.any_free() {
            return;
        }
        for key in std::mem::take(&mut self.starved) {
            let link = &self.links[key as usize];
            // The key may have been freed, and even used again, since.
            if link.stream.is_some() && !link.receiving && !link.closing && !link.broken {
                self.receive(key);
            }
        }
    }

    /// Puts what a socket has in `sending` on the list of the next call to the kernel.
    fn send(&mut self, key: u32) {
        self.links[key as usize].queued = true;
        self.sends.push(key);
    }

    /// Moves the lists of sends and cancellations into the ring's queue.
    fn queue_lists(&mut self) {
        let mut sends = std::mem::take(&mut self.sends);
        for key in sends.drain(..) {
            let link = &mut self.links[key as usize];
            link.queued = false;
            let fd = link.fd();
            let user_data = Kind::Send.user_data(key, link.usage);
            if let Some(sending) = &mut link.sending {
                let entry = sending.operation(fd).user_data(user_data);
                // SAFETY: bytes and headers are in a boxed `Sending`, which its link holds until the completion and
                // `Drop` leaks if there is none.
                unsafe { self.ring.start(&entry) };
            }
        }
        self.sends = sends;
        for target in self.cancels.drain(..) {
            self.ring.cancel(target);
        }
    }

    fn listen_for_doorbell(&mut self) {
        let fd = types::Fd(self.doorbell.0.as_raw_fd());
        let entry = opcode::Read::new(fd, self.rung.as_mut_ptr(), 8).build();
        let entry = entry.user_data(Kind::Wake.user_data(NO_KEY, 0));
        // SAFETY: it writes to a box that lives as long as `self`, and that `Drop` leaks if it must.
        unsafe { self.ring.start(&entry) };
    }

    /// Gives all that was asked for to the kernel and takes completions, waiting at most `timeout` for the first.
    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.queue_lists();
        self.ring.enter(timeout)
    }

    /// Takes in a completion that nobody will be told of.
    fn discard(&mut self, completion: Completion) {
        if let Some(buffer) = completion.buffer() {
            self.ring.buffers.give_back(buffer);
        }
        if let Some(link) = self.links.get_mut(completion.key() as usize) {
            match completion.kind() {
                Kind::Receive => link.receiving = completion.goes_on(),
                _ => link.sending = None,
            }
            self.release_if_done(completion.key());
        }
    }

    /// Cancels all operations and waits until the kernel has let go of their memory; false if it has not in time.
    fn quiesce(&mut self) -> bool {
        let deadline = Instant::now() + FINISH_MAX;
        // What is only queued cannot be cancelled yet.
        let mut entered = self.enter(Some(Duration::ZERO));
        while self.ring.in_flight() > 0 && entered.is_ok() && Instant::now() < deadline {
            self.ring.cancel_all();
            entered = self.enter(Some(Duration::from_millis(1)));
            while let Some(completion) = self.ring.next() {
                self.discard(completion);
            }
        }
        self.ring.in_flight() == 0
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        for completion in std::mem::take(&mut self.aside) {
            self.discard(completion);
        }
        if self.ring.in_flight() == 0 || self.quiesce() {
            return;
        }
        tracing::warn!(
            operations = self.ring.in_flight(),
            "the kernel keeps operations; their memory is given up"
        );
        self.ring.buffers.leak();
        for link in &mut self.links {
            std::mem::forget(link.sending.take());
        }
        std::mem::forget(std::mem::take(&mut self.rung));
    }
}
