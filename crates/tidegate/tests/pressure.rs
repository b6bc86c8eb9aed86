//! Peers that take more than they give: memory stays bounded, deadlines end them, all others go on.

#![allow(clippy::unwrap_used, reason = "a test that fails here has said enough")]

mod support;

use std::io::Write;
use std::time::{Duration, Instant};

use support::raw::{BINARY, CLOSE, FIN, PING, PONG, TEXT, frame};
use support::{DRIVERS, Raw, Server, wait_until};

/// What a stalled reader may cost at most beside its queue: what the kernel holds is not resident memory of ours.
const SLACK_BYTES: u64 = 16 << 20;

/// Publishes `count` messages of 64 KiB while one member of the room does not read, and a third one does.
fn stall(server: &Server, count: u32) -> Raw {
    let stalled = Raw::connect(server.address, "/");
    let (mut sender, mut reader) = (
        Raw::connect(server.address, "/"),
        Raw::connect(server.address, "/"),
    );
    server.wait_for_members(3);
    for number in 0..count {
        let mut payload = vec![b'x'; 64 << 10];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        sender.send(&frame(FIN | BINARY, &payload));
        // One at a time, so that only the stalled one lags.
        let heard = reader.read_frame().payload;
        assert_eq!(heard[..4], number.to_be_bytes(), "the others lose nothing");
    }
    stalled
}

/// The numbers of all messages that the stalled one gets when it reads again.
fn numbers(mut stalled: Raw, last: Option<u32>) -> Vec<u32> {
    let mut numbers = Vec::new();
    while let Some(frame) = stalled.try_read_frame() {
        if frame.first == FIN | CLOSE {
            break;
        }
        numbers.push(u32::from_be_bytes(frame.payload[..4].try_into().unwrap()));
        if numbers.last().copied() == last {
            break;
        }
    }
    numbers
}

#[test]
fn drop_oldest_keeps_the_newest_in_order() {
    for driver in DRIVERS {
        let flags = [
            "--driver",
            driver,
            "--queue-messages",
            "8",
            "--on-full",
            "drop-oldest",
        ];
        let server = Server::start(&flags);
        let before = server.resident_bytes();
        let stalled = stall(&server, 400);
        assert!(server.resident_bytes() < before + SLACK_BYTES, "{driver}");
        let dropped = server.metric("tidegate_dropped_total", "reason=\"oldest\"");
        assert!(dropped >= 100.0, "{driver}: {dropped}");
        let numbers = numbers(stalled, Some(399));
        assert!(
            numbers.is_sorted() && numbers.len() as f64 + dropped == 400.0,
            "{driver}: {numbers:?}"
        );
    }
}

#[test]
fn drop_newest_keeps_the_oldest() {
    let server = Server::start(&["--queue-messages", "8", "--on-full", "drop-newest"]);
    let stalled = stall(&server, 400);
    let dropped = server.metric("tidegate_dropped_total", "reason=\"newest\"");
    assert!(dropped >= 100.0, "{dropped}");
    let kept = 400 - dropped as u32;
    let numbers = numbers(stalled, Some(kept - 1));
    assert_eq!(
        numbers,
        (0..kept).collect::<Vec<_>>(),
        "what was accepted comes without a gap"
    );
}

#[test]
fn disconnect_ends_the_stalled_one() {
    for driver in DRIVERS {
        let flags = [
            "--driver",
            driver,
            "--queue-messages",
            "8",
            "--on-full",
            "disconnect",
        ];
        let server = Server::start(&flags);
        let stalled = stall(&server, 400);
        server.wait_for_metric("tidegate_closed_total", "reason=\"slow_consumer\"", 1.0);
        let numbers = numbers(stalled, None);
        let expect: Vec<u32> = (0..numbers.len() as u32).collect();
        assert_eq!(numbers, expect, "{driver}: nothing was sent across a gap");
        wait_until("its socket is gone", || {
            server.metric("tidegate_connections", "") <= 2.0
        });
    }
}

#[test]
fn a_ping_flood_that_never_reads_holds_one_pong() {
    for driver in DRIVERS {
        let server = Server::start(&["--driver", driver]);
        let before = server.resident_bytes();
        let flood: Vec<u8> = frame(FIN | PING, &[7; 125]).repeat(8_000);
        let mut floods: Vec<Raw> = (0..8).map(|_| Raw::connect(server.address, "/")).collect();
        for raw in &mut floods {
            for _ in 0..8 {
                raw.send(&flood);
            }
        }
        server.wait_for_metric("tidegate_pings_total", "direction=\"in\"", 8.0 * 8.0 * 8_000.0);
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < SLACK_BYTES, "{driver}: grew by {grown}");
    }
}

