//! A LUN is a directory of three files: `attributes`, `data`, `log`. This layer makes and finds LUNs,
//! keeps the lease between the doors, and maps LBAs to bytes of `data`.

mod block_io;
mod memory;

pub use block_io::{BlockError, BlockIo, Extent, Geometry, Identity};
pub use memory::MemoryLun;
