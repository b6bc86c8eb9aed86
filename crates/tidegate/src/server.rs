//! The broadcast server as a whole: its builder, its parts, its end.

mod front;

use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use engine::{Shard, ShardConfig, ShardId};
use front::{Drained, Front};
use reactor::{Group, Options, Pinning};
use serde::Serialize;
use tokio::sync::watch;

use crate::broadcast::{Broadcast, Seats};
use crate::config::{BroadcastConfig, Compression, ring_max};
use crate::control::Control;
use crate::error::StartError;
use crate::http::{self, Counts, Http};
use crate::logging::LogHandle;
use crate::middleware::Layer;
use crate::process;
use crate::stats::ShardHandle;
use crate::units::Size;

/// Where a broadcast server begins; see [`BroadcastServer::builder`].
#[derive(Debug)]
pub struct BroadcastServer;

impl BroadcastServer {
    /// A server with these settings, to be given layers and probes and then started.
    pub fn builder(config: BroadcastConfig) -> Builder {
        Builder {
            config,
            layers: Vec::new(),
            probes: Vec::new(),
            log: None,
        }
    }
}

type ProbeRegistration = Box<dyn FnOnce(&Control)>;

/// A server that is not started yet.
pub struct Builder {
    config: BroadcastConfig,
    layers: Vec<Box<dyn Layer>>,
    probes: Vec<ProbeRegistration>,
    log: Option<LogHandle>,
}

impl Builder {
    /// Adds a layer inside those added before: the first one sees an event first.
    pub fn layer(mut self, layer: impl Layer) -> Builder {
        self.layers.push(Box::new(layer));
        self
    }

    /// Registers a probe from the start; see [`Control::register_probe`].
    pub fn probe<V: Serialize>(
        mut self,
        name: impl Into<String>,
        probe: impl Fn() -> V + Send + Sync + 'static,
    ) -> Builder {
        let name = name.into();
        self.probes
            .push(Box::new(move |control| control.register_probe(name, probe)));
        self
    }

    /// Lets [`Control::set`] change the log level.
    pub fn log(mut self, log: LogHandle) -> Builder {
        self.log = Some(log);
        self
    }

    /// Listens and starts all threads. Raises the process's soft limit of open files to the hard one.
    ///
    /// # Errors
    /// The settings contradict each other, or the machine does not grant them; nothing runs then.
    pub fn start(self) -> Result<RunningServer, StartError> {
        let Builder {
            config,
            layers,
            probes,
            log,
        } = self;
        config.validate()?;
        let descriptors_max = process::raise_descriptor_limit();
        let tls = config.tls.as_ref().map(http::tls::acceptor).transpose()?;
        let listener = http::listen::listen(&config.address)?;
        let address = listener.local_addr().map_err(StartError::Http)?;

        let connections_max = config.connections_max.unwrap_or_else(|| {
            let most = descriptors_max
                .map_or(SEATS_MAX, |limit| limit - process::descriptors_reserved(limit))
                .clamp(1, SEATS_MAX);
            if most < CONNECTIONS_FEW {
                tracing::warn!("room for {most} connections only: raise the limit of open files (ulimit -n)");
            }
            most
        });
        let layers: Arc<[Box<dyn Layer>]> = layers.into();
        let seats = Arc::new(Seats::default());
        let group = spawn_shards(&config, connections_max, &layers, &seats)?;
        let facts = Facts {
            driver: group.driver(),
            workers: group.handles.len(),
            connections_max,
            descriptors_max,
        };

        let shards = group.handles.clone();
        let control = Control::new(shards.clone(), config.stats_interval, log);
        layers.iter().for_each(|layer| layer.started(&control));
        probes.into_iter().for_each(|register| register(&control));

        let counts = Arc::new(Counts::default());
        let http = Http {
            pages: http::pages(control.clone(), Arc::clone(&counts), shards.clone()),
            shards: shards.clone(),
            next_shard: AtomicUsize::new(0),
            seats,
            shares: Arc::default(),
            connections_max,
            policy: policy(config.compression),
            tls,
            counts,
        };
        let (stop, stopped) = watch::channel(false);
        let front = Front {
            http: Arc::new(http),
            control: control.clone(),
            drain: config.drain,
            stopped,
        };
        let thread = front.start(listener).map_err(|error| {
            shards.iter().for_each(ShardHandle::stop);
            StartError::Http(error)
        })?;
        Ok(RunningServer {
            address,
            config,
            facts,
            control,
            stop,
            thread,
            group,
        })
    }
}

/// Fewer connections than this are hardly what anyone wants of a server, unless told so.
const CONNECTIONS_FEW: usize = 1_000;
/// More connections than any machine holds, so that sums of them stay in range.
const SEATS_MAX: usize = 1 << 24;

