//! Each scenario against the bare loop, over real sockets, with small numbers.
#![expect(clippy::unwrap_used, reason = "a test's way to fail")]

use std::net::{SocketAddr, TcpListener};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use load::limit::{Limit, Mode, Stopper, Totals};
use load::plan::{Format, Pace, Plan, Protocol, Scenario, Traffic};
use load::report::Report;
use load::{BenchError, Manner};

/// The bare loop on a port of its own.
struct Server {
    address: SocketAddr,
    stopper: Stopper,
    thread: JoinHandle<Totals>,
}

impl Server {
    fn start(mode: Mode) -> Server {
        let limit = Limit::bind("127.0.0.1:0".parse().unwrap(), mode).unwrap();
        Server {
            address: limit.local_addr().unwrap(),
            stopper: limit.stopper(),
            thread: thread::spawn(move || limit.run().unwrap()),
        }
    }

    fn stop(self) -> Totals {
        self.stopper.stop();
        self.thread.join().unwrap()
    }
}

const ONE: Traffic = Traffic {
    senders: 1,
    pace: Pace::InFlight(1),
};

fn plan(address: SocketAddr, scenario: Scenario) -> Plan {
    Plan {
        scenario,
        target: format!("ws://{address}").parse().unwrap(),
        protocol: Protocol::Plain,
        format: Format::Text,
        connections: 20,
        size: 64,
        warmup: Duration::from_millis(20),
        duration: Duration::from_millis(200),
        sources: 2,
        connect_window: 8,
        connect_timeout: Duration::from_secs(10),
        server_pid: None,
        driver: reactor::DriverKind::Epoll,
        cpu: None,
    }
}

fn run(plan: &Plan) -> Report {
    load::run(
        plan,
        &Manner {
            quiet: true,
            ..Manner::default()
        },
    )
    .unwrap()
}

/// Runs `plan` against a loop of its own and sees that nothing was wrong.
fn passes(mode: Mode, scenario: Scenario, change: impl FnOnce(&mut Plan)) -> (Report, Totals) {
    let server = Server::start(mode);
    let mut plan = plan(server.address, scenario);
    change(&mut plan);
    let report = run(&plan);
    let totals = server.stop();
    assert_eq!(report.verdict(), None, "{report}");
    assert!(report.passed);
    assert_eq!(report.connections_unclosed, 0);
    (report, totals)
}

#[test]
fn fanout_with_a_window_delivers_each_message_to_all_others() {
    let traffic = Traffic {
        senders: 3,
        pace: Pace::InFlight(4),
    };
    let (report, totals) = passes(Mode::Fanout, Scenario::Fanout(traffic), |_| {});
    assert!(report.deliveries > 0 && report.messages > 0);
    assert!(report.latency_us.unwrap().p50 > 0.0);
    assert_eq!((totals.upgraded, totals.blocked, totals.refused), (20, 0, 0));
}

#[test]
fn fanout_at_a_rate_sends_as_many_as_were_due() {
    let traffic = Traffic {
        senders: 2,
        pace: Pace::Rate(500.0),
    };
    let (report, _) = passes(Mode::Fanout, Scenario::Fanout(traffic), |plan| {
        plan.format = Format::Binary
    });
    let due = report.duration_s * 500.0;
    // On a busy machine the last turn may come late, and what was due meanwhile is not sent.
    let fits = (due / 2.0..due + 10.0).contains(&(report.messages as f64));
    assert!(fits, "{} of {due}", report.messages);
}

#[test]
fn echo_comes_back_to_its_sender() {
    let traffic = Traffic {
        senders: 20,
        pace: Pace::InFlight(2),
    };
    let (report, _) = passes(Mode::Echo, Scenario::Echo(traffic), |plan| plan.size = 70_000);
    assert!(report.deliveries > 0);
}

#[test]
fn idle_measures_this_process_as_the_server() {
    let (report, _) = passes(Mode::Fanout, Scenario::Idle, |plan| {
        plan.server_pid = Some(std::process::id())
    });
    assert!(cfg!(not(target_os = "linux")) || report.server_rss_bytes_max.is_some());
    assert_eq!(
        report.server_rss_bytes_per_connection, None,
        "20 connections tell nothing"
    );
    assert_eq!(report.deliveries, 0);
}

#[test]
fn connect_storms_come_in_rounds() {
    let (report, totals) = passes(Mode::Fanout, Scenario::Connect { rounds: 3 }, |_| {});
    assert_eq!(report.rounds.len(), 3);
    assert_eq!((report.connections_opened, totals.upgraded), (60, 60));
    assert!(report.connect_latency_us.is_some());
}

