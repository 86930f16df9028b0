//! Scenarios that break a naive write-anywhere store, each a test by itself: its comment tells the
//! story, the test plays it.

#[path = "../scrub/lab.rs"]
#[allow(dead_code)]
mod lab;

mod log;
mod reuse;
mod root;
mod space;
mod versions;
mod write;
