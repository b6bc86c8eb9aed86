//! What is published arrives: once, in order, at those it is for, in one write a turn.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use engine::{Cause, FlushDelay, Limits, Overflow, ShardConfig};
use support::{Info, Node, Seen, Taking};
use wire::{DeflateParams, Opcode};

#[test]
fn a_message_reaches_all_members_but_its_sender() {
    let mut node = Node::one(ShardConfig::default());
    let [a, b, c] = [0; 3].map(|shard| node.connect(shard, "room"));
    let other = node.connect(0, "elsewhere");
    node.say(a, "hello");
    node.receive(b, Opcode::Binary, &[1, 2, 3]);
    node.turn();
    assert_eq!(node.seen(a), [Seen::Binary(vec![1, 2, 3])]);
    assert_eq!(node.seen(b), [Seen::Text("hello".into())]);
    assert_eq!(
        node.seen(c),
        [Seen::Text("hello".into()), Seen::Binary(vec![1, 2, 3])]
    );
    assert_eq!(node.seen(other), []);
}

#[test]
fn all_messages_of_a_turn_leave_in_one_write() {
    let mut node = Node::one(ShardConfig::default());
    let [a, b, c] = [0; 3].map(|shard| node.connect(shard, "room"));
    for number in 0..10 {
        node.say(a, &format!("a{number}"));
        node.say(b, &format!("b{number}"));
    }
    node.turn();
    let expect: Vec<String> = (0..10)
        .flat_map(|number| [format!("a{number}"), format!("b{number}")])
        .collect();
    assert_eq!(node.texts(c), expect);
    assert_eq!(node.socket(c).writes, 1);
    assert_eq!(
        node.texts(a),
        (0..10).map(|number| format!("b{number}")).collect::<Vec<_>>()
    );
    assert_eq!(
        node.socket(a).writes,
        1,
        "a sender's gaps do not cost it another write"
    );
    assert_eq!(node.counters().messages_out, 40);
}

#[test]
fn several_rooms_and_an_answer_leave_in_one_write() {
    let mut node = Node::one(ShardConfig::default());
    let listener = node.connect(0, "one");
    let [a, b] = ["two", "two"].map(|room| node.connect(0, room));
    let speaker = node.connect(0, "one");
    node.say(a, "in two");
    node.say(speaker, "in one");
    node.say(listener, "!send 1 direct");
    node.receive(listener, Opcode::Ping, b"p");
    node.turn();
    assert_eq!(
        node.seen(listener),
        [
            Seen::Pong(b"p".to_vec()),
            Seen::Text("direct".into()),
            Seen::Text("in one".into())
        ]
    );
    assert_eq!(node.socket(listener).writes, 1);
    assert_eq!(node.texts(b), ["in two"]);
    assert_eq!(node.texts(speaker), Vec::<String>::new());
}

#[test]
fn lanes_leave_in_order_of_priority() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    for order in [
        "!send 0 low",
        "!send 3 critical",
        "!send 1 normal",
        "!send 2 high",
    ] {
        node.say(client, order);
    }
    node.turn();
    assert_eq!(node.texts(client), ["critical", "high", "normal", "low"]);
    assert_eq!(node.socket(client).writes, 1);
}

#[test]
fn a_stalled_member_gets_the_rest_in_order_when_it_reads_again() {
    let mut node = Node::one(ShardConfig::default());
    let [a, b] = [0; 2].map(|shard| node.connect(shard, "room"));
    node.stall(b);
    for turn in 0..5 {
        node.say(a, &format!("{turn}.1"));
        node.say(a, &format!("{turn}.2"));
        node.turn();
    }
    assert_eq!(
        node.texts(b).len(),
        2,
        "the first write is with the driver, the rest waits"
    );
    node.unstall(b);
    node.turn();
    assert_eq!(
        node.texts(b),
        ["1.1", "1.2", "2.1", "2.2", "3.1", "3.2", "4.1", "4.2"]
    );
    assert_eq!(node.socket(b).writes, 2);
}

/// Overflows the queue of a stalled member; returns what it sees in the end.
fn overflow(overflow: Overflow) -> (Node, Vec<Seen>) {
    let limits = Limits {
        queue_messages_max: 3,
        ..Limits::default()
    };
    let mut node = Node::one(ShardConfig {
        overflow,
        limits,
        ..ShardConfig::default()
    });
    let [a, b] = [0; 2].map(|shard| node.connect(shard, "room"));
    node.stall(b);
    for text in ["first", "keyA1", "keyB1", "keyA2", "keyC1", "keyD1"] {
        node.say(a, text);
        node.turn();
    }
    node.unstall(b);
    node.turn();
    let seen = node.seen(b);
    (node, seen)
}

fn texts(texts: &[&str]) -> Vec<Seen> {
    texts.iter().map(|text| Seen::Text((*text).to_owned())).collect()
}

