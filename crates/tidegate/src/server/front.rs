//! The thread beside the shards: it accepts and serves HTTP, logs statistics, and carries out the shutdown.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use engine::Mail;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};

use crate::control::Control;
use crate::http::{self, Http};
use crate::stats::{Line, ShardHandle, Stats};

/// How often a shutdown looks whether the shards are done, and how long past the drain time a shard may take to end by
/// itself before it is stopped.
const DRAIN_POLL: Duration = Duration::from_millis(5);
const DRAIN_GRACE: Duration = Duration::from_millis(200);

/// What the thread that serves HTTP is given.
pub(super) struct Front {
    pub http: Arc<Http>,
    pub control: Control,
    pub drain: Duration,
    pub stopped: watch::Receiver<bool>,
}

/// What it tells at its end.
pub(super) struct Drained {
    /// Open when the shutdown began.
    pub connections: usize,
    /// Sockets that had been cut for a close handshake without end before that.
    pub cut_before: u64,
    pub began: Instant,
}

impl Front {
    /// Starts the thread; it ends when the server has shut down.
    pub(super) fn start(self, listener: TcpListener) -> io::Result<JoinHandle<Drained>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        thread::Builder::new().name("http".to_owned()).spawn(move || {
            let drained = runtime.block_on(self.run(listener));
            // What still speaks HTTP is cut, and a reading of statistics not waited for.
            runtime.shutdown_background();
            drained
        })
    }

    async fn run(mut self, listener: tokio::net::TcpListener) -> Drained {
        let lines = tokio::spawn(log_statistics(self.control.clone()));
        let watch = tokio::spawn(watch_shards(self.http.shards.clone()));
        tokio::select! {
            () = http::accept(listener, Arc::clone(&self.http)) => {}
            // An error means that whoever could stop the server has dropped it: it runs on.
            Ok(_) = self.stopped.wait_for(|&stopped| stopped) => {}
        }
        watch.abort();
        let drained = self.drain().await;
        lines.abort();
        drained
    }

    /// The listener is closed already; those who are still shaking hands get 503.
    async fn drain(&self) -> Drained {
        self.http.counts.draining.store(true, Ordering::Relaxed);
        let (began, connections) = (Instant::now(), self.http.seats.taken());
        let cut_at = tokio::time::Instant::now() + self.drain + DRAIN_GRACE;
        let cut_before = stats(&self.control).await.counters().close_timeouts;
        tokio::select! {
            () = self.end_shards() => {}
            () = sleep_until(cut_at) => self.http.shards.iter().for_each(ShardHandle::stop),
        }
        Drained {
            connections,
            cut_before,
            began,
        }
    }

    /// Tells the shards to drain and waits until they have ended.
    async fn end_shards(&self) {
        for shard in &self.http.shards {
            // A full inbox is emptied by the next turn.
            while !shard.has_ended() && shard.mail(Mail::Drain { within: self.drain }).is_err() {
                sleep(DRAIN_POLL).await;
            }
        }
        while !self.http.shards.iter().all(ShardHandle::has_ended) {
            sleep(DRAIN_POLL).await;
        }
    }
}

/// The answers of the shards, waited for on another thread than the one that accepts connections.
async fn stats(control: &Control) -> Stats {
    let control = control.clone();
    tokio::task::spawn_blocking(move || control.stats())
        .await
        .expect("reading statistics neither panics nor is cancelled while the runtime lives")
}

/// Says once when a shard ends that was not asked to: the others go on, and `/health` tells.
async fn watch_shards(shards: Vec<ShardHandle>) {
    loop {
        sleep(Duration::from_secs(1)).await;
        if let Some(number) = shards.iter().position(ShardHandle::has_ended) {
            tracing::error!(
                shard = number,
                "a shard has ended; its connections are gone, the others go on"
            );
            return;
        }
    }
}

/// Logs a line of statistics each interval, which may change meanwhile.
async fn log_statistics(control: Control) {
    let mut interval = control.stats_interval();
    let mut before = (stats(&control).await, Instant::now());
    loop {
        let pause = *interval.borrow_and_update();
        let tick = async {
            match pause {
                Some(pause) => sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tick => {}
            Ok(()) = interval.changed() => continue,
        }
        let now = stats(&control).await;
        let read_at = Instant::now();
        tracing::info!(
            "{}",
            Line {
                before: &before.0,
                now: &now,
                elapsed: read_at - before.1
            }
        );
        before = (now, read_at);
    }
}
