//! The controls of a running server: probes, statistics, settings that can change while it runs.
//!
//! A [`Control`] is a cheap handle that any thread may hold. It never touches a connection.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use prometheus_client::collector::Collector;
use prometheus_client::registry::Registry;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::logging::{LogHandle, LogLevel};
use crate::stats::{ShardHandle, Stats};
use crate::units::parse_duration;

/// How long [`Control::stats`] waits for a shard that is in the middle of a turn.
const STATS_WAIT: Duration = Duration::from_secs(1);

type Probe = Arc<dyn Fn() -> Value + Send + Sync>;

/// A handle on a running server; see the module's page.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

struct Inner {
    probes: Mutex<BTreeMap<String, Probe>>,
    /// Metrics of layers and of whoever embeds the server; the server's own are made anew for each reading.
    registry: Mutex<Registry>,
    shards: Vec<ShardHandle>,
    stats_interval: watch::Sender<Option<Duration>>,
    log: Option<LogHandle>,
}

/// A setting that could not be changed, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingError {
    /// There is no setting of this name that can change while the server runs.
    Unknown(String),
    /// The value cannot be read; the sentence says how to write it.
    Value(String),
    /// Logging was not started by this crate, so its level is not ours to set.
    NotOurs,
}

impl fmt::Display for SettingError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SettingError::Unknown(name) => {
                write!(
                    formatter,
                    "no setting {name:?} can change at run time; there are log-level and stats-interval"
                )
            }
            SettingError::Value(sentence) => formatter.write_str(sentence),
            SettingError::NotOurs => {
                formatter.write_str("the log level is set by the program that embeds this server")
            }
        }
    }
}

impl std::error::Error for SettingError {}

impl Control {
    pub(crate) fn new(
        shards: Vec<ShardHandle>,
        stats_interval: Option<Duration>,
        log: Option<LogHandle>,
    ) -> Control {
        let inner = Inner {
            probes: Mutex::default(),
            registry: Mutex::new(Registry::default()),
            shards,
            stats_interval: watch::Sender::new(stats_interval),
            log,
        };
        Control {
            inner: Arc::new(inner),
        }
    }

    /// Shows a value under `name` at `/debug/probes`, in place of an earlier probe of that name. `probe` is called for each
    /// reading, on the thread that serves HTTP: it must not block.
    pub fn register_probe<V: Serialize>(
        &self,
        name: impl Into<String>,
        probe: impl Fn() -> V + Send + Sync + 'static,
    ) {
        let as_json =
            move || serde_json::to_value(probe()).unwrap_or_else(|error| Value::String(error.to_string()));
        lock(&self.inner.probes).insert(name.into(), Arc::new(as_json));
    }

    /// Removes a probe; false if there was none of that name.
    pub fn remove_probe(&self, name: &str) -> bool {
        lock(&self.inner.probes).remove(name).is_some()
    }

    /// The values of all probes by name. One that panics shows that instead of a value.
    pub fn probes(&self) -> BTreeMap<String, Value> {
        // Copied first: a probe may register or remove another.
        let probes = lock(&self.inner.probes).clone();
        let read = |(name, probe): (String, Probe)| {
            let value = catch_unwind(AssertUnwindSafe(|| probe()));
            (
                name,
                value.unwrap_or_else(|_| Value::String("the probe panicked".to_owned())),
            )
        };
        probes.into_iter().map(read).collect()
    }

    /// Adds metrics to `/metrics`. Their names should begin with a word of their own, not with `tidegate_`.
    pub fn register_collector(&self, collector: Box<dyn Collector>) {
        lock(&self.inner.registry).register_collector(collector);
    }

    pub(crate) fn with_registry<R>(&self, read: impl FnOnce(&Registry) -> R) -> R {
        read(&lock(&self.inner.registry))
    }

    /// What the shards have counted. Asks each and waits for the answers, up to a second: not to be called from a
    /// layer, which runs on a shard.
    pub fn stats(&self) -> Stats {
        Stats::collect(&self.inner.shards, STATS_WAIT)
    }

    /// Changes a setting by the name of its flag: `log-level` (`debug`, ...) or `stats-interval` (`5s`, ...). All others
    /// are fixed at the start.
    pub fn set(&self, name: &str, value: &str) -> Result<(), SettingError> {
        match name {
            "log-level" => {
                let log = self.inner.log.as_ref().ok_or(SettingError::NotOurs)?;
                log.set_level(LogLevel::from_str(value, true).map_err(SettingError::Value)?);
            }
            "stats-interval" => {
                let interval =
                    parse_duration(value).map_err(|error| SettingError::Value(error.to_string()))?;
                self.inner
                    .stats_interval
                    .send_replace((!interval.is_zero()).then_some(interval));
            }
            other => return Err(SettingError::Unknown(other.to_owned())),
        }
        Ok(())
    }

    pub(crate) fn stats_interval(&self) -> watch::Receiver<Option<Duration>> {
        self.inner.stats_interval.subscribe()
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Control").finish_non_exhaustive()
    }
}

/// What a panic of a probe left behind is still whole: only maps are changed under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control() -> Control {
        Control::new(Vec::new(), None, None)
    }

    #[test]
    fn probes_are_shown_replaced_and_removed() {
        let control = control();
        control.register_probe("answer", || 41);
        control.register_probe("answer", || 42);
        control.register_probe("names", || ["a", "b"]);
        let expect = serde_json::json!({ "answer": 42, "names": ["a", "b"] });
        assert_eq!(serde_json::to_value(control.probes()).unwrap(), expect);
        assert!(control.remove_probe("names") && !control.remove_probe("names"));
        assert_eq!(control.probes().len(), 1);
    }

    #[test]
    fn a_panicking_probe_harms_no_other() {
        let control = control();
        control.register_probe("bad", || -> u32 { panic!("on purpose") });
        control.register_probe("good", || 1);
        let probes = control.probes();
        assert_eq!(probes["good"], 1);
        assert!(probes["bad"].as_str().unwrap().contains("panicked"));
    }

    #[test]
    fn settings_change_or_say_why_not() {
        let control = control();
        control.set("stats-interval", "5s").expect("settable");
        assert_eq!(*control.stats_interval().borrow(), Some(Duration::from_secs(5)));
        assert!(matches!(
            control.set("stats-interval", "soon"),
            Err(SettingError::Value(_))
        ));
        assert_eq!(control.set("log-level", "debug"), Err(SettingError::NotOurs));
        assert!(
            control
                .set("batch", "1")
                .unwrap_err()
                .to_string()
                .contains("stats-interval")
        );
    }
}
