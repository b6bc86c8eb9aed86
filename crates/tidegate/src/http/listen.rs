//! The listening socket: from an address as people write it to a socket with the options that every accepted one inherits.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::StartError;

/// More than any system grants: the queue of connections not yet accepted is as long as `net.core.somaxconn` allows.
/// A short one loses connections of a burst for a second each.
const BACKLOG: i32 = i32::MAX;

/// Listens on `host:port`; an empty host is every interface, IPv6 and IPv4.
pub(crate) fn listen(address: &str) -> Result<TcpListener, StartError> {
    let failed = |source: io::Error| StartError::listen(address, source);
    let bad = || StartError::Address(address.to_owned());
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let port: u16 = port.parse().map_err(|_| bad())?;
    if host.is_empty() {
        let every = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        return match bind(every, true) {
            // A machine without IPv6.
            Err(error)
                if error.kind() != io::ErrorKind::AddrInUse
                    && error.kind() != io::ErrorKind::PermissionDenied =>
            {
                bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), false)
            }
            outcome => outcome,
        }
        .map_err(failed);
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let first = (host, port)
        .to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next())
        .ok_or_else(bad)?;
    bind(first, false).map_err(failed)
}

fn bind(address: SocketAddr, dual_stack: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!dual_stack)?;
    }
    // A restarted server must not wait for the connections of the one before (on Windows the option means another thing).
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    // Set once: accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_socket_inherits_no_delay() {
        let listener = listen("127.0.0.1:0").expect("listens");
        listener.set_nonblocking(false).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(accepted.nodelay().unwrap());
    }

    #[test]
    fn an_empty_host_takes_both_families() {
        let listener = listen(":0").expect("listens");
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("IPv4 reaches it");
    }

    #[test]
    fn a_port_in_use_is_told_with_the_way_out() {
        let first = listen("127.0.0.1:0").expect("listens");
        let address = first.local_addr().unwrap().to_string();
        let line = listen(&address).expect_err("in use").to_string();
        assert!(
            line.contains(&address) && line.contains("in use") && line.contains("--addr"),
            "{line}"
        );
    }

    #[test]
    fn an_address_without_port_is_refused() {
        assert!(matches!(listen("localhost"), Err(StartError::Address(_))));
        assert!(matches!(listen("127.0.0.1:99999"), Err(StartError::Address(_))));
    }
}
