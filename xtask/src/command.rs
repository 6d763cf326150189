//! Running commands: from the workspace's root, with a limit on their time, and without orphans.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use crate::workspace;

/// How often a running command is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A cargo command in the workspace's root, by the cargo that runs us.
pub fn cargo<I, S>(args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root()).args(args);
    command
}

/// Runs a command to its end, its output passed on.
///
/// # Errors
/// When it cannot be started or does not succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("starting `{shown}`"))?;
    check(&shown, status)
}

/// Runs a command in a process group of its own and ends the whole group if it takes longer than `limit`, so that a test
/// that hangs neither stops the gate nor leaves servers behind.
///
/// # Errors
/// When it cannot be started, does not succeed, or takes too long.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    let shown = show(command);
    let started = Instant::now();
    let mut child = command.process_group(0).spawn().with_context(|| format!("starting `{shown}`"))?;
    loop {
        if let Some(status) = child.try_wait()? {
            return check(&shown, status);
        }
        if started.elapsed() > limit {
            signal_group(&child, Signal::KILL);
            child.wait()?;
            bail!("`{shown}` took longer than {} minutes and was ended", limit.as_secs() / 60);
        }
        if interrupted() {
            signal_group(&child, Signal::TERM);
            child.wait()?;
            bail!("interrupted");
        }
        thread::sleep(POLL);
    }
}

/// Asks a process to end (SIGTERM). One that is gone already is no error.
pub fn terminate(child: &Child) {
    if let Some(pid) = pid_of(child) {
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
}

/// Sends a signal to a process that must still be there.
///
/// # Errors
/// When the system refuses.
pub fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = pid_of(child).context("the process has no id")?;
    rustix::process::kill_process(pid, signal).context("sending a signal")
}

fn signal_group(child: &Child, signal: Signal) {
    if let Some(pid) = pid_of(child) {
        let _ = rustix::process::kill_process_group(pid, signal);
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

fn check(shown: &str, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

fn show(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let mut shown = program.rsplit('/').next().unwrap_or_default().to_owned();
    for arg in command.get_args() {
        shown.push(' ');
        shown.push_str(&arg.to_string_lossy());
    }
    shown
}

mod interrupt {
    use std::sync::Once;
    use std::sync::atomic::{AtomicBool, Ordering};

    static SEEN: AtomicBool = AtomicBool::new(false);
    static INSTALL: Once = Once::new();

    /// Whether Ctrl-C, SIGTERM or SIGHUP came since the first call. The first call takes these signals over.
    pub fn interrupted() -> bool {
        INSTALL.call_once(|| {
            if let Err(error) = ctrlc::set_handler(|| SEEN.store(true, Ordering::SeqCst)) {
                eprintln!("xtask: Ctrl-C cannot be caught: {error}");
            }
        });
        SEEN.load(Ordering::SeqCst)
    }
}

pub use interrupt::interrupted;
