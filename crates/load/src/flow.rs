//! The messages of a run: who is to send now, what came, what is still owed. No sockets.

use std::collections::VecDeque;

use bytes::BytesMut;
use hdrhistogram::Histogram;

use crate::checker::{Checker, Violations};
use crate::client::Dialect;
use crate::payload::{Kind, Payloads};
use crate::plan::{Pace, Traffic};
use crate::random::Random;

/// Longest latency that is told apart, ns: ten minutes.
const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// Most messages that wait for senders whose sockets are full; beyond it they are not sent, which fails the run.
const BACKLOG_MAX: usize = 1 << 20;
/// A message that waited so long for its sender's socket, ns, is one that the server did not take.
const LATE_NS: u64 = 1_000_000_000;
/// Most bytes that a sender writes in one turn.
const TURN_BYTES_MAX: usize = 256 << 10;

/// Makes a histogram of times in ns.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are in order")
}

#[derive(Debug)]
struct Sender {
    /// Which connection it is.
    member: usize,
    /// The sequence of its next message.
    next: u32,
    /// When its messages that are still to go were due, ns; with a window, they are due when they go.
    due: VecDeque<u64>,
    /// With a window: receivers that do not have the message yet, from the oldest unfinished one on.
    owing: VecDeque<u32>,
    alive: bool,
}

/// Senders are evenly paced each, and know nothing of each other: their messages meet as chance has it, but in the
/// same way in each run, so that runs compare.
fn phases(senders: usize) -> Vec<f64> {
    let mut random = Random::new(senders as u64);
    let mut phases: Vec<f64> = (0..senders).map(|_| random.fraction()).collect();
    phases.sort_by(f64::total_cmp);
    phases
}

/// See the module's page. Made by the client machine once all connections are open.
#[derive(Debug)]
pub(crate) struct Flow {
    payloads: Payloads,
    pace: Pace,
    echo: bool,
    checker: Checker,
    latency: Histogram<u64>,
    senders: Vec<Sender>,
    /// Connections that stay to the end and are still there; entry by member.
    present: Vec<bool>,
    present_count: u32,
    /// Who got a probe.
    probed: Vec<bool>,
    probed_count: u32,
    sending: bool,
    recording: bool,
    started_ns: u64,
    /// With a rate: messages scheduled since the start.
    scheduled: u64,
    /// With a rate: when in each round of all senders each of them sends, from 0 to 1, ascending.
    phases: Vec<f64>,
    backlog: usize,
    outstanding: u64,
    counts: Counts,
    payload: Vec<u8>,
    envelope: Vec<u8>,
}

/// What a flow counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Messages sent while recording.
    pub(crate) sent: u64,
    /// Deliveries while recording.
    pub(crate) deliveries: u64,
    /// Deliveries since the start.
    pub(crate) deliveries_ever: u64,
    /// Messages that could not even be sent.
    pub(crate) unsent: u64,
}

impl Flow {
    /// For `present` members (whose connections are open) and `guests` more numbers after them.
    pub(crate) fn new(
        payloads: Payloads,
        traffic: Traffic,
        echo: bool,
        present: Vec<bool>,
        guests: usize,
    ) -> Flow {
        let senders: Vec<Sender> = present
            .iter()
            .enumerate()
            .filter(|(_, there)| **there)
            .take(traffic.senders as usize)
            .map(|(member, _)| Sender {
                member,
                next: 1,
                due: VecDeque::new(),
                owing: VecDeque::new(),
                alive: true,
            })
            .collect();
        Flow {
            payloads,
            pace: traffic.pace,
            echo,
            checker: Checker::new(present.len() + guests, senders.len()),
            latency: histogram(),
            phases: phases(senders.len()),
            senders,
            present_count: present.iter().filter(|there| **there).count() as u32,
            probed: vec![false; present.len()],
            probed_count: 0,
            present,
            sending: false,
            recording: false,
            started_ns: 0,
            scheduled: 0,
            backlog: 0,
            outstanding: 0,
            counts: Counts::default(),
            payload: Vec::new(),
            envelope: Vec::new(),
        }
    }

    /// How many members are still there.
    pub(crate) fn present(&self) -> u32 {
        self.present_count
    }

    /// Which member sender `sender` is.
    pub(crate) fn member_of(&self, sender: usize) -> usize {
        self.senders[sender].member
    }

    /// Senders that are still there.
    pub(crate) fn senders_alive(&self) -> usize {
        self.senders.iter().filter(|sender| sender.alive).count()
    }