#[test]
fn a_half_open_peer_is_ended_by_the_ping_deadline() {
    for driver in DRIVERS {
        let flags = [
            "--driver",
            driver,
            "--ping-interval",
            "200ms",
            "--pong-timeout",
            "200ms",
        ];
        let server = Server::start(&flags);
        let answering = Raw::connect(server.address, "/echo");
        let answers = std::thread::spawn(move || answer_pings(answering, 5));
        // This one takes everything and says nothing.
        let mut mute = Raw::connect(server.address, "/");
        let start = Instant::now();
        assert_eq!(mute.read_frame().first, FIN | PING);
        assert_eq!(mute.read_frame().code(), 3012);
        assert!(start.elapsed() < Duration::from_secs(2), "{driver}");
        answers.join().expect("who answers stays");
    }
}

/// Answers this many pings, which takes longer than both deadlines, and then still is served.
fn answer_pings(mut raw: Raw, count: usize) {
    for _ in 0..count {
        let ping = raw.read_frame();
        assert_eq!(ping.first, FIN | PING);
        raw.send(&frame(FIN | PONG, &ping.payload));
    }
    raw.send_text("alive");
    raw.expect_text("alive");
}

#[test]
fn an_idle_peer_is_ended_by_the_idle_deadline() {
    let server = Server::start(&["--idle-timeout", "200ms"]);
    assert_eq!(Raw::connect(server.address, "/").read_close(), 3010);
}

#[test]
fn fragments_of_one_byte_cost_what_their_payload_costs() {
    let (connections, fragments) = (100, 65_000);
    let server = Server::start(&[]);
    let before = server.resident_bytes();
    let mut bytes = frame(TEXT, b"x");
    bytes.extend(frame(0, b"x").repeat(fragments - 1));
    let mut peers: Vec<Raw> = (0..connections)
        .map(|_| Raw::connect(server.address, "/echo"))
        .collect();
    for peer in &mut peers {
        peer.send(&bytes);
    }
    let sent = (bytes.len() * connections) as f64;
    wait_until("all fragments read", || {
        server.metric("tidegate_traffic_bytes_total", "direction=\"in\"") >= sent
    });
    let grown = server.resident_bytes().saturating_sub(before);
    let payload = (connections * fragments) as u64;
    assert!(grown < 2 * payload, "{grown} bytes for {payload}");
    // They are good messages all the same.
    peers[0].send(&frame(FIN, b"!"));
    assert_eq!(peers[0].read_frame().payload.len(), fragments + 1);
}

#[test]
fn a_deflate_bomb_stops_at_the_message_limit() {
    for driver in DRIVERS {
        let server = Server::start(&["--driver", driver, "--compress", "--max-message", "1MiB"]);
        let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
        let (mut peer, _) = Raw::connect_with(server.address, "/echo", offer);
        let before = server.resident_bytes();
        peer.send(&frame(FIN | 0x40 | BINARY, &bomb(1_000_000)));
        assert_eq!(peer.read_close(), 1009);
        assert!(server.resident_bytes() < before + SLACK_BYTES, "{driver}");
        server.wait_for_metric("tidegate_violations_total", "reason=\"message_too_big\"", 1.0);
    }
}

/// About `bytes` of raw deflate that inflate to a thousand times as much: one literal, then matches of length 258 at
/// distance 1 (RFC 1951 section 3.2.6: fixed codes 285, eight bits, and distance 0, five bits).
fn bomb(bytes: usize) -> Vec<u8> {
    let mut bits = vec![0, 1, 0];
    let literal_zero = 0b0011_0000_u16;
    bits.extend((0..8).rev().map(|bit| (literal_zero >> bit & 1) as u8));
    let length_258 = 0b1100_0101_u16;
    let one_match: Vec<u8> = (0..8)
        .rev()
        .map(|bit| (length_258 >> bit & 1) as u8)
        .chain([0; 5])
        .collect();
    while bits.len() < bytes * 8 {
        bits.extend(&one_match);
    }
    bits.chunks(8)
        .map(|byte| byte.iter().enumerate().map(|(place, bit)| bit << place).sum())
        .collect()
}

#[test]
fn a_peer_that_vanishes_in_the_middle_of_a_message_leaves_nothing() {
    let server = Server::start(&[]);
    let mut peer = Raw::connect(server.address, "/");
    peer.send(&support::raw::header(FIN | BINARY, 1_000_000));
    peer.stream.write_all(&[1; 1000]).unwrap();
    drop(peer);
    wait_until("it is gone", || server.metric("tidegate_connections", "") == 0.0);
}
