//! The agent of a quiesced snapshot: this program in another role, started by itself.

use crate::quiesce::{serve_agent, Hook, Limits, AGENT_WORD};
use std::process::ExitCode;
use std::time::Duration;

/// Plays the agent if this process was started as one. No word of the command line: nobody types
/// it.
pub fn agent() -> Option<ExitCode> {
    let mut words = std::env::args().skip(1);
    if words.next()? != AGENT_WORD {
        return None;
    }
    let words: Vec<String> = words.skip_while(|word| word == "--").collect();
    let [hook, freeze, snapshot, thaw] = words.as_slice() else { return Some(ExitCode::from(2)) };
    let limit = |text: &str| text.parse().ok().map(Duration::from_millis);
    let limits = limit(freeze).zip(limit(snapshot)).zip(limit(thaw));
    match (hook.parse::<Hook>(), limits) {
        (Ok(hook), Some(((freeze, snapshot), thaw))) => {
            serve_agent(&hook, Limits { freeze, snapshot, thaw });
            Some(ExitCode::SUCCESS)
        }
        _ => Some(ExitCode::from(2)),
    }
}
