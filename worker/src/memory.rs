//! How much memory this process may still take.
//!
//! In: what the system says of the machine, of the process's control group, and of its own limit. Out: the least of
//! them. A system that says nothing has no limit that could be heeded.

use std::fs;

use rustix::process::{Resource, getrlimit};

/// Bytes that may still be taken; `None` where nobody says.
pub fn available() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let group = |name: &str| read(&format!("/sys/fs/cgroup/memory.{name}"));
    let figures = [
        of_machine(&read("/proc/meminfo")),
        of_group(&group("max"), &group("current"), &group("stat")),
        of_process(getrlimit(Resource::As).current, &read("/proc/self/status")),
    ];
    figures.into_iter().flatten().min()
}

/// `MemAvailable` counts what the system would give up; see proc_meminfo(5).
fn of_machine(meminfo: &str) -> Option<u64> {
    kib(meminfo, "MemAvailable:")
}

/// What a control group of version 2 has left, files that can be read again not counted as taken; see
/// <https://docs.kernel.org/admin-guide/cgroup-v2.html>.
fn of_group(max: &str, current: &str, stat: &str) -> Option<u64> {
    let max: u64 = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let files = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse().ok()).unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(files)))
}

/// What `ulimit -v` leaves.
fn of_process(limit: Option<u64>, status: &str) -> Option<u64> {
    Some(limit?.saturating_sub(kib(status, "VmSize:")?))
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let figure = text.lines().find_map(|line| line.strip_prefix(name))?;
    figure.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_can_be_read_again_leave_room() {
        assert_eq!(of_machine("MemTotal: 100 kB\nMemAvailable:    40 kB\n"), Some(40 * 1024));
        assert_eq!(of_group("1000\n", "900\n", "anon 100\ninactive_file 700\n"), Some(800));
        assert_eq!(of_process(Some(4096), "VmSize:\t  1 kB\n"), Some(3072));
    }

    #[test]
    fn who_has_no_limit_says_nothing() {
        assert_eq!(of_group("max\n", "900\n", ""), None);
        assert_eq!(of_group("", "", ""), None);
        assert_eq!(of_process(None, "VmSize:\t  1 kB\n"), None);
        assert_eq!(of_machine(""), None);
    }
}
