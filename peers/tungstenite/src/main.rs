//! A broadcast server on tokio-tungstenite, written the plain way: a task to read and a task to write for each
//! connection, and an unbounded queue between. It is what Tidegate is compared with, never part of it.
//!
//! Usage: `tungstenite-peer PORT`; port 0 takes a free one, and the line printed names it. Every text or binary
//! message goes to all other connections; on the path `/echo` it returns to its sender alone.

use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error;
use std::net::SocketAddr;
use std::rc::Rc;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

/// Connections of the backlog: a storm of thousands must not lose its SYNs.
const BACKLOG: i32 = 4096;

/// The queue of each open connection, by its number.
type Members = Rc<RefCell<HashMap<u64, UnboundedSender<Message>>>>;

fn main() -> Result<(), Box<dyn Error>> {
    let port = std::env::args().nth(1).unwrap_or_default().parse().unwrap_or(0);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    LocalSet::new().block_on(&runtime, serve(port))
}

/// Accepts connections until the process is ended.
async fn serve(port: u16) -> Result<(), Box<dyn Error>> {
    let listener = listen(port)?;
    println!("listening on {}", listener.local_addr()?.port());
    let members = Members::default();
    for number in 0_u64.. {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::task::spawn_local(connection(stream, number, Rc::clone(&members)));
    }
    Ok(())
}

/// A listener with a backlog deep enough for a storm of connects.
fn listen(port: u16) -> Result<TcpListener, Box<dyn Error>> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into())?)
}

/// One connection from its upgrade to its end.
#[allow(clippy::result_large_err, reason = "the callback's type is the library's")]
async fn connection(stream: TcpStream, number: u64, members: Members) {
    let mut echoes = false;
    let on_upgrade = |request: &Request, response: Response| {
        echoes = request.uri().path() == "/echo";
        Ok(response)
    };
    let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, on_upgrade).await else {
        return;
    };
    let (sink, stream) = socket.split();
    let (sender, receiver) = unbounded_channel();
    members.borrow_mut().insert(number, sender);
    tokio::task::spawn_local(write(sink, receiver));
    read(stream, number, echoes, &members).await;
    members.borrow_mut().remove(&number);
}

/// Hands each message on until the peer leaves.
async fn read(
    mut stream: SplitStream<WebSocketStream<TcpStream>>,
    number: u64,
    echoes: bool,
    members: &Members,
) {
    while let Some(Ok(message)) = stream.next().await {
        if !message.is_text() && !message.is_binary() {
            continue;
        }
        for (member, queue) in members.borrow().iter() {
            if (*member == number) == echoes {
                // A queue whose writer has ended is removed by its own reader.
                let _ = queue.send(message.clone());
            }
        }
    }
}

/// Writes what is queued, all that waits before each flush, until the queue ends or the peer leaves.
async fn write(
    mut sink: SplitSink<WebSocketStream<TcpStream>, Message>,
    mut queue: UnboundedReceiver<Message>,
) {
    while let Some(message) = queue.recv().await {
        let mut next = Some(message);
        while let Some(message) = next {
            if sink.feed(message).await.is_err() {
                return;
            }
            next = queue.try_recv().ok();
        }
        if sink.flush().await.is_err() {
            return;
        }
    }
}
