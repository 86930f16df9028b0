//! Healing and the scrub: on mirrors and without redundancy, interrupted, and beside writers.

mod beside;
mod lab;
mod repair;
mod versions;
mod walk;
