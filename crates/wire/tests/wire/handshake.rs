//! The opening handshake, both sides.

use bytes::BytesMut;
use wire::handshake::client::{Rejection, Response};
use wire::handshake::{HEAD_BYTES_MAX, HEADERS_MAX, parse_head};
use wire::{Acceptance, ClientHandshake, DeflateParams, DeflatePolicy, Policy, Refusal};

const GOOD: [(&str, &str); 5] = [
    ("Host", "server.example.com"),
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
];

fn request(method: &str, version: &str, headers: &[(&str, &str)]) -> String {
    let fields: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!("{method} /chat HTTP/{version}\r\n{fields}\r\n")
}

fn answer(request: &str, policy: &Policy) -> Result<Acceptance, Refusal> {
    parse_head(request.as_bytes())?
        .expect("a whole head")
        .check(policy)
}

/// A good request with the header `name` replaced by `values` gets `expect`.
fn check(name: &str, values: &[&str], expect: Option<Refusal>) {
    let mut headers: Vec<_> = GOOD.into_iter().filter(|(given, _)| *given != name).collect();
    headers.extend(values.iter().map(|value| (name, *value)));
    let result = answer(&request("GET", "1.1", &headers), &Policy::default());
    assert_eq!(result.err(), expect, "{name}: {values:?}");
}

#[test]
fn rfc_6455_1_3_the_example_is_answered() {
    let acceptance = answer(&request("GET", "1.1", &GOOD), &Policy::default()).unwrap();
    let mut out = BytesMut::new();
    acceptance.write(&mut out);
    let expect = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                  sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    assert_eq!(std::str::from_utf8(&out).unwrap(), expect);
}

#[test]
fn a_request_with_a_body_is_refused() {
    check("Content-Length", &["0"], None);
    check("Content-Length", &["5"], Some(Refusal::Body));
    check("Content-Length", &["0", "5"], Some(Refusal::Body));
    check("Transfer-Encoding", &["chunked"], Some(Refusal::Body));
}

#[test]
fn names_and_tokens_are_read_in_any_case_and_in_lists() {
    check("Connection", &["keep-alive, uPgRaDe"], None);
    check("Connection", &["keep-alive", "upgrade"], None);
    check("Upgrade", &["h2c , WebSocket"], None);
    check("Sec-WebSocket-Version", &[" 13 "], None);
    let shouted: Vec<_> = GOOD
        .iter()
        .map(|(name, value)| (name.to_uppercase(), *value))
        .collect();
    let shouted: Vec<_> = shouted
        .iter()
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    assert!(answer(&request("GET", "1.1", &shouted), &Policy::default()).is_ok());
}

#[test]
fn wrong_headers_are_refused() {
    check("Host", &[], Some(Refusal::Host));
    check("Host", &["a", "b"], Some(Refusal::Host));
    check("Upgrade", &[], Some(Refusal::Upgrade));
    check("Upgrade", &["websockets"], Some(Refusal::Upgrade));
    check("Connection", &[], Some(Refusal::Connection));
    check("Connection", &["keep-alive, upgraded"], Some(Refusal::Connection));
    check("Sec-WebSocket-Version", &[], Some(Refusal::Version));
    check("Sec-WebSocket-Version", &["8"], Some(Refusal::Version));
    check("Sec-WebSocket-Version", &["13", "13"], Some(Refusal::Version));
    check("Sec-WebSocket-Key", &[], Some(Refusal::KeyMissing));
    check(
        "Sec-WebSocket-Key",
        &["dGhlIHNhbXBsZSBub25jZQ=="; 2],
        Some(Refusal::KeyRepeated),
    );
    check("Sec-WebSocket-Key", &[""], Some(Refusal::KeyMalformed));
    check(
        "Sec-WebSocket-Key",
        &["dGhlIHNhbXBsZSBub25j"],
        Some(Refusal::KeyMalformed),
    );
    check(
        "Sec-WebSocket-Key",
        &["dGhlIHNhbXBsZSBub25jZQAA"],
        Some(Refusal::KeyMalformed),
    );
    check(
        "Sec-WebSocket-Key",
        &["dGhlIHNhbXBsZSBub25jZQ="],
        Some(Refusal::KeyMalformed),
    );
    check(
        "Sec-WebSocket-Key",
        &["!GhlIHNhbXBsZSBub25jZQ=="],
        Some(Refusal::KeyMalformed),
    );
}

#[test]
fn method_and_version_are_checked_first() {
    let refused = |method, version| answer(&request(method, version, &GOOD), &Policy::default()).err();
    assert_eq!(refused("POST", "1.1"), Some(Refusal::Method));
    assert_eq!(refused("get", "1.1"), Some(Refusal::Method));
    assert_eq!(refused("GET", "1.0"), Some(Refusal::HttpVersion));
}

#[test]
fn a_refusal_says_what_to_do() {
    for (refusal, status, header) in [
        (Refusal::Method, 405, Some("allow: GET\r\n")),
        (Refusal::Version, 426, Some("sec-websocket-version: 13\r\n")),
        (Refusal::Upgrade, 426, Some("upgrade: websocket\r\n")),
        (Refusal::KeyMissing, 400, None),
    ] {
        let mut out = BytesMut::new();
        refusal.write(&mut out);
        let text = std::str::from_utf8(&out).unwrap();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        assert!(header.is_none_or(|header| text.contains(header)), "{text}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{text}"
        );
        assert_eq!(body.trim_end(), refusal.to_string());
    }
}

