//! The SCSI device server under any command block and any parameter list.

use crate::{number, seed};
use lunfs::device::sim::Rng;
use lunfs::lun::{BlockIo, MemoryLun};
use lunfs::scsi::{LogicalUnit, Nexus, Plan, PortNames, MAX_TRANSFER_BYTES};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

const OPCODES: [u8; 47] = [
    0x00, 0x03, 0x08, 0x0A, 0x12, 0x15, 0x15, 0x16, 0x17, 0x1A, 0x1B, 0x1E, 0x25, 0x28, 0x2A, 0x2E,
    0x2F, 0x34, 0x35, 0x37, 0x41, 0x42, 0x42, 0x55, 0x55, 0x5A, 0x5E, 0x5F, 0x5F, 0x83, 0x83, 0x84,
    0x88, 0x89, 0x8A, 0x8B, 0x8E, 0x8F, 0x91, 0x93, 0x9C, 0x9E, 0xA0, 0xA3, 0xA8, 0xAA, 0xB7,
];

/// A command whose numbers are small in most cases, so that many are carried out.
fn cdb(rng: &mut Rng) -> [u8; 16] {
    let mut cdb = [0; 16];
    match rng.below(8) {
        0 => rng.fill(&mut cdb),
        _ => {
            for _ in 0..1 + rng.below(5) {
                cdb[rng.index(16)] =
                    if rng.below(3) == 0 { rng.bits() } else { rng.below(9) } as u8;
            }
        }
    }
    if rng.below(20) > 0 {
        cdb[0] = OPCODES[rng.index(OPCODES.len())];
    }
    cdb
}

/// Data-out that looks like a list: lengths, descriptors, LBAs.
fn list(rng: &mut Rng, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    if rng.below(4) == 0 {
        rng.fill(&mut out);
    }
    for _ in 0..rng.below(12) {
        let width = [1, 2, 4, 8][rng.index(4)];
        let at = rng.index(bytes.clamp(1, 96));
        let value = number(rng).to_be_bytes();
        for (to, from) in out.iter_mut().skip(at).take(width).zip(&value[8 - width..]) {
            *to = *from;
        }
    }
    if bytes > 8 && rng.below(2) == 0 {
        out[..2].copy_from_slice(&((bytes - 2) as u16).to_be_bytes());
        out[2..4].copy_from_slice(&((bytes - 8) as u16).to_be_bytes());
    }
    out
}

fn nexus(unit: &Arc<LogicalUnit>, disk: &Arc<MemoryLun>, name: &str) -> Nexus {
    let ports = PortNames {
        initiator: name.to_owned(),
        device: "iqn.d".to_owned(),
        port: "iqn.d,t,0x0001".to_owned(),
        relative_port: 1,
        port_count: 1,
        port_group: 1,
        protocol: 5,
    };
    Nexus::new(Arc::clone(unit), Arc::clone(disk) as Arc<dyn BlockIo>, ports)
}

#[test]
fn fuzz_commands_and_parameter_lists() {
    let mut rng = Rng::new(seed());
    let (mut good, mut refused) = (0, 0);
    for _ in 0..40 {
        let disk = Arc::new(MemoryLun::new("t", 1 << 20, [512, 4096][rng.index(2)]));
        let unit = LogicalUnit::new();
        let both = [nexus(&unit, &disk, "a"), nexus(&unit, &disk, "b")];
        for _ in 0..1000 {
            let nexus = &both[rng.index(2)];
            let lun = if rng.below(30) == 0 { number(&mut rng) } else { 0 };
            let answer = match nexus.begin(lun, &cdb(&mut rng)) {
                Plan::Done(answer) => answer,
                Plan::Run(mut task) => {
                    let expected = match rng.below(6) {
                        0 => rng.index(5000),
                        _ => task.data_out_bytes,
                    };
                    if task.takes_data() && task.fit(expected).is_err() {
                        continue;
                    }
                    // the longest is COMPARE AND WRITE's or a transfer's
                    assert!(task.data_out_bytes as u64 <= 2 * MAX_TRANSFER_BYTES);
                    assert!(task.data_in_bytes as u64 <= MAX_TRANSFER_BYTES);
                    let out = list(&mut rng, task.data_out_bytes);
                    let mut into = vec![0; task.data_in_bytes];
                    let at_once = nexus.try_run(&task, &out, into.as_mut_slice().into());
                    let cancel = AtomicBool::new(rng.below(10) == 0);
                    at_once.unwrap_or_else(|| {
                        nexus.run(&task, &out, into.as_mut_slice().into(), &cancel)
                    })
                }
            };
            assert!(answer.data.len() <= 1 << 20 && answer.sense.len() <= 252);
            match answer.sense.is_empty() {
                true => good += 1,
                false => refused += 1,
            }
            if rng.below(200) == 0 {
                disk.resize(rng.below(1 << 21));
            }
        }
    }
    assert!(good > 2000 && refused > 2000, "{good} good, {refused} refused");
}
