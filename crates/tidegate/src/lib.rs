//! Tidegate as a library: the broadcast server, its middleware and its controls.
//!
//! [`BroadcastServer`] serves WebSocket connections on shards, one thread each, and HTTP beside them on the same port. What
//! this crate never does: run an application's async code on a shard, or touch a connection from another thread than its
//! shard's. The program `tidegate` is a thin shell around it.
//!
//! ```no_run
//! use tidegate::{BroadcastConfig, BroadcastServer};
//!
//! let config = BroadcastConfig { address: "127.0.0.1:9002".to_owned(), ..BroadcastConfig::default() };
//! let server = BroadcastServer::builder(config).start()?;
//! println!("listening on {}", server.url());
//! server.control().register_probe("answer", || 42);
//! server.join();
//! # Ok::<(), tidegate::StartError>(())
//! ```
#![forbid(unsafe_code)]

pub mod broadcast;
pub mod cli;
pub mod config;
pub mod control;
pub mod error;
pub mod http;
pub mod logging;
mod metrics;
pub mod middleware;
pub mod process;
pub mod server;
pub mod stats;
pub mod units;

pub use config::{BroadcastConfig, Compression, ConfigError, TlsFiles};
pub use control::{Control, SettingError};
pub use engine::{Cause, ConnectionId, Message};
pub use error::StartError;
pub use middleware::layers::{Logging, Metrics, Recovery, Tracking};
pub use middleware::{Context, Event, Layer, Next, Opened};
pub use server::{BroadcastServer, Builder, RunningServer, Summary};
pub use stats::{ShardStats, Stats};
pub use wire::Kind;
