//! Readers that never read: opened with plain blocking sockets, then left alone until the run is over.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustls::StreamOwned;

use crate::client::{Client, Dialect};
use crate::plan::BenchError;
use crate::target::{Dialed, Dialer};

/// So long without a byte means that no more is to come.
const QUIET: Duration = Duration::from_millis(300);
/// So long they are read at most.
const READ_MAX: Duration = Duration::from_secs(10);

/// What became of stalled readers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StalledEnd {
    /// How many the server let go.
    pub(crate) dropped: u64,
    /// Bytes that were there for all of them in the end.
    pub(crate) received_bytes: u64,
}

/// Open connections that nobody reads from. They close when this is dropped.
#[derive(Debug)]
pub(crate) struct Stalled(Vec<TcpStream>);

impl Stalled {
    /// Opens `count` connections, each within `timeout`.
    ///
    /// # Errors
    /// The first that cannot be opened.
    pub(crate) fn open(
        count: u32,
        dialer: &mut Dialer,
        dialect: &mut Dialect,
        timeout: Duration,
    ) -> Result<Stalled, BenchError> {
        let mut streams = Vec::with_capacity(count as usize);
        for number in 0..count {
            let stream = dialer
                .dial_blocking(timeout)
                .and_then(|dialed| open_one(dialed, dialect, timeout))
                .map_err(BenchError::system(format!("cannot open stalled reader {number}")))?;
            streams.push(stream);
        }
        Ok(Stalled(streams))
    }

    /// How many the server has let go, and what was sent to them. The end of a connection stands behind all that was
    /// sent on it, so they are read at last, until nothing more comes.
    pub(crate) fn read_out(self) -> StalledEnd {
        let mut scratch = vec![0; 64 << 10];
        let mut undecided = self.0;
        undecided.retain(|stream| stream.set_nonblocking(true).is_ok());
        let mut end = StalledEnd {
            dropped: 0,
            received_bytes: 0,
        };
        let deadline = Instant::now() + READ_MAX;
        let mut quiet_since = Instant::now();
        while !undecided.is_empty() && quiet_since.elapsed() < QUIET && Instant::now() < deadline {
            let mut idle = true;
            undecided.retain_mut(|stream| match stream.read(&mut scratch) {
                Ok(count @ 1..) => {
                    idle = false;
                    end.received_bytes += count as u64;
                    true
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => true,
                Ok(0) | Err(_) => {
                    end.dropped += 1;
                    false
                }
            });
            if idle {
                std::thread::sleep(Duration::from_millis(1));
            } else {
                quiet_since = Instant::now();
            }
        }
        end
    }
}

fn open_one(dialed: Dialed, dialect: &mut Dialect, timeout: Duration) -> io::Result<TcpStream> {
    let Dialed { mut stream, tls } = dialed;
    match tls {
        None => {
            talk(&mut stream, dialect, timeout)?;
            Ok(stream)
        }
        Some(tls) => {
            let mut secure = StreamOwned::new(tls, stream);
            talk(&mut secure, dialect, timeout)?;
            // TLS has no part in it any more: nothing will be read or written.
            Ok(secure.sock)
        }
    }
}

/// Talks until the connection is open.
fn talk(stream: &mut (impl Read + Write), dialect: &mut Dialect, timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    let mut client = Client::new(dialect);
    let mut scratch = [0; 4096];
    while !client.is_open() {
        if Instant::now() > deadline {
            return Err(ErrorKind::TimedOut.into());
        }
        if !client.out.is_empty() {
            stream.write_all(&client.out.split())?;
            stream.flush()?;
        }
        let count = stream.read(&mut scratch)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        client
            .received(&mut scratch[..count], dialect, &mut |_| {})
            .map_err(|failure| io::Error::other(failure.to_string()))?;
    }
    Ok(())
}