fn spawn_shards(
    config: &BroadcastConfig,
    connections_max: usize,
    layers: &Arc<[Box<dyn Layer>]>,
    seats: &Arc<Seats>,
) -> Result<Group<Shard<Broadcast>>, StartError> {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let workers = if config.workers == 0 {
        cores
    } else {
        usize::from(config.workers)
    };
    let pin = match config.numa_node {
        Some(node) => Pinning::Node(node),
        // Each thread on a core of its own pays only where no core is left to others.
        None if workers == cores => Pinning::Auto,
        None => Pinning::Off,
    };
    let options = Options {
        driver: config.driver,
        batch: config.batch,
        ring: config.ring.min(ring_max(workers)),
        pin,
        name: "shard".to_owned(),
    };
    // The standard library's hasher is the nearest source of a number that peers cannot guess.
    let seed = std::hash::RandomState::new().build_hasher().finish();
    let mut limits = config.limits.clone();
    // Seats bound the connections of all shards; none of them may refuse one that has its seat.
    limits.connections_max = connections_max;
    let shard_config = |shard: ShardId| ShardConfig {
        shard,
        shards: u16::try_from(workers).unwrap_or(u16::MAX),
        seed,
        limits: limits.clone(),
        heartbeat: config.heartbeat.clone(),
        flush_delay: config.flush_delay,
        overflow: config.overflow,
    };
    let make = |shard| {
        Shard::new(
            shard_config(shard),
            Broadcast::new(Arc::clone(layers), Arc::clone(seats)),
        )
    };
    reactor::spawn(workers, &options, make).map_err(StartError::Shards)
}

fn policy(compression: Compression) -> wire::Policy {
    let deflate = match compression {
        Compression::Off => None,
        // No window is kept for any connection, in either direction.
        Compression::Shared => Some(wire::DeflatePolicy {
            server_takeover: false,
            client_takeover: false,
        }),
    };
    wire::Policy {
        deflate,
        protocols: Vec::new(),
    }
}

/// What the machine granted.
#[derive(Clone, Copy, Debug)]
struct Facts {
    driver: reactor::DriverKind,
    workers: usize,
    connections_max: usize,
    descriptors_max: Option<usize>,
}

/// A server that serves. Dropping it lets it run on; [`RunningServer::shutdown`] and [`RunningServer::join`] end it.
pub struct RunningServer {
    address: SocketAddr,
    config: BroadcastConfig,
    facts: Facts,
    control: Control,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Drained>,
    group: Group<Shard<Broadcast>>,
}

/// Connections that were cut because they did not end by themselves: by the shard, or with it.
fn cut_by(shard: &Shard<Broadcast>) -> usize {
    shard.connections() + shard.counters().close_timeouts as usize
}

/// How a server ended.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Connections that were open when the shutdown began.
    pub connections: usize,
    /// Of those, the ones that were told with 1001 and ended in time.
    pub closed: usize,
    /// How long it took.
    pub took: Duration,
}

impl RunningServer {
    /// Where it listens, with the real port.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// What a client on this machine connects to.
    pub fn url(&self) -> String {
        let scheme = if self.config.tls.is_some() { "wss" } else { "ws" };
        format!("{scheme}://{}", self.reachable())
    }

    /// The handle for probes, statistics and settings.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The lines that tell who starts the program what runs now.
    pub fn introduction(&self) -> Vec<String> {
        let config = &self.config;
        let tls = config.tls.is_some();
        let how = if tls { "TLS" } else { "plain" };
        let every = if self.address.ip().is_unspecified() {
            "every interface; "
        } else {
            ""
        };
        let Facts {
            driver,
            workers,
            connections_max,
            descriptors_max,
        } = self.facts;
        let pages = format!("{}://{}", if tls { "https" } else { "http" }, self.reachable());
        let descriptors = descriptors_max.map_or_else(String::new, |max| format!(" of {max} open files"));
        let (limits, size) = (&config.limits, |bytes| Size(bytes).about());
        vec![
            format!("tidegate {}", env!("CARGO_PKG_VERSION")),
            format!(
                "listening on {} ({every}{how}; broadcast on every path, echo on {})",
                self.url(),
                crate::broadcast::ECHO_PATH
            ),
            format!(
                "driver {driver}, workers {workers}, batch {}, ring {}",
                config.batch,
                config.ring.min(ring_max(workers))
            ),
            format!(
                "limits: {connections_max} connections{descriptors}, message {}, queue {} messages and {} each",
                size(limits.message_bytes_max),
                limits.queue_messages_max,
                size(limits.queue_bytes_max)
            ),
            format!("metrics {pages}/metrics, health {pages}/health, probes {pages}/debug/probes"),
        ]
    }

    /// The address as a client on this machine reaches it.
    fn reachable(&self) -> SocketAddr {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        address
    }

    /// Begins to shut down: accepts no more, lets connections finish what is in flight and closes them with 1001, within
    /// the drain time of the settings. Returns at once; [`RunningServer::join`] waits.
    pub fn shutdown(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until the server has shut down.
    ///
    /// # Panics
    /// If a shard or the HTTP side panicked, with its panic.
    pub fn join(self) -> Summary {
        let drained = self
            .thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let cut = match self.group.join() {
            Ok(shards) => shards
                .iter()
                .map(cut_by)
                .sum::<usize>()
                .saturating_sub(drained.cut_before as usize),
            Err(error) => {
                tracing::error!("a shard's driver failed: {error}");
                0
            }
        };
        Summary {
            connections: drained.connections,
            closed: drained.connections.saturating_sub(cut),
            took: drained.began.elapsed(),
        }
    }
}
