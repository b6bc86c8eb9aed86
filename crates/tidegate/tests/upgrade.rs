//! Handshakes that lead to nothing: each gets its status and a sentence, and the connection ends.

#![allow(clippy::unwrap_used, reason = "a test that fails here has said enough")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::raw::upgrade;
use support::{PATIENCE, Raw, Server, ask};

/// Expects this status, a sentence with this word, and (because `ask` reads to the end) a closed connection.
fn check(server: &Server, request: &str, status: &str, word: &str) {
    let answer = ask(server.address, request);
    assert!(
        answer.starts_with("HTTP/1.") && answer[8..].starts_with(&format!(" {status} ")),
        "{request:?} got {answer:?}"
    );
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    let (_, sentence) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        sentence.contains(word) && sentence.trim_end().ends_with(['.', ')']),
        "{sentence:?}"
    );
}

#[test]
fn wrong_requests_get_their_status_and_a_sentence() {
    let server = Server::start(&[]);
    let good = upgrade("/", "");
    let without = |header: &str| {
        let lines = good
            .split_inclusive("\r\n")
            .filter(|line| !line.starts_with(header));
        lines.collect::<String>()
    };
    check(&server, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "426", "WebSocket");
    check(&server, &good.replace("GET", "POST"), "405", "GET");
    check(&server, &good.replace("Version: 13", "Version: 8"), "426", "13");
    check(
        &server,
        &good.replace("Upgrade: websocket", "Upgrade: h2c"),
        "426",
        "websocket",
    );
    check(
        &server,
        &good.replace("Connection: Upgrade", "Connection: keep-alive"),
        "400",
        "Connection",
    );
    check(&server, &without("Sec-WebSocket-Key"), "400", "Sec-WebSocket-Key");
    check(
        &server,
        &good.replace("dGhlIHNhbXBsZSBub25jZQ==", "short"),
        "400",
        "16 bytes",
    );
    check(&server, &without("Host"), "400", "Host");
    check(&server, &good.replace("HTTP/1.1", "HTTP/1.0"), "400", "HTTP/1.1");
    assert!(server.metric("tidegate_upgrades_refused_total", "reason=\"method\"") >= 1.0);
}

#[test]
fn what_is_not_http_gets_400_and_a_sentence() {
    let server = Server::start(&[]);
    for request in [
        "\u{1}\u{2} nonsense\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\r\nNo colon\r\n\r\n",
    ] {
        check(&server, request, "400", "not an HTTP/1.1 request");
    }
    assert_eq!(
        server.metric("tidegate_upgrades_refused_total", "reason=\"malformed\""),
        4.0
    );
}

#[test]
fn a_page_that_is_not_read_gets_405_and_a_sentence() {
    let server = Server::start(&[]);
    let request = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    check(&server, request, "405", "GET");
    assert!(ask(server.address, request).to_lowercase().contains("allow: get"));
}

#[test]
fn heads_have_limits() {
    let server = Server::start(&[]);
    let long = upgrade("/", &format!("X-Long: {}\r\n", "x".repeat(16 << 10)));
    check(&server, &long, "400", "16 KiB");
    let many = (0..100)
        .map(|number| format!("X-{number}: y\r\n"))
        .collect::<String>();
    check(&server, &upgrade("/", &many), "400", "100 header fields");
    let enough = (0..90)
        .map(|number| format!("X-{number}: y\r\n"))
        .collect::<String>();
    Raw::connect_with(server.address, "/", &enough);
}

#[test]
fn connections_over_the_limit_get_503_until_one_leaves() {
    let server = Server::start(&["--max-connections", "2"]);
    let (first, mut second) = (
        Raw::connect(server.address, "/echo"),
        Raw::connect(server.address, "/echo"),
    );
    let answer = ask(server.address, &upgrade("/", ""));
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.to_lowercase().contains("retry-after: "),
        "{answer}"
    );
    second.send_text("still here");
    second.expect_text("still here");
    drop(first);
    support::wait_until("a free seat", || {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(upgrade("/", "").as_bytes()).unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        status.ends_with(b"101")
    });
}

#[test]
fn a_handshake_that_dawdles_ends_after_ten_seconds() {
    let server = Server::start(&[]);
    let start = Instant::now();
    let mut silent = TcpStream::connect(server.address).unwrap();
    let mut dripping = TcpStream::connect(server.address).unwrap();
    for stream in [&silent, &dripping] {
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    }
    let mut drops = b"GET / HTTP/1.1\r\nX-Drip: "
        .iter()
        .chain(std::iter::repeat(&b'x'));
    // The pace of the drip is the input, not a wait for the server.
    let dripped = loop {
        let sent = dripping.write_all(&[*drops.next().unwrap()]);
        match dripping.read(&mut [0; 64]) {
            Ok(0) => break start.elapsed(),
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break start.elapsed(),
            _ => assert!(start.elapsed() < PATIENCE && sent.is_ok()),
        }
    };
    assert!((9..13).contains(&dripped.as_secs()), "{dripped:?}");
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(
        matches!(silent.read(&mut [0; 1]), Ok(0) | Err(_)),
        "it is told nothing"
    );
    assert!(start.elapsed() < Duration::from_secs(13));
    assert!(server.metric("tidegate_upgrades_refused_total", "reason=\"deadline\"") >= 2.0);
}

#[test]
fn pages_are_served_beside_upgrades() {
    let server = Server::start(&[]);
    let health = server.get("/health");
    assert!(
        health.starts_with("HTTP/1.1 200 ") && health.contains("\"status\":\"ok\""),
        "{health}"
    );
    assert!(server.get("/debug/probes").contains("\"total_messages\":0"));
    // An upgrade on the path of a page is an upgrade.
    Raw::connect(server.address, "/metrics");
}

#[test]
fn metrics_are_classic_text_unless_openmetrics_is_accepted() {
    let server = Server::start(&[]);
    let ask_for = |accept: &str| {
        let request =
            format!("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
        let answer = ask(server.address, &request);
        let (head, page) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), page.to_owned())
    };
    let (head, page) = ask_for("text/plain;version=0.0.4, */*;q=0.1");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(!page.contains("# UNIT") && !page.contains("# EOF"));
    check_families(&page, "");
    let (head, page) = ask_for("application/openmetrics-text; version=1.0.0; q=0.5, text/plain; q=0.4");
    assert!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    assert!(page.ends_with("# EOF\n"));
    check_families(&page, "_total");
}

/// Each sample must come after the `HELP` and `TYPE` of its family, whose name lacks `dropped` of a counter's samples.
fn check_families(page: &str, dropped: &str) {
    let (mut help, mut kind, mut samples) = ("", ("", ""), 0);
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, text) = rest.split_once(' ').expect("a help has words");
            assert!(!text.is_empty());
            help = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            kind = rest.split_once(' ').unwrap();
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = match kind.1 {
                "counter" => {
                    assert!(name.ends_with("_total"), "{line}");
                    name.strip_suffix(dropped).unwrap()
                }
                "histogram" => name.rsplit_once('_').unwrap().0,
                _ => name,
            };
            assert_eq!((help, kind.0), (family, family), "{line}");
            samples += 1;
        }
    }
    assert!(samples > 50);
}
