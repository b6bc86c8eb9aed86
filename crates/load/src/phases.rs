//! The course of a run: fill, settle, probe, warm up, measure, drain, close. Each phase has an end that comes by
//! itself.

use std::collections::VecDeque;
use std::time::Duration;

use engine::{Actions, Close, ConnectionId, SocketEnd};

use crate::client::Failure;
use crate::findings::{Mark, Round};
use crate::flow::{Counts, Flow};
use crate::machine::{Clients, Mail};
use crate::payload::Payloads;
use crate::plan::{Plan, Scenario};

const SECOND_NS: u64 = 1_000_000_000;
/// After the last connect, for the server to finish what connects leave behind.
const SETTLE_NS: u64 = SECOND_NS / 5;
/// The same before memory is measured for its own sake.
const SETTLE_IDLE_NS: u64 = SECOND_NS;
/// How long a server may take until a message reaches all connections.
const PROBING_NS: u64 = 5 * SECOND_NS;
const PROBE_EVERY_NS: u64 = SECOND_NS / 5;
/// With deliveries owed, so long without one is a stall.
const STALL_NS: u64 = 5 * SECOND_NS;
/// How long deliveries may come after the last message was sent.
const DRAIN_NS: u64 = 5 * SECOND_NS;
/// How long the closing handshakes may take.
const CLOSE_NS: u64 = 5 * SECOND_NS;
/// Connections that begin to close in one turn.
const CLOSES_PER_TURN: usize = 256;
/// Points of the series over the measurement, and the shortest distance between two.
const TICKS: u64 = 100;
const TICK_NS_MIN: u64 = SECOND_NS / 20;
/// Longest time between two looks at whether deliveries still come.
const LOOK_NS_MAX: u64 = SECOND_NS;
/// Below this the reactor's sleep is too coarse: the machine asks for turns until the moment has come.
const POLL_NS: u64 = 1_500_000;

/// Where a run is. Times are when the phase ends at the latest.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phase {
    /// The start mail has not come.
    Waiting,
    /// Connections are being opened.
    Filling {
        begun: Mark,
    },
    /// All are open.
    Settling {
        begun: Mark,
        until_ns: u64,
    },
    /// A message must reach everybody before anything is measured.
    Probing {
        until_ns: u64,
        next_ns: u64,
    },
    Warmup {
        until_ns: u64,
    },
    Measuring {
        until_ns: u64,
    },
    /// Nothing is sent any more, what is owed may come.
    Draining {
        until_ns: u64,
    },
    /// Connections from slot `next` on have yet to begin their closing handshake.
    Closing {
        until_ns: u64,
        next: usize,
    },
    Over,
}

/// Connections that come and go.
#[derive(Debug)]
pub(crate) struct Guests {
    first: usize,
    free: Vec<usize>,
    /// Who leaves when.
    leaves: VecDeque<(u64, ConnectionId)>,
    next_ns: Option<u64>,
}

impl Guests {
    pub(crate) fn new(members: usize, count: usize) -> Guests {
        Guests {
            first: members,
            free: (members..members + count).collect(),
            leaves: VecDeque::new(),
            next_ns: None,
        }
    }

    /// `number` may be used again; members' numbers are none of ours.
    pub(crate) fn release(&mut self, number: usize) {
        if number >= self.first {
            self.free.push(number);
        }
    }

    pub(crate) fn came(&mut self, id: ConnectionId, now_ns: u64, plan: &Plan) {
        if let Scenario::Churn { hold, .. } = plan.scenario {
            self.leaves.push_back((now_ns + nanoseconds(hold), id));
        }
    }
}

/// When the counters are read next, and what was seen then.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ticks {
    next_ns: u64,
    /// When the series gets its next point.
    point_ns: u64,
    /// When a delivery came last, as far as ticks can tell.
    progress_ns: u64,
    deliveries: u64,
    /// CPU time of the turns that only waited for a message to become due: no work of the loader's.
    polling_cpu_ns: u64,
    /// CPU time of the thread where polling goes on from, if it does.
    polling_since_ns: Option<u64>,
}

fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

impl Clients {
    /// The world has come: opens connections.
    pub(crate) fn begin(&mut self) {
        let members = self.members.len();
        self.opener.refill(members, self.now_ns);
        let begun = self.mark();
        self.phase = Phase::Filling { begun };
        self.progress.fill(members as u64);
    }

