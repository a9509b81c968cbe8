//! The operator's commands for GKE, `k8s/gke/*.sh`, on stubs of the tools that they call.
//!
//! A stub (`fixtures/gke/stubs`) checks every word against what the tool itself takes (`flags.txt`, made from the tools), notes
//! the call, and answers from a small folder that the test lays out. So what is asserted is which calls a command makes, in
//! which order, and what it does when one of them fails; not what Google makes of them.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What each command needs of an ordinary machine.
const BASICS: &[&str] = &[
    "awk", "base64", "basename", "bash", "cat", "dirname", "env", "grep", "mkdir", "mktemp", "mv", "paste", "rm",
    "sed", "sleep", "sort", "touch", "tr", "wc",
];
const STUBS: &[&str] = &["docker", "gcloud", "git", "inferq-worker", "kubectl", "syft"];
/// Every command, with arguments that bring it to its first look at the cloud.
const COMMANDS: &[(&str, &[&str])] = &[
    ("create-cluster", &["--project", "p"]),
    ("create-node-pool", &["--project", "p", "--kind", "l4"]),
    ("push-images", &["--project", "p", "--tag", "t"]),
    ("upload-assets", &["MODEL", "--project", "p", "--bucket", "b"]),
    ("static-ip", &["--project", "p"]),
    ("certificate", &["managed", "--project", "p", "--domain", "a.example"]),
    ("grant-access", &["setup", "--project", "p"]),
    ("migrate-pool", &["old", "new", "--project", "p"]),
];

fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the tree").to_owned()
}

