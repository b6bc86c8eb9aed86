//! What a write costs: fan-out to many sockets through the reactor, against a bare loop of `send`, in one run.
//!
//! `cargo run --release -p tidegate-reactor --example cost [sockets] [rounds]`. Peers are read by a second thread.
//! Each case sends one frame of 128 bytes, or several at once, to every socket, round after round; the figure is CPU
//! time of the sending thread for each socket and round, and its ratio to the bare loop.
#![allow(clippy::unwrap_used, reason = "a measurement, not a product")]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::{Actions, ConnectionId, Letter, Machine, SocketEnd, Time, Wrote};
use reactor::{Adoption, Call, DriverKind, Options, spawn};

const FRAME_BYTES: usize = 128;

/// CPU time of the calling thread.
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

/// Asks for a round.
#[derive(Debug)]
struct Go;

impl Letter for Go {
    fn bytes(&self) -> usize {
        0
    }

    fn is_request(&self) -> bool {
        false
    }
}

/// Sends `parts` to all its connections each time a round is asked for.
struct FanOut {
    connections: u32,
    busy: usize,
    due: bool,
    parts: Vec<Bytes>,
    done: Sender<Duration>,
}

impl Machine for FanOut {
    type Opening = ();
    type Mail = Go;

    fn opened(&mut self, (): (), _: Time, _: &mut impl Actions<Go>) -> Option<ConnectionId> {
        self.connections += 1;
        Some(ConnectionId {
            index: self.connections - 1,
            generation: 0,
        })
    }

    fn received(&mut self, _: ConnectionId, _: &mut [u8], _: Time, _: &mut impl Actions<Go>) {}

    fn flushed(&mut self, _: ConnectionId, _: Time, _: &mut impl Actions<Go>) {
        self.busy -= 1;
        if self.busy == 0 {
            self.done.send(thread_cpu()).unwrap();
        }
    }

    fn ended(&mut self, _: ConnectionId, _: SocketEnd, _: Time, _: &mut impl Actions<Go>) {}

    fn mail(&mut self, Go: Go, _: Time, _: &mut impl Actions<Go>) {
        self.due = true;
    }

    fn advance(&mut self, _: Time, _: &mut impl Actions<Go>) {}

    fn flush(&mut self, _: Time, actions: &mut impl Actions<Go>) {
        if !std::mem::take(&mut self.due) {
            return;
        }
        for index in 0..self.connections {
            match actions.write(ConnectionId { index, generation: 0 }, &self.parts) {
                Wrote::Done => {}
                Wrote::Pending => self.busy += 1,
                Wrote::Failed => panic!("a peer is gone"),
            }
        }
        if self.busy == 0 {
            self.done.send(thread_cpu()).unwrap();
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        None
    }
}

/// Sockets whose other ends a thread reads, which says when each round of `round_bytes` has arrived.
struct Peers {
    sockets: Vec<TcpStream>,
    arrived: std::sync::mpsc::Receiver<()>,
}

fn peers(count: usize, round_bytes: usize) -> Peers {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sockets = Vec::new();
    let mut far = Vec::new();
    for _ in 0..count {
        sockets.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        far.push(listener.accept().unwrap().0);
    }
    let (sender, arrived) = channel();
    std::thread::spawn(move || {
        let mut scratch = vec![0; 1 << 16];
        loop {
            for socket in &mut far {
                let mut got = 0;
                while got < round_bytes {
                    match socket.read(&mut scratch) {
                        Ok(0) => return,
                        Ok(length) => got += length,
                        Err(error) => {
                            assert!(error.kind() == ErrorKind::ConnectionReset);
                            return;
                        }
                    }
                }
            }
            if sender.send(()).is_err() {
                return;
            }
        }
    });
    Peers { sockets, arrived }
}

/// Nanoseconds for each socket and round of a loop that does nothing but `send`.
fn bare(count: usize, rounds: usize, frames: usize) -> f64 {
    let Peers { sockets, arrived } = peers(count, frames * FRAME_BYTES);
    let bytes = vec![b'x'; frames * FRAME_BYTES];
    let mut spent = Duration::ZERO;
    for socket in &sockets {
        socket.set_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
    }
    for _ in 0..rounds {
        let before = thread_cpu();
        for mut socket in &sockets {
            assert_eq!(socket.write(&bytes).unwrap(), bytes.len());
        }
        spent += thread_cpu() - before;
        arrived.recv().unwrap();
    }
    spent.as_nanos() as f64 / (rounds * count) as f64
}

/// The same through the reactor, each frame a part of its own.
fn through(driver: DriverKind, count: usize, rounds: usize, frames: usize) -> f64 {
    let Peers { sockets, arrived } = peers(count, frames * FRAME_BYTES);
    let (done, finished) = channel();
    let options = Options {
        driver,
        ring: 4096,
        ..Options::default()
    };
    let parts = (0..frames)
        .map(|_| Bytes::from(vec![b'x'; FRAME_BYTES]))
        .collect::<Vec<_>>();
    let group = spawn(1, &options, |_| FanOut {
        connections: 0,
        busy: 0,
        due: false,
        parts: parts.clone(),
        done: done.clone(),
    })
    .unwrap();
    assert_eq!(group.driver(), driver);
    let handle = &group.handles[0];
    for stream in sockets {
        let mut adoption = Adoption {
            stream,
            tls: None,
            received: Bytes::new(),
            opening: (),
        };
        while let Err(back) = handle.adopt(adoption) {
            adoption = back;
            std::thread::yield_now();
        }
    }
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        let (sender, before) = channel();
        let call = move |_: &mut FanOut, _: &reactor::TurnStats| sender.send(thread_cpu()).unwrap();
        // The inbox may still be full of adoptions.
        let mut call: Call<FanOut> = Box::new(call);
        while let Err(back) = handle.call(call) {
            call = back;
            std::thread::yield_now();
        }
        let before = before.recv().unwrap();
        handle.mail(Go).unwrap();
        spent += finished.recv().unwrap() - before;
        arrived.recv().unwrap();
    }
    handle.stop();
    group.join().unwrap();
    spent.as_nanos() as f64 / (rounds * count) as f64
}