    /// How many receivers a message has.
    fn receivers(&self) -> u32 {
        if self.echo { 1 } else { self.present_count - 1 }
    }

    /// Appends a probe of the first sender.
    pub(crate) fn probe(&mut self, now_ns: u64, dialect: &mut Dialect, out: &mut BytesMut) {
        self.payload.clear();
        self.payloads.write(&mut self.payload, 0, 0, now_ns, Kind::Probe);
        dialect.frame(&self.payload, &mut self.envelope, out);
    }

    /// How many members have not got a probe yet.
    pub(crate) fn unprobed(&self) -> u32 {
        self.receivers() - self.probed_count.min(self.receivers())
    }

    /// Senders may send from now on. Each `sender` that has something to send at once is told.
    pub(crate) fn start(&mut self, now_ns: u64, mut tell: impl FnMut(usize)) {
        self.sending = true;
        self.started_ns = now_ns;
        if let Pace::InFlight(window) = self.pace {
            for (number, sender) in self.senders.iter_mut().enumerate() {
                sender.due.extend((0..window).map(|_| now_ns));
                tell(number);
            }
        }
    }

    /// Deliveries count from now on.
    pub(crate) fn record(&mut self) {
        self.recording = true;
    }

    /// Nothing more is sent or recorded; what is under way is still checked. Messages of a rate that have waited long
    /// for their sockets count as unsent.
    pub(crate) fn stop(&mut self, now_ns: u64) {
        self.sending = false;
        self.recording = false;
        for sender in &mut self.senders {
            if matches!(self.pace, Pace::Rate(_)) {
                let late = |due_ns: &&u64| **due_ns + LATE_NS < now_ns;
                self.counts.unsent += sender.due.iter().filter(late).count() as u64;
            }
            sender.due.clear();
        }
        self.backlog = 0;
    }

    /// With a rate: when the next message is due, ns.
    pub(crate) fn next_due_ns(&self) -> Option<u64> {
        match self.pace {
            Pace::Rate(rate) if self.sending => {
                let senders = self.phases.len() as u64;
                let phase = self.phases[(self.scheduled % senders) as usize];
                let rounds = (self.scheduled / senders) as f64 + phase;
                Some(self.started_ns + (rounds * senders as f64 * 1e9 / rate) as u64)
            }
            _ => None,
        }
    }

    /// With a rate: hands the messages that are due by `now_ns` to their senders, each of which is told.
    pub(crate) fn schedule(&mut self, now_ns: u64, mut tell: impl FnMut(usize)) {
        while let Some(due_ns) = self.next_due_ns().filter(|due_ns| *due_ns <= now_ns) {
            let number = (self.scheduled % self.senders.len() as u64) as usize;
            self.scheduled += 1;
            let sender = &mut self.senders[number];
            if !sender.alive || self.backlog >= BACKLOG_MAX {
                self.counts.unsent += 1;
                continue;
            }
            self.backlog += 1;
            sender.due.push_back(due_ns);
            tell(number);
        }
    }

    /// Appends what `sender` has to send to `out`; true if more is left for the next turn.
    pub(crate) fn take(
        &mut self,
        number: usize,
        now_ns: u64,
        dialect: &mut Dialect,
        out: &mut BytesMut,
    ) -> bool {
        let receivers = self.receivers();
        let sender = &mut self.senders[number];
        if receivers == 0 {
            return false;
        }
        while out.len() < TURN_BYTES_MAX {
            let Some(due_ns) = sender.due.pop_front() else {
                return false;
            };
            let time_ns = match self.pace {
                Pace::InFlight(_) => {
                    sender.owing.push_back(receivers);
                    now_ns
                }
                Pace::Rate(_) => {
                    self.backlog -= 1;
                    due_ns
                }
            };
            self.payload.clear();
            self.payloads
                .write(&mut self.payload, number as u16, sender.next, time_ns, Kind::Data);
            dialect.frame(&self.payload, &mut self.envelope, out);
            sender.next += 1;
            self.outstanding += u64::from(receivers);
            self.counts.sent += u64::from(self.recording);
        }
        !sender.due.is_empty()
    }

