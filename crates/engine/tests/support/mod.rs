//! A node without I/O: shards, a world of fake sockets that obey orders, and mail carried by hand.
#![allow(dead_code, clippy::unwrap_used)] // Each test file uses its part.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use engine::*;
use wire::{Codec, Decoder, DeflateParams, Item, Kind, Opcode, Role, encode_masked};

/// What a client saw, decoded by the client's side of the codec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping,
    Pong(Vec<u8>),
    Close(Option<u16>),
}

/// What an application was told.
pub type Log = Rc<RefCell<Vec<String>>>;

/// Joins the room its info names; "echo" answers; every message goes to the room, all but the sender. Messages that begin with
/// `!` are orders: `!close`, `!send LANE TEXT`.
pub struct App {
    pub log: Log,
    pub rooms: BTreeMap<ConnectionId, RoomId>,
}

#[derive(Default)]
pub struct Info {
    pub room: &'static str,
    /// A second room, only to listen.
    pub also: &'static str,
    pub hold: bool,
}

impl Application for App {
    type Info = Info;

    fn opened(&mut self, shard: &mut Core, connection: ConnectionId, info: Info) {
        self.log.borrow_mut().push(format!("opened {connection}"));
        if info.hold {
            shard.hold(connection);
        }
        if !info.room.is_empty() {
            let room = shard.join(connection, info.room).unwrap();
            // Rooms with a lane in their name have it.
            if let Some(lane) = info.room.strip_prefix("lane") {
                let lane = Lane::ALL[lane.parse::<usize>().unwrap()];
                let overflow = Overflow::DropOldest;
                shard.configure(room, RoomOptions { lane, overflow });
            }
            if info.also.is_empty() || shard.join(connection, info.also).is_ok() {
                self.rooms.insert(connection, room);
            }
        }
    }

    fn message(&mut self, shard: &mut Core, connection: ConnectionId, message: Message<'_>) {
        let text = String::from_utf8_lossy(message.payload).into_owned();
        if text == "!close" {
            shard.close(connection, 3_500, "asked for");
        } else if text == "!establish" {
            shard.establish(connection);
        } else if text == "!leave" {
            shard.leave(connection, self.rooms[&connection]);
        } else if let Some(rest) = text.strip_prefix("!send ") {
            let (lane, body) = rest.split_once(' ').unwrap();
            let lane = Lane::ALL[lane.parse::<usize>().unwrap()];
            shard.send(
                connection,
                lane,
                Message {
                    kind: Kind::Text,
                    payload: body.as_bytes(),
                },
            );
        } else if let Some(room) = self.rooms.get(&connection) {
            let key = text
                .strip_prefix("key")
                .and_then(|rest| rest.bytes().next())
                .map(u64::from);
            shard.publish(*room, message, Some(connection), key);
        } else {
            shard.send(connection, Lane::Normal, message);
        }
    }

    fn closed(&mut self, _shard: &mut Core, connection: ConnectionId, cause: Cause) {
        self.log
            .borrow_mut()
            .push(format!("closed {connection} {}", cause.label()));
        self.rooms.remove(&connection);
    }
}

/// How a fake socket takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    All,
    /// The next write stays pending until `unstall`.
    Stalled,
    Broken,
}

pub struct Socket {
    pub sent: BytesMut,
    pub writes: usize,
    pub taking: Taking,
    pub pending: bool,
    pub shut: bool,
    pub closed: Option<Close>,
    decoder: Decoder,
}

/// The sockets of one shard.
#[derive(Default)]
pub struct World {
    pub sockets: BTreeMap<ConnectionId, Socket>,
    pub mail: Vec<(ShardId, Mail)>,
}

