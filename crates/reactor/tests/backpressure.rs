//! A machine whose mail another does not take stops reading sockets and taking requests, and only that.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;
use common::{PATIENCE, for_each_driver, pair};
use engine::{Actions, Close, ConnectionId, Letter, Machine, ShardId, SocketEnd, Time};
use reactor::{Adoption, DriverKind, Group, Handle, Options, TurnStats, spawn};

/// More than a ring and the limit of held mail take together.
const FLOOD: usize = 10_000;

/// Entries of each ring.
const RING: usize = 256;

/// One more than a machine may hold when it takes what adds to it.
const HELD: usize = 4097;

const STUCK: ShardId = ShardId(1);
const HOME: ShardId = ShardId(0);

enum Mail {
    /// Mail `STUCK` so many times.
    Flood,
    /// Ask the home as often for one `Drop` to `STUCK` each.
    FloodHome,
    Ask,
    /// Write to the connection.
    Write(Bytes),
    Close,
    Drop,
}

impl Letter for Mail {
    fn bytes(&self) -> usize {
        1
    }

    fn is_request(&self) -> bool {
        matches!(self, Mail::Flood | Mail::FloodHome | Mail::Ask)
    }
}

struct Flooder {
    connections: u32,
    received: Sender<usize>,
    drops: usize,
    flooded: Sender<()>,
}

const FIRST: ConnectionId = ConnectionId {
    index: 0,
    generation: 0,
};

impl Machine for Flooder {
    type Opening = ();
    type Mail = Mail;

    fn opened(&mut self, (): (), _: Time, _: &mut impl Actions<Mail>) -> Option<ConnectionId> {
        self.connections += 1;
        Some(ConnectionId {
            index: self.connections - 1,
            generation: 0,
        })
    }

    fn received(&mut self, _: ConnectionId, bytes: &mut [u8], now: Time, actions: &mut impl Actions<Mail>) {
        self.received.send(bytes.len()).unwrap();
        if bytes == b"flood" {
            self.mail(Mail::Flood, now, actions);
        }
    }

    fn flushed(&mut self, _: ConnectionId, _: Time, _: &mut impl Actions<Mail>) {}

    fn ended(&mut self, _: ConnectionId, _: SocketEnd, _: Time, _: &mut impl Actions<Mail>) {}

    fn mail(&mut self, mail: Mail, _: Time, actions: &mut impl Actions<Mail>) {
        match mail {
            Mail::Flood => (0..FLOOD).for_each(|_| actions.mail(STUCK, Mail::Drop)),
            Mail::FloodHome => (0..FLOOD).for_each(|_| actions.mail(HOME, Mail::Ask)),
            Mail::Ask => actions.mail(STUCK, Mail::Drop),
            Mail::Write(bytes) => drop(actions.write(FIRST, &[bytes])),
            Mail::Close => actions.close(FIRST, Close::Orderly),
            Mail::Drop => {
                self.drops += 1;
                if self.drops.is_multiple_of(FLOOD) {
                    self.flooded.send(()).unwrap();
                }
            }
        }
    }

    fn advance(&mut self, _: Time, _: &mut impl Actions<Mail>) {}

    fn flush(&mut self, _: Time, _: &mut impl Actions<Mail>) {}

    fn next_deadline(&self) -> Option<Time> {
        None
    }
}

/// A group whose shard `STUCK` does nothing until it is released.
struct Bench {
    group: Group<Flooder>,
    received: Receiver<usize>,
    flooded: Receiver<()>,
    release: Sender<()>,
}

impl Bench {
    fn new(driver: DriverKind, shards: usize) -> Bench {
        let (received_sender, received) = channel();
        let (flooded_sender, flooded) = channel();
        let options = Options {
            driver,
            ring: RING,
            ..Options::default()
        };
        let make = |_| Flooder {
            connections: 0,
            received: received_sender.clone(),
            drops: 0,
            flooded: flooded_sender.clone(),
        };
        let group = spawn(shards, &options, make).unwrap();
        let release = block(&group.handles[usize::from(STUCK.0)]);
        Bench {
            group,
            received,
            flooded,
            release,
        }
    }

    fn home(&self) -> &Handle<Flooder> {
        &self.group.handles[usize::from(HOME.0)]
    }

    fn connect(&self) -> TcpStream {
        let (client, stream) = pair();
        let adoption = Adoption {
            stream,
            tls: None,
            received: Bytes::new(),
            opening: (),
        };
        self.home().adopt(adoption).map_err(drop).unwrap();
        client
    }

