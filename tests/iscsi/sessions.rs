//! How sessions end and what they are told, task attributes, portals.

use std::time::{Duration, Instant};

use lunfs::iscsi::pdu::{Header, NO_TAG};
use lunfs::iscsi::Options;
use lunfs::lun::BlockIo;

use super::initiator::{write10, Door, Initiator, TARGET};
use super::MIB;

fn log_out(one: &mut Initiator) {
    let mut header = Header::reply(0x06, 0x80, 99);
    header.set_word(24, one.cmd_sn);
    one.send(header, &[]);
    while one.receive().unwrap().0.opcode() != 0x26 {}
}

#[test]
fn nothing_of_a_session_takes_effect_after_its_logout_is_answered() {
    let door = Door::open(MIB);
    let mut one = door.login();
    one.settle();
    door.disk.set_blocking(Some(Duration::from_millis(150)));
    for lba in 0..8 {
        one.command(&write10(lba, 512), 0xA0, 512, &[7; 512]);
    }
    log_out(&mut one);
    door.disk.set_blocking(None);
    let look = || {
        let mut blocks = vec![0; 8 * 512];
        door.disk.read(0, &mut blocks).unwrap();
        blocks
    };
    let before = look();
    std::thread::sleep(Duration::from_millis(400));
    assert!(before == look(), "a write came late");
}

#[test]
fn an_ordered_command_waits_for_those_before_it_and_keeps_back_those_behind() {
    const STEP: Duration = Duration::from_millis(60);
    let door = Door::open(MIB);
    let mut one = door.login();
    one.settle();
    door.disk.set_blocking(Some(STEP));
    let begun = Instant::now();
    let mut sent = Vec::new();
    for (lba, attribute) in [(0, 1), (1, 1), (2, 2), (3, 1), (4, 1), (5, 3)] {
        sent.push(one.command(&write10(lba, 512), 0xA0 | attribute, 512, &[7; 512]));
    }
    let order: Vec<usize> = sent
        .iter()
        .map(|_| {
            let tag = one.receive().unwrap().0.tag();
            sent.iter().position(|one| *one == tag).unwrap()
        })
        .collect();
    let at = |wanted: usize| order.iter().position(|one| *one == wanted).unwrap();
    assert!(at(0) < at(2) && at(1) < at(2), "ORDERED after those before it: {order:?}");
    assert!(at(2) < at(3) && at(2) < at(4), "SIMPLE after it: {order:?}");
    assert!(at(5) < at(2), "HEAD OF QUEUE waits for nobody: {order:?}");
    assert!(begun.elapsed() >= STEP * 3);
    door.disk.set_blocking(None);
    assert_eq!(one.write(0, &[1; 512]).status, 0);
}

#[test]
fn a_waiting_command_can_be_aborted() {
    let door = Door::open(MIB);
    let mut one = door.login();
    one.settle();
    door.disk.set_blocking(Some(Duration::from_secs(1)));
    let first = one.command(&write10(0, 512), 0xA1, 512, &[7; 512]);
    let ordered = one.command(&write10(1, 512), 0xA2, 512, &[7; 512]);
    let (answer, before) = super::manage_until(&mut one, 1, ordered);
    assert_eq!(answer, 0);
    door.disk.set_blocking(None);
    if !before.contains(&first) {
        assert_eq!(one.finish(first, &[]).unwrap().status, 0);
    }
    assert_eq!(one.write(2, &[1; 512]).status, 0);
    let mut block = [1; 512];
    door.disk.read(512, &mut block).unwrap();
    assert_eq!(block, [0; 512]);
}

