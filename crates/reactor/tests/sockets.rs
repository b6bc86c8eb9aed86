//! One machine over plain sockets, with each driver.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::mpsc::channel;
use std::time::Instant;

use bytes::Bytes;
use common::{Ask, Bench, PATIENCE, Probe, Seen, for_each_driver, pair, pattern};
use engine::{Close, SocketEnd, Wrote};
use socket2::{Domain, SockRef, Socket, Type};

fn echo(probe: Probe) -> Probe {
    probe
}

#[test]
fn what_is_sent_comes_back() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, echo);
        let (mut client, _) = bench.connect();
        for length in [1, 125, 4096, 70_000, 300_000] {
            let sent = pattern(length);
            let mut writer = client.try_clone().unwrap();
            let expected = sent.clone();
            let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
            let mut back = vec![0; length];
            client.read_exact(&mut back).unwrap();
            assert!(back == expected, "{length} bytes come back as they were");
            writing.join().unwrap();
        }
        bench.end();
    });
}

#[test]
fn single_bytes_come_back_in_order() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, echo);
        let (mut client, _) = bench.connect();
        let sent = pattern(500);
        for byte in &sent {
            client.write_all(&[*byte]).unwrap();
        }
        let mut back = vec![0; sent.len()];
        client.read_exact(&mut back).unwrap();
        assert_eq!(back, sent);
        bench.end();
    });
}

#[test]
fn many_parts_leave_as_one_stream() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, echo);
        let (mut client, id) = bench.connect();
        // More parts than one vectored write may have.
        let all = pattern(5000 * 3);
        let parts = all.chunks(3).map(Bytes::copy_from_slice).collect();
        bench.ask(Ask::Write(id, parts));
        let mut got = vec![0; all.len()];
        client.read_exact(&mut got).unwrap();
        assert!(got == all);
        bench.end();
    });
}

#[test]
fn a_slow_reader_gets_all_in_order() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, echo);
        let (mut client, id) = bench.connect();
        let all = pattern(16 << 20);
        let parts = all.chunks(1 << 20).map(Bytes::copy_from_slice).collect();
        bench.ask(Ask::Write(id, parts));
        assert_eq!(bench.next(), Seen::Wrote(id, Wrote::Pending));
        let mut got = vec![0; all.len()];
        client.read_exact(&mut got).unwrap();
        assert!(got == all);
        assert_eq!(bench.next(), Seen::Flushed(id));
        bench.ask(Ask::Write(id, vec![Bytes::from_static(b"more")]));
        let mut more = [0; 4];
        client.read_exact(&mut more).unwrap();
        assert_eq!(&more, b"more");
        bench.end();
    });
}

#[test]
fn a_reset_is_told_once() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, Probe::without_echo);
        let (client, id) = bench.connect();
        SockRef::from(&client)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
        drop(client);
        assert_eq!(bench.ended(), (id, SocketEnd::Reset));
        assert_eq!(bench.stats().sockets, 0);
        let Bench { group, seen, .. } = bench;
        group.handles[0].stop();
        group.join().unwrap();
        assert_eq!(seen.try_iter().count(), 0);
    });
}

#[test]
fn after_the_peers_end_the_machine_may_still_write() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, |probe| probe.without_echo().staying());
        let (mut client, id) = bench.connect();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(bench.ended(), (id, SocketEnd::Eof));
        bench.ask(Ask::Write(id, vec![Bytes::from_static(b"last words")]));
        let mut words = [0; 10];
        client.read_exact(&mut words).unwrap();
        assert_eq!(&words, b"last words");
        bench.ask(Ask::Close(id, Close::Orderly));
        assert_eq!(client.read(&mut words).unwrap(), 0);
        bench.end();
    });
}

#[test]
fn a_pending_write_to_a_peer_that_resets_ends_the_connection() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, |probe| probe.without_echo().staying());
        let (client, id) = bench.connect();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(bench.ended(), (id, SocketEnd::Eof));
        bench.ask(Ask::Write(id, vec![Bytes::from(pattern(16 << 20))]));
        assert_eq!(bench.next(), Seen::Wrote(id, Wrote::Pending));
        SockRef::from(&client)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
        drop(client);
        assert_eq!(bench.next(), Seen::Ended(id, SocketEnd::Reset));
        bench.end();
    });
}

