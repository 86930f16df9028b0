//! The list of initiators over a real pool: what it lets in, what a change does to the sessions
//! that stand, what a crash leaves of it.

use crate::crash::{at_every_call, formatted};
use crate::pool::*;
use lunfs::access::{Book, Credential, Denial, Edit, Right, Secret, Seen, PROVED_OTHERWISE};
use lunfs::fs::{NewNode, NodeId, Owner, SystemClock};
use lunfs::lun::{Attachment, BlockError, BlockIo, Catalog, Lun};
use std::sync::Arc;
use zeroize::Zeroizing;

const A: &str = "iqn.2026-11.local.test:a";
const B: &str = "iqn.2026-11.local.test:b";

fn book(catalog: &Arc<Catalog>) -> Arc<Book> {
    Book::open(catalog.clone(), Arc::new(SystemClock))
}

fn credential(secret: &str) -> Credential {
    let secret = Secret::new(Zeroizing::new(secret.to_owned())).unwrap();
    Credential::new("alice".to_owned(), secret).unwrap()
}

fn allow(lun: &Lun, writable: bool) -> Edit {
    Edit { allow: vec![(lun.volume(), writable)], ..Edit::default() }
}

/// A client of this host, of which nothing is proved.
fn named(name: &str) -> Seen<'_> {
    Seen { name: Some(name), proof: None, local: true, address: None }
}

fn come_in(book: &Book, lun: &Arc<Lun>, name: &str) -> Arc<Attachment> {
    let session = login(lun, name);
    book.admit(&named(name), &session).unwrap();
    session
}

#[test]
fn open_to_this_host_until_the_first_one_is_defined() {
    let pool = Pool::new();
    let (lun, book) = (pool.lun("one", MIB), book(&pool.catalog));
    let nobody = Seen { name: None, proof: None, local: true, address: None };
    let judge = |seen: &Seen<'_>| book.judge(seen, lun.volume());
    assert_eq!(judge(&nobody), Ok(Right::ALL));
    assert_eq!(judge(&Seen { local: false, ..nobody }), Err(Denial::Remote));
    book.add(A, allow(&lun, true), false).unwrap();
    assert_eq!(judge(&nobody), Err(Denial::Nameless));
    assert_eq!(judge(&named(B)), Err(Denial::Unlisted));
    assert_eq!(judge(&named(&A.to_uppercase())), Ok(Right::ALL));
    book.remove(A, false).unwrap();
    assert_eq!(judge(&nobody), Ok(Right::ALL));
}

#[test]
fn a_name_alone_is_no_authentication() {
    let pool = Pool::new();
    let (lun, book) = (pool.lun("one", MIB), book(&pool.catalog));
    let judge = |seen: &Seen<'_>| book.judge(seen, lun.volume());
    book.add(A, allow(&lun, true), false).unwrap();
    let far = Seen { local: false, ..named(A) };
    assert_eq!(judge(&far), Err(Denial::Unproved));
    assert!(judge(&Seen { proof: Some(PROVED_OTHERWISE), ..far }).is_ok());
    book.set(A, allow(&lun, false), false).unwrap();
    assert_eq!(judge(&far), Ok(Right { writable: false, quota_bytes: 0 }));
    let chap = |secret| Edit { chap: Some(Some(credential(secret))), ..allow(&lun, true) };
    let stamp = book.set(A, chap("the first secret"), false).unwrap().chap.unwrap().stamp();
    assert_eq!(judge(&named(A)), Err(Denial::Unproved));
    assert_eq!(judge(&Seen { proof: Some(stamp), ..far }), Ok(Right::ALL));
    book.set(A, chap("the second secret"), false).unwrap();
    assert_eq!(judge(&Seen { proof: Some(stamp), ..far }), Err(Denial::Unproved));
    book.set(A, Edit { chap: Some(None), ..Edit::default() }, false).unwrap();
    assert_eq!(judge(&far), Err(Denial::Unproved));
    book.be_insecure();
    assert_eq!(judge(&far), Ok(Right::ALL));
}

