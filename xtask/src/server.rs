//! A server under test: started on a free port, found by the line it prints, ended with its guard.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::process::{Running, create, name_of, read_line, spawn_piped};

/// How long a server may take to say that it listens.
const START_MAX: Duration = Duration::from_secs(60);

/// A server that listens. Made by [`Server::start`]; ended when it is dropped.
pub struct Server {
    running: Running,
    /// The port it listens on, at 127.0.0.1.
    pub port: u16,
}

impl Server {
    /// Starts `command` and waits for its line that names the port; all it writes goes to the file `log`.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Server> {
        let mut file = create(log)?;
        let (mut running, mut reader) = spawn_piped(command)?;
        let (sender, receiver) = channel();
        // Ends with the server, whose end closes the pipe.
        thread::spawn(move || {
            while let Ok(Some(line)) = read_line(&mut reader) {
                // A log that cannot be written must not stop the pipe from being drained.
                let _ = writeln!(file, "{line}");
                // Nobody listens any more once the port is known.
                let _ = sender.send(line);
            }
        });
        let deadline = Instant::now() + START_MAX;
        loop {
            match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(port) = port_of(&line) {
                        return Ok(Server { running, port });
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "`{}` did not say within {START_MAX:?} that it listens",
                        name_of(command)
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = running.wait()?;
                    let said = std::fs::read_to_string(log).unwrap_or_default();
                    bail!(
                        "`{}` ended ({status}) before it listened: {}",
                        name_of(command),
                        said.trim()
                    );
                }
            }
        }
    }

    /// The process id, for measurements.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Fails where the server has ended by itself.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.running.try_wait().context("cannot look after the server")? {
            None => Ok(()),
            Some(status) => bail!("the server ended by itself: {status}"),
        }
    }
}

/// The port in a line like `listening on ws://127.0.0.1:9002`, `listens at ws://127.0.0.1:9002/` or
/// `listening on 9002`.
fn port_of(line: &str) -> Option<u16> {
    let (_, rest) = line
        .split_once("listening on ")
        .or_else(|| line.split_once("listens at "))?;
    let word = rest.split_whitespace().next()?;
    let word = word.rsplit_once("://").map_or(word, |(_, address)| address);
    let word = word.split('/').next()?;
    let digits = word.rsplit_once(':').map_or(word, |(_, port)| port);
    digits
        .trim_matches(|letter: char| !letter.is_ascii_digit())
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expect: Option<u16>) {
        assert_eq!(port_of(line), expect, "{line:?}");
    }

    #[test]
    fn the_port_is_read_from_the_line() {
        check("listening on 4021", Some(4021));
        check("listening on ws://127.0.0.1:4021", Some(4021));
        check(
            "2026-11-20T10:00:00Z INFO tidegate: listening on ws://127.0.0.1:4021/ driver=epoll",
            Some(4021),
        );
        check(
            "the bare loop listens at ws://127.0.0.1:4021/ (drops)",
            Some(4021),
        );
        check("listening on wss://[::1]:443", Some(443));
        check("listening on \"ws://127.0.0.1:4021\"", Some(4021));
    }

    #[test]
    fn other_lines_have_no_port() {
        check("connections 4 in 3 out 9", None);
        check("listening on a socket", None);
        check("listening on 127.0.0.1:99999", None);
    }

    #[test]
    fn a_server_that_ends_early_is_told_with_its_words() {
        let log = std::env::temp_dir().join(format!("xtask-server-{}.log", std::process::id()));
        let error = Server::start(
            &mut crate::process::command(["sh", "-c", "echo no port; exit 2"]),
            &log,
        )
        .err()
        .unwrap();
        assert!(error.to_string().contains("no port"), "{error}");
        std::fs::remove_file(log).unwrap();
    }
}