#[test]
fn an_orderly_close_lets_written_bytes_arrive() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, Probe::without_echo);
        for _ in 0..50 {
            let (mut client, id) = bench.connect();
            bench.ask(Ask::LastWords(id, Bytes::from_static(b"bye")));
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"bye");
        }
        bench.end();
    });
}

#[test]
fn an_abort_resets() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, Probe::without_echo);
        let (mut client, id) = bench.connect();
        bench.ask(Ask::Close(id, Close::Abort));
        let error = client.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        bench.end();
    });
}

#[test]
fn an_abort_drops_what_a_stalled_peer_does_not_read() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, Probe::without_echo);
        let (mut client, id) = bench.connect();
        bench.ask(Ask::Write(id, vec![Bytes::from(pattern(16 << 20))]));
        assert_eq!(bench.next(), Seen::Wrote(id, Wrote::Pending));
        bench.ask(Ask::Close(id, Close::Abort));
        let error = client.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        bench.end();
    });
}

#[test]
fn shutdown_follows_what_is_pending_and_reading_goes_on() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, Probe::without_echo);
        let (mut client, id) = bench.connect();
        let all = pattern(16 << 20);
        bench.ask(Ask::Write(id, vec![Bytes::from(all.clone())]));
        assert_eq!(bench.next(), Seen::Wrote(id, Wrote::Pending));
        bench.ask(Ask::Shutdown(id));
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert!(got == all);
        assert_eq!(bench.next(), Seen::Flushed(id));
        client.write_all(b"heard").unwrap();
        assert_eq!(bench.next(), Seen::Received(id, 5));
        bench.end();
    });
}

#[test]
fn bytes_read_before_the_hand_off_come_first() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, echo);
        let (mut client, server) = pair();
        client.write_all(b"second").unwrap();
        bench.adopt(server, Bytes::from_static(b"first,"), None);
        let mut back = [0; 12];
        client.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"first,second");
        bench.end();
    });
}

#[test]
fn two_thousand_connections_echo_and_their_slots_are_used_again() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, echo);
        for (round, count) in [(0, 2000), (1, 200)] {
            let mut clients: Vec<_> = (0..count).map(|_| bench.connect_unseen()).collect();
            for (number, client) in clients.iter_mut().enumerate() {
                client.write_all(&(number as u32 + round).to_le_bytes()).unwrap();
            }
            for (number, client) in clients.iter_mut().enumerate() {
                let mut back = [0; 4];
                client.read_exact(&mut back).unwrap();
                assert_eq!(u32::from_le_bytes(back), number as u32 + round);
            }
            drop(clients);
            for _ in 0..count {
                assert_eq!(bench.ended().1, SocketEnd::Eof);
            }
        }
        bench.end();
    });
}

#[test]
fn a_socket_that_still_connects_sends_when_it_can() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, Probe::without_echo);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&listener.local_addr().unwrap().into());
        bench.adopt(socket.into(), Bytes::new(), None);
        let id = bench.opened();
        bench.ask(Ask::Write(id, vec![Bytes::from_static(b"hello")]));
        let (mut peer, _) = listener.accept().unwrap();
        let mut got = [0; 5];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        bench.end();
    });
}

#[test]
fn a_refused_connect_is_a_reset() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, Probe::without_echo);
        // Bound and not listening: the port stays ours and refuses.
        let closed = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        closed
            .bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into())
            .unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&closed.local_addr().unwrap());
        bench.adopt(socket.into(), Bytes::new(), None);
        let id = bench.opened();
        assert_eq!(bench.ended(), (id, SocketEnd::Reset));
        bench.end();
    });
}

