//! What the operating system says of this process: limits, memory, descriptors, CPU time.
//!
//! Where a system does not tell, the answer is `None`; nothing here fails.

use std::time::Duration;

/// Descriptors kept, of `limit`, for all that is not a WebSocket connection: the listener, drivers, plain HTTP, files.
pub fn descriptors_reserved(limit: usize) -> usize {
    (limit / 4).min(100)
}

/// Raises the soft limit of open files to the hard one and gives the limit now in force.
#[cfg(unix)]
pub fn raise_descriptor_limit() -> Option<usize> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    usize::try_from(if raised { hard } else { soft }).ok()
}

/// Other systems have no such limit to raise.
#[cfg(not(unix))]
pub fn raise_descriptor_limit() -> Option<usize> {
    None
}

/// CPU time of all threads so far, in user and kernel mode together.
#[cfg(unix)]
pub fn cpu_time() -> Option<Duration> {
    use nix::sys::resource::{UsageWho, getrusage};

    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let us = [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64)
        .sum();
    Some(Duration::from_micros(us))
}

/// Not told on this system.
#[cfg(not(unix))]
pub fn cpu_time() -> Option<Duration> {
    None
}

/// Bytes of memory that are resident (Linux only).
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Open descriptors (Linux 6.2 or newer, where the folder's size tells their number without a walk through it).
pub fn open_descriptors() -> Option<u64> {
    let size = std::fs::metadata("/proc/self/fd").ok()?.len();
    (size > 0).then_some(size)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn linux_tells_memory_and_time() {
        assert!(resident_bytes().expect("proc is mounted") > 1 << 20);
        assert!(cpu_time().is_some());
    }

    #[test]
    fn a_small_limit_is_not_all_reserved() {
        assert_eq!(
            (descriptors_reserved(64), descriptors_reserved(20_000)),
            (16, 100)
        );
    }

    #[test]
    fn the_raised_limit_is_the_hard_one() {
        let limit = raise_descriptor_limit().expect("unix has a limit");
        let (soft, hard) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, limit as u64), (hard, hard));
    }
}
