//! A hierarchical timing wheel: one timer for each connection, O(1) to set and to cancel.
//!
//! Source: Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (1987), scheme 7. Four levels of 64 slots; a tick is
//! [`TICK`], so the levels reach 1 s, 65 s, 70 minutes and 74 hours; later deadlines wait in the last level and are looked at
//! again. Timers are links between indexes in one array: nothing is allocated for each timer. A timer never fires
//! early, and at most one tick late.

use std::time::Duration;

use crate::Time;

/// The grain of all deadlines kept here.
pub const TICK: Duration = Duration::from_micros(TICK_US);

const TICK_US: u64 = 16_000;
const LEVELS: usize = 4;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const NONE: u32 = u32::MAX;
/// What the wheel holds for each index, for the account of an idle connection.
#[cfg(test)]
pub(crate) const NODE_BYTES: usize = size_of::<Node>();
/// The place of a timer that is due and waits to be taken.
const PLACE_DUE: u16 = (LEVELS * SLOTS) as u16;
/// The place of a timer that is not set.
const PLACE_IDLE: u16 = u16::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    deadline_tick: u64,
    next: u32,
    previous: u32,
    /// `level * SLOTS + slot`, or one of the two places above: an index into `heads`.
    place: u16,
}

/// The wheel. Timers are named by a dense index (the connection's slot).
#[derive(Debug)]
pub struct Wheel {
    /// Everything up to and including this tick has been moved to the due list.
    tick: u64,
    heads: [u32; LEVELS * SLOTS + 1],
    /// Which slots of each level hold anything.
    occupied: [u64; LEVELS],
    nodes: Vec<Node>,
}

impl Default for Wheel {
    fn default() -> Wheel {
        Wheel {
            tick: 0,
            heads: [NONE; LEVELS * SLOTS + 1],
            occupied: [0; LEVELS],
            nodes: Vec::new(),
        }
    }
}

impl Wheel {
    /// Sets the timer of `index` to fire at `deadline`, in place of what it was set to before.
    pub fn set(&mut self, index: u32, deadline: Time) {
        self.cancel(index);
        let position = index as usize;
        if position >= self.nodes.len() {
            let idle = Node {
                deadline_tick: 0,
                next: NONE,
                previous: NONE,
                place: PLACE_IDLE,
            };
            self.nodes.resize(position + 1, idle);
        }
        // Rounded up, so that it never fires early.
        self.nodes[position].deadline_tick = deadline.as_micros().div_ceil(TICK_US);
        self.place(index);
    }

    /// Stops the timer of `index`, if it is set.
    pub fn cancel(&mut self, index: u32) {
        let Some(node) = self.nodes.get(index as usize).copied() else {
            return;
        };
        if node.place == PLACE_IDLE {
            return;
        }
        if node.previous == NONE {
            self.heads[node.place as usize] = node.next;
        } else {
            self.nodes[node.previous as usize].next = node.next;
        }
        if node.next != NONE {
            self.nodes[node.next as usize].previous = node.previous;
        }
        if node.place != PLACE_DUE && self.heads[node.place as usize] == NONE {
            self.occupied[node.place as usize / SLOTS] &= !(1 << (node.place as usize % SLOTS));
        }
        self.nodes[index as usize].place = PLACE_IDLE;
    }

    /// Takes one timer that is due by `now`; it is then no longer set.
    pub fn pop(&mut self, now: Time) -> Option<u32> {
        self.turn_to(now.as_micros() / TICK_US);
        let index = self.heads[PLACE_DUE as usize];
        if index == NONE {
            return None;
        }
        self.cancel(index);
        Some(index)
    }

    /// A moment not later than the first deadline (to a tick), or `None` if no timer is set.
    ///
    /// It can be earlier: at the turn of a level nothing fires, but timers move down to a finer one.
    pub fn next_deadline(&self) -> Option<Time> {
        if self.heads[PLACE_DUE as usize] != NONE {
            return Some(Time::from_micros(self.tick * TICK_US));
        }
        self.next_tick().map(|tick| Time::from_micros(tick * TICK_US))
    }

    /// The next tick at which some slot is to be emptied.
    fn next_tick(&self) -> Option<u64> {
        (0..LEVELS)
            .filter(|&level| self.occupied[level] != 0)
            .map(|level| {
                let shift = level as u32 * SLOT_BITS;
                let position = self.tick >> shift;
                // Slots ahead of the present one, the present one itself counting as a whole turn away.
                let ahead = self.occupied[level].rotate_right((position as u32 + 1) % SLOTS as u32);
                (position + 1 + u64::from(ahead.trailing_zeros())) << shift
            })
            .min()
    }