#[test]
fn calls_run_on_the_machines_thread() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, echo);
        let (sender, name) = channel();
        let call = Box::new(move |_: &mut Probe, _: &reactor::TurnStats| {
            sender
                .send(std::thread::current().name().map(str::to_owned))
                .unwrap();
        });
        bench.handle().call(call).map_err(drop).unwrap();
        assert_eq!(name.recv().unwrap().as_deref(), Some("shard-0"));
        bench.end();
    });
}

#[test]
fn stop_drops_sockets_and_refuses_what_comes_later() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, echo);
        let (mut client, _) = bench.connect();
        let handle = bench.handle().clone();
        handle.stop();
        bench.group.join().unwrap();
        assert!(handle.has_ended());
        assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0);
        assert!(handle.mail(Ask::Broadcast(Bytes::new())).is_err());
    });
}

#[test]
fn a_thread_that_is_awake_is_not_woken() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, echo);
        let before = bench.stats().wakeups;
        let (entered, inside) = channel();
        let (release, released) = channel::<()>();
        let call = Box::new(move |_: &mut Probe, _: &reactor::TurnStats| {
            entered.send(()).unwrap();
            released.recv().unwrap();
        });
        bench.handle().call(call).map_err(drop).unwrap();
        inside.recv().unwrap();
        for _ in 0..100 {
            bench.ask(Ask::Broadcast(Bytes::new()));
        }
        release.send(()).unwrap();
        let after = bench.stats();
        assert!(after.mails >= 100, "the mails arrived: {}", after.mails);
        assert!(
            after.wakeups - before <= 2,
            "woken {} times",
            after.wakeups - before
        );
        bench.end();
    });
}

#[test]
fn a_finished_machine_ends_its_thread_after_its_last_words() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, Probe::without_echo);
        let (mut client, id) = bench.connect();
        bench.ask(Ask::LastWords(id, Bytes::from_static(b"bye")));
        bench.ask(Ask::Finish);
        bench.group.join().unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"bye");
    });
}

#[test]
fn a_full_inbox_gives_letters_back() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, echo);
        let (entered, inside) = channel();
        let (release, released) = channel::<()>();
        let call = Box::new(move |_: &mut Probe, _: &reactor::TurnStats| {
            entered.send(()).unwrap();
            released.recv().unwrap();
        });
        bench.handle().call(call).map_err(drop).unwrap();
        inside.recv().unwrap();
        let room = reactor::Options::default().ring;
        for _ in 0..room {
            bench.ask(Ask::Broadcast(Bytes::new()));
        }
        assert!(bench.handle().mail(Ask::Finish).is_err());
        let (_client, stream) = pair();
        let adoption = reactor::Adoption {
            stream,
            tls: None,
            received: Bytes::new(),
            opening: (),
        };
        assert!(bench.handle().adopt(adoption).is_err());
        release.send(()).unwrap();
        bench.end();
    });
}

#[test]
fn connections_that_come_and_go_in_any_way_leave_nothing_behind() {
    for_each_driver(|driver| {
        let bench = Bench::new(driver, echo);
        let mut random = 1u64;
        let mut choose = |of: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % of
        };
        let mut clients = Vec::new();
        let mut opened = 0;
        for _ in 0..2000 {
            if clients.len() < 20 || choose(3) == 0 {
                clients.push(bench.connect_unseen());
                opened += 1;
                continue;
            }
            let place = choose(clients.len() as u64) as usize;
            match choose(3) {
                0 => drop(clients.swap_remove(place)),
                1 => {
                    let client = clients.swap_remove(place);
                    SockRef::from(&client)
                        .set_linger(Some(std::time::Duration::ZERO))
                        .unwrap();
                }
                _ => clients[place].write_all(&pattern(choose(4000) as usize)).unwrap(),
            }
        }
        drop(clients);
        let mut gone = HashSet::new();
        while gone.len() < opened {
            if let Seen::Ended(id, _) | Seen::Wrote(id, Wrote::Failed) = bench.next() {
                gone.insert(id);
            }
        }
        // Those whose end came in order are let go when their echo has left or failed.
        let deadline = Instant::now() + PATIENCE;
        while bench.stats().sockets > 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(bench.stats().sockets, 0);
        bench.end();
    });
}
