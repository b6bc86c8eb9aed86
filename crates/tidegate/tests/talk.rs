//! Clients that behave: what they say to each other, plain and over TLS, on each driver.

#![allow(clippy::unwrap_used, reason = "a test that fails here has said enough")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use support::raw::{BINARY, FIN, PING, PONG, TEXT, frame};
use support::{DRIVERS, PATIENCE, Raw, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;
type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(server: &Server, path: &str) -> Client {
    connect_async(server.url(path))
        .await
        .expect("the upgrade is good")
        .0
}

async fn next(client: &mut Client) -> Message {
    timeout(PATIENCE, client.next())
        .await
        .expect("a message in time")
        .expect("not the end")
        .expect("no error")
}

/// Two clients of one shard and of two, and what one hears of the other.
async fn two_talk(server: &Server) {
    two_talk_beside(server, 0).await;
}

/// The same while this many others are connected.
async fn two_talk_beside(server: &Server, others: usize) {
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(connect(server, "/any/path?and=query").await);
    }
    server.wait_for_members(others + 3);
    for message in [
        Message::text("grüße"),
        Message::binary(vec![0, 255, 1, 2]),
        Message::text(""),
    ] {
        clients[0].send(message.clone()).await.unwrap();
        for other in &mut clients[1..] {
            assert_eq!(next(other).await, message);
        }
    }
    // The first thing the sender hears is what another says, not its own.
    clients[2].send(Message::text("answer")).await.unwrap();
    assert_eq!(next(&mut clients[0]).await, Message::text("answer"));
}

#[tokio::test]
async fn each_message_goes_to_all_others_unchanged() {
    for driver in DRIVERS {
        two_talk(&Server::start(&["--driver", driver])).await;
    }
}

#[tokio::test]
async fn who_has_its_101_hears_the_next_message() {
    for driver in DRIVERS {
        let server = Server::start(&["--driver", driver, "--workers", "1"]);
        let mut speaker = connect(&server, "/").await;
        for round in 0..100 {
            let mut listener = connect(&server, "/").await;
            let message = Message::text(round.to_string());
            speaker.send(message.clone()).await.unwrap();
            assert_eq!(next(&mut listener).await, message);
        }
    }
}

#[tokio::test]
async fn a_flush_delay_delivers_the_same() {
    two_talk(&Server::start(&["--flush-delay", "2ms"])).await;
    two_talk(&Server::start(&["--flush-delay", "auto"])).await;
}

#[tokio::test]
async fn the_smallest_batch_and_rings_serve() {
    for driver in DRIVERS {
        let server = Server::start(&["--driver", driver, "-batch=1", "-ring=1"]);
        let _crowd: Vec<Raw> = (0..50).map(|_| Raw::connect(server.address, "/crowd")).collect();
        server.wait_for_members(50);
        two_talk_beside(&server, 50).await;
    }
}

#[tokio::test]
async fn echo_goes_to_its_sender_alone() {
    let server = Server::start(&[]);
    let (mut echo, mut other) = (connect(&server, "/echo?x").await, connect(&server, "/").await);
    let mut hearer = connect(&server, "/").await;
    server.wait_for_members(3);
    echo.send(Message::text("me")).await.unwrap();
    assert_eq!(next(&mut echo).await, Message::text("me"));
    other.send(Message::text("you")).await.unwrap();
    assert_eq!(next(&mut hearer).await, Message::text("you"));
    echo.send(Message::binary(vec![7])).await.unwrap();
    assert_eq!(
        next(&mut echo).await,
        Message::binary(vec![7]),
        "echo does not hear the room"
    );
}