    /// Does what is due now.
    pub(crate) fn step(&mut self, actions: &mut impl Actions<Mail>) {
        self.now_ns = self.world().now_ns();
        self.count_polling();
        self.expire(actions);
        for member in self.opener.take() {
            self.dial(member);
        }
        self.schedule();
        if self.now_ns >= self.clock.next_ns {
            self.tick();
        }
        match self.phase {
            Phase::Waiting | Phase::Over => {}
            Phase::Filling { begun } => self.filling(begun),
            Phase::Settling { begun, until_ns } if self.now_ns >= until_ns => self.settled(begun),
            Phase::Probing { until_ns, next_ns } => self.probing(until_ns, next_ns),
            Phase::Warmup { until_ns } if self.now_ns >= until_ns => self.measure(),
            Phase::Measuring { until_ns } if self.now_ns >= until_ns => self.drain(),
            Phase::Draining { until_ns } => self.draining(until_ns),
            Phase::Closing { until_ns, next } => self.closing(until_ns, next, actions),
            Phase::Settling { .. } | Phase::Warmup { .. } | Phase::Measuring { .. } => {}
        }
        self.move_guests();
    }

    /// Tells the CPU time of turns that only polled from that of those that worked.
    fn count_polling(&mut self) {
        let was_active = std::mem::take(&mut self.active);
        let since_ns = self.clock.polling_since_ns.take();
        let polls = self.polls_at(self.now_ns);
        if !polls && (was_active || since_ns.is_none()) {
            return;
        }
        let cpu_ns = self.world().loader_cpu_ns();
        if !was_active && let Some((since_ns, cpu_ns)) = since_ns.zip(cpu_ns) {
            self.clock.polling_cpu_ns += cpu_ns - since_ns;
        }
        self.clock.polling_since_ns = cpu_ns.filter(|_| polls);
    }

