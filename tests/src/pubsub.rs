//! Google's Pub/Sub emulator for tests: started on a free port, and gone with the process that started it, however that
//! ends.
//!
//! Out: [`Emulator::shared`], one for the whole process, where each test takes a project of its own, and
//! [`Emulator::own`], for tests that kill or freeze it. It keeps everything in memory: a killed one starts empty. Filters
//! of subscriptions are accepted there and ignored. `tests/tools/pubsub_emulator.sh` finds it, and says what is missing.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, OnceLock};

use rand::RngExt;
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{PATIENCE, read_lines};

pub mod client;

/// What to do where there is none.
pub const HOW_TO_INSTALL: &str = "the Pub/Sub emulator or Java is missing: tests/tools/pubsub_emulator.sh says which";

/// What the emulator says when it can be used.
const STARTED: &str = "Server started";

/// Says which process the emulator is, and kills it when its stdin ends: when asked to, or with the process that holds the
/// other end. That works on a frozen one too.
const WARD: &str = r#""$0" "$1" 2>&1 & echo $!
read -r _
kill -9 $!; wait"#;

/// One emulator, running or not.
pub struct Emulator {
    port: u16,
    process: Mutex<Option<Process>>,
}

/// A running emulator.
struct Process {
    ward: Child,
    emulator: Pid,
    /// Read to the end, or the emulator would wait for room in the pipe.
    lines: Receiver<String>,
}

impl Emulator {
    /// The one that all tests of this process share, started when first asked for. `None` where none is installed, with
    /// one line that says what to install; with CI set that is a failure.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Emulator>> = OnceLock::new();
        SHARED.get_or_init(Self::own).as_ref()
    }

    /// One alone, for who kills or freezes it; it ends when dropped. `None` as for [`shared`](Self::shared).
    pub fn own() -> Option<Self> {
        if !is_installed() {
            eprintln!("left out: Pub/Sub");
            return None;
        }
        let emulator = Self { port: free_port(), process: Mutex::default() };
        emulator.start();
        Some(emulator)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The address of the queue `jobs` in this project.
    pub fn url(&self, project: &str) -> String {
        url(self.address(), project)
    }

    /// Starts it again, empty, and waits until clients can work.
    pub fn start(&self) {
        *self.process.lock().expect("no panic holds it") = Some(Process::start(self.port));
    }

    /// Ends it at once, and all that it held.
    pub fn kill(&self) {
        if let Some(process) = self.process.lock().expect("no panic holds it").take() {
            process.end();
        }
    }

    /// Stops it from running without closing anything, until [`thaw`](Self::thaw).
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.lock().expect("no panic holds it");
        let process = process.as_ref().expect("the emulator runs");
        kill_process(process.emulator, signal).expect("the emulator can be signalled");
    }

    /// What it has complained about since it was last asked.
    pub fn log(&self) -> Vec<String> {
        let process = self.process.lock().expect("no panic holds it");
        process.iter().flat_map(|process| process.lines.try_iter()).collect()
    }
}

impl fmt::Debug for Emulator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Emulator({})", self.address())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    fn start(port: u16) -> Self {
        let mut ward = Command::new("sh")
            .args(["-c", WARD])
            .arg(script())
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A signal for the test's group is not for it.
            .process_group(0)
            .spawn()
            .expect("a shell");
        let lines = read_lines(ward.stdout.take().expect("it is piped"));
        let first = lines.recv_timeout(PATIENCE).expect("the shell says who it is");
        let emulator = first.parse().ok().and_then(Pid::from_raw).expect("a process's number");
        let mut seen = Vec::new();
        while !seen.last().is_some_and(|line: &String| line.contains(STARTED)) {
            let line = lines.recv_timeout(PATIENCE);
            seen.push(line.unwrap_or_else(|_| panic!("the emulator does not start: {}", seen.join("\n"))));
        }
        Self { ward, emulator, lines }
    }

    fn end(mut self) {
        drop(self.ward.stdin.take());
        // It ends when the emulator has.
        let _ = self.ward.wait();
    }
}

/// A project that nobody else knows: its id.
pub fn project() -> String {
    format!("test-{:012x}", rand::rng().random::<u64>() >> 16)
}

/// The address of the queue `jobs` in a project behind this address, which may be a relay's.
pub fn url(address: SocketAddr, project: &str) -> String {
    format!("pubsub://{project}/jobs?endpoint={address}")
}

/// Whether the emulator can be started. With CI set it must.
fn is_installed() -> bool {
    let class_path = Command::new(script()).stderr(Stdio::inherit()).output().expect("a shell");
    assert!(class_path.status.success(), "{HOW_TO_INSTALL}, and with CI set they must be there");
    !class_path.stdout.is_empty()
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/pubsub_emulator.sh")
}

/// One that nobody listens on, below those that the system gives to clients: an emulator that is down for a moment would
/// find its port taken otherwise.
fn free_port() -> u16 {
    (0..1_000)
        .map(|_| rand::rng().random_range(10_000..30_000))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("some port is free")
}