#[tokio::test]
async fn a_large_message_arrives_whole() {
    for driver in DRIVERS {
        let server = Server::start(&["--driver", driver, "--max-message", "8MiB"]);
        let (mut sender, mut receiver) = (connect(&server, "/").await, connect(&server, "/").await);
        server.wait_for_members(2);
        let payload: Vec<u8> = (0..8_000_000_u32).map(|number| (number % 251) as u8).collect();
        sender.send(Message::binary(payload.clone())).await.unwrap();
        assert!(next(&mut receiver).await == Message::binary(payload), "{driver}");
    }
}

#[tokio::test]
async fn a_closing_client_is_answered_with_its_code() {
    let server = Server::start(&[]);
    let mut client = connect(&server, "/").await;
    let frame = CloseFrame {
        code: CloseCode::Library(4321),
        reason: "bye".into(),
    };
    client.close(Some(frame)).await.unwrap();
    match next(&mut client).await {
        Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), 4321),
        other => panic!("not a close frame: {other:?}"),
    }
    server.wait_for_metric("tidegate_closed_total", "reason=\"peer\"", 1.0);
}

#[test]
fn fragments_arrive_as_one_message_with_control_frames_between() {
    let server = Server::start(&[]);
    let mut raw = Raw::connect(server.address, "/echo");
    raw.send(&frame(TEXT, b"one "));
    raw.send(&frame(FIN | PING, b"are you there"));
    raw.send(&frame(0, b"two "));
    raw.send(&frame(FIN, b"three"));
    let pong = raw.read_frame();
    assert_eq!(
        (pong.first, pong.payload.as_slice()),
        (FIN | PONG, &b"are you there"[..])
    );
    raw.expect_text("one two three");
}

#[test]
fn what_was_sent_with_the_request_is_not_lost() {
    for driver in DRIVERS {
        let server = Server::start(&["--driver", driver]);
        let stream = std::net::TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut raw = Raw { stream };
        let mut bytes = support::raw::upgrade("/echo", "").into_bytes();
        bytes.extend(frame(FIN | TEXT, b"early"));
        bytes.extend(frame(FIN | BINARY, b"bird")[..4].iter());
        raw.send(&bytes);
        assert!(raw.read_head().starts_with("HTTP/1.1 101 "));
        raw.expect_text("early");
        raw.send(&frame(FIN | BINARY, b"bird")[4..]);
        assert_eq!(raw.read_frame().payload, b"bird");
    }
}

#[tokio::test]
async fn compressed_messages_reach_clients_with_and_without() {
    let server = Server::start(&["--compress"]);
    let options = yawc::Options::default().with_compression_level(yawc::CompressionLevel::fast());
    let url = server.url("/").parse().unwrap();
    let mut squeezed = yawc::WebSocket::connect(url)
        .with_options(options)
        .await
        .expect("the upgrade is good");
    let mut plain = connect(&server, "/").await;
    server.wait_for_members(2);
    let text = "the same again and ".repeat(500);
    squeezed.send(yawc::Frame::text(text.clone())).await.unwrap();
    assert_eq!(next(&mut plain).await, Message::text(text.clone()));

    let out_before = server.metric("tidegate_traffic_bytes_total", "direction=\"out\"");
    plain.send(Message::text(text.clone())).await.unwrap();
    let heard = timeout(PATIENCE, squeezed.next())
        .await
        .expect("in time")
        .expect("not the end");
    assert_eq!(heard.payload(), text.as_bytes());
    let out = server.metric("tidegate_traffic_bytes_total", "direction=\"out\"") - out_before;
    assert!(out < text.len() as f64 / 10.0, "{out} bytes left: not compressed");
}

#[test]
fn compression_is_agreed_only_when_it_is_on() {
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    let (_raw, head) = Raw::connect_with(Server::start(&[]).address, "/", offer);
    assert!(!head.to_lowercase().contains("permessage-deflate"), "{head}");
    let (_raw, head) = Raw::connect_with(Server::start(&["--compress"]).address, "/", offer);
    let head = head.to_lowercase();
    assert!(
        head.contains("server_no_context_takeover"),
        "one compressed message serves all: {head}"
    );
}

