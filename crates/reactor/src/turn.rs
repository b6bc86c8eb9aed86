//! The loop: takes what is ready, feeds the machine, lets it flush, sleeps.
//!
//! It decides nothing but the order of a turn. TLS lies here between driver and machine, so that drivers move
//! ciphertext and machines see plaintext.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::{Actions, Close, ConnectionId, Letter, Machine, ShardId, SocketEnd, Time, Wrote};

use crate::driver::{Driver, Event};
use crate::group::{Adoption, Item, Shared};
use crate::mail::{Inlets, Outlets};
use crate::stats::TurnStats;
use crate::tls::{Progress, Sessions};

/// Plaintext handed to the machine in one piece, with TLS.
const PLAINTEXT_BYTES: usize = 64 * 1024;

/// The clock of a group.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock {
            start: Instant::now(),
        }
    }

    fn now(self) -> Time {
        let elapsed = self.start.elapsed();
        Time::from_micros(elapsed.as_secs() * 1_000_000 + u64::from(elapsed.subsec_micros()))
    }
}

/// What the machine acts on: sockets, TLS and mail. Passed to each of its calls.
struct Outside<D, Mail> {
    driver: D,
    sessions: Sessions,
    outlets: Outlets<Mail>,
    /// Sockets that broke in a call which could not say so: the machine is told in the next turn.
    broken: Vec<ConnectionId>,
}

impl<D: Driver, Mail: Letter> Actions<Mail> for Outside<D, Mail> {
    #[inline]
    fn write(&mut self, connection: ConnectionId, parts: &[Bytes]) -> Wrote {
        match self.sessions.get(connection.index) {
            None => self.driver.write(connection, parts),
            Some(_) if !self.driver.is_open(connection) => Wrote::Failed,
            Some(session) => session.write(parts, |bytes| self.driver.write(connection, &[bytes])),
        }
    }

    fn shutdown(&mut self, connection: ConnectionId) {
        if !self.driver.is_open(connection) {
            return;
        }
        match self.sessions.get(connection.index) {
            None => self.driver.shutdown(connection),
            Some(session) => {
                session.end_sending();
                if self.push_tls(connection) == Progress::Failed {
                    self.broken.push(connection);
                }
            }
        }
    }

    fn close(&mut self, connection: ConnectionId, how: Close) {
        if !self.driver.is_open(connection) {
            return;
        }
        if let Some(mut session) = self.sessions.remove(connection.index)
            && how == Close::Orderly
        {
            // What the peer does not take at once is dropped with the socket.
            let rest = session.finish(|bytes| self.driver.write(connection, &[bytes]));
            if let Some(bytes) = rest {
                self.driver.add_last(connection, bytes);
            }
        }
        self.driver.close(connection, how);
    }

    fn mail(&mut self, to: ShardId, mail: Mail) {
        self.outlets.send(to, mail);
    }
}

impl<D: Driver, Mail> Outside<D, Mail> {
    /// Sends what TLS has to send, and ends the sending side when all of it is on its way.
    fn push_tls(&mut self, id: ConnectionId) -> Progress {
        let Some(session) = self.sessions.get(id.index) else {
            return Progress::Idle;
        };
        let progress = session.push(|bytes| self.driver.write(id, &[bytes]));
        if session.take_sending_ended() {
            self.driver.shutdown(id);
        }
        progress
    }
}

/// One machine and all that its thread owns.
pub(crate) struct Worker<M: Machine, D: Driver> {
    machine: M,
    outside: Outside<D, M::Mail>,
    /// Dropped after the driver, which may have lent it to the operating system.
    scratch: D::Scratch,
    plaintext: Box<[u8]>,
    inlets: Inlets<M::Mail>,
    shared: Arc<Shared<M>>,
    /// Taken from the inbox while the outlets were full; nothing behind it is taken before it.
    put_off: Option<Item<M>>,
    /// Letters that one ring, or the inbox, may bring in a turn.
    share: usize,
    clock: Clock,
    stats: TurnStats,
}

