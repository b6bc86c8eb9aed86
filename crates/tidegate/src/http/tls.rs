//! TLS of the server: from PEM files to what accepts handshakes.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::TlsFiles;
use crate::error::StartError;

/// Loads certificate and key, and checks that they belong together.
pub(crate) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, StartError> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(&files.certificate, "certificate", "--tls-cert", &error))?;
    if chain.is_empty() {
        return Err(unreadable(
            &files.certificate,
            "certificate",
            "--tls-cert",
            &pem::Error::NoItemsFound,
        ));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unreadable(&files.key, "private key", "--tls-key", &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mismatch = |error: rustls::Error| StartError::Tls(mismatch(files, &error));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(mismatch)?;
    // Those who come back after a restart of their network resume with a ticket instead of a whole handshake. It is kept
    // by the client, so it costs no memory here; one is enough.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(mismatch)?;
    config.send_tls13_tickets = 1;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn unreadable(path: &Path, what: &str, flag: &str, error: &pem::Error) -> StartError {
    let why = match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => format!("it holds no {what} in PEM form"),
        _ => "it is not in PEM form".to_owned(),
    };
    StartError::Tls(format!(
        "cannot read the {what} {}: {why}; give a PEM file with {flag}",
        path.display()
    ))
}

fn mismatch(files: &TlsFiles, error: &rustls::Error) -> String {
    let (certificate, key) = (files.certificate.display(), files.key.display());
    match error {
        rustls::Error::InconsistentKeys(_) => format!(
            "the key {key} does not belong to the certificate {certificate}: give the pair that was made together with --tls-cert and --tls-key"
        ),
        error => format!("cannot use the certificate {certificate} with the key {key}: {error}"),
    }
}