#[test]
fn the_first_of_the_clients_protocols_that_is_spoken_is_chosen() {
    let policy = Policy {
        protocols: vec!["v1".into(), "v2".into()],
        ..Policy::default()
    };
    let chosen = |values: &[&str]| {
        let mut headers = GOOD.to_vec();
        headers.extend(values.iter().map(|value| ("Sec-WebSocket-Protocol", *value)));
        answer(&request("GET", "1.1", &headers), &policy)
            .unwrap()
            .protocol
    };
    assert_eq!(chosen(&["v3, v2, v1"]).as_deref(), Some("v2"));
    assert_eq!(chosen(&["v3", "v1"]).as_deref(), Some("v1"));
    assert_eq!(chosen(&["V1"]), None);
    assert_eq!(chosen(&[]), None);
}

#[test]
fn a_head_is_bounded() {
    let unfinished = |length: usize| format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(length));
    assert_eq!(parse_head(unfinished(1000).as_bytes()), Ok(None));
    assert_eq!(
        parse_head(unfinished(HEAD_BYTES_MAX).as_bytes()),
        Err(Refusal::HeadTooLong)
    );
    let whole = |length: usize| unfinished(length) + "\r\n\r\n";
    assert!(
        parse_head(whole(HEAD_BYTES_MAX - 100).as_bytes())
            .unwrap()
            .is_some()
    );
    assert_eq!(
        parse_head(whole(HEAD_BYTES_MAX).as_bytes()),
        Err(Refusal::HeadTooLong)
    );
    for (count, expect) in [
        (HEADERS_MAX, Ok(())),
        (HEADERS_MAX + 1, Err(Refusal::HeadTooLong)),
    ] {
        let head = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert_eq!(
            parse_head(head.as_bytes()).map(|head| assert!(head.is_some())),
            expect,
            "{count} fields"
        );
    }
}

#[test]
fn what_follows_the_head_is_left() {
    let head = request("GET", "1.1", &GOOD);
    let bytes = [head.as_bytes(), &[0x81, 0x80, 1, 2, 3, 4]].concat();
    assert_eq!(parse_head(&bytes).unwrap().unwrap().head_bytes, head.len());
    for cut in 0..head.len() {
        assert_eq!(parse_head(&bytes[..cut]), Ok(None), "cut at {cut}");
    }
    assert_eq!(parse_head(b"\x16\x03\x01\x02\x00"), Err(Refusal::Malformed));
}

fn client() -> ClientHandshake<'static> {
    ClientHandshake {
        deflate: Some(DeflateParams::default()),
        protocols: &["v2", "v1"],
        headers: &[("Origin", "http://example.com")],
        ..ClientHandshake::new("localhost", "/chat?x=1", *b"the sample nonce")
    }
}

#[test]
fn client_and_server_understand_each_other() {
    let bytes = client().request();
    let head = parse_head(&bytes).unwrap().unwrap();
    assert_eq!((head.target, head.head_bytes), ("/chat?x=1", bytes.len()));
    let policy = Policy {
        deflate: Some(DeflatePolicy::default()),
        protocols: vec!["v1".into()],
    };
    let acceptance = head.check(&policy).unwrap();
    let mut out = BytesMut::new();
    acceptance.write(&mut out);
    for cut in 0..out.len() {
        assert_eq!(client().verify(&out[..cut]), Ok(None));
    }
    let head_bytes = out.len();
    out.extend_from_slice(b"frames");
    let Acceptance {
        deflate, protocol, ..
    } = acceptance;
    assert!(deflate.is_some() && protocol.is_some());
    assert_eq!(
        client().verify(&out),
        Ok(Some((head_bytes, Response { deflate, protocol })))
    );
}

#[test]
fn a_client_checks_the_answer() {
    let verify = |answer: &str| client().verify(answer.as_bytes()).err();
    let good = "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
    let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    assert_eq!(verify(&format!("{good}{accept}\r\n")), None);
    assert_eq!(verify(&format!("{good}\r\n")), Some(Rejection::BadAccept));
    assert_eq!(
        verify(&format!("{good}Sec-WebSocket-Accept: x\r\n\r\n")),
        Some(Rejection::BadAccept)
    );
    assert_eq!(
        verify(&format!("HTTP/1.1 101 X\r\n{accept}\r\n")),
        Some(Rejection::NotUpgraded)
    );
    assert_eq!(
        verify("HTTP/1.1 403 Forbidden\r\n\r\n"),
        Some(Rejection::Status(403))
    );
    assert_eq!(verify("SSH-2.0-OpenSSH\r\n"), Some(Rejection::Malformed));
    let with = |field: &str| verify(&format!("{good}{accept}{field}\r\n\r\n"));
    assert_eq!(with("Sec-WebSocket-Protocol: v3"), Some(Rejection::BadProtocol));
    assert_eq!(
        with("Sec-WebSocket-Extensions: permessage-bzip2"),
        Some(Rejection::BadExtension)
    );
    assert_eq!(with("Sec-WebSocket-Protocol: v1"), None);
    assert_eq!(with("Sec-WebSocket-Extensions: permessage-deflate"), None);
}
