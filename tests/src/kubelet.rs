//! What a kubelet does with one container: starts it, probes it over HTTP, keeps what it saw, and stops it with a grace
//! period.
//!
//! In: a command for `inferq-worker`, how often to probe, the grace. Out: a [`Pod`] and its history, and at the end an
//! [`End`]: how it ended, after how long, what the termination log held, what it logged. Until the startup probe has
//! succeeded there is no other; from SIGTERM on only readiness is probed, as in Kubernetes. It restarts nothing: a
//! container that a kubelet would restart is [`Seen::Condemned`], and that is for the caller to judge.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{PATIENCE, read_lines};

/// How soon the end of a process is noticed.
const GLANCE: Duration = Duration::from_millis(2);

/// One probe: how often, how long an answer may take, and how many failures in a row count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Between two.
    pub period: Duration,
    /// For an answer.
    pub timeout: Duration,
    /// In a row.
    pub failures: u32,
}

/// The three probes of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probes {
    /// `/livez`, until it has succeeded once.
    pub startup: Probe,
    /// `/livez`.
    pub liveness: Probe,
    /// `/healthz`.
    pub readiness: Probe,
}

impl Probes {
    /// As k8s/base/inferq-worker-deployment.yaml has them.
    pub fn deployed() -> Self {
        let probe = |period_s, timeout_s, failures| Probe {
            period: Duration::from_secs(period_s),
            timeout: Duration::from_secs(timeout_s),
            failures,
        };
        Self { startup: probe(2, 2, 30), liveness: probe(10, 5, 3), readiness: probe(5, 5, 2) }
    }

    /// All of them so often, and the first failure of readiness counts: so that no phase passes unseen.
    pub fn every(period: Duration) -> Self {
        let Self { startup, liveness, readiness } = Self::deployed();
        Self {
            startup: Probe { period, ..startup },
            // Three answers that a busy machine delays are no reason to restart anything.
            liveness: Probe { period, failures: 30, ..liveness },
            readiness: Probe { period, failures: 1, ..readiness },
        }
    }
}

/// What a kubelet sees of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The startup probe has succeeded.
    Started,
    /// It is ready.
    Ready,
    /// It is ready no longer.
    NotReady,
    /// A kubelet would end it and start it again.
    Condemned,
    /// It was asked to stop.
    Stopping,
    /// Its process is gone.
    Ended,
}

/// One entry of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Since the process was started.
    pub at: Duration,
    /// What.
    pub seen: Seen,
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By itself, with this code.
    Exited(i32),
    /// By SIGKILL at the end of grace.
    Killed,
    /// By some other signal that nobody here sent.
    Crashed,
}

impl std::fmt::Display for How {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(formatter, "{code}"),
            Self::Killed => write!(formatter, "killed"),
            Self::Crashed => write!(formatter, "crashed"),
        }
    }
}

/// All that is left of a container.
#[derive(Debug, Clone)]
pub struct End {
    /// How.
    pub how: How,
    /// From SIGTERM to the end of the process.
    pub took: Duration,
    /// What the termination log held.
    pub word: String,
    /// What was seen.
    pub history: Vec<Event>,
    /// What it logged.
    pub lines: Vec<String>,
}

impl End {
    /// How often it logged this message.
    pub fn logged(&self, message: &str) -> usize {
        self.messages().filter(|logged| logged == message).count()
    }

    /// How often it logged this message before it first logged the other.
    pub fn logged_before(&self, message: &str, other: &str) -> usize {
        self.messages().take_while(|logged| logged != other).filter(|logged| logged == message).count()
    }

    fn messages(&self) -> impl Iterator<Item = String> {
        let message = |line: &String| serde_json::from_str::<Value>(line).ok()?["message"].as_str().map(str::to_owned);
        self.lines.iter().filter_map(message)
    }
}

/// The history, and who waits for something to appear in it.
#[derive(Debug)]
struct History {
    born: Instant,
    events: Mutex<Vec<Event>>,
    more: Condvar,
}

impl History {
    fn add(&self, seen: Seen) {
        self.events.lock().expect("no panic holds it").push(Event { at: self.born.elapsed(), seen });
        self.more.notify_all();
    }

    fn until(&self, seen: Seen) {
        let events = self.events.lock().expect("no panic holds it");
        let is_missing = |events: &mut Vec<Event>| events.iter().all(|event| event.seen != seen);
        let (events, waited) = self.more.wait_timeout_while(events, PATIENCE, is_missing).expect("no panic holds it");
        assert!(!waited.timed_out(), "{seen:?} was never seen, but {events:?}");
    }
}

/// A container that runs, or has ended and not been asked how.
#[derive(Debug)]
pub struct Pod {
    child: Child,
    log: Receiver<String>,
    lines: Vec<String>,
    health: SocketAddr,
    history: Arc<History>,
    terminating: Arc<AtomicBool>,
    asked: Option<Instant>,
    prober: Prober,
    folder: TempDir,
}

