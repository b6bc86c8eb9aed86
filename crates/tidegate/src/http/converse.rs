//! One connection while it speaks HTTP: its requests, and the upgrade that ends it.
//!
//! hyper only borrows the socket. When it is done the socket is still ours: to be handed over with what was already read, or
//! to be closed so that the last answer arrives. No task or buffer of the HTTP side outlives that.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, ready};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use engine::Opening;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use reactor::Adoption;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;
use wire::{DeflateParams, Refusal};

use super::{HEAD_BYTES_MAX, HEADERS_MAX, Http, hand_over, pages};
use crate::broadcast::{Arrival, Seat};

/// How long, and for how many bytes, a refused peer is still listened to, so that the answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 64 << 10;
/// What a client that finds the server full or leaving is told to wait.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("5");

/// A socket that can be taken apart for the hand-off.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// The socket, and TLS if it speaks TLS.
    fn into_parts(self) -> (TcpStream, Option<Box<rustls::Connection>>);
}

impl Socket for TcpStream {
    fn into_parts(self) -> (TcpStream, Option<Box<rustls::Connection>>) {
        (self, None)
    }
}

impl Socket for TlsStream<TcpStream> {
    fn into_parts(self) -> (TcpStream, Option<Box<rustls::Connection>>) {
        let (stream, tls) = self.into_inner();
        (stream, Some(Box::new(tls.into())))
    }
}

/// Serves a connection until it is handed to a shard or ends.
pub(super) async fn converse<S: Socket>(http: &Arc<Http>, mut stream: S, peer: SocketAddr) {
    let voice = Voice::default();
    let requests = Requests {
        http: Arc::clone(http),
        voice: &voice,
        accepted: Cell::new(None),
    };
    let muted = Muted {
        stream: &mut stream,
        voice: &voice,
    };
    let spoken = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(muted), requests)
        .without_shutdown()
        .await;
    let (received, accepted) = match spoken {
        Ok(parts) => (parts.read_buf, parts.service.accepted.take()),
        Err(error) => {
            let refusal = if error.is_parse_too_large() {
                Some(Refusal::HeadTooLong)
            } else {
                error.is_parse().then_some(Refusal::Malformed)
            };
            if let Some(refusal) = refusal {
                http.counts.refused(refusal.name());
                // After an earlier request hyper was heard: its answer, without words, has left.
                if voice.requests.load(Ordering::Relaxed) == 0 {
                    let mut answer = BytesMut::new();
                    refusal.write(&mut answer);
                    // A peer that is gone does not get it.
                    let _ = stream.write_all(&answer).await;
                }
            }
            (Default::default(), None)
        }
    };
    let Some(Accepted {
        path,
        deflate,
        greeting,
        seat,
    }) = accepted
    else {
        return linger(stream).await;
    };
    let (stream, tls) = stream.into_parts();
    // Fails if the socket cannot be taken from the runtime; then there is nothing left to serve.
    let Ok(stream) = stream.into_std() else { return };
    let opening = Opening {
        info: Arrival { path, peer, seat },
        deflate,
        greeting,
    };
    // Copied, because the slice keeps the whole of hyper's buffer alive, and on another thread.
    let received = Bytes::copy_from_slice(&received);
    hand_over(
        http,
        Adoption {
            stream,
            tls,
            received,
            opening,
        },
    )
    .await;
}

/// Closes a connection in order: what was sent arrives even if the peer was still sending.
async fn linger(mut stream: impl Socket) {
    let drain = async {
        stream.shutdown().await?;
        let mut rest = stream.take(LINGER_BYTES_MAX as u64);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // However it ends, it ends.
    let _ = timeout(LINGER, drain).await;
}

/// Whether hyper is heard on the socket.
#[derive(Default)]
struct Voice {
    /// Requests that came.
    requests: AtomicU32,
    /// The shard answers in hyper's place.
    handed_over: AtomicBool,
}

impl Voice {
    fn is_heard(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0 && !self.handed_over.load(Ordering::Relaxed)
    }
}

/// A socket on which hyper is heard only between the first request and the upgrade. Its own answer to what is no request has no
/// words, and is replaced by one that has. Its answer to an upgrade would arrive before the connection is in its room: the
/// shard gives that answer.
struct Muted<'a, S> {
    stream: &'a mut S,
    voice: &'a Voice,
}

