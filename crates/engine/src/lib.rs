//! The state machines of a Tidegate node: connections, rooms, lanes, timers, the shard.
//!
//! Pure: no clock, socket, thread, runtime or randomness. Bytes, mail and the present time go in; bytes, deadlines
//! and mail come out, through the contract in [`machine`].
#![forbid(unsafe_code)]

pub mod batch;
pub mod config;
mod core;
pub mod counters;
mod flush;
mod heartbeat;
pub mod lanes;
pub mod limits;
pub mod machine;
pub mod mail;
mod rooms;
mod routing;
mod shard;
mod slots;
mod time;
pub mod wheel;

pub use crate::core::{Core, Message};
pub use config::{FlushDelay, Heartbeat, ShardConfig, close_code};
pub use counters::{Cause, Counters};
pub use lanes::{Lane, Overflow};
pub use limits::{LimitError, Limits};
pub use machine::{Actions, Close, ConnectionId, Letter, Machine, ShardId, SocketEnd, Wrote};
pub use mail::Mail;
pub use rooms::{JoinError, RoomId, RoomOptions};
pub use shard::{Application, Opening, Shard};
pub use time::Time;