/// The thread that probes.
#[derive(Debug)]
struct Prober {
    /// Dropped to end it.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pod {
    /// Starts a container. The command is one of [`crate::process::worker_on`], which has it bind to some free port.
    ///
    /// # Panics
    /// When it does not bind.
    pub fn start(mut command: Command, probes: Probes) -> Self {
        // A kubelet makes the file, the container writes to it.
        let folder = TempDir::new().expect("a temporary folder");
        let word = termination_log(&folder);
        std::fs::write(&word, "").expect("the folder takes files");
        command.arg("--termination-log").arg(word);
        let history = History { born: Instant::now(), events: Mutex::default(), more: Condvar::new() };
        let history = Arc::new(history);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the worker's binary can be started");
        let log = read_lines(child.stderr.take().expect("stderr is piped"));
        let mut lines = Vec::new();
        let bound = wait_for(&log, &mut lines, "health endpoint bound");
        let health = bound["address"].as_str().expect("the log names the address").parse().expect("an address");
        let terminating = Arc::new(AtomicBool::new(false));
        let prober = Prober::start(health, probes, history.clone(), terminating.clone());
        Self { child, log, lines, health, history, terminating, asked: None, prober, folder }
    }

    /// Waits until the container logs this message, beyond what was waited for before, and returns the line.
    ///
    /// # Panics
    /// When it doesn't.
    pub fn until_logged(&mut self, message: &str) -> Value {
        wait_for(&self.log, &mut self.lines, message)
    }

    /// Waits until the probes have shown this.
    ///
    /// # Panics
    /// When they don't.
    pub fn until_seen(&self, seen: Seen) {
        self.history.until(seen);
    }

    /// Waits until what `/status` says is as it should be.
    ///
    /// # Panics
    /// When it never is.
    pub fn until_status(&self, is: impl Fn(&Value) -> bool) {
        let since = Instant::now();
        loop {
            let (_, body) = crate::process::get(self.health, "/status");
            if serde_json::from_str(&body).is_ok_and(|status| is(&status)) {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "the status stays {body}");
            std::thread::sleep(GLANCE);
        }
    }

    /// Sends SIGTERM. From now on the grace period runs.
    pub fn terminate(&mut self) {
        self.terminating.store(true, Ordering::Release);
        self.history.add(Seen::Stopping);
        self.asked = Some(Instant::now());
        self.signal(Signal::TERM);
    }

    /// Sends it a signal that no kubelet sends.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the worker can be signalled");
    }

    /// Waits for the end: the container's own, or SIGKILL when so long has passed since SIGTERM, which is sent now if
    /// it was not before.
    pub fn end(mut self, grace: Duration) -> End {
        if self.asked.is_none() {
            self.terminate();
        }
        let asked = self.asked.expect("it is asked above");
        let mut killed = false;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("the worker can be asked") {
                break status;
            }
            if asked.elapsed() >= grace && !killed {
                killed = true;
                self.child.kill().expect("the worker can be killed");
            }
            std::thread::sleep(GLANCE);
        };
        let took = asked.elapsed();
        self.history.add(Seen::Ended);
        self.prober.end();
        // The pipe ends with the process.
        self.lines.extend(self.log.iter());
        let history = self.history.events.lock().expect("no panic holds it").clone();
        let word = std::fs::read_to_string(termination_log(&self.folder)).expect("it was written when it began");
        End { how: how(status, killed), took, word, history, lines: std::mem::take(&mut self.lines) }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.prober.end();
    }
}

fn termination_log(folder: &TempDir) -> PathBuf {
    folder.path().join("termination-log")
}

fn how(status: ExitStatus, killed: bool) -> How {
    match status.code() {
        // One that ended in the instant of SIGKILL ended by itself.
        Some(code) => How::Exited(code),
        None if killed => How::Killed,
        None => How::Crashed,
    }
}

fn wait_for(log: &Receiver<String>, lines: &mut Vec<String>, message: &str) -> Value {
    loop {
        let Ok(line) = log.recv_timeout(PATIENCE) else {
            panic!("the worker never logged {message:?}; it logged:\n{}", lines.join("\n"));
        };
        let value = serde_json::from_str::<Value>(&line).ok();
        lines.push(line);
        if let Some(value) = value.filter(|value| value["message"] == message) {
            return value;
        }
    }
}

impl Prober {
    fn start(health: SocketAddr, probes: Probes, history: Arc<History>, terminating: Arc<AtomicBool>) -> Self {
        let (end, ended) = channel();
        let thread = std::thread::spawn(move || probe(health, probes, &history, &terminating, &ended));
        Self { end: Some(end), thread: Some(thread) }
    }

    fn end(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("probing does not panic");
        }
    }
}

