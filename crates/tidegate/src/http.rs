//! The side of the server that speaks HTTP: accepting, TLS handshakes, upgrades, `/metrics` and its kin.
//!
//! All of it runs on one thread with a tokio runtime of its own. A connection is HTTP for at most [`HTTP_LIFE_MAX`]; in that
//! time it is upgraded and handed to a shard, socket and TLS state and all, or it ends. After the hand-off nothing
//! here remembers it. What bounds it: [`HANDSHAKES_MAX`], [`HEAD_BYTES_MAX`] each, [`HEADERS_MAX`].

mod converse;
pub(crate) mod listen;
mod pages;
pub(crate) mod tls;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io};

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

/// Of those, the connections of one address: a host that is silent on all of them leaves room for others.
pub const HANDSHAKES_PER_IP_MAX: u32 = HANDSHAKES_MAX as u32 / 2;

/// Why handshakes led to no connection: all have a series from the start.
const REASONS: [&str; 17] = [
    "deadline",
    "draining",
    "full",
    "handshakes_per_ip",
    "no_shard",
    "tls",
    wire::Refusal::Malformed.name(),
    wire::Refusal::HeadTooLong.name(),
    wire::Refusal::Method.name(),
    wire::Refusal::HttpVersion.name(),
    wire::Refusal::Host.name(),
    wire::Refusal::Upgrade.name(),
    wire::Refusal::Connection.name(),
    wire::Refusal::Version.name(),
    wire::Refusal::KeyMissing.name(),
    wire::Refusal::KeyRepeated.name(),
    wire::Refusal::KeyMalformed.name(),
];

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
    /// Connections that speak HTTP, by address.
    pub shares: Arc<Shares>,
    pub counts: Arc<Counts>,
}

/// How many connections of each address speak HTTP.
pub(crate) type Shares = Mutex<HashMap<IpAddr, u32>>;

/// One of an address's [`HANDSHAKES_PER_IP_MAX`] connections; given back when dropped.
struct Share(Arc<Shares>, IpAddr);

impl Share {
    fn take(shares: &Arc<Shares>, address: IpAddr) -> Option<Share> {
        let address = address.to_canonical();
        let mut held = shares.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(address).or_default();
        if *count == HANDSHAKES_PER_IP_MAX {
            return None;
        }
        *count += 1;
        Some(Share(Arc::clone(shares), address))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.1);
            }
        }
    }
}

/// What the HTTP side counts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    upgrades: AtomicU64,
    accept_errors: AtomicU64,
    handshakes: AtomicUsize,
    handshakes_full: AtomicU64,
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
    pub handshakes_full: u64,
    pub draining: bool,
    pub refusals: BTreeMap<&'static str, u64>,
}

impl Counts {
    pub(crate) fn copy(&self) -> HttpStats {
        HttpStats {
            upgrades: self.upgrades.load(Ordering::Relaxed),
            accept_errors: self.accept_errors.load(Ordering::Relaxed),
            handshakes: self.handshakes.load(Ordering::Relaxed),
            handshakes_full: self.handshakes_full.load(Ordering::Relaxed),
            draining: self.draining.load(Ordering::Relaxed),
            refusals: self.refusals(),
        }
    }

    /// Zero for each reason not met yet.
    fn refusals(&self) -> BTreeMap<&'static str, u64> {
        let mut all = BTreeMap::from(REASONS.map(|reason| (reason, 0)));
        all.extend(&*self.refusals.lock().unwrap_or_else(PoisonError::into_inner));
        all
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
        if handshakes.available_permits() == 0 {
            http.counts.handshakes_full.fetch_add(1, Ordering::Relaxed);
            trouble.warn(format_args!(
                "{HANDSHAKES_MAX} connections speak HTTP and no more may; further ones wait"
            ));
        }
        let permit = Arc::clone(&handshakes)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        // Ready connections are taken one after the other without a pause, up to tokio's budget for a task.
        match listener.accept().await {
            Ok((stream, peer)) => {
                trouble.is_over();
                let Some(share) = Share::take(&http.shares, peer.ip()) else {
                    http.counts.refused("handshakes_per_ip");
                    continue;
                };
                let http = Arc::clone(&http);
                tokio::spawn(async move {
                    let _held = (permit, share);
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
        self.told |= self.warn(format_args!(
            "cannot accept connections: {error}; they wait, and I try again"
        ));
        let pause = self
            .pause
            .map_or(BACKOFF_MIN, |pause| (pause * 2).min(BACKOFF_MAX));
        self.pause = Some(pause);
        pause
    }

    /// Logs a warning unless there was one just now.
    fn warn(&mut self, line: fmt::Arguments<'_>) -> bool {
        let due = self
            .warned_at
            .is_none_or(|at| at.elapsed() >= ACCEPT_WARNING_INTERVAL);
        if due {
            self.warned_at = Some(Instant::now());
            tracing::warn!("{line}");
        }
        due
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
    fn an_address_has_its_share_and_others_theirs() {
        let (shares, first) = (Arc::default(), IpAddr::from([127, 0, 0, 1]));
        let mut held: Vec<_> = (0..HANDSHAKES_PER_IP_MAX)
            .map(|_| Share::take(&shares, first).expect("within the share"))
            .collect();
        let mapped = IpAddr::from(std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped());
        assert!(Share::take(&shares, mapped).is_none());
        assert!(Share::take(&shares, IpAddr::from([127, 0, 0, 2])).is_some());
        held.pop();
        assert!(Share::take(&shares, first).is_some());
        held.clear();
        assert!(shares.lock().unwrap().is_empty());
    }

    #[test]
    fn a_peer_that_left_makes_no_pause() {
        let error = io::Error::from(io::ErrorKind::ConnectionAborted);
        assert_eq!(Trouble::default().pause(&error), Duration::ZERO);
    }
}
