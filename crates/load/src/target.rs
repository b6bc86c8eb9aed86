//! The server under measurement: where it is, and how sockets to it are opened.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};
use socket2::{Domain, Protocol, Socket, Type};

use crate::plan::BenchError;

/// A `ws://` or `wss://` address, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `wss`.
    pub tls: bool,
    /// The host as it was written: for the `Host` header and for TLS.
    pub host: String,
    /// The port; 80 or 443 if none was written.
    pub port: u16,
    /// Path and query, at least `/`.
    pub path: String,
    /// What the host resolved to.
    pub address: SocketAddr,
}

impl Target {
    /// What the `Host` header says.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        write!(formatter, "{scheme}://{}:{}{}", self.host, self.port, self.path)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let (tls, rest) = match text.split_once("://") {
            Some(("ws", rest)) => (false, rest),
            Some(("wss", rest)) => (true, rest),
            _ => {
                return Err(format!(
                    "{text:?} is no WebSocket address: write ws://host:port/path"
                ));
            }
        };
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        if path.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'#') {
            return Err(format!(
                "the path {path:?} holds a character that does not go into a request"
            ));
        }
        // The colon that starts a port stands after the brackets of an IPv6 address.
        let port_at = authority.rfind(':').filter(|at| !authority[*at..].contains(']'));
        let (host, port) = match port_at {
            Some(at) => (
                &authority[..at],
                authority[at + 1..]
                    .parse()
                    .map_err(|_| format!("{text:?} has no valid port"))?,
            ),
            None => (authority, if tls { 443 } else { 80 }),
        };
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let address = (name, port)
            .to_socket_addrs()
            .map_err(|error| format!("cannot resolve {host:?}: {error}"))?
            .next()
            .ok_or_else(|| format!("{host:?} has no address"))?;
        Ok(Target {
            tls,
            host: host.to_owned(),
            port,
            path,
            address,
        })
    }
}

/// Whose certificate is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Any: a load test against one's own server proves nothing about who it is.
    #[default]
    Anybody,
    /// One that the certificates in this PEM file vouch for.
    Roots(PathBuf),
}

/// A socket on its way to the server: non-blocking, perhaps not connected yet.
#[derive(Debug)]
pub struct Dialed {
    /// The socket.
    pub stream: TcpStream,
    /// The client's side of TLS, not begun.
    pub tls: Option<ClientConnection>,
}

/// Opens sockets to a target, from as many loopback addresses as asked for.
#[derive(Debug)]
pub struct Dialer {
    address: SocketAddr,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    sources: u32,
    next_source: u32,
}

impl Dialer {
    /// `sources` counts the loopback addresses from 127.0.0.1 on; it is of no meaning for other targets.
    ///
    /// # Errors
    /// The roots cannot be read, or TLS does not know what to do with the host's name.
    pub fn new(target: &Target, trust: &Trust, sources: u32) -> Result<Dialer, BenchError> {
        let tls = match target.tls {
            false => None,
            true => {
                let host = target
                    .host
                    .trim_start_matches('[')
                    .trim_end_matches(']')
                    .to_owned();
                let name = ServerName::try_from(host).map_err(|_| {
                    BenchError::Plan(format!("{:?} is no name that TLS can check", target.host))
                })?;
                Some((client_config(trust)?, name))
            }
        };
        Ok(Dialer {
            address: target.address,
            tls,
            sources,
            next_source: 0,
        })
    }

    /// Opens the next socket. The connect may still be under way when this returns.
    ///
    /// # Errors
    /// The system has no descriptor or port left, or the connect failed at once.
    pub fn dial(&mut self) -> io::Result<Dialed> {
        let socket = self.socket()?;
        socket.set_nonblocking(true)?;
        match socket.connect(&self.address.into()) {
            Err(error) if !in_progress(&error) => return Err(error),
            _ => {}
        }
        self.dialed(socket)
    }

    /// Opens the next socket for a reader that will stall: blocking, connected, with the least receive buffer.
    ///
    /// # Errors
    /// As [`Dialer::dial`], or the server did not answer within `timeout`.
    pub fn dial_blocking(&mut self, timeout: std::time::Duration) -> io::Result<Dialed> {
        let socket = self.socket()?;
        // The kernel raises it to its minimum; it must be set before the connect to bound the window.
        socket.set_recv_buffer_size(4096)?;
        socket.connect_timeout(&self.address.into(), timeout)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        self.dialed(socket)
    }

    fn socket(&mut self) -> io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(self.address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_tcp_nodelay(true)?;
        if self.sources > 1
            && let IpAddr::V4(address) = self.address.ip()
            && address.is_loopback()
        {
            let source = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + self.next_source);
            self.next_source = (self.next_source + 1) % self.sources;
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        Ok(socket)
    }

    fn dialed(&self, socket: Socket) -> io::Result<Dialed> {
        let tls = match &self.tls {
            None => None,
            Some((config, name)) => {
                Some(ClientConnection::new(Arc::clone(config), name.clone()).map_err(io::Error::other)?)
            }
        };
        Ok(Dialed {
            stream: socket.into(),
            tls,
        })
    }
}

#[cfg(unix)]
fn in_progress(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32)
}

#[cfg(not(unix))]
fn in_progress(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// No session is resumed: each connection pays for its whole handshake, as those of different clients do.
fn client_config(trust: &Trust) -> Result<Arc<ClientConfig>, BenchError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Anybody => Arc::new(Anybody(provider.signature_verification_algorithms)),
        Trust::Roots(path) => roots_verifier(path, &provider)?,
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| BenchError::Plan(format!("TLS cannot be set up: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn roots_verifier(
    path: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, BenchError> {
    let unreadable = |error: &dyn fmt::Display| {
        BenchError::Plan(format!(
            "cannot read certificates from {}: {error}",
            path.display()
        ))
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))? {
        roots
            .add(certificate.map_err(|error| unreadable(&error))?)
            .map_err(|error| unreadable(&error))?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| unreadable(&error))
}

/// Takes any certificate, but sees that the peer holds its key.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Result<(&str, bool), &str>) {
        match (text.parse::<Target>(), expect) {
            (Ok(target), Ok((display, tls))) => {
                assert_eq!((target.to_string().as_str(), target.tls), (display, tls));
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
            (result, _) => panic!("{text}: {result:?}"),
        }
    }

    #[test]
    fn addresses_are_read() {
        check("ws://127.0.0.1:9002", Ok(("ws://127.0.0.1:9002/", false)));
        check(
            "wss://127.0.0.1/echo?a=b",
            Ok(("wss://127.0.0.1:443/echo?a=b", true)),
        );
        check("ws://127.0.0.1:80?x", Ok(("ws://127.0.0.1:80/?x", false)));
        check("ws://[::1]:9002/", Ok(("ws://[::1]:9002/", false)));
        check("ws://[::1]", Ok(("ws://[::1]:80/", false)));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        check("http://127.0.0.1", Err("no WebSocket address"));
        check("127.0.0.1:9002", Err("no WebSocket address"));
        check("ws://127.0.0.1:port", Err("no valid port"));
        check("ws://127.0.0.1:99999", Err("no valid port"));
        check("ws://127.0.0.1/a b", Err("character"));
    }
}
