//! What the client machine found: raw numbers, before they become a report.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::checker::Violations;
use crate::flow::{Counts, histogram};
use crate::process::Memory;
use crate::world::Sample;

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mark {
    /// When, ns since the loader's start.
    pub(crate) at_ns: u64,
    /// What the processes had used.
    pub(crate) sample: Sample,
    /// Deliveries since the start.
    pub(crate) deliveries: u64,
    /// CPU time that the loader spent polling for the next message of a rate, ns.
    pub(crate) polling_cpu_ns: u64,
}

/// One storm of connects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) opened: u64,
    /// From the first dial to the last connection open.
    pub(crate) wall_ns: u64,
    /// CPU time of the server over that, and a moment more.
    pub(crate) server_cpu_ns: Option<u64>,
}

/// All that a run found. Grows in the machine, is read when its thread has ended.
#[derive(Debug)]
pub(crate) struct Findings {
    /// Why the run ended early.
    pub(crate) broke: Option<String>,
    /// Connections opened, members and guests.
    pub(crate) opened: u64,
    /// Connections that came to nothing or ended before their time, by reason.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Of these, how many were open before.
    pub(crate) dropped: u64,
    /// Guests that came and went in order.
    pub(crate) guests_served: u64,
    /// Connections whose closing handshake did not end in time.
    pub(crate) unclosed: u64,
    /// From dial to open, ns.
    pub(crate) connect_latency: Histogram<u64>,
    pub(crate) rounds: Vec<Round>,
    /// The server's memory once all connections were open and at rest.
    pub(crate) memory_full: Option<Memory>,
    /// How many members were open then.
    pub(crate) members_full: u64,
    /// Where the measurement began and ended.
    pub(crate) begin: Option<Mark>,
    pub(crate) end: Option<Mark>,
    pub(crate) counts: Counts,
    pub(crate) violations: Violations,
    /// From send (or when due) to receive, ns.
    pub(crate) latency: Histogram<u64>,
    /// The counters over time, evenly spaced.
    pub(crate) series: Vec<Mark>,
}

impl Findings {
    pub(crate) fn new() -> Findings {
        Findings {
            broke: None,
            opened: 0,
            failures: BTreeMap::new(),
            dropped: 0,
            guests_served: 0,
            unclosed: 0,
            connect_latency: histogram(),
            rounds: Vec::new(),
            memory_full: None,
            members_full: 0,
            begin: None,
            end: None,
            counts: Counts::default(),
            violations: Violations::default(),
            latency: histogram(),
            series: Vec::new(),
        }
    }
}