#[test]
fn a_change_acts_on_sessions_that_stand() {
    let pool = Pool::new();
    let (lun, book) = (pool.lun("one", MIB), book(&pool.catalog));
    let stranger = login(&lun, B);
    book.add(A, allow(&lun, true), true).unwrap();
    assert!(!stranger.is_gone(), "a dry run ended it");
    book.add(A, allow(&lun, true), false).unwrap();
    assert!(stranger.is_gone());
    let session = come_in(&book, &lun, A);
    session.write(0, &[1; 512], false).unwrap();
    let generation = session.generation();
    book.set(A, allow(&lun, false), false).unwrap();
    assert!(session.generation() > generation && session.geometry().read_only);
    assert_eq!(session.geometry().generation, session.generation());
    assert!(matches!(session.write(0, &[2; 512], false), Err(BlockError::ReadOnly)));
    assert!(matches!(session.try_write(0, &[2; 512]), Some(Err(BlockError::ReadOnly))));
    assert_eq!(pool.catalog.refused_writes(), (2, 0));
    assert!(logged(&lun, "refused", "may only read"));
    book.set(A, allow(&lun, true), false).unwrap();
    session.write(0, &[3; 512], false).unwrap();
    book.set(A, Edit { deny: vec![lun.volume()], ..Edit::default() }, false).unwrap();
    assert!(session.is_gone());
    assert!(matches!(session.write(0, &[4; 512], false), Err(BlockError::Gone)));
    drop((stranger, session));
}

#[test]
fn a_quota_is_each_clients_own() {
    let pool = Pool::new();
    let (lun, book) = (pool.lun("one", 64 * MIB), book(&pool.catalog));
    let edit = Edit { quotas: vec![(lun.volume(), MIB)], ..allow(&lun, true) };
    book.add(A, edit, false).unwrap();
    book.add(B, allow(&lun, true), false).unwrap();
    let (a, b) = (come_in(&book, &lun, A), come_in(&book, &lun, B));
    a.write(0, &vec![1; MIB as usize], false).unwrap();
    assert!(matches!(a.write(MIB, &[1; 4096], false), Err(BlockError::NoSpace)));
    assert!(a.try_write(MIB, &[1; 4096]).is_none());
    a.write(0, &[2; 4096], false).unwrap();
    b.write(MIB, &[1; 4096], false).unwrap();
    assert_eq!(pool.catalog.refused_writes(), (0, 1));
    drop((a, b));
}

#[test]
fn it_is_kept_and_follows_the_lun_not_its_name() {
    let pool = Pool::new();
    let lun = pool.lun("one", MIB);
    let right = Right { writable: false, quota_bytes: 4096 };
    let chap = Some(Some(credential("kept in the pool")));
    let quotas = vec![(lun.volume(), 4096)];
    let edit = Edit { chap, quotas, memory_bytes: Some(32 << 20), ..allow(&lun, false) };
    book(&pool.catalog).add(A, edit, false).unwrap();
    drop(lun);
    let pool = pool.reopen();
    let book = book(&pool.catalog);
    let kept = book.get(A).unwrap();
    assert_eq!(kept.chap.unwrap().secret.bytes(), b"kept in the pool");
    assert_eq!(kept.limits.memory_bytes, 32 << 20);
    let lun = pool.catalog.get("one").unwrap();
    assert_eq!(kept.rights.get(&lun.volume()), Some(&right));
    assert_eq!(lun.attributes().unwrap().users, [format!("{A} ro quota=4096")]);
    pool.catalog.rename("one", "two").unwrap();
    assert!(book.get(A).unwrap().rights.contains_key(&lun.volume()));
    drop(lun);
    pool.catalog.delete("two", <_>::default()).unwrap();
    let anew = pool.lun("two", MIB);
    assert!(!book.get(A).unwrap().rights.contains_key(&anew.volume()));
    assert!(pool.catalog.unusable().is_empty());
}

