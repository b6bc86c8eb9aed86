//! The load generator behind `tidegate bench`, and the bare loop that servers are compared with.
//!
//! [`run`] takes a [`plan::Plan`] (so many connections, this traffic, that long) and gives a [`report::Report`].
//! Its clients are one state machine on the same reactor as the server's shards. [`limit`] is the opposite of it: a
//! broadcast server that does nothing but the unavoidable. [`cli`] is the command line of both.
//!
//! What always holds: every run ends by itself; every message is checked for order, doubles, loss and content; a
//! number that could not be measured is absent and never a guess.
#![forbid(unsafe_code)]

mod checker;
pub mod cli;
mod client;
mod findings;
mod flow;
mod html;
pub mod limit;
mod machine;
mod opener;
mod payload;
mod phases;
pub mod plan;
mod process;
mod progress;
mod random;
pub mod report;
mod run;
mod stalled;
pub mod target;
mod world;

pub use plan::BenchError;
pub use run::{Manner, run};
