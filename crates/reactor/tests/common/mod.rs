//! Machines to test with, and sockets to reach them.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::VecDeque;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use engine::{Actions, Close, ConnectionId, Letter, Machine, ShardId, SocketEnd, Time, Wrote};
use reactor::{Adoption, DriverKind, Group, Handle, Options, TurnStats, spawn};

/// Longer than anything here takes; only a failing test waits for it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test with each driver. io_uring falls back where it is not permitted; then it is tried twice with epoll.
pub fn for_each_driver(test: impl Fn(DriverKind)) {
    for driver in [DriverKind::Epoll, DriverKind::Uring] {
        eprintln!("driver {driver}");
        test(driver);
    }
}

/// What a machine saw, told to the test.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    Opened(ConnectionId),
    Received(ConnectionId, usize),
    /// The write that was pending has left.
    Flushed(ConnectionId),
    Ended(ConnectionId, SocketEnd),
    Wrote(ConnectionId, Wrote),
}

/// What a test asks of the machine by mail.
pub enum Ask {
    Write(ConnectionId, Vec<Bytes>),
    /// Writes and closes in order, at once.
    LastWords(ConnectionId, Bytes),
    Shutdown(ConnectionId),
    Close(ConnectionId, Close),
    /// The machine's work is over.
    Finish,
    /// Writes to all connections.
    Broadcast(Bytes),
}

impl Letter for Ask {
    fn bytes(&self) -> usize {
        0
    }

    fn is_request(&self) -> bool {
        false
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    open: bool,
    /// Between a pending write and its end.
    busy: bool,
    ended: bool,
    due: VecDeque<Bytes>,
}

/// Sends back what comes (if `echo`), and does what it is asked by mail.
pub struct Probe {
    echo: bool,
    /// Closes a connection when the peer has ended it and all was sent.
    close_at_end: bool,
    finished: bool,
    slots: Vec<Slot>,
    seen: Sender<Seen>,
}

impl Probe {
    pub fn new(seen: Sender<Seen>) -> Probe {
        Probe {
            echo: true,
            close_at_end: true,
            finished: false,
            slots: Vec::new(),
            seen,
        }
    }

    pub fn without_echo(self) -> Probe {
        Probe { echo: false, ..self }
    }

    /// Connections stay half open when the peer has ended them.
    pub fn staying(self) -> Probe {
        Probe {
            close_at_end: false,
            ..self
        }
    }

    fn slot(&mut self, id: ConnectionId) -> &mut Slot {
        let slot = &mut self.slots[id.index as usize];
        assert!(
            slot.open && slot.generation == id.generation,
            "event for {id}, which is not open"
        );
        slot
    }

    fn tell(&self, seen: Seen) {
        // The test may have seen enough.
        let _ = self.seen.send(seen);
    }

    fn close(&mut self, id: ConnectionId, how: Close, actions: &mut impl Actions<Ask>) {
        *self.slot(id) = Slot {
            generation: id.generation + 1,
            ..Slot::default()
        };
        actions.close(id, how);
    }
}

impl Machine for Probe {
    type Opening = ();
    type Mail = Ask;

    fn opened(&mut self, (): (), _: Time, _: &mut impl Actions<Ask>) -> Option<ConnectionId> {
        let index = self.slots.iter().position(|slot| !slot.open).unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        self.slots[index].open = true;
        let id = ConnectionId {
            index: index as u32,
            generation: self.slots[index].generation,
        };
        self.tell(Seen::Opened(id));
        Some(id)
    }

    fn received(&mut self, id: ConnectionId, bytes: &mut [u8], _: Time, _: &mut impl Actions<Ask>) {
        assert!(!bytes.is_empty());
        let echo = self.echo;
        let slot = self.slot(id);
        if echo {
            slot.due.push_back(Bytes::copy_from_slice(bytes));
        } else {
            self.tell(Seen::Received(id, bytes.len()));
        }
    }

    fn flushed(&mut self, id: ConnectionId, _: Time, _: &mut impl Actions<Ask>) {
        let slot = self.slot(id);
        assert!(slot.busy, "flushed without a pending write");
        slot.busy = false;
        self.tell(Seen::Flushed(id));
    }

    fn ended(&mut self, id: ConnectionId, end: SocketEnd, _: Time, actions: &mut impl Actions<Ask>) {
        self.slot(id).ended = true;
        self.tell(Seen::Ended(id, end));
        if end != SocketEnd::Eof {
            self.close(id, Close::Abort, actions);
        }
    }

