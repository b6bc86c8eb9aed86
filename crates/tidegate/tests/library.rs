//! The library as a program embeds it: layers in order, panics caught, probes, settings, shutdown.

#![allow(clippy::unwrap_used, reason = "a test that fails here has said enough")]

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use support::{Raw, ask, wait_until};
use tidegate::logging::{LogFormat, LogLevel};
use tidegate::{
    BroadcastConfig, BroadcastServer, Builder, Context, Event, Kind, Layer, Message, Metrics, Next, Recovery,
    RunningServer, Tracking,
};

fn builder() -> Builder {
    BroadcastServer::builder(BroadcastConfig {
        address: "127.0.0.1:0".to_owned(),
        workers: 2,
        stats_interval: None,
        // The clients here do not answer a close.
        drain: std::time::Duration::from_millis(100),
        ..BroadcastConfig::default()
    })
}

fn get(address: SocketAddr, path: &str) -> String {
    ask(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    )
}

/// Waits until all are on their shards and the room's home knows of it: mail sent in one turn is taken in the next.
fn wait_for_members(server: &RunningServer, count: usize) {
    wait_until("all are in", || server.control().stats().connections() == count);
    for _ in 0..3 {
        server.control().stats();
    }
}

fn end(server: RunningServer) {
    server.shutdown();
    server.join();
}

/// Writes down what it sees before and after what lies inside.
struct Witness {
    name: &'static str,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Layer for Witness {
    fn handle(&self, context: &mut Context<'_>, event: Event<'_>, next: Next<'_>) {
        let what = match event {
            Event::Open(opened) => format!("open {}", opened.path),
            Event::Message(message) => format!("message {}", String::from_utf8_lossy(message.payload)),
            Event::Close(cause) => format!("close {}", cause.label()),
        };
        self.seen
            .lock()
            .unwrap()
            .push(format!("{} sees {what}", self.name));
        next.run(context, event);
        self.seen.lock().unwrap().push(format!("{} is done", self.name));
    }
}

#[test]
fn layers_see_each_event_once_from_the_outside_in() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let witness = |name| Witness {
        name,
        seen: Arc::clone(&seen),
    };
    let server = builder()
        .layer(witness("outer"))
        .layer(witness("inner"))
        .start()
        .unwrap();
    let mut raw = Raw::connect(server.addr(), "/echo?query");
    raw.send_text("hello");
    raw.expect_text("hello");
    drop(raw);
    wait_until("the close", || seen.lock().unwrap().len() == 12);
    let around = |what: &str| {
        [
            format!("outer sees {what}"),
            format!("inner sees {what}"),
            "inner is done".into(),
            "outer is done".into(),
        ]
    };
    let expect = [around("open /echo"), around("message hello"), around("close eof")].concat();
    assert_eq!(*seen.lock().unwrap(), expect);
    end(server);
}

#[test]
fn a_layer_runs_once_for_a_message_not_for_each_delivery() {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let count = move |context: &mut Context<'_>, event: Event<'_>, next: Next<'_>| {
        counted.fetch_add(u64::from(matches!(event, Event::Message(_))), Ordering::Relaxed);
        next.run(context, event);
    };
    let server = builder().layer(count).start().unwrap();
    let mut raws: Vec<Raw> = (0..10).map(|_| Raw::connect(server.addr(), "/")).collect();
    wait_for_members(&server, 10);
    raws[0].send_text("to nine");
    raws[1..].iter_mut().for_each(|raw| raw.expect_text("to nine"));
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    end(server);
}

#[test]
fn a_layer_changes_drops_and_refuses() {
    let shout = |context: &mut Context<'_>, event: Event<'_>, next: Next<'_>| match event {
        Event::Message(message) if message.payload == b"secret" => {}
        Event::Message(message) if message.payload == b"leave" => context.close(4000, "as you wish"),
        Event::Message(message) => {
            let payload = message.payload.to_ascii_uppercase();
            next.run(
                context,
                Event::Message(Message {
                    kind: Kind::Text,
                    payload: &payload,
                }),
            );
        }
        event => next.run(context, event),
    };
    let server = builder().layer(shout).start().unwrap();
    let mut raw = Raw::connect(server.addr(), "/echo");
    raw.send_text("secret");
    raw.send_text("loud");
    raw.expect_text("LOUD");
    raw.send_text("leave");
    assert_eq!(raw.read_close(), 4000);
    end(server);
}