impl<M: Machine, D: Driver> Worker<M, D> {
    pub(crate) fn new(
        machine: M,
        (driver, scratch): (D, D::Scratch),
        (outlets, inlets): (Outlets<M::Mail>, Inlets<M::Mail>),
        shared: Arc<Shared<M>>,
        batch: usize,
        clock: Clock,
    ) -> Worker<M, D> {
        Worker {
            machine,
            outside: Outside {
                driver,
                sessions: Sessions::default(),
                outlets,
                broken: Vec::new(),
            },
            scratch,
            plaintext: vec![0; PLAINTEXT_BYTES].into_boxed_slice(),
            share: (batch / (inlets.len() + 1)).max(1),
            inlets,
            shared,
            put_off: None,
            clock,
            stats: TurnStats::new(),
        }
    }

    /// Runs until the machine is finished or the group's owner says stop. Gives the machine back.
    ///
    /// # Errors
    /// The driver cannot go on.
    pub(crate) fn run(mut self) -> io::Result<M> {
        self.outside.driver.start()?;
        let mut began = self.clock.now();
        while !self.shared.is_stopped() && !self.machine.finished() {
            self.wait(began)?;
            let now = self.clock.now();
            self.turn(now);
            began = self.clock.now();
            self.stats.turn(began.as_micros() - now.as_micros());
        }
        if !self.shared.is_stopped() {
            self.outside.driver.finish();
        }
        Ok(self.machine)
    }

    /// Waits for events, a deadline or a wake-up; not at all if there is work left.
    fn wait(&mut self, now: Time) -> io::Result<()> {
        let timeout = match self.machine.next_deadline() {
            _ if self.outside.driver.has_ready() || !self.outside.broken.is_empty() => Some(Duration::ZERO),
            Some(deadline) => Some(deadline.since(now)),
            None => None,
        };
        if timeout == Some(Duration::ZERO) {
            return self.outside.driver.wait(timeout);
        }
        let wake = &self.shared.wake;
        wake.lie_down();
        if self.has_news() {
            wake.get_up();
            return self.outside.driver.wait(Some(Duration::ZERO));
        }
        let waited = self.outside.driver.wait(timeout);
        self.stats.wakeups += u64::from(wake.get_up());
        waited
    }

    /// True if there is something that the thread would sleep through, and that it may take.
    fn has_news(&self) -> bool {
        let outlets = &self.outside.outlets;
        let from_outside = match &self.put_off {
            Some(_) => !outlets.is_full(),
            None => !self.shared.inbox.is_empty(),
        };
        from_outside
            || self.shared.is_stopped()
            || !self.inlets.is_empty(outlets.may_take_requests())
            || outlets.can_move()
    }

    /// One turn, as [`Machine`] describes it.
    fn turn(&mut self, now: Time) {
        self.take_events(now);
        self.take_mail(now);
        self.machine.advance(now, &mut self.outside);
        self.machine.flush(now, &mut self.outside);
        self.outside.outlets.dispatch();
        self.outside.driver.pause_reading(self.outside.outlets.is_full());
    }

    fn take_events(&mut self, now: Time) {
        let Worker {
            machine,
            outside,
            scratch,
            plaintext,
            ..
        } = self;
        for id in std::mem::take(&mut outside.broken) {
            if outside.driver.is_open(id) {
                machine.ended(id, SocketEnd::Reset, now, outside);
            }
        }
        loop {
            if outside.outlets.is_full() {
                // Of this turn's events only those follow that bring no bytes; the driver keeps the others.
                outside.driver.pause_reading(true);
            }
            let Some(event) = outside.driver.next_event(scratch) else {
                break;
            };
            let (Event::Received(id, _) | Event::Flushed(id) | Event::Ended(id, _)) = event;
            if outside.sessions.get(id.index).is_some() {
                secured(machine, outside, plaintext, event, now);
                continue;
            }
            match event {
                Event::Received(id, bytes) => machine.received(id, bytes, now, outside),
                Event::Flushed(id) => machine.flushed(id, now, outside),
                Event::Ended(id, end) => machine.ended(id, end, now, outside),
            }
        }
    }

    fn take_mail(&mut self, now: Time) {
        for inlet in 0..self.inlets.len() {
            let Worker {
                machine,
                outside,
                inlets,
                ..
            } = self;
            let requests = inlets.brings_requests(inlet);
            if requests && !outside.outlets.may_take_requests() {
                continue;
            }
            let taken = inlets.drain(inlet, self.share, |mail| {
                machine.mail(mail, now, outside);
                !requests || outside.outlets.may_take_requests()
            });
            self.stats.mails += taken as u64;
        }
        self.take_inbox(now);
    }

