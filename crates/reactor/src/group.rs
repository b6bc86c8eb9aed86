//! Groups of machines, their threads, and the handles by which other threads reach them.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use engine::{Machine, ShardId};

use crate::driver::{Driver, Signal};
use crate::epoll::Epoll;
use crate::mail::{Wake, mesh};
use crate::turn::{Clock, Worker};
use crate::{DriverKind, Options, TurnStats, pin};

/// A socket on its way to a machine.
#[derive(Debug)]
pub struct Adoption<O> {
    /// The socket, in any blocking mode. It may still be connecting (begun without blocking): writes wait until it
    /// is connected, and a connect that fails is a [`SocketEnd::Reset`](engine::SocketEnd::Reset).
    pub stream: TcpStream,
    /// TLS of the socket, if it speaks TLS. The handshake may be over, under way or not begun.
    pub tls: Option<Box<rustls::Connection>>,
    /// The first bytes of the stream, read before the hand-off: always plaintext. With TLS, plaintext that the
    /// connection still holds comes after it; ciphertext read but not used must be fed to the connection first.
    pub received: Bytes,
    /// What the machine is told.
    pub opening: O,
}

/// What another thread puts into a machine's inbox.
pub(crate) enum Item<M: Machine> {
    Adopt(Adoption<M::Opening>),
    Mail(M::Mail),
    Call(Call<M>),
}

/// What [`Handle::call`] runs: it gets the machine and the counters of its thread.
pub type Call<M> = Box<dyn FnOnce(&mut M, &TurnStats) + Send>;

/// What a machine's thread and its handles share.
pub(crate) struct Shared<M: Machine> {
    pub(crate) inbox: ArrayQueue<Item<M>>,
    pub(crate) wake: Arc<Wake>,
    stop: AtomicBool,
    ended: AtomicBool,
}

impl<M: Machine> Shared<M> {
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn send(&self, item: Item<M>) -> Result<(), Item<M>> {
        if self.ended.load(Ordering::SeqCst) {
            return Err(item);
        }
        self.inbox.push(item)?;
        self.wake.notify();
        if self.ended.load(Ordering::SeqCst) {
            // The thread ended meanwhile: sockets must not stay open in a box that nobody empties.
            self.empty();
        }
        Ok(())
    }

    fn empty(&self) {
        while self.inbox.pop().is_some() {}
    }
}

/// Reaches one machine from any thread. Cheap to clone; it does not keep the machine's thread alive.
pub struct Handle<M: Machine> {
    shared: Arc<Shared<M>>,
}

impl<M: Machine> Clone for Handle<M> {
    fn clone(&self) -> Handle<M> {
        Handle {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<M: Machine> Handle<M> {
    /// Hands a socket to the machine.
    ///
    /// # Errors
    /// Gives the adoption back if the inbox is full or the thread has ended.
    pub fn adopt(&self, adoption: Adoption<M::Opening>) -> Result<(), Adoption<M::Opening>> {
        match self.shared.send(Item::Adopt(adoption)) {
            Err(Item::Adopt(adoption)) => Err(adoption),
            _ => Ok(()),
        }
    }

    /// Sends mail to the machine. Mail of one thread arrives in order. A request waits in the inbox, and what is behind
    /// it, while the machine's own mail to others is held back beyond the limit.
    ///
    /// # Errors
    /// Gives the mail back if the inbox is full or the thread has ended.
    pub fn mail(&self, mail: M::Mail) -> Result<(), M::Mail> {
        match self.shared.send(Item::Mail(mail)) {
            Err(Item::Mail(mail)) => Err(mail),
            _ => Ok(()),
        }
    }

    /// Runs `call` on the machine's thread, between two events; for snapshots of counters. It must not block.
    ///
    /// # Errors
    /// Gives the call back if the inbox is full or the thread has ended.
    pub fn call(&self, call: Call<M>) -> Result<(), Call<M>> {
        match self.shared.send(Item::Call(call)) {
            Err(Item::Call(call)) => Err(call),
            _ => Ok(()),
        }
    }

    /// Ends the thread after its present turn. Its sockets are dropped as they are.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.notify();
    }

    /// True when the thread has ended, whatever the reason.
    pub fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::SeqCst)
    }
}

/// A running group of machines. Dropping it leaves the threads running.
pub struct Group<M: Machine> {
    /// The machines by shard.
    pub handles: Vec<Handle<M>>,
    threads: Vec<JoinHandle<io::Result<M>>>,
    driver: DriverKind,
}

impl<M: Machine> Group<M> {
    /// The driver in use; never [`DriverKind::Auto`].
    pub fn driver(&self) -> DriverKind {
        self.driver
    }