#[test]
fn drop_oldest_keeps_the_newest() {
    let (node, seen) = overflow(Overflow::DropOldest);
    assert_eq!(seen, texts(&["first", "keyA2", "keyC1", "keyD1"]));
    assert_eq!(node.counters().dropped_oldest, 2);
}

#[test]
fn drop_newest_keeps_the_oldest() {
    let (node, seen) = overflow(Overflow::DropNewest);
    assert_eq!(seen, texts(&["first", "keyA1", "keyB1", "keyA2"]));
    assert_eq!(node.counters().dropped_newest, 2);
}

#[test]
fn conflate_keeps_the_newest_of_each_key() {
    let (node, seen) = overflow(Overflow::Conflate);
    assert_eq!(seen, texts(&["first", "keyA2", "keyC1", "keyD1"]));
    assert_eq!(
        (node.counters().conflated, node.counters().dropped_oldest),
        (1, 1)
    );
}

#[test]
fn disconnect_says_so_and_tells_the_application() {
    let (node, seen) = overflow(Overflow::Disconnect);
    assert_eq!(seen, [Seen::Text("first".into()), Seen::Close(Some(3008))]);
    assert_eq!(node.counters().closed["slow_consumer"], 1);
    assert_eq!(
        node.counters().dropped_closed,
        4,
        "three that waited, and the one that found no room"
    );
    assert!(
        node.log(0)
            .contains(&format!("closed 1.0 {}", Cause::SlowConsumer.label()))
    );
}

#[test]
fn a_broken_member_is_removed_and_the_others_are_served() {
    let mut node = Node::one(ShardConfig::default());
    let [a, b, c] = [0; 3].map(|shard| node.connect(shard, "room"));
    node.socket(b).taking = Taking::Broken;
    node.say(a, "hello");
    node.turn();
    assert_eq!(node.texts(c), ["hello"]);
    assert!(node.closed(b).is_some());
    assert_eq!(node.shards[0].connections(), 2);
    node.say(a, "again");
    node.turn();
    assert_eq!(node.texts(c), ["again"]);
    assert_eq!(node.counters().closed["reset"], 1);
}

#[test]
fn an_echo_of_more_than_one_write_arrives_whole() {
    let limits = Limits {
        write_bytes_max: 1_000,
        ..Limits::default()
    };
    let mut node = Node::one(ShardConfig {
        limits,
        ..ShardConfig::default()
    });
    let client = node.connect(0, "");
    let sent: Vec<String> = (0..50).map(|number| format!("{number}").repeat(50)).collect();
    sent.iter().for_each(|text| node.say(client, text));
    node.turn();
    assert_eq!(node.texts(client), sent);
}

#[test]
fn one_read_with_more_messages_than_a_queue_holds_is_answered_whole() {
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect(0, "");
    let mut bytes = bytes::BytesMut::new();
    for number in 0..5_000u32 {
        wire::encode_masked(
            &mut bytes,
            true,
            false,
            Opcode::Binary,
            &number.to_be_bytes(),
            [1, 2, 3, 4],
        );
    }
    node.receive_raw(client, &bytes);
    node.turn();
    let expect: Vec<Seen> = (0..5_000u32)
        .map(|number| Seen::Binary(number.to_be_bytes().to_vec()))
        .collect();
    assert_eq!(node.seen(client), expect);
    assert_eq!(node.counters().dropped(), 0);
}

#[test]
fn a_burst_in_a_room_does_not_count_against_a_member_with_an_answer_waiting() {
    let limits = Limits {
        queue_messages_max: 10,
        ..Limits::default()
    };
    let mut node = Node::one(ShardConfig {
        limits,
        ..ShardConfig::default()
    });
    let [a, b] = [0; 2].map(|shard| node.connect(shard, "room"));
    node.say(b, "!send 1 answer");
    let burst: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    burst.iter().for_each(|text| node.say(a, text));
    node.turn();
    let texts = node.texts(b);
    assert_eq!(texts[0], "answer");
    assert_eq!(texts[1..], burst);
    assert_eq!(node.socket(b).writes, 1);
}

#[test]
fn one_pong_does_not_cost_the_others_anything() {
    let mut node = Node::one(ShardConfig::default());
    let clients: Vec<_> = (0..100).map(|_| node.connect(0, "room")).collect();
    node.say(clients[0], "x");
    node.receive(clients[1], Opcode::Ping, b"p");
    node.turn();
    assert_eq!(
        node.seen(clients[1]),
        [Seen::Pong(b"p".to_vec()), Seen::Text("x".into())]
    );
    assert!(clients[1..].iter().all(|&client| node.socket(client).writes == 1));
}

