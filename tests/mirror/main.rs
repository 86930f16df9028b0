//! A mirrored pool whose devices fail, vanish, come back old, and are replaced: nothing that was
//! acknowledged is lost, and a device that is behind is never believed.

mod failing;
mod filling;
mod lab;
mod opening;
mod replacing;
