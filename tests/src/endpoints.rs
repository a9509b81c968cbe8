//! Real places for objects: a folder, an S3 server (moto, a child process), and the same behind a proxy that speaks as
//! Google's does. Each is a [`Store`] of the test's own; faults can be put between it and its client.
//!
//! moto comes from PyPI by `tests/tools/moto.sh`. Where it can't be had, [`Endpoints::start`] says so in one line and is
//! `None`; with CI set that is a failure.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use inferq_shared::bucket::{Buckets, Uri};
use rand::RngExt;
use serde_json::json;
use tempfile::TempDir;

mod proxy;

pub use self::proxy::{Dialect, Fault, Proxy};

/// A running S3 server.
pub struct Endpoints {
    moto: Child,
    address: SocketAddr,
}

/// A place for objects that nobody else knows.
pub struct Store {
    /// What speaks to it.
    pub buckets: Buckets,
    /// A prefix, empty at first.
    pub root: Uri,
    /// What stands between, if it is a server.
    pub proxy: Option<Proxy>,
    options: Vec<(String, String)>,
    _folder: Option<TempDir>,
}

impl Endpoints {
    /// Starts a server of the test's own on some free port.
    pub fn start() -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/moto.sh");
        let tool = Command::new(script).stderr(Stdio::inherit()).output().expect("a shell");
        assert!(tool.status.success(), "with CI set moto must be there");
        let python = String::from_utf8(tool.stdout).expect("a path");
        if python.is_empty() {
            eprintln!("left out: s3:// and gs:// against moto");
            return None;
        }
        let mut moto = Command::new(python.trim())
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python runs");
        let mut lines = BufReader::new(moto.stderr.take().expect("it is piped"));
        let address = address_in(&mut lines);
        // Read to the end, or the server would wait for room in the pipe.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Some(Self { moto, address })
    }

    /// An empty bucket, reached as S3.
    pub async fn s3(&self) -> Store {
        let proxy = Proxy::start(self.address, Dialect::Amazon).await;
        let options = [
            ("AWS_ENDPOINT", proxy.url()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        ];
        self.store("s3", proxy, options)
    }

    /// An empty bucket, reached as Google Cloud Storage.
    pub async fn gs(&self) -> Store {
        let proxy = Proxy::start(self.address, Dialect::Google).await;
        let key = json!({
            "gcs_base_url": proxy.url(), "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""
        });
        self.store("gs", proxy, [("GOOGLE_SERVICE_ACCOUNT_KEY", key.to_string())])
    }

    fn store<const N: usize>(&self, scheme: &str, proxy: Proxy, options: [(&str, String); N]) -> Store {
        let bucket = format!("test-{:012x}", rand::rng().random::<u64>() >> 16);
        self.make_bucket(&bucket);
        let options: Vec<_> = options.map(|(name, value)| (name.to_owned(), value)).into();
        let root = Uri::parse(&format!("{scheme}://{bucket}/some/folder/")).expect("an address");
        Store { buckets: Buckets::with_options(options.clone()), root, proxy: Some(proxy), options, _folder: None }
    }

    fn make_bucket(&self, bucket: &str) {
        let mut stream = TcpStream::connect(self.address).expect("the server listens");
        let head = format!(
            "PUT /{bucket} HTTP/1.1\r\nHost: s3.amazonaws.com\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.split(' ').nth(1) == Some("200"), "no bucket: {answer}");
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.moto.kill();
        let _ = self.moto.wait();
    }
}

/// Waits for the line in which the server says where it listens.
fn address_in(lines: &mut impl BufRead) -> SocketAddr {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        let size = lines.read_line(&mut line).expect("text");
        assert!(size > 0, "moto ended: {seen}");
        if let Some((_, address)) = line.trim().split_once("Running on http://") {
            return address.parse().expect("an address and port");
        }
        seen += &line;
    }
}

impl Store {
    /// An empty folder.
    pub fn file() -> Self {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().canonicalize().expect("its path").join("some/folder/");
        let root = Uri::from_path(&path).expect("an address");
        let buckets = Buckets::with_options([]);
        Self { buckets, root, proxy: None, options: Vec::new(), _folder: Some(folder) }
    }

    /// What a process needs in its environment to reach it.
    pub fn variables(&self) -> &[(String, String)] {
        &self.options
    }

    /// The same place through clients with a further option.
    pub fn with_option(&self, name: &str, value: &str) -> Buckets {
        let option = (name.to_owned(), value.to_owned());
        Buckets::with_options(self.options.iter().cloned().chain([option]))
    }

    /// An address in it.
    pub fn uri(&self, name: &str) -> Uri {
        self.root.join(name).expect("an address")
    }

    /// What stands between.
    ///
    /// # Panics
    /// When it is a folder.
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a server's store")
    }
}
