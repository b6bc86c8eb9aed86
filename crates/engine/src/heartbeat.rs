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
use crate::slots::{PENDING, Phase};

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
        let pending = self.slots.has(index, PENDING);
        let heartbeat = &self.config.heartbeat;
        let Some(state) = self.slots.at(index) else {
            return;
        };
        let sign_of_life = match state.pinged_at {
            // A peer with a write pending proves itself by reading.
            _ if pending => Some(state.pending_at + heartbeat.write_timeout),
            // The ping leaves with the next write, which sets the timer again.
            _ if state.ping_due => None,
            Some(pinged_at) => Some(pinged_at + heartbeat.pong_timeout),
            None => interval.map(|interval| state.received_at + interval),
        };
        let idle = heartbeat.idle_timeout.map(|timeout| state.message_at + timeout);
        match sign_of_life.into_iter().chain(idle).min() {
            Some(next) => self.wheel.set(index, next),
            None => self.wheel.cancel(index),
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
            Phase::Open => self.beat(index, actions),
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

    fn beat(&mut self, index: u32, actions: &mut impl Actions<Mail>) {
        let now = self.now;
        let id = self.slots.id(index);
        let interval = self.ping_interval(index);
        let pending = self.slots.has(index, PENDING);
        let heartbeat = &self.config.heartbeat;
        let Some(state) = self.slots.at(index) else {
            return;
        };
        let received_at = state.received_at;
        if state.pinged_at.is_some_and(|pinged_at| received_at >= pinged_at) {
            state.pinged_at = None;
        }
        if pending && now.since(state.pending_at) >= heartbeat.write_timeout {
            // No close frame could reach it.
            self.remove(id, Cause::WriteTimeout);
            actions.close(id, Close::Abort);
            return;
        }
        if heartbeat
            .idle_timeout
            .is_some_and(|timeout| now.since(state.message_at) >= timeout)
        {
            self.begin_close(
                id,
                close_code::IDLE,
                "no message within the idle timeout",
                Cause::Idle,
            );
            return;
        }
        state.write_watched = pending;
        if pending || state.ping_due {
            // It has its own proof to give first.
        } else if let Some(pinged_at) = state.pinged_at {
            if now.since(pinged_at) >= heartbeat.pong_timeout {
                self.begin_close(
                    id,
                    close_code::PONG_TIMEOUT,
                    "no pong in time",
                    Cause::PongTimeout,
                );
                return;
            }
        } else if interval.is_some_and(|interval| now.since(received_at) >= interval) {
            state.ping_due = true;
            self.mark(index);
        }
        self.arm_heartbeat(index);
    }

    /// Notes that a write to a connection is pending: it has the write timeout to take it, counted from now and looked at
    /// when its timer next fires.
    pub(crate) fn note_pending(&mut self, index: u32) {
        self.slots.set(index, PENDING);
        self.counters.writes_pending += 1;
        let now = self.now;
        let pings = self.config.heartbeat.ping_interval.is_some();
        let Some(state) = self.slots.at(index) else {
            return;
        };
        state.pending_at = now;
        if !pings && state.phase == Phase::Open {
            state.write_watched = true;
            self.arm_heartbeat(index);
        }
    }

    /// Notes that a pending write has left.
    pub(crate) fn note_flushed(&mut self, index: u32) {
        self.slots.clear(index, PENDING);
        let now = self.now;
        let Some(state) = self.slots.at(index) else {
            return;
        };
        let watched = std::mem::take(&mut state.write_watched);
        // A ping that was in the write reaches the peer only now.
        state.pinged_at = state.pinged_at.map(|_| now);
        if (watched || state.pinged_at.is_some()) && state.phase == Phase::Open {
            self.arm_heartbeat(index);
        }
    }
}
