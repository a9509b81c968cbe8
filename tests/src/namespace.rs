//! Tests inside namespaces of their own, where they may mount small or read-only disks without being root.
//!
//! In: the name of a test. Out: the same test, run again by this program inside a user and mount namespace. Needs
//! Linux and `unshare` of util-linux; where the system allows none, a test is left out by one line, but never where CI
//! is set.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Set inside.
const INSIDE: &str = "INFERQ_TEST_INSIDE";

/// Whether a user namespace can be had. If not, says that `what` is left out.
///
/// # Panics
/// Where there is none and CI is set.
pub fn is_available(what: &str) -> bool {
    let tried = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).output();
    let why = match tried {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    assert!(std::env::var_os("CI").is_none(), "{what} needs user namespaces: {why}");
    eprintln!("left out: {what} needs user namespaces ({why})");
    false
}

/// Whether this is the test named `test` inside its namespaces. Outside it runs that, and nothing else is left to do.
///
/// # Panics
/// When the test inside fails.
pub fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !is_available(test) {
        return false;
    }
    let program = std::env::current_exe().expect("a running program knows its file");
    let ran = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .expect("unshare was there just now");
    let said = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// A small disk, in memory.
pub struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    /// Mounts one of so many bytes.
    ///
    /// # Panics
    /// Outside of a namespace.
    pub fn of_bytes(bytes: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder to mount on");
        mount(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"], folder.path());
        Self { folder }
    }

    /// A path on it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Leaves no room on it.
    pub fn fill(&self) {
        let mut file = std::fs::File::create(self.path("ballast")).expect("an empty file fits");
        for size in [1 << 16, 1 << 12, 1] {
            // Ends when nothing more fits.
            while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        }
    }

    /// Makes room again.
    pub fn free(&self) {
        std::fs::remove_file(self.path("ballast")).expect("the disk was filled");
    }

    /// Lets nobody write to it any more. Nobody may have a file open for writing.
    pub fn make_read_only(&self) {
        mount(&["-o", "remount,ro"], self.folder.path());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is still open goes with the namespace.
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
    }
}

fn mount(arguments: &[&str], place: &Path) {
    let mounted = Command::new("mount").args(arguments).arg(place).output().expect("mount can be started");
    assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
}
