//! The threads that drive [`engine::Machine`]s with real sockets.
//!
//! [`spawn`] starts a group: one thread for each machine, each with its own sockets, its own driver and nothing
//! shared on the way of a message. Machines of a group mail each other through single-producer rings; other threads
//! reach a machine through its [`Handle`]. A thread takes what is ready (at most `batch` of each kind), feeds the
//! machine, lets it flush once, and sleeps until a socket, a deadline or mail asks for it.
//!
//! This crate makes no policy and never reads a payload: what to do with bytes, when to close and whom to mail is
//! the machine's to say. What always holds: at most one write of a connection is in flight; a machine is called by
//! its own thread only; mail of a pair arrives in the order that [`engine::Letter`] states and none is lost; what is
//! under way between machines is bounded in number and bytes; an idle plain connection holds its entry
//! in the socket table and nothing else.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::{TcpListener, TcpStream};
//!
//! use engine::{Actions, Close, ConnectionId, Letter, Machine, SocketEnd, Time};
//! use reactor::{Adoption, Options, spawn};
//!
//! /// There is no mail here.
//! enum Mail {}
//!
//! impl Letter for Mail {
//!     fn bytes(&self) -> usize {
//!         match *self {}
//!     }
//!     fn is_request(&self) -> bool {
//!         match *self {}
//!     }
//! }
//!
//! /// Answers the first bytes of its one connection with their number and ends.
//! #[derive(Default)]
//! struct Count(bool);
//!
//! impl Machine for Count {
//!     type Opening = ();
//!     type Mail = Mail;
//!     fn opened(&mut self, (): (), _: Time, _: &mut impl Actions<Mail>) -> Option<ConnectionId> {
//!         Some(ConnectionId { index: 0, generation: 0 })
//!     }
//!     fn received(&mut self, id: ConnectionId, bytes: &mut [u8], _: Time, actions: &mut impl Actions<Mail>) {
//!         actions.write(id, &[bytes.len().to_string().into()]);
//!         actions.close(id, Close::Orderly);
//!         self.0 = true;
//!     }
//!     fn flushed(&mut self, _: ConnectionId, _: Time, _: &mut impl Actions<Mail>) {}
//!     fn ended(&mut self, id: ConnectionId, _: SocketEnd, _: Time, actions: &mut impl Actions<Mail>) {
//!         actions.close(id, Close::Orderly);
//!     }
//!     fn mail(&mut self, _: Mail, _: Time, _: &mut impl Actions<Mail>) {}
//!     fn advance(&mut self, _: Time, _: &mut impl Actions<Mail>) {}
//!     fn flush(&mut self, _: Time, _: &mut impl Actions<Mail>) {}
//!     fn next_deadline(&self) -> Option<Time> {
//!         None
//!     }
//!     fn finished(&self) -> bool {
//!         self.0
//!     }
//! }
//!
//! # fn main() -> std::io::Result<()> {
//! let group = spawn(1, &Options::default(), |_shard| Count::default())?;
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let mut client = TcpStream::connect(listener.local_addr()?)?;
//! let (stream, _) = listener.accept()?;
//! let adoption = Adoption { stream, tls: None, received: Default::default(), opening: () };
//! assert!(group.handles[0].adopt(adoption).is_ok());
//! client.write_all(b"hello")?;
//! let mut answer = String::new();
//! client.read_to_string(&mut answer)?;
//! assert_eq!(answer, "5");
//! group.join()?;
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

mod driver;
mod epoll;
mod group;
mod mail;
#[cfg(target_os = "linux")]
mod nap;
mod options;
mod pin;
mod stats;
mod tls;
mod turn;
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "the kernel reads and writes our memory by itself")]
mod uring;

pub use group::{Adoption, Call, Group, Handle, spawn};
pub use options::{DriverKind, Options, UnknownDriver};
pub use pin::Pinning;
pub use stats::TurnStats;
