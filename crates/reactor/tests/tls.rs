//! TLS in the shard, with blocking rustls clients on the other side.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use bytes::Bytes;
use common::{Ask, Bench, Probe, Seen, for_each_driver, pair, pattern};
use engine::{Close, SocketEnd, Wrote};
use reactor::TurnStats;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

fn configs(version: &'static SupportedProtocolVersion) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let certificate = certified.cert.der().clone();
    let server = ServerConfig::builder_with_protocol_versions(&[version])
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_protocol_versions(&[version])
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

fn client(config: &Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost").unwrap()).unwrap()
}

/// A connection whose handshake the machine's side makes.
fn connect(
    bench: &Bench,
    version: &'static SupportedProtocolVersion,
) -> StreamOwned<ClientConnection, TcpStream> {
    let (server_config, client_config) = configs(version);
    let (near, far) = pair();
    bench.adopt(
        far,
        Bytes::new(),
        Some(ServerConnection::new(server_config).unwrap().into()),
    );
    StreamOwned::new(client(&client_config), near)
}

fn echo_over(stream: &mut StreamOwned<ClientConnection, TcpStream>, length: usize) {
    let sent = pattern(length);
    // In pieces, because a blocking client that writes all before it reads would fill both directions.
    for piece in sent.chunks(50_000) {
        stream.write_all(piece).unwrap();
        let mut back = vec![0; piece.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == piece);
    }
}

#[test]
fn both_versions_echo() {
    for_each_driver(|driver| {
        for version in VERSIONS {
            let bench = Bench::new(driver, |probe| probe);
            let mut stream = connect(&bench, version);
            for length in [1, 1000, 16_385, 1 << 20] {
                echo_over(&mut stream, length);
            }
            bench.end();
        }
    });
}

#[test]
fn what_the_handshakes_owner_left_comes_first() {
    for_each_driver(|driver| {
        for version in VERSIONS {
            let bench = Bench::new(driver, |probe| probe);
            let (server_config, client_config) = configs(version);
            let (near, mut far) = pair();
            let writing = std::thread::spawn(move || {
                let mut stream = StreamOwned::new(client(&client_config), near);
                stream
                    .write_all(b"GET the first part,then the second,then the third")
                    .unwrap();
                let mut back = [0; 45];
                stream.read_exact(&mut back).unwrap();
                back
            });
            let mut connection = ServerConnection::new(server_config).unwrap();
            let mut head = [0; 19];
            let mut read = 0;
            while read < head.len() {
                if connection.wants_write() {
                    connection.write_tls(&mut far).unwrap();
                    continue;
                }
                read += connection.reader().read(&mut head[read..]).unwrap_or(0);
                if read < head.len() {
                    connection.read_tls(&mut far).unwrap();
                    connection.process_new_packets().unwrap();
                }
            }
            // Four bytes were the owner's; fifteen it read too much; the rest stays in the connection.
            bench.adopt(far, Bytes::copy_from_slice(&head[4..]), Some(connection.into()));
            assert_eq!(
                &writing.join().unwrap(),
                b"the first part,then the second,then the third"
            );
            bench.end();
        }
    });
}

#[test]
fn a_large_message_to_a_slow_reader_arrives_whole() {
    for_each_driver(|driver| {
        for version in VERSIONS {
            let bench = Bench::new(driver, Probe::without_echo);
            let mut stream = connect(&bench, version);
            let id = bench.opened();
            let all = pattern(16 << 20);
            let parts = all.chunks(3 << 20).map(Bytes::copy_from_slice).collect();
            bench.ask(Ask::Write(id, parts));
            // The handshake has not even begun.
            assert_eq!(bench.next(), Seen::Wrote(id, Wrote::Pending));
            let mut got = vec![0; all.len()];
            stream.read_exact(&mut got).unwrap();
            assert!(got == all);
            assert_eq!(bench.next(), Seen::Flushed(id));
            bench.end();
        }
    });
}

#[test]
fn the_machine_may_be_the_client() {
    for_each_driver(|driver| {
        for version in VERSIONS {
            let bench = Bench::new(driver, Probe::without_echo);
            let (server_config, client_config) = configs(version);
            let (near, far) = pair();
            bench.adopt(far, Bytes::new(), Some(client(&client_config).into()));
            let id = bench.opened();
            bench.ask(Ask::Write(
                id,
                vec![Bytes::from_static(b"hello "), Bytes::from_static(b"server")],
            ));
            // The peer has not answered the handshake, so this cannot have left.
            assert_eq!(bench.next(), Seen::Wrote(id, Wrote::Pending));
            let mut stream = StreamOwned::new(ServerConnection::new(server_config).unwrap(), near);
            let mut got = [0; 12];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"hello server");
            stream.write_all(b"hello client").unwrap();
            assert_eq!(bench.next(), Seen::Flushed(id));
            assert_eq!(bench.next(), Seen::Received(id, 12));
            bench.end();
        }
    });
}

