//! Mail between machines and the waking of threads that sleep.
//!
//! Each ordered pair of machines has two single-producer rings: one for requests, one for all other mail. What does not
//! fit waits on the sender's side, in order, and is offered again each turn; nothing is lost. Two bounds follow from
//! what a thread holds back so. With too much of any kind it reads no sockets, so it makes no more requests of its own.
//! With too much that is not requests, which is what requests of others made it send, it takes no more requests; these
//! then fill their ring, and the pressure reaches the thread that sends them. Mail that is no request is always taken
//! and makes no mail, so it always drains: two machines that are full of each other still come free.
//!
//! There is no lock, and a thread that is awake is never signalled.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use engine::{Letter, ShardId};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::driver::Signal;

/// Bytes under way in one ring, above which it takes no more; one letter always fits an empty ring. A group of `n`
/// machines has `2 n (n - 1)` rings, which together keep at most that many times this alive (less what they share).
pub(crate) const MAIL_BYTES_MAX: usize = 8 << 20;

/// Letters held back for full rings, over all receivers, above which a thread is [`Outlets::is_full`].
pub(crate) const HELD_MAX: usize = 4096;

/// Bytes of the same. A thread keeps at most twice this alive (requests, and the rest), and beyond it what one turn
/// makes: the limits are looked at before an event or letter is taken, not while a machine sends.
pub(crate) const HELD_BYTES_MAX: usize = 16 << 20;

const _: () = assert!(HELD_BYTES_MAX >= MAIL_BYTES_MAX);

/// The one flag between a thread that may sleep and all that may wake it.
pub(crate) struct Wake {
    sleeping: AtomicBool,
    signal: Box<dyn Signal>,
}

impl Wake {
    pub(crate) fn new(signal: Box<dyn Signal>) -> Wake {
        Wake {
            sleeping: AtomicBool::new(false),
            signal,
        }
    }

    /// Says that the thread will sleep unless the check that must follow finds work.
    pub(crate) fn lie_down(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        // Pairs with the fence in `notify`: either the sender sees the flag or the check sees what was sent.
        fence(Ordering::SeqCst);
    }

    /// Takes the flag down again; true if another thread had done so, that is, woken this one.
    pub(crate) fn get_up(&self) -> bool {
        !self.sleeping.swap(false, Ordering::Acquire)
    }

    /// After something was put where the thread looks: wakes it if it sleeps.
    pub(crate) fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel) {
            self.signal.signal();
        }
    }
}

/// A letter and its bytes, asked for once so that both ends count the same.
struct Weighed<Mail> {
    mail: Mail,
    bytes: usize,
}

/// What the two ends of a ring share besides it.
#[derive(Default)]
struct Flow {
    /// Bytes the receiver has taken since the start, wrapping. Written by the receiver only.
    taken_bytes: AtomicUsize,
    /// The receiver must wake the sender when it has made room. Written by the sender only: a receiver that took it
    /// down could undo a later word of the sender.
    starved: AtomicBool,
}

/// Letters and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub letters: usize,
    pub bytes: usize,
}

impl Held {
    fn is_over(self) -> bool {
        self.letters > HELD_MAX || self.bytes > HELD_BYTES_MAX
    }

    fn add(&mut self, bytes: usize) {
        self.letters += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.letters -= 1;
        self.bytes -= bytes;
    }
}

/// The sending end of one ring.
struct Outlet<Mail> {
    ring: Producer<Weighed<Mail>>,
    /// Bytes put into the ring since the start, wrapping.
    sent_bytes: usize,
    /// What did not fit, oldest first.
    held: VecDeque<Weighed<Mail>>,
    flow: Arc<Flow>,
    receiver: Arc<Wake>,
    /// Something was put into the ring since the receiver was last notified.
    fresh: bool,
}

impl<Mail> Outlet<Mail> {
    /// True if the ring takes a letter of so many bytes now.
    fn has_room(&self, bytes: usize) -> bool {
        let under_way = self
            .sent_bytes
            .wrapping_sub(self.flow.taken_bytes.load(Ordering::Acquire));
        (under_way == 0 || under_way.saturating_add(bytes) <= MAIL_BYTES_MAX) && !self.ring.is_full()
    }

    /// Puts `letter` into the ring, which has room.
    fn put(&mut self, letter: Weighed<Mail>) {
        self.sent_bytes = self.sent_bytes.wrapping_add(letter.bytes);
        self.fresh = true;
        let pushed = self.ring.push(letter);
        assert!(pushed.is_ok(), "a ring with room takes a letter");
    }