/// Probes whenever it is time, until told to end.
fn probe(health: SocketAddr, probes: Probes, history: &History, terminating: &AtomicBool, ended: &Receiver<()>) {
    let mut judge = Judge::new(probes);
    let mut due = [Instant::now(); 3];
    loop {
        let stopping = terminating.load(Ordering::Acquire);
        let (kind, at) = judge
            .kinds(stopping)
            .iter()
            .map(|kind| (*kind, due[*kind as usize]))
            .min_by_key(|(_, at)| *at)
            .expect("there is always one");
        let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(at.saturating_duration_since(Instant::now())) else {
            return;
        };
        let Probe { period, timeout, .. } = judge.probe(kind);
        let success = answers_200(health, kind.path(), timeout);
        // What is answered after SIGTERM to a probe of before is not judged, as there is none any more.
        if kind == Kind::Readiness || !terminating.load(Ordering::Acquire) {
            judge.judge(kind, success).into_iter().for_each(|seen| history.add(seen));
        }
        due[kind as usize] = at.max(Instant::now() - period) + period;
    }
}

/// Whether a GET is answered in time, and by 200 to 399, which is what counts as success.
fn answers_200(health: SocketAddr, path: &str, timeout: Duration) -> bool {
    let asked = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&health, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: kubelet\r\nUser-Agent: kube-probe\r\nConnection: close\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        let code = response.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok(code.is_some_and(|code: u16| (200..400).contains(&code)))
    };
    asked().unwrap_or(false)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn path(self) -> &'static str {
        match self {
            Self::Startup | Self::Liveness => "/livez",
            Self::Readiness => "/healthz",
        }
    }
}

/// What probes come to. Pure.
#[derive(Debug)]
struct Judge {
    probes: Probes,
    started: bool,
    ready: bool,
    condemned: bool,
    /// In a row, by kind.
    failures: [u32; 3],
}

impl Judge {
    fn new(probes: Probes) -> Self {
        Self { probes, started: false, ready: false, condemned: false, failures: [0; 3] }
    }

    fn probe(&self, kind: Kind) -> Probe {
        match kind {
            Kind::Startup => self.probes.startup,
            Kind::Liveness => self.probes.liveness,
            Kind::Readiness => self.probes.readiness,
        }
    }

    /// What is probed now.
    fn kinds(&self, stopping: bool) -> &'static [Kind] {
        match (self.started, stopping) {
            (_, true) => &[Kind::Readiness],
            (false, false) => &[Kind::Startup],
            (true, false) => &[Kind::Liveness, Kind::Readiness],
        }
    }

    fn judge(&mut self, kind: Kind, success: bool) -> Option<Seen> {
        let failures = &mut self.failures[kind as usize];
        *failures = if success { 0 } else { *failures + 1 };
        let failed = *failures >= self.probe(kind).failures;
        match kind {
            Kind::Startup if success => {
                self.started = true;
                Some(Seen::Started)
            }
            Kind::Readiness if success != self.ready && (success || failed) => {
                self.ready = success;
                Some(if success { Seen::Ready } else { Seen::NotReady })
            }
            Kind::Startup | Kind::Liveness if failed && !self.condemned => {
                self.condemned = true;
                Some(Seen::Condemned)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(judge: &mut Judge, kind: Kind, answers: &[bool]) -> Vec<Seen> {
        answers.iter().filter_map(|success| judge.judge(kind, *success)).collect()
    }

    #[test]
    fn nothing_but_startup_is_probed_before_it_has_succeeded_and_nothing_but_readiness_once_it_stops() {
        let mut judge = Judge::new(Probes::deployed());
        assert_eq!(judge.kinds(false), [Kind::Startup]);
        assert_eq!(judged(&mut judge, Kind::Startup, &[false, true]), [Seen::Started]);
        assert_eq!(judge.kinds(false), [Kind::Liveness, Kind::Readiness]);
        assert_eq!(judge.kinds(true), [Kind::Readiness]);
    }

    #[test]
    fn failures_count_in_a_row_and_each_change_is_told_once() {
        let mut judge = Judge::new(Probes::deployed());
        let answers = [false, true, true, false, true, false, false, false, true];
        assert_eq!(judged(&mut judge, Kind::Readiness, &answers), [Seen::Ready, Seen::NotReady, Seen::Ready]);
        let answers = [false, false, true, false, false, false, false];
        assert_eq!(judged(&mut judge, Kind::Liveness, &answers), [Seen::Condemned]);
    }

    #[test]
    fn a_container_that_never_starts_is_condemned() {
        let mut judge = Judge::new(Probes::deployed());
        assert_eq!(judged(&mut judge, Kind::Startup, &[false; 29]), []);
        assert_eq!(judged(&mut judge, Kind::Startup, &[false]), [Seen::Condemned]);
    }
}
