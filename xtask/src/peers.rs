//! The rival servers under `peers/`: installed, built, and started.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::install::npm_packages;
use crate::process::{command, run_quietly, target_folder};
use crate::server::Server;

/// A server of someone else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// npm `ws`.
    Ws,
    /// npm `socket.io`.
    SocketIo,
    /// The crate tokio-tungstenite.
    Tungstenite,
}

impl Peer {
    /// All of them.
    pub const ALL: [Peer; 3] = [Peer::Ws, Peer::SocketIo, Peer::Tungstenite];

    /// Its name in tables and file names.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Ws => "ws",
            Peer::SocketIo => "socket.io",
            Peer::Tungstenite => "tokio-tungstenite",
        }
    }

    /// Installs and builds it.
    pub fn prepare(self) -> anyhow::Result<()> {
        match self {
            Peer::Ws | Peer::SocketIo => npm_packages(),
            Peer::Tungstenite => build_tungstenite(),
        }
    }

    /// The words that start it on a free port, once it is prepared.
    pub fn words(self) -> anyhow::Result<Vec<String>> {
        let words = match self {
            Peer::Ws => vec!["node".into(), "peers/ws/server.js".into(), "0".into()],
            Peer::SocketIo => vec!["node".into(), "peers/socketio/server.js".into(), "0".into()],
            Peer::Tungstenite => {
                let program = target_folder()?.join("peers/release/tungstenite-peer");
                vec![program.to_string_lossy().into_owned(), "0".into()]
            }
        };
        Ok(words)
    }

    /// The path on which it takes WebSocket connections.
    pub fn path(self) -> &'static str {
        match self {
            Peer::SocketIo => "/socket.io/?EIO=4&transport=websocket",
            Peer::Ws | Peer::Tungstenite => "/",
        }
    }
}

/// Builds the tokio-tungstenite server, which is no member of the workspace.
fn build_tungstenite() -> anyhow::Result<()> {
    let target = target_folder()?;
    let mut build = command(["cargo", "build", "--release", "--locked", "--manifest-path"]);
    build
        .arg("peers/tungstenite/Cargo.toml")
        .env("CARGO_TARGET_DIR", target.join("peers"));
    run_quietly(&mut build, &target.join("log/tungstenite-build.log"))
}

/// Starts every rival and sees whether it takes an upgrade, so that a comparison does not find out too late.
pub fn check_all() -> anyhow::Result<String> {
    for peer in Peer::ALL {
        peer.prepare()?;
        let words = peer.words()?;
        let log = target_folder()?.join(format!("log/peer-{}.log", peer.name()));
        let server = Server::start(Command::new(&words[0]).args(&words[1..]), &log)?;
        check_upgrade(server.port, peer.path()).with_context(|| peer.name().to_owned())?;
        println!("{} answers on port {}", peer.name(), server.port);
    }
    Ok(format!("{} servers answer", Peer::ALL.len()))
}

/// Asks for an upgrade and reads whether it is granted.
fn check_upgrade(port: u16, path: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    if &answer != b"HTTP/1.1 101" {
        bail!(
            "an upgrade was answered with {:?}",
            String::from_utf8_lossy(&answer)
        );
    }
    Ok(())
}
