//! Real RabbitMQ servers for tests: started on free ports with a node, a cookie and a folder of their own, and gone with
//! the process that started them, however that ends.
//!
//! Out: [`RabbitmqServer::shared`], one for the whole process, where each test takes a virtual host of its own, and
//! [`RabbitmqServer::own`], for tests that stop or kill it. The server's own Erlang shell, on its stdin, is how it is
//! told things: an answer takes a millisecond, `rabbitmqctl` half a second. When that pipe closes, the server ends.
//! It meets no other server, uses none that it did not start, and never listens on more than loopback.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use rand::RngExt;

use crate::certificates::Identity;
use crate::process::PATIENCE;

/// What to do where there is none.
pub const HOW_TO_INSTALL: &str = "rabbitmq-server is missing: apt install rabbitmq-server (the service need not run)";

/// Where the server's program may lie. Debian's in /usr/sbin changes the user and forgets its surroundings.
const PROGRAMS: [&str; 2] = ["/usr/lib/rabbitmq/bin/rabbitmq-server", "/opt/rabbitmq/sbin/rabbitmq-server"];

/// Begins the line of an answer, among what the shell and the server print.
const ANSWER: &str = "@@ ";

/// Runs the name service of Erlang's nodes beside the server, and outlives the test by as long as it takes to clean up:
/// its stdin ends with the process that holds the other end.
const GUARD: &str = r#"epmd -port "$1" & epmd=$!
while read -r pid; do server=$pid; done
[ -z "$server" ] || kill -9 "$server" 2> /dev/null
kill -9 "$epmd"; wait
rm -rf "$2""#;

/// One server, running or not.
pub struct RabbitmqServer {
    folder: PathBuf,
    ports: Ports,
    node: Mutex<Option<Node>>,
    guard: Mutex<Child>,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    amqp: u16,
    amqps: u16,
    distribution: u16,
    epmd: u16,
}

/// A running server's process, and the way to talk to it.
struct Node {
    child: Child,
    shell: ChildStdin,
    answers: Receiver<String>,
}

