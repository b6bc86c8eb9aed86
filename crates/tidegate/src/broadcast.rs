//! The room that all are in: what a broadcast server does with a message.
//!
//! A connection on any path but [`ECHO_PATH`] joins the room, and what it sends goes to all others unchanged; one on
//! [`ECHO_PATH`] gets its own messages back and hears nothing else. Runs on the shard's thread and never blocks.
//!
//! The shard itself answers the upgrade, once the connection is in the room: whoever has its 101 hears what clients of its shard
//! send. The room's home may be another shard, which learns of a shard's first member an instant later.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::{Application, Cause, ConnectionId, Core, Message, RoomId};

use crate::middleware::{Context, Event, Layer, Next, Opened};

/// The path whose connections talk to themselves.
pub const ECHO_PATH: &str = "/echo";

/// The name of the one room.
const ROOM: &str = "broadcast";

/// Counts open connections of all shards, so that the upgrade can be refused before it is answered.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    taken: AtomicUsize,
}

impl Seats {
    /// Takes a seat if fewer than `connections_max` are taken.
    pub(crate) fn take(self: &Arc<Seats>, connections_max: usize) -> Option<Seat> {
        let below = |taken: usize| (taken < connections_max).then_some(taken + 1);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, below)
            .ok()?;
        Some(Seat(Some(Arc::clone(self))))
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    fn free(&self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place for one connection; free again when dropped, wherever on its way to a shard the connection fails.
#[derive(Debug)]
pub(crate) struct Seat(Option<Arc<Seats>>);

impl Seat {
    /// The connection has arrived: its end frees the seat, and nothing is kept for it until then.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(seats) = &self.0 {
            seats.free();
        }
    }
}

/// What the upgrade tells a shard of a connection.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub path: Box<str>,
    pub peer: SocketAddr,
    pub seat: Seat,
}

/// Where a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Nowhere: a layer kept its opening from the room.
    #[default]
    Outside,
    Room,
    Echo,
}

/// The innermost handler of a shard: the room, and who echoes.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Valid while anyone of this shard is in it.
    room: Option<RoomId>,
    /// By slot, with the generation it is true for.
    places: Vec<(u32, Place)>,
}

impl Room {
    /// Does what the broadcast server is for.
    pub(crate) fn handle(&mut self, context: &mut Context<'_>, event: Event<'_>) {
        let connection = context.connection();
        match event {
            Event::Open(opened) if opened.path == ECHO_PATH => self.put(connection, Place::Echo),
            Event::Open(_) => match context.core().join(connection, ROOM) {
                Ok(room) => {
                    self.room = Some(room);
                    self.put(connection, Place::Room);
                }
                // A layer has closed it already.
                Err(error) => tracing::debug!(%connection, ?error, "not let into the room"),
            },
            Event::Message(message) => match (self.place(connection), self.room) {
                (Place::Room, Some(room)) => context.core().publish(room, message, Some(connection), None),
                (Place::Echo, _) => {
                    context.send(message);
                }
                _ => {}
            },
            Event::Close(_) => self.put(connection, Place::Outside),
        }
    }

    fn place(&self, connection: ConnectionId) -> Place {
        match self.places.get(connection.index as usize) {
            Some(&(generation, place)) if generation == connection.generation => place,
            _ => Place::Outside,
        }
    }

    fn put(&mut self, connection: ConnectionId, place: Place) {
        let index = connection.index as usize;
        if index >= self.places.len() {
            self.places.resize(index + 1, (0, Place::Outside));
        }
        // The end of a connection may be told after its slot was taken by the next.
        if place == Place::Outside && self.places[index].0 != connection.generation {
            return;
        }
        self.places[index] = (connection.generation, place);
    }
}

/// What a shard runs: the layers around its room.
pub(crate) struct Broadcast {
    layers: Arc<[Box<dyn Layer>]>,
    room: Room,
    seats: Arc<Seats>,
}

impl Broadcast {
    pub(crate) fn new(layers: Arc<[Box<dyn Layer>]>, seats: Arc<Seats>) -> Broadcast {
        Broadcast {
            layers,
            room: Room::default(),
            seats,
        }
    }

    fn run(&mut self, core: &mut Core, connection: ConnectionId, event: Event<'_>) {
        Next::new(&self.layers, &mut self.room).run(&mut Context::new(core, connection), event);
    }
}

impl Application for Broadcast {
    type Info = Arrival;

    fn opened(&mut self, core: &mut Core, connection: ConnectionId, arrival: Arrival) {
        let Arrival { path, peer, seat } = arrival;
        seat.keep();
        self.run(core, connection, Event::Open(Opened { path: &path, peer }));
    }

    fn message(&mut self, core: &mut Core, connection: ConnectionId, message: Message<'_>) {
        self.run(core, connection, Event::Message(message));
    }

    fn closed(&mut self, core: &mut Core, connection: ConnectionId, cause: Cause) {
        self.seats.free();
        self.run(core, connection, Event::Close(cause));
    }
}
