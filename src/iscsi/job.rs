//! Work that may have to wait: opening and listing targets, and SCSI tasks that memory alone cannot
//! answer. A connection yields [`Job`]s; whoever carries it runs them on threads that may block and
//! hands the [`Done`] back.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::directory::{Client, Refusal};
use super::login::{Status, Wish};
use super::pool::Buffer;
use super::session::{Link, Registration, Service, SessionKey};
use crate::access::{Limits, Reason};
use crate::scsi::{Answer, CopyTarget, CopyTargets, Nexus, PortNames, Task};

/// The one target port group: every portal reaches every disk alike.
const PORT_GROUP: u16 = 1;
/// SPC-4 protocol identifier of iSCSI.
const PROTOCOL_ISCSI: u8 = 5;

/// A session that was opened. Fields drop in this order: the disk before its place in the table.
#[derive(Debug)]
pub struct Opened {
    /// The disk, behind its SCSI nexus.
    pub nexus: Arc<Nexus>,
    /// The place in the session table.
    pub registration: Registration,
    /// Whose it is.
    pub client: Client,
    /// TargetName.
    pub target: String,
    /// Connection identifier.
    pub cid: u16,
}

/// Work to be done elsewhere.
#[derive(Debug)]
pub struct Job(Work);

#[derive(Debug)]
enum Work {
    Open {
        service: Arc<Service>,
        wish: Wish,
        limits: Limits,
        peer: SocketAddr,
        end: CancellationToken,
    },
    Refused {
        service: Arc<Service>,
        client: Client,
        target: Option<String>,
        reason: Reason,
    },
    List {
        service: Arc<Service>,
        client: Client,
    },
    Scsi(Scsi),
    Settle(Arc<Nexus>),
}

/// A SCSI task with its data.
#[derive(Debug)]
pub struct Scsi {
    /// Initiator task tag.
    pub tag: u32,
    /// Where it runs.
    pub nexus: Arc<Nexus>,
    /// What is to be run.
    pub task: Task,
    /// Data-out, at least `task.data_out_bytes`.
    pub out: Buffer,
    /// Room for data-in: `task.data_in_bytes`.
    pub into: Buffer,
    /// The checksums of data-in are wanted too.
    pub summed: bool,
    /// Set when the command is aborted.
    pub cancel: Arc<AtomicBool>,
}

/// What a job came to.
#[derive(Debug)]
pub enum Done {
    /// A session, or why there is none.
    Opened(Result<Box<Opened>, Status>),
    /// The targets that the client may see.
    Listed(Vec<String>),
    /// A SCSI task, with its data-in.
    Scsi(u32, Answer, Buffer),
    /// Something was noted.
    Noted,
    /// No task that a reset aborted takes effect any more.
    Settled,
    /// The job was lost (its thread panicked): the connection cannot go on.
    Lost,
}

impl Job {
    pub(super) fn open(
        service: Arc<Service>,
        wish: Wish,
        limits: Limits,
        peer: SocketAddr,
        end: CancellationToken,
    ) -> Job {
        Job(Work::Open { service, wish, limits, peer, end })
    }

    /// Tells the directory of a refusal.
    pub(super) fn refused(
        service: Arc<Service>,
        client: Client,
        target: Option<String>,
        reason: Reason,
    ) -> Job {
        Job(Work::Refused { service, client, target, reason })
    }

    pub(super) fn list(service: Arc<Service>, client: Client) -> Job {
        Job(Work::List { service, client })
    }

    pub(super) fn scsi(scsi: Scsi) -> Job {
        Job(Work::Scsi(scsi))
    }

    /// Waits for the end of what a reset aborted.
    pub(super) fn settle(nexus: Arc<Nexus>) -> Job {
        Job(Work::Settle(nexus))
    }

    /// Whether others wait for it who hold threads meanwhile.
    pub(super) fn is_urgent(&self) -> bool {
        matches!(&self.0, Work::Settle(_))
    }

    /// The tag of a task that may take seconds.
    pub(super) fn long_tag(&self) -> Option<u32> {
        match &self.0 {
            Work::Scsi(scsi) if scsi.task.is_long() => Some(scsi.tag),
            _ => None,
        }
    }

    /// Whether it is over when the device has answered once, so that it is not worth a thread.
    pub fn is_short(&self) -> bool {
        match &self.0 {
            Work::Scsi(scsi) => scsi.task.is_short() && !scsi.nexus.may_wait_long(),
            _ => false,
        }
    }

    /// Does the work; may block.
    pub fn run(self) -> Done {
        match self.0 {
            Work::Open { service, wish, limits, peer, end } => {
                Done::Opened(open(&service, wish, limits, peer, end).map(Box::new))
            }
            Work::Refused { service, client, target, reason } => {
                service.directory.refused(&client, target.as_deref(), reason);
                Done::Noted
            }
            Work::Settle(nexus) => {
                nexus.unit().settle();
                Done::Settled
            }
            Work::List { service, client } => Done::Listed(service.directory.list(&client)),
            Work::Scsi(Scsi { tag, nexus, task, out, mut into, summed, cancel }) => {
                let data = out.get(..task.data_out_bytes).unwrap_or_default();
                let answer = nexus.run(&task, data, into.data_in(summed), &cancel);
                Done::Scsi(tag, answer, into)
            }
        }
    }
}

/// The other disks that a client may copy from and to.
#[derive(Debug)]
struct Peers {
    service: Arc<Service>,
    client: Client,
}

impl CopyTargets for Peers {
    fn find(&self, naa: &[u8; 16]) -> Option<CopyTarget> {
        let disk = self.service.directory.find(&self.client, naa)?;
        Some(CopyTarget::new(self.service.unit(&disk.identity()), disk))
    }
}

fn open(
    service: &Arc<Service>,
    wish: Wish,
    limits: Limits,
    peer: SocketAddr,
    end: CancellationToken,
) -> Result<Opened, Status> {
    let target = wish.target.unwrap_or_default();
    let client = Client { initiator: wish.initiator, peer, proof: wish.proof };
    let refused = |refusal: Refusal| Status(refusal.status());
    // who may not use the target does not end the session of who does, under the same name
    service.directory.judge(&client, &target).map_err(refused)?;
    let key = SessionKey {
        initiator: client.initiator.clone(),
        isid: wish.isid,
        target: target.clone(),
        group: wish.group,
    };
    let link = Link { cid: wish.cid, peer, end };
    let registration = service.register(key, (wish.tsih, link), limits).inspect_err(|status| {
        if *status == Status::NO_RESOURCES {
            service.directory.refused(&client, Some(&target), Reason::Limit);
        }
    })?;
    let disk = service.directory.open(&client, &target).map_err(refused)?;
    let isid = wish.isid.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let ports = PortNames {
        initiator: format!("{},i,0x{isid}", client.initiator),
        port: format!("{target},t,0x{:04x}", wish.group),
        device: target.clone(),
        relative_port: wish.group,
        port_count: service.portals().len().max(1) as u16,
        port_group: PORT_GROUP,
        protocol: PROTOCOL_ISCSI,
    };
    let unit = service.unit(&disk.identity());
    let peers = Peers { service: Arc::clone(service), client: client.clone() };
    let nexus = Arc::new(Nexus::new(unit, disk, ports).with_copy_targets(Arc::new(peers)));
    Ok(Opened { nexus, registration, client, target, cid: wish.cid })
}
