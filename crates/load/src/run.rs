//! A run from its plan to its report: limits, threads, the server's process.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use reactor::Options;

use crate::client::Dialect;
use crate::machine::{Clients, Mail};
use crate::plan::{BenchError, Plan};
use crate::process::Process;
use crate::progress::Progress;
use crate::report::{Evidence, Report};
use crate::stalled::Stalled;
use crate::target::{Dialer, Trust};
use crate::world::System;

/// Descriptors that a run needs besides its sockets.
const DESCRIPTORS_SPARE: u64 = 64;
/// Sockets that the loader serves in one turn.
const BATCH: usize = 256;

/// How a run shows itself, and whom it trusts.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// Whose certificate is taken, with `wss://`.
    pub trust: Trust,
    /// Nothing on standard error while it runs.
    pub quiet: bool,
}

/// Runs a plan to its end. A run that went wrong (violations, failed connections, a stall) has a report all the
/// same; [`Report::verdict`] tells.
///
/// # Errors
/// The plan does not fit together, the system refuses sockets or threads, or the server's process is not there.
pub fn run(plan: &Plan, manner: &Manner) -> Result<Report, BenchError> {
    plan.check()?;
    let sockets = plan.connections + plan.guests();
    raise_descriptor_limit(u64::from(sockets) + DESCRIPTORS_SPARE)?;
    pin(plan.cpu)?;
    let server = watch(plan.server_pid)?;
    let mut dialer = Dialer::new(&plan.target, &manner.trust, plan.sources())?;

    let start = Instant::now();
    let memory_empty = server.as_ref().and_then(Process::memory);
    let run = run_number();
    let stalled = match plan.stalled() {
        0 => None,
        count => {
            let mut dialect = Dialect::new(plan.protocol, plan.format, &plan.target, u64::from(run) << 16);
            Some(Stalled::open(
                count,
                &mut dialer,
                &mut dialect,
                plan.connect_timeout,
            )?)
        }
    };

    let progress = Arc::new(Progress::new());
    let plan = Arc::new(plan.clone());
    let options = Options {
        driver: plan.driver,
        batch: BATCH,
        // The machine adopts through its own inbox, as many as may be connecting at once.
        ring: (plan.connect_window as usize + plan.guests() as usize + 64).next_power_of_two(),
        name: "load".to_owned(),
        ..Options::default()
    };
    let group = reactor::spawn(1, &options, |_| {
        Clients::new(Arc::clone(&plan), Arc::clone(&progress), run)
    })
    .map_err(BenchError::system("cannot start the loader's thread"))?;
    let handle = group.handles[0].clone();
    let world = System {
        start,
        dialer,
        handle: handle.clone(),
        server,
    };
    if handle.mail(Mail::Start(Box::new(world))).is_err() {
        return Err(BenchError::Broken("the loader's thread ended at once".to_owned()));
    }
    progress.draw(manner.quiet, || handle.has_ended());
    let driver = group.driver();
    let machines = group
        .join()
        .map_err(BenchError::system("the loader's driver failed"))?;
    let Some(clients) = machines.into_iter().next() else {
        return Err(BenchError::Broken("the loader's thread left nothing".to_owned()));
    };
    let evidence = Evidence {
        findings: clients.findings,
        memory_empty,
        driver,
        stalled_end: stalled.map(Stalled::read_out),
    };
    Ok(Report::new(&plan, evidence))
}

fn watch(pid: Option<u32>) -> Result<Option<Process>, BenchError> {
    match pid {
        None => Ok(None),
        Some(pid) => match Process::new(pid) {
            None => Err(BenchError::Plan(format!(
                "--server-pid {pid}: there is no such process, or its CPU time cannot be read here"
            ))),
            process => Ok(process),
        },
    }
}

/// Tells this run's messages from another's; it need not be a secret.
fn run_number() -> u16 {
    let nanoseconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    (nanoseconds >> 8) as u16 ^ std::process::id() as u16
}

/// Raises the soft limit of open files as far as needed and allowed.
#[cfg(unix)]
fn raise_descriptor_limit(needed: u64) -> Result<(), BenchError> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let failed = |error: nix::Error| BenchError::System {
        what: "cannot learn or raise the limit of open files".to_owned(),
        error: error.into(),
    };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if needed <= soft {
        return Ok(());
    }
    if needed > hard {
        return Err(BenchError::Plan(format!(
            "this run needs {needed} open files, but the system allows {hard} (ulimit -Hn): lower --connections"
        )));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed)
}

#[cfg(not(unix))]
fn raise_descriptor_limit(_needed: u64) -> Result<(), BenchError> {
    Ok(())
}

/// Binds this thread, and those it will start, to one CPU.
#[cfg(target_os = "linux")]
fn pin(cpu: Option<usize>) -> Result<(), BenchError> {
    use nix::sched::{CpuSet, sched_setaffinity};
    use nix::unistd::Pid;
    let Some(cpu) = cpu else { return Ok(()) };
    let mut cpus = CpuSet::new();
    cpus.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus))
        .map_err(|error| BenchError::Plan(format!("--cpu {cpu}: {}", error.desc())))
}

#[cfg(not(target_os = "linux"))]
fn pin(cpu: Option<usize>) -> Result<(), BenchError> {
    match cpu {
        None => Ok(()),
        Some(_) => Err(BenchError::Plan("--cpu works on Linux only".to_owned())),
    }
}
