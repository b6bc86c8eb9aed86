//! Servers that the bare loop is not: with TLS, and with every fault that a run must find.
#![expect(clippy::unwrap_used, reason = "a test's way to fail")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use load::Manner;
use load::plan::{Format, Pace, Plan, Protocol, Scenario, Traffic};
use load::report::Report;
use load::target::Trust;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use wire::{Codec, Decoder, Item, Opcode, Policy, Role, encode_frame};

/// What a server sends back for a connection's message with this number, from 0.
type Answer = fn(u32, &[u8]) -> Vec<Vec<u8>>;

/// Accepts for ever, a thread for each connection.
fn start(tls: Option<Arc<ServerConfig>>, answer: Answer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let tls = tls.clone();
            thread::spawn(move || match tls {
                None => serve(stream, answer),
                Some(config) => {
                    let connection = ServerConnection::new(config).unwrap();
                    serve(StreamOwned::new(connection, stream), answer);
                }
            });
        }
    });
    address
}

/// One connection until it ends; a peer that does not like us is none of our concern.
fn serve(mut stream: impl Read + Write, answer: Answer) {
    let mut codec = Codec::new(Role::Server, 1 << 20);
    let mut decoder = Decoder::new(None);
    let mut scratch = [0; 4096];
    let mut upgraded = false;
    let mut number = 0;
    while let Ok(count @ 1..) = stream.read(&mut scratch) {
        let mut input = &mut scratch[..count];
        let mut out = BytesMut::new();
        if !upgraded {
            // A request of this loader comes in one piece.
            let head = wire::handshake::parse_head(input).unwrap().unwrap();
            head.check(&Policy::default()).unwrap().write(&mut out);
            upgraded = true;
            input = &mut [];
        }
        let mut closed = false;
        while let Some(item) = decoder.next(&mut input, &mut codec).unwrap() {
            match item {
                Item::Message { payload, .. } => {
                    for payload in answer(number, &payload) {
                        encode_frame(&mut out, Opcode::Text, false, &payload);
                    }
                    number += 1;
                }
                Item::Close { .. } => closed = true,
                _ => {}
            }
        }
        if stream.write_all(&out).is_err() || closed {
            return;
        }
    }
}

fn once(_: u32, payload: &[u8]) -> Vec<Vec<u8>> {
    vec![payload.to_vec()]
}

fn plan(scheme: &str, address: SocketAddr, in_flight: u32) -> Plan {
    Plan {
        scenario: Scenario::Echo(Traffic {
            senders: 2,
            pace: Pace::InFlight(in_flight),
        }),
        target: format!("{scheme}://{address}/echo").parse().unwrap(),
        protocol: Protocol::Plain,
        format: Format::Text,
        connections: 2,
        size: 40,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(100),
        sources: 1,
        connect_window: 8,
        connect_timeout: Duration::from_secs(10),
        server_pid: None,
        driver: reactor::DriverKind::Epoll,
        cpu: None,
    }
}

/// Runs an echo against a plain server that answers so.
fn run(answer: Answer, in_flight: u32) -> Report {
    let address = start(None, answer);
    load::run(
        &plan("ws", address, in_flight),
        &Manner {
            quiet: true,
            ..Manner::default()
        },
    )
    .unwrap()
}

#[test]
fn a_server_that_does_it_right_passes() {
    let report = run(once, 3);
    assert_eq!(report.verdict(), None);
    assert!(report.deliveries > 0);
}

#[test]
fn doubles_are_found() {
    let report = run(|_, payload| vec![payload.to_vec(); 2], 1);
    assert!(report.violations.doubled > 0, "{report}");
    assert!(!report.passed);
}

#[test]
fn a_lost_message_is_found() {
    let report = run(
        |number, payload| {
            if number == 1 {
                vec![]
            } else {
                once(number, payload)
            }
        },
        4,
    );
    // One for each connection.
    assert_eq!(report.violations.lost, 2, "{report}");
}

#[test]
fn changed_content_is_found() {
    let report = run(
        |number, payload| {
            let mut payload = payload.to_vec();
            payload[39] ^= u8::from(number == 2);
            vec![payload]
        },
        4,
    );
    assert_eq!(report.violations.malformed, 2, "{report}");
}

#[test]
fn a_server_that_falls_silent_ends_the_run() {
    let address = start(
        None,
        |number, payload| if number > 5 { vec![] } else { once(number, payload) },
    );
    let mut plan = plan("ws", address, 1);
    plan.duration = Duration::from_secs(600);
    let report = load::run(
        &plan,
        &Manner {
            quiet: true,
            ..Manner::default()
        },
    )
    .unwrap();
    assert!(report.verdict().unwrap().contains("stalled"), "{report}");
}

/// A server's TLS, with its certificate as a file in `folder`.
fn secure(folder: &Path) -> (Arc<ServerConfig>, PathBuf) {
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let path = folder.join("certificate.pem");
    fs::write(&path, certified.cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    (Arc::new(config), path)
}

fn run_secure(address: SocketAddr, trust: Trust) -> Report {
    load::run(&plan("wss", address, 2), &Manner { trust, quiet: true }).unwrap()
}

#[test]
fn tls_takes_any_certificate_unless_told_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let (config, certificate) = secure(folder.path());
    let address = start(Some(config), once);
    for trust in [Trust::Anybody, Trust::Roots(certificate)] {
        let report = run_secure(address, trust);
        assert_eq!(report.verdict(), None);
        assert!(report.deliveries > 0);
    }
}

#[test]
fn tls_refuses_a_certificate_that_nobody_vouches_for() {
    let folder = tempfile::tempdir().unwrap();
    let (config, _) = secure(folder.path());
    let (_, another) = secure(folder.path());
    let report = run_secure(start(Some(config), once), Trust::Roots(another));
    assert!(report.verdict().unwrap().contains("TLS failed"), "{report}");
}