    fn take_inbox(&mut self, now: Time) {
        for _ in 0..self.share {
            let Some(item) = self.put_off.take().or_else(|| self.shared.inbox.pop()) else {
                break;
            };
            let adds_mail = match &item {
                Item::Adopt(_) => true,
                Item::Mail(mail) => mail.is_request(),
                Item::Call(_) => false,
            };
            if adds_mail && self.outside.outlets.is_full() {
                self.put_off = Some(item);
                break;
            }
            match item {
                Item::Adopt(adoption) => self.adopt(adoption, now),
                Item::Mail(mail) => {
                    self.stats.mails += 1;
                    self.machine.mail(mail, now, &mut self.outside);
                }
                Item::Call(call) => {
                    self.stats.refresh(self.outside.driver.counters());
                    let held = self.outside.outlets.held();
                    self.stats.mails_held = held.letters;
                    self.stats.mail_bytes_held = held.bytes;
                    self.stats.inbox_depth = self.shared.inbox.len();
                    call(&mut self.machine, &self.stats);
                }
            }
        }
    }

    fn adopt(&mut self, adoption: Adoption<M::Opening>, now: Time) {
        let Worker {
            machine,
            outside,
            plaintext,
            ..
        } = self;
        let Adoption {
            stream,
            tls,
            received,
            opening,
        } = adoption;
        let Some(id) = machine.opened(opening, now, outside) else {
            return;
        };
        if let Err(error) = outside.driver.adopt(id, stream) {
            tracing::debug!(%id, %error, "a socket could not be adopted");
            machine.ended(id, SocketEnd::Reset, now, outside);
            return;
        }
        if let Some(connection) = tls {
            outside.sessions.insert(id.index, connection);
        }
        for piece in received.chunks(plaintext.len()) {
            let place = &mut plaintext[..piece.len()];
            place.copy_from_slice(piece);
            machine.received(id, place, now, outside);
            if !outside.driver.is_open(id) {
                return;
            }
        }
        if outside.sessions.get(id.index).is_some() {
            // What the handshake's owner left: plaintext it did not read, records it did not send.
            secured(machine, outside, plaintext, Event::Received(id, &mut []), now);
        }
    }
}

/// Takes an event of a socket with TLS: ciphertext in, plaintext to the machine, and what TLS itself has to say.
fn secured<M: Machine, D: Driver>(
    machine: &mut M,
    outside: &mut Outside<D, M::Mail>,
    plaintext: &mut [u8],
    event: Event<'_>,
    now: Time,
) {
    let id = match event {
        Event::Received(id, ciphertext) => {
            let mut rest: &[u8] = ciphertext;
            loop {
                let Some(session) = outside.sessions.get(id.index) else {
                    return;
                };
                let more = session.take_in(&mut rest);
                while let Some(session) = outside.sessions.get(id.index)
                    && let Some(length) = session.read(plaintext)
                {
                    machine.received(id, &mut plaintext[..length], now, outside);
                    if !outside.driver.is_open(id) {
                        return;
                    }
                }
                if let Err(end) = more {
                    // The alert that says why leaves first, if the socket takes it.
                    outside.push_tls(id);
                    return machine.ended(id, end, now, outside);
                }
                if rest.is_empty() {
                    break id;
                }
            }
        }
        Event::Flushed(id) => {
            if let Some(session) = outside.sessions.get(id.index) {
                session.pipe_is_free();
            }
            id
        }
        Event::Ended(id, SocketEnd::Eof) => {
            let first = outside
                .sessions
                .get(id.index)
                .is_some_and(|session| session.peer_ended());
            if first {
                machine.ended(id, SocketEnd::Eof, now, outside);
            }
            return;
        }
        Event::Ended(id, end) => return machine.ended(id, end, now, outside),
    };
    match outside.push_tls(id) {
        Progress::Idle => {
            if outside
                .sessions
                .get(id.index)
                .is_some_and(|session| session.take_owed_flush())
            {
                machine.flushed(id, now, outside);
            }
        }
        Progress::Blocked => {}
        Progress::Failed => return machine.ended(id, SocketEnd::Reset, now, outside),
    }
    let ended = outside.driver.is_open(id)
        && outside
            .sessions
            .get(id.index)
            .is_some_and(|session| session.has_close_notify() && session.peer_ended());
    if ended {
        machine.ended(id, SocketEnd::Eof, now, outside);
    }
}
