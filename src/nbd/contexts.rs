//! Metadata contexts: `base:allocation`, and `lunfs:changed-since:NAME` for what changed since a
//! snapshot or a bookmark (bit 0 of an extent's flags: it did).

use std::sync::Arc;

use super::directory::{ExportDirectory, Peer, Refusal};
use super::wire;
use crate::lun::ChangeMap;

/// Contexts that one connection may select: each is a part of every answer to BLOCK_STATUS.
pub const MAX_CHANGE_MAPS: usize = 16;
const NAMESPACE: &str = "lunfs:";
const CHANGED_SINCE: &str = "lunfs:changed-since:";

/// The changes that were selected, by their place among the contexts.
#[derive(Debug, Clone, Default)]
pub struct Selected(Option<Arc<[Arc<dyn ChangeMap>]>>);

impl Selected {
    /// None.
    pub const NONE: Selected = Selected(None);

    /// These.
    pub fn new(maps: Vec<Arc<dyn ChangeMap>>) -> Selected {
        Selected((!maps.is_empty()).then(|| maps.into()))
    }

    /// Them, with their numbers on the wire.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &Arc<dyn ChangeMap>)> {
        (wire::FIRST_CHANGES_ID..).zip(self.0.iter().flat_map(|maps| maps.iter()))
    }

    /// Whether all are of this disk: another may have got its name since they were selected.
    pub fn are_of(&self, naa: &[u8; 16]) -> bool {
        self.numbered().all(|(_, map)| map.naa() == *naa)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |maps| maps.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

/// What a client asks for by LIST_META_CONTEXT or SET_META_CONTEXT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The export.
    pub export: String,
    /// It is to be selected, not only listed.
    pub select: bool,
    /// `base:allocation` is among it.
    pub allocation: bool,
    /// Names behind `lunfs:changed-since:`.
    pub bases: Vec<String>,
    /// All there are.
    pub all: bool,
}

impl Wish {
    /// Reads the queries. No query lists everything; a name space is for lists only.
    pub fn new(export: &str, select: bool, queries: &[&str]) -> Wish {
        let list_all = !select && queries.is_empty();
        let lists = |name: &str| !select && queries.contains(&name);
        let bases = queries.iter().filter_map(|query| query.strip_prefix(CHANGED_SINCE));
        Wish {
            export: export.to_owned(),
            select,
            allocation: list_all || lists("base:") || queries.contains(&wire::BASE_ALLOCATION),
            bases: bases.filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            all: list_all || lists(NAMESPACE) || lists(CHANGED_SINCE),
        }
    }

    /// Whether the directory has to be asked.
    pub fn asks_for_changes(&self) -> bool {
        self.all || !self.bases.is_empty()
    }

    /// Asks it. What is selected stays as long as what is returned.
    pub fn find(
        &self,
        directory: &dyn ExportDirectory,
        peer: &Peer,
    ) -> Result<Vec<FoundChanges>, Refusal> {
        if self.select {
            return self.open(directory, peer);
        }
        let known = directory.change_bases(&self.export, peer)?;
        let is_known = |name: &String| known.iter().any(|one| one.eq_ignore_ascii_case(name));
        let asked = self.bases.iter().filter(|name| is_known(name));
        let names: Vec<String> = match self.all {
            true => known.clone(),
            false => asked.cloned().collect(),
        };
        Ok(names.into_iter().map(|base| FoundChanges { base, map: None }).collect())
    }

    fn open(
        &self,
        directory: &dyn ExportDirectory,
        peer: &Peer,
    ) -> Result<Vec<FoundChanges>, Refusal> {
        let mut found = Vec::new();
        for base in &self.bases {
            if let Some(map) = directory.changed_since(&self.export, base, peer)? {
                // Under the name that was asked for: clients compare it.
                found.push(FoundChanges { base: base.clone(), map: Some(map) });
            }
            if found.len() > MAX_CHANGE_MAPS {
                break;
            }
        }
        Ok(found)
    }
}

/// A context of an export.
#[derive(Debug, Clone)]
pub struct FoundChanges {
    base: String,
    /// There where it is selected.
    pub map: Option<Arc<dyn ChangeMap>>,
}

impl FoundChanges {
    /// Its name on the wire.
    pub fn context(&self) -> String {
        format!("{CHANGED_SINCE}{}", self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_exact_but_for_lists() {
        let wish = |select, queries: &[&str]| Wish::new("disk", select, queries);
        let everything = wish(false, &[]);
        assert!(everything.allocation && everything.all);
        assert!(!wish(true, &[]).asks_for_changes());
        assert!(!wish(true, &["lunfs:", "lunfs:changed-since:", "base:"]).asks_for_changes());
        assert!(wish(false, &["lunfs:"]).all && wish(false, &["lunfs:changed-since:"]).all);
        let exact = wish(true, &["base:allocation", "lunfs:changed-since:a:b", "qemu:x"]);
        assert_eq!((exact.allocation, exact.bases), (true, vec!["a:b".to_owned()]));
        assert!(!exact.all);
    }
}
