//! A machine whose mail another does not take stops reading sockets, and only that.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::sync::mpsc::{Sender, channel};

use bytes::Bytes;
use common::{PATIENCE, for_each_driver, pair};
use engine::{Actions, ConnectionId, Machine, ShardId, SocketEnd, Time};
use reactor::{Adoption, Handle, Options, TurnStats, spawn};

/// More than a ring and the limit of held mail take together.
const FLOOD: u32 = 10_000;

enum Mail {
    /// Mail the other machine `FLOOD` times.
    Flood,
    /// Write to the connection.
    Write(Bytes),
    Drop,
}

struct Flooder {
    received: Sender<usize>,
    drops: u32,
    flooded: Sender<()>,
}

impl Machine for Flooder {
    type Opening = ();
    type Mail = Mail;

    fn opened(&mut self, (): (), _: Time, _: &mut impl Actions<Mail>) -> Option<ConnectionId> {
        Some(ConnectionId {
            index: 0,
            generation: 0,
        })
    }

    fn received(&mut self, _: ConnectionId, bytes: &mut [u8], _: Time, _: &mut impl Actions<Mail>) {
        self.received.send(bytes.len()).unwrap();
    }

    fn flushed(&mut self, _: ConnectionId, _: Time, _: &mut impl Actions<Mail>) {}

    fn ended(&mut self, _: ConnectionId, _: SocketEnd, _: Time, _: &mut impl Actions<Mail>) {}

    fn mail(&mut self, mail: Mail, _: Time, actions: &mut impl Actions<Mail>) {
        match mail {
            Mail::Flood => (0..FLOOD).for_each(|_| actions.mail(ShardId(1), Mail::Drop)),
            Mail::Write(bytes) => drop(actions.write(
                ConnectionId {
                    index: 0,
                    generation: 0,
                },
                &[bytes],
            )),
            Mail::Drop => {
                self.drops += 1;
                if self.drops == FLOOD {
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

fn stats(handle: &Handle<Flooder>) -> TurnStats {
    let (sender, stats) = channel();
    let call = move |_: &mut Flooder, stats: &TurnStats| sender.send(stats.clone()).unwrap();
    handle.call(Box::new(call)).map_err(drop).unwrap();
    stats.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn reading_waits_until_held_mail_is_taken() {
    for_each_driver(|driver| {
        let (received, bytes) = channel();
        let (flooded, all_taken) = channel();
        let options = Options {
            driver,
            ring: 256,
            ..Options::default()
        };
        let make = |_| Flooder {
            received: received.clone(),
            drops: 0,
            flooded: flooded.clone(),
        };
        let group = spawn(2, &options, make).unwrap();
        let [flooder, stuck] = &group.handles[..] else {
            panic!("two machines")
        };

        let (entered, inside) = channel();
        let (release, released) = channel::<()>();
        let block = move |_: &mut Flooder, _: &TurnStats| {
            entered.send(()).unwrap();
            released.recv().unwrap();
        };
        stuck.call(Box::new(block)).map_err(drop).unwrap();
        inside.recv_timeout(PATIENCE).unwrap();

        let (mut client, stream) = pair();
        let adoption = Adoption {
            stream,
            tls: None,
            received: Bytes::new(),
            opening: (),
        };
        flooder.adopt(adoption).map_err(drop).unwrap();
        flooder.mail(Mail::Flood).map_err(drop).unwrap();
        assert!(stats(flooder).mails_held > 0);

        // On loopback these are in the socket when the call returns; each of the turns below could read them.
        client.write_all(b"unread").unwrap();
        for _ in 0..20 {
            assert_eq!(stats(flooder).reads, 0);
        }
        // Writing goes on.
        flooder
            .mail(Mail::Write(Bytes::from_static(b"sent")))
            .map_err(drop)
            .unwrap();
        let mut got = [0; 4];
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"sent");
        assert!(bytes.try_recv().is_err());

        release.send(()).unwrap();
        all_taken.recv_timeout(PATIENCE).expect("all mail arrives");
        assert_eq!(bytes.recv_timeout(PATIENCE).unwrap(), 6);
        group.handles.iter().for_each(Handle::stop);
        group.join().unwrap();
    });
}