/// The least disturbed figure: what else runs on the machine only adds.
fn least(figures: Vec<f64>) -> f64 {
    figures.into_iter().fold(f64::INFINITY, f64::min)
}

/// Sends back what comes, at the end of each turn.
#[derive(Default)]
struct Echo {
    connections: u32,
    due: Vec<(ConnectionId, Bytes)>,
}

impl Machine for Echo {
    type Opening = ();
    type Mail = Go;

    fn opened(&mut self, (): (), _: Time, _: &mut impl Actions<Go>) -> Option<ConnectionId> {
        self.connections += 1;
        Some(ConnectionId {
            index: self.connections - 1,
            generation: 0,
        })
    }

    fn received(&mut self, id: ConnectionId, bytes: &mut [u8], _: Time, _: &mut impl Actions<Go>) {
        self.due.push((id, Bytes::copy_from_slice(bytes)));
    }

    fn flushed(&mut self, _: ConnectionId, _: Time, _: &mut impl Actions<Go>) {}

    fn ended(&mut self, _: ConnectionId, _: SocketEnd, _: Time, _: &mut impl Actions<Go>) {}

    fn mail(&mut self, Go: Go, _: Time, _: &mut impl Actions<Go>) {}

    fn advance(&mut self, _: Time, _: &mut impl Actions<Go>) {}

    fn flush(&mut self, _: Time, actions: &mut impl Actions<Go>) {
        for (id, bytes) in self.due.drain(..) {
            assert_ne!(actions.write(id, &[bytes]), Wrote::Failed);
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        None
    }
}

/// Nanoseconds for each frame that comes and goes back.
fn echo(driver: DriverKind, count: usize, rounds: usize) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = Options {
        driver,
        ring: 4096,
        ..Options::default()
    };
    let group = spawn(1, &options, |_| Echo::default()).unwrap();
    let handle = &group.handles[0];
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let stream = listener.accept().unwrap().0;
        let mut adoption = Adoption {
            stream,
            tls: None,
            received: Bytes::new(),
            opening: (),
        };
        while let Err(back) = handle.adopt(adoption) {
            adoption = back;
            std::thread::yield_now();
        }
    }
    let cpu = || {
        let (sender, cpu) = channel();
        let call = move |_: &mut Echo, _: &reactor::TurnStats| sender.send(thread_cpu()).unwrap();
        handle.call(Box::new(call)).map_err(drop).unwrap();
        cpu.recv().unwrap()
    };
    let before = cpu();
    for _ in 0..rounds {
        for client in &mut clients {
            client.write_all(&[b'x'; FRAME_BYTES]).unwrap();
        }
        for client in &mut clients {
            client.read_exact(&mut [0; FRAME_BYTES]).unwrap();
        }
    }
    let spent = cpu() - before;
    handle.stop();
    group.join().unwrap();
    spent.as_nanos() as f64 / (rounds * count) as f64
}

fn main() {
    let number = |place: usize, default: usize| {
        std::env::args()
            .nth(place)
            .map_or(default, |text| text.parse().expect("a number"))
    };
    let (count, rounds) = (number(1, 1000), number(2, 100));
    let start = Instant::now();
    println!("{count} sockets, {rounds} rounds, frames of {FRAME_BYTES} bytes, least of 7");
    println!("frames at once |  bare ns | epoll ns ratio | uring ns ratio");
    for frames in [1, 8, 32] {
        let mut figures = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..7 {
            figures[0].push(bare(count, rounds, frames));
            figures[1].push(through(DriverKind::Epoll, count, rounds, frames));
            figures[2].push(through(DriverKind::Uring, count, rounds, frames));
        }
        let [bare, epoll, uring] = figures.map(least);
        let (epoll_ratio, uring_ratio) = (epoll / bare, uring / bare);
        println!("{frames:14} | {bare:8.0} | {epoll:8.0} {epoll_ratio:5.3} | {uring:8.0} {uring_ratio:5.3}");
    }
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..7 {
        figures[0].push(echo(DriverKind::Epoll, count, rounds));
        figures[1].push(echo(DriverKind::Uring, count, rounds));
    }
    let [epoll, uring] = figures.map(least);
    println!(
        "echo of one frame: epoll {epoll:.0} ns, uring {uring:.0} ns, ratio {:.3}",
        uring / epoll
    );
    println!("took {:.1} s", start.elapsed().as_secs_f64());
}
