//! The file door on a real mount. Needs root and `/dev/fuse`; without them each test says so and
//! ends.

mod luns;
mod mounting;
mod nodes;
mod panics;
mod pool;
mod snapshots;
mod space;
mod users;