    fn turn_to(&mut self, target: u64) {
        while let Some(tick) = self.next_tick() {
            if tick > target {
                break;
            }
            self.tick = tick;
            for level in (0..LEVELS).rev() {
                let shift = level as u32 * SLOT_BITS;
                if tick.trailing_zeros() >= shift {
                    self.empty(level, (tick >> shift) as usize % SLOTS);
                }
            }
        }
        self.tick = self.tick.max(target);
    }

    /// Moves what is in a slot to where it belongs now: a finer level, or the due list.
    fn empty(&mut self, level: usize, slot: usize) {
        let head = level * SLOTS + slot;
        while self.heads[head] != NONE {
            let index = self.heads[head];
            self.cancel(index);
            self.place(index);
        }
    }

    fn place(&mut self, index: u32) {
        let deadline = self.nodes[index as usize].deadline_tick;
        let place = if deadline <= self.tick {
            PLACE_DUE
        } else {
            let farthest = self.tick + (1 << (SLOT_BITS * LEVELS as u32)) - (1 << (SLOT_BITS * 3));
            let reachable = deadline.min(farthest);
            // The level is that of the highest digit in which deadline and present differ.
            let digit = (63 - (reachable ^ self.tick).leading_zeros()) / SLOT_BITS;
            let level = (digit as usize).min(LEVELS - 1);
            let slot = (reachable >> (level as u32 * SLOT_BITS)) as usize % SLOTS;
            self.occupied[level] |= 1 << slot;
            (level * SLOTS + slot) as u16
        };
        let next = self.heads[place as usize];
        if next != NONE {
            self.nodes[next as usize].previous = index;
        }
        self.heads[place as usize] = index;
        let node = &mut self.nodes[index as usize];
        node.next = next;
        node.previous = NONE;
        node.place = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Time {
        Time::from_micros(milliseconds * 1_000)
    }

    /// Sets timers at the given milliseconds and steps the clock by its own deadlines; returns who fired when.
    fn run(timers: &[(u32, u64)], until_ms: u64) -> Vec<(u32, u64)> {
        let mut wheel = Wheel::default();
        for &(index, at) in timers {
            wheel.set(index, ms(at));
        }
        let mut fired = Vec::new();
        let mut now = Time::ZERO;
        loop {
            while let Some(index) = wheel.pop(now) {
                fired.push((index, now.as_micros() / 1_000));
            }
            match wheel.next_deadline() {
                Some(next) if next <= ms(until_ms) => {
                    assert!(next > now, "the wheel must make progress");
                    now = next;
                }
                _ => return fired,
            }
        }
    }

    #[test]
    fn fires_once_never_early_and_within_a_tick() {
        let timers: Vec<(u32, u64)> = [
            0, 1, 15, 16, 17, 1_000, 1_024, 1_025, 65_536, 70_000, 4_200_000, 90_000_000,
        ]
        .into_iter()
        .enumerate()
        .map(|(index, at)| (index as u32, at))
        .collect();
        let mut fired = run(&timers, 100_000_000);
        fired.sort_unstable();
        assert_eq!(fired.len(), timers.len());
        for ((index, at), (fired_index, fired_at)) in timers.into_iter().zip(fired) {
            assert_eq!(index, fired_index);
            assert!(
                fired_at >= at && fired_at < at + 17,
                "timer {index} of {at} ms fired at {fired_at} ms"
            );
        }
    }

    #[test]
    fn a_deadline_beyond_the_last_level_is_kept() {
        let year = 365 * 24 * 3_600 * 1_000;
        assert_eq!(run(&[(0, year)], 2 * year), vec![(0, year.div_ceil(16) * 16)]);
    }

    #[test]
    fn cancelled_and_reset_timers_do_not_fire_at_the_old_time() {
        let mut wheel = Wheel::default();
        wheel.set(1, ms(100));
        wheel.set(2, ms(100));
        wheel.set(3, ms(100));
        wheel.cancel(2);
        wheel.set(3, ms(500));
        assert_eq!(wheel.pop(ms(200)), Some(1));
        assert_eq!(wheel.pop(ms(200)), None);
        assert_eq!(wheel.pop(ms(600)), Some(3));
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn a_jump_of_the_clock_loses_nothing() {
        let mut wheel = Wheel::default();
        for index in 0..10_000 {
            wheel.set(index, ms(u64::from(index) * 37));
        }
        let fired = std::iter::from_fn(|| wheel.pop(ms(10_000 * 37))).count();
        assert_eq!(fired, 10_000);
        assert_eq!(wheel.next_deadline(), None);
    }
}
