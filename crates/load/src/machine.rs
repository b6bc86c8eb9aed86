//! The clients of a run as one [`engine::Machine`]: connections, and what becomes of their events.
//!
//! What happens when, is in [`crate::phases`]; what one client says, in [`crate::client`]; who sends, in
//! [`crate::flow`]. All times here are ns since the loader's start.

use std::sync::Arc;

use bytes::BytesMut;
use engine::{Actions, Close, ConnectionId, Letter, Machine, SocketEnd, Time, Wrote};

use crate::client::{Client, Dialect, Failure, Happening};
use crate::findings::Findings;
use crate::flow::Flow;
use crate::opener::Opener;
use crate::phases::Phase;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::world::World;

/// What is known of a socket when it is handed to the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    /// Which member it is to be; numbers from the count of members on are guests.
    pub(crate) member: usize,
    /// When it was dialed.
    pub(crate) dialed_ns: u64,
}

/// What the machine is told from outside.
pub(crate) enum Mail {
    /// Begin; this is the world.
    Start(Box<dyn World>),
}

impl Letter for Mail {
    fn bytes(&self) -> usize {
        size_of::<Mail>()
    }

    /// Clients do not mail each other.
    fn is_request(&self) -> bool {
        false
    }
}

/// A connection.
pub(crate) struct Entry {
    pub(crate) client: Client,
    pub(crate) member: usize,
    dialed_ns: u64,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    entry: Option<Entry>,
}

/// The connections of a run by id.
#[derive(Default)]
pub(crate) struct Entries {
    slots: Vec<Slot>,
    free: Vec<u32>,
    live: usize,
}

impl Entries {
    fn insert(&mut self, entry: Entry) -> ConnectionId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.entry = Some(entry);
        self.live += 1;
        ConnectionId {
            index,
            generation: slot.generation,
        }
    }

    fn remove(&mut self, id: ConnectionId) -> Option<Entry> {
        let slot = &mut self.slots[id.index as usize];
        if slot.generation != id.generation {
            return None;
        }
        let entry = slot.entry.take()?;
        slot.generation += 1;
        self.free.push(id.index);
        self.live -= 1;
        Some(entry)
    }

    #[inline]
    pub(crate) fn get(&mut self, id: ConnectionId) -> Option<&mut Entry> {
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.entry.as_mut().filter(|_| slot.generation == id.generation)
    }

    /// How many there are.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// How many slots there are, used or not.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The id of the connection in slot `index`.
    pub(crate) fn id_at(&self, index: usize) -> Option<ConnectionId> {
        let slot = &self.slots[index];
        slot.entry.as_ref()?;
        Some(ConnectionId {
            index: index as u32,
            generation: slot.generation,
        })
    }
}

/// See the module's page. Made by [`crate::run`], run by the reactor, read when its thread has ended.
pub(crate) struct Clients {
    pub(crate) plan: Arc<Plan>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) dialect: Dialect,
    pub(crate) run: u16,
    pub(crate) world: Option<Box<dyn World>>,
    /// The reactor's clock less the loader's, us.
    pub(crate) clock_offset_us: i64,
    pub(crate) now_ns: u64,
    pub(crate) phase: Phase,
    pub(crate) entries: Entries,
    /// The open connection of each member.
    pub(crate) members: Vec<Option<ConnectionId>>,
    pub(crate) opener: Opener,
    pub(crate) flow: Option<Flow>,
    pub(crate) guests: crate::phases::Guests,
    pub(crate) clock: crate::phases::Ticks,
    pub(crate) findings: Findings,
    /// Connections with something in `out`.
    pub(crate) dirty: Vec<ConnectionId>,
    /// Senders with something to send, each once, as `is_hungry` tells.
    hungry: Vec<usize>,
    is_hungry: Vec<bool>,
    /// A sender has more than fits one turn.
    pub(crate) again: bool,
    /// Something came or went since the last `advance`.
    pub(crate) active: bool,
}

/// Puts a sender on the list, once.
fn note(hungry: &mut Vec<usize>, is_hungry: &mut [bool], number: usize) {
    if !std::mem::replace(&mut is_hungry[number], true) {
        hungry.push(number);
    }
}

impl Clients {
    /// Clients that do nothing until they get [`Mail::Start`].
    pub(crate) fn new(plan: Arc<Plan>, progress: Arc<Progress>, run: u16) -> Clients {
        let dialect = Dialect::new(plan.protocol, plan.format, &plan.target, u64::from(run));
        let members = plan.members() as usize;
        let senders = plan
            .scenario
            .traffic()
            .map_or(0, |traffic| traffic.senders as usize);
        Clients {
            dialect,
            run,
            world: None,
            clock_offset_us: 0,
            now_ns: 0,
            phase: Phase::Waiting,
            entries: Entries::default(),
            members: vec![None; members],
            opener: Opener::new(plan.connect_window, plan.connect_timeout.as_nanos() as u64),
            flow: None,
            guests: crate::phases::Guests::new(members, plan.guests() as usize),
            clock: crate::phases::Ticks::default(),
            findings: Findings::new(),
            dirty: Vec::new(),
            hungry: Vec::new(),
            is_hungry: vec![false; senders],
            again: false,
            active: false,
            plan,
            progress,
        }
    }

