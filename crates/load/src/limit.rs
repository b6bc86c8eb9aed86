//! The bare gathering loop: the least that a WebSocket broadcast server can do, to compare real servers with.
//!
//! One thread, one epoll set. A turn reads every ready socket once, unmasks what came and appends it, as server
//! frames, to one buffer; then each other connection gets that buffer in one `send`. That is the physical limit of
//! a broadcast through the operating system's sockets: all that a real server does beyond it is its own cost.
//!
//! It never queues: a connection that would block is dropped and counted. It has no rooms, limits, timers or TLS,
//! and it does not speak fragmented messages (a connection that sends one is dropped and counted). A connection
//! costs one 32-byte entry here, and whatever the kernel takes.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::ops::Range;
use std::sync::Arc;

use bytes::BytesMut;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{Domain, Protocol, Socket, Type};
use wire::handshake::parse_head;
use wire::{Header, Opcode, Policy, apply_mask, encode_frame};

/// Longest message accepted, bytes; a longer one ends its connection.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// What one `recv` can bring, bytes.
const SCRATCH_BYTES: usize = 256 << 10;
/// Readiness events taken in one turn.
const EVENTS_MAX: usize = 1024;

const LISTENER: Token = Token(usize::MAX);
const STOP: Token = Token(usize::MAX - 1);

/// To whom a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To all other connections.
    Fanout,
    /// Back to its sender.
    Echo,
}

/// What the loop did until it was stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections upgraded.
    pub upgraded: u64,
    /// Messages received.
    pub messages: u64,
    /// Connections dropped since a send would have blocked.
    pub blocked: u64,
    /// Connections dropped for what they sent: no valid upgrade, a fragment, an unmasked or too long frame.
    pub refused: u64,
}

/// Stops a running [`Limit`] from another thread.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<Waker>);

impl Stopper {
    /// Makes [`Limit::run`] return after its present turn.
    pub fn stop(&self) {
        // The waker can only fail when the loop is gone already, which is what was asked for.
        let _ = self.0.wake();
    }
}

/// The bare loop, bound and ready to run.
#[derive(Debug)]
pub struct Limit {
    mode: Mode,
    poll: Poll,
    listener: TcpListener,
    stopper: Stopper,
    peers: Vec<Option<Peer>>,
    free: Vec<usize>,
    /// The turn's server frames, in the order they were read.
    turn: BytesMut,
    /// Whose frames stand where in `turn`.
    senders: Vec<(usize, Range<usize>)>,
    /// Out of descriptors: accept again when a connection ends.
    starved: bool,
    totals: Totals,
}

#[derive(Debug)]
struct Peer {
    stream: TcpStream,
    upgraded: bool,
    /// A request or frame of which the end has not come yet.
    held: Vec<u8>,
}

/// Why a peer is let go.
enum Departure {
    /// It went away.
    Gone,
    /// A send would have blocked.
    Blocked,
    /// It sent what the loop does not take.
    Refused,
}