#[test]
fn a_session_that_is_dropped_is_asked_to_log_out() {
    let door = Door::open(MIB);
    let mut one = door.login();
    one.settle();
    let session = door.service.sessions()[0].id;
    assert!(door.service.drop_session(session));
    let (header, _) = one.receive().unwrap();
    assert_eq!((header.opcode(), header.tag(), header.0[36]), (0x32, NO_TAG, 1));
    assert_eq!(header.0[42..44], [0, 1], "a second");
    one.write(0, &[1; 512]); // it may still work until then
    log_out(&mut one);
    assert!(one.is_closed());
    // one that does not heed it is told of its end
    let mut two = door.connect();
    two.place.1 = 7;
    two.login("iqn.2026-11.local.test:one", "").unwrap();
    two.settle();
    let session = door.service.sessions()[0].id;
    assert!(door.service.drop_session(session));
    assert_eq!(two.receive().unwrap().0 .0[36], 1);
    let drops = two.receive().unwrap().0;
    assert_eq!((drops.0[36], &drops.0[38..40]), (2, &[0, 7][..]), "the connection's CID");
    assert!(two.is_closed());
}

#[test]
fn a_session_has_one_connection_which_may_be_made_again() {
    const NAME: &str = "iqn.2026-11.local.test:one";
    let door = Door::open(MIB);
    let mut one = door.login();
    let (tsih, cid) = one.place;
    assert_ne!(tsih, 0);
    let again = |isid, place| {
        let mut other = door.connect();
        (other.isid, other.place) = (isid, place);
        other.login(NAME, "MaxConnections=4\0").map(|text| (other, text))
    };
    assert_eq!(again(1, (tsih, cid + 1)).err(), Some(0x0206), "too many connections");
    assert_eq!(again(1, (tsih + 1, cid)).err(), Some(0x020A), "no such session");
    assert_eq!(again(2, (tsih, cid)).err(), Some(0x020A), "another one's session");
    one.settle();
    // the same connection once more: as after a cable that was pulled
    let (mut two, text) = again(1, (tsih, cid)).unwrap();
    assert!(text.contains("MaxConnections=1"), "{text}");
    assert_eq!(two.place, (tsih, cid));
    assert!(one.is_closed());
    two.settle();
    let all = door.service.sessions();
    assert_eq!(all.iter().map(|session| session.peers.len()).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_silent_session_is_asked_and_then_ended() {
    let ping_every = Duration::from_millis(60);
    let door = Door::with(MIB, 0, Options { ping_every, ..Options::default() });
    let (mut polite, mut dead) = (door.login(), door.connect());
    dead.isid = 2;
    dead.login("iqn.2026-11.local.test:dead", "").unwrap();
    for _ in 0..5 {
        let (ping, _) = polite.receive().unwrap();
        assert_eq!((ping.opcode(), ping.tag()), (0x20, NO_TAG));
        let mut answer = Header::reply(0x40, 0x80, NO_TAG);
        answer.set_word(20, ping.word(20));
        answer.set_word(24, polite.cmd_sn);
        polite.send(answer, &[]);
    }
    assert!(dead.is_closed());
    polite.settle();
    assert_eq!(door.service.sessions().len(), 1);
}

#[test]
fn discovery_names_every_portal_with_a_group_of_its_own() {
    let door = Door::open(MIB);
    let other = door.add_portal("[::1]:0").or_else(|| door.add_portal("127.0.0.1:0")).unwrap();
    let mut one = door.login();
    one.settle();
    let mut header = Header::reply(0x04, 0x80, 77);
    header.set_word(20, NO_TAG);
    header.set_word(24, one.cmd_sn);
    one.cmd_sn += 1;
    one.send(header, b"SendTargets=All\0");
    let (_, text) = one.receive().unwrap();
    let text = String::from_utf8(text).unwrap();
    let first = format!("TargetAddress={},1\0", door.address);
    let second = format!("TargetAddress={other},2\0");
    assert!(text.contains(&first), "{text:?}");
    assert!(text.contains(&second) || !other.is_ipv4(), "{text:?}");
    let mut two = Initiator::connect(other);
    let keys = two.login("iqn.2026-11.local.test:one", "").unwrap();
    assert!(keys.contains("TargetPortalGroupTag=2"), "{keys:?}");
    two.settle();
    one.settle();
    assert_eq!(door.service.sessions().len(), 2, "another portal group, another session");
    let groups = two.command(&[0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], 0xC0, 64, &[]);
    let data = two.finish(groups, &[]).unwrap().data;
    assert_eq!(data[..4], [0, 0, 0, 16]);
    assert_eq!((data[11], data[15], data[19]), (2, 1, 2));
}

#[test]
fn a_logout_of_what_is_not_there_ends_nothing() {
    let door = Door::open(MIB);
    let mut one = door.login();
    one.settle();
    let log_out = |one: &mut Initiator, reason: u8, cid: u16| {
        let mut header = Header::reply(0x46, 0x80 | reason, 99);
        header.set_word(20, u32::from(cid) << 16);
        header.set_word(24, one.cmd_sn);
        one.send(header, &[]);
        let answer = one.receive().unwrap().0;
        (answer.opcode(), answer.0[2])
    };
    assert_eq!(log_out(&mut one, 1, 9), (0x26, 1), "no such CID");
    assert_eq!(log_out(&mut one, 2, 0), (0x26, 2), "no recovery");
    assert_eq!(log_out(&mut one, 5, 0), (0x3F, 9), "no such reason");
    one.settle();
    assert_eq!(log_out(&mut one, 1, 0), (0x26, 0));
    assert!(one.is_closed());
}

#[test]
fn who_may_not_come_in_ends_nobodys_session() {
    let door = Door::open(MIB);
    let mut one = door.login();
    one.settle();
    door.closed.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut impostor = door.connect();
    assert_eq!(impostor.login("iqn.2026-11.local.test:one", ""), Err(0x0202));
    one.settle();
}

#[test]
fn discovery_tells_of_one_target_where_one_is_named() {
    let door = Door::with(MIB, 3, Options::default());
    let mut one = door.connect();
    one.login_text("InitiatorName=iqn.2026-11.local.test:one\0SessionType=Discovery\0").unwrap();
    let mut ask = |name: &str| {
        let mut header = Header::reply(0x04, 0x80, 77);
        header.set_word(20, NO_TAG);
        header.set_word(24, one.cmd_sn);
        one.cmd_sn += 1;
        one.send(header, format!("SendTargets={name}\0").as_bytes());
        String::from_utf8(one.receive().unwrap().1).unwrap()
    };
    let told = ask(TARGET);
    assert_eq!(told.matches("TargetName=").count(), 1, "{told:?}");
    assert!(told.starts_with(&format!("TargetName={TARGET}\0TargetAddress=")), "{told:?}");
    assert_eq!(ask("iqn.2026-11.local.lunfs:none"), "");
    assert_eq!(ask("All").matches("TargetName=").count(), 4);
}

#[test]
fn a_cold_reset_ends_all_sessions_of_the_target() {
    let door = Door::open(MIB);
    let (mut one, mut two) = (door.login(), door.connect());
    two.login("iqn.2026-11.local.test:two", "").unwrap();
    one.settle();
    two.settle();
    assert_eq!(super::manage(&mut one, 7, NO_TAG), 0);
    assert!(one.is_closed() && two.is_closed());
    door.login().settle();
}

#[test]
fn no_write_ends_after_another_sessions_reset_is_answered() {
    let door = Door::open(MIB);
    let (mut one, mut two) = (door.login(), door.connect());
    two.login("iqn.2026-11.local.test:two", "").unwrap();
    one.settle();
    two.settle();
    door.disk.set_blocking(Some(Duration::from_millis(100)));
    // more than run at a time
    for lba in 0..100 {
        two.command(&write10(lba, 512), 0xA0, 512, &[7; 512]);
    }
    while door.disk.write_count() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    // LUN 0 in its flat form
    let mut header = Header::reply(0x42, 0x85, 4711);
    header.0[8] = 0x40;
    header.set_word(24, one.cmd_sn);
    one.send(header, &[]);
    let answer = one.receive().unwrap().0;
    assert_eq!((answer.opcode(), answer.0[2]), (0x22, 0));
    let before = door.disk.write_count();
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(door.disk.write_count(), before);
    assert!(before < 100);
    door.disk.set_blocking(None);
}