impl Actions<Mail> for World {
    fn write(&mut self, connection: ConnectionId, parts: &[Bytes]) -> Wrote {
        let socket = self
            .sockets
            .get_mut(&connection)
            .expect("a write names an open connection");
        assert!(
            socket.closed.is_none() && !socket.shut && !socket.pending,
            "no write after a close or while pending"
        );
        assert!(
            !parts.is_empty() && parts.iter().all(|part| !part.is_empty()),
            "no empty parts"
        );
        if socket.taking == Taking::Broken {
            return Wrote::Failed;
        }
        socket.writes += 1;
        parts.iter().for_each(|part| socket.sent.extend_from_slice(part));
        if socket.taking == Taking::Stalled {
            socket.pending = true;
            return Wrote::Pending;
        }
        Wrote::Done
    }

    fn shutdown(&mut self, connection: ConnectionId) {
        self.sockets.get_mut(&connection).unwrap().shut = true;
    }

    fn close(&mut self, connection: ConnectionId, how: Close) {
        let socket = self
            .sockets
            .get_mut(&connection)
            .expect("only open connections are closed");
        assert!(socket.closed.replace(how).is_none(), "closed once");
    }

    fn mail(&mut self, to: ShardId, mail: Mail) {
        self.mail.push((to, mail));
    }
}

pub struct Node {
    pub shards: Vec<Shard<App>>,
    pub worlds: Vec<World>,
    pub logs: Vec<Log>,
    pub now: Time,
    pub mailbags: Vec<VecDeque<Mail>>,
    deflate: Option<DeflateParams>,
}

/// A client: its shard and its id there.
pub type Client = (usize, ConnectionId);

impl Node {
    pub fn new(shards: u16, config: ShardConfig) -> Node {
        let logs: Vec<Log> = (0..shards).map(|_| Log::default()).collect();
        let make = |shard: u16| {
            let config = ShardConfig {
                shard: ShardId(shard),
                shards,
                ..config.clone()
            };
            let app = App {
                log: logs[usize::from(shard)].clone(),
                rooms: BTreeMap::new(),
            };
            Shard::new(config, app)
        };
        Node {
            shards: (0..shards).map(make).collect(),
            worlds: (0..shards).map(|_| World::default()).collect(),
            logs: logs.clone(),
            now: Time::from_micros(1_000_000),
            mailbags: (0..shards).map(|_| VecDeque::new()).collect(),
            deflate: None,
        }
    }

    pub fn one(config: ShardConfig) -> Node {
        Node::new(1, config)
    }

    pub fn try_connect(&mut self, shard: usize, info: Info) -> Option<Client> {
        self.greet(shard, info, Bytes::new())
    }

    /// Connects a client whose connection begins with `greeting`.
    pub fn greet(&mut self, shard: usize, info: Info, greeting: Bytes) -> Option<Client> {
        let opening = Opening {
            info,
            deflate: self.deflate,
            greeting,
        };
        let id = self.shards[shard].opened(opening, self.now, &mut self.worlds[shard])?;
        let socket = Socket {
            sent: BytesMut::new(),
            writes: 0,
            taking: Taking::All,
            pending: false,
            shut: false,
            closed: None,
            decoder: Decoder::new(self.deflate),
        };
        self.worlds[shard].sockets.insert(id, socket);
        Some((shard, id))
    }

    pub fn connect(&mut self, shard: usize, room: &'static str) -> Client {
        self.try_connect(
            shard,
            Info {
                room,
                ..Info::default()
            },
        )
        .expect("not refused")
    }

    /// Connects a client that negotiated compression without context takeover.
    pub fn connect_deflate(&mut self, shard: usize, room: &'static str, params: DeflateParams) -> Client {
        self.deflate = Some(params);
        let client = self.connect(shard, room);
        self.deflate = None;
        client
    }

    pub fn receive_raw(&mut self, (shard, id): Client, bytes: &[u8]) {
        self.shards[shard].received(id, &mut bytes.to_vec(), self.now, &mut self.worlds[shard]);
    }

