//! Whether each receiver got each sender's messages in order, once, and all of them.
//!
//! One number is kept for each pair of receiver and sender: the sequence that must come next. Only what goes wrong
//! costs more.

use std::collections::HashSet;

use serde::Serialize;

/// What was wrong with the deliveries of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Violations {
    /// Messages that never came.
    pub lost: u64,
    /// Messages that came again.
    pub doubled: u64,
    /// Messages that came after a later one of the same sender.
    pub reordered: u64,
    /// Messages of which the content or length was not what was sent.
    pub malformed: u64,
    /// Messages that came to a connection they were not meant for.
    pub misdirected: u64,
}

impl Violations {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.lost + self.doubled + self.reordered + self.malformed + self.misdirected
    }
}

/// Most missing messages remembered one by one, to tell late from doubled; beyond it a late one counts as doubled.
const MISSING_MAX: usize = 1 << 20;

/// Any sequence may come first: the receiver joined while messages flowed.
const ANY: u32 = 0;

/// See the module's page. Made by the client machine for one run.
#[derive(Debug)]
pub struct Checker {
    senders: usize,
    /// For each receiver, for each sender, what must come next.
    expected: Vec<u32>,
    missing: HashSet<(usize, u32)>,
    violations: Violations,
}

impl Checker {
    /// For receivers `0..receivers` and senders `0..senders`, each receiver there from the first message on.
    pub fn new(receivers: usize, senders: usize) -> Checker {
        Checker {
            senders,
            expected: vec![1; receivers * senders],
            missing: HashSet::new(),
            violations: Violations::default(),
        }
    }

    /// `receiver` is a newcomer: what it sees first of each sender is where its order starts.
    pub fn rejoin(&mut self, receiver: usize) {
        let row = receiver * self.senders..(receiver + 1) * self.senders;
        self.expected[row.clone()].fill(ANY);
        if !self.missing.is_empty() {
            self.missing.retain(|(pair, _)| !row.contains(pair));
        }
    }

    /// Takes note of a delivery; true if it is the first of this message to this receiver.
    pub fn received(&mut self, receiver: usize, sender: usize, sequence: u32) -> bool {
        let pair = receiver * self.senders + sender;
        let expected = self.expected[pair];
        if sequence == expected || expected == ANY {
            self.expected[pair] = sequence + 1;
            return true;
        }
        self.received_out_of_order(pair, expected, sequence)
    }

    #[cold]
    fn received_out_of_order(&mut self, pair: usize, expected: u32, sequence: u32) -> bool {
        if sequence > expected {
            self.violations.lost += u64::from(sequence - expected);
            let room = MISSING_MAX - self.missing.len();
            self.missing
                .extend((expected..sequence).take(room).map(|missing| (pair, missing)));
            self.expected[pair] = sequence + 1;
            return true;
        }
        if self.missing.remove(&(pair, sequence)) {
            self.violations.lost -= 1;
            self.violations.reordered += 1;
            return true;
        }
        self.violations.doubled += 1;
        false
    }

    /// A message with wrong content came.
    pub fn malformed(&mut self) {
        self.violations.malformed += 1;
    }

    /// A message came where it should not.
    pub fn misdirected(&mut self) {
        self.violations.misdirected += 1;
    }

    /// The sequence that `receiver` must see next of `sender`, or `None` if it has seen none since it joined.
    pub fn expected(&self, receiver: usize, sender: usize) -> Option<u32> {
        Some(self.expected[receiver * self.senders + sender]).filter(|expected| *expected != ANY)
    }

    /// The run is over and `sender`'s next sequence would have been `next`: what `receiver` did not get is lost.
    pub fn close(&mut self, receiver: usize, sender: usize, next: u32) {
        if let Some(expected) = self.expected(receiver, sender) {
            self.violations.lost += u64::from(next.saturating_sub(expected));
            self.expected[receiver * self.senders + sender] = next;
        }
    }

    /// What was found wrong up to now.
    pub fn violations(&self) -> Violations {
        self.violations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One receiver, one sender: these sequences came, then the sender's next would have been `next`.
    fn check(sequences: &[u32], next: u32, expect: Violations) {
        let mut checker = Checker::new(1, 1);
        for sequence in sequences {
            checker.received(0, 0, *sequence);
        }
        checker.close(0, 0, next);
        assert_eq!(checker.violations(), expect, "{sequences:?} of {next}");
    }

    #[test]
    fn all_in_order_is_right() {
        check(&[1, 2, 3], 4, Violations::default());
        check(&[], 1, Violations::default());
    }

    #[test]
    fn a_gap_is_a_loss() {
        check(
            &[1, 4],
            5,
            Violations {
                lost: 2,
                ..Violations::default()
            },
        );
    }

    #[test]
    fn what_is_missing_at_the_end_is_a_loss() {
        check(
            &[1, 2],
            6,
            Violations {
                lost: 3,
                ..Violations::default()
            },
        );
        check(
            &[],
            3,
            Violations {
                lost: 2,
                ..Violations::default()
            },
        );
    }

    #[test]
    fn a_double_is_noticed() {
        check(
            &[1, 2, 2, 3, 1],
            4,
            Violations {
                doubled: 2,
                ..Violations::default()
            },
        );
    }

    #[test]
    fn late_is_reordered_and_not_lost() {
        check(
            &[1, 3, 2, 4],
            5,
            Violations {
                reordered: 1,
                ..Violations::default()
            },
        );
        check(
            &[2, 1, 1],
            3,
            Violations {
                reordered: 1,
                doubled: 1,
                ..Violations::default()
            },
        );
    }

    #[test]
    fn a_newcomer_starts_anywhere_and_is_then_checked() {
        let mut checker = Checker::new(2, 1);
        checker.rejoin(1);
        assert!(checker.received(1, 0, 70));
        assert!(checker.received(1, 0, 71));
        assert_eq!(checker.violations().total(), 0);
        assert!(checker.received(1, 0, 73));
        assert_eq!(checker.violations().lost, 1);
        checker.rejoin(1);
        checker.close(1, 0, 100);
        assert_eq!(checker.violations().lost, 1);
    }

    #[test]
    fn pairs_do_not_mix() {
        let mut checker = Checker::new(2, 2);
        for (receiver, sender) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            assert!(checker.received(receiver, sender, 1));
        }
        assert_eq!(checker.violations().total(), 0);
    }
}
