//! Connections from their opening to their end: closing handshakes, violations, heartbeats, deadlines, drain.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use engine::{Close, Heartbeat, Limits, Machine, Mail, ShardConfig, SocketEnd};
use support::{Info, Node, Seen, Taking};
use wire::Opcode;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_peers_close_is_answered_and_the_socket_let_go() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "room");
    node.receive(client, Opcode::Close, &1001u16.to_be_bytes());
    node.turn();
    assert_eq!(node.seen(client), [Seen::Close(Some(1001))]);
    assert_eq!(node.closed(client), Some(Close::Orderly));
    assert_eq!(node.log(0), ["opened 0.0", "closed 0.0 peer"]);
    assert_eq!(node.shards[0].connections(), 0);
    assert_eq!(node.shards[0].rooms(), 0);
}

#[test]
fn a_greeting_leaves_first_and_its_receiver_is_in_its_room() {
    let mut node = Node::one(ShardConfig::default());
    let speaker = node.connect(0, "room");
    let info = Info {
        room: "room",
        ..Info::default()
    };
    let client = node.greet(0, info, bytes::Bytes::from_static(b"101!")).unwrap();
    node.say(speaker, "hello");
    node.receive(client, Opcode::Ping, b"p");
    node.turn();
    assert_eq!(node.socket(client).writes, 1);
    let greeting = node.socket(client).sent.split_to(4);
    assert_eq!(&greeting[..], b"101!");
    assert_eq!(
        node.seen(client),
        [Seen::Pong(b"p".to_vec()), Seen::Text("hello".into())]
    );
}

#[test]
fn a_close_without_a_code_is_answered_without_one() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    node.receive(client, Opcode::Close, &[]);
    node.turn();
    assert_eq!(node.seen(client), [Seen::Close(None)]);
}

#[test]
fn our_close_leaves_after_what_waits_and_expects_an_answer() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    node.say(client, "before");
    node.say(client, "!close");
    node.say(client, "after");
    node.turn();
    assert_eq!(
        node.seen(client),
        [Seen::Text("before".into()), Seen::Close(Some(3_500))]
    );
    assert_eq!(node.closed(client), None);
    node.receive(client, Opcode::Close, &3_500u16.to_be_bytes());
    node.turn();
    assert_eq!(node.closed(client), Some(Close::Orderly));
    assert_eq!(node.log(0), ["opened 0.0", "closed 0.0 application"]);
}

#[test]
fn a_peer_that_never_answers_our_close_is_cut_off() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    node.say(client, "!close");
    node.turn();
    node.pass(4 * SECOND);
    assert_eq!(node.closed(client), None);
    node.pass(2 * SECOND);
    assert_eq!(node.closed(client), Some(Close::Abort));
    assert_eq!(node.counters().close_timeouts, 1);
}

#[test]
fn a_violation_ends_in_its_code_and_a_half_close() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "room");
    node.say(client, "before");
    node.receive_raw(client, &[0x81, 0x01, b'x']);
    node.turn();
    assert_eq!(node.seen(client), [Seen::Close(Some(1002))]);
    assert!(
        node.socket(client).shut,
        "the peer must see the close frame, not a reset"
    );
    node.receive_raw(client, &[0xff; 100]);
    node.end(client, SocketEnd::Eof);
    assert_eq!(node.closed(client), Some(Close::Orderly));
    assert_eq!(node.counters().violations.values().sum::<u64>(), 1);
    assert_eq!(node.counters().closed["violation"], 1);
}

#[test]
fn a_violator_that_goes_on_sending_is_cut_off() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    node.receive_raw(client, &[0x81, 0x01, b'x']);
    node.turn();
    let megabyte = vec![0; 1 << 20];
    for sent in 1..=65 {
        assert_eq!(node.closed(client), None, "after {sent} MiB");
        node.receive_raw(client, &megabyte);
    }
    assert_eq!(node.closed(client), Some(Close::Abort));
    assert_eq!(node.shards[0].connections(), 0);
}