    /// A payload came to `receiver` (a member, or a guest's number after those). If that ended a message of a
    /// window, its sender, which may send again, is told.
    pub(crate) fn received(
        &mut self,
        receiver: usize,
        payload: &[u8],
        now_ns: u64,
        mut tell: impl FnMut(usize),
    ) {
        let Ok(stamp) = self.payloads.read(payload) else {
            return self.checker.malformed();
        };
        let number = usize::from(stamp.sender);
        let Some(sender) = self.senders.get(number) else {
            return self.checker.malformed();
        };
        if (sender.member == receiver) != self.echo {
            return self.checker.misdirected();
        }
        if stamp.kind == Kind::Probe {
            if let Some(probed) = self.probed.get_mut(receiver).filter(|probed| !**probed) {
                *probed = true;
                self.probed_count += 1;
            }
            return;
        }
        if stamp.sequence == 0 || stamp.sequence >= sender.next {
            return self.checker.malformed();
        }
        if !self.checker.received(receiver, number, stamp.sequence) {
            return;
        }
        self.counts.deliveries_ever += 1;
        if self.recording {
            self.counts.deliveries += 1;
            self.latency
                .saturating_record(now_ns.saturating_sub(stamp.time_ns));
        }
        if receiver < self.present.len() {
            self.settle(number, stamp.sequence, &mut tell);
        }
    }

    /// One receiver less is owed the message.
    fn settle(&mut self, number: usize, sequence: u32, tell: &mut impl FnMut(usize)) {
        self.outstanding = self.outstanding.saturating_sub(1);
        if !matches!(self.pace, Pace::InFlight(_)) {
            return;
        }
        let sender = &mut self.senders[number];
        let oldest = sender.next - sender.owing.len() as u32;
        let Some(owing) = sequence
            .checked_sub(oldest)
            .and_then(|at| sender.owing.get_mut(at as usize))
            .filter(|owing| **owing > 0)
        else {
            return;
        };
        *owing -= 1;
        if *owing > 0 {
            return;
        }
        while sender.owing.front() == Some(&0) {
            sender.owing.pop_front();
        }
        if self.sending && sender.alive {
            sender.due.push_back(0);
            tell(number);
        }
    }

    /// A guest with this number has come.
    pub(crate) fn guest_came(&mut self, receiver: usize) {
        self.checker.rejoin(receiver);
    }

    /// A member is gone: nobody waits for it any more, and it sends no more.
    pub(crate) fn member_left(&mut self, member: usize, mut tell: impl FnMut(usize)) {
        if !std::mem::take(&mut self.present[member]) {
            return;
        }
        self.present_count -= 1;
        for number in 0..self.senders.len() {
            let own = self.senders[number].member == member;
            if own {
                self.senders[number].alive = false;
            }
            if own == self.echo {
                let expected = self.checker.expected(member, number).unwrap_or(1);
                for sequence in expected..self.senders[number].next {
                    self.settle(number, sequence, &mut tell);
                }
            }
        }
    }

