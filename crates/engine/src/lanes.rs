//! The queue between a shard and one connection that cannot take everything at once: four lanes, bounded.
//!
//! Strict priority between lanes, first in first out within one. The bounds hold for all lanes together, in messages and
//! in bytes. When they are reached the overflow policy decides, and the lowest lane gives way first.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::limits::Limits;

/// The priority of a message. A higher lane always leaves first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// May be delayed and is shed first.
    Low = 0,
    /// Everything that says nothing else.
    #[default]
    Normal = 1,
    /// Before normal traffic.
    High = 2,
    /// Before everything.
    Critical = 3,
}

impl Lane {
    /// All lanes, lowest first.
    pub const ALL: [Lane; 4] = [Lane::Low, Lane::Normal, Lane::High, Lane::Critical];
}

/// What happens to a message for a connection whose queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest waiting message makes room, of the lowest lane that holds one.
    DropOldest,
    /// The new message is not queued.
    DropNewest,
    /// A waiting message with the same key is replaced, whether the queue is full or not; a full queue drops the oldest.
    Conflate,
    /// The connection is closed, so that its client knows that it missed something.
    #[default]
    Disconnect,
}

/// One message that waits: a whole frame and the key it conflates by.
#[derive(Clone, Debug)]
pub struct Queued {
    /// The encoded frame, shared by all connections that wait for it.
    pub frame: Bytes,
    /// Messages of equal key replace each other under [`Overflow::Conflate`].
    pub key: Option<u64>,
}

/// How many messages a push cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shed {
    /// Waiting messages that made room.
    pub oldest: u32,
    /// Messages not queued: 0 or 1.
    pub newest: u32,
    /// Waiting messages replaced by a newer one of their key: 0 or 1.
    pub conflated: u32,
}

/// The queue is full and the policy is to end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The four lanes of one connection. Made when something has to wait, dropped when nothing does.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: [VecDeque<Queued>; 4],
    messages: usize,
    bytes: usize,
}

impl Lanes {
    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Messages waiting in all lanes.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Bytes of frames waiting in all lanes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Queues a message under the bounds of `limits`. Says what was shed for it; `Err(Full)` changes nothing.
    pub fn push(
        &mut self,
        lane: Lane,
        queued: Queued,
        overflow: Overflow,
        limits: &Limits,
    ) -> Result<Shed, Full> {
        let mut shed = Shed::default();
        if overflow == Overflow::Conflate && self.remove_key(lane, queued.key) {
            shed.conflated = 1;
        }
        while !self.has_room(queued.frame.len(), limits) {
            match overflow {
                Overflow::Disconnect => return Err(Full),
                Overflow::DropOldest | Overflow::Conflate if self.drop_oldest(lane) => shed.oldest += 1,
                Overflow::DropOldest | Overflow::Conflate | Overflow::DropNewest => {
                    shed.newest = 1;
                    return Ok(shed);
                }
            }
        }
        self.messages += 1;
        self.bytes += queued.frame.len();
        self.lanes[lane as usize].push_back(queued);
        Ok(shed)
    }

    /// Takes the next message: the oldest of the highest lane that is at least `least`.
    pub fn pop(&mut self, least: Lane) -> Option<Bytes> {
        let lane = self.lanes[least as usize..]
            .iter_mut()
            .rev()
            .find(|lane| !lane.is_empty())?;
        let queued = lane.pop_front().expect("the lane was just seen not to be empty");
        self.messages -= 1;
        self.bytes -= queued.frame.len();
        Some(queued.frame)
    }

    /// Drops everything that waits; returns how many messages that were.
    pub fn clear(&mut self) -> usize {
        std::mem::take(self).messages
    }

    fn has_room(&self, frame_bytes: usize, limits: &Limits) -> bool {
        self.messages < limits.queue_messages_max && self.bytes + frame_bytes <= limits.queue_bytes_max
    }

    /// Drops the oldest message of the lowest lane that holds one, but never of a lane above `lane`.
    fn drop_oldest(&mut self, lane: Lane) -> bool {
        let Some(victim) = self.lanes[..=lane as usize]
            .iter_mut()
            .find_map(|lane| lane.pop_front())
        else {
            return false;
        };
        self.messages -= 1;
        self.bytes -= victim.frame.len();
        true
    }

