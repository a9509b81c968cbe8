//! The clocks of the embedded queue: one that leases are measured by, one for people.
//!
//! Out: milliseconds since the machine's boot, the boot's id, milliseconds since 1970. Leases must not move when
//! somebody sets the wall clock, and must run on while the machine is suspended: hence the boot clock, which every
//! process of a machine shares. It never reads a time zone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds on the clock of leases and delays. Only comparable under one [`boot_id`].
#[cfg(target_os = "linux")]
pub(super) fn now_ms() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// Milliseconds on the clock of leases and delays: without a boot clock and a boot's id, the wall clock.
#[cfg(not(target_os = "linux"))]
pub(super) fn now_ms() -> i64 {
    wall_ms()
}

/// What tells one boot of this machine from another.
#[cfg(target_os = "linux")]
pub(super) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// The wall clock knows no boots.
#[cfg(not(target_os = "linux"))]
pub(super) fn boot_id() -> String {
    String::new()
}

/// Milliseconds since 1970.
pub(super) fn wall_ms() -> i64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A duration in whole milliseconds, the longest there is if it has more.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The first millisecond that is at least `after` later than `now`, which may be almost over.
pub(super) fn later(now: i64, after: Duration) -> i64 {
    now.saturating_add(millis(after)).saturating_add(1)
}