    /// The world, which is there from the start mail on; nothing is called before.
    pub(crate) fn world(&mut self) -> &mut dyn World {
        self.world
            .as_deref_mut()
            .expect("the start mail brought the world")
    }

    /// Lets senders begin.
    pub(crate) fn start_senders(&mut self) {
        let Clients {
            flow,
            hungry,
            is_hungry,
            now_ns,
            ..
        } = self;
        if let Some(flow) = flow {
            flow.start(*now_ns, |number| note(hungry, is_hungry, number));
        }
    }

    /// Hands out what a rate makes due.
    pub(crate) fn schedule(&mut self) {
        let Clients {
            flow,
            hungry,
            is_hungry,
            now_ns,
            ..
        } = self;
        if let Some(flow) = flow {
            flow.schedule(*now_ns, |number| note(hungry, is_hungry, number));
        }
    }

    /// Opens a socket for `member`; a failure is counted.
    pub(crate) fn dial(&mut self, member: usize) {
        let dialed_ns = self.world().now_ns();
        match self.world().dial(Opening { member, dialed_ns }) {
            Ok(()) => self.opener.dialed(),
            Err(error) => {
                self.fail(&Failure::Dial(error.to_string()), 1);
                self.guests.release(member);
            }
        }
    }

    /// Counts failures of one kind.
    pub(crate) fn fail(&mut self, failure: &Failure, count: u64) {
        *self.findings.failures.entry(failure.to_string()).or_default() += count;
    }

    /// A client may speak from now on.
    fn opened_client(&mut self, id: ConnectionId, now_ns: u64) {
        let Some(entry) = self.entries.get(id) else { return };
        let (member, dialed_ns) = (entry.member, entry.dialed_ns);
        self.opener.opened(now_ns);
        self.findings.opened += 1;
        self.findings
            .connect_latency
            .saturating_record(now_ns.saturating_sub(dialed_ns));
        self.progress.add_open(1);
        if let Some(place) = self.members.get_mut(member) {
            *place = Some(id);
        } else {
            self.guests.came(id, now_ns, &self.plan);
        }
    }

    /// A connection is over: lets its socket go and sees what that means.
    pub(crate) fn lost(
        &mut self,
        id: ConnectionId,
        failure: &Failure,
        how: Close,
        actions: &mut impl Actions<Mail>,
    ) {
        let Some(entry) = self.entries.remove(id) else {
            return;
        };
        actions.close(id, how);
        let Entry { client, member, .. } = entry;
        let is_guest = member >= self.members.len();
        if client.is_closing() {
            self.findings.guests_served += u64::from(is_guest);
        } else {
            self.fail(failure, 1);
            if client.is_open() {
                self.findings.dropped += 1;
            } else {
                self.opener.failed();
            }
        }
        if is_guest {
            self.guests.release(member);
        } else if self.members[member] == Some(id) {
            self.members[member] = None;
            self.progress.add_open(-1);
            let Clients {
                flow,
                hungry,
                is_hungry,
                ..
            } = self;
            if let Some(flow) = flow {
                flow.member_left(member, |number| note(hungry, is_hungry, number));
            }
        }
    }

    /// Begins the closing handshake of a connection.
    pub(crate) fn close_client(&mut self, id: ConnectionId) {
        if let Some(entry) = self.entries.get(id) {
            entry.client.close(&mut self.dialect);
            self.dirty.push(id);
        }
    }

