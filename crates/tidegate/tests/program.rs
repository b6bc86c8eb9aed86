//! The program as its user meets it: errors in one line, logs, signals, running out of descriptors.

#![allow(clippy::unwrap_used, reason = "a test that fails here has said enough")]

mod support;

use std::net::TcpListener;

use support::raw::upgrade;
use support::{Raw, Server, ask, run, wait_until};

/// The program must end at once with code 2 and one line that holds all `words`.
fn check_refusal(arguments: &[&str], words: &[&str]) {
    let (code, out, error) = run(arguments);
    assert_eq!(code, Some(2), "{arguments:?}: {error}");
    assert_eq!(
        (error.lines().count(), out.as_str()),
        (1, ""),
        "{arguments:?}: {error}{out}"
    );
    for word in words {
        assert!(error.contains(word), "{arguments:?}: no {word:?} in {error:?}");
    }
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    check_refusal(&["broadcast", "-addr", &address], &["in use", &address, "--addr"]);
}

#[test]
fn flags_and_values_that_cannot_be() {
    check_refusal(&["broadcast", "-adr", ":1"], &["--addr"]);
    check_refusal(&["broadcast", "--batch", "many"], &["--batch"]);
    check_refusal(&["broadcast", "--batch", "0"], &["--batch", "at least 1"]);
    check_refusal(
        &["broadcast", "--ping-interval", "25"],
        &["--ping-interval", "500ms"],
    );
    check_refusal(&["broadcast", "--addr", "nowhere"], &["HOST:PORT"]);
    check_refusal(
        &["broadcast", "--max-message", "2MiB", "--queue-bytes", "1MiB"],
        &["--queue-bytes"],
    );
    check_refusal(
        &["broadcast", "--numa", "77", "--addr", "127.0.0.1:0"],
        &["NUMA node 77", "--numa"],
    );
    check_refusal(&["broadcats"], &["broadcast"]);
    let limited: [(&[&str], &[&str]); 7] = [
        (&["--workers", "1025"], &["--workers", "1024"]),
        (&["--workers", "64"], &["--ring", "256MiB"]),
        (&["--ring", "65537"], &["--ring", "65536"]),
        (&["--batch", "65537"], &["--batch", "65536"]),
        (&["--flush-delay", "11s"], &["--flush-delay", "10s"]),
        (
            &["--flush-delay", "auto", "--flush-delay-max", "11s"],
            &["--flush-delay-max", "10s"],
        ),
        (&["-numa", "-2"], &["--numa"]),
    ];
    for (flags, words) in limited {
        check_refusal(&[&["broadcast"], flags].concat(), words);
    }
}

#[test]
fn certificates_that_cannot_be_used() {
    let (files, others) = (support::certificate::files(), support::certificate::files());
    let [certificate, key] = files.paths();
    let [_, wrong_key] = others.paths();
    let serve = |certificate: &str, key: &str, words: &[&str]| {
        let arguments = [
            "broadcast",
            "--addr",
            "127.0.0.1:0",
            "--tls-cert",
            certificate,
            "--tls-key",
            key,
        ];
        check_refusal(&arguments, words);
    };
    serve("/nowhere/cert.pem", &key, &["/nowhere/cert.pem", "--tls-cert"]);
    serve(
        &certificate,
        "/nowhere/key.pem",
        &["/nowhere/key.pem", "--tls-key"],
    );
    serve(&key, &key, &[key.as_str(), "certificate", "PEM"]);
    serve(&certificate, &wrong_key, &["does not belong"]);
    check_refusal(
        &["broadcast", "--tls-cert", &certificate],
        &["not provided: --tls-key"],
    );
}

#[test]
fn help_teaches_and_costs_nothing() {
    let (code, out, _) = run(&["broadcast", "-help"]);
    assert_eq!(code, Some(0));
    for flag in [
        "--addr",
        "--batch",
        "--ring",
        "--workers",
        "--numa",
        "--on-full",
        "--drain",
        "Examples:",
    ] {
        assert!(out.contains(flag), "no {flag} in the help");
    }
    assert_eq!(run(&["--version"]).0, Some(0));
    assert!(run(&[]).1.contains("broadcast"));
    let (code, _, help) = run(&["bench"]);
    assert!(
        code == Some(2) && help.contains("fanout") && !help.starts_with("error"),
        "{code:?}: {help}"
    );
}