    /// Sends `letter` or holds it, which `held` counts.
    fn send(&mut self, letter: Weighed<Mail>, held: &mut Held) {
        if self.held.is_empty() && self.has_room(letter.bytes) {
            self.put(letter);
        } else {
            held.add(letter.bytes);
            self.held.push_back(letter);
        }
    }

    /// True if `refill` would move something.
    fn can_move(&self) -> bool {
        self.held
            .front()
            .is_some_and(|letter| self.has_room(letter.bytes) || self.ring.is_abandoned())
    }

    /// Moves held mail into the ring, as far as it goes.
    fn refill(&mut self, held: &mut Held) {
        while self.can_move()
            && let Some(letter) = self.held.pop_front()
        {
            held.remove(letter.bytes);
            // Nobody would read what is sent to a thread that has ended.
            if !self.ring.is_abandoned() {
                self.put(letter);
            }
        }
    }
}

/// All sending ends of one machine.
pub(crate) struct Outlets<Mail> {
    /// By target: the ring of requests and that of other mail; `None` for the machine itself.
    to: Vec<Option<[Outlet<Mail>; 2]>>,
    held_requests: Held,
    held_others: Held,
}

impl<Mail: Letter> Outlets<Mail> {
    /// Sends to `to`, which is another machine of the group, behind what of the same kind was sent there before.
    pub(crate) fn send(&mut self, to: ShardId, mail: Mail) {
        let outlets = self.to.get_mut(usize::from(to.0)).and_then(Option::as_mut);
        let [requests, others] = outlets.expect("mail goes to another machine of the group");
        let bytes = mail.bytes();
        if mail.is_request() {
            requests.send(Weighed { mail, bytes }, &mut self.held_requests);
        } else {
            others.send(Weighed { mail, bytes }, &mut self.held_others);
        }
    }
}

impl<Mail> Outlets<Mail> {
    /// Mail held back.
    pub(crate) fn held(&self) -> Held {
        Held {
            letters: self.held_requests.letters + self.held_others.letters,
            bytes: self.held_requests.bytes + self.held_others.bytes,
        }
    }

    /// True if so much is held back that nothing from outside the group may add to it.
    pub(crate) fn is_full(&self) -> bool {
        self.held().is_over()
    }

    /// True if requests of other machines may be taken. Held requests do not count: if they did, two machines full of
    /// requests to each other would wait for ever.
    pub(crate) fn may_take_requests(&self) -> bool {
        !self.held_others.is_over()
    }

    /// Offers held mail again and wakes receivers of new mail. Called once, at the end of a turn.
    pub(crate) fn dispatch(&mut self) {
        for [requests, others] in self.to.iter_mut().flatten() {
            for (outlet, held) in [
                (&mut *requests, &mut self.held_requests),
                (&mut *others, &mut self.held_others),
            ] {
                if !outlet.held.is_empty() {
                    outlet.refill(held);
                    // Set before the check of `can_move`, so that room made after that check is announced.
                    let starves = !outlet.held.is_empty();
                    outlet.flow.starved.store(starves, Ordering::Relaxed);
                }
            }
            if std::mem::take(&mut requests.fresh) | std::mem::take(&mut others.fresh) {
                requests.receiver.notify();
            }
        }
    }

    /// True if some held mail would find room now. Between `Wake::lie_down` and sleep.
    pub(crate) fn can_move(&self) -> bool {
        self.held().letters > 0 && self.to.iter().flatten().flatten().any(Outlet::can_move)
    }
}

/// The receiving end of one ring.
struct Inlet<Mail> {
    ring: Consumer<Weighed<Mail>>,
    flow: Arc<Flow>,
    sender: Arc<Wake>,
    /// It brings requests.
    requests: bool,
}

/// All receiving ends of one machine: two for each machine that may mail it.
pub(crate) struct Inlets<Mail> {
    from: Vec<Inlet<Mail>>,
}

impl<Mail> Inlets<Mail> {
    /// How many rings lead to this machine.
    pub(crate) fn len(&self) -> usize {
        self.from.len()
    }

    /// True if nothing is there to be taken, of requests only if they `may_take_requests`.
    pub(crate) fn is_empty(&self, may_take_requests: bool) -> bool {
        self.from
            .iter()
            .all(|inlet| (inlet.requests && !may_take_requests) || inlet.ring.is_empty())
    }

    /// True if the ring with number `inlet` brings requests.
    pub(crate) fn brings_requests(&self, inlet: usize) -> bool {
        self.from[inlet].requests
    }