impl RabbitmqServer {
    /// The one that all tests of this process share, started when first asked for. `None` where none is installed, with
    /// one line that says what to install; with CI set that is a failure.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<RabbitmqServer>> = OnceLock::new();
        SHARED.get_or_init(Self::own).as_ref()
    }

    /// One alone, for who stops or kills it; it ends when dropped. `None` as for [`shared`](Self::shared).
    pub fn own() -> Option<Self> {
        Self::own_with(None)
    }

    /// As [`own`](Self::own), and it speaks TLS as well, on a port of its own.
    pub fn own_with_tls(identity: &Identity) -> Option<Self> {
        Self::own_with(Some(identity))
    }

    fn own_with(identity: Option<&Identity>) -> Option<Self> {
        let Some(program) = program() else {
            assert!(std::env::var_os("CI").is_none(), "{HOW_TO_INSTALL}");
            eprintln!("left out: {HOW_TO_INSTALL}");
            return None;
        };
        // The guard removes it.
        let folder = tempfile::Builder::new().prefix("inferq-rabbitmq-").tempdir().expect("a folder").keep();
        let ports = Ports::free();
        configure(&folder, ports, identity);
        let guard = Command::new("sh")
            .args(["-c", GUARD, "sh", &ports.epmd.to_string()])
            .arg(&folder)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("a shell");
        let server = Self { folder, ports, node: Mutex::default(), guard: Mutex::new(guard) };
        server.start_program(program);
        Some(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.amqp).into()
    }

    /// The port at which it speaks TLS, if it does.
    pub fn tls_port(&self) -> u16 {
        self.ports.amqps
    }

    /// Where its data and its log lie; it goes with it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A virtual host that nobody else knows: its name.
    pub fn virtual_host(&self) -> String {
        let name = format!("test-{:012x}", rand::rng().random::<u64>() >> 16);
        let added = self.evaluate(&format!(
            "H = <<\"{name}\">>, U = <<\"guest\">>, A = <<\".*\">>, ok = rabbit_vhost:add(H, U), \
             rabbit_auth_backend_internal:set_permissions(U, H, A, A, A, U)"
        ));
        assert_eq!(added, "ok");
        name
    }

    /// The address of a virtual host on this server.
    pub fn url(&self, virtual_host: &str) -> String {
        url(self.address(), virtual_host)
    }

    /// Its version, as it says it.
    pub fn version(&self) -> String {
        self.evaluate("list_to_atom(rabbit_misc:version())").trim_matches('\'').to_owned()
    }

    /// Starts it again on the data that it has, and waits until clients can work.
    pub fn start(&self) {
        self.start_program(program().expect("it was there before"));
    }

    fn start_program(&self, program: &str) {
        let node = Node::spawn(server_command(program, &self.folder, self.ports));
        writeln!(self.guard.lock().expect("no panic holds it").stdin.as_mut().expect("piped"), "{}", node.child.id())
            .expect("the guard reads");
        *self.node.lock().expect("no panic holds it") = Some(node);
        // Before its boot has begun there is no node of the name, and asking it fails at once.
        let up = self.evaluate(
            "(fun W(0) -> never; W(N) -> case catch rabbit:await_startup(node(), false, 60000) of \
             ok -> ok; _ -> timer:sleep(50), W(N - 1) end end)(1200)",
        );
        assert_eq!(up, "ok", "the server does not start: {}", self.log());
    }

    /// Stops it as an operator does: clients are told, and data is written.
    pub fn stop(&self) {
        let Some(mut node) = self.node.lock().expect("no panic holds it").take() else { return };
        writeln!(node.shell, "init:stop().").expect("the shell reads");
        node.child.wait().expect("it ends");
    }

    /// Ends it at once, as `kill -9` does.
    ///
    /// 3.10 writes which quorum queues there are with minutes of delay, and forgets all that a queue had confirmed when it is
    /// killed before that. Tests are not about such a server's first minutes, so that file is written first.
    pub fn kill(&self) {
        if self.node.lock().expect("no panic holds it").is_none() {
            return;
        }
        self.evaluate("[ok = dets:sync(Table) || Table <- dets:all()]");
        if let Some(node) = self.node.lock().expect("no panic holds it").take() {
            node.end();
        }
    }

    /// Closes all its clients' connections, as `rabbitmqctl close_all_connections` does. Returns how many.
    pub fn close_all_connections(&self) -> usize {
        let closed = self.evaluate(
            "length([rabbit_networking:close_connection(P, \"closed by a test\") || P <- rabbit_networking:connections()])",
        );
        closed.parse().unwrap_or_else(|_| panic!("connections are not closed: {closed}"))
    }

    /// Lets new connections' deliveries be held for no longer than `held`, as `consumer_timeout` does, and has that looked
    /// at often.
    pub fn consumer_timeout(&self, held: Duration) {
        let set = |name: &str, value: u128| format!("application:set_env(rabbit, {name}, {value})");
        let settings = [set("consumer_timeout", held.as_millis()), set("channel_tick_interval", 100)];
        assert_eq!(self.evaluate(&settings.join(", ")), "ok");
    }

    /// Raises or clears the alarm for memory, as `rabbitmqctl set_vm_memory_high_watermark` does: publishers are blocked.
    pub fn memory_alarm(&self, on: bool) {
        let fraction = if on { "0.000001" } else { "0.4" };
        assert_eq!(self.evaluate(&format!("vm_memory_monitor:set_vm_memory_high_watermark({fraction})")), "ok");
    }

    /// What an Erlang expression comes to on the server, in Erlang's notation and on one line.
    ///
    /// # Panics
    /// When the server doesn't run, or doesn't answer in time.
    pub fn evaluate(&self, expression: &str) -> String {
        let mut node = self.node.lock().expect("no panic holds it");
        let node = node.as_mut().expect("the server runs");
        // In a function of its own: the shell would remember what its names stand for.
        writeln!(node.shell, "io:format(\"~n{ANSWER}~0p~n\", [catch (fun() -> {expression} end)()]).")
            .expect("the shell reads");
        node.answers.recv_timeout(PATIENCE).unwrap_or_else(|e| match e {
            RecvTimeoutError::Timeout => panic!("the server does not answer {expression}"),
            RecvTimeoutError::Disconnected => panic!("the server ended: {}", self.log()),
        })
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("log").join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl fmt::Debug for RabbitmqServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RabbitmqServer({})", self.address())
    }
}

