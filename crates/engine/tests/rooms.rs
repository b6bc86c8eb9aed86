//! Rooms over several shards: one order, only to shards with members, nothing left behind.
#![allow(clippy::unwrap_used)]

mod support;

use engine::{ShardConfig, SocketEnd};
use proptest::prelude::*;
use support::{Client, Node};

#[test]
fn members_on_all_shards_get_each_message_once() {
    let mut node = Node::new(4, ShardConfig::default());
    let clients: Vec<Client> = (0..12).map(|number| node.connect(number % 4, "room")).collect();
    node.turn();
    for (number, &client) in clients.iter().enumerate() {
        node.say(client, &number.to_string());
    }
    node.turn();
    for (number, &client) in clients.iter().enumerate() {
        let mut texts: Vec<usize> = node
            .texts(client)
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        texts.sort_unstable();
        assert_eq!(
            texts,
            (0..12).filter(|&other| other != number).collect::<Vec<_>>()
        );
    }
}

#[test]
fn all_shards_see_one_order() {
    let mut node = Node::new(3, ShardConfig::default());
    let speakers: Vec<Client> = (0..3).map(|shard| node.connect(shard, "room")).collect();
    let listeners: Vec<Client> = (0..3).map(|shard| node.connect(shard, "room")).collect();
    node.turn();
    for round in 0..20 {
        for (number, &speaker) in speakers.iter().enumerate() {
            node.say(speaker, &format!("{number}:{round}"));
        }
        if round % 3 == 0 {
            node.turn();
        }
    }
    node.turn();
    let first = node.texts(listeners[0]);
    assert_eq!(first.len(), 60);
    for &listener in &listeners[1..] {
        assert_eq!(node.texts(listener), first);
    }
}

#[test]
fn shards_without_members_get_no_mail() {
    let mut node = Node::new(4, ShardConfig::default());
    let [a, b] = [0, 0].map(|shard| node.connect(shard, "room"));
    let elsewhere = node.connect(2, "room");
    node.turn();
    node.end(elsewhere, SocketEnd::Eof);
    node.turn();
    let before = node.counters().batches_mailed;
    node.say(a, "x");
    node.turn();
    assert_eq!(node.texts(b), ["x"]);
    let mailed = node.counters().batches_mailed - before;
    assert!(mailed <= 2, "to the home and back at the most: {mailed}");
}

#[test]
fn a_room_is_forgotten_everywhere_when_its_last_member_leaves() {
    let mut node = Node::new(3, ShardConfig::default());
    let clients: Vec<Client> = (0..6).map(|number| node.connect(number % 3, "room")).collect();
    node.turn();
    for (number, &client) in clients.iter().enumerate() {
        if number % 2 == 0 {
            node.say(client, "!leave")
        } else {
            node.end(client, SocketEnd::Reset)
        }
    }
    node.turn();
    assert_eq!(node.shards.iter().map(|shard| shard.rooms()).sum::<usize>(), 0);
}

#[test]
fn a_member_that_comes_back_at_once_finds_the_room_in_order() {
    // Several names, so that some are homed on another shard than their only member's.
    for room in ["a", "b", "c", "d", "e", "f"] {
        let mut node = Node::new(2, ShardConfig::default());
        let old = node.connect(0, room);
        let peer = node.connect(0, room);
        node.turn();
        node.say(old, "one");
        node.say(old, "two");
        node.turn();
        assert_eq!(node.texts(peer), ["one", "two"]);
        node.end(old, SocketEnd::Eof);
        node.end(peer, SocketEnd::Eof);
        let [new, peer] = [0; 2].map(|shard| node.connect(shard, room));
        node.turn();
        node.say(new, "three");
        node.turn();
        assert_eq!(node.texts(peer), ["three"]);
    }
}

#[test]
fn mail_does_not_pile_up_within_a_turn() {
    let limits = engine::Limits {
        due_bytes_max: 10_000,
        ..engine::Limits::default()
    };
    let mut node = Node::new(
        2,
        ShardConfig {
            limits,
            ..ShardConfig::default()
        },
    );
    let [a, b] = [0, 1].map(|shard| node.connect(shard, "room"));
    node.turn();
    for client in [a, b] {
        for _ in 0..100 {
            node.say(client, &"x".repeat(1_000));
        }
    }
    let mailed = node.worlds.iter().map(|world| world.mail.len()).max().unwrap();
    assert!(
        mailed > 2,
        "one shard is not the home and mails {mailed} batches before its turn ends"
    );
    node.turn();
    assert_eq!((node.texts(a).len(), node.texts(b).len()), (100, 100));
}

