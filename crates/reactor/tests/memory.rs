//! What idle connections hold. A process of its own, because it measures the resident size.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use bytes::Bytes;
use common::{Bench, pair};
use reactor::DriverKind;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

const CONNECTIONS: usize = 500;

/// Resident bytes of this process.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Growth of the resident size for each of many connections made by `connect`, which have all echoed once.
fn growth(bench: &Bench, kept: &mut Vec<TcpStream>, connect: impl Fn(&Bench) -> TcpStream) -> usize {
    // The first ones pay for what all share.
    kept.extend((0..50).map(|_| connect(bench)));
    let before = resident_bytes();
    kept.extend((0..CONNECTIONS).map(|_| connect(bench)));
    resident_bytes().saturating_sub(before) / CONNECTIONS
}

fn plain(bench: &Bench) -> TcpStream {
    let (mut client, server) = pair();
    bench.adopt(server, Bytes::new(), None);
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0; 1]).unwrap();
    drain(bench);
    client
}

/// Takes what the machine told, so that it is not counted.
fn drain(bench: &Bench) {
    while bench.seen.try_recv().is_ok() {}
}

#[test]
fn idle_connections_are_small() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let certificate = certified.cert.der().clone();
    let server_config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client_config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (server_config, client_config) = (Arc::new(server_config), Arc::new(client_config));
    let secure = |bench: &Bench| {
        let (near, far) = pair();
        let server = ServerConnection::new(Arc::clone(&server_config)).unwrap();
        bench.adopt(far, Bytes::new(), Some(server.into()));
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = StreamOwned::new(
            ClientConnection::new(Arc::clone(&client_config), name).unwrap(),
            near,
        );
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        drain(bench);
        // The client's side of TLS is not what is measured.
        stream.sock
    };
    // All stay open to the end: what one case frees, the next would use unseen.
    let mut kept = Vec::new();
    let mut benches = Vec::new();
    for driver in [DriverKind::Epoll, DriverKind::Uring] {
        let bench = Bench::new(driver, |probe| probe);
        let plain_bytes = growth(&bench, &mut kept, plain);
        benches.push(bench);
        let bench = Bench::new(driver, |probe| probe);
        let secure_bytes = growth(&bench, &mut kept, secure);
        benches.push(bench);
        eprintln!("{driver}: plain {plain_bytes} bytes, TLS {secure_bytes} bytes");
        // In this are 64 bytes of the test's machine, and tables that double.
        assert!(plain_bytes < 512, "an idle connection holds {plain_bytes} bytes");
        assert!(
            secure_bytes < 24 * 1024,
            "an idle TLS connection holds {secure_bytes} bytes"
        );
    }
    benches.into_iter().for_each(Bench::end);
}