    fn remove_key(&mut self, lane: Lane, key: Option<u64>) -> bool {
        let Some(key) = key else { return false };
        let waiting = &mut self.lanes[lane as usize];
        let Some(position) = waiting.iter().position(|queued| queued.key == Some(key)) else {
            return false;
        };
        let replaced = waiting.remove(position).expect("position is inside the lane");
        self.messages -= 1;
        self.bytes -= replaced.frame.len();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(queue_messages_max: usize, queue_bytes_max: usize) -> Limits {
        Limits {
            queue_messages_max,
            queue_bytes_max,
            ..Limits::default()
        }
    }

    /// Pushes `(lane, key, text)` in turn, then drains; returns what came out, and the sum of what was shed.
    fn check(
        overflow: Overflow,
        limits: &Limits,
        input: &[(Lane, u64, &'static str)],
        expect: &[&str],
    ) -> Shed {
        let mut lanes = Lanes::default();
        let mut sum = Shed::default();
        for &(lane, key, text) in input {
            let queued = Queued {
                frame: Bytes::from_static(text.as_bytes()),
                key: (key != 0).then_some(key),
            };
            if let Ok(shed) = lanes.push(lane, queued, overflow, limits) {
                sum.oldest += shed.oldest;
                sum.newest += shed.newest;
                sum.conflated += shed.conflated;
            }
            assert!(lanes.messages() <= limits.queue_messages_max && lanes.bytes() <= limits.queue_bytes_max);
        }
        let out: Vec<Bytes> = std::iter::from_fn(|| lanes.pop(Lane::Low)).collect();
        assert_eq!(out, expect);
        assert!(lanes.is_empty() && lanes.bytes() == 0);
        sum
    }

    #[test]
    fn higher_lanes_leave_first_and_each_lane_in_order() {
        let input = [
            (Lane::Low, 0, "l1"),
            (Lane::Critical, 0, "c1"),
            (Lane::Normal, 0, "n1"),
            (Lane::Critical, 0, "c2"),
            (Lane::High, 0, "h1"),
        ];
        check(
            Overflow::Disconnect,
            &limits(9, 99),
            &input,
            &["c1", "c2", "h1", "n1", "l1"],
        );
    }

    #[test]
    fn drop_oldest_sheds_the_lowest_lane_first() {
        let input = [
            (Lane::Normal, 0, "n1"),
            (Lane::Low, 0, "l1"),
            (Lane::Normal, 0, "n2"),
            (Lane::Normal, 0, "n3"),
        ];
        let shed = check(Overflow::DropOldest, &limits(2, 99), &input, &["n2", "n3"]);
        assert_eq!(
            shed,
            Shed {
                oldest: 2,
                ..Shed::default()
            }
        );
    }

    #[test]
    fn a_low_message_never_displaces_a_higher_one() {
        let input = [(Lane::High, 0, "h1"), (Lane::High, 0, "h2"), (Lane::Low, 0, "l1")];
        let shed = check(Overflow::DropOldest, &limits(2, 99), &input, &["h1", "h2"]);
        assert_eq!(
            shed,
            Shed {
                newest: 1,
                ..Shed::default()
            }
        );
    }

    #[test]
    fn drop_newest_keeps_what_waits() {
        let input = [
            (Lane::Normal, 0, "n1"),
            (Lane::Normal, 0, "n2"),
            (Lane::Normal, 0, "n3"),
        ];
        let shed = check(Overflow::DropNewest, &limits(2, 99), &input, &["n1", "n2"]);
        assert_eq!(
            shed,
            Shed {
                newest: 1,
                ..Shed::default()
            }
        );
    }

    #[test]
    fn conflate_keeps_the_newest_of_each_key_in_order() {
        let input = [
            (Lane::Normal, 7, "a1"),
            (Lane::Normal, 8, "b1"),
            (Lane::Normal, 7, "a2"),
            (Lane::Normal, 0, "x"),
        ];
        let shed = check(Overflow::Conflate, &limits(9, 99), &input, &["b1", "a2", "x"]);
        assert_eq!(
            shed,
            Shed {
                conflated: 1,
                ..Shed::default()
            }
        );
    }

    #[test]
    fn bytes_are_bounded_as_well_as_messages() {
        let input = [
            (Lane::Normal, 0, "aaaa"),
            (Lane::Normal, 0, "bbbb"),
            (Lane::Normal, 0, "cccccc"),
        ];
        let shed = check(Overflow::DropOldest, &limits(9, 10), &input, &["bbbb", "cccccc"]);
        assert_eq!(shed.oldest, 1);
    }

    #[test]
    fn disconnect_says_full_and_changes_nothing() {
        let input = [(Lane::Normal, 0, "n1"), (Lane::Critical, 0, "c1")];
        check(Overflow::Disconnect, &limits(1, 99), &input, &["n1"]);
    }
}
