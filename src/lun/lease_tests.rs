//! Every cell of the lease's table, and what begins and ends it.

use super::*;

const T0: Duration = Duration::from_secs(100);
const GRACE: Duration = Duration::from_secs(30);
const GRANTED: FileVerdict = FileVerdict::Granted { began: true };
const AGAIN: FileVerdict = FileVerdict::Granted { began: false };

fn exclusive() -> Lease {
    Lease::new(GRACE, false)
}

fn block_held() -> Lease {
    let mut lease = exclusive();
    assert_eq!(lease.block_write(1, "iscsi a", T0), BlockVerdict::Granted { began: true });
    lease
}

fn file_held() -> Lease {
    let mut lease = exclusive();
    assert_eq!(lease.file_open(7, FileWish::Write, T0), GRANTED);
    lease
}

#[test]
fn idle_grants_everybody() {
    assert_eq!(exclusive().file_open(7, FileWish::Read, T0), FileVerdict::Limited);
    assert_eq!(exclusive().file_open(7, FileWish::Write, T0), GRANTED);
    assert_eq!(exclusive().file_open(7, FileWish::WriteOnly, T0), GRANTED);
    assert_eq!(exclusive().file_open(7, FileWish::TruncateOnly, T0), FileVerdict::Limited);
    assert_eq!(block_held().holder(T0), Holder::Block(vec!["iscsi a".into()]));
    assert_eq!(file_held().holder(T0), Holder::File(1));
    assert_eq!(exclusive().holder(T0), Holder::Idle);
}

#[test]
fn login_and_reading_take_nothing() {
    let mut lease = exclusive();
    assert!(!lease.block_login(1, "iscsi a", T0));
    lease.file_open(7, FileWish::Read, T0);
    assert_eq!(lease.holder(T0), Holder::Idle);
    assert!(!lease.block_leave(1, Leave::Logout, T0));
}

#[test]
fn block_lease_lets_files_read() {
    assert_eq!(block_held().file_open(7, FileWish::Read, T0), FileVerdict::Limited);
}

#[test]
fn block_lease_refuses_read_write_and_truncate() {
    assert_eq!(block_held().file_open(7, FileWish::Write, T0), FileVerdict::HeldByBlock);
    assert_eq!(block_held().file_open(7, FileWish::TruncateOnly, T0), FileVerdict::HeldByBlock);
}

#[test]
fn block_lease_lets_write_only_open_but_not_write() {
    let mut lease = block_held();
    assert_eq!(lease.file_open(7, FileWish::WriteOnly, T0), FileVerdict::Limited);
    assert_eq!(lease.file_write(7, T0), FileVerdict::HeldByBlock);
    lease.block_leave(1, Leave::Logout, T0);
    assert_eq!(lease.file_write(7, T0), GRANTED);
}

#[test]
fn block_lease_is_one_for_all_block_doors() {
    let mut lease = block_held();
    assert_eq!(lease.block_write(2, "nbd b", T0), BlockVerdict::Granted { began: false });
    assert!(!lease.block_leave(1, Leave::Logout, T0));
    assert_eq!(lease.holder(T0), Holder::Block(vec!["nbd b".into()]));
    assert!(lease.block_leave(2, Leave::Logout, T0));
    assert_eq!(lease.holder(T0), Holder::Idle);
}

#[test]
fn file_lease_lets_files_and_makes_block_writers_wait() {
    let mut lease = file_held();
    assert_eq!(lease.file_open(8, FileWish::Read, T0), FileVerdict::Limited);
    assert_eq!(lease.file_open(8, FileWish::Write, T0), AGAIN);
    assert_eq!(lease.file_open(9, FileWish::TruncateOnly, T0), FileVerdict::Limited);
    assert!(!lease.block_login(1, "iscsi a", T0));
    assert_eq!(lease.block_write(1, "iscsi a", T0), BlockVerdict::HeldByFile);
    assert!(!lease.holds(1));
}

#[test]
fn file_lease_ends_with_the_last_writers_flush() {
    let mut lease = file_held();
    lease.file_open(8, FileWish::Write, T0);
    assert!(!lease.file_flush(7));
    assert_eq!(lease.block_write(1, "iscsi a", T0), BlockVerdict::HeldByFile);
    assert!(lease.file_flush(8));
    assert!(!lease.file_flush(8), "RELEASE after FLUSH ends nothing more");
    assert_eq!(lease.block_write(1, "iscsi a", T0), BlockVerdict::Granted { began: true });
}

