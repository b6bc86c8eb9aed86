//! What the tests share: the real program as a child, and a client that can misbehave.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod certificate;
pub mod raw;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

pub use raw::Raw;

/// Longer than anything here takes; a wait this long is a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Both ways to drive sockets; where io_uring is missing the second is the first again.
pub const DRIVERS: [&str; 2] = ["epoll", "uring"];

/// `tidegate broadcast` on a free port; killed when dropped.
pub struct Server {
    child: Child,
    lines: Receiver<String>,
    pub address: SocketAddr,
}

impl Server {
    /// Starts it on loopback and waits until it listens.
    pub fn start(flags: &[&str]) -> Server {
        Server::start_as(Command::new(program()), flags)
    }

    /// The same with a limit of open files.
    pub fn start_with_descriptors(limit: usize, flags: &[&str]) -> Server {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh", program()]);
        Server::start_as(shell, flags)
    }

    fn start_as(mut command: Command, flags: &[&str]) -> Server {
        let workers: &[&str] = if flags.contains(&"--workers") {
            &[]
        } else {
            &["--workers", "2"]
        };
        let mut child = command
            .args(["broadcast", "--addr", "127.0.0.1:0"])
            .args(workers)
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let lines = read_lines(child.stdout.take().unwrap());
        let line = wait_for_line(&lines, "listening on ");
        let address = line
            .split("://")
            .nth(1)
            .and_then(|rest| rest.split([' ', '"']).next())
            .unwrap();
        Server {
            child,
            lines,
            address: address.parse().expect("the line holds the real address"),
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.address)
    }

    /// The next log line that holds `part`; lines before it are gone.
    pub fn wait_for_line(&self, part: &str) -> String {
        wait_for_line(&self.lines, part)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server did not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// `GET path` over a connection of its own: the whole answer, head and body.
    pub fn get(&self, path: &str) -> String {
        ask(
            self.address,
            &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        )
    }

    /// The sum of all samples of a metric whose labels hold `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        self.get("/metrics")
            .lines()
            .filter(|line| !line.starts_with('#') && line.contains(labels))
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// Waits until a metric has at least this value.
    pub fn wait_for_metric(&self, name: &str, labels: &str, least: f64) {
        wait_until(&format!("{name}{{{labels}}} >= {least}"), || {
            self.metric(name, labels) >= least
        });
    }

    /// Waits until this many connections are open and hear the room. The answer to an upgrade leaves before the connection is
    /// on its shard, and that shard tells the room's home of its first member.
    pub fn wait_for_members(&self, count: usize) {
        self.wait_for_metric("tidegate_connections", "", count as f64);
        // Each reading is a turn of each shard, and mail sent in one turn is taken in the next.
        for _ in 0..3 {
            self.get("/metrics");
        }
    }

    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the program to its end: exit code, standard output, standard error.
pub fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(program())
        .args(arguments)
        .output()
        .expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program prints text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

pub fn program() -> &'static str {
    env!("CARGO_BIN_EXE_tidegate")
}

/// Sends `request` and reads all that comes until the server closes.
pub fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the server accepts");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).expect("the request leaves");
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .expect("the server closes in order");
    String::from_utf8(answer).expect("the answer is text")
}

/// Polls until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain waited for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn read_lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

fn wait_for_line(lines: &Receiver<String>, part: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line.contains(part) => return line,
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => panic!("no line with {part:?} came"),
            Err(RecvTimeoutError::Disconnected) => panic!("the program ended without a line with {part:?}"),
        }
    }
}
