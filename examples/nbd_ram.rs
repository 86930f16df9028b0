//! Serves a RAM disk over NBD: `nbd_ram [SIZE-MIB [ADDRESS | unix:PATH]]`, export `ram`.
//!
//!     cargo run --release --example nbd_ram 1024 127.0.0.1:10809
//!     nbdinfo nbd://127.0.0.1/ram
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use lunfs::lun::MemoryLun;
use lunfs::nbd::{Export, FixedExports, NbdServer};

const USAGE: &str = "usage: nbd_ram [SIZE-MIB [ADDRESS | unix:PATH]]";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mib = arguments.next().map_or(Ok(64), |text| text.parse::<u64>());
    let place = arguments.next().unwrap_or_else(|| "127.0.0.1:10809".to_owned());
    let (Ok(mib @ 1..=1_048_576), None) = (mib, arguments.next()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(mib << 20, &place)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot serve on {place}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(size_bytes: u64, place: &str) -> Result<(), Box<dyn std::error::Error>> {
    let disk = Export {
        name: "ram".to_owned(),
        description: "a disk in memory, gone when the server ends".to_owned(),
        io: Arc::new(MemoryLun::new("ram", size_bytes, 512)),
        tag: 0,
    };
    let complain =
        Arc::new(|peer: &str, error: &lunfs::nbd::errors::Error| eprintln!("{peer}: {error}"));
    let server = NbdServer::new(Arc::new(FixedExports::new(vec![disk])), Some(complain))?;
    match place.strip_prefix("unix:") {
        Some(path) => {
            server.listen_unix(path.as_ref()).await?;
            println!("ready: nbd+unix:///ram?socket={path}");
        }
        None => println!("ready: nbd://{}/ram", server.listen_tcp(place.parse()?).await?),
    }
    tokio::signal::ctrl_c().await?;
    server.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