#[test]
fn a_write_after_flush_takes_the_lease_again_or_is_busy() {
    let mut lease = file_held();
    lease.file_flush(7);
    assert_eq!(lease.file_write(7, T0), GRANTED);
    lease.file_flush(7);
    lease.block_write(1, "iscsi a", T0);
    assert_eq!(lease.file_write(7, T0), FileVerdict::HeldByBlock);
}

#[test]
fn a_lost_connection_keeps_the_lease_for_its_grace() {
    let mut lease = block_held();
    assert!(!lease.block_leave(1, Leave::Lost, T0));
    let late = T0 + GRACE - Duration::from_nanos(1);
    assert_eq!(lease.file_open(7, FileWish::Write, late), FileVerdict::HeldByBlock);
    assert_eq!(lease.holder(late), Holder::Block(vec!["iscsi a (connection lost)".into()]));
    assert!(!lease.expire(late));
    assert!(lease.expire(T0 + GRACE));
    assert_eq!(lease.file_open(7, FileWish::Write, T0 + GRACE), GRANTED);
}

#[test]
fn a_lost_client_that_returns_goes_on_holding() {
    let mut lease = block_held();
    lease.block_leave(1, Leave::Lost, T0);
    assert!(!lease.block_login(2, "iscsi b", T0), "another client does not");
    assert!(lease.block_login(3, "iscsi a", T0 + Duration::from_secs(29)));
    assert_eq!(lease.file_open(7, FileWish::Write, T0 + 2 * GRACE), FileVerdict::HeldByBlock);
    assert!(lease.block_leave(3, Leave::Logout, T0 + 2 * GRACE));
}

#[test]
fn another_clients_logout_does_not_cut_the_grace_short() {
    let mut lease = block_held();
    lease.block_write(2, "nbd b", T0);
    lease.block_leave(1, Leave::Lost, T0);
    assert!(!lease.block_leave(2, Leave::Logout, T0));
    assert_eq!(lease.file_open(7, FileWish::Write, T0), FileVerdict::HeldByBlock);
}

#[test]
fn lost_clients_are_bounded_and_still_counted() {
    let mut lease = exclusive();
    for i in 0..2 * MAX_LOST_CLIENTS as u64 {
        lease.block_write(i, &format!("nbd {i}"), T0);
        lease.block_leave(i, Leave::Lost, T0);
    }
    assert_eq!(lease.lost.len(), MAX_LOST_CLIENTS);
    assert_eq!(lease.file_open(7, FileWish::Write, T0), FileVerdict::HeldByBlock);
    assert_eq!(lease.file_open(7, FileWish::Write, T0 + GRACE), GRANTED);
}

#[test]
fn shared_frees_all() {
    let mut lease = Lease::new(GRACE, true);
    assert_eq!(lease.block_write(1, "iscsi a", T0), BlockVerdict::Granted { began: true });
    assert_eq!(lease.file_open(7, FileWish::Write, T0), GRANTED);
    assert_eq!(lease.file_open(8, FileWish::WriteOnly, T0), AGAIN);
    assert_eq!(lease.file_open(9, FileWish::TruncateOnly, T0), FileVerdict::Limited);
    assert_eq!(lease.file_open(9, FileWish::Read, T0), FileVerdict::Limited);
    assert_eq!(lease.block_write(2, "nbd b", T0), BlockVerdict::Granted { began: false });
    let names = vec!["iscsi a".to_owned(), "nbd b".to_owned()];
    assert_eq!(lease.holder(T0), Holder::Both(names, 2));
}

#[test]
fn exclusive_again_only_when_one_sort_holds() {
    let mut lease = Lease::new(GRACE, true);
    lease.block_write(1, "iscsi a", T0);
    lease.file_open(7, FileWish::Write, T0);
    assert!(!lease.set_shared(false, T0));
    lease.file_flush(7);
    assert!(lease.set_shared(false, T0));
    assert_eq!(lease.file_open(7, FileWish::Write, T0), FileVerdict::HeldByBlock);
    assert!(lease.set_shared(true, T0));
    assert_eq!(lease.file_open(7, FileWish::Write, T0), GRANTED);
}

#[test]
fn a_forced_file_writer_makes_block_holders_wait() {
    let mut lease = block_held();
    assert!(lease.file_force(7));
    assert_eq!(lease.file_write(7, T0), AGAIN);
    assert_eq!(lease.block_write(1, "iscsi a", T0), BlockVerdict::HeldByFile);
    assert!(lease.file_flush(7));
    assert_eq!(lease.block_write(1, "iscsi a", T0), BlockVerdict::Granted { began: false });
}