#[test]
fn a_vanished_socket_is_an_end_too() {
    let mut node = Node::one(ShardConfig::default());
    let [a, b] = [0; 2].map(|shard| node.connect(shard, "room"));
    node.end(a, SocketEnd::Reset);
    node.end(b, SocketEnd::Eof);
    node.turn();
    assert_eq!(node.log(0)[2..], ["closed 0.0 reset", "closed 1.0 eof"]);
    assert_eq!((node.shards[0].connections(), node.shards[0].rooms()), (0, 0));
}

#[test]
fn a_slot_is_used_again_under_another_id() {
    let mut node = Node::one(ShardConfig::default());
    let old = node.connect(0, "room");
    let peer = node.connect(0, "room");
    node.say(old, "from the old one");
    node.end(old, SocketEnd::Reset);
    let new = node.connect(0, "room");
    assert_eq!(
        (new.1.index, new.1.generation),
        (old.1.index, old.1.generation + 1)
    );
    node.turn();
    assert_eq!(node.texts(peer), ["from the old one"]);
    assert_eq!(
        node.texts(new),
        ["from the old one"],
        "only the sender itself is left out, not its slot"
    );
}

#[test]
fn every_ping_is_answered_to_a_peer_that_reads() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    for number in 0..10u8 {
        node.receive(client, Opcode::Ping, &[number]);
    }
    node.turn();
    assert_eq!(
        node.seen(client),
        (0..10u8)
            .map(|number| Seen::Pong(vec![number]))
            .collect::<Vec<_>>()
    );
    assert_eq!(node.socket(client).writes, 1);
}

#[test]
fn pongs_of_one_turn_are_bounded_and_the_last_is_among_them() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    for number in 0..1_000u32 {
        node.receive(client, Opcode::Ping, &number.to_be_bytes().repeat(20));
    }
    node.turn();
    assert!(node.socket(client).sent.len() <= engine::limits::PONGS_BYTES_MAX);
    let seen = node.seen(client);
    assert_eq!(seen.last(), Some(&Seen::Pong(999u32.to_be_bytes().repeat(20))));
    assert_eq!(node.counters().pongs_skipped, 1_000 - seen.len() as u64);
}

#[test]
fn only_the_last_of_many_pings_is_answered_to_a_peer_that_does_not_read() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    node.stall(client);
    for number in 0..1_000u32 {
        node.receive(client, Opcode::Ping, &number.to_be_bytes());
        node.turn();
    }
    node.unstall(client);
    node.turn();
    let last = 999u32.to_be_bytes().to_vec();
    assert_eq!(node.seen(client), [Seen::Pong(vec![0; 4]), Seen::Pong(last)]);
    assert_eq!(node.counters().pongs_skipped, 998);
}

#[test]
fn a_silent_peer_is_pinged_and_stays_if_it_answers() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    for _ in 0..5 {
        node.pass(26 * SECOND);
        assert_eq!(node.seen(client), [Seen::Ping]);
        node.receive(client, Opcode::Pong, &[]);
    }
    assert_eq!(node.closed(client), None);
    assert_eq!((node.counters().pings_out, node.counters().pongs_in), (5, 5));
}

#[test]
fn a_half_open_peer_is_ended_by_the_deadlines() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    node.pass(36 * SECOND);
    assert_eq!(node.seen(client), [Seen::Ping, Seen::Close(Some(3012))]);
    node.pass(6 * SECOND);
    assert_eq!(node.closed(client), Some(Close::Abort));
    assert_eq!(node.counters().closed["pong_timeout"], 1);
}

#[test]
fn a_peer_that_talks_is_not_pinged() {
    let mut node = Node::one(ShardConfig::default());
    let [a, b] = [0; 2].map(|shard| node.connect(shard, "room"));
    for _ in 0..10 {
        node.say(a, "x");
        node.say(b, "x");
        node.pass(15 * SECOND);
    }
    assert_eq!(node.counters().pings_out, 0);
}

#[test]
fn pings_of_connections_that_came_together_are_spread() {
    let mut node = Node::one(ShardConfig::default());
    for _ in 0..1_000 {
        node.connect(0, "");
    }
    let mut most = 0;
    for _ in 0..300 {
        let before = node.counters().pings_out;
        node.pass(Duration::from_millis(100));
        most = most.max(node.counters().pings_out - before);
    }
    assert_eq!(node.counters().pings_out, 1_000);
    assert!(most < 40, "{most} of 1,000 pings in 100 ms");
}