#[test]
fn a_panic_costs_its_own_connection_only() {
    let recovery = Recovery::new();
    let trip = |context: &mut Context<'_>, event: Event<'_>, next: Next<'_>| match event {
        Event::Message(message) if message.payload == b"trip" => panic!("on purpose"),
        event => next.run(context, event),
    };
    let server = builder().layer(recovery.clone()).layer(trip).start().unwrap();
    // Round-robin over two shards: the first and the third share one.
    let mut raws: Vec<Raw> = (0..4).map(|_| Raw::connect(server.addr(), "/echo")).collect();
    raws[0].send_text("trip");
    assert_eq!(raws[0].read_close(), 1011);
    for raw in &mut raws[1..] {
        raw.send_text("well");
        raw.expect_text("well");
    }
    assert_eq!(recovery.panics(), 1);
    assert!(get(server.addr(), "/debug/probes").contains("\"panics\":1"));
    end(server);
}

#[test]
fn tracking_counts_live_and_total() {
    let tracking = Tracking::new();
    let server = builder().layer(tracking.clone()).start().unwrap();
    let first = Raw::connect(server.addr(), "/echo");
    let mut second = Raw::connect(server.addr(), "/echo");
    second.send_text("one");
    second.expect_text("one");
    wait_for_members(&server, 2);
    drop(first);
    wait_until("one is left", || tracking.connections() == 1);
    assert_eq!((tracking.total_connections(), tracking.total_messages()), (2, 1));
    let probes = server.control().probes();
    assert_eq!(
        (&probes["connections"], &probes["total_messages"]),
        (&1.into(), &1.into())
    );
    end(server);
}

#[test]
fn probes_are_shown_and_removed() {
    let server = builder().probe("from_the_start", || "here").start().unwrap();
    server.control().register_probe("my_probe", || vec![1, 2]);
    let page = get(server.addr(), "/debug/probes");
    assert!(
        page.contains("\"from_the_start\":\"here\"") && page.contains("\"my_probe\":[1,2]"),
        "{page}"
    );
    assert!(server.control().remove_probe("my_probe"));
    assert!(!get(server.addr(), "/debug/probes").contains("my_probe"));
    end(server);
}

#[test]
fn metrics_have_their_names_and_end_once() {
    let server = builder().layer(Metrics::new()).start().unwrap();
    let mut raw = Raw::connect(server.addr(), "/echo");
    raw.send_text("count");
    raw.expect_text("count");
    let page = get(server.addr(), "/metrics");
    for name in [
        "tidegate_connections{shard=\"1\"} 0",
        "tidegate_opened_total{shard=\"0\"} 1",
        "tidegate_messages_total{shard=\"0\",direction=\"in\"} 1",
        "tidegate_traffic_bytes_total{",
        "tidegate_dropped_total{shard=\"0\",reason=\"oldest\"} 0",
        "tidegate_turn_seconds_bucket{le=\"0.001\",shard=\"0\"}",
        "tidegate_turn_seconds_count{shard=\"0\"}",
        "tidegate_turns_total{",
        "tidegate_writes_total{",
        "tidegate_pings_total{",
        "tidegate_upgrades_total 1",
        "tidegate_accept_errors_total 0",
        "tidegate_handshakes 1",
        "tidegate_process_cpu_seconds_total ",
        "tidegate_process_resident_bytes ",
        "tidegate_process_open_fds ",
        "tidegate_payload_bytes_total{kind=\"text\"} 5",
        "tidegate_handling_seconds_count 1",
    ] {
        assert!(
            page.lines().any(|line| line.starts_with(name)),
            "no {name} in\n{page}"
        );
    }
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\nConnection: close\r\n\r\n";
    let page = ask(server.addr(), request);
    assert!(page.ends_with("# EOF\n") && page.matches("# EOF").count() == 1);
    end(server);
}

#[test]
fn shutdown_says_what_it_closed() {
    let server = builder().start().unwrap();
    let mut raw = Raw::connect(server.addr(), "/");
    wait_until("it is in", || server.control().stats().connections() == 1);
    server.shutdown();
    let close = raw.read_frame();
    assert_eq!(close.code(), 1001);
    raw.send(&support::raw::frame(close.first, &close.payload));
    let summary = server.join();
    assert_eq!((summary.connections, summary.closed), (1, 1));
}

#[test]
fn the_log_level_changes_while_it_runs() {
    let log = tidegate::logging::start(LogFormat::Text, LogLevel::Warn);
    let server = builder().log(log).start().unwrap();
    assert!(!tracing::enabled!(tracing::Level::DEBUG));
    server.control().set("log-level", "debug").unwrap();
    assert!(tracing::enabled!(tracing::Level::DEBUG));
    end(server);
}