#[test]
fn what_was_said_just_before_leaving_still_arrives() {
    let mut node = Node::new(3, ShardConfig::default());
    let clients: Vec<Client> = (0..3).map(|shard| node.connect(shard, "room")).collect();
    node.turn();
    node.say(clients[1], "bye");
    node.say(clients[1], "!leave");
    node.turn();
    assert_eq!(node.texts(clients[0]), ["bye"]);
    assert_eq!(node.texts(clients[2]), ["bye"]);
}

/// One thing that happens in the property below.
#[derive(Clone, Debug)]
enum Step {
    Connect(usize, usize),
    Say(usize),
    Stall(usize),
    Unstall(usize),
    Vanish(usize),
    Turn,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..3usize, 0..3usize).prop_map(|(shard, room)| Step::Connect(shard, room)),
        6 => (0..20usize).prop_map(Step::Say),
        1 => (0..20usize).prop_map(Step::Stall),
        1 => (0..20usize).prop_map(Step::Unstall),
        1 => (0..20usize).prop_map(Step::Vanish),
        4 => Just(Step::Turn),
    ]
}

const ROOMS: [&str; 3] = ["red", "green", "blue"];

proptest! {
    /// Whatever happens in whatever order: each member sees each other member's messages of its room, in their order, once;
    /// and when all are gone nothing is left.
    #[test]
    fn nothing_is_lost_doubled_or_reordered(steps in prop::collection::vec(step(), 1..120)) {
        let mut node = Node::new(3, ShardConfig::default());
        let mut clients: Vec<(Client, usize, bool)> = Vec::new();
        let mut expected: Vec<Vec<String>> = Vec::new();
        let mut said = 0;
        for step in steps {
            let pick = |number: usize, clients: &Vec<(Client, usize, bool)>| {
                (!clients.is_empty()).then(|| number % clients.len()).filter(|&at| clients[at].2)
            };
            match step {
                Step::Connect(shard, room) => {
                    node.turn();
                    clients.push((node.connect(shard, ROOMS[room]), room, true));
                    expected.push(Vec::new());
                    // Membership counts from the next turn, and from when the home shard knows of it.
                    node.turn();
                }
                Step::Say(number) => if let Some(at) = pick(number, &clients) {
                    said += 1;
                    let text = format!("{at}:{said}");
                    node.say(clients[at].0, &text);
                    for (other, &(_, room, live)) in clients.iter().enumerate() {
                        if other != at && live && room == clients[at].1 {
                            expected[other].push(text.clone());
                        }
                    }
                },
                Step::Stall(number) => if let Some(at) = pick(number, &clients) { node.stall(clients[at].0) },
                Step::Unstall(number) => if let Some(at) = pick(number, &clients) { node.unstall(clients[at].0) },
                Step::Vanish(number) => if let Some(at) = pick(number, &clients) {
                    node.turn();
                    clients[at].2 = false;
                    node.end(clients[at].0, SocketEnd::Reset);
                },
                Step::Turn => node.turn(),
            }
        }
        for &(client, _, live) in &clients {
            if live { node.unstall(client) }
        }
        node.turn();
        for (at, &(client, _, live)) in clients.iter().enumerate() {
            if live {
                let by_sender = |texts: &[String], sender: usize| -> Vec<String> {
                    texts.iter().filter(|text| text.starts_with(&format!("{sender}:"))).cloned().collect()
                };
                let texts = node.texts(client);
                prop_assert_eq!(texts.len(), expected[at].len());
                for sender in 0..clients.len() {
                    prop_assert_eq!(by_sender(&texts, sender), by_sender(&expected[at], sender));
                }
            }
        }
        for &(client, _, live) in &clients {
            if live { node.end(client, SocketEnd::Eof) }
        }
        node.turn();
        for shard in &node.shards {
            prop_assert_eq!((shard.connections(), shard.rooms()), (0, 0));
        }
    }
}