    /// Gives up to `share` letters of the ring with number `inlet` to `take`, until that is false; returns how many.
    pub(crate) fn drain(&mut self, inlet: usize, share: usize, mut take: impl FnMut(Mail) -> bool) -> usize {
        let inlet = &mut self.from[inlet];
        let (mut taken, mut bytes) = (0, 0usize);
        while taken < share
            && let Ok(letter) = inlet.ring.pop()
        {
            taken += 1;
            bytes = bytes.wrapping_add(letter.bytes);
            if !take(letter.mail) {
                break;
            }
        }
        if taken > 0 {
            let before = inlet.flow.taken_bytes.load(Ordering::Relaxed);
            inlet
                .flow
                .taken_bytes
                .store(before.wrapping_add(bytes), Ordering::Release);
            // Pairs with the fence in the sender's `lie_down`: it sees the room, or this sees that it starves.
            fence(Ordering::SeqCst);
            if inlet.flow.starved.load(Ordering::Relaxed) {
                inlet.sender.notify();
            }
        }
        taken
    }
}

impl<Mail> Drop for Inlets<Mail> {
    /// Senders that wait for room must learn that there will be none.
    fn drop(&mut self) {
        for Inlet { ring, sender, .. } in self.from.drain(..) {
            drop(ring);
            sender.notify();
        }
    }
}

/// Makes a ring of `entries` from one thread to another, given what wakes them.
fn ring<Mail>(
    entries: usize,
    requests: bool,
    sender: &Arc<Wake>,
    receiver: &Arc<Wake>,
) -> (Outlet<Mail>, Inlet<Mail>) {
    let (producer, consumer) = RingBuffer::new(entries);
    let flow = Arc::new(Flow::default());
    let outlet = Outlet {
        ring: producer,
        sent_bytes: 0,
        held: VecDeque::new(),
        flow: Arc::clone(&flow),
        receiver: Arc::clone(receiver),
        fresh: false,
    };
    let inlet = Inlet {
        ring: consumer,
        flow,
        sender: Arc::clone(sender),
        requests,
    };
    (outlet, inlet)
}