    fn mail(&mut self, ask: Ask, _: Time, actions: &mut impl Actions<Ask>) {
        match ask {
            Ask::Write(id, parts) => self.slot(id).due.extend(parts),
            Ask::LastWords(id, bytes) => {
                actions.write(id, &[bytes]);
                self.close(id, Close::Orderly, actions);
            }
            Ask::Finish => self.finished = true,
            Ask::Shutdown(id) => actions.shutdown(id),
            Ask::Close(id, how) => self.close(id, how, actions),
            Ask::Broadcast(bytes) => {
                self.slots
                    .iter_mut()
                    .filter(|slot| slot.open)
                    .for_each(|slot| slot.due.push_back(bytes.clone()));
            }
        }
    }

    fn advance(&mut self, _: Time, _: &mut impl Actions<Ask>) {}

    fn flush(&mut self, _: Time, actions: &mut impl Actions<Ask>) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let id = ConnectionId {
                index: index as u32,
                generation: slot.generation,
            };
            if !slot.open || slot.busy {
                continue;
            }
            if !slot.due.is_empty() {
                let parts: Vec<Bytes> = slot.due.drain(..).collect();
                let wrote = actions.write(id, &parts);
                slot.busy = wrote == Wrote::Pending;
                self.tell(Seen::Wrote(id, wrote));
                if wrote == Wrote::Failed {
                    self.close(id, Close::Abort, actions);
                    continue;
                }
            }
            let slot = &mut self.slots[index];
            if slot.ended && !slot.busy && self.close_at_end {
                self.close(id, Close::Orderly, actions);
            }
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        None
    }

    fn finished(&self) -> bool {
        self.finished
    }
}

/// One running machine and what it tells.
pub struct Bench {
    pub group: Group<Probe>,
    pub seen: Receiver<Seen>,
    listener: TcpListener,
}

impl Bench {
    pub fn new(driver: DriverKind, adjust: impl Fn(Probe) -> Probe) -> Bench {
        let (sender, seen) = channel();
        let options = Options {
            driver,
            ..Options::default()
        };
        let group = spawn(1, &options, |_| adjust(Probe::new(sender.clone()))).unwrap();
        Bench {
            group,
            seen,
            listener: listener(),
        }
    }

    pub fn handle(&self) -> &Handle<Probe> {
        &self.group.handles[0]
    }

    /// Hands over one end of a new connection; gives the other and the id.
    pub fn connect(&self) -> (TcpStream, ConnectionId) {
        let (client, server) = pair_of(&self.listener);
        self.adopt(server, Bytes::new(), None);
        (client, self.opened())
    }

    pub fn adopt(&self, stream: TcpStream, received: Bytes, tls: Option<rustls::Connection>) {
        let tls = tls.map(Box::new);
        self.handle()
            .adopt(Adoption {
                stream,
                tls,
                received,
                opening: (),
            })
            .map_err(drop)
            .unwrap();
    }

    /// As `connect`, without waiting.
    pub fn connect_unseen(&self) -> TcpStream {
        let (client, stream) = pair_of(&self.listener);
        let mut adoption = Adoption {
            stream,
            tls: None,
            received: Bytes::new(),
            opening: (),
        };
        while let Err(back) = self.handle().adopt(adoption) {
            adoption = back;
            std::thread::yield_now();
        }
        client
    }

    pub fn opened(&self) -> ConnectionId {
        match self.next() {
            Seen::Opened(id) => id,
            other => panic!("not opened but {other:?}"),
        }
    }

    pub fn ask(&self, ask: Ask) {
        self.handle().mail(ask).map_err(drop).unwrap();
    }

    pub fn next(&self) -> Seen {
        self.seen
            .recv_timeout(PATIENCE)
            .expect("the machine sees something")
    }

    /// Skips until the machine saw an end.
    pub fn ended(&self) -> (ConnectionId, SocketEnd) {
        loop {
            if let Seen::Ended(id, end) = self.next() {
                return (id, end);
            }
        }
    }

    pub fn stats(&self) -> TurnStats {
        let (sender, stats) = channel();
        let call = Box::new(move |_: &mut Probe, stats: &TurnStats| sender.send(stats.clone()).unwrap());
        self.handle().call(call).map_err(drop).unwrap();
        stats.recv_timeout(PATIENCE).unwrap()
    }

    pub fn end(self) {
        self.handle().stop();
        self.group.join().unwrap();
    }
}

/// Two connected blocking sockets on loopback.
pub fn pair() -> (TcpStream, TcpStream) {
    pair_of(&listener())
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// The same by a listener that nobody else uses.
fn pair_of(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_nodelay(true).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

/// Bytes that no shift or swap leaves alike.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|place| (place ^ (place >> 8) ^ (place >> 16).wrapping_mul(31)) as u8)
        .collect()
}

/// The one shard of most groups.
pub const FIRST: ShardId = ShardId(0);
