//! Carries a handshake over a socket and its questions to the directory.

use std::sync::Arc;

use super::directory::{Export, ExportDirectory, Peer, Refusal};
use super::errors::Error;
use super::handshake::{Description, Handshake, Step, Terms, TlsRule};
use super::stream::Stream;
use super::tls::Tls;
use crate::access::Reason;
use crate::lun::Geometry;

/// The open export, the terms, and what was received behind the handshake.
pub type Agreed = (Export, Terms, Vec<u8>);

/// The handshake, from the first byte to the opened export. `None`: the client left in order.
pub async fn agree(
    stream: &mut Stream,
    directory: &Arc<dyn ExportDirectory>,
    tls: Option<&Tls>,
    peer: &mut Peer,
) -> Result<Option<Agreed>, Error> {
    let rule = match tls {
        None => TlsRule::None,
        Some(_) if peer.is_local() => TlsRule::Offered,
        Some(_) => TlsRule::Required,
    };
    let mut handshake = Handshake::new(rule);
    let mut held = Vec::with_capacity(4096);
    loop {
        stream.send_all(&std::mem::take(&mut handshake.output)).await?;
        let (taken, step) = handshake.advance(&held)?;
        held.drain(..taken);
        match step {
            Step::More if taken > 0 => {}
            Step::More => stream.receive_more(&mut held).await?,
            Step::Close => {
                stream.send_all(&handshake.output).await?;
                return Ok(None);
            }
            Step::StartTls => {
                // Whoever sent it may sit between: it must not count as the client's.
                if !held.is_empty() {
                    return Err(Error::Protocol("bytes in the clear behind STARTTLS"));
                }
                stream.send_all(&std::mem::take(&mut handshake.output)).await?;
                let started = start_tls(stream, tls).await;
                let away = |_: &Error| directory.turned_away(&peer.to_string(), Reason::Unproved);
                let name = started.inspect_err(away)?;
                peer.certificate_name = Some(name);
            }
            Step::List => match ask(directory, peer, |d, p| d.list(p)).await? {
                Ok(entries) => handshake.listed(&entries),
                Err(refusal) => handshake.refused(refusal)?,
            },
            Step::Describe(name) => {
                match ask(directory, peer, move |d, p| d.describe(&name, p)).await? {
                    Ok(export) => handshake.described(describe(&export, &export.io.geometry())),
                    Err(refusal) => handshake.refused(refusal)?,
                }
            }
            Step::Contexts(wish) => {
                match ask(directory, peer, move |d, p| wish.find(d, p)).await? {
                    Ok(found) => handshake.found(found),
                    Err(refusal) => handshake.refused(refusal)?,
                }
            }
            Step::Open(name) => match ask(directory, peer, move |d, p| d.open(&name, p)).await? {
                Ok(export) => {
                    let terms = handshake.opened(describe(&export, &export.io.geometry()));
                    if !terms.changes.are_of(&export.io.identity().naa) {
                        return Err(Error::Protocol("contexts of another disk of this name"));
                    }
                    stream.send_all(&handshake.output).await?;
                    return Ok(Some((export, terms, held)));
                }
                Err(refusal) => handshake.refused(refusal)?,
            },
        }
    }
}

/// The name of the client, by its certificate.
async fn start_tls(stream: &mut Stream, tls: Option<&Tls>) -> Result<String, Error> {
    let tls = tls.ok_or(Error::Internal)?;
    let found = stream.start_tls(tls).await?;
    let found = found.ok_or_else(|| Error::Tls("the certificate has no name".to_owned()))?;
    let unknown = || Error::Tls(format!("{} is not authorized", found.escape_debug()));
    tls.client_name(&found).ok_or_else(unknown)
}

fn describe<'a>(export: &'a Export, geometry: &'a Geometry) -> Description<'a> {
    Description { name: &export.name, description: &export.description, geometry }
}

/// Asks the directory on a blocking thread.
async fn ask<T: Send + 'static>(
    directory: &Arc<dyn ExportDirectory>,
    peer: &Peer,
    question: impl FnOnce(&dyn ExportDirectory, &Peer) -> Result<T, Refusal> + Send + 'static,
) -> Result<Result<T, Refusal>, Error> {
    let (directory, peer) = (directory.clone(), peer.clone());
    tokio::task::spawn_blocking(move || question(directory.as_ref(), &peer))
        .await
        .map_err(|_| Error::Internal)
}