#[test]
fn rooms_of_higher_lanes_leave_first_and_with_answers_in_between() {
    let mut node = Node::one(ShardConfig::default());
    let listener = Info {
        room: "lane3",
        also: "lane0",
        hold: false,
    };
    let listener = node.try_connect(0, listener).unwrap();
    let low = node.connect(0, "lane0");
    let critical = node.connect(0, "lane3");
    node.say(low, "low");
    node.say(critical, "critical");
    node.say(listener, "!send 2 high");
    node.say(listener, "!send 0 low answer");
    node.turn();
    assert_eq!(node.texts(listener), ["critical", "high", "low answer", "low"]);
    node.stall(listener);
    node.say(low, "x");
    node.turn();
    for text in ["1", "2"] {
        node.say(low, &format!("low {text}"));
        node.say(critical, &format!("critical {text}"));
        node.turn();
    }
    node.unstall(listener);
    node.turn();
    assert_eq!(
        node.texts(listener),
        ["x", "critical 1", "critical 2", "low 1", "low 2"]
    );
}

#[test]
fn what_a_queue_holds_is_what_it_counts() {
    let params = DeflateParams {
        server_no_context_takeover: true,
        client_no_context_takeover: true,
        server_max_window_bits: 15,
        client_max_window_bits: 15,
    };
    let mut node = Node::one(ShardConfig::default());
    let client = node.connect_deflate(0, "", params);
    node.stall(client);
    // Compresses to little; hundreds of them fit the queue only if they are counted, and held, compressed.
    for _ in 0..500 {
        node.say(client, &"a".repeat(100_000));
        node.turn();
    }
    assert_eq!(node.counters().closed.len(), 0);
    assert_eq!(node.shards[0].connections(), 1);
}

#[test]
fn a_flush_delay_gathers_several_turns_in_one_write() {
    let flush_delay = FlushDelay::Fixed(Duration::from_millis(2));
    let mut node = Node::one(ShardConfig {
        flush_delay,
        ..ShardConfig::default()
    });
    let [a, b] = [0; 2].map(|shard| node.connect(shard, "room"));
    for number in 0..4 {
        node.say(a, &number.to_string());
        node.turn();
        node.pass(Duration::from_micros(400));
    }
    assert_eq!(node.socket(b).writes, 0);
    node.pass(Duration::from_millis(1));
    assert_eq!(node.texts(b), ["0", "1", "2", "3"]);
    assert_eq!(node.socket(b).writes, 1);
}

#[test]
fn an_automatic_flush_delay_rests_after_a_large_flush_only() {
    let flush_delay = FlushDelay::Auto {
        max: Duration::from_millis(5),
    };
    let mut node = Node::one(ShardConfig {
        flush_delay,
        ..ShardConfig::default()
    });
    let clients: Vec<_> = (0..501).map(|_| node.connect(0, "room")).collect();
    node.say(clients[0], "one");
    node.turn();
    assert_eq!(
        node.texts(clients[1]),
        ["one"],
        "nothing to wait for when there was rest"
    );
    node.say(clients[0], "two");
    node.turn();
    assert_eq!(node.socket(clients[1]).writes, 1, "500 writes earn 4 ms of rest");
    node.pass(Duration::from_millis(4));
    assert_eq!(node.texts(clients[1]), ["two"]);
}

#[test]
fn due_bytes_over_the_limit_do_not_wait() {
    let limits = Limits {
        due_bytes_max: 10_000,
        ..Limits::default()
    };
    let flush_delay = FlushDelay::Fixed(Duration::from_secs(1));
    let mut node = Node::one(ShardConfig {
        limits,
        flush_delay,
        ..ShardConfig::default()
    });
    let [a, b] = [0; 2].map(|shard| node.connect(shard, "room"));
    for _ in 0..3 {
        node.say(a, &"x".repeat(4_000));
    }
    assert_eq!(node.texts(b).len(), 3);
}

#[test]
fn compressed_and_plain_members_get_the_same_messages() {
    let params = |server_max_window_bits| DeflateParams {
        server_no_context_takeover: true,
        client_no_context_takeover: true,
        server_max_window_bits,
        client_max_window_bits: 15,
    };
    let mut node = Node::one(ShardConfig::default());
    let plain = node.connect(0, "room");
    let wide = node.connect_deflate(0, "room", params(15));
    let narrow = node.connect_deflate(0, "room", params(9));
    let sender = node.connect_deflate(0, "room", params(15));
    let long = "abcdefgh ".repeat(100);
    node.say(sender, &long);
    node.say(sender, "short");
    node.turn();
    let compressed_bytes = node.socket(wide).sent.len();
    assert!(compressed_bytes < 100, "compressed: {compressed_bytes} bytes");
    for client in [plain, wide, narrow] {
        assert_eq!(node.texts(client), [long.as_str(), "short"]);
    }
    node.stall(wide);
    node.say(plain, &long);
    node.turn();
    node.say(plain, &long);
    node.turn();
    node.unstall(wide);
    node.turn();
    assert_eq!(
        node.texts(wide),
        [long.as_str(), long.as_str()],
        "what waited is compressed too"
    );
}
