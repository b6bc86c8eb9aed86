//! Children that never outlive us: each runs in a process group of its own, is ended when its guard is dropped, and,
//! on SIGINT, SIGTERM or SIGHUP, with all the others before this program exits.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a child may take to end in order before it is killed.
const ENDING_MAX: Duration = Duration::from_secs(5);

/// How often the end of a child is looked for.
const POLL: Duration = Duration::from_millis(20);

/// The process groups that live now.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Set when a signal came: nothing new is started.
static ENDING: AtomicBool = AtomicBool::new(false);

/// The live groups; a thread that panicked while it held them left them whole.
fn groups() -> MutexGuard<'static, BTreeSet<i32>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on SIGINT, SIGTERM and SIGHUP end every child, then this program with code 130.
pub fn end_children_on_signals() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        ENDING.store(true, Ordering::SeqCst);
        eprintln!("\nxtask: interrupted, ending what was started");
        signal_all(Signal::SIGTERM);
        let deadline = Instant::now() + ENDING_MAX;
        while !groups().is_empty() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        signal_all(Signal::SIGKILL);
        std::process::exit(130);
    })
    .context("cannot handle signals")
}

/// Returns at once, unless a signal came: then never, since the handler of signals ends the program.
pub fn leave_the_end_to_signals() {
    while ENDING.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// Sends `signal` to every live group.
fn signal_all(signal: Signal) {
    for group in groups().iter() {
        // A group that has just ended is no failure.
        let _ = killpg(Pid::from_raw(*group), signal);
    }
}

/// A child and all that it starts in its group. Made by [`spawn`]; ended by [`Running::wait`] or by being dropped.
pub struct Running {
    child: Child,
    group: i32,
}

/// Starts `command` in a process group of its own.
pub fn spawn(command: &mut Command) -> anyhow::Result<Running> {
    // The lock is held across the start, so that a signal finds the child in the list or stops it from being made.
    let mut groups = groups();
    if ENDING.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    let child = command
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", name_of(command)))?;
    let group = i32::try_from(child.id()).context("a process id is an i32")?;
    groups.insert(group);
    Ok(Running { child, group })
}

impl Running {
    /// The process id, for measurements.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it ends.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// Waits until it ends, or the time is up: then it is ended, and the answer is `None`.
    pub fn wait_until(&mut self, deadline: Instant) -> anyhow::Result<Option<ExitStatus>> {
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            thread::sleep(POLL);
        }
        self.end();
        Ok(None)
    }

    /// Asks it to end, and kills it where it does not.
    pub fn end(&mut self) {
        let group = Pid::from_raw(self.group);
        if let Ok(None) = self.child.try_wait() {
            let _ = killpg(group, Signal::SIGTERM);
            let deadline = Instant::now() + ENDING_MAX;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(POLL);
            }
        }
        // Also what the child left behind in its group.
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
        groups().remove(&self.group);
    }
}

/// Program and arguments in one line.
pub fn name_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A command from its words: `command(["cargo", "fmt"])`.
pub fn command<const COUNT: usize>(words: [&str; COUNT]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// Starts `command` with both its outputs in one pipe, in the order written.
pub fn spawn_piped(command: &mut Command) -> anyhow::Result<(Running, BufReader<PipeReader>)> {
    let (reader, writer) = std::io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let running = spawn(command)?;
    // The command holds our copies of the pipe's writing end: with them open the reader would never see its end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok((running, BufReader::new(reader)))
}

/// What a command left: how it ended and every line it wrote.
pub struct Outcome {
    /// Whether it ended with code 0.
    pub succeeded: bool,
    /// Standard output and standard error, in the order written.
    pub lines: Vec<String>,
}

/// Runs `command` to its end, showing its output and keeping it in the file `log`.
pub fn run_logged(command: &mut Command, log: &Path) -> anyhow::Result<Outcome> {
    println!("$ {}", name_of(command));
    let mut file = create(log)?;
    let (mut running, mut reader) = spawn_piped(command)?;
    let mut lines = Vec::new();
    while let Some(line) = read_line(&mut reader)? {
        println!("{line}");
        writeln!(file, "{line}").with_context(|| format!("cannot write {}", log.display()))?;
        lines.push(line);
    }
    Ok(Outcome {
        succeeded: running.wait()?.success(),
        lines,
    })
}

/// Runs `command` to its end without showing its output; what it wrote is shown and the failure told where it fails.
pub fn run_quietly(command: &mut Command, log: &Path) -> anyhow::Result<()> {
    let mut file = create(log)?;
    let (mut running, mut reader) = spawn_piped(command)?;
    let mut lines = Vec::new();
    while let Some(line) = read_line(&mut reader)? {
        writeln!(file, "{line}").with_context(|| format!("cannot write {}", log.display()))?;
        lines.push(line);
    }
    if !running.wait()?.success() {
        let first = lines.len().saturating_sub(20);
        bail!(
            "`{}` failed; the end of {}:\n{}",
            name_of(command),
            log.display(),
            lines[first..].join("\n")
        );
    }
    Ok(())
}

/// Standard output of `command`, which must succeed.
pub fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", name_of(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}",
            name_of(command),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The next line without its end; `None` at the end of the stream. Bytes that are no UTF-8 are replaced.
pub fn read_line(reader: &mut impl BufRead) -> anyhow::Result<Option<String>> {
    let mut bytes = Vec::new();
    if reader.read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    Ok(Some(
        String::from_utf8_lossy(&bytes)
            .trim_end_matches(['\n', '\r'])
            .to_owned(),
    ))
}

/// The file at `path`, empty, in a folder that exists.
pub fn create(path: &Path) -> anyhow::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

/// Cargo's target folder: `CARGO_TARGET_DIR`, or `target` in the root.
pub fn target_folder() -> anyhow::Result<PathBuf> {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    folder
        .canonicalize()
        .with_context(|| format!("cannot find {}", folder.display()))
}

/// Whether a program of this name is on the path.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_child_has_ended() {
        let running = spawn(&mut command(["sleep", "600"])).unwrap();
        let path = format!("/proc/{}", running.pid());
        assert!(Path::new(&path).exists());
        drop(running);
        assert!(!Path::new(&path).exists());
    }

    #[test]
    fn a_child_past_its_deadline_is_ended() {
        let mut running = spawn(&mut command(["sleep", "600"])).unwrap();
        assert!(running.wait_until(Instant::now()).unwrap().is_none());
        assert!(running.try_wait().unwrap().is_some());
    }

    #[test]
    fn both_outputs_arrive_in_order() {
        let (_running, mut reader) =
            spawn_piped(&mut command(["sh", "-c", "echo one; echo two >&2; echo three"])).unwrap();
        let mut lines = Vec::new();
        while let Some(line) = read_line(&mut reader).unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, ["one", "two", "three"]);
    }

    #[test]
    fn a_quiet_command_that_fails_shows_what_it_wrote() {
        let log = std::env::temp_dir().join(format!("xtask-quiet-{}.log", std::process::id()));
        let error = run_quietly(&mut command(["sh", "-c", "echo because; exit 3"]), &log).unwrap_err();
        assert!(error.to_string().contains("because"), "{error}");
        std::fs::remove_file(log).unwrap();
    }
}