#[test]
fn a_line_of_statistics_comes_each_interval() {
    let server = Server::start(&["--stats-interval", "100ms"]);
    let mut raw = Raw::connect(server.address, "/echo");
    raw.send_text("count me");
    raw.expect_text("count me");
    let line = server.wait_for_line(" 1 connections");
    for part in ["in/s", "out/s", "dropped", "turn P50", "P99"] {
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn json_logs_are_json() {
    let server = Server::start(&["--log-format", "json", "--stats-interval", "50ms"]);
    let line = server.wait_for_line("in/s");
    let value: serde_json::Value = serde_json::from_str(&line).expect("a line is an object");
    assert!(
        value["message"].as_str().unwrap().contains("connections") && value["level"] == "INFO",
        "{line}"
    );
}

#[test]
fn sigterm_closes_all_with_1001_and_ends_with_0() {
    for (signal, driver) in [("TERM", "epoll"), ("INT", "uring")] {
        let mut server = Server::start(&["--driver", driver]);
        let mut clients: Vec<Raw> = (0..20).map(|_| Raw::connect(server.address, "/")).collect();
        server.wait_for_members(20);
        // Its message is in flight when the signal comes.
        clients[0].send_text("last words");
        server.wait_for_metric("tidegate_messages_total", "direction=\"in\"", 1.0);
        server.signal(signal);
        for client in &mut clients[1..] {
            client.expect_text("last words");
        }
        for mut client in clients {
            let frame = client.read_frame();
            assert_eq!(frame.code(), 1001);
            client.send(&support::raw::frame(frame.first, &frame.payload));
        }
        assert!(
            server
                .wait_for_line("stopped: ")
                .contains("20 connections closed with 1001, 0 cut")
        );
        assert_eq!(server.wait().code(), Some(0));
    }
}

#[test]
fn a_peer_that_never_answers_the_close_is_cut_when_the_drain_ends() {
    let mut server = Server::start(&["--drain", "300ms"]);
    let _mute = Raw::connect(server.address, "/");
    server.wait_for_metric("tidegate_connections", "", 1.0);
    server.signal("TERM");
    assert!(
        server
            .wait_for_line("stopped: ")
            .contains("0 connections closed with 1001, 1 cut")
    );
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn traffic_does_not_keep_it_from_ending() {
    for driver in support::DRIVERS {
        let mut server = Server::start(&["--driver", driver, "--drain", "500ms"]);
        let address = server.address;
        let floods: Vec<_> = (0..4)
            .map(|_| {
                let mut raw = Raw::connect(address, "/");
                let message =
                    support::raw::frame(support::raw::FIN | support::raw::BINARY, &[1; 1000]).repeat(50);
                // They send until they are cut, and never read.
                std::thread::spawn(
                    move || while std::io::Write::write_all(&mut raw.stream, &message).is_ok() {},
                )
            })
            .collect();
        server.wait_for_metric("tidegate_messages_total", "direction=\"in\"", 1000.0);
        let start = std::time::Instant::now();
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0), "{driver}");
        assert!(
            start.elapsed() < std::time::Duration::from_secs(3),
            "{driver}: {:?}",
            start.elapsed()
        );
        floods.into_iter().for_each(|flood| flood.join().unwrap());
    }
}

#[test]
fn while_it_drains_health_says_so_and_upgrades_get_503() {
    let mut server = Server::start(&["--drain", "60s"]);
    let mut mute = Raw::connect(server.address, "/");
    server.wait_for_members(1);
    let mut early: Vec<_> = (0..2)
        .map(|_| std::net::TcpStream::connect(server.address).unwrap())
        .collect();
    // All of these were accepted before the signal.
    server.wait_for_metric("tidegate_handshakes", "", 3.0);
    server.signal("TERM");
    assert_eq!(mute.read_frame().code(), 1001);
    let mut answer = |request: &str| {
        let mut stream = early.pop().unwrap();
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        std::io::read_to_string(stream).unwrap()
    };
    let health = answer("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(
        health.starts_with("HTTP/1.1 503 ") && health.contains("\"draining\""),
        "{health}"
    );
    let refused = answer(&upgrade("/", ""));
    assert!(
        refused.starts_with("HTTP/1.1 503 ") && refused.contains("shutting down"),
        "{refused}"
    );
    mute.send(&support::raw::frame(
        support::raw::FIN | support::raw::CLOSE,
        &[3, 0xe9],
    ));
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start(&["--drain", "60s"]);
    let _mute = Raw::connect(server.address, "/");
    server.signal("TERM");
    server.wait_for_line("shutting down");
    server.signal("INT");
    assert_eq!(server.wait().code(), Some(130));
}

#[test]
fn out_of_descriptors_it_waits_without_spinning_and_goes_on_when_some_are_free() {
    let server = Server::start_with_descriptors(64, &["--max-connections", "1000"]);
    let mut held = Vec::new();
    // More than there are descriptors: the kernel completes the rest, and the server cannot accept them.
    for _ in 0..80 {
        held.push(std::net::TcpStream::connect(server.address).unwrap());
    }
    for stream in &mut held {
        std::io::Write::write_all(stream, upgrade("/", "").as_bytes()).unwrap();
    }
    server.wait_for_line("cannot accept connections");
    let before = cpu_ticks(server.pid());
    // A while in which nothing can be accepted: the time itself is what is measured over.
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(
        cpu_ticks(server.pid()) - before < 20,
        "a fifth of a core for nothing"
    );
    held.truncate(5);
    server.wait_for_line("accepting connections again");
    wait_until("an upgrade", || ask_status(&server).contains("101"));
    assert!(server.metric("tidegate_accept_errors_total", "") >= 1.0);
}

/// The first line of the answer to an upgrade.
fn ask_status(server: &Server) -> String {
    let stream = std::net::TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let mut raw = Raw { stream };
    raw.send(upgrade("/", "").as_bytes());
    raw.read_head().lines().next().unwrap().to_owned()
}

/// User and system time in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_drained_server_serves_no_more() {
    let mut server = Server::start(&[]);
    let address = server.address;
    server.signal("TERM");
    server.wait();
    assert!(std::net::TcpStream::connect(address).is_err());
    let again = Server::start(&[]);
    assert!(
        ask(
            again.address,
            "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .contains("ok")
    );
}