    /// Waits for all threads to end and gives the machines back by shard.
    ///
    /// # Errors
    /// The first thread's whose driver could not go on.
    ///
    /// # Panics
    /// If a machine panicked, with its panic.
    pub fn join(self) -> io::Result<Vec<M>> {
        // All are waited for before the first error is told.
        let ended: Vec<_> = self.threads.into_iter().map(JoinHandle::join).collect();
        let machine = |result: thread::Result<io::Result<M>>| {
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        ended.into_iter().map(machine).collect()
    }
}

/// What [`DriverKind::Auto`] means. The example `cost` measures both against a bare loop of `send` in one run: with
/// 1,000 sockets they cost the same within the noise, for fan-out as for echo; with 8,000 epoll stays at 0.93 to 1.05
/// of the bare loop and io_uring takes 1.11 to 1.24 of it, and 1.19 of epoll for an echo. Epoll also needs no
/// permission and takes a write at once.
const AUTO: DriverKind = DriverKind::Epoll;

/// Starts `count` machines, each made by `make` and run by a thread of its own.
///
/// # Errors
/// The driver or a thread could not be made, or the pinning names a node that is not there. Nothing runs then.
pub fn spawn<M: Machine + Send + 'static>(
    count: usize,
    options: &Options,
    make: impl FnMut(ShardId) -> M,
) -> io::Result<Group<M>> {
    let wanted = if options.driver == DriverKind::Auto {
        AUTO
    } else {
        options.driver
    };
    if wanted == DriverKind::Uring {
        #[cfg(target_os = "linux")]
        match drivers::<crate::uring::Uring>(count, options) {
            Ok(drivers) => return launch(drivers, options, make, DriverKind::Uring),
            Err(error) => tracing::warn!(%error, "io_uring cannot be used; epoll is used instead"),
        }
        #[cfg(not(target_os = "linux"))]
        tracing::warn!("there is no io_uring on this system; readiness is used instead");
    }
    launch(
        drivers::<Epoll>(count, options)?,
        options,
        make,
        DriverKind::Epoll,
    )
}

/// A driver, its scratch memory and what wakes it.
type Made<D> = (D, <D as Driver>::Scratch, Box<dyn Signal>);

fn drivers<D: Driver>(count: usize, options: &Options) -> io::Result<Vec<Made<D>>> {
    (0..count).map(|_| D::new(options)).collect()
}

/// Starts a thread for each of `made`.
fn launch<M: Machine + Send + 'static, D: Driver + 'static>(
    made: Vec<Made<D>>,
    options: &Options,
    mut make: impl FnMut(ShardId) -> M,
    driver: DriverKind,
) -> io::Result<Group<M>> {
    let pins = pin::plan(options.pin, made.len())?;
    let mut drivers = Vec::with_capacity(made.len());
    let mut wakes = Vec::with_capacity(made.len());
    for (driver, scratch, signal) in made {
        drivers.push((driver, scratch));
        wakes.push(Arc::new(Wake::new(signal)));
    }
    let clock = Clock::new();
    let ends = mesh(&wakes, options.ring.max(1));
    let mut group = Group {
        handles: Vec::new(),
        threads: Vec::new(),
        driver,
    };
    for (number, (((driver, ends), wake), pin)) in
        drivers.into_iter().zip(ends).zip(wakes).zip(pins).enumerate()
    {
        let shared = Arc::new(Shared {
            inbox: ArrayQueue::new(options.ring.max(1)),
            wake,
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let shard = ShardId(u16::try_from(number).map_err(io::Error::other)?);
        let worker = Worker::new(
            make(shard),
            driver,
            ends,
            Arc::clone(&shared),
            options.batch.max(1),
            clock,
        );
        let thread = thread::Builder::new().name(format!("{}-{number}", options.name));
        let end = End {
            shared: Arc::clone(&shared),
        };
        let running = thread.spawn(move || {
            let _end = end;
            if let Some(cpus) = pin
                && let Err(error) = pin::apply(&cpus)
            {
                tracing::warn!(%error, ?cpus, "cannot pin a shard's thread");
            }
            worker.run()
        });
        match running {
            Ok(thread) => group.threads.push(thread),
            Err(error) => {
                group.handles.iter().for_each(Handle::stop);
                return Err(error);
            }
        }
        group.handles.push(Handle { shared });
    }
    Ok(group)
}

/// Lives as long as a machine's thread and, when that ends in whatever way, closes its inbox.
struct End<M: Machine> {
    shared: Arc<Shared<M>>,
}

impl<M: Machine> Drop for End<M> {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.empty();
    }
}