impl Limit {
    /// Listens at `address`, with the longest backlog that the system grants.
    ///
    /// # Errors
    /// The address is in use or not ours, or the system has no descriptors left.
    pub fn bind(address: SocketAddr, mode: Mode) -> io::Result<Limit> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::from_std(listen(address)?);
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        let stopper = Stopper(Arc::new(Waker::new(poll.registry(), STOP)?));
        Ok(Limit {
            mode,
            poll,
            listener,
            stopper,
            peers: Vec::new(),
            free: Vec::new(),
            turn: BytesMut::new(),
            senders: Vec::new(),
            starved: false,
            totals: Totals::default(),
        })
    }

    /// Where it listens; tells the port when it was bound to port 0.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What stops [`Limit::run`].
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Serves until stopped.
    ///
    /// # Errors
    /// Waiting for readiness failed; errors of single connections end just these.
    pub fn run(mut self) -> io::Result<Totals> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut scratch = vec![0; SCRATCH_BYTES];
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                match event.token() {
                    STOP => return Ok(self.totals),
                    LISTENER => self.accept(),
                    Token(slot) => {
                        if let Err(why) = self.read(slot, &mut scratch) {
                            self.drop_peer(slot, &why);
                        }
                    }
                }
            }
            if !self.turn.is_empty() {
                self.send_turn();
            }
        }
    }

    fn accept(&mut self) {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    io::ErrorKind::WouldBlock => return,
                    _ => {
                        if !self.starved {
                            eprintln!("cannot accept ({error}); going on when a connection ends");
                        }
                        self.starved = true;
                        return;
                    }
                },
            };
            let slot = self.free.pop().unwrap_or_else(|| {
                self.peers.push(None);
                self.peers.len() - 1
            });
            let registered = self
                .poll
                .registry()
                .register(&mut stream, Token(slot), Interest::READABLE);
            match registered {
                Ok(()) => {
                    self.peers[slot] = Some(Peer {
                        stream,
                        upgraded: false,
                        held: Vec::new(),
                    })
                }
                Err(_) => self.free.push(slot),
            }
        }
    }

    /// Reads what `slot` has, appends its messages to the turn. An event of a peer that ended earlier in the same
    /// turn finds the slot empty, or a newcomer with nothing to read: both are harmless.
    fn read(&mut self, slot: usize, scratch: &mut [u8]) -> Result<(), Departure> {
        let Some(peer) = self.peers[slot].as_mut() else {
            return Ok(());
        };
        let start = self.turn.len();
        loop {
            let count = match peer.stream.read(scratch) {
                Ok(0) => return Err(Departure::Gone),
                Ok(count) => count,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => continue,
                    _ => return Err(Departure::Gone),
                },
            };
            if peer.held.is_empty() {
                let taken = peer.take(&mut scratch[..count], &mut self.turn, &mut self.totals)?;
                peer.held.extend_from_slice(&scratch[taken..count]);
            } else {
                let mut held = std::mem::take(&mut peer.held);
                held.extend_from_slice(&scratch[..count]);
                let taken = peer.take(&mut held, &mut self.turn, &mut self.totals)?;
                if taken < held.len() {
                    held.drain(..taken);
                    peer.held = held;
                }
            }
            // A short read emptied the socket; what comes later makes a new event.
            if count < scratch.len() {
                break;
            }
        }
        if self.turn.len() > start {
            self.senders.push((slot, start..self.turn.len()));
        }
        Ok(())
    }

    /// One `send` of the turn's buffer to each other connection; a sender gets all but its own frames.
    fn send_turn(&mut self) {
        let turn = std::mem::take(&mut self.turn);
        let mut senders = std::mem::take(&mut self.senders);
        match self.mode {
            Mode::Echo => {
                for (slot, own) in &senders {
                    self.send(*slot, &turn[own.clone()], &[]);
                }
            }
            Mode::Fanout => {
                senders.sort_unstable_by_key(|(slot, _)| *slot);
                let mut next = senders.iter().peekable();
                for slot in 0..self.peers.len() {
                    match next.next_if(|(sender, _)| *sender == slot) {
                        None => self.send(slot, &turn, &[]),
                        Some((_, own)) => self.send(slot, &turn[..own.start], &turn[own.end..]),
                    }
                }
            }
        }
        self.turn = turn;
        self.turn.clear();
        self.senders = senders;
        self.senders.clear();
    }

    /// Sends `head` and then `tail`, in one call.
    fn send(&mut self, slot: usize, head: &[u8], tail: &[u8]) {
        let Some(peer) = self.peers[slot].as_mut().filter(|peer| peer.upgraded) else {
            return;
        };
        let sent = match (head.is_empty(), tail.is_empty()) {
            (true, true) => return,
            (_, true) => peer.stream.write(head),
            (true, _) => peer.stream.write(tail),
            _ => peer
                .stream
                .write_vectored(&[IoSlice::new(head), IoSlice::new(tail)]),
        };
        let why = match sent {
            Ok(count) if count == head.len() + tail.len() => return,
            Ok(_) => Departure::Blocked,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Departure::Blocked,
            Err(_) => Departure::Gone,
        };
        self.drop_peer(slot, &why);
    }

    fn drop_peer(&mut self, slot: usize, why: &Departure) {
        self.peers[slot] = None;
        self.free.push(slot);
        match why {
            Departure::Gone => {}
            Departure::Refused => self.totals.refused += 1,
            Departure::Blocked => {
                if self.totals.blocked == 0 {
                    eprintln!("a connection was dropped since a send to it would have blocked (said once)");
                }
                self.totals.blocked += 1;
            }
        }
        if std::mem::take(&mut self.starved) {
            self.accept();
        }
    }
}