#[test]
fn an_idle_connection_is_closed_though_it_answers_pings() {
    let heartbeat = Heartbeat {
        idle_timeout: Some(60 * SECOND),
        ..Heartbeat::default()
    };
    let mut node = Node::one(ShardConfig {
        heartbeat,
        ..ShardConfig::default()
    });
    let client = node.connect(0, "");
    for _ in 0..12 {
        node.pass(5 * SECOND);
        node.receive(client, Opcode::Pong, &[]);
    }
    node.pass(SECOND);
    assert_eq!(node.seen(client), [Seen::Close(Some(3010))]);
}

#[test]
fn a_held_connection_must_be_established_in_time() {
    let mut node = Node::one(ShardConfig::default());
    let [late, good] = [0; 2].map(|_| {
        node.try_connect(
            0,
            Info {
                hold: true,
                ..Info::default()
            },
        )
        .unwrap()
    });
    node.say(good, "!establish");
    node.pass(11 * SECOND);
    assert_eq!(node.seen(late), [Seen::Close(Some(3014))]);
    assert_eq!(node.seen(good), []);
}

#[test]
fn a_full_shard_refuses() {
    let limits = Limits {
        connections_max: 2,
        ..Limits::default()
    };
    let mut node = Node::one(ShardConfig {
        limits,
        ..ShardConfig::default()
    });
    let [a, _] = [0; 2].map(|shard| node.connect(shard, ""));
    assert!(
        node.try_connect(
            0,
            Info {
                hold: false,
                ..Info::default()
            }
        )
        .is_none()
    );
    node.end(a, SocketEnd::Eof);
    assert!(
        node.try_connect(
            0,
            Info {
                hold: false,
                ..Info::default()
            }
        )
        .is_some()
    );
    assert_eq!(node.counters().refused, 1);
}

#[test]
fn a_drain_delivers_what_is_in_flight_then_says_goodbye() {
    let mut node = Node::one(ShardConfig::default());
    let clients: Vec<_> = (0..600).map(|_| node.connect(0, "room")).collect();
    node.say(clients[0], "last words");
    node.mail(0, Mail::Drain { within: 10 * SECOND });
    node.pass(Duration::from_millis(10));
    assert_eq!(
        node.seen(clients[599]),
        [Seen::Text("last words".into()), Seen::Close(Some(1001))]
    );
    for &client in &clients[1..] {
        node.receive(client, Opcode::Close, &1001u16.to_be_bytes());
    }
    node.turn();
    assert!(!node.shards[0].finished(), "one has not answered");
    assert!(
        node.try_connect(
            0,
            Info {
                hold: false,
                ..Info::default()
            }
        )
        .is_none()
    );
    node.pass(6 * SECOND);
    assert!(node.shards[0].finished());
    assert_eq!(node.closed(clients[0]), Some(Close::Abort));
}

#[test]
fn a_drain_is_over_in_time_whatever_peers_do() {
    let mut node = Node::one(ShardConfig::default());
    let [a, b] = [0; 2].map(|shard| node.connect(shard, "room"));
    node.stall(b);
    node.say(a, "x");
    node.turn();
    node.mail(0, Mail::Drain { within: 10 * SECOND });
    node.pass(11 * SECOND);
    assert!(node.shards[0].finished());
}

#[test]
fn a_short_drain_does_not_wait_for_a_mute_peer() {
    let mut node = Node::one(ShardConfig::default());
    node.connect(0, "room");
    node.mail(0, Mail::Drain { within: SECOND });
    node.pass(SECOND + Duration::from_millis(20));
    assert!(node.shards[0].finished());
}

#[test]
fn a_drain_hurries_those_that_were_closing_already() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    node.say(client, "!close");
    node.turn();
    node.mail(0, Mail::Drain { within: SECOND / 2 });
    node.pass(SECOND / 2 + Duration::from_millis(20));
    assert!(node.shards[0].finished());
}

