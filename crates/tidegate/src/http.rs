//! The side of the server that speaks HTTP: accepting, TLS handshakes, upgrades, `/metrics` and its kin.
//!
//! All of it runs on one thread with a tokio runtime of its own. A connection is HTTP for at most [`HTTP_LIFE_MAX`]; in that
//! time it is upgraded and handed to a shard, socket and TLS state and all, or it ends. After the hand-off nothing
//! here remembers it. What bounds it: [`HANDSHAKES_MAX`], [`HEAD_BYTES_MAX`] each, [`HEADERS_MAX`].

mod converse;
pub(crate) mod listen;
mod pages;
pub(crate) mod tls;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::Opening;
use reactor::Adoption;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsAcceptor;

use crate::broadcast::{Arrival, Seats};
use crate::control::Control;
use crate::stats::ShardHandle;

pub use wire::handshake::{HEAD_BYTES_MAX, HEADERS_MAX};

/// How long a connection may speak HTTP, from its acceptance to the upgrade, TLS handshake included; a plain one is closed
/// then, kept alive or not.
pub const HTTP_LIFE_MAX: Duration = Duration::from_secs(10);

/// Connections that speak HTTP at one time, each holding at most [`HEAD_BYTES_MAX`] and some 10 KiB of state (TLS: some
/// 40 KiB more): 260 MiB at the very worst. Further ones wait in the system's queue.
pub const HANDSHAKES_MAX: usize = 4_096;

/// The first and the longest pause after a failure to accept.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A lasting failure to accept is logged this often.
const ACCEPT_WARNING_INTERVAL: Duration = Duration::from_secs(10);
/// The pause before a shard with a full inbox is asked again to adopt a socket.
const ADOPT_RETRY: Duration = Duration::from_millis(1);

/// What all HTTP connections of a server share.
pub(crate) struct Http {
    pub shards: Vec<ShardHandle>,
    pub next_shard: AtomicUsize,
    pub seats: Arc<Seats>,
    pub connections_max: usize,
    pub policy: wire::Policy,
    pub tls: Option<TlsAcceptor>,
    pub pages: axum::Router,
    pub counts: Arc<Counts>,
}

/// What the HTTP side counts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    upgrades: AtomicU64,
    accept_errors: AtomicU64,
    handshakes: AtomicUsize,
    pub draining: AtomicBool,
    /// By reason. Locked for a refusal only, never on the way of a good upgrade.
    refusals: Mutex<BTreeMap<&'static str, u64>>,
}

/// A copy of [`Counts`].
#[derive(Clone, Debug, Default)]
pub(crate) struct HttpStats {
    pub upgrades: u64,
    pub accept_errors: u64,
    pub handshakes: usize,
    pub draining: bool,
    pub refusals: BTreeMap<&'static str, u64>,
}

impl Counts {
    pub(crate) fn copy(&self) -> HttpStats {
        HttpStats {
            upgrades: self.upgrades.load(Ordering::Relaxed),
            accept_errors: self.accept_errors.load(Ordering::Relaxed),
            handshakes: self.handshakes.load(Ordering::Relaxed),
            draining: self.draining.load(Ordering::Relaxed),
            refusals: self
                .refusals
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    fn refused(&self, reason: &'static str) {
        *self
            .refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(reason)
            .or_default() += 1;
    }
}

/// The pages served beside the upgrade.
pub(crate) fn pages(control: Control, counts: Arc<Counts>, shards: Vec<ShardHandle>) -> axum::Router {
    pages::router(pages::Pages {
        control,
        counts,
        shards,
    })
}

/// Accepts connections until it is dropped.
pub(crate) async fn accept(listener: TcpListener, http: Arc<Http>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut trouble = Trouble::default();
    loop {
        let permit = Arc::clone(&handshakes)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        // Ready connections are taken one after the other without a pause, up to tokio's budget for a task.
        match listener.accept().await {
            Ok((stream, peer)) => {
                trouble.is_over();
                let http = Arc::clone(&http);
                tokio::spawn(async move {
                    let _permit = permit;
                    http.counts.handshakes.fetch_add(1, Ordering::Relaxed);
                    let deadline = Instant::now() + HTTP_LIFE_MAX;
                    if timeout_at(deadline, serve(&http, stream, peer)).await.is_err() {
                        http.counts.refused("deadline");
                    }
                    http.counts.handshakes.fetch_sub(1, Ordering::Relaxed);
                });
            }
            Err(error) => {
                http.counts.accept_errors.fetch_add(1, Ordering::Relaxed);
                sleep(trouble.pause(&error)).await;
            }
        }
    }
}

/// From acceptance to hand-off or end.
async fn serve(http: &Arc<Http>, stream: TcpStream, peer: SocketAddr) {
    let Some(acceptor) = &http.tls else {
        return converse::converse(http, stream, peer).await;
    };
    match acceptor.accept(stream).await {
        Ok(stream) => converse::converse(http, stream, peer).await,
        Err(_) => http.counts.refused("tls"),
    }
}

/// Hands a socket to the next shard that lives. If its inbox is full, waits: the deadline of the connection is above.
async fn hand_over(http: &Http, mut adoption: Adoption<Opening<Arrival>>) {
    for _ in 0..http.shards.len() {
        let number = http.next_shard.fetch_add(1, Ordering::Relaxed) % http.shards.len();
        let shard = &http.shards[number];
        loop {
            match shard.adopt(adoption) {
                Ok(()) => {
                    http.counts.upgrades.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Err(refused) => adoption = refused,
            }
            if shard.has_ended() {
                break;
            }
            sleep(ADOPT_RETRY).await;
        }
    }
    http.counts.refused("no_shard");
}

/// A failure to accept that lasts: it must neither spin nor fill the log.
#[derive(Default)]
struct Trouble {
    pause: Option<Duration>,
    warned_at: Option<Instant>,
    /// The end of it is told if its beginning was.
    told: bool,
}

impl Trouble {
    /// How long to wait after `error`.
    fn pause(&mut self, error: &io::Error) -> Duration {
        if is_of_the_peer(error) {
            return Duration::ZERO;
        }
        if self
            .warned_at
            .is_none_or(|at| at.elapsed() >= ACCEPT_WARNING_INTERVAL)
        {
            self.warned_at = Some(Instant::now());
            self.told = true;
            tracing::warn!("cannot accept connections: {error}; they wait, and I try again");
        }
        let pause = self
            .pause
            .map_or(BACKOFF_MIN, |pause| (pause * 2).min(BACKOFF_MAX));
        self.pause = Some(pause);
        pause
    }

    /// A connection was accepted.
    fn is_over(&mut self) {
        if self.pause.take().is_some() && std::mem::take(&mut self.told) {
            tracing::info!("accepting connections again");
        }
    }
}

/// The connection died while it waited; the next one may be well.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_failure_pauses_longer_and_longer() {
        let error = io::Error::from_raw_os_error(24);
        let mut trouble = Trouble::default();
        let pauses: Vec<_> = (0..8).map(|_| trouble.pause(&error).as_millis()).collect();
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000]);
        trouble.is_over();
        assert_eq!(trouble.pause(&error), BACKOFF_MIN);
    }

    #[test]
    fn a_peer_that_left_makes_no_pause() {
        let error = io::Error::from(io::ErrorKind::ConnectionAborted);
        assert_eq!(Trouble::default().pause(&error), Duration::ZERO);
    }
}
