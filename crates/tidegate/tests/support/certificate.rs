//! A certificate for `localhost`, made anew for each test.

use std::path::PathBuf;

use rustls::pki_types::CertificateDer;

/// The files, gone when dropped.
pub struct Files {
    folder: tempfile::TempDir,
    pub certificate: CertificateDer<'static>,
}

/// A self-signed pair.
pub fn files() -> Files {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    Files {
        folder,
        certificate: made.cert.der().clone(),
    }
}

impl Files {
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Certificate and key, as flags take them.
    pub fn paths(&self) -> [String; 2] {
        ["cert.pem", "key.pem"].map(|name| self.path(name).to_str().unwrap().to_owned())
    }
}