    /// Writes what is due to a connection, unless a write is under way.
    fn write_out(&mut self, id: ConnectionId, actions: &mut impl Actions<Mail>) {
        let Some(entry) = self.entries.get(id) else { return };
        if entry.client.writing || entry.client.out.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut entry.client.out).freeze();
        match actions.write(id, &[bytes]) {
            Wrote::Done => {}
            Wrote::Pending => entry.client.writing = true,
            Wrote::Failed => self.lost(id, &Failure::Socket(SocketEnd::Reset), Close::Abort, actions),
        }
    }

    /// Sends what the hungry senders have; those whose sockets are full stay hungry.
    fn feed_senders(&mut self, actions: &mut impl Actions<Mail>) {
        self.again = false;
        let numbers = std::mem::take(&mut self.hungry);
        let now_ns = if numbers.is_empty() {
            0
        } else {
            self.world().now_ns()
        };
        for number in numbers {
            self.is_hungry[number] = false;
            let Some(flow) = &mut self.flow else { continue };
            let member = flow.member_of(number);
            let Some(id) = self.members[member] else { continue };
            let Some(entry) = self.entries.get(id) else {
                continue;
            };
            if entry.client.writing {
                note(&mut self.hungry, &mut self.is_hungry, number);
                continue;
            }
            self.active = true;
            if flow.take(number, now_ns, &mut self.dialect, &mut entry.client.out) {
                note(&mut self.hungry, &mut self.is_hungry, number);
                self.again = true;
            }
            self.write_out(id, actions);
        }
    }

    /// Sends a probe from the first sender.
    pub(crate) fn send_probe(&mut self) {
        let now_ns = self.now_ns;
        let Some(flow) = &mut self.flow else { return };
        let Some(id) = self.members[flow.member_of(0)] else {
            return;
        };
        if let Some(entry) = self.entries.get(id) {
            let mut out = BytesMut::new();
            flow.probe(now_ns, &mut self.dialect, &mut out);
            entry.client.out.extend_from_slice(&out);
            self.dirty.push(id);
        }
    }
}

impl Machine for Clients {
    type Opening = Opening;
    type Mail = Mail;

    fn opened(&mut self, opening: Opening, _: Time, _: &mut impl Actions<Mail>) -> Option<ConnectionId> {
        let now_ns = self.world().now_ns();
        let client = Client::new(&mut self.dialect);
        let id = self.entries.insert(Entry {
            client,
            member: opening.member,
            dialed_ns: opening.dialed_ns,
        });
        self.opener.adopted(id, now_ns);
        self.dirty.push(id);
        Some(id)
    }

    fn received(&mut self, id: ConnectionId, bytes: &mut [u8], _: Time, actions: &mut impl Actions<Mail>) {
        self.active = true;
        let now_ns = self.world().now_ns();
        let Clients {
            entries,
            members,
            dialect,
            flow,
            hungry,
            is_hungry,
            ..
        } = self;
        let Some(entry) = entries.get(id) else { return };
        let member = entry.member;
        let is_guest = member >= members.len();
        let mut opened = false;
        let result = entry
            .client
            .received(bytes, dialect, &mut |happening| match happening {
                Happening::Opened => {
                    opened = true;
                    // Before the first message, which may have come with the answer.
                    if let Some(flow) = flow
                        && is_guest
                    {
                        flow.guest_came(member);
                    }
                }
                Happening::Payload(payload) => {
                    if let Some(flow) = flow {
                        flow.received(member, payload, now_ns, |number| note(hungry, is_hungry, number));
                    }
                }
            });
        let waits_for_end = entry.client.is_closing() && matches!(result, Err(Failure::Closed(_)));
        if !entry.client.out.is_empty() {
            self.dirty.push(id);
        }
        if opened {
            self.opened_client(id, now_ns);
        }
        if let Err(failure) = result
            && !waits_for_end
        {
            self.lost(id, &failure, Close::Orderly, actions);
        }
    }

    fn flushed(&mut self, id: ConnectionId, _: Time, _: &mut impl Actions<Mail>) {
        self.active = true;
        if let Some(entry) = self.entries.get(id) {
            entry.client.writing = false;
            if !entry.client.out.is_empty() {
                self.dirty.push(id);
            }
        }
    }

    fn ended(&mut self, id: ConnectionId, end: SocketEnd, _: Time, actions: &mut impl Actions<Mail>) {
        self.active = true;
        self.lost(id, &Failure::Socket(end), Close::Orderly, actions);
    }

    fn mail(&mut self, Mail::Start(world): Mail, now: Time, _: &mut impl Actions<Mail>) {
        self.now_ns = world.now_ns();
        self.world = Some(world);
        self.clock_offset_us = now.as_micros() as i64 - (self.now_ns / 1_000) as i64;
        self.begin();
    }

    fn advance(&mut self, _: Time, actions: &mut impl Actions<Mail>) {
        if self.world.is_some() {
            self.step(actions);
        }
    }

    fn flush(&mut self, _: Time, actions: &mut impl Actions<Mail>) {
        self.feed_senders(actions);
        let mut dirty = std::mem::take(&mut self.dirty);
        for id in dirty.drain(..) {
            self.write_out(id, actions);
        }
        // Whom a failed write made hungry or dirty waits for the next turn, which is asked for here.
        self.again |= !self.dirty.is_empty();
        self.dirty.append(&mut dirty);
    }

    fn next_deadline(&self) -> Option<Time> {
        self.next_ns().map(|ns| {
            let us = ns.div_ceil(1_000) as i64 + self.clock_offset_us;
            Time::from_micros(us.max(0) as u64)
        })
    }

    fn finished(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }
}
