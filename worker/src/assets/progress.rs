//! A bar of bytes on stderr where that is a terminal, and nothing elsewhere.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar up to so many bytes; it goes when dropped.
pub(super) struct Bytes(ProgressBar);

impl Bytes {
    /// Nothing done yet.
    pub(super) fn of(total: u64) -> Self {
        let bar = ProgressBar::new(total);
        let template = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left  {msg}";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is well formed"));
        Self(bar)
    }

    /// So many more are done.
    pub(super) fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// This file is being worked on.
    pub(super) fn on(&self, name: &str) {
        self.0.set_message(name.to_owned());
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Bytes as people read them.
pub(super) fn human(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
