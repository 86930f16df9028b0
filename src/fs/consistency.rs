//! What is kept with a snapshot of how it was made: whether the application was at rest.

use fs_layout::{VersionPart, HOOK_BYTES, VERSION_CONSISTENT};

/// How the attempt to bring an application to rest for a snapshot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HookOutcome {
    /// Nobody was asked: the snapshot is what a power cut would have left.
    #[default]
    NotAsked,
    /// It was at rest: the snapshot is consistent for the application.
    AtRest,
    /// It refused, or could not be asked.
    Refused,
    /// It did not answer in time.
    TimedOut,
    /// It was at rest, but went on before the snapshot was there.
    WentOn,
}

/// Whether a snapshot is consistent for its application, and by whose word.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Consistency {
    /// How it ended.
    pub outcome: HookOutcome,
    /// The hook's short name, as `fsfreeze`; of more than 31 bytes the first ones are kept.
    pub hook: String,
}

/// By who knows it himself, without a hook.
impl From<bool> for Consistency {
    fn from(at_rest: bool) -> Consistency {
        let outcome = if at_rest { HookOutcome::AtRest } else { HookOutcome::NotAsked };
        Consistency { outcome, hook: String::new() }
    }
}

const OUTCOMES: [HookOutcome; 5] = [
    HookOutcome::NotAsked,
    HookOutcome::AtRest,
    HookOutcome::Refused,
    HookOutcome::TimedOut,
    HookOutcome::WentOn,
];

impl Consistency {
    /// Application-consistent? Else it is what a power cut would have left.
    pub fn is_application(&self) -> bool {
        self.outcome == HookOutcome::AtRest
    }

    pub(super) fn put(&self, part: &mut VersionPart) {
        let flag = if self.is_application() { VERSION_CONSISTENT } else { 0 };
        part.flags = part.flags & !VERSION_CONSISTENT | flag;
        part.hook_outcome = OUTCOMES.iter().position(|o| *o == self.outcome).unwrap_or(0) as u8;
        part.hook = [0; HOOK_BYTES];
        let mut n = self.hook.len().min(HOOK_BYTES);
        while !self.hook.is_char_boundary(n) {
            n -= 1;
        }
        part.hook[..n].copy_from_slice(&self.hook.as_bytes()[..n]);
    }

    pub(super) fn of(part: &VersionPart) -> Consistency {
        let at_rest = part.flags & VERSION_CONSISTENT != 0;
        let known = OUTCOMES.get(usize::from(part.hook_outcome)).copied();
        let outcome = match known.unwrap_or(HookOutcome::Refused) {
            // The flag decides: records of before there were hooks have nothing else.
            _ if at_rest => HookOutcome::AtRest,
            HookOutcome::AtRest => HookOutcome::NotAsked,
            other => other,
        };
        let name = part.hook.split(|b| *b == 0).next().unwrap_or_default();
        Consistency { outcome, hook: String::from_utf8_lossy(name).into_owned() }
    }
}