#[tokio::test]
async fn tls_carries_the_same() {
    for driver in DRIVERS {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let files = support::certificate::files();
            let [certificate, key] = files.paths();
            let flags = ["--driver", driver, "--tls-cert", &certificate, "--tls-key", &key];
            let server = Server::start(&[&flags[..], &["--stats-interval", "20ms"]].concat());
            let (mut one, mut two) = (
                connect_tls(&server, &files, version).await,
                connect_tls(&server, &files, version).await,
            );
            // The pages speak TLS too, so the log tells that both are in; a few turns later their room knows.
            for _ in 0..4 {
                server.wait_for_line(" 2 connections");
            }
            for message in [Message::text("secret"), Message::binary(vec![3; 300_000])] {
                one.send(message.clone()).await.unwrap();
                let heard = timeout(PATIENCE, two.next())
                    .await
                    .expect("in time")
                    .unwrap()
                    .unwrap();
                assert!(heard == message, "{driver} {version:?}");
            }
            one.close(None).await.unwrap();
            while let Ok(Some(Ok(_))) = timeout(Duration::from_secs(5), one.next()).await {}
            server_forgets(&server, two).await;
        }
    }
}

/// The server is still well after a TLS client left: the other one can close in order.
async fn server_forgets(_server: &Server, mut client: WebSocketStream<TlsStream>) {
    client.close(None).await.unwrap();
    let answer = timeout(PATIENCE, client.next()).await.expect("in time");
    assert!(matches!(answer, Some(Ok(Message::Close(_)))), "{answer:?}");
}

async fn connect_tls(
    server: &Server,
    files: &support::certificate::Files,
    version: &'static rustls::SupportedProtocolVersion,
) -> WebSocketStream<TlsStream> {
    let stream = open_tls(server, files, version).await;
    tokio_tungstenite::client_async("wss://localhost/", stream)
        .await
        .expect("the upgrade is good")
        .0
}

async fn open_tls(
    server: &Server,
    files: &support::certificate::Files,
    version: &'static rustls::SupportedProtocolVersion,
) -> TlsStream {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(files.certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.expect("TLS")
}

#[tokio::test]
async fn what_was_sent_with_the_request_is_not_lost_over_tls() {
    for driver in DRIVERS {
        let files = support::certificate::files();
        let [certificate, key] = files.paths();
        let server = Server::start(&["--driver", driver, "--tls-cert", &certificate, "--tls-key", &key]);
        let mut stream = open_tls(&server, &files, &rustls::version::TLS13).await;
        let mut bytes = support::raw::upgrade("/echo", "").into_bytes();
        bytes.extend(frame(FIN | TEXT, b"early"));
        stream.write_all(&bytes).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"\r\n\r\n\x81\x05early") {
            let read = timeout(PATIENCE, stream.read_buf(&mut heard))
                .await
                .expect("in time")
                .unwrap();
            assert_ne!(read, 0, "{driver}: {:?}", String::from_utf8_lossy(&heard));
        }
    }
}

#[test]
fn connections_are_spread_over_the_shards() {
    let server = Server::start(&[]);
    let _clients: Vec<Raw> = (0..6).map(|_| Raw::connect(server.address, "/")).collect();
    server.wait_for_members(6);
    for shard in ["shard=\"0\"", "shard=\"1\""] {
        assert_eq!(server.metric("tidegate_connections", shard), 3.0);
    }
}

#[test]
fn an_upgrade_may_follow_other_requests_on_its_connection() {
    let server = Server::start(&[]);
    let stream = std::net::TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut raw = Raw { stream };
    raw.send(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(raw.read_head().starts_with("HTTP/1.1 200 "));
    raw.send(support::raw::upgrade("/echo", "").as_bytes());
    assert!(raw.read_head().starts_with("HTTP/1.1 101 "));
    raw.send_text("on the same socket");
    raw.expect_text("on the same socket");
}