/// An operator's machine: a folder of tools, and what the stubs answer from.
struct Desk {
    folder: tempfile::TempDir,
    variables: HashMap<&'static str, String>,
}

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Desk {
    fn new() -> Self {
        Self::without(&[])
    }

    /// Some tools are not installed.
    fn without(missing: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::create_dir(folder.path().join("model")).unwrap();
        fs::write(folder.path().join("model/config.json"), "{}").unwrap();
        let desk = Self { folder, variables: HashMap::new() };
        for tool in BASICS {
            let paths = std::env::var_os("PATH").unwrap();
            let found = std::env::split_paths(&paths).map(|folder| folder.join(tool)).find(|path| path.exists());
            symlink(found.unwrap_or_else(|| panic!("{tool} is missing")), desk.path("bin").join(tool)).unwrap();
        }
        // Itself, where what is found by its name only leads to it by way of other tools.
        let python = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        symlink(String::from_utf8(python.stdout).unwrap().trim(), desk.path("bin/python3")).unwrap();
        for tool in STUBS.iter().filter(|tool| !missing.contains(tool)) {
            // A script of one line, so that a stub finds what lies beside it.
            let stub = tree().join("tests/fixtures/gke/stubs").join(tool);
            let path = desk.path("bin").join(tool);
            fs::write(&path, format!("#!/bin/sh\nexec '{}' \"$@\"\n", stub.display())).unwrap();
            let mut rights = fs::metadata(&path).unwrap().permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut rights, 0o755);
            fs::set_permissions(&path, rights).unwrap();
        }
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path("state").join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path("state").join(name)).unwrap_or_default()
    }

    /// A thing that is there before: its kind and name as the tool spells them, and answers by format.
    fn there(&self, kind: &str, name: &str, answers: &str) {
        let folder = self.path("state/things").join(kind.replace(' ', "."));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name.replace('/', "%")), answers).unwrap();
    }

    fn command(&self, script: &str, arguments: &[&str]) -> Command {
        let model = self.path("model").display().to_string();
        let mut command = Command::new(tree().join(format!("k8s/gke/{script}.sh")));
        command
            .args(arguments.iter().map(|word| word.replace("MODEL", &model)))
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("GKE_STATE", self.path("state"))
            .envs(self.variables.iter().map(|(name, value)| (*name, value.as_str())))
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command; no stub may have met what it does not know.
    fn run(&self, script: &str, arguments: &[&str]) -> Done {
        let output = self.command(script, arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(self.read("unforeseen"), "", "{}", String::from_utf8_lossy(&output.stderr));
        Done { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs a command that must succeed; returns its calls that change something.
    fn changes_of(&self, script: &str, arguments: &[&str]) -> Vec<String> {
        self.put("calls", "");
        let done = self.run(script, arguments);
        assert_eq!(done.code, 0, "{}", done.stderr);
        self.changes()
    }

    /// The calls so far that change something, with the context that each kubectl call names left out.
    fn changes(&self) -> Vec<String> {
        let reads = [
            " describe ",
            " list ",
            " get-iam-policy ",
            "kubectl get ",
            " get-contexts ",
            " image inspect ",
            " rollout status ",
            " wait ",
            "git ",
            "--dry-run=client",
        ];
        let calls = self.read("calls").replace(" --context gke_p_us-central1_inferq", "");
        let changes = calls.lines().filter(|call| !reads.iter().any(|read| call.contains(read)));
        changes.map(str::to_owned).collect()
    }
}

/// What a dry run prints, made comparable with calls.
fn planned(stdout: &str) -> Vec<String> {
    let text = stdout.replace(" --context gke_p_us-central1_inferq", "").replace(['\\', '\''], "");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_cluster_is_made_from_nothing_and_only_once() {
    let desk = Desk::new();
    let account = "inferq-nodes@p.iam.gserviceaccount.com";
    let made = [
        "gcloud services enable artifactregistry.googleapis.com compute.googleapis.com container.googleapis.com \
         iam.googleapis.com iamcredentials.googleapis.com monitoring.googleapis.com pubsub.googleapis.com \
         storage.googleapis.com --project p"
            .to_owned(),
        "gcloud iam service-accounts create inferq-nodes --project p --display-name inferq: nodes".to_owned(),
        format!(
            "gcloud projects add-iam-policy-binding p --member serviceAccount:{account} --role \
             roles/container.defaultNodeServiceAccount --condition None --project p --format none"
        ),
        format!(
            "gcloud projects add-iam-policy-binding p --member serviceAccount:{account} --role \
             roles/artifactregistry.reader --condition None --project p --format none"
        ),
        format!(
            "gcloud container clusters create inferq --location us-central1 --project p --release-channel regular \
             --workload-pool p.svc.id.goog --workload-metadata GKE_METADATA --enable-dataplane-v2 --enable-ip-alias \
             --enable-shielded-nodes --enable-managed-prometheus --addons \
             HorizontalPodAutoscaling,HttpLoadBalancing,GcePersistentDiskCsiDriver,GcpFilestoreCsiDriver \
             --service-account {account} --machine-type e2-standard-2 --num-nodes 1 \
             --disk-type pd-balanced --disk-size 50 --labels app=inferq"
        ),
        "gcloud container clusters get-credentials inferq --location us-central1 --project p".to_owned(),
    ];
    let dry = desk.run("create-cluster", &["--project", "p", "--dry-run"]);
    assert_eq!((dry.code, desk.changes()), (0, Vec::new()), "{}", dry.stderr);
    assert_eq!(planned(&dry.stdout), made);
    assert_eq!(desk.changes_of("create-cluster", &["--project=p"]), made);

    let again = desk.run("create-cluster", &["--project", "p"]);
    assert_eq!(desk.changes().len(), made.len(), "{}", again.stderr);
    assert_eq!(again.stderr.matches("there already").count(), 5, "{}", again.stderr);
}

#[test]
fn what_is_half_there_is_completed() {
    let desk = Desk::new();
    desk.put(
        "services",
        "compute.googleapis.com\ncontainer.googleapis.com\nstorage.googleapis.com\niam.googleapis.com\n",
    );
    desk.there("container clusters", "inferq", "");
    desk.put("context", "");
    let changes = desk.changes_of("create-cluster", &["--project", "p"]);
    let enabled = "artifactregistry.googleapis.com iamcredentials.googleapis.com monitoring.googleapis.com \
                   pubsub.googleapis.com";
    assert_eq!(changes[0], format!("gcloud services enable {enabled} --project p"));
    assert_eq!(changes.len(), 4, "{changes:?}");
}

#[test]
fn without_a_permission_to_look_nothing_is_made() {
    for (what, script, arguments) in [
        ("gcloud container clusters describe", "create-cluster", &["--project", "p"] as &[&str]),
        ("gcloud container node-pools describe", "create-node-pool", &["--project", "p", "--kind", "cpu"]),
        ("gcloud storage buckets describe", "upload-assets", &["MODEL", "--project", "p", "--bucket", "b"]),
        ("gcloud compute addresses describe", "static-ip", &["--project", "p"]),
        ("gcloud artifacts repositories describe", "push-images", &["--project", "p", "--tag", "t"]),
        ("gcloud pubsub topics describe", "grant-access", &["worker", "--project", "p", "--topic", "jobs"]),
    ] {
        let desk = Desk::new();
        desk.put("fail", what);
        let done = desk.run(script, arguments);
        assert_eq!(done.code, 1, "{script}: {}", done.stderr);
        assert!(done.stderr.contains("permission denied"), "{script}: {}", done.stderr);
        let created: Vec<_> = desk.changes().into_iter().filter(|call| call.contains(" create ")).collect();
        // The nodes' account comes before the cluster.
        assert!(created.iter().all(|call| call.contains("service-accounts")), "{script}: {created:?}");
    }
}

#[test]
fn each_kind_of_node_has_its_pool() {
    let common = "--cluster inferq --location us-central1 --project p --machine-type";
    let account = "--service-account inferq-nodes@p.iam.gserviceaccount.com --workload-metadata GKE_METADATA \
                   --disk-type pd-balanced";
    for (arguments, expected) in [
        (
            &["--kind", "cpu"] as &[&str],
            format!(
                "cpu {common} n2-highmem-4 --num-nodes 1 --enable-autoscaling --total-min-nodes 1 --total-max-nodes 3 \
                 {account} --disk-size 50"
            ),
        ),
        (
            &["--kind", "t4", "--zones", "us-central1-a"],
            format!(
                "t4 {common} n1-standard-8 --num-nodes 0 --enable-autoscaling --total-min-nodes 0 --total-max-nodes 3 \
                 {account} --disk-size 100 --location-policy ANY \
                 --accelerator type=nvidia-tesla-t4,count=1,gpu-driver-version=default --node-locations us-central1-a"
            ),
        ),
        (
            &[
                "--kind=l4",
                "--spot",
                "--max=10",
                "--zones=us-central1-a,us-central1-b",
                "--driver=latest",
                "--taints=a=b:NoSchedule",
            ],
            format!(
                "l4-spot {common} g2-standard-8 --num-nodes 0 --enable-autoscaling --total-min-nodes 0 --total-max-nodes 10 \
                 {account} --disk-size 100 --location-policy ANY \
                 --accelerator type=nvidia-l4,count=1,gpu-driver-version=latest --spot --node-locations \
                 us-central1-a,us-central1-b --node-taints cloud.google.com/gke-spot=true:NoSchedule,a=b:NoSchedule"
            ),
        ),
        (
            &["--kind", "h100", "--machine", "a3-highgpu-8g", "--gpus", "8", "--pool", "big", "--labels", "a=b"],
            format!(
                "big {common} a3-highgpu-8g --num-nodes 0 --enable-autoscaling --total-min-nodes 0 --total-max-nodes 1 \
                 {account} --disk-size 100 --location-policy ANY \
                 --accelerator type=nvidia-h100-80gb,count=8,gpu-driver-version=default --node-labels a=b"
            ),
        ),
        (
            // As many in each zone: two and two are enough for three.
            &["--kind", "cpu", "--min", "3", "--max", "4", "--zones", "us-central1-a,us-central1-b"],
            format!(
                "cpu {common} n2-highmem-4 --num-nodes 2 --enable-autoscaling --total-min-nodes 3 --total-max-nodes 4 \
                 {account} --disk-size 50 --node-locations us-central1-a,us-central1-b"
            ),
        ),
    ] {
        let desk = Desk::new();
        desk.there("container clusters", "inferq", "");
        let arguments = [&["--project", "p"], arguments].concat();
        let made = vec![format!("gcloud container node-pools create {expected}")];
        let dry = desk.run("create-node-pool", &[arguments.as_slice(), &["--dry-run"]].concat());
        assert_eq!((planned(&dry.stdout), desk.changes()), (made.clone(), Vec::new()), "{}", dry.stderr);
        assert_eq!(desk.changes_of("create-node-pool", &arguments), made);
        assert_eq!(desk.changes_of("create-node-pool", &arguments), Vec::<String>::new());
    }
}

#[test]
fn a_pool_of_other_machines_is_not_taken_for_the_one_asked_for() {
    let desk = Desk::new();
    desk.there("container node-pools", "cpu", "value(config.machineType)|n1-standard-1\n");
    let done = desk.run("create-node-pool", &["--project", "p", "--kind", "cpu"]);
    assert_eq!((done.code, desk.changes()), (1, Vec::new()));
    assert!(done.stderr.contains("n1-standard-1, not n2-highmem-4"), "{}", done.stderr);
}

#[test]
fn images_are_built_on_pinned_bases_pushed_and_described_once() {
    let desk = Desk::new();
    let arguments = ["--project", "p", "--images", "inferq,inferq-cuda"];
    let dry = desk.run("push-images", &[arguments.as_slice(), &["--dry-run"]].concat());
    assert_eq!((dry.code, desk.changes()), (0, Vec::new()), "{}", dry.stderr);
    assert!(planned(&dry.stdout).iter().any(|line| line.starts_with("docker push")), "{}", dry.stdout);

    let done = desk.run("push-images", &arguments);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let registry = "us-central1-docker.pkg.dev/p/inferq";
    let version = env!("CARGO_PKG_VERSION");
    let pins =
        "--build-arg RUST_IMAGE=rust@sha256:digest-of-rust --build-arg DEBIAN_IMAGE=debian@sha256:digest-of-debian";
    let sources = tree().canonicalize().unwrap();
    let mut expected = vec![
        "gcloud artifacts repositories create inferq --location us-central1 --project p --repository-format docker \
         --immutable-tags --description inferq: images"
            .to_owned(),
        "docker pull --quiet rust:1.95-slim-bookworm".to_owned(),
        "docker pull --quiet debian:bookworm-slim".to_owned(),
        "gcloud auth configure-docker us-central1-docker.pkg.dev --quiet".to_owned(),
    ];
    for image in ["inferq", "inferq-cuda"] {
        let address = format!("{registry}/{image}:{version}-0123456789ab");
        expected.push(format!("docker build --target {image} --tag {address} {pins} TREE"));
        expected.push(format!("docker push --quiet {address}"));
    }
    for image in ["inferq", "inferq-cuda"] {
        let address = format!("{registry}/{image}@sha256:digest-of-{image}");
        let sbom = format!("sbom/{image}-{version}-0123456789ab.spdx.json");
        expected.push(format!("syft scan registry:{address} --quiet --output spdx-json={sbom}.part"));
        assert!(desk.path(&sbom).exists());
    }
    let calls: Vec<_> = desk
        .changes()
        .iter()
        .map(|call| match call.rsplit_once(' ') {
            Some((start, path)) if start.starts_with("docker build") => {
                assert_eq!(Path::new(path).canonicalize().unwrap(), sources);
                format!("{start} TREE")
            }
            _ => call.clone(),
        })
        .collect();
    assert_eq!(calls, expected);
    let printed = format!(
        "inferq {registry}/inferq@sha256:digest-of-inferq\ninferq-cuda {registry}/inferq-cuda@sha256:digest-of-inferq-cuda\n"
    );
    assert_eq!(done.stdout, printed);

    desk.put("calls", "");
    let again = desk.run("push-images", &arguments);
    assert_eq!((again.code, again.stdout, desk.changes()), (0, printed, Vec::new()), "{}", again.stderr);
}

#[test]
fn an_image_names_committed_sources() {
    let desk = Desk::new();
    desk.put("dirty", " M Cargo.toml\n");
    let done = desk.run("push-images", &["--project", "p"]);
    assert_eq!((done.code, desk.changes()), (64, Vec::new()));
    assert!(done.stderr.contains("uncommitted changes"), "{}", done.stderr);
    let latest = desk.run("push-images", &["--project", "p", "--tag", "latest"]);
    assert_eq!(latest.code, 64, "{}", latest.stderr);
}

#[test]
fn a_model_goes_to_the_bucket_and_then_to_the_volume() {
    let desk = Desk::new();
    desk.there("container clusters", "inferq", "");
    let model = desk.path("model").display().to_string();
    fs::create_dir(desk.path("overlay")).unwrap();
    let arguments = ["MODEL", "--project", "p", "--bucket", "b", "--name", "minilm", "--overlay", "overlay"];
    let made = [
        "gcloud storage buckets create gs://b --project p --location us-central1 --uniform-bucket-level-access \
         --public-access-prevention"
            .to_owned(),
        format!("inferq-worker assets manifest {model} --name minilm --canary"),
        format!("inferq-worker assets sync {model} gs://b/minilm --name minilm"),
        "gcloud container clusters get-credentials inferq --location us-central1 --project p".to_owned(),
        "kubectl delete job assets-sync --namespace inferq --ignore-not-found --wait".to_owned(),
        "kubectl apply --kustomize overlay".to_owned(),
    ];
    let dry = desk.run("upload-assets", &[arguments.as_slice(), &["--dry-run"]].concat());
    assert_eq!((planned(&dry.stdout), desk.changes()), (made.to_vec(), Vec::new()), "{}", dry.stderr);
    assert_eq!(desk.changes_of("upload-assets", &arguments), made);
    // The copy looks for itself whether there is anything to do, and the Job fills the volume again.
    let again = desk.changes_of("upload-assets", &arguments[..7]);
    assert_eq!(again, [made[2].clone()]);

    desk.put("fail", " wait job/assets-sync");
    let done = desk.run("upload-assets", &arguments);
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("the volume is not filled: kubectl logs job/assets-sync"), "{}", done.stderr);
}

#[test]
fn a_model_goes_to_the_bucket_without_the_worker_s_binary_too() {
    let desk = Desk::without(&["inferq-worker"]);
    let model = desk.path("model").display().to_string();
    desk.there("storage buckets", "gs://b", "");
    let changes = desk.changes_of("upload-assets", &["MODEL", "--project", "p", "--bucket", "b", "--prefix", "m"]);
    let exclude = r"--exclude (^|.*/)\..*";
    assert_eq!(
        changes,
        [format!("gcloud storage rsync {model} gs://b/m/model --recursive --checksums-only {exclude} --project p")]
    );

    // Where `current` says what is read, files beside it would not be.
    desk.there("storage objects", "gs://b/m/model/current", "");
    let done = desk.run("upload-assets", &["MODEL", "--project", "p", "--bucket", "b", "--prefix", "m"]);
    assert_eq!(done.code, 1, "{}", done.stderr);
}

#[test]
fn an_address_is_reserved_once_and_printed() {
    let desk = Desk::new();
    let dry = desk.run("static-ip", &["--project", "p", "--dry-run"]);
    let made = vec!["gcloud compute addresses create inferq --global --project p".to_owned()];
    assert_eq!((planned(&dry.stdout), desk.changes()), (made.clone(), Vec::new()), "{}", dry.stderr);
    for _ in 0..2 {
        let done = desk.run("static-ip", &["--project", "p"]);
        assert_eq!((done.code, done.stdout.as_str()), (0, "203.0.113.10\n"), "{}", done.stderr);
    }
    assert_eq!(desk.changes(), made);
}

#[test]
fn google_makes_a_certificate_for_a_name() {
    let desk = Desk::new();
    desk.put("context", "");
    let arguments = ["managed", "--project", "p", "--domain", "inferq.example.com"];
    assert_eq!(desk.changes_of("certificate", &arguments).len(), 1);
    let object = desk.read("objects");
    assert!(object.contains("kind: ManagedCertificate\nmetadata:\n  name: inferq-expose\n"), "{object}");
    assert!(object.contains("domains:\n    - inferq.example.com\n"), "{object}");

    let answers = |domain: &str| {
        format!(
            "jsonpath={{.spec.domains[*]}}|{domain}\njsonpath={{.status.certificateStatus}}{{\"\\n\"}}|Provisioning\n"
        )
    };
    desk.there("managedcertificate", "inferq-expose", &answers("inferq.example.com"));
    desk.put("calls", "");
    let again = desk.run("certificate", &arguments);
    assert_eq!(
        (again.code, again.stdout.as_str(), desk.changes()),
        (0, "Provisioning\n", Vec::new()),
        "{}",
        again.stderr
    );
    desk.there("managedcertificate", "inferq-expose", &answers("other.example.com"));
    let other = desk.run("certificate", &arguments);
    assert_eq!((other.code, desk.changes()), (1, Vec::new()), "{}", other.stderr);
}

#[test]
fn an_origin_certificate_becomes_a_secret_and_is_replaced_when_it_is_another() {
    let desk = Desk::new();
    desk.put("context", "");
    let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(desk.path("cert.pem"), certificate).unwrap();
    fs::write(desk.path("key.pem"), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    let arguments = ["origin", "--project", "p", "--cert", "cert.pem", "--key", "key.pem"];
    let made = ["kubectl create secret tls inferq-origin-certificate --namespace inferq --cert cert.pem --key key.pem"];
    let dry = desk.run("certificate", &[arguments.as_slice(), &["--dry-run"]].concat());
    assert_eq!((planned(&dry.stdout), desk.changes().len()), (made.map(str::to_owned).to_vec(), 0), "{}", dry.stderr);
    assert_eq!(desk.changes_of("certificate", &arguments), made);

    // base64 of the certificate above, and of another.
    let kept = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCkFBQUEKLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=";
    let answers = |data: &str| format!("jsonpath={{.data.tls\\.crt}}|{data}\n");
    desk.there("secret", "inferq-origin-certificate", &answers(kept));
    assert_eq!(desk.changes_of("certificate", &arguments), Vec::<String>::new());
    desk.there("secret", "inferq-origin-certificate", &answers("QUFBQQo="));
    let changes = desk.changes_of("certificate", &arguments);
    assert!(changes.len() == 1 && changes[0].starts_with("kubectl replace --filename "), "{changes:?}");
    assert_eq!(desk.read("objects"), "kind: Secret\nname: inferq-origin-certificate\n");

    let swapped = ["origin", "--project", "p", "--cert", "key.pem", "--key", "cert.pem"];
    assert_eq!(desk.run("certificate", &swapped).code, 64);
}

#[test]
fn who_needs_what_is_granted_where_it_is_needed_and_once() {
    let desk = Desk::new();
    let arguments = ["setup", "assets", "keda", "--project", "p", "--bucket", "models"];
    let member = |account: &str| {
        format!(
            "--member principal://iam.googleapis.com/projects/123456/locations/global/workloadIdentityPools/p.svc.id.goog\
             /subject/ns/{account}"
        )
    };
    let grant = |group: &str, name: &str, member: &str, role: &str| {
        let condition = if group.starts_with("pubsub") { "" } else { " --condition None" };
        format!(
            "gcloud {group} add-iam-policy-binding {name} {member} --role {role}{condition} --project p --format none"
        )
    };
    let made = [
        grant("projects", "p", &member("inferq/sa/inferq-setup"), "roles/pubsub.editor"),
        grant("storage buckets", "gs://models", &member("inferq/sa/inferq-assets"), "roles/storage.objectViewer"),
        grant("projects", "p", &member("keda/sa/keda-operator"), "roles/monitoring.viewer"),
    ];
    let dry = desk.run("grant-access", &[arguments.as_slice(), &["--dry-run"]].concat());
    assert_eq!((planned(&dry.stdout), desk.changes()), (made.to_vec(), Vec::new()), "{}", dry.stderr);
    assert_eq!(desk.changes_of("grant-access", &arguments), made);
    assert_eq!(desk.changes_of("grant-access", &arguments), Vec::<String>::new());

    let early = desk.run("grant-access", &["worker", "--project", "p", "--topic", "jobs"]);
    assert_eq!((early.code, desk.changes()), (1, Vec::new()));
    assert!(early.stderr.contains("no topic jobs.results: run `inferq setup`"), "{}", early.stderr);
    for topic in ["jobs.results", "jobs.dead", "jobs.shards"] {
        desk.there("pubsub topics", topic, "");
    }
    let worker = member("inferq/sa/inferq-worker");
    let service = "--member serviceAccount:service-123456@gcp-sa-pubsub.iam.gserviceaccount.com";
    let mut made: Vec<_> = ["jobs.results", "jobs.dead", "jobs.shards"]
        .map(|topic| grant("pubsub topics", topic, &worker, "roles/pubsub.publisher"))
        .into();
    made.push(grant("pubsub topics", "jobs.dead", service, "roles/pubsub.publisher"));
    for subscription in ["fast", "jobs.shards"] {
        made.push(grant("pubsub subscriptions", subscription, &worker, "roles/pubsub.subscriber"));
        made.push(grant("pubsub subscriptions", subscription, &worker, "roles/pubsub.viewer"));
        made.push(grant("pubsub subscriptions", subscription, service, "roles/pubsub.subscriber"));
    }
    made.push(grant("storage buckets", "gs://results", &worker, "roles/storage.objectUser"));
    let arguments =
        ["worker", "--project", "p", "--topic", "jobs", "--subscription", "fast", "--results-bucket", "results"];
    assert_eq!(desk.changes_of("grant-access", &arguments), made);
    assert_eq!(desk.changes_of("grant-access", &arguments), Vec::<String>::new());
}

#[test]
fn a_grant_that_comes_too_early_is_tried_again() {
    let desk = Desk::new();
    desk.put("fail_once", " add-iam-policy-binding p");
    let changes = desk.changes_of("grant-access", &["setup", "--project", "p"]);
    assert_eq!((changes.len(), &changes[0]), (2, &changes[1]));
}

#[test]
fn the_commands_make_what_the_manifests_ask_for() {
    let desk = Desk::new();
    desk.there("container clusters", "inferq", "");
    let manifest =
        |path: &str| fs::read_to_string(tree().join("k8s").join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    for kind in ["t4", "l4", "h100"] {
        let done = desk.run("create-node-pool", &["--project", "p", "--kind", kind, "--dry-run"]);
        let asked = manifest(&format!("components/gpu-{kind}/gpu.patch.yaml"));
        let card = asked.split("cloud.google.com/gke-accelerator: ").nth(1).unwrap().split_whitespace().next().unwrap();
        assert!(planned(&done.stdout)[0].contains(&format!("type={card},count=1,")), "{}", done.stdout);
        assert!(asked.contains("key: nvidia.com/gpu"), "{asked}");
    }
    let spot = manifest("components/spot/spot.patch.yaml");
    assert!(spot.contains("cloud.google.com/gke-spot: \"true\"") && spot.contains("effect: NoSchedule"), "{spot}");
    for (path, name, command) in [
        ("components/assets-sync/assets-sync-job.yaml", "name: assets-sync", "upload-assets"),
        ("components/assets-sync/inferq-assets-serviceaccount.yaml", "name: inferq-assets", "grant-access"),
        ("components/pubsub/inferq-setup-serviceaccount.yaml", "name: inferq-setup", "grant-access"),
        ("base/inferq-worker-serviceaccount.yaml", "name: inferq-worker", "grant-access"),
        ("components/expose/inferq-expose-managedcertificate.yaml", "name: inferq-expose", "certificate"),
        ("components/expose-cloudflare/ingress.patch.yaml", "secretName: inferq-origin-certificate", "certificate"),
    ] {
        assert!(manifest(path).contains(name), "{path} has no {name}");
        let script = manifest(&format!("gke/{command}.sh"));
        let default = name.split_once(": ").unwrap().1;
        assert!(script.contains(&format!(":-{default}}}")), "{command} does not use {default}");
    }
}

/// Two nodes of pool `old` with three workers and what every node has, one node of pool `new`.
fn two_pools() -> Desk {
    let desk = Desk::new();
    desk.put("context", "");
    let limits =
        "autoscaling.minNodeCount,autoscaling.maxNodeCount,autoscaling.totalMinNodeCount,autoscaling.totalMaxNodeCount";
    let format = format!("csv[no-heading](autoscaling.enabled,{limits},autoscaling.locationPolicy)");
    desk.there("container node-pools", "old", &format!("{format}|True,,,0,3,ANY\n"));
    desk.there("container node-pools", "new", "");
    desk.put("nodes", "old-1 old <none>\nold-2 old <none>\nnew-1 new <none>\n");
    desk.put("new_node", "new-1");
    desk.put("replicasets", "inferq inferq-worker-7d inferq-worker\nkube-system kube-dns-5c kube-dns\n");
    desk.put(
        "pods",
        "inferq inferq-worker-7d-a ReplicaSet inferq-worker-7d old-1 True <none>\n\
         inferq inferq-worker-7d-b ReplicaSet inferq-worker-7d old-1 True <none>\n\
         inferq inferq-worker-7d-c ReplicaSet inferq-worker-7d old-2 True <none>\n\
         kube-system fluentbit-x DaemonSet fluentbit old-1 True <none>\n\
         kube-system kube-proxy-old-2 Node old-2 old-2 True <none>\n\
         inferq rabbitmq-0 StatefulSet rabbitmq old-2 True <none>\n",
    );
    // As on graphics cards: an old worker goes first.
    desk.put("deployment", "RollingUpdate 0,1 7\n");
    desk.put("claims", "models");
    desk.there("persistentvolumeclaim", "models", "jsonpath={.spec.accessModes[*]}|ReadOnlyMany\n");
    desk
}

const SHRINK: &str = "gcloud container node-pools update old --cluster inferq --location us-central1 --project p \
     --no-enable-autoscaling";
const GROW: &str = "gcloud container node-pools update old --cluster inferq --location us-central1 --project p \
     --enable-autoscaling --total-min-nodes 0 --total-max-nodes 3 --location-policy ANY";
const RESTART: &str = "kubectl rollout restart deployment/inferq-worker --namespace inferq";
const UNDO: &str = "kubectl rollout undo deployment/inferq-worker --namespace inferq --to-revision 7";

fn surge(surge: &str, unavailable: &str) -> String {
    format!(
        "kubectl patch deployment inferq-worker --namespace inferq --patch \
         {{\"spec\":{{\"strategy\":{{\"rollingUpdate\":{{\"maxSurge\":{surge},\"maxUnavailable\":{unavailable}}}}}}}}}"
    )
}

fn drain(node: &str) -> String {
    format!("kubectl drain {node} --ignore-daemonsets --delete-emptydir-data --timeout 900s")
}

#[test]
fn workers_are_ready_on_the_new_pool_before_a_node_is_drained() {
    let desk = two_pools();
    let arguments = ["old", "new", "--project", "p", "--empty"];
    let made = [
        SHRINK.to_owned(),
        "kubectl cordon old-1 old-2".to_owned(),
        surge("\"25%\"", "0"),
        RESTART.to_owned(),
        surge("0", "1"),
        drain("old-1"),
        drain("old-2"),
        "gcloud container clusters resize inferq --node-pool old --num-nodes 0 --location us-central1 --project p --quiet"
            .to_owned(),
    ];
    let before = desk.read("pods");
    let dry = desk.run("migrate-pool", &[arguments.as_slice(), &["--dry-run"]].concat());
    assert_eq!((dry.code, desk.changes(), desk.read("pods")), (0, Vec::new(), before), "{}", dry.stderr);
    assert_eq!(planned(&dry.stdout), made);

    let done = desk.run("migrate-pool", &arguments);
    assert_eq!((done.code, desk.changes()), (0, made.to_vec()), "{}", done.stderr);
    assert!(done.stderr.contains("3 pods of inferq/inferq-worker are ready on new"), "{}", done.stderr);
    // No worker was evicted: each had its successor before.
    assert_eq!(desk.read("evicted"), "inferq/rabbitmq-0\n");
    assert_eq!(desk.read("deployment"), "RollingUpdate 0,1 7\n");

    let again = desk.changes_of("migrate-pool", &["old", "new", "--project", "p"]);
    let left: Vec<_> = again.iter().filter(|call| call.contains("rollout") || call.contains("cordon ")).collect();
    assert_eq!(left, Vec::<&String>::new(), "nothing is left to move");
}

#[test]
fn another_overlay_rolls_the_workers_once_with_pods_to_spare() {
    let desk = two_pools();
    fs::create_dir(desk.path("overlay")).unwrap();
    let changes =
        desk.changes_of("migrate-pool", &["old", "new", "--project", "p", "--apply", "overlay", "--surge", "2"]);
    let expected = [
        "kubectl rollout pause deployment/inferq-worker --namespace inferq".to_owned(),
        "kubectl apply --kustomize overlay".to_owned(),
        surge("2", "0"),
        "kubectl rollout resume deployment/inferq-worker --namespace inferq".to_owned(),
        surge("0", "1"),
    ];
    assert_eq!(changes[2..7], expected);
}

#[test]
fn workers_that_do_not_get_ready_go_back() {
    let desk = two_pools();
    desk.put("rollout_fails", "");
    let done = desk.run("migrate-pool", &["old", "new", "--project", "p"]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("deployment inferq/inferq-worker is not ready"), "{}", done.stderr);
    let back = ["kubectl uncordon old-1 old-2".to_owned(), GROW.to_owned(), UNDO.to_owned(), surge("0", "1")];
    assert_eq!(desk.changes()[4..], back);
    assert!(!desk.read("nodes").contains("true") && desk.read("evicted").is_empty());
}

#[test]
fn an_overlay_that_can_not_be_applied_leaves_the_workers_as_they_were() {
    let desk = two_pools();
    fs::create_dir(desk.path("overlay")).unwrap();
    desk.put("fail", " apply --kustomize");
    let done = desk.run("migrate-pool", &["old", "new", "--project", "p", "--apply", "overlay"]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    let resume = "kubectl rollout resume deployment/inferq-worker --namespace inferq";
    // To its own revision, which is no step back.
    assert_eq!(desk.changes()[4..], ["kubectl uncordon old-1 old-2", GROW, resume, UNDO]);
}

#[test]
fn workers_that_went_to_a_third_pool_are_no_success() {
    let desk = two_pools();
    desk.put("nodes", "old-1 old <none>\nold-2 old <none>\nnew-1 new <none>\nthird-1 third <none>\n");
    desk.put("new_node", "third-1");
    let done = desk.run("migrate-pool", &["old", "new", "--project", "p"]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("only 0 of 3 pods"), "{}", done.stderr);
    assert!(desk.changes().contains(&UNDO.to_owned()) && !desk.changes().iter().any(|call| call.contains("drain")));
}

#[test]
fn a_drain_that_fails_half_way_gives_the_pool_back() {
    let desk = two_pools();
    desk.put("fail", " drain old-2");
    let done = desk.run("migrate-pool", &["old", "new", "--project", "p"]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert_eq!(
        desk.changes()[5..],
        [drain("old-1"), drain("old-2"), "kubectl uncordon old-1 old-2".to_owned(), GROW.to_owned()]
    );
    assert_eq!(desk.read("nodes"), "old-1 old <none>\nold-2 old <none>\nnew-1 new <none>\n");
    // The workers are ready where they are: only what did not move is undone.
    assert!(!desk.changes().contains(&UNDO.to_owned()));
}

#[test]
fn a_budget_that_lets_nothing_go_ends_the_drain_in_time() {
    let desk = two_pools();
    desk.put("blocked", "old-1\n");
    let start = Instant::now();
    let done = desk.run("migrate-pool", &["old", "new", "--project", "p", "--drain-timeout-s", "1"]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(start.elapsed() < Duration::from_secs(60));
    assert!(
        done.stderr.contains("disruption budget") && done.stderr.contains("get poddisruptionbudgets"),
        "{}",
        done.stderr
    );
    assert!(!desk.read("nodes").contains("true"), "{}", desk.read("nodes"));
    assert_eq!(desk.read("evicted"), "");
}

#[test]
fn nodes_that_an_operator_had_closed_stay_closed() {
    let desk = two_pools();
    desk.put("nodes", "old-1 old true\nold-2 old <none>\nnew-1 new <none>\n");
    desk.put("fail", " drain old-1");
    assert_eq!(desk.run("migrate-pool", &["old", "new", "--project", "p"]).code, 1);
    let changes = desk.changes();
    assert!(changes.contains(&"kubectl uncordon old-2".to_owned()), "{changes:?}");
    assert!(desk.read("nodes").starts_with("old-1 old true\nold-2 old <none>\n"), "{}", desk.read("nodes"));
}

#[test]
fn an_interrupt_gives_the_pool_back_too() {
    let desk = two_pools();
    desk.put("blocked", "old-1\n");
    let mut child = desk
        .command("migrate-pool", &["old", "new", "--project", "p", "--drain-timeout-s", "2"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // It ends with the process, so waiting for it is bounded.
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line.contains("disruption budget")), "it has not come to the drain");
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let rest: Vec<String> = said.collect();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest:?}");
    assert!(!desk.read("nodes").contains("true"), "{}", desk.read("nodes"));
    assert_eq!(desk.changes().last().map(String::as_str), Some(GROW));
}

#[test]
fn what_can_not_be_moved_safely_is_said_before_anything_changes() {
    for (file, text, reason) in [
        ("deployment", "Recreate , 7\n", "has the strategy Recreate"),
        ("pods", "default by-hand <none> <none> old-1 True <none>\n", "pod default/by-hand on old has no owner"),
    ] {
        let desk = two_pools();
        desk.put(file, text);
        let done = desk.run("migrate-pool", &["old", "new", "--project", "p"]);
        assert_eq!((done.code, desk.changes()), (1, Vec::new()), "{}", done.stderr);
        assert!(done.stderr.contains(reason), "{}", done.stderr);
    }
    let desk = two_pools();
    let absent = desk.run("migrate-pool", &["old", "nowhere", "--project", "p"]);
    assert_eq!((absent.code, desk.changes()), (1, Vec::new()));
    assert!(absent.stderr.contains("no pool nowhere"), "{}", absent.stderr);
    desk.put("nodes", "new-1 new <none>\n");
    assert_eq!(desk.changes_of("migrate-pool", &["old", "new", "--project", "p"]), Vec::<String>::new());
}

#[test]
fn a_disk_for_one_node_at_a_time_is_moved_only_when_told_to() {
    let desk = two_pools();
    desk.there("persistentvolumeclaim", "models", "jsonpath={.spec.accessModes[*]}|ReadWriteOnce\n");
    let done = desk.run("migrate-pool", &["old", "new", "--project", "p"]);
    assert_eq!((done.code, desk.changes()), (1, Vec::new()));
    assert!(done.stderr.contains("a disk for one node at a time, models: --stop-first"), "{}", done.stderr);
    let changes = desk.changes_of("migrate-pool", &["old", "new", "--project", "p", "--stop-first"]);
    assert_eq!(changes[2..5], [surge("0", "\"100%\""), RESTART.to_owned(), surge("0", "1")]);
}

#[test]
fn a_pool_of_any_size_moves() {
    let desk = two_pools();
    let (mut nodes, mut pods) = (String::new(), String::new());
    for n in 0..30 {
        nodes += &format!("old-{n} old <none>\n");
        for worker in ["a", "b"] {
            pods += &format!("inferq w-{n}{worker} ReplicaSet inferq-worker-7d old-{n} True <none>\n");
        }
    }
    desk.put("nodes", &format!("{nodes}new-1 new <none>\n"));
    desk.put("pods", &pods);
    let changes = desk.changes_of("migrate-pool", &["old", "new", "--project", "p"]);
    assert_eq!(changes.iter().filter(|call| call.starts_with("kubectl drain ")).count(), 30);
    assert_eq!(desk.read("evicted"), "");
}

#[test]
fn an_operator_goes_from_nothing_to_a_moved_pool() {
    let desk = two_pools();
    // A cluster of its own: only nodes and pods are taken over.
    for name in ["things", "context"] {
        let path = desk.path("state").join(name);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    fs::create_dir(desk.path("assets")).unwrap();
    desk.put("claims", "");
    desk.put("nodes", "a t4 <none>\nb l4 <none>\n");
    desk.put("new_node", "b");
    desk.put("pods", "inferq inferq-worker-7d-a ReplicaSet inferq-worker-7d a True <none>\n");
    let early = desk.run("create-node-pool", &["--project", "p", "--kind", "t4"]);
    assert_eq!(early.code, 1, "there is no cluster yet: {}", early.stderr);
    for (script, arguments) in [
        ("create-cluster", &[] as &[&str]),
        ("create-node-pool", &["--kind", "t4", "--zones", "us-central1-a"]),
        ("push-images", &["--tag", "1.2.3"]),
        ("upload-assets", &["MODEL", "--bucket", "b", "--overlay", "assets"]),
        ("grant-access", &["setup", "assets", "keda", "--bucket", "b"]),
        ("static-ip", &[]),
        ("certificate", &["managed", "--domain", "inferq.example.com"]),
        ("create-node-pool", &["--kind", "l4", "--zones", "us-central1-a"]),
        ("migrate-pool", &["t4", "l4", "--empty"]),
        ("cost", &["--kind", "l4", "--tokens-per-s", "1000", "--tokens-per-item", "100"]),
    ] {
        let done = desk.run(script, &[arguments, &["--project", "p"]].concat());
        assert_eq!(done.code, 0, "{script}: {}", done.stderr);
    }
    assert!(desk.read("pods").contains(" b True"), "{}", desk.read("pods"));
}

/// Prices that are easy to reckon with.
const PRICES: &str = "item,unit,usd,spot_usd,as_of,source\n\
    n2-highmem-4,hour,0.25,0.05,2026-01-01,test\n\
    n1-standard-8,hour,0.40,0.10,2026-01-01,test\n\
    nvidia-tesla-t4,hour,0.35,,2026-02-01,sample\n\
    e2-standard-2,hour,0.10,,2026-01-01,test\n\
    cluster,hour,0.10,,2026-01-01,test\n\
    pd-balanced,gb-month,0.10,,2026-01-01,test\n\
    bucket,gb-month,0.02,,2026-01-01,test\n";

/// The numbers at the ends of a command's lines.
fn figures(done: &Done) -> Vec<f64> {
    assert_eq!(done.code, 0, "{}", done.stderr);
    done.stdout.lines().filter_map(|line| line.split_whitespace().last()?.parse().ok()).collect()
}

#[test]
fn what_a_month_and_a_million_items_cost_is_reckoned_right() {
    let desk = Desk::new();
    fs::write(desk.path("prices.csv"), PRICES).unwrap();
    let cost = |arguments: &[&str]| desk.run("cost", &[&["--prices", "prices.csv"], arguments].concat());

    // 2 x 0.25 x 730; 0.10 x 730; 3 x 0.10 x 730; 30 x 0.10; 30 x 0.02; their sum.
    let month = [365.0, 73.0, 219.0, 3.0, 0.6, 660.6];
    let done = cost(&["--kind", "cpu", "--nodes", "2"]);
    assert_eq!(figures(&done), month);
    // 2 workers x 5,000 tokens/s over 100 tokens an item: 100 items/s, so 1,000,000 take 10,000 s = 2.78 h; nodes at 0.50 an hour
    // cost 1.3889 for that; a month of 2,628,000 s does 262.8 million items for 660.60.
    let done = cost(&["--kind", "cpu", "--nodes", "2", "--tokens-per-s", "5000", "--tokens-per-item", "100"]);
    assert_eq!(figures(&done), [month.as_slice(), &[100.0, 2.78, 1.3889, 2.5137]].concat());
    // Spot nodes of 0.05 for 100 hours; the rest of the month costs what it costs.
    let done = cost(&["--kind", "cpu", "--spot", "--hours", "100", "--system-nodes", "0", "--volume-gb", "0"]);
    assert_eq!(figures(&done), [5.0, 73.0, 0.0, 0.0, 0.6, 78.6]);
    // Machine and card: 0.75.
    let done = cost(&["--kind", "t4"]);
    assert_eq!(figures(&done)[0], 547.5);
    assert!(done.stderr.contains("samples without a source, check them: nvidia-tesla-t4"), "{}", done.stderr);
    assert!(done.stderr.contains("prices of 2026-01-01 to 2026-02-01"), "{}", done.stderr);

    let no_spot = cost(&["--kind", "t4", "--spot"]);
    assert_eq!(no_spot.code, 64);
    assert!(no_spot.stderr.contains("no spot price of nvidia-tesla-t4"), "{}", no_spot.stderr);
    let no_row = cost(&["--kind", "l4"]);
    assert_eq!(no_row.code, 64);
    assert!(no_row.stderr.contains("no price of g2-standard-8 by the hour"), "{}", no_row.stderr);
    assert_eq!(desk.read("calls"), "");
}

#[test]
fn the_cost_of_items_is_taken_from_what_was_measured() {
    let desk = Desk::new();
    fs::write(desk.path("prices.csv"), PRICES).unwrap();
    let cost = |text: &str, arguments: &[&str]| {
        fs::write(desk.path("measured"), text).unwrap();
        desk.run("cost", &[&["--prices", "prices.csv", "--kind", "cpu", "--measured", "measured"], arguments].concat())
    };
    let status = serde_json::json!({"workers": [
        {"name": "a", "tokens_per_s": 6000.0, "items_per_s": 60.0},
        {"name": "b", "tokens_per_s": 2000.0, "items_per_s": 20.0},
        {"name": "idle since it began", "tokens_per_s": null, "items_per_s": null},
    ]})
    .to_string();
    // The mean of those that have computed: 4,000 tokens/s, of 100 an item.
    assert_eq!(figures(&cost(&status, &[]))[6], 40.0);
    assert_eq!(figures(&cost(&status, &["--nodes", "3"]))[6], 120.0);
    assert_eq!(figures(&cost(&status, &["--tokens-per-item", "400"]))[6], 10.0);
    let metrics = "# TYPE inferq_tokens_per_second gauge\ninferq_tokens_per_second 3000\ninferq_tokens_total 5000\n\
                   inferq_items_total 100\ninferq_jobs_total{outcome=\"ok\"} 7\n";
    assert_eq!(figures(&cost(metrics, &[]))[6], 60.0);
    let bench = serde_json::json!({"answered_per_s": 21.5, "items_per_job": 4}).to_string();
    assert_eq!(figures(&cost(&bench, &[]))[6], 86.0);
    for nothing in [r#"{"workers": []}"#, "inferq_tokens_total 0\n", "{}"] {
        let done = cost(nothing, &[]);
        assert_eq!(done.code, 64, "{nothing}");
        assert!(done.stderr.contains("tells no rate"), "{}", done.stderr);
    }
}

#[test]
fn the_prices_that_come_along_are_dated_and_fit_the_kinds() {
    let text = fs::read_to_string(tree().join("k8s/gke/prices.csv")).unwrap();
    let rows: Vec<Vec<&str>> =
        text.lines().filter(|line| !line.starts_with(['#', 'i'])).map(|line| line.split(',').collect()).collect();
    assert!(rows.len() > 5);
    for row in &rows {
        let [item, unit, usd, spot, as_of, source] = row[..] else { panic!("{row:?} has not six columns") };
        assert!(usd.parse::<f64>().is_ok_and(|usd| usd > 0.0), "{item}");
        assert!(spot.is_empty() || spot.parse::<f64>().is_ok_and(|spot| spot < usd.parse().unwrap()), "{item}");
        assert!(["hour", "gb-month"].contains(&unit) && ["catalog", "sample"].contains(&source), "{item}");
        assert!(as_of.len() == 10 && as_of.starts_with("20"), "{item}");
    }
    let desk = Desk::new();
    for kind in ["cpu", "t4", "l4", "h100"] {
        let done = desk.run("cost", &["--kind", kind]);
        assert_eq!((done.code, figures(&done).len()), (0, 6), "{kind}: {}", done.stderr);
    }
}

#[test]
fn a_missing_tool_is_one_line() {
    for (script, arguments) in COMMANDS {
        for tool in ["gcloud", "kubectl", "docker", "syft"] {
            let uses = match tool {
                "gcloud" => true,
                "kubectl" => ["create-cluster", "certificate", "migrate-pool"].contains(script),
                _ => *script == "push-images",
            };
            if !uses {
                continue;
            }
            let desk = Desk::without(&[tool]);
            let done = desk.run(script, arguments);
            assert_eq!(
                (done.code, done.stdout.as_str(), desk.changes()),
                (64, "", Vec::new()),
                "{script}: {}",
                done.stderr
            );
            assert!(done.stderr.starts_with(&format!("{script}: {tool} is missing: ")), "{}", done.stderr);
            assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
        }
    }
}

#[test]
fn wrong_usage_is_one_line_and_help_teaches() {
    let desk = Desk::new();
    for (script, arguments) in COMMANDS {
        let project: Vec<_> = arguments.iter().filter(|word| !["--project", "p"].contains(word)).copied().collect();
        let done = desk.run(script, &project);
        assert_eq!(done.code, 64, "{script}: {}", done.stderr);
        assert_eq!(done.stderr, format!("{script}: no project: give --project or set PROJECT\n"));
        let done = desk.run(script, &[arguments, &["--colour"] as &[&str]].concat());
        assert_eq!(done.code, 64, "{script}");
        assert_eq!(done.stderr, format!("{script}: unknown: --colour; see {script}.sh --help\n"));
        let done = desk.run(script, &["--region"]);
        assert_eq!((done.code, done.stderr.lines().count()), (64, 1), "{script}: {}", done.stderr);
        let help = desk.run(script, &["--help"]);
        assert!(help.code == 0 && help.stderr.is_empty(), "{script}: {}", help.stderr);
        let teaches = ["Usage: ", "Example", "PROJECT", "--dry-run", "Exit codes"];
        assert!(teaches.iter().all(|part| help.stdout.contains(part)), "{script}: {}", help.stdout);
    }
    for (script, arguments) in [
        ("create-node-pool", &["--project", "p"] as &[&str]),
        ("create-node-pool", &["--project", "p", "--kind", "tpu"]),
        ("create-node-pool", &["--project", "p", "--kind", "cpu", "--min", "4"]),
        ("create-node-pool", &["--project", "p", "--kind", "cpu", "--max", "many"]),
        // One node a zone of three would be more than two.
        ("create-node-pool", &["--project", "p", "--kind", "cpu", "--max", "2"]),
        ("upload-assets", &["--project", "p", "--bucket", "b"]),
        ("upload-assets", &["nowhere", "--project", "p", "--bucket", "b"]),
        ("upload-assets", &["MODEL", "--project", "p"]),
        ("certificate", &["--project", "p"]),
        ("certificate", &["managed", "--project", "p"]),
        ("certificate", &["origin", "--project", "p", "--cert", "absent", "--key", "absent"]),
        ("grant-access", &["--project", "p"]),
        ("grant-access", &["assets", "--project", "p"]),
        ("grant-access", &["worker", "--project", "p"]),
        ("migrate-pool", &["old", "--project", "p"]),
        ("migrate-pool", &["old", "old", "--project", "p"]),
        ("migrate-pool", &["old", "new", "--project", "p", "--drain-timeout-s", "0"]),
        ("migrate-pool", &["old", "new", "--project", "p", "--surge", "0"]),
        ("migrate-pool", &["old", "new", "--project", "p", "--apply", "nowhere"]),
        ("push-images", &["--project", "p", "--images", "postgres"]),
        ("cost", &[]),
        ("cost", &["--kind", "cpu", "--nodes", "-1"]),
        ("cost", &["--kind", "cpu", "--tokens-per-s", "100"]),
    ] {
        let done = desk.run(script, arguments);
        assert_eq!((done.code, done.stderr.lines().count()), (64, 1), "{script} {arguments:?}: {}", done.stderr);
    }
    assert_eq!(desk.changes(), Vec::<String>::new());
}

#[test]
fn what_a_flag_sets_a_variable_sets_too() {
    let mut desk = Desk::new();
    desk.variables = HashMap::from([
        ("PROJECT", "q".to_owned()),
        ("REGION", "europe-west4".to_owned()),
        ("CLUSTER", "other".to_owned()),
        ("KIND", "l4".to_owned()),
        ("SPOT", "1".to_owned()),
    ]);
    desk.there("container clusters", "other", "");
    let changes = desk.changes_of("create-node-pool", &["--max", "2"]);
    assert!(changes[0].contains("create l4-spot --cluster other --location europe-west4 --project q "), "{changes:?}");
    assert!(changes[0].contains(" --total-max-nodes 2 "), "{changes:?}");
}

#[test]
fn the_stubs_refuse_what_the_tools_would_refuse() {
    for (tool, arguments) in [
        (
            "gcloud",
            &["container", "clusters", "create", "x", "--project", "p", "--machine", "e2-standard-2"] as &[&str],
        ),
        ("gcloud", &["container", "clusters", "invent", "x", "--project", "p"]),
        ("gcloud", &["container", "node-pools", "create", "x", "--project", "p", "--location-policy", "SOME"]),
        ("gcloud", &["container", "node-pools", "create", "x", "y", "--project", "p"]),
        ("gcloud", &["container", "node-pools", "create", "x", "--spot=yes", "--project", "p"]),
        ("gcloud", &["container", "clusters", "describe", "x"]),
        ("kubectl", &["--context", "gke_p_r_c", "drain", "node", "--ignore-daemon-sets"]),
        ("kubectl", &["--context", "gke_p_r_c", "drain", "node", "--timeout", "9s", "--force"]),
        ("kubectl", &["--context", "gke_p_r_c", "drain", "node", "--timeout", "0s"]),
        ("kubectl", &["get", "nodes"]),
        ("docker", &["build", "--targets", "inferq", "."]),
        ("inferq-worker", &["assets", "sync", "a", "b", "--canary"]),
    ] {
        let desk = Desk::new();
        desk.there("container clusters", "x", "");
        let done = Command::new(desk.path("bin").join(tool))
            .args(arguments)
            .env("GKE_STATE", desk.path("state"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(99), "{tool} {arguments:?}");
        assert!(desk.read("unforeseen").contains(tool), "{tool} {arguments:?}");
    }
}
