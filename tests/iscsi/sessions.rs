//! How sessions end.

use std::time::Duration;

use lunfs::iscsi::pdu::Header;
use lunfs::lun::BlockIo;

use super::initiator::{write10, Door};
use super::MIB;

#[test]
fn nothing_of_a_session_takes_effect_after_its_logout_is_answered() {
    let door = Door::open(MIB);
    let mut one = door.login();
    one.settle();
    door.disk.set_blocking(Some(Duration::from_millis(150)));
    for lba in 0..8 {
        one.command(&write10(lba, 512), 0xA0, 512, &[7; 512]);
    }
    let mut header = Header::reply(0x06, 0x80, 99);
    header.set_word(24, one.cmd_sn);
    one.send(header, &[]);
    loop {
        let (header, _) = one.receive().unwrap();
        if header.opcode() == 0x26 {
            break;
        }
    }
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