    fn end(self) {
        self.group.handles.iter().for_each(Handle::stop);
        self.group.join().unwrap();
    }
}

/// Stops a thread until something is sent.
fn block(handle: &Handle<Flooder>) -> Sender<()> {
    let (entered, inside) = channel();
    let (release, released) = channel::<()>();
    let block = move |_: &mut Flooder, _: &TurnStats| {
        entered.send(()).unwrap();
        released.recv().unwrap();
    };
    handle.call(Box::new(block)).map_err(drop).unwrap();
    inside.recv_timeout(PATIENCE).unwrap();
    release
}

fn stats(handle: &Handle<Flooder>) -> TurnStats {
    let (sender, stats) = channel();
    let call = move |_: &mut Flooder, stats: &TurnStats| sender.send(stats.clone()).unwrap();
    handle.call(Box::new(call)).map_err(drop).unwrap();
    stats.recv_timeout(PATIENCE).unwrap()
}

fn send(handle: &Handle<Flooder>, mail: Mail) {
    handle.mail(mail).map_err(drop).unwrap();
}

#[test]
fn reading_waits_until_held_mail_is_taken() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, 2);
        let mut client = bench.connect();
        send(bench.home(), Mail::Flood);
        assert!(stats(bench.home()).mails_held > 0);

        // On loopback these are in the socket when the call returns; each of the turns below could read them.
        client.write_all(b"unread").unwrap();
        for _ in 0..20 {
            assert_eq!(stats(bench.home()).reads, 0);
        }
        // Writing goes on.
        send(bench.home(), Mail::Write(Bytes::from_static(b"sent")));
        let mut got = [0; 4];
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"sent");
        assert!(bench.received.try_recv().is_err());

        bench.release.send(()).unwrap();
        bench.flooded.recv_timeout(PATIENCE).expect("all mail arrives");
        assert_eq!(bench.received.recv_timeout(PATIENCE).unwrap(), 6);
        bench.end();
    });
}

#[test]
fn a_turn_reads_no_further_once_too_much_is_held() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, 2);
        let mut clients = [bench.connect(), bench.connect(), bench.connect()];
        // All have something to read when the next turn begins.
        let go_on = block(bench.home());
        clients
            .iter_mut()
            .for_each(|client| client.write_all(b"flood").unwrap());
        go_on.send(()).unwrap();
        bench.received.recv_timeout(PATIENCE).unwrap();
        for _ in 0..20 {
            assert_eq!(stats(bench.home()).mails_held, FLOOD - RING);
        }
        bench.release.send(()).unwrap();
        clients.iter().for_each(|_| {
            bench
                .flooded
                .recv_timeout(PATIENCE)
                .expect("no socket is forgotten")
        });
        bench.end();
    });
}

#[test]
fn a_socket_let_go_while_reading_is_paused_closes_at_once() {
    for_each_driver(|driver| {
        for peer_ended_before in [false, true] {
            let bench = Bench::new(driver, 2);
            let mut client = bench.connect();
            send(bench.home(), Mail::Flood);
            assert!(stats(bench.home()).mails_held > 0);
            client.write_all(b"unread").unwrap();
            if peer_ended_before {
                client.shutdown(Shutdown::Write).unwrap();
                // Turns in which a driver may take the end in, and must keep it to itself.
                (0..5).for_each(|_| drop(stats(bench.home())));
            }
            send(bench.home(), Mail::Close);
            match client.read(&mut [0; 1]) {
                Ok(length) => assert_eq!(length, 0),
                // The socket still held what was not read.
                Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            }
            assert!(stats(bench.home()).mails_held > 0);
            bench.release.send(()).unwrap();
            bench.end();
        }
    });
}

#[test]
fn answers_that_nobody_takes_hold_up_those_who_ask() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, 3);
        let asking = &bench.group.handles[2];
        send(asking, Mail::FloodHome);
        // What the home may hold and what fits the two rings on the way; the rest stays with those who ask.
        let left = FLOOD - HELD - 2 * RING;
        while stats(bench.home()).mails_held < HELD || stats(asking).mails_held > left {
            assert!(stats(bench.home()).mails_held <= HELD);
        }
        for _ in 0..20 {
            assert_eq!(stats(bench.home()).mails_held, HELD);
            assert_eq!(stats(asking).mails_held, left);
        }
        bench.release.send(()).unwrap();
        bench.flooded.recv_timeout(PATIENCE).expect("all mail arrives");
        bench.end();
    });
}
