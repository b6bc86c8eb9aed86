//! Mail between two machines.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::mpsc::{Sender, channel};

use common::{PATIENCE, for_each_driver};
use engine::{Actions, ConnectionId, Machine, ShardId, SocketEnd, Time};
use reactor::{DriverKind, Options, TurnStats, spawn};

const MAILS: u64 = 100_000;

/// Sends its number of mails to the other and checks that the other's come in order.
struct Correspondent {
    other: ShardId,
    to_send: std::ops::Range<u64>,
    /// Mails sent in one turn.
    in_turn: usize,
    expected: u64,
    /// Answers each mail with one that says so.
    answers: bool,
    answered: u64,
    done: Sender<ShardId>,
}

struct Letter {
    number: u64,
    answer: bool,
}

impl engine::Letter for Letter {
    fn bytes(&self) -> usize {
        size_of::<Letter>()
    }

    fn is_request(&self) -> bool {
        !self.answer
    }
}

impl Machine for Correspondent {
    type Opening = ();
    type Mail = Letter;

    fn opened(&mut self, (): (), _: Time, _: &mut impl Actions<Letter>) -> Option<ConnectionId> {
        None
    }
    fn received(&mut self, _: ConnectionId, _: &mut [u8], _: Time, _: &mut impl Actions<Letter>) {}
    fn flushed(&mut self, _: ConnectionId, _: Time, _: &mut impl Actions<Letter>) {}
    fn ended(&mut self, _: ConnectionId, _: SocketEnd, _: Time, _: &mut impl Actions<Letter>) {}

    fn mail(&mut self, letter: Letter, _: Time, actions: &mut impl Actions<Letter>) {
        if letter.answer {
            assert_eq!(letter.number, self.answered);
            self.answered += 1;
        } else {
            assert_eq!(letter.number, self.expected, "in order and none lost");
            self.expected += 1;
            if self.answers {
                actions.mail(
                    self.other,
                    Letter {
                        number: letter.number,
                        answer: true,
                    },
                );
            }
        }
        let all = if self.answers { MAILS } else { 0 };
        if self.expected == MAILS && self.answered == all {
            self.done.send(self.other).unwrap();
        }
    }

    fn advance(&mut self, _: Time, actions: &mut impl Actions<Letter>) {
        for number in self.to_send.by_ref().take(self.in_turn) {
            actions.mail(
                self.other,
                Letter {
                    number,
                    answer: false,
                },
            );
        }
    }

    fn flush(&mut self, _: Time, _: &mut impl Actions<Letter>) {}

    fn next_deadline(&self) -> Option<Time> {
        (!self.to_send.is_empty()).then_some(Time::ZERO)
    }
}

fn exchange(driver: DriverKind, in_turn: usize, answers: bool) {
    let (done, finished) = channel();
    let options = Options {
        driver,
        ring: 16,
        ..Options::default()
    };
    let group = spawn(2, &options, |shard| Correspondent {
        other: ShardId(1 - shard.0),
        to_send: 0..MAILS,
        in_turn,
        expected: 0,
        answers,
        answered: 0,
        done: done.clone(),
    });
    let group = group.unwrap();
    for _ in 0..2 {
        finished.recv_timeout(PATIENCE).expect("all mail arrives");
    }
    let (sender, stats) = channel();
    for handle in &group.handles {
        let sender = sender.clone();
        let call = move |_: &mut Correspondent, stats: &TurnStats| {
            sender.send((stats.mails_held, stats.mail_bytes_held)).unwrap()
        };
        handle.call(Box::new(call)).map_err(drop).unwrap();
        assert_eq!(stats.recv_timeout(PATIENCE).unwrap(), (0, 0));
        handle.stop();
    }
    group.join().unwrap();
}

#[test]
fn mail_both_ways_arrives_in_order_through_small_rings() {
    for_each_driver(|driver| exchange(driver, 50, false));
}

#[test]
fn machines_that_are_full_of_each_other_come_free() {
    // All mails are sent in the first turn, far beyond what rings and the limit of held mail take, and each is
    // answered.
    for_each_driver(|driver| exchange(driver, MAILS as usize, true));
}