/// Connects machines, given what wakes each, by two rings of `entries` for each ordered pair.
pub(crate) fn mesh<Mail>(wakes: &[Arc<Wake>], entries: usize) -> Vec<(Outlets<Mail>, Inlets<Mail>)> {
    let mut ends: Vec<(Outlets<Mail>, Inlets<Mail>)> = wakes
        .iter()
        .map(|_| {
            let outlets = Outlets {
                to: Vec::new(),
                held_requests: Held::default(),
                held_others: Held::default(),
            };
            (outlets, Inlets { from: Vec::new() })
        })
        .collect();
    for from in 0..wakes.len() {
        for to in 0..wakes.len() {
            if from == to {
                ends[from].0.to.push(None);
                continue;
            }
            let (requests, requests_in) = ring(entries, true, &wakes[from], &wakes[to]);
            let (others, others_in) = ring(entries, false, &wakes[from], &wakes[to]);
            ends[from].0.to.push(Some([requests, others]));
            ends[to].1.from.extend([requests_in, others_in]);
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Signal for Arc<AtomicUsize> {
        fn signal(&self) {
            self.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Parcel {
        number: usize,
        bytes: usize,
    }

    impl Letter for Parcel {
        fn bytes(&self) -> usize {
            self.bytes
        }

        /// Even numbers ask, odd ones do not.
        fn is_request(&self) -> bool {
            self.number.is_multiple_of(2)
        }
    }

    const OTHER: ShardId = ShardId(1);

    /// A sender with what counts its wake-ups, and its receiver.
    struct Pair {
        outlets: Outlets<Parcel>,
        inlets: Inlets<Parcel>,
        wake: Arc<Wake>,
        signals: Arc<AtomicUsize>,
    }

    fn pair(entries: usize) -> Pair {
        let signals = Arc::new(AtomicUsize::new(0));
        let wake = |signals: &Arc<AtomicUsize>| Arc::new(Wake::new(Box::new(Arc::clone(signals))));
        let wakes = [wake(&signals), wake(&Arc::default())];
        let mut ends = mesh(&wakes, entries).into_iter();
        let (Some((outlets, _)), Some((_, inlets))) = (ends.next(), ends.next()) else {
            panic!("two ends");
        };
        let [wake, _] = wakes;
        Pair {
            outlets,
            inlets,
            wake,
            signals,
        }
    }

    /// Numbers taken from the ring of requests, or the other.
    fn take(inlets: &mut Inlets<Parcel>, requests: bool, most: usize) -> Vec<usize> {
        let mut numbers = Vec::new();
        inlets.drain(usize::from(!requests), most, |parcel| {
            numbers.push(parcel.number);
            true
        });
        numbers
    }

    #[test]
    fn each_kind_has_its_own_ring_and_order() {
        let mut pair = pair(4);
        (0..12).for_each(|number| pair.outlets.send(OTHER, Parcel { number, bytes: 1 }));
        assert_eq!(pair.outlets.held(), Held { letters: 4, bytes: 4 });
        assert_eq!(take(&mut pair.inlets, false, 9), [1, 3, 5, 7]);
        pair.outlets.dispatch();
        assert_eq!(take(&mut pair.inlets, false, 9), [9, 11]);
        assert_eq!(take(&mut pair.inlets, true, 9), [0, 2, 4, 6]);
        pair.outlets.dispatch();
        assert_eq!(take(&mut pair.inlets, true, 9), [8, 10]);
        assert_eq!(pair.outlets.held(), Held::default());
    }

    #[test]
    fn requests_left_waiting_are_no_news() {
        let mut pair = pair(4);
        pair.outlets.send(OTHER, Parcel { number: 0, bytes: 1 });
        assert!(pair.inlets.is_empty(false) && !pair.inlets.is_empty(true));
        pair.outlets.send(OTHER, Parcel { number: 1, bytes: 1 });
        assert!(!pair.inlets.is_empty(false));
    }

    #[test]
    fn a_ring_is_bounded_in_bytes_but_takes_one_letter_of_any_size() {
        let mut pair = pair(16);
        let sizes = [MAIL_BYTES_MAX + 1, 1, MAIL_BYTES_MAX, 0];
        for (place, bytes) in sizes.into_iter().enumerate() {
            let number = 2 * place;
            pair.outlets.send(OTHER, Parcel { number, bytes });
        }
        assert_eq!(pair.outlets.held().letters, 3);
        for number in [0, 2] {
            assert!(!pair.outlets.can_move());
            assert_eq!(take(&mut pair.inlets, true, 9), [number]);
            assert!(pair.outlets.can_move());
            pair.outlets.dispatch();
        }
        assert_eq!(
            take(&mut pair.inlets, true, 9),
            [4, 6],
            "together exactly the limit"
        );
    }

    #[test]
    fn only_held_answers_stop_the_taking_of_requests() {
        let mut pair = pair(1);
        let bytes = HELD_BYTES_MAX / 2 + 1;
        (0..3).for_each(|place| {
            pair.outlets.send(
                OTHER,
                Parcel {
                    number: 2 * place,
                    bytes,
                },
            );
        });
        assert!(pair.outlets.is_full() && pair.outlets.may_take_requests());
        (0..3).for_each(|place| {
            pair.outlets.send(
                OTHER,
                Parcel {
                    number: 2 * place + 1,
                    bytes,
                },
            );
        });
        assert!(!pair.outlets.may_take_requests());
    }

    #[test]
    fn a_sender_is_woken_for_as_long_as_it_starves() {
        let mut pair = pair(2);
        (0..3).for_each(|place| {
            let number = 2 * place;
            pair.outlets.send(OTHER, Parcel { number, bytes: 1 });
        });
        pair.outlets.dispatch();
        for (number, signals) in [(0, 1), (2, 2)] {
            pair.wake.lie_down();
            assert_eq!(take(&mut pair.inlets, true, 1), [number]);
            // Its word stands until it takes it back itself.
            assert_eq!(pair.signals.load(Ordering::Relaxed), signals);
        }
        pair.outlets.dispatch();
        pair.wake.lie_down();
        assert_eq!(take(&mut pair.inlets, true, 9), [4]);
        assert_eq!(pair.signals.load(Ordering::Relaxed), 2, "it starves no more");
    }

    #[test]
    fn a_receiver_that_ends_wakes_its_senders_and_frees_what_they_hold() {
        let mut pair = pair(1);
        (0..3).for_each(|number| pair.outlets.send(OTHER, Parcel { number, bytes: 1 }));
        pair.outlets.dispatch();
        pair.wake.lie_down();
        assert!(!pair.outlets.can_move());
        drop(pair.inlets);
        assert_eq!(pair.signals.load(Ordering::Relaxed), 1);
        assert!(pair.outlets.can_move());
        pair.outlets.dispatch();
        assert_eq!(pair.outlets.held(), Held::default());
    }
}