impl Drop for RabbitmqServer {
    fn drop(&mut self) {
        if let Some(node) = self.node.get_mut().ok().and_then(Option::take) {
            node.end();
        }
        if let Ok(mut guard) = self.guard.lock() {
            drop(guard.stdin.take());
            // It ends when it has cleaned up.
            let _ = guard.wait();
        }
    }
}

impl Ports {
    /// Four that nobody listens on, below those that the system gives to clients: a server that is down for a moment
    /// would find its port taken otherwise.
    fn free() -> Self {
        let first = (0..1_000)
            .map(|_| rand::rng().random_range(10_000..30_000))
            .find(|first| (0..4).all(|offset| TcpListener::bind((Ipv4Addr::LOCALHOST, first + offset)).is_ok()));
        let first: u16 = first.expect("some port is free");
        Self { amqp: first, distribution: first + 1, epmd: first + 2, amqps: first + 3 }
    }
}

impl Node {
    fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the server's program runs");
        let shell = child.stdin.take().expect("it is piped");
        let output = child.stdout.take().expect("it is piped");
        let (tx, answers) = channel();
        std::thread::spawn(move || read_answers(output, &tx));
        Self { child, shell, answers }
    }

    fn end(mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads to the end, or the server would wait for room in the pipe.
fn read_answers(output: impl Read, tx: &Sender<String>) {
    // Terminal titles are not UTF-8 everywhere.
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        if let Some(answer) = String::from_utf8_lossy(&line).strip_prefix(ANSWER) {
            // Nobody waits for it when the server is being dropped.
            let _ = tx.send(answer.trim_end().to_owned());
        }
    }
}

/// The address of a virtual host behind this address, which may be a relay's.
pub fn url(address: SocketAddr, virtual_host: &str) -> String {
    format!("amqp://guest:guest@{address}/{virtual_host}")
}

/// The server's program, if one is installed.
fn program() -> Option<&'static str> {
    PROGRAMS.into_iter().find(|program| Path::new(program).exists())
}

fn configure(folder: &Path, ports: Ports, identity: Option<&Identity>) {
    let Ports { amqp, amqps, .. } = ports;
    // The log of a quorum queue's members is in memory too, and 512 MB of it is much for a test.
    let mut settings = format!(
        "listeners.tcp.1 = 127.0.0.1:{amqp}\nlog.console = false\nlog.file = server.log\n\
         disk_free_limit.absolute = 50MB\nraft.wal_max_size_bytes = 67108864\n"
    );
    if let Some(Identity { authority, certificate, key }) = identity {
        settings += &format!("listeners.ssl.1 = 127.0.0.1:{amqps}\n");
        for (name, pem) in [("cacertfile", authority), ("certfile", certificate), ("keyfile", key)] {
            let path = folder.join(name).with_extension("pem");
            std::fs::write(&path, pem).expect("the folder takes files");
            settings += &format!("ssl_options.{name} = {}\n", path.display());
        }
    }
    std::fs::write(folder.join("rabbitmq.conf"), settings).expect("the folder takes files");
    std::fs::write(folder.join("enabled_plugins"), "[].\n").expect("the folder takes files");
}

/// The server in the foreground with its shell on stdin. Nothing of the machine's own configuration is read.
fn server_command(program: &str, folder: &Path, ports: Ports) -> Command {
    let mut command = Command::new(program);
    for (variable, _) in std::env::vars().filter(|(variable, _)| variable.starts_with("RABBITMQ_")) {
        command.env_remove(variable);
    }
    command
        // The cookie is made there.
        .env("HOME", folder)
        .env("ERL_EPMD_PORT", ports.epmd.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_ALLOW_INPUT", "true")
        .env("RABBITMQ_NODENAME", format!("inferq-{}@localhost", ports.amqp))
        .env("RABBITMQ_DIST_PORT", ports.distribution.to_string())
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.join("advanced.config"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("enabled_plugins"))
        .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
        .env("RABBITMQ_LOG_BASE", folder.join("log"))
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A signal for the test's group is not for it.
        .process_group(0);
    command
}