#[test]
fn a_close_in_order_says_so_in_tls() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, Probe::without_echo);
        let mut stream = connect(&bench, &TLS13);
        let id = bench.opened();
        stream.write_all(b"x").unwrap();
        assert_eq!(bench.next(), Seen::Received(id, 1));
        bench.ask(Ask::LastWords(id, Bytes::from_static(b"bye")));
        let mut got = Vec::new();
        // Without `close_notify` rustls calls this end unexpected.
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"bye");
        bench.end();
    });
}

#[test]
fn a_shutdown_says_so_in_tls_and_reading_goes_on() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, Probe::without_echo);
        let mut stream = connect(&bench, &TLS13);
        let id = bench.opened();
        stream.write_all(b"x").unwrap();
        assert_eq!(bench.next(), Seen::Received(id, 1));
        bench.ask(Ask::Shutdown(id));
        assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
        stream.write_all(b"yz").unwrap();
        assert_eq!(bench.next(), Seen::Received(id, 2));
        bench.ask(Ask::Close(id, Close::Orderly));
        bench.end();
    });
}

#[test]
fn the_peers_close_notify_is_an_end_told_once() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, |probe| probe.without_echo().staying());
        let mut stream = connect(&bench, &TLS13);
        let id = bench.opened();
        stream.write_all(b"x").unwrap();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
        assert_eq!(bench.next(), Seen::Received(id, 1));
        assert_eq!(bench.next(), Seen::Ended(id, SocketEnd::Eof));
        stream.sock.shutdown(Shutdown::Write).unwrap();
        // The other connection's byte comes after the first one's end of stream.
        let mut other = connect(&bench, &TLS13);
        let other_id = bench.opened();
        other.write_all(b"y").unwrap();
        assert_eq!(bench.next(), Seen::Received(other_id, 1));
        bench.ask(Ask::Close(id, Close::Orderly));
        bench.end();
    });
}

#[test]
fn what_is_not_tls_ends_the_connection() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, Probe::without_echo);
        let (server_config, _) = configs(&TLS13);
        let (mut near, far) = pair();
        bench.adopt(
            far,
            Bytes::new(),
            Some(ServerConnection::new(server_config).unwrap().into()),
        );
        let id = bench.opened();
        near.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(bench.ended(), (id, SocketEnd::Tls));
        bench.end();
    });
}

#[test]
fn a_shutdown_that_meets_a_broken_socket_is_told() {
    for_each_driver(|driver| {
        for version in VERSIONS {
            let bench = Bench::new(driver, |probe| probe);
            let mut stream = connect(&bench, version);
            echo_over(&mut stream, 1);
            let Seen::Opened(id) = bench.next() else {
                panic!("not opened");
            };
            // While the machine is inside a turn, behind its events: the reset, and mail for the same turn.
            let (entered, inside) = std::sync::mpsc::channel();
            let (release, released) = std::sync::mpsc::channel::<()>();
            let block = move |_: &mut Probe, _: &TurnStats| {
                entered.send(()).unwrap();
                released.recv().unwrap();
            };
            bench.handle().call(Box::new(block)).map_err(drop).unwrap();
            inside.recv().unwrap();
            socket2::SockRef::from(&stream.sock)
                .set_linger(Some(std::time::Duration::ZERO))
                .unwrap();
            drop(stream);
            bench.ask(Ask::Shutdown(id));
            release.send(()).unwrap();
            assert_eq!(bench.ended(), (id, SocketEnd::Reset));
            bench.end();
        }
    });
}