#[test]
fn a_list_that_cannot_be_read_keeps_everybody_out() {
    let pool = Pool::new();
    let lun = pool.lun("one", MIB);
    book(&pool.catalog).add(A, allow(&lun, true), false).unwrap();
    let volume = pool.fs.volume_lookup(".lunfs").unwrap().unwrap();
    let node = pool.fs.lookup(NodeId::root(volume), b"initiators").unwrap();
    let file = pool.fs.open_file(node.id).unwrap();
    let mut text = vec![0; file.size_bytes() as usize];
    file.read_at(0, &mut text).unwrap();
    for (at, byte) in [(0, b'x'), (text.len() / 2, 0), (text.len() - 1, b'{')] {
        let mut damaged = text.clone();
        damaged[at] = byte;
        file.write_at(0, &damaged).unwrap();
        let book = book(&pool.catalog);
        assert!(book.failure().is_some());
        assert_eq!(book.judge(&named(A), lun.volume()), Err(Denial::Unreadable));
        assert!(book.add(B, Edit::default(), false).is_err());
    }
    file.write_at(0, &text).unwrap();
    assert!(book(&pool.catalog).failure().is_none());
    // nothing of it is in the tree
    let owner = Owner { mode: 0o600, uid: 0, gid: 0 };
    let root = NodeId::root(lunfs::fs::VolumeId::TREE);
    assert!(pool.fs.create(root, b".lunfs", NewNode::File, owner).is_ok());
    assert_eq!(book(&pool.catalog).list().unwrap().len(), 1);
}

/// After a crash it is a list that was there: none older than what was acknowledged.
#[test]
fn a_whole_list_after_a_crash_at_any_call() {
    let catalog_of = |catalog: &Catalog| Catalog::open(catalog.fs().clone(), options()).unwrap();
    let work = |catalog: &Catalog| {
        let book = book(&catalog_of(catalog));
        let chap = || Some(Some(credential("twelve bytes or more")));
        let steps: [&dyn Fn() -> bool; 4] = [
            &|| book.add(A, Edit { chap: chap(), ..Edit::default() }, false).is_ok(),
            &|| book.add(B, Edit::default(), false).is_ok(),
            &|| book.set(A, Edit { chap: Some(None), ..Edit::default() }, false).is_ok(),
            &|| book.remove(B, false).is_ok(),
        ];
        steps.iter().take_while(|step| step()).count()
    };
    let judge = |catalog: &Catalog, acknowledged: usize, at| {
        let list = book(&catalog_of(catalog)).list();
        let list = list.unwrap_or_else(|why| panic!("crash at call {at}: {why}"));
        let names: Vec<&str> = list.iter().map(|one| one.name.as_str()).collect();
        let proves = list.first().is_some_and(|one| one.chap.is_some());
        let state = match (names.as_slice(), proves) {
            ([], _) => 0,
            ([A], true) => 1,
            ([A, B], true) => 2,
            ([A, B], false) => 3,
            ([A], false) => 4,
            other => panic!("crash at call {at}: {other:?}"),
        };
        assert!((acknowledged..=acknowledged + 1).contains(&state), "crash at call {at}: {state}");
    };
    at_every_call(&formatted(), work, judge);
}

#[test]
fn changes_of_one_initiator_at_once_are_all_kept() {
    let pool = Pool::new();
    let (lun, book) = (pool.lun("one", MIB), book(&pool.catalog));
    book.add(A, allow(&lun, true), false).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..40 {
                let edit = Edit { commands: Some(n), ..Edit::default() };
                book.set(A, edit, false).unwrap();
                assert_eq!(book.get(A).unwrap().limits.commands, n);
            }
        });
        scope.spawn(|| {
            for n in 1..40 {
                let edit = Edit { quotas: vec![(lun.volume(), n * 4096)], ..Edit::default() };
                book.set(A, edit, false).unwrap();
                let right = book.get(A).unwrap().rights[&lun.volume()];
                assert_eq!(right.quota_bytes, n * 4096);
            }
        });
    });
}

#[test]
fn no_initiator_proves_itself_by_what_the_target_says_to_another() {
    let pool = Pool::new();
    let book = book(&pool.catalog);
    let (a, b) = (
        || Some(Some(credential("the first secret"))),
        || Some(Some(credential("the second secret"))),
    );
    book.add(A, Edit { chap: a(), ..Edit::default() }, false).unwrap();
    let reflected = || Edit { chap: b(), mutual: a(), ..Edit::default() };
    assert!(matches!(book.add(B, reflected(), false), Err(lunfs::access::Error::SameSecret)));
    book.add(B, Edit { chap: b(), ..Edit::default() }, false).unwrap();
    assert!(book.set(B, Edit { mutual: a(), ..Edit::default() }, false).is_err());
    assert!(book.get(B).unwrap().mutual.is_none());
    let third = || Some(Some(credential("the third secret")));
    book.set(B, Edit { mutual: third(), ..Edit::default() }, false).unwrap();
    assert!(book.set(A, Edit { chap: third(), ..Edit::default() }, false).is_err());
}
