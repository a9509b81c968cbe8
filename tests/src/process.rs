//! The real binaries as child processes: found beside the test, watched by their logs, killed when dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take before the test fails; never waited for when all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The path of one of the workspace's binaries, built beside the running test.
pub fn binary(name: &str) -> PathBuf {
    let program = std::env::current_exe().expect("a running program knows its file");
    let beside = program.parent().expect("a program lies in a folder");
    // A test lies one folder deeper than a benchmark.
    let folder = if beside.ends_with("deps") { beside.parent().expect("deps lies in a folder") } else { beside };
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: build it with `cargo build --release --workspace`", path.display());
    path
}

/// A command for one of the workspace's binaries, free of this process's own variables for it.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(binary(name));
    let is_ours = |variable: &str| variable.starts_with("INFERQ_") || variable.starts_with("OTEL_");
    for (variable, _) in std::env::vars().filter(|(variable, _)| is_ours(variable)) {
        command.env_remove(variable);
    }
    command
}

/// A command for `inferq-worker` on this queue file, with a health endpoint on some free port.
pub fn worker_command(queue: &Path, flags: &[&str]) -> Command {
    worker_on(&format!("sqlite://{}", queue.display()), flags)
}

/// A command for `inferq-worker` on the queue at this address, with a health endpoint on some free port.
pub fn worker_on(url: &str, flags: &[&str]) -> Command {
    let mut command = command("inferq-worker");
    command.args(["--health", "127.0.0.1:0", "--queue", url]).args(flags);
    command
}

/// A running `inferq-worker` on an embedded queue.
pub struct WorkerProcess {
    child: Child,
    lines: Receiver<String>,
    /// Where it serves its health.
    pub health: SocketAddr,
}

impl WorkerProcess {
    /// Starts a worker with the echo engine on the queue file, with further flags, and waits until it is bound.
    pub fn start(queue: &Path, flags: &[&str]) -> Self {
        Self::start_with(queue, &[&["--engine", "echo"], flags].concat())
    }

    /// Starts a worker on the queue file, and waits until its health endpoint is bound.
    pub fn start_with(queue: &Path, flags: &[&str]) -> Self {
        Self::spawn(&mut worker_command(queue, flags))
    }

    /// Starts what [`worker_command`] made, and waits until its health endpoint is bound.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the worker's binary can be started");
        let lines = read_lines(child.stderr.take().expect("stderr is piped"));
        let bound = wait_for(&lines, "health endpoint bound");
        let health = bound["address"].as_str().expect("the log names the address").parse().expect("an address");
        Self { child, lines, health }
    }

    /// Waits until the worker logs this message, and returns the line.
    pub fn until_logged(&self, message: &str) -> Value {
        wait_for(&self.lines, message)
    }

    /// Its number in the system.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged since it was last asked.
    pub fn logged(&self) -> impl Iterator<Item = String> {
        self.lines.try_iter()
    }

    /// Ends the process at once, as a crash does.
    pub fn kill(mut self) {
        self.child.kill().expect("the worker can be killed");
        self.child.wait().expect("the worker can be waited for");
    }

    /// Asks the process to stop.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the worker can be signalled");
    }

    /// Waits until the process has ended by itself.
    pub fn wait(mut self) -> ExitStatus {
        // Its stderr closes when it ends; reading to the end bounds the wait.
        while self.lines.recv_timeout(PATIENCE).is_ok() {}
        self.child.wait().expect("the worker can be waited for")
    }

    /// Waits until the process has ended, killing it first if it should not; for workers that are expected to crash.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the worker can be asked").is_some()
    }

    /// The most resident memory that the process ever had, in KiB.
    ///
    /// # Errors
    /// Where the system keeps no such figure.
    pub fn peak_kib(&self) -> anyhow::Result<u64> {
        peak_kib(&self.child)
    }

    /// One of the system's figures about the process, such as `VmPeak:`, in KiB.
    ///
    /// # Errors
    /// Where the system keeps no such figure.
    pub fn figure_kib(&self, name: &str) -> anyhow::Result<u64> {
        figure_kib(&self.child, name)
    }

    /// The status code and body of a GET on the health endpoint.
    pub fn get(&self, path: &str) -> (u16, String) {
        get(self.health, path)
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The most resident memory that a running process ever had, in KiB.
///
/// # Errors
/// Where the system keeps no such figure, and when the process has ended.
pub fn peak_kib(process: &Child) -> anyhow::Result<u64> {
    figure_kib(process, "VmHWM:")
}

fn figure_kib(process: &Child, name: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let figure = line.and_then(|line| line.split_whitespace().next()).ok_or_else(|| anyhow::anyhow!("no {name}"))?;
    Ok(figure.parse()?)
}

/// The status code and body of a GET.
pub fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the endpoint is bound");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").expect("the request is sent");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("the response is read");
    let code = response.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    let body = response.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (code, body)
}

/// Runs one test of this program again, with the variable `word` set, in a process that is killed as soon as it has printed a
/// line that begins with that word. Returns the line, without the word; `None` if it ended without one.
pub fn killed_after(test: &str, word: &str) -> Option<String> {
    let mut holder = Command::new(std::env::current_exe().expect("a running program knows its file"))
        .args(["--exact", test, "--nocapture"])
        .env(word, "yes")
        .stdout(Stdio::piped())
        .spawn()
        .expect("a test program runs");
    let mut lines = BufReader::new(holder.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
    let said = lines.find_map(|line| line.strip_prefix(word).map(|rest| rest.trim().to_owned()));
    // It may have ended by itself.
    let _ = holder.kill();
    let _ = holder.wait();
    said
}

/// The lines of a child's output, as they come.
pub(crate) fn read_lines(stderr: impl Read + Send + 'static) -> Receiver<String> {
    let (tx, rx) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if tx.send(line).is_err() {
                return;
            }
        }
    });
    rx
}

fn wait_for(lines: &Receiver<String>, message: &str) -> Value {
    let mut seen = Vec::new();
    loop {
        let Ok(line) = lines.recv_timeout(PATIENCE) else {
            panic!("the worker never logged {message:?}; it logged:\n{}", seen.join("\n"));
        };
        match serde_json::from_str::<Value>(&line) {
            Ok(value) if value["message"] == message => return value,
            _ => seen.push(line),
        }
    }
}
