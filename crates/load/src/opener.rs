//! Which connections are to be opened, how many at once, and until when each must be open.

use std::collections::VecDeque;

use engine::ConnectionId;

/// Dials in one turn, so that a storm does not starve what is open already.
const DIALS_PER_TURN: usize = 64;
/// A round that opens fewer than ten connections a second is given up.
const CONNECT_NS_MAX: u64 = 100_000_000;

/// See the module's page. One for each run; [`Opener::refill`] begins another round.
#[derive(Debug)]
pub(crate) struct Opener {
    window: usize,
    timeout_ns: u64,
    /// Members that are still to be dialed: from this one on.
    next: usize,
    end: usize,
    /// Dialed and neither open nor failed.
    under_way: usize,
    /// Adopted sockets by the time at which they must be open; those that are open by then are skipped.
    deadlines: VecDeque<(u64, ConnectionId)>,
    /// When a connection opened last, or the round began.
    progress_ns: u64,
    /// When the round is given up, however it goes.
    end_ns: u64,
}

impl Opener {
    pub(crate) fn new(window: u32, timeout_ns: u64) -> Opener {
        Opener {
            window: window as usize,
            timeout_ns,
            next: 0,
            end: 0,
            under_way: 0,
            deadlines: VecDeque::new(),
            progress_ns: 0,
            end_ns: 0,
        }
    }

    /// Members `0..count` are to be opened.
    pub(crate) fn refill(&mut self, count: usize, now_ns: u64) {
        (self.next, self.end, self.progress_ns) = (0, count, now_ns);
        self.end_ns = now_ns + 2 * self.timeout_ns + count as u64 * CONNECT_NS_MAX;
    }

    /// The members to dial now.
    pub(crate) fn take(&mut self) -> std::ops::Range<usize> {
        let room = self.window.saturating_sub(self.under_way).min(DIALS_PER_TURN);
        let start = self.next;
        self.next = self.end.min(start + room);
        start..self.next
    }

    /// True if [`Opener::take`] would give some.
    pub(crate) fn has_more(&self) -> bool {
        self.next < self.end && self.under_way < self.window
    }

    /// True when all have been dialed and each is open or has failed.
    pub(crate) fn is_done(&self) -> bool {
        self.next == self.end && self.under_way == 0
    }

    /// No connection opened for so long, or so few, that the rest is not worth trying.
    pub(crate) fn is_stuck(&self, now_ns: u64) -> bool {
        !self.is_done() && now_ns > self.end_ns.min(self.progress_ns + 2 * self.timeout_ns)
    }

    /// The rest is not dialed any more; how many these are.
    pub(crate) fn give_up(&mut self) -> usize {
        let rest = self.end - self.next;
        self.next = self.end;
        rest
    }

    pub(crate) fn dialed(&mut self) {
        self.under_way += 1;
    }

    pub(crate) fn adopted(&mut self, id: ConnectionId, now_ns: u64) {
        self.deadlines.push_back((now_ns + self.timeout_ns, id));
    }

    /// One of those under way opened.
    pub(crate) fn opened(&mut self, now_ns: u64) {
        self.under_way -= 1;
        self.progress_ns = now_ns;
    }

    /// One of those under way failed.
    pub(crate) fn failed(&mut self) {
        self.under_way -= 1;
    }

    /// A connection whose time is over; it may have opened or ended long ago.
    pub(crate) fn expired(&mut self, now_ns: u64) -> Option<ConnectionId> {
        self.deadlines
            .pop_front_if(|(deadline_ns, _)| *deadline_ns <= now_ns)
            .map(|(_, id)| id)
    }

    /// When [`Opener::expired`] next has something.
    pub(crate) fn next_deadline_ns(&self) -> Option<u64> {
        self.deadlines.front().map(|(deadline_ns, _)| *deadline_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u32) -> ConnectionId {
        ConnectionId { index, generation: 0 }
    }

    #[test]
    fn no_more_than_the_window_are_under_way() {
        let mut opener = Opener::new(2, 100);
        opener.refill(3, 0);
        assert_eq!(opener.take(), 0..2);
        opener.dialed();
        opener.dialed();
        assert!(opener.take().is_empty());
        opener.failed();
        assert_eq!(opener.take(), 2..3);
        opener.dialed();
        opener.opened(1);
        opener.opened(2);
        assert!(opener.is_done());
    }

    #[test]
    fn deadlines_come_in_order_and_once() {
        let mut opener = Opener::new(9, 100);
        opener.adopted(id(1), 0);
        opener.adopted(id(2), 50);
        assert_eq!(opener.expired(99), None);
        assert_eq!(opener.next_deadline_ns(), Some(100));
        assert_eq!(opener.expired(150), Some(id(1)));
        assert_eq!(opener.expired(150), Some(id(2)));
        assert_eq!(opener.expired(999), None);
    }

    #[test]
    fn a_server_that_opens_nothing_is_given_up() {
        let mut opener = Opener::new(1, 100);
        opener.refill(5, 0);
        assert_eq!(opener.take().len(), 1);
        opener.dialed();
        assert!(!opener.is_stuck(200));
        assert!(opener.is_stuck(201));
        assert_eq!(opener.give_up(), 4);
        opener.failed();
        assert!(opener.is_done());
        assert!(!opener.is_stuck(999));
    }
}
