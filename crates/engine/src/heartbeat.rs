//! The deadlines of connections, all on one timing wheel with one timer for each.
//!
//! A timer is not moved when bytes arrive: it looks, when it fires, at when they last did, and is set again. So a busy
//! connection costs the wheel nothing.

use std::time::Duration;

use crate::config::close_code;
use crate::core::Core;
use crate::counters::Cause;
use crate::machine::{Actions, Close};
use crate::mail::Mail;
use crate::slots::Phase;

impl Core {
    /// The interval after which a silent connection is pinged: the configured one less up to a quarter, by slot, so that connections
    /// that came together are not pinged together.
    fn ping_interval(&self, index: u32) -> Option<Duration> {
        let interval = self.config.heartbeat.ping_interval?;
        // Fibonacci hashing: neighbouring slots land far apart.
        let spread = index.wrapping_mul(0x9e37_79b9) >> 22;
        Some(interval - interval * spread / 4_096)
    }

    /// Sets the timer of an open connection to whatever is next for it.
    pub(crate) fn arm_heartbeat(&mut self, index: u32) {
        let interval = self.ping_interval(index);
        let heartbeat = &self.config.heartbeat;
        let Some(state) = self.slots.at(index) else { return };
        let ping = match state.pinged_at {
            Some(pinged_at) => Some(pinged_at + heartbeat.pong_timeout),
            None => interval.map(|interval| state.received_at + interval),
        };
        let idle = heartbeat.idle_timeout.map(|timeout| state.message_at + timeout);
        match (ping, idle) {
            (Some(ping), Some(idle)) => self.wheel.set(index, ping.min(idle)),
            (Some(next), None) | (None, Some(next)) => self.wheel.set(index, next),
            (None, None) => self.wheel.cancel(index),
        }
    }

    /// Does what is due by now, a bounded number of timers.
    pub(crate) fn fire_timers(&mut self, actions: &mut impl Actions<Mail>) {
        for _ in 0..self.config.limits.timers_per_turn_max {
            let Some(index) = self.wheel.pop(self.now) else {
                return;
            };
            self.fire(index, actions);
        }
    }

    fn fire(&mut self, index: u32, actions: &mut impl Actions<Mail>) {
        let id = self.slots.id(index);
        let Some(state) = self.slots.at(index) else { return };
        match state.phase {
            Phase::Open => self.beat(index),
            Phase::Handshaking => {
                self.begin_close(
                    id,
                    close_code::HANDSHAKE_TIMEOUT,
                    "not established in time",
                    Cause::HandshakeTimeout,
                );
            }
            Phase::Closing { .. } | Phase::Failing { .. } => {
                self.counters.close_timeouts += 1;
                self.remove(id, Cause::Reset);
                actions.close(id, Close::Abort);
            }
        }
    }

    fn beat(&mut self, index: u32) {
        let now = self.now;
        let interval = self.ping_interval(index);
        let heartbeat = &self.config.heartbeat;
        let Some(state) = self.slots.at(index) else { return };
        let received_at = state.received_at;
        if state.pinged_at.is_some_and(|pinged_at| received_at >= pinged_at) {
            state.pinged_at = None;
        }
        if heartbeat
            .idle_timeout
            .is_some_and(|timeout| now.since(state.message_at) >= timeout)
        {
            let id = self.slots.id(index);
            self.begin_close(
                id,
                close_code::IDLE,
                "no message within the idle timeout",
                Cause::Idle,
            );
            return;
        }
        if let Some(pinged_at) = state.pinged_at {
            if now.since(pinged_at) >= heartbeat.pong_timeout {
                let id = self.slots.id(index);
                self.begin_close(
                    id,
                    close_code::PONG_TIMEOUT,
                    "no pong in time",
                    Cause::PongTimeout,
                );
                return;
            }
        } else if interval.is_some_and(|interval| now.since(received_at) >= interval) {
            state.pinged_at = Some(now);
            state.ping_due = true;
            self.counters.pings_out += 1;
            self.mark(index);
        }
        self.arm_heartbeat(index);
    }
}