impl<S: Socket> AsyncRead for Muted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(context, buffer)
    }
}

impl<S: Socket> AsyncWrite for Muted<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.voice.is_heard() {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut *self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.voice.is_heard() {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        Pin::new(&mut *self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(context)
    }
}

/// An upgrade that was answered with 101.
struct Accepted {
    path: Box<str>,
    deflate: Option<DeflateParams>,
    /// The answer, if hyper was kept from giving it.
    greeting: Bytes,
    seat: Seat,
}

/// Answers the requests of one connection.
struct Requests<'a> {
    http: Arc<Http>,
    voice: &'a Voice,
    /// Set by the request that ends HTTP on this connection.
    accepted: Cell<Option<Accepted>>,
}

impl Service<Request<Incoming>> for Requests<'_> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.voice.requests.fetch_add(1, Ordering::Relaxed);
        if pages::is_page(request.uri().path()) && !request.headers().contains_key(header::UPGRADE) {
            return Box::pin(self.http.pages.clone().oneshot(request));
        }
        let response = self.upgrade(&request).unwrap_or_else(|no| {
            self.http.counts.refused(no.reason());
            no.response(request.method() == Method::HEAD)
        });
        Box::pin(ready(Ok(response)))
    }
}

impl Requests<'_> {
    fn upgrade(&self, request: &Request<Incoming>) -> Result<Response<Body>, No> {
        let http = &self.http;
        let headers: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        let http11 = request.version() == http::Version::HTTP_11;
        let method = request.method().as_str();
        let acceptance = wire::handshake::check(method, http11, headers.iter().copied(), &http.policy)
            .map_err(No::Refused)?;
        if http.counts.draining.load(Ordering::Relaxed) {
            return Err(No::Draining);
        }
        let seat = http.seats.take(http.connections_max).ok_or(No::Full)?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in acceptance.headers() {
            // The values are made of tokens that were checked or of our own.
            if let Ok(value) = HeaderValue::from_str(value) {
                response
                    .headers_mut()
                    .append(HeaderName::from_static(name), value);
            }
        }
        let mut greeting = BytesMut::new();
        // After an earlier request hyper may still have an answer on its way, and gives this one behind it.
        if self.voice.requests.load(Ordering::Relaxed) == 1 {
            acceptance.write(&mut greeting);
            self.voice.handed_over.store(true, Ordering::Relaxed);
        }
        let path = request.uri().path().into();
        self.accepted.set(Some(Accepted {
            path,
            deflate: acceptance.deflate,
            greeting: greeting.freeze(),
            seat,
        }));
        Ok(response)
    }
}

/// Why there is no upgrade.
enum No {
    Refused(Refusal),
    Full,
    Draining,
}

impl No {
    fn reason(&self) -> &'static str {
        match self {
            No::Refused(refusal) => refusal.name(),
            No::Full => "full",
            No::Draining => "draining",
        }
    }

    /// One sentence, and the end of the connection.
    fn response(&self, head_only: bool) -> Response<Body> {
        let (status, sentence) = match self {
            No::Refused(refusal) => (refusal.status(), refusal.sentence()),
            No::Full => (
                503,
                "The server has as many connections as it takes; try again later.",
            ),
            No::Draining => (503, "The server is shutting down; connect again."),
        };
        let body = if head_only {
            Body::empty()
        } else {
            Body::from(format!("{sentence}\n"))
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(status).expect("statuses are constants of RFC 9110");
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        match self {
            No::Refused(refusal) => {
                for &(name, value) in refusal.headers() {
                    headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
                }
            }
            No::Full | No::Draining => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER_S);
            }
        }
        response
    }
}
