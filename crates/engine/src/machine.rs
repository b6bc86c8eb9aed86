//! The contract between a state machine and what drives it.
//!
//! A [`Machine`] owns connections' logic and touches nothing outside itself: each call brings it one event and the
//! present time, and it answers with [`Actions`]. The reactor implements `Actions` with real sockets, the simulator
//! with a virtual network. The server's shard is one machine; the load generator's clients are another.

use std::fmt;

use bytes::Bytes;

use crate::Time;

/// Names one connection of one machine: a slot and how many times the slot was used before.
///
/// Made by the machine in [`Machine::opened`]; the driver keeps its socket under the same `index`. An id of a
/// connection that has ended never matches its successor in the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    /// The slot, dense from 0.
    pub index: u32,
    /// Which use of the slot.
    pub generation: u32,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.index, self.generation)
    }
}

/// Names one shard of a node, dense from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// Why a socket ended, as the driver saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketEnd {
    /// The peer closed its side in order (end of stream).
    Eof,
    /// The connection was reset or failed.
    Reset,
    /// TLS failed: a bad record or alert.
    Tls,
}

/// What became of bytes given to [`Actions::write`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// The operating system has all of them; the machine may write again at once.
    Done,
    /// The driver keeps what is left and sends it as the peer takes it. Exactly one [`Machine::flushed`] (or
    /// [`Machine::ended`]) follows; until then the machine must not write to this connection.
    Pending,
    /// The socket is broken. No further event comes for it; the machine ends the connection and calls
    /// [`Actions::close`].
    Failed,
}

/// How a socket is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// What was written still reaches the peer, then end of stream (TLS: `close_notify` first).
    Orderly,
    /// At once, with a reset: the operating system frees what it still held for a peer that does not read.
    Abort,
}

/// Mail between the machines of a group, as those who carry it see it.
pub trait Letter: Send + 'static {
    /// Bytes of memory that the letter keeps alive while it is under way.
    fn bytes(&self) -> usize;

    /// True if the receiver may send mail because of it: mail that is not a request itself. What is no request makes no mail, but
    /// for a bounded number of letters that say what became of a connection. A receiver whose own mail is held back leaves requests waiting, which
    /// in the end stops the reading of those who send them; it always takes the others, so two full machines cannot wait
    /// for each other. Requests between two machines keep their order, and so do the others; not the two among themselves.
    fn is_request(&self) -> bool;
}

/// What a machine may ask of the world.
pub trait Actions<Mail> {
    /// Sends the concatenation of `parts` (none empty) after all that was written before. Everything due to a
    /// connection in a turn goes in one call, which is one system call.
    fn write(&mut self, connection: ConnectionId, parts: &[Bytes]) -> Wrote;

    /// Ends the sending side: the peer sees end of stream after what was written. Reading goes on.
    fn shutdown(&mut self, connection: ConnectionId);

    /// Lets the socket go; unsent pending bytes are dropped. No event for this id comes afterwards, and the
    /// machine may reuse the slot.
    fn close(&mut self, connection: ConnectionId, how: Close);

    /// Sends mail to another machine of the group (never to itself), in the order that [`Letter::is_request`] states. It arrives in
    /// a later turn.
    fn mail(&mut self, to: ShardId, mail: Mail);
}

/// A state machine that a driver runs. See the module's page.
///
/// A *turn* is: some `opened`, `received`, `flushed`, `ended` and `mail` calls, one `advance`, one `flush`.
/// `now` never goes back. Calls name only connections that are open on the driver's side.
pub trait Machine {
    /// What hand-off tells of a new connection.
    type Opening: Send + 'static;
    /// What machines of a group, and other threads, send to this one.
    type Mail: Letter;

    /// A socket was adopted. Gives it an id, or `None` to refuse it (the driver then drops the socket). The id cannot be written
    /// to before it was returned.
    fn opened(
        &mut self,
        opening: Self::Opening,
        now: Time,
        actions: &mut impl Actions<Self::Mail>,
    ) -> Option<ConnectionId>;

    /// Bytes came in (plaintext, with TLS). The buffer is the driver's scratch memory; the machine may change it in
    /// place and must copy what it keeps.
    fn received(
        &mut self,
        connection: ConnectionId,
        bytes: &mut [u8],
        now: Time,
        actions: &mut impl Actions<Self::Mail>,
    );

    /// A write that was [`Wrote::Pending`] has left completely.
    fn flushed(&mut self, connection: ConnectionId, now: Time, actions: &mut impl Actions<Self::Mail>);

    /// The peer ended the connection or it broke. After [`SocketEnd::Eof`] the machine may still write; it must call
    /// [`Actions::close`] when it is done, now or later; a reset may still follow. After the others it must call it now.
    fn ended(
        &mut self,
        connection: ConnectionId,
        end: SocketEnd,
        now: Time,
        actions: &mut impl Actions<Self::Mail>,
    );

    /// Mail arrived.
    fn mail(&mut self, mail: Self::Mail, now: Time, actions: &mut impl Actions<Self::Mail>);

    /// Does what is due by `now`; bounded work, the rest in the next turn.
    fn advance(&mut self, now: Time, actions: &mut impl Actions<Self::Mail>);

    /// Ends the turn: writes what is due to each connection, once.
    fn flush(&mut self, now: Time, actions: &mut impl Actions<Self::Mail>);

    /// When `advance` or `flush` next has something to do; `None` if only an event can change anything. A moment
    /// that is not after `now` asks for another turn at once.
    fn next_deadline(&self) -> Option<Time>;

    /// True when the machine's work is over and its thread may end.
    fn finished(&self) -> bool {
        false
    }
}
