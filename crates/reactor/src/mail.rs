//! Mail between machines and the waking of threads that sleep.
//!
//! Each ordered pair of machines has one single-producer ring. What does not fit waits on the sender's side, in
//! order, and is offered again each turn; nothing is lost. A sender with too much of it stops reading sockets (see
//! [`HELD_MAX`]) but goes on taking its own mail, so two machines that are full of each other still come free.
//! There is no lock, and a thread that is awake is never signalled.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use engine::ShardId;
use rtrb::{Consumer, Producer, PushError, RingBuffer};

use crate::driver::Signal;

/// Mails held back for full rings, over all targets, above which a thread reads no more sockets. They cost what the
/// mails themselves cost. Mail that is the answer to mail may go beyond; it is bounded by the rings it answers.
pub(crate) const HELD_MAX: usize = 4096;

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

/// The sending end towards one machine.
struct Outlet<Mail> {
    ring: Producer<Mail>,
    /// What did not fit, oldest first.
    held: VecDeque<Mail>,
    /// The receiver must wake this thread when it has made room.
    starved: Arc<AtomicBool>,
    receiver: Arc<Wake>,
    /// Something was put into the ring since the receiver was last notified.
    fresh: bool,
}

impl<Mail> Outlet<Mail> {
    /// Sends `mail` or holds it; gives how many more are held.
    fn send(&mut self, mail: Mail) -> usize {
        if self.held.is_empty() {
            match self.ring.push(mail) {
                Ok(()) => {
                    self.fresh = true;
                    return 0;
                }
                Err(PushError::Full(mail)) => self.held.push_back(mail),
            }
        } else {
            self.held.push_back(mail);
        }
        1
    }

    /// Moves held mail into the ring; gives how many left.
    fn refill(&mut self) -> usize {
        if self.ring.is_abandoned() {
            // The receiver's thread has ended: nobody will read this.
            let dropped = self.held.len();
            self.held.clear();
            return dropped;
        }
        let mut moved = 0;
        while let Some(mail) = self.held.pop_front() {
            if let Err(PushError::Full(mail)) = self.ring.push(mail) {
                self.held.push_front(mail);
                break;
            }
            moved += 1;
        }
        self.fresh |= moved > 0;
        moved
    }
}

/// All sending ends of one machine.
pub(crate) struct Outlets<Mail> {
    /// By target; `None` for the machine itself.
    to: Vec<Option<Outlet<Mail>>>,
    held: usize,
}

impl<Mail> Outlets<Mail> {
    /// Sends in order to `to`, which is another machine of the group.
    pub(crate) fn send(&mut self, to: ShardId, mail: Mail) {
        let outlet = self.to.get_mut(usize::from(to.0)).and_then(Option::as_mut);
        let outlet = outlet.expect("mail goes to another machine of the group");
        self.held += outlet.send(mail);
    }

    /// Mails held back.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Offers held mail again and wakes receivers of new mail. Called once, at the end of a turn.
    pub(crate) fn dispatch(&mut self) {
        for outlet in self.to.iter_mut().flatten() {
            if !outlet.held.is_empty() {
                self.held -= outlet.refill();
                // Set before the check of `can_move`, so that room made after that check is announced.
                outlet.starved.store(!outlet.held.is_empty(), Ordering::Relaxed);
            }
            if outlet.fresh {
                outlet.fresh = false;
                outlet.receiver.notify();
            }
        }
    }

    /// True if some held mail would find room now. Between `Wake::lie_down` and sleep.
    pub(crate) fn can_move(&self) -> bool {
        self.held > 0
            && self
                .to
                .iter()
                .flatten()
                .any(|outlet| !outlet.held.is_empty() && !outlet.ring.is_full())
    }
}

/// The receiving end from one machine.
struct Inlet<Mail> {
    ring: Consumer<Mail>,
    starved: Arc<AtomicBool>,
    sender: Arc<Wake>,
}

/// All receiving ends of one machine.
pub(crate) struct Inlets<Mail> {
    from: Vec<Inlet<Mail>>,
}

impl<Mail> Inlets<Mail> {
    /// How many machines may mail this one.
    pub(crate) fn len(&self) -> usize {
        self.from.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.from.iter().all(|inlet| inlet.ring.is_empty())
    }

    /// Gives up to `share` mails of the sender with number `inlet` to `take`; returns how many.
    pub(crate) fn drain(&mut self, inlet: usize, share: usize, mut take: impl FnMut(Mail)) -> usize {
        let inlet = &mut self.from[inlet];
        let mut taken = 0;
        while taken < share {
            let Ok(mail) = inlet.ring.pop() else { break };
            take(mail);
            taken += 1;
        }
        if taken > 0 {
            // Pairs with the fence in the sender's `lie_down`: it sees the room, or this sees that it starves.
            fence(Ordering::SeqCst);
            if inlet.starved.load(Ordering::Relaxed) {
                inlet.starved.store(false, Ordering::Relaxed);
                inlet.sender.notify();
            }
        }
        taken
    }
}

/// Connects machines, given what wakes each, by rings of `ring` entries for each ordered pair.
pub(crate) fn mesh<Mail>(wakes: &[Arc<Wake>], ring: usize) -> Vec<(Outlets<Mail>, Inlets<Mail>)> {
    let mut ends: Vec<(Outlets<Mail>, Inlets<Mail>)> = wakes
        .iter()
        .map(|_| {
            (
                Outlets {
                    to: Vec::new(),
                    held: 0,
                },
                Inlets { from: Vec::new() },
            )
        })
        .collect();
    for from in 0..wakes.len() {
        for to in 0..wakes.len() {
            if from == to {
                ends[from].0.to.push(None);
                continue;
            }
            let (producer, consumer) = RingBuffer::new(ring);
            let starved = Arc::new(AtomicBool::new(false));
            ends[from].0.to.push(Some(Outlet {
                ring: producer,
                held: VecDeque::new(),
                starved: Arc::clone(&starved),
                receiver: Arc::clone(&wakes[to]),
                fresh: false,
            }));
            ends[to].1.from.push(Inlet {
                ring: consumer,
                starved,
                sender: Arc::clone(&wakes[from]),
            });
        }
    }
    ends
}
