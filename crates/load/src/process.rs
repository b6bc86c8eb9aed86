//! What the operating system tells of a process: CPU time and memory.
//!
//! Elsewhere than on Linux nothing is told, and the report says so.

use std::fs;
use std::path::PathBuf;

/// Memory of a process, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident: pages of the process that stand in memory.
    pub resident_bytes: u64,
    /// Proportional: shared pages divided among those who share them. `None` if the system does not tell.
    pub proportional_bytes: Option<u64>,
}

/// A process to watch.
#[derive(Clone, Debug)]
pub struct Process {
    folder: PathBuf,
}

impl Process {
    /// The process `pid`, or `None` if there is none or its threads' CPU time cannot be read.
    pub fn new(pid: u32) -> Option<Process> {
        let process = Process {
            folder: PathBuf::from(format!("/proc/{pid}")),
        };
        process.cpu_ns().map(|_| process)
    }

    /// CPU time of all its living threads, ns. The time of a thread that ends disappears with it, so a server that
    /// ends threads during a measurement looks cheaper than it is.
    pub fn cpu_ns(&self) -> Option<u64> {
        let mut total = 0;
        for thread in fs::read_dir(self.folder.join("task")).ok()? {
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(thread.ok()?.path().join("schedstat")) else {
                continue;
            };
            total += parse_schedstat(&text)?;
        }
        Some(total)
    }

    /// Its memory. Walks the process's page tables, which takes milliseconds for a large one: not for often.
    pub fn memory(&self) -> Option<Memory> {
        if let Ok(text) = fs::read_to_string(self.folder.join("smaps_rollup"))
            && let Some(resident_bytes) = parse_kilobytes(&text, "Rss:")
        {
            return Some(Memory {
                resident_bytes,
                proportional_bytes: parse_kilobytes(&text, "Pss:"),
            });
        }
        self.resident_bytes().map(|resident_bytes| Memory {
            resident_bytes,
            proportional_bytes: None,
        })
    }

    /// Its resident memory, bytes, as the kernel last counted it; cheap, exact to about 100 KB.
    pub fn resident_bytes(&self) -> Option<u64> {
        parse_kilobytes(&fs::read_to_string(self.folder.join("status")).ok()?, "VmRSS:")
    }
}

/// CPU time of the calling thread until this very moment, ns. Takes well below a microsecond.
#[cfg(target_os = "linux")]
pub fn thread_cpu_ns() -> Option<u64> {
    use nix::time::{ClockId, clock_gettime};
    let spent = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok()?;
    Some(std::time::Duration::from(spent).as_nanos() as u64)
}

/// CPU time of the calling thread, which this system is not asked for.
#[cfg(not(target_os = "linux"))]
pub fn thread_cpu_ns() -> Option<u64> {
    None
}

/// The first number of a `schedstat` file: ns spent on the CPU.
fn parse_schedstat(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// The value of the line `name  123 kB`, in bytes.
fn parse_kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLLUP: &str = "55d2c8a00000-7ffd0e9c6000 ---p 00000000 00:00 0      [rollup]\n\
        Rss:               14388 kB\nPss:                2941 kB\nPss_Dirty:          1712 kB\n";
    const STATUS: &str = "Name:\tserver\nVmPeak:\t  20000 kB\nVmRSS:\t    3584 kB\nRssAnon:\t     128 kB\n";

    #[test]
    fn schedstat_gives_its_first_number() {
        assert_eq!(parse_schedstat("7410982456 128873 4021\n"), Some(7_410_982_456));
        assert_eq!(parse_schedstat(""), None);
        assert_eq!(parse_schedstat("x 1 2"), None);
    }

    #[test]
    fn memory_lines_are_found_by_their_whole_name() {
        assert_eq!(parse_kilobytes(ROLLUP, "Rss:"), Some(14_388 * 1024));
        assert_eq!(parse_kilobytes(ROLLUP, "Pss:"), Some(2_941 * 1024));
        assert_eq!(parse_kilobytes(STATUS, "VmRSS:"), Some(3_584 * 1024));
        assert_eq!(parse_kilobytes(STATUS, "VmSwap:"), None);
        assert_eq!(parse_kilobytes("VmRSS:\t 12 pages\n", "VmRSS:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_known() {
        let process = Process::new(std::process::id()).unwrap();
        assert!(process.memory().unwrap().resident_bytes > 100_000);
        assert!(process.cpu_ns().unwrap() > 0);
        assert!(thread_cpu_ns().is_some());
    }

    #[test]
    fn a_process_that_is_not_there_is_none() {
        assert!(Process::new(u32::MAX).is_none());
    }
}