    /// Deliveries still owed to members.
    pub(crate) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// What was counted up to now.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Ends the run: what present members did not get is lost. Gives what was wrong, and the latencies.
    pub(crate) fn finish(mut self) -> (Counts, Violations, Histogram<u64>) {
        for member in 0..self.present.len() {
            if !self.present[member] {
                continue;
            }
            for (number, sender) in self.senders.iter().enumerate() {
                if (sender.member == member) == self.echo {
                    self.checker.close(member, number, sender.next);
                }
            }
        }
        (self.counts, self.checker.violations(), self.latency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Format, Protocol};

    const SIZE: usize = 32;

    struct Rig {
        flow: Flow,
        dialect: Dialect,
    }

    impl Rig {
        fn new(members: usize, senders: u32, pace: Pace, echo: bool) -> Rig {
            let traffic = Traffic { senders, pace };
            let dialect = Dialect::new(
                Protocol::Plain,
                Format::Text,
                &"ws://127.0.0.1:9".parse().unwrap(),
                0,
            );
            let mut flow = Flow::new(Payloads::new(9, SIZE), traffic, echo, vec![true; members], 0);
            flow.start(0, |_| {});
            flow.record();
            Rig { flow, dialect }
        }

        /// How many messages sender `number` has to send now.
        fn take(&mut self, number: usize) -> usize {
            let mut out = BytesMut::new();
            assert!(!self.flow.take(number, 1_000, &mut self.dialect, &mut out));
            out.len() / (SIZE + 6)
        }

        fn deliver(&mut self, receiver: usize, sender: u16, sequence: u32) -> Vec<usize> {
            let mut payload = Vec::new();
            Payloads::new(9, SIZE).write(&mut payload, sender, sequence, 1_000, Kind::Data);
            let mut told = Vec::new();
            self.flow
                .received(receiver, &payload, 2_000, |number| told.push(number));
            told
        }
    }

    #[test]
    fn a_window_opens_again_when_all_have_the_message() {
        let mut rig = Rig::new(3, 1, Pace::InFlight(2), false);
        assert_eq!(rig.take(0), 2);
        assert_eq!(rig.flow.outstanding(), 4);
        assert!(rig.deliver(1, 0, 1).is_empty());
        assert_eq!(rig.take(0), 0);
        assert_eq!(rig.deliver(2, 0, 1), [0]);
        assert_eq!(rig.take(0), 1);
        let (counts, violations, latency) = rig.flow.finish();
        assert_eq!((counts.sent, counts.deliveries, latency.len()), (3, 2, 2));
        assert_eq!(violations.lost, 4);
    }

    #[test]
    fn later_messages_may_finish_first() {
        let mut rig = Rig::new(2, 1, Pace::InFlight(2), false);
        assert_eq!(rig.take(0), 2);
        assert_eq!(rig.deliver(1, 0, 2), [0]);
        assert_eq!(rig.take(0), 1);
        assert_eq!(rig.deliver(1, 0, 1), [0]);
        assert_eq!(rig.deliver(1, 0, 3), [0]);
        let violations = rig.flow.finish().1;
        assert_eq!((violations.reordered, violations.lost), (1, 0));
    }

    #[test]
    fn a_rate_is_kept_by_the_clock_and_shared_by_the_senders() {
        let mut rig = Rig::new(3, 2, Pace::Rate(1_000.0), false);
        // A round of both takes 2 ms; in three of them each sends three times, at its own phase.
        rig.flow.schedule(5_999_999, |_| {});
        assert_eq!((rig.take(0), rig.take(1)), (3, 3));
        let next_ns = rig.flow.next_due_ns().unwrap();
        assert_eq!(next_ns, 6_000_000 + (phases(2)[0] * 2e6) as u64);
        rig.flow.stop(6_000_000);
        assert_eq!(rig.flow.next_due_ns(), None);
    }

    #[test]
    fn messages_that_waited_long_for_their_socket_are_unsent() {
        let mut rig = Rig::new(3, 1, Pace::Rate(1_000.0), false);
        // Due in the 1st, 2nd, 3rd and 4th ms, at the same phase of each.
        rig.flow.schedule(3_999_999, |_| {});
        rig.flow.stop(LATE_NS + 2_000_000);
        assert_eq!(rig.flow.counts().unsent, 2);
    }

    #[test]
    fn nobody_waits_for_a_member_that_left() {
        let mut rig = Rig::new(3, 1, Pace::InFlight(1), false);
        rig.take(0);
        rig.deliver(1, 0, 1);
        let mut told = Vec::new();
        rig.flow.member_left(2, |number| told.push(number));
        assert_eq!(told, [0]);
        assert_eq!(rig.flow.outstanding(), 0);
        assert_eq!(rig.flow.finish().1.total(), 0);
    }

    #[test]
    fn an_echo_goes_to_its_sender_alone() {
        let mut rig = Rig::new(2, 2, Pace::InFlight(1), true);
        assert_eq!((rig.take(0), rig.take(1)), (1, 1));
        assert_eq!(rig.deliver(0, 0, 1), [0]);
        rig.deliver(0, 1, 1);
        assert_eq!(
            rig.flow.finish().1,
            Violations {
                misdirected: 1,
                lost: 1,
                ..Violations::default()
            }
        );
    }

    #[test]
    fn what_was_never_sent_or_is_not_ours_is_malformed() {
        let mut rig = Rig::new(2, 1, Pace::InFlight(1), false);
        rig.deliver(1, 0, 1);
        rig.deliver(1, 5, 1);
        rig.flow.received(1, b"something else", 0, |_| {});
        assert_eq!(
            rig.flow.finish().1,
            Violations {
                malformed: 3,
                ..Violations::default()
            }
        );
    }

    #[test]
    fn probes_count_receivers_once() {
        let mut rig = Rig::new(3, 1, Pace::InFlight(1), false);
        let mut payload = Vec::new();
        Payloads::new(9, SIZE).write(&mut payload, 0, 0, 0, Kind::Probe);
        assert_eq!(rig.flow.unprobed(), 2);
        for receiver in [1, 1] {
            rig.flow.received(receiver, &payload, 0, |_| {});
        }
        assert_eq!(rig.flow.unprobed(), 1);
        assert_eq!(rig.flow.finish().1.total(), 0);
    }
}
