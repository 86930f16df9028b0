//! Serves one disk in memory over iSCSI, to try an initiator or a conformance suite on:
//!
//! ```text
//! cargo run --release --example iscsi_ram -- --size-mib 1024 127.0.0.1:3260 127.0.0.1:3261
//! iscsi-inq iscsi://127.0.0.1:3260/iqn.2026-11.local.lunfs:ram/0
//! ```

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Parser;
use lunfs::iscsi::{portal, Client, Options, Refusal, Service, TargetDirectory, TARGET_PREFIX};
use lunfs::lun::{BlockIo, MemoryLun};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Args {
    /// Addresses to listen on; all show the same disk.
    #[arg(default_value = "127.0.0.1:3260")]
    addresses: Vec<SocketAddr>,
    /// Capacity.
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
    /// Logical block size: 512 or 4096.
    #[arg(long, default_value_t = 512)]
    block_bytes: u32,
    /// log2 of logical blocks in a physical one.
    #[arg(long, default_value_t = 3)]
    physical_exponent: u8,
    /// The medium can be ejected.
    #[arg(long)]
    removable: bool,
    /// What discovery names instead of the address that was dialled.
    #[arg(long)]
    advertise: Option<String>,
    /// Writes are refused.
    #[arg(long)]
    read_only: bool,
}

/// A directory of one target.
struct One(Arc<MemoryLun>);

impl One {
    fn name() -> String {
        format!("{TARGET_PREFIX}ram")
    }
}

impl TargetDirectory for One {
    fn list(&self, _client: &Client) -> Vec<String> {
        vec![One::name()]
    }

    fn open(&self, _client: &Client, target: &str) -> Result<Arc<dyn BlockIo>, Refusal> {
        match target == One::name() {
            true => Ok(Arc::clone(&self.0) as Arc<dyn BlockIo>),
            false => Err(Refusal::NotFound),
        }
    }
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let disk = Arc::new(MemoryLun::new("ram", args.size_mib << 20, args.block_bytes));
    disk.change_geometry(|geometry| {
        geometry.physical_exponent = args.physical_exponent;
        geometry.removable = args.removable;
        geometry.read_only = args.read_only;
    });
    let options = Options { advertise: args.advertise, ..Options::default() };
    let service = Service::new(Arc::new(One(disk)), options)?;
    let stop = CancellationToken::new();
    let mut portals = Vec::new();
    for address in args.addresses {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        println!("iscsi://{local}/{}/0", One::name());
        let portal = (listener, service.add_portal(local));
        portals.push(tokio::spawn(portal::serve(Arc::clone(&service), portal, stop.clone())));
    }
    tokio::signal::ctrl_c().await?;
    stop.cancel();
    for portal in portals {
        let _ = portal.await;
    }
    Ok(())
}
