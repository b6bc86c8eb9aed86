//! Snapshots of what the shards count, and the line of statistics.
//!
//! A snapshot is copied on the shard's own thread between two events, so its numbers belong together.

use std::fmt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use engine::{Counters, Shard};
use hdrhistogram::Histogram;
use reactor::TurnStats;

use crate::broadcast::Broadcast;

pub(crate) type ShardHandle = reactor::Handle<Shard<Broadcast>>;

/// What one shard has counted since its start.
#[derive(Clone, Debug)]
pub struct ShardStats {
    /// Which shard.
    pub shard: u16,
    /// Connections now, those that are closing included.
    pub connections: usize,
    /// What its logic counted.
    pub counters: Counters,
    /// What its thread counted.
    pub turns: TurnStats,
}

/// What all shards have counted since the start.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Those that answered in time, by number.
    pub shards: Vec<ShardStats>,
    /// How many there are. One that is missing above is stuck or has ended.
    pub shards_total: usize,
}

impl Stats {
    /// Asks all shards at once and waits up to `patience` for the answers.
    pub(crate) fn collect(shards: &[ShardHandle], patience: Duration) -> Stats {
        let (sender, receiver) = mpsc::channel();
        for (number, handle) in shards.iter().enumerate() {
            let sender = sender.clone();
            let copy = move |shard: &mut Shard<Broadcast>, turns: &TurnStats| {
                let stats = ShardStats {
                    shard: number as u16,
                    connections: shard.connections(),
                    counters: shard.counters().clone(),
                    turns: turns.clone(),
                };
                // Nobody waits any more if this took too long.
                let _ = sender.send(stats);
            };
            // A shard with a full inbox or none at all is missing from the answer.
            let _ = handle.call(Box::new(copy));
        }
        drop(sender);
        let deadline = Instant::now() + patience;
        let next = || {
            receiver
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
                .ok()
        };
        let mut answered: Vec<ShardStats> = std::iter::from_fn(next).collect();
        answered.sort_by_key(|stats| stats.shard);
        Stats {
            shards: answered,
            shards_total: shards.len(),
        }
    }

    /// Connections of all shards.
    pub fn connections(&self) -> usize {
        self.shards.iter().map(|stats| stats.connections).sum()
    }

    /// The counters of all shards together.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.shards.iter().for_each(|stats| sum.merge(&stats.counters));
        sum
    }

    /// Lengths of turns of all shards together, in microseconds.
    fn turn_us(&self) -> Option<Histogram<u64>> {
        let (first, rest) = self.shards.split_first()?;
        let mut sum = first.turns.turn_us.clone();
        for stats in rest {
            sum.add(&stats.turns.turn_us)
                .expect("histograms of all shards have the same bounds");
        }
        Some(sum)
    }
}

/// What happened between two snapshots: the line of statistics.
pub(crate) struct Line<'a> {
    pub before: &'a Stats,
    pub now: &'a Stats,
    pub elapsed: Duration,
}

impl Line<'_> {
    /// What was counted in between, for each second.
    fn rate(&self, count: impl Fn(&Counters) -> u64) -> f64 {
        let grown = count(&self.now.counters()).saturating_sub(count(&self.before.counters()));
        grown as f64 / self.elapsed.as_secs_f64().max(1e-3)
    }

    /// Lengths of the turns in between, at these quantiles, in microseconds.
    fn turn_us(&self, quantiles: [f64; 2]) -> [u64; 2] {
        let (Some(mut now), Some(before)) = (self.now.turn_us(), self.before.turn_us()) else {
            return [0; 2];
        };
        // Fails if a shard that was there before is missing now; then the line shows the time since the start.
        let _ = now.subtract(&before);
        quantiles.map(|quantile| now.value_at_quantile(quantile))
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99] = self.turn_us([0.50, 0.99]);
        let dropped = self
            .now
            .counters()
            .dropped()
            .saturating_sub(self.before.counters().dropped());
        write!(
            formatter,
            "{} connections, {} in/s, {} out/s, {}B/s in, {}B/s out, {dropped} dropped, turn P50 {p50} us P99 {p99} us",
            self.now.connections(),
            Short(self.rate(|counters| counters.messages_in)),
            Short(self.rate(|counters| counters.messages_out)),
            Short(self.rate(|counters| counters.bytes_in)),
            Short(self.rate(|counters| counters.bytes_out)),
        )?;
        let missing = self.now.shards_total - self.now.shards.len();
        if missing > 0 {
            write!(
                formatter,
                ", {missing} of {} shards did not answer",
                self.now.shards_total
            )?;
        }
        Ok(())
    }
}

/// A number in four characters or so: `950`, `12.3k`, `4.5M`.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            small if small < 1e3 => write!(formatter, "{small:.0}"),
            thousands if thousands < 1e6 => write!(formatter, "{:.1}k", thousands / 1e3),
            millions if millions < 1e9 => write!(formatter, "{:.1}M", millions / 1e6),
            billions => write!(formatter, "{:.1}G", billions / 1e9),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 950.0, 12_345.0, 4_500_000.0, 2e9].map(|number| Short(number).to_string());
        assert_eq!(shown, ["0", "950", "12.3k", "4.5M", "2.0G"]);
    }
}