impl Peer {
    /// Takes as many whole requests and frames from `bytes` as there are; the number of bytes taken.
    fn take(
        &mut self,
        bytes: &mut [u8],
        turn: &mut BytesMut,
        totals: &mut Totals,
    ) -> Result<usize, Departure> {
        let mut taken = 0;
        if !self.upgraded {
            let Some(length) = self.upgrade(bytes)? else {
                return Ok(0);
            };
            totals.upgraded += 1;
            taken = length;
        }
        while let Some((header, place)) = whole_frame(&bytes[taken..])? {
            let payload = &mut bytes[taken + place.start..taken + place.end];
            taken += place.end;
            apply_mask(header.mask.ok_or(Departure::Refused)?, 0, payload);
            match header.opcode {
                Opcode::Text | Opcode::Binary if header.fin => {
                    totals.messages += 1;
                    encode_frame(turn, header.opcode, false, payload);
                }
                Opcode::Ping => self.answer(Opcode::Pong, payload)?,
                Opcode::Pong => {}
                Opcode::Close => {
                    self.answer(Opcode::Close, payload)?;
                    return Err(Departure::Gone);
                }
                _ => return Err(Departure::Refused),
            }
        }
        Ok(taken)
    }

    /// Answers the upgrade request at the start of `bytes`; its length, or `None` while its end has not come.
    fn upgrade(&mut self, bytes: &[u8]) -> Result<Option<usize>, Departure> {
        let Some(head) = parse_head(bytes).map_err(|_| Departure::Refused)? else {
            return Ok(None);
        };
        let mut answer = BytesMut::new();
        let checked = head.check(&Policy::default());
        match &checked {
            Ok(acceptance) => acceptance.write(&mut answer),
            Err(refusal) => refusal.write(&mut answer),
        }
        self.write_whole(&answer)?;
        self.upgraded = true;
        checked
            .map(|_| Some(head.head_bytes))
            .map_err(|_| Departure::Refused)
    }

    fn answer(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), Departure> {
        let mut frame = BytesMut::new();
        encode_frame(&mut frame, opcode, false, payload);
        self.write_whole(&frame)
    }

    fn write_whole(&mut self, bytes: &[u8]) -> Result<(), Departure> {
        match self.stream.write(bytes) {
            Ok(count) if count == bytes.len() => Ok(()),
            _ => Err(Departure::Blocked),
        }
    }
}

/// The header of the whole frame that `bytes` starts with, and where its payload lies; `None` while its end has not
/// come.
fn whole_frame(bytes: &[u8]) -> Result<Option<(Header, Range<usize>)>, Departure> {
    let Some((header, start)) = Header::parse(bytes).map_err(|_| Departure::Refused)? else {
        return Ok(None);
    };
    if header.payload_bytes > MESSAGE_BYTES_MAX as u64 {
        return Err(Departure::Refused);
    }
    let payload = start..start + header.payload_bytes as usize;
    Ok((bytes.len() >= payload.end).then_some((header, payload)))
}

fn listen(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // What is accepted inherits it on Linux, which saves a system call for each connection.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    // The kernel cuts it to the system's maximum.
    socket.listen(i32::MAX)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
