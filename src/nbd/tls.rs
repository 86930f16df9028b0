//! TLS on the NBD door (proto, "TLS"): certificates of both sides, and the session between socket
//! and protocol. Pre-shared keys are not there: rustls has none.
//!
//! Invariant of [`Session`]: what was received and not yet decrypted is in `raw`; nothing is read
//! from the socket while decrypted bytes wait.

use super::errors::Error;
use bytes::{Buf, BytesMut};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::collections::BTreeMap;
use std::io::{self, IoSlice, Read, Write};
use std::path::Path;
use std::sync::Arc;

/// Longest list of clients.
const MAX_CLIENTS_BYTES: u64 = 1 << 20;
/// What is taken from the socket at once: one TLS record.
pub(super) const RECORD_BYTES: usize = 16 << 10;

/// Certificates, and who may come: from a folder with the names that libnbd, QEMU and nbdkit use.
///
/// - `server-cert.pem`, `server-key.pem`: what the server proves itself by;
/// - `ca-cert.pem`: who signs clients' certificates; a client without one is not let in;
/// - `authorized-clients`, if it is there: the certificate names that are let in, one a line, each
///   with the initiator that the client counts as where that is another name.
#[derive(Debug, Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    clients: Option<BTreeMap<String, String>>,
}

/// Why a folder is no good: the file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {why}")]
pub struct TlsError {
    /// The file.
    pub file: String,
    /// What is wrong.
    pub why: String,
}

impl Tls {
    /// Reads a folder.
    pub fn load(dir: &Path) -> Result<Tls, TlsError> {
        let failed = |name: &str| {
            let file = dir.join(name).display().to_string();
            move |why: String| TlsError { file, why }
        };
        let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>, TlsError> {
            let found = CertificateDer::pem_file_iter(dir.join(name));
            let found = found.and_then(|all| all.collect::<Result<Vec<_>, _>>());
            let found = found.map_err(|e| failed(name)(e.to_string()))?;
            match found.is_empty() {
                true => Err(failed(name)("there is no certificate in it".to_owned())),
                false => Ok(found),
            }
        };
        let mut roots = RootCertStore::empty();
        for root in certificates("ca-cert.pem")? {
            roots.add(root).map_err(|e| failed("ca-cert.pem")(e.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let verifier = verifier.build().map_err(|e| failed("ca-cert.pem")(e.to_string()))?;
        let key = PrivateKeyDer::from_pem_file(dir.join("server-key.pem"));
        let key = key.map_err(|e| failed("server-key.pem")(e.to_string()))?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| failed("")(e.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates("server-cert.pem")?, key)
            .map_err(|e| failed("server-cert.pem")(e.to_string()))?;
        let name = "authorized-clients";
        let clients = load_clients(&dir.join(name)).map_err(failed(name))?;
        Ok(Tls { config: Arc::new(config), clients })
    }

    pub(super) fn session(&self) -> Result<Session, Error> {
        let connection = ServerConnection::new(Arc::clone(&self.config));
        let connection = connection.map_err(|error| Error::Tls(error.to_string()))?;
        Ok(Session { connection, raw: BytesMut::new() })
    }

    /// What the client of a certificate is called; `None`: it is not authorized.
    pub(super) fn client_name(&self, certificate: &str) -> Option<String> {
        match &self.clients {
            None => Some(certificate.to_owned()),
            Some(clients) => clients.get(certificate).cloned(),
        }
    }
}

fn load_clients(path: &Path) -> Result<Option<BTreeMap<String, String>>, String> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = String::new();
    file.take(MAX_CLIENTS_BYTES).read_to_string(&mut text).map_err(|e| e.to_string())?;
    let lines = text.lines().map(str::trim);
    let named = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut clients = BTreeMap::new();
    for line in named {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        let counts_as = words.next().unwrap_or(name);
        if words.next().is_some() {
            return Err(format!("a line has more than two words: {}", line.escape_debug()));
        }
        clients.insert(name.to_owned(), counts_as.to_owned());
    }
    Ok(Some(clients))
}

/// One connection's encryption.
#[derive(Debug)]
pub(super) struct Session {
    connection: ServerConnection,
    raw: BytesMut,
}

impl Session {
    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Where to receive from the socket to.
    pub(super) fn raw(&mut self) -> &mut BytesMut {
        self.raw.reserve(RECORD_BYTES);
        &mut self.raw
    }

    /// Takes what was received into `raw`, until there is something to read.
    pub(super) fn take(&mut self) -> io::Result<()> {
        while !self.raw.is_empty() {
            let mut rest: &[u8] = &self.raw;
            let taken = self.connection.read_tls(&mut rest)?;
            self.raw.advance(taken);
            let state = self.connection.process_new_packets();
            let state = state.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            if state.plaintext_bytes_to_read() > 0 || taken == 0 {
                break;
            }
        }
        Ok(())
    }

    /// The socket has ended: in order only after the client said so.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.connection.read_tls(&mut io::empty()).map(drop)
    }

    /// Decrypted bytes; `None`: more has to be received first.
    pub(super) fn read(&mut self, space: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.connection.reader().read(space) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.raw.is_empty() {
                return Ok(None);
            }
            let before = self.raw.len();
            self.take()?;
            if self.raw.len() == before {
                return Ok(None);
            }
        }
    }

    /// Takes bytes to be sent, as many as it has room for.
    pub(super) fn write(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.connection.writer().write_vectored(pieces)
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.connection.wants_write()
    }

    /// Gives encrypted bytes to `send` until it takes no more.
    pub(super) fn flush(
        &mut self,
        send: &mut dyn FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Sink(send)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Tells the other side that nothing more comes.
    pub(super) fn close(&mut self) {
        self.connection.send_close_notify();
    }

    /// The name in the client's certificate: the common name, else the first DNS name.
    pub(super) fn certificate_name(&self) -> Option<String> {
        use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
        let first = self.connection.peer_certificates()?.first()?;
        let (_, certificate) = X509Certificate::from_der(first.as_ref()).ok()?;
        let mut common = certificate.subject().iter_common_name();
        if let Some(name) = common.next().and_then(|name| name.as_str().ok()) {
            return Some(name.to_owned());
        }
        let names = certificate.subject_alternative_name().ok()??;
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
    }
}

/// A socket that is written to as far as it takes anything.
struct Sink<'a>(&'a mut dyn FnMut(&[u8]) -> io::Result<usize>);

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match (self.0)(bytes)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
