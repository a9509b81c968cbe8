//! Planted faults, to show that the simulation finds them. Compiled to nothing without the feature `mutants`.

#[cfg(feature = "mutants")]
use std::cell::Cell;

#[cfg(feature = "mutants")]
thread_local! {
    static ACTIVE: Cell<&'static str> = const { Cell::new("") };
}

/// Switches one planted fault on for this thread, or all off with an empty name.
#[cfg(feature = "mutants")]
pub fn plant(name: &'static str) {
    ACTIVE.set(name);
}

/// Whether the fault of this name is planted on this thread.
#[cfg(feature = "mutants")]
pub fn active(name: &str) -> bool {
    ACTIVE.get() == name
}

/// Never: this build has no planted faults.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub fn active(_name: &str) -> bool {
    false
}