    pub fn receive(&mut self, client: Client, opcode: Opcode, payload: &[u8]) {
        let mut frame = BytesMut::new();
        encode_masked(&mut frame, true, false, opcode, payload, [1, 2, 3, 4]);
        self.receive_raw(client, &frame);
    }

    /// A client sends a text message.
    pub fn say(&mut self, client: Client, text: &str) {
        self.receive(client, Opcode::Text, text.as_bytes());
    }

    pub fn end(&mut self, (shard, id): Client, end: SocketEnd) {
        self.shards[shard].ended(id, end, self.now, &mut self.worlds[shard]);
    }

    pub fn socket(&mut self, (shard, id): Client) -> &mut Socket {
        self.worlds[shard].sockets.get_mut(&id).unwrap()
    }

    pub fn stall(&mut self, client: Client) {
        self.socket(client).taking = Taking::Stalled;
    }

    pub fn unstall(&mut self, (shard, id): Client) {
        let socket = self.socket((shard, id));
        socket.taking = Taking::All;
        if std::mem::take(&mut socket.pending) {
            self.shards[shard].flushed(id, self.now, &mut self.worlds[shard]);
        }
    }

    /// Ends a turn of each shard, then carries mail and repeats until nothing moves.
    pub fn turn(&mut self) {
        loop {
            for shard in 0..self.shards.len() {
                for mail in std::mem::take(&mut self.mailbags[shard]) {
                    self.shards[shard].mail(mail, self.now, &mut self.worlds[shard]);
                }
                self.shards[shard].advance(self.now, &mut self.worlds[shard]);
                self.shards[shard].flush(self.now, &mut self.worlds[shard]);
            }
            for world in &mut self.worlds {
                for (to, mail) in world.mail.drain(..) {
                    self.mailbags[usize::from(to.0)].push_back(mail);
                }
            }
            if self.mailbags.iter().all(VecDeque::is_empty) {
                return;
            }
        }
    }

    pub fn mail(&mut self, shard: usize, mail: Mail) {
        self.shards[shard].mail(mail, self.now, &mut self.worlds[shard]);
    }

    /// Lets time pass by the shards' own deadlines.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.shards.iter().filter_map(|shard| shard.next_deadline()).min() {
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            self.turn();
        }
        self.now = end;
    }

    /// What a client has seen since it last looked.
    pub fn seen(&mut self, client: Client) -> Vec<Seen> {
        let socket = self.socket(client);
        let mut bytes = std::mem::take(&mut socket.sent);
        let mut codec = Codec::new(Role::Client, 64 << 20);
        let mut input = &mut bytes[..];
        let mut seen = Vec::new();
        while let Some(item) = socket
            .decoder
            .next(&mut input, &mut codec)
            .expect("the server speaks correctly")
        {
            seen.push(match item {
                Item::Message {
                    kind: Kind::Text,
                    payload,
                } => Seen::Text(String::from_utf8(payload.to_vec()).unwrap()),
                Item::Message {
                    kind: Kind::Binary,
                    payload,
                } => Seen::Binary(payload.to_vec()),
                Item::Ping(_) => Seen::Ping,
                Item::Pong(payload) => Seen::Pong(payload.to_vec()),
                Item::Close { code, .. } => Seen::Close(code),
            });
        }
        seen
    }

    /// The texts a client has seen since it last looked; anything else is a failure.
    pub fn texts(&mut self, client: Client) -> Vec<String> {
        let text = |seen| match seen {
            Seen::Text(text) => text,
            other => panic!("not a text: {other:?}"),
        };
        self.seen(client).into_iter().map(text).collect()
    }

    pub fn closed(&mut self, client: Client) -> Option<Close> {
        self.socket(client).closed
    }

    pub fn log(&self, shard: usize) -> Vec<String> {
        self.logs[shard].borrow().clone()
    }

    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.shards.iter().for_each(|shard| sum.merge(shard.counters()));
        sum
    }
}
