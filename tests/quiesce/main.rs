//! Quiesced snapshots with real processes: the order of freeze, snapshot and thaw, their limits,
//! and that nothing stays frozen when one of the processes is killed at the worst moment.

mod lab;

use lab::{alive, Lab};
use lunfs::fs::HookOutcome;
use lunfs::quiesce::{run, Limits, Report};
use rustix::process::{kill_process, Pid, Signal};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const LUNFS: &str = env!("CARGO_BIN_EXE_lunfs");
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn limits(freeze_ms: u64, snapshot_ms: u64) -> Limits {
    let (freeze, snapshot) = (Duration::from_millis(freeze_ms), Duration::from_millis(snapshot_ms));
    Limits { freeze, snapshot, thaw: Duration::from_secs(10) }
}

/// A snapshot that writes its word into the hook's record and takes so long.
fn take(lab: &Lab, limits: Limits, time: Duration) -> Report<u32> {
    let lab_too = lab.clone();
    run(Path::new(LUNFS), &lab.hook(), limits, move || {
        lab_too.record("snapshot");
        std::thread::sleep(time);
        7
    })
}

#[test]
fn freeze_snapshot_thaw() {
    let lab = Lab::new("", "");
    let report = take(&lab, Limits::default(), Duration::ZERO);
    assert_eq!((report.made, report.outcome), (Some(7), HookOutcome::AtRest), "{:?}", report.why);
    assert_eq!(lab.recorded(), ["freeze", "snapshot", "thaw"]);
}

#[test]
fn a_hook_that_refuses_gets_no_snapshot_and_is_thawed() {
    let lab = Lab::new("echo no room; exit 3", "");
    let report = take(&lab, Limits::default(), Duration::ZERO);
    assert_eq!((report.made, report.outcome), (None, HookOutcome::Refused));
    assert!(report.why.is_some_and(|why| why.contains("no room")));
    assert_eq!(lab.recorded(), ["freeze", "thaw"]);
}

#[test]
fn a_hook_that_is_late_gets_no_snapshot_and_is_thawed() {
    let lab = Lab::new("sleep 60", "");
    let report = take(&lab, limits(200, 5000), Duration::ZERO);
    assert_eq!((report.made, report.outcome), (None, HookOutcome::TimedOut), "{:?}", report.why);
    assert_eq!(lab.recorded(), ["freeze", "thaw"]);
}

#[test]
fn a_snapshot_that_is_late_keeps_nothing_frozen() {
    let lab = Lab::new("", "");
    let began = Instant::now();
    let report = take(&lab, limits(10_000, 300), LONG);
    assert_eq!((report.made, report.outcome), (None, HookOutcome::WentOn));
    assert!(began.elapsed() < LONG / 2);
    assert_eq!(lab.recorded(), ["freeze", "snapshot", "thaw"]);
}

#[test]
fn a_hook_that_does_not_thaw_is_asked_again() {
    let lab = Lab::new("", "[ -e \"$0.once\" ] || { touch \"$0.once\"; exit 1; }");
    let report = take(&lab, Limits::default(), Duration::ZERO);
    assert_eq!((report.made, report.outcome), (Some(7), HookOutcome::AtRest));
    assert_eq!(report.stuck, None);
    assert_eq!(lab.recorded(), ["freeze", "snapshot", "thaw", "thaw"]);
}

#[test]
fn without_its_agent_the_command_thaws() {
    let lab = Lab::new("", "");
    let killer = lab.clone();
    let report = run(Path::new(LUNFS), &lab.hook(), Limits::default(), move || {
        killer.kill_agent();
        // The command thaws at once, though the snapshot goes on.
        killer.wait_for("thaw");
        7
    });
    assert_eq!((report.made, report.outcome), (Some(7), HookOutcome::WentOn));
    assert_eq!(lab.recorded(), ["freeze", "thaw"]);
}

#[test]
fn without_its_command_the_agent_thaws() {
    let lab = Lab::new("", "");
    let mut command = lab.command("command_for_others");
    lab.wait_for("snapshot");
    let agent = lab.agent();
    command.kill().unwrap();
    command.wait().unwrap();
    lab.wait_for("thaw");
    assert_eq!(lab.recorded(), ["freeze", "snapshot", "thaw"]);
    lab.wait_until("the agent ends", || !alive(agent));
}

#[test]
fn a_command_that_dies_while_it_freezes_is_thawed_afterwards() {
    let lab = Lab::new("sleep 0.5", "");
    let mut command = lab.command("command_for_others");
    lab.wait_for("freeze");
    command.kill().unwrap();
    command.wait().unwrap();
    lab.wait_for("thaw");
    assert_eq!(lab.recorded(), ["freeze", "thaw"]);
}

/// As a service manager ends a service: all its processes at once are asked to end.
#[test]
fn a_signal_to_both_leaves_nothing_frozen() {
    let lab = Lab::new("", "");
    let mut command = lab.command("command_for_others");
    lab.wait_for("snapshot");
    let agent = lab.agent();
    for signal in [Signal::INT, Signal::HUP, Signal::TERM] {
        kill_process(agent, signal).unwrap();
    }
    let pid = Pid::from_raw(i32::try_from(command.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    command.wait().unwrap();
    lab.wait_for("thaw");
    assert_eq!(lab.recorded(), ["freeze", "snapshot", "thaw"]);
    lab.wait_until("the agent ends", || !alive(agent));
}

/// The command of the tests that kill it.
#[test]
#[ignore = "run by other tests"]
fn command_for_others() {
    let Some(lab) = Lab::of_child() else { return };
    take(&lab, Limits { snapshot: LONG, ..Limits::default() }, LONG);
}

/// A filesystem of this machine, which the kernel really freezes.
#[test]
fn a_frozen_filesystem_outlives_nobody() {
    let Some(mounted) = lab::Loop::new() else { return };
    let lab = Lab::freezing(&mounted.dir);
    let report = take(&lab, Limits::default(), Duration::ZERO);
    assert_eq!(report.outcome, HookOutcome::AtRest, "{:?}", report.why);
    mounted.write_works();
    // The command is killed.
    let lab = Lab::freezing(&mounted.dir);
    let mut command = lab.command("command_for_others");
    lab.wait_for("snapshot");
    let mut writer = mounted.writer();
    std::thread::sleep(Duration::from_millis(300));
    assert!(writer.try_wait().unwrap().is_none(), "it is frozen");
    command.kill().unwrap();
    command.wait().unwrap();
    lab.wait_until("the writer goes on", || writer.try_wait().unwrap().is_some());
    // The agent is killed.
    let agents = lab.clone();
    let at = mounted.dir.clone();
    let report = run(Path::new(LUNFS), &lab.hook(), Limits::default(), move || {
        agents.kill_agent_by_hook();
        let done = Command::new("touch").arg(at.join("after")).status();
        done.is_ok_and(|status| status.success())
    });
    assert_eq!((report.made, report.outcome), (Some(true), HookOutcome::WentOn));
    mounted.write_works();
    // Whoever froze it first keeps it.
    assert!(Command::new("fsfreeze").args(["-f"]).arg(&mounted.dir).status().unwrap().success());
    let report = take(&lab, Limits::default(), Duration::ZERO);
    assert_eq!((report.made, report.outcome), (None, HookOutcome::Refused));
    let mut writer = mounted.writer();
    std::thread::sleep(Duration::from_millis(200));
    assert!(writer.try_wait().unwrap().is_none(), "it is still frozen");
    assert!(Command::new("fsfreeze").args(["-u"]).arg(&mounted.dir).status().unwrap().success());
    writer.wait().unwrap();
}