#[test]
fn churn_serves_guests_while_members_lose_nothing() {
    let scenario = Scenario::Churn {
        traffic: ONE,
        rate: 200.0,
        hold: Duration::from_millis(30),
    };
    let (report, totals) = passes(Mode::Fanout, scenario, |_| {});
    assert!(report.guests_served > 0);
    assert_eq!(totals.upgraded, report.connections_opened);
}

#[test]
fn readers_that_stall_cost_the_others_nothing() {
    let traffic = Traffic {
        senders: 1,
        pace: Pace::InFlight(4),
    };
    let scenario = Scenario::Slow { traffic, share: 0.2 };
    let (report, totals) = passes(Mode::Fanout, scenario, |plan| {
        plan.size = 64 << 10;
        plan.duration = Duration::from_secs(1);
    });
    assert_eq!((report.stalled, report.connections_opened), (4, 16));
    // How soon the kernel has no more room for them is its own; that they are counted right is ours.
    assert_eq!(report.stalled_dropped, Some(totals.blocked));
    assert_eq!(totals.upgraded, 20);
}

#[test]
fn a_server_that_does_not_fan_out_fails_the_run() {
    let server = Server::start(Mode::Echo);
    let mut plan = plan(server.address, Scenario::Fanout(ONE));
    plan.connections = 2;
    let report = run(&plan);
    server.stop();
    assert!(report.verdict().unwrap().contains("does not fan out"), "{report}");
}

#[test]
fn messages_that_come_to_others_fail_an_echo() {
    let server = Server::start(Mode::Fanout);
    let traffic = Traffic {
        senders: 2,
        pace: Pace::InFlight(1),
    };
    let mut plan = plan(server.address, Scenario::Echo(traffic));
    plan.connections = 2;
    let report = run(&plan);
    server.stop();
    assert!(!report.passed);
    assert_eq!(report.violations.misdirected, 2);
}

#[test]
fn a_server_that_is_not_there_is_one_clear_line() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let report = run(&plan(nobody, Scenario::Idle));
    assert!(report.verdict().unwrap().contains("could be opened"), "{report}");
    assert_eq!(report.connections_opened, 0);
}

#[test]
fn a_server_that_never_answers_ends_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut plan = plan(silent.local_addr().unwrap(), Scenario::Idle);
    plan.connect_timeout = Duration::from_millis(50);
    let report = run(&plan);
    assert!(report.verdict().unwrap().contains("timed out"), "{report}");
}

#[test]
fn a_process_that_is_not_there_is_refused() {
    let mut plan = plan("127.0.0.1:9".parse().unwrap(), Scenario::Idle);
    plan.server_pid = Some(u32::MAX);
    let error = load::run(&plan, &Manner::default()).unwrap_err();
    assert!(matches!(error, BenchError::Plan(_)), "{error}");
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn the_json_has_the_fields_that_others_read() {
    let (report, _) = passes(Mode::Fanout, Scenario::Fanout(ONE), |_| {});
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    for name in [
        "schema",
        "scenario",
        "connections",
        "senders",
        "size",
        "in_flight",
        "rate",
        "duration_s",
        "deliveries",
        "deliveries_per_s",
        "server_cpu_ns_per_delivery",
        "server_cpu_ns_per_connect",
        "server_rss_bytes_per_connection",
        "loader_cpu_share",
        "violations",
        "failures",
        "passed",
    ] {
        assert!(json.get(name).is_some(), "{name} is missing");
    }
    for name in ["p50", "p95", "p99", "p999", "max"] {
        assert!(json["latency_us"][name].is_f64(), "latency_us.{name} is missing");
    }
    assert_eq!(json["scenario"], "fanout");
    assert_eq!(json["in_flight"], 1);
    assert!(json["rate"].is_null());
    assert!(json["deliveries"].as_u64().unwrap() > 0);
}

#[test]
fn the_page_holds_the_data_and_needs_no_network() {
    let (report, _) = passes(Mode::Fanout, Scenario::Fanout(ONE), |plan| {
        plan.target = format!("{}</script>", plan.target).parse().unwrap();
    });
    let page = report.to_html();
    assert!(page.contains("\"scenario\":\"fanout\""));
    assert_eq!(
        page.matches("</script>").count(),
        1,
        "data must not end the script"
    );
    for outside in ["src=", "href=", "@import", "url(", "fetch("] {
        assert!(!page.contains(outside), "{outside}");
    }
}
