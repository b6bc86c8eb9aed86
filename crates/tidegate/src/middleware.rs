//! The chain that each event of a connection passes: layers around the room.
//!
//! A layer sees that a connection opened, a message came, a connection closed; it may look, change, answer or end it, and
//! passes on what the rest is to see with [`Next::run`] (or does not). Layers run on the shard's own thread, once for each
//! message, never for each delivery, and must not block. One layer value serves all shards, so what it keeps is
//! atomic. See [`layers`] for the ready-made ones and `examples/broadcast.rs` for one of your own:
//!
//! ```
//! use tidegate::{Context, Event, Next};
//!
//! /// Lets no message through that is longer than a line of text.
//! fn short_only(context: &mut Context<'_>, event: Event<'_>, next: Next<'_>) {
//!     match event {
//!         Event::Message(message) if message.payload.len() > 80 => {
//!             context.close(1008, "at most 80 bytes, please");
//!         }
//!         event => next.run(context, event),
//!     }
//! }
//! # let _ = tidegate::BroadcastServer::builder(Default::default()).layer(short_only);
//! ```

pub mod layers;

use std::net::SocketAddr;

use engine::{Cause, ConnectionId, Core, Lane, Message, ShardId};

use crate::broadcast::Room;
use crate::control::Control;

/// What happens to a connection. Each one opens once, then come its messages, then it closes once.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The upgrade is done.
    Open(Opened<'a>),
    /// A whole message came.
    Message(Message<'a>),
    /// The end began: nothing more comes, and nothing can be sent.
    Close(Cause),
}

/// What is known of a new connection.
#[derive(Clone, Copy, Debug)]
pub struct Opened<'a> {
    /// The path of the upgrade request, without its query.
    pub path: &'a str,
    /// The other end of the socket: the client, or the last proxy before it.
    pub peer: SocketAddr,
}

/// A connection of a shard, for the time of one event.
#[derive(Debug)]
pub struct Context<'a> {
    core: &'a mut Core,
    connection: ConnectionId,
}

impl<'a> Context<'a> {
    pub(crate) fn new(core: &'a mut Core, connection: ConnectionId) -> Context<'a> {
        Context { core, connection }
    }

    /// Which connection this is. Ids of different shards may be equal.
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }

    /// Which shard it lives on.
    pub fn shard(&self) -> ShardId {
        self.core.shard()
    }

    /// Sends a message to this connection alone. False if it was not queued: the connection is closing or its queue
    /// is full.
    pub fn send(&mut self, message: Message<'_>) -> bool {
        self.core.send(self.connection, Lane::Normal, message)
    }

    /// Begins to close this connection; `code` as in RFC 6455 section 7.4, the reason up to 123 bytes.
    pub fn close(&mut self, code: u16, reason: &str) {
        self.core.close(self.connection, code, reason);
    }

    /// The shard itself, for all else an application may do: rooms, publishing, other connections.
    pub fn core(&mut self) -> &mut Core {
        self.core
    }
}

/// One layer of the chain. Closures and functions of this shape are layers too.
pub trait Layer: Send + Sync + 'static {
    /// Handles an event. What lies inside sees it only if `next` is run.
    fn handle(&self, context: &mut Context<'_>, event: Event<'_>, next: Next<'_>);

    /// Called once when the server starts: the place to register probes and metrics.
    fn started(&self, control: &Control) {
        let _ = control;
    }
}

impl<F> Layer for F
where
    F: Fn(&mut Context<'_>, Event<'_>, Next<'_>) + Send + Sync + 'static,
{
    fn handle(&self, context: &mut Context<'_>, event: Event<'_>, next: Next<'_>) {
        self(context, event, next);
    }
}

/// What lies inside a layer: the other layers, then the room.
pub struct Next<'a> {
    layers: &'a [Box<dyn Layer>],
    room: &'a mut Room,
}

impl<'a> Next<'a> {
    pub(crate) fn new(layers: &'a [Box<dyn Layer>], room: &'a mut Room) -> Next<'a> {
        Next { layers, room }
    }

    /// Hands an event, the same or another, to what lies inside.
    pub fn run(self, context: &mut Context<'_>, event: Event<'_>) {
        match self.layers.split_first() {
            Some((layer, rest)) => layer.handle(
                context,
                event,
                Next {
                    layers: rest,
                    room: self.room,
                },
            ),
            None => self.room.handle(context, event),
        }
    }
}