    /// When `step` next has something to do.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let phase_ns = match self.phase {
            Phase::Waiting | Phase::Over => return None,
            Phase::Filling { .. } if self.opener.has_more() => 0,
            Phase::Filling { .. } => u64::MAX,
            Phase::Probing { until_ns, next_ns } => until_ns.min(next_ns),
            Phase::Closing { next, .. } if next < self.entries.slots() => 0,
            Phase::Settling { until_ns, .. }
            | Phase::Warmup { until_ns }
            | Phase::Measuring { until_ns }
            | Phase::Draining { until_ns }
            | Phase::Closing { until_ns, .. } => until_ns,
        };
        if self.again || self.polls_at(self.now_ns) {
            return Some(0);
        }
        let flow_ns = self.flow.as_ref().and_then(Flow::next_due_ns);
        let leave_ns = self.guests.leaves.front().map(|(leave_ns, _)| *leave_ns);
        [
            flow_ns,
            leave_ns,
            self.guests.next_ns,
            self.opener.next_deadline_ns(),
        ]
        .into_iter()
        .flatten()
        .chain([phase_ns, self.clock.next_ns])
        .min()
    }

    /// True if, at `now_ns`, the next message of a rate is so near that sleeping would miss it.
    fn polls_at(&self, now_ns: u64) -> bool {
        self.flow
            .as_ref()
            .and_then(Flow::next_due_ns)
            .is_some_and(|due_ns| due_ns < now_ns + POLL_NS)
    }

    fn mark(&mut self) -> Mark {
        Mark {
            at_ns: self.now_ns,
            sample: self.world().sample(),
            deliveries: self.counts().deliveries_ever,
            polling_cpu_ns: self.clock.polling_cpu_ns,
        }
    }

    fn counts(&self) -> Counts {
        self.flow.as_ref().map_or(self.findings.counts, Flow::counts)
    }

    fn tick(&mut self) {
        let every_ns = (nanoseconds(self.plan.duration) / TICKS).max(TICK_NS_MIN);
        self.clock.next_ns = self.now_ns + every_ns.min(LOOK_NS_MAX);
        if self.now_ns >= self.clock.point_ns {
            self.clock.point_ns = self.now_ns + every_ns;
            let mark = self.mark();
            self.findings.series.push(mark);
        }
        let deliveries = self.counts().deliveries_ever;
        let owes = self.flow.as_ref().is_some_and(|flow| flow.outstanding() > 0);
        if deliveries != self.clock.deliveries || !owes {
            self.clock.deliveries = deliveries;
            self.clock.progress_ns = self.now_ns;
        }
        let Some(flow) = &self.flow else { return };
        if !matches!(self.phase, Phase::Warmup { .. } | Phase::Measuring { .. }) {
            return;
        }
        if flow.senders_alive() == 0 {
            self.stop_early("the server ended the connections of all senders".to_owned());
        } else if self.now_ns - self.clock.progress_ns > STALL_NS {
            let outstanding = flow.outstanding();
            self.stop_early(format!(
                "stalled: no message was delivered for {} s while {outstanding} deliveries were owed",
                STALL_NS / SECOND_NS
            ));
        }
    }

    /// Ends connects that took too long.
    fn expire(&mut self, actions: &mut impl Actions<Mail>) {
        while let Some(id) = self.opener.expired(self.now_ns) {
            let late = self
                .entries
                .get(id)
                .is_some_and(|entry| !entry.client.is_open() && !entry.client.is_closing());
            if late {
                self.lost(id, &Failure::Timeout, Close::Abort, actions);
            }
        }
    }

    fn filling(&mut self, begun: Mark) {
        if self.opener.is_stuck(self.now_ns) {
            let rest = self.opener.give_up();
            self.fail(&Failure::Timeout, rest as u64);
        }
        if !self.opener.is_done() {
            return;
        }
        let open = self.members.iter().flatten().count();
        if open == 0 {
            let reason = self
                .findings
                .failures
                .iter()
                .max_by_key(|(_, count)| **count)
                .map_or("none was tried", |(reason, _)| reason);
            self.stop_early(format!(
                "no connection to {} could be opened: {reason}",
                self.plan.target
            ));
            return;
        }
        if let Scenario::Connect { .. } = self.plan.scenario {
            let wall_ns = self.now_ns - begun.at_ns;
            self.findings.rounds.push(Round {
                opened: open as u64,
                wall_ns,
                server_cpu_ns: None,
            });
        }
        let settle_ns = match self.plan.scenario {
            Scenario::Idle => SETTLE_IDLE_NS,
            _ => SETTLE_NS,
        };
        self.phase = Phase::Settling {
            begun,
            until_ns: self.now_ns + settle_ns,
        };
        self.progress.enter("settling");
    }

    fn settled(&mut self, begun: Mark) {
        if self.findings.memory_full.is_none() {
            self.findings.memory_full = self.world().memory();
            self.findings.members_full = self.members.iter().flatten().count() as u64;
        }
        let mark = self.mark();
        match self.plan.scenario {
            Scenario::Connect { .. } => {
                let used = |mark: Mark| mark.sample.server_cpu_ns;
                if let Some(round) = self.findings.rounds.last_mut() {
                    round.server_cpu_ns = used(mark)
                        .zip(used(begun))
                        .map(|(now, then)| now.saturating_sub(then));
                }
                self.findings.begin.get_or_insert(begun);
                self.findings.end = Some(mark);
                self.close_all();
            }
            Scenario::Idle => self.measure(),
            Scenario::Echo(_) => {
                self.make_flow();
                self.warm_up();
            }
            Scenario::Fanout(_) | Scenario::Churn { .. } | Scenario::Slow { .. } => {
                self.make_flow();
                self.phase = Phase::Probing {
                    until_ns: self.now_ns + PROBING_NS,
                    next_ns: self.now_ns,
                };
                self.progress.enter("probing");
            }
        }
    }

    fn make_flow(&mut self) {
        let Some(traffic) = self.plan.scenario.traffic() else {
            return;
        };
        let present: Vec<bool> = self.members.iter().map(Option::is_some).collect();
        let echo = matches!(self.plan.scenario, Scenario::Echo(_));
        let payloads = Payloads::new(self.run, self.plan.size);
        self.flow = Some(Flow::new(
            payloads,
            traffic,
            echo,
            present,
            self.plan.guests() as usize,
        ));
    }

    fn probing(&mut self, until_ns: u64, next_ns: u64) {
        let Some(flow) = &self.flow else { return };
        if flow.present() < 2 {
            return self
                .stop_early("fewer than two connections are open, so nobody is there to receive".to_owned());
        }
        let (unprobed, present) = (flow.unprobed(), flow.present());
        if unprobed == 0 {
            return self.warm_up();
        }
        if self.now_ns >= until_ns {
            return self.stop_early(format!(
                "the server does not fan out: of {} receivers {unprobed} got no message within {} s",
                present - 1,
                PROBING_NS / SECOND_NS
            ));
        }
        if self.now_ns >= next_ns {
            self.send_probe();
            self.phase = Phase::Probing {
                until_ns,
                next_ns: self.now_ns + PROBE_EVERY_NS,
            };
        }
    }

    fn warm_up(&mut self) {
        self.clock.progress_ns = self.now_ns;
        self.start_senders();
        if let Scenario::Churn { .. } = self.plan.scenario {
            self.guests.next_ns = Some(self.now_ns);
        }
        self.phase = Phase::Warmup {
            until_ns: self.now_ns + nanoseconds(self.plan.warmup),
        };
        self.progress.time("warming up", self.plan.warmup);
    }

    fn measure(&mut self) {
        let mark = self.mark();
        self.findings.begin = Some(mark);
        if let Some(flow) = &mut self.flow {
            flow.record();
        }
        self.phase = Phase::Measuring {
            until_ns: self.now_ns + nanoseconds(self.plan.duration),
        };
        self.progress.time("measuring", self.plan.duration);
    }

    fn drain(&mut self) {
        let mark = self.mark();
        self.findings.end = Some(mark);
        if let Some(flow) = &mut self.flow {
            flow.stop(self.now_ns);
        }
        self.guests.next_ns = None;
        self.phase = Phase::Draining {
            until_ns: self.now_ns + DRAIN_NS,
        };
        self.progress.enter("draining");
    }

    fn draining(&mut self, until_ns: u64) {
        let owed = self.flow.as_ref().map_or(0, Flow::outstanding);
        // A guest that is still connecting is waited for: it is no failure yet.
        if (owed == 0 && self.opener.is_done()) || self.now_ns >= until_ns {
            self.close_all();
        }
    }

    /// Something makes the rest of the run pointless.
    fn stop_early(&mut self, why: String) {
        self.findings.broke.get_or_insert(why);
        if self.findings.begin.is_some() && self.findings.end.is_none() {
            let mark = self.mark();
            self.findings.end = Some(mark);
        }
        if let Some(flow) = &mut self.flow {
            flow.stop(self.now_ns);
        }
        self.close_all();
    }

    /// Ends the measurement for good; then all connections close.
    fn close_all(&mut self) {
        if let Some(flow) = self.flow.take() {
            (
                self.findings.counts,
                self.findings.violations,
                self.findings.latency,
            ) = flow.finish();
        }
        self.guests.next_ns = None;
        self.guests.leaves.clear();
        self.phase = Phase::Closing {
            until_ns: self.now_ns + CLOSE_NS,
            next: 0,
        };
        self.progress.enter("closing");
    }

    fn closing(&mut self, until_ns: u64, next: usize, actions: &mut impl Actions<Mail>) {
        let end = self.entries.slots().min(next + CLOSES_PER_TURN);
        for index in next..end {
            let Some(id) = self.entries.id_at(index) else {
                continue;
            };
            let Some(entry) = self.entries.get(id) else {
                continue;
            };
            if entry.client.is_open() {
                self.close_client(id);
            } else if !entry.client.is_closing() {
                // It was connecting all through the drain.
                self.lost(id, &Failure::Timeout, Close::Abort, actions);
            }
        }
        self.phase = Phase::Closing { until_ns, next: end };
        if self.now_ns >= until_ns {
            self.findings.unclosed += self.entries.live() as u64;
            for index in 0..self.entries.slots() {
                if let Some(id) = self.entries.id_at(index) {
                    self.lost(id, &Failure::Socket(SocketEnd::Eof), Close::Abort, actions);
                }
            }
        }
        if self.entries.live() == 0 {
            self.closed();
        }
    }

    /// All connections of the round are gone.
    fn closed(&mut self) {
        match self.plan.scenario {
            Scenario::Connect { rounds }
                if self.findings.broke.is_none() && self.findings.rounds.len() < rounds as usize =>
            {
                self.begin();
            }
            _ => self.phase = Phase::Over,
        }
    }

    /// Lets guests come and go.
    fn move_guests(&mut self) {
        while let Some((_, id)) = self
            .guests
            .leaves
            .pop_front_if(|(leave_ns, _)| *leave_ns <= self.now_ns)
        {
            self.close_client(id);
        }
        let Scenario::Churn { rate, .. } = self.plan.scenario else {
            return;
        };
        while let Some(next_ns) = self.guests.next_ns.filter(|next_ns| *next_ns <= self.now_ns) {
            self.guests.next_ns = Some(next_ns + ((1e9 / rate) as u64).max(1));
            // Without a free number the server is behind; this guest does not come.
            let Some(number) = self.guests.free.pop() else {
                continue;
            };
            self.dial(number);
        }
    }
}
