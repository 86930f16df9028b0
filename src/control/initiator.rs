//! Commands on initiators. No answer ever holds a secret.

use super::engine::Session;
use super::error::Result;
use super::protocol::{InitiatorChange, Login};
use super::report;
use crate::access::{self, Credential, Edit, Initiator, Network};
use crate::fs::VolumeId;
use crate::lun::Catalog;
use serde_json::{json, Value};

impl Session<'_> {
    pub(super) fn initiator_add(&self, name: &str, change: InitiatorChange) -> Result<Value> {
        let edit = self.edit(change)?;
        let book = &self.engine.pool.book;
        let first = book.list()?.is_empty();
        let added = book.add(name, edit, self.dry_run)?;
        if self.dry_run {
            let closing =
                if first { ", and close out all clients that are not defined" } else { "" };
            return Ok(report::would(format!("define the initiator {}{closing}", added.name)));
        }
        Ok(self.initiator(&added))
    }

    pub(super) fn initiator_set(&self, name: &str, change: InitiatorChange) -> Result<Value> {
        let edit = self.edit(change)?;
        let set = self.engine.pool.book.set(name, edit, self.dry_run)?;
        if self.dry_run {
            return Ok(report::would(format!("change the initiator {}", set.name)));
        }
        Ok(self.initiator(&set))
    }

    pub(super) fn initiator_remove(&self, name: &str) -> Result<Value> {
        let book = &self.engine.pool.book;
        let removed = book.remove(name, self.dry_run)?;
        if self.dry_run {
            return Ok(report::would(format!("remove the initiator {}", removed.name)));
        }
        let open = book.list()?.is_empty();
        Ok(json!({ "removed": removed.name, "open_to_this_host": open }))
    }

    pub(super) fn initiator_list(&self) -> Result<Value> {
        let all = self.engine.pool.book.list()?;
        Ok(all.iter().map(|one| self.initiator(one)).collect())
    }

    pub(super) fn initiator_show(&self, name: &str) -> Result<Value> {
        Ok(self.initiator(&self.engine.pool.book.get(name)?))
    }

    fn edit(&self, change: InitiatorChange) -> Result<Edit> {
        let catalog = &self.engine.pool.catalog;
        let chap = credential(change.chap, change.no_chap)?;
        let mutual = credential(change.mutual, change.no_mutual || change.no_chap)?;
        Ok(Edit {
            chap,
            mutual,
            allow: volumes(catalog, change.allow)?,
            quotas: volumes(catalog, change.quotas)?,
            deny: volumes(catalog, change.deny.into_iter().map(|name| (name, ())).collect())?
                .into_iter()
                .map(|(volume, ())| volume)
                .collect(),
            networks: networks(&change.addresses)?,
            sessions: change.max_sessions,
            commands: change.max_commands,
            memory_bytes: change.max_memory_bytes,
        })
    }

    fn initiator(&self, one: &Initiator) -> Value {
        let catalog = &self.engine.pool.catalog;
        let right = |(volume, right): (&VolumeId, &crate::access::Right)| {
            let lun = catalog.by_id(*volume)?;
            Some(json!({
                "lun": lun.name(),
                "access": if right.writable { "rw" } else { "ro" },
                "quota_bytes": right.quota_bytes,
            }))
        };
        let own = |session: &crate::lun::SessionInfo| {
            session.client.eq_ignore_ascii_case(&one.name).then_some(session.id.0)
        };
        json!({
            "name": one.name,
            "authentication": authentication(one),
            "chap_user": one.chap.as_ref().map(|it| it.user.as_str()),
            "mutual_user": one.mutual.as_ref().map(|it| it.user.as_str()),
            "luns": one.rights.iter().filter_map(right).collect::<Value>(),
            "addresses": one.networks.iter().map(Network::to_string).collect::<Value>(),
            "max_sessions": one.limits.sessions,
            "max_commands": one.limits.commands,
            "max_memory_bytes": one.limits.memory_bytes,
            "sessions": catalog.sessions().iter().filter_map(own).collect::<Value>(),
        })
    }
}

fn authentication(one: &Initiator) -> &'static str {
    match (&one.chap, &one.mutual) {
        (None, _) => "none",
        (Some(_), None) => "chap",
        (Some(_), Some(_)) => "mutual-chap",
    }
}

fn credential(login: Option<Login>, clear: bool) -> Result<Option<Option<Credential>>> {
    match login {
        Some(login) => Ok(Some(Some(Credential::new(login.user, login.secret.into_secret()?)?))),
        None => Ok(clear.then_some(None)),
    }
}

/// `None`: as before.
fn networks(texts: &[String]) -> Result<Option<Vec<Network>>> {
    let any = texts.iter().any(|text| text == "any");
    let named = texts.iter().filter(|text| *text != "any");
    let all = named.map(|text| text.parse()).collect::<access::Result<Vec<Network>>>()?;
    Ok((any || !all.is_empty()).then_some(all))
}

fn volumes<T>(catalog: &Catalog, named: Vec<(String, T)>) -> Result<Vec<(VolumeId, T)>> {
    let found = |(name, it): (String, T)| Ok((catalog.get(&name)?.id(), it));
    named.into_iter().map(found).collect()
}