#[test]
fn what_was_published_before_a_close_comes_before_it() {
    let mut node = Node::one(ShardConfig::default());
    let [a, b] = [0; 2].map(|shard| node.connect(shard, "room"));
    node.say(a, "last words");
    node.say(b, "!close");
    node.turn();
    assert_eq!(
        node.seen(b),
        [Seen::Text("last words".into()), Seen::Close(Some(3_500))]
    );
    assert_eq!(node.socket(b).writes, 1);
    node.say(a, "after");
    node.turn();
    assert_eq!(node.seen(b), [], "it has left the room");
}

#[test]
fn what_came_before_a_peers_close_is_answered_before_it() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    node.say(client, "hi");
    node.receive(client, Opcode::Close, &1000u16.to_be_bytes());
    node.turn();
    assert_eq!(
        node.seen(client),
        [Seen::Text("hi".into()), Seen::Close(Some(1000))]
    );
}

#[test]
fn a_peer_that_ends_its_side_still_gets_its_answers() {
    let mut node = Node::one(ShardConfig::default());
    let [a, b] = [0; 2].map(|shard| node.connect(shard, ""));
    node.say(a, "hi");
    node.end(a, SocketEnd::Eof);
    assert_eq!(node.seen(a), [Seen::Text("hi".into())]);
    assert_eq!(node.closed(a), Some(Close::Orderly));
    node.receive(b, Opcode::Close, &1000u16.to_be_bytes());
    node.end(b, SocketEnd::Eof);
    assert_eq!(node.seen(b), [Seen::Close(Some(1000))]);
    assert_eq!(node.closed(b), Some(Close::Orderly));
}

#[test]
fn a_violation_while_closing_is_counted_too() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    node.say(client, "!close");
    node.turn();
    node.receive_raw(client, &[0x81, 0x01, b'x']);
    node.turn();
    assert_eq!(node.counters().violations.values().sum::<u64>(), 1);
    assert!(node.socket(client).shut);
}

#[test]
fn a_ping_that_could_not_leave_does_not_count_against_the_peer() {
    let mut node = Node::one(ShardConfig::default());
    let [a, b] = [0; 2].map(|shard| node.connect(shard, "room"));
    node.stall(b);
    node.say(a, "large");
    node.turn();
    node.pass(50 * SECOND);
    assert_eq!(node.closed(b), None, "it may still be reading");
    node.unstall(b);
    node.pass(SECOND);
    assert_eq!(node.seen(b), [Seen::Text("large".into()), Seen::Ping]);
    node.receive(b, Opcode::Pong, &[]);
    node.pass(11 * SECOND);
    assert_eq!(node.closed(b), None);
}

#[test]
fn a_peer_that_sends_but_never_reads_is_cut_off() {
    let heartbeats = [Some(25 * SECOND), None].map(|ping_interval| Heartbeat {
        ping_interval,
        ..Heartbeat::default()
    });
    for heartbeat in heartbeats {
        let mut node = Node::one(ShardConfig {
            heartbeat,
            overflow: engine::Overflow::DropOldest,
            ..ShardConfig::default()
        });
        let [a, b] = [0; 2].map(|shard| node.connect(shard, "room"));
        node.stall(b);
        for _ in 0..90 {
            node.say(a, "x");
            node.say(b, "x");
            node.pass(SECOND);
        }
        assert_eq!(node.closed(b), Some(Close::Abort));
        assert_eq!(node.counters().closed["write_timeout"], 1);
        assert_eq!(node.closed(a), None);
    }
}

#[test]
fn many_sockets_failing_in_one_flush_are_all_removed() {
    let mut node = Node::one(ShardConfig::default());
    let clients: Vec<_> = (0..500).map(|_| node.connect(0, "room")).collect();
    for &client in &clients[1..] {
        node.socket(client).taking = Taking::Broken;
    }
    node.say(clients[0], "x");
    clients
        .iter()
        .for_each(|&client| node.receive(client, Opcode::Ping, b""));
    node.turn();
    assert_eq!(node.shards[0].connections(), 1);
}
