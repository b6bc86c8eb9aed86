//! The threads that drive [`engine::Machine`]s with real sockets.
//!
//! [`spawn`] starts a group: one thread for each machine, each with its own sockets, its own driver and nothing
//! shared on the way of a message. Machines of a group mail each other through single-producer rings; other threads
//! reach a machine through its [`Handle`]. A thread takes what is ready (at most `batch` of each kind), feeds the
//! machine, lets it flush once, and sleeps until a socket, a deadline or mail asks for it.
//!
//! This crate makes no policy and never reads a payload: what to do with bytes, when to close and whom to mail is
//! the machine's to say. What always holds: at most one write of a connection is in flight; a machine is called by
//! its own thread only; mail of a pair arrives in order and none is lost; an idle plain connection holds its entry
//! in the socket table and nothing else.
#![deny(unsafe_code)]

mod driver;
mod epoll;
mod group;
mod mail;
mod options;
mod pin;
mod stats;
mod tls;
mod turn;
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "the kernel reads and writes our memory by itself")]
mod uring;

pub use group::{Adoption, Group, Handle, spawn};
pub use options::{DriverKind, Options, UnknownDriver};
pub use pin::Pinning;
pub use stats::TurnStats;
