//! Which CPU each thread runs on. On systems other than Linux nothing is pinned.

use std::io;

/// Which CPUs the threads of a group run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pinning {
    /// Wherever the scheduler likes.
    #[default]
    Off,
    /// Thread `i` on the `i`-th CPU allowed to this process, node by node; as `Off` if there are more threads than
    /// allowed CPUs.
    Auto,
    /// All threads on the CPUs of this NUMA node.
    Node(u32),
}

/// The CPUs that thread `shard` of `count` may use; `None` for no restriction.
///
/// # Errors
/// A node that does not exist or holds no CPU allowed to this process; the message names those that do.
#[cfg(target_os = "linux")]
pub(crate) fn plan(pinning: Pinning, count: usize) -> io::Result<Vec<Option<Vec<usize>>>> {
    let free = vec![None; count];
    match pinning {
        Pinning::Off => Ok(free),
        Pinning::Auto => {
            let cpus: Vec<usize> = linux::nodes()?.into_iter().flat_map(|node| node.cpus).collect();
            if count > cpus.len() {
                return Ok(free);
            }
            Ok(cpus.into_iter().take(count).map(|cpu| Some(vec![cpu])).collect())
        }
        Pinning::Node(wanted) => {
            let nodes = linux::nodes()?;
            let Some(node) = nodes.iter().find(|node| node.number == wanted) else {
                let known: Vec<String> = nodes.iter().map(|node| node.number.to_string()).collect();
                let message = format!(
                    "no NUMA node {wanted} with CPUs to use; there is: {}",
                    known.join(", ")
                );
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            };
            Ok(vec![Some(node.cpus.clone()); count])
        }
    }
}

/// See above; other systems offer no portable way, so every plan is free.
#[cfg(not(target_os = "linux"))]
pub(crate) fn plan(_pinning: Pinning, count: usize) -> io::Result<Vec<Option<Vec<usize>>>> {
    Ok(vec![None; count])
}

/// Restricts the calling thread to `cpus`.
pub(crate) fn apply(cpus: &[usize]) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    linux::apply(cpus)?;
    #[cfg(not(target_os = "linux"))]
    let _ = cpus;
    Ok(())
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{fs, io};

    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;

    /// A NUMA node and those of its CPUs that this process may use.
    pub(super) struct Node {
        pub number: u32,
        pub cpus: Vec<usize>,
    }

    /// The nodes with usable CPUs, by number. Where the kernel tells of none, all CPUs are node 0.
    pub(super) fn nodes() -> io::Result<Vec<Node>> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let allows = |cpu: &usize| allowed.is_set(*cpu).unwrap_or(false);
        let mut nodes = Vec::new();
        if let Ok(folder) = fs::read_dir("/sys/devices/system/node") {
            for entry in folder.flatten() {
                let name = entry.file_name();
                let number = name
                    .to_str()
                    .and_then(|name| name.strip_prefix("node")?.parse().ok());
                if let Some(number) = number
                    && let Ok(list) = fs::read_to_string(entry.path().join("cpulist"))
                {
                    let cpus = super::parse_cpu_list(&list).into_iter().filter(allows).collect();
                    nodes.push(Node { number, cpus });
                }
            }
        }
        nodes.retain(|node: &Node| !node.cpus.is_empty());
        nodes.sort_by_key(|node| node.number);
        if nodes.is_empty() {
            let cpus = (0..CpuSet::count()).filter(allows).collect();
            nodes.push(Node { number: 0, cpus });
        }
        Ok(nodes)
    }

    pub(super) fn apply(cpus: &[usize]) -> io::Result<()> {
        let mut set = CpuSet::new();
        for &cpu in cpus {
            set.set(cpu)?;
        }
        sched_setaffinity(Pid::from_raw(0), &set)?;
        Ok(())
    }
}

/// Reads the kernel's list form, `0-3,8`. What is not of that form is skipped.
#[cfg(any(target_os = "linux", test))]
fn parse_cpu_list(text: &str) -> Vec<usize> {
    let ranges = text.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_hold_numbers_and_ranges() {
        assert_eq!(parse_cpu_list("0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
        assert!(parse_cpu_list("\n").is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_missing_node_is_an_error_that_names_the_present_ones() {
        let error = plan(Pinning::Node(4095), 1).expect_err("no machine has this node");
        assert!(error.to_string().contains("4095"), "{error}");
        assert!(error.to_string().contains("there is: 0"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn more_threads_than_cpus_are_not_pinned() {
        assert_eq!(plan(Pinning::Auto, 100_000).unwrap(), vec![None; 100_000]);
        assert!(plan(Pinning::Auto, 1).unwrap()[0].is_some());
    }
}
