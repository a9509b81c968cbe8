//! How many heaps the allocator keeps in this process.
//!
//! Called by both binaries first of all. glibc keeps up to eight heaps for each core, and what one thread allocates and
//! another frees spreads over all of them: memory grew for as long as there was work. So one heap serves eight cores.

/// The cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Sets the bound. Must run before there are other threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn bound() {
    let heaps = i32::try_from(cores().div_ceil(8)).unwrap_or(i32::MAX);
    // SAFETY: it sets a number that the allocator reads when a thread allocates for the first time.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, heaps) };
}

/// Sets the bound where there is one to set.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn bound() {}
