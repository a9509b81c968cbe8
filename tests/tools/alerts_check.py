#!/usr/bin/env python3
"""Checks the alerts and recording rules of k8s/components/alerts and alerts-gmp, and what the dashboard names.

In: the manifests, tests/fixtures/alerts, docs/operations.md, and our release binaries. Out: a line for each part, exit code 1
with what is wrong.

- promtool reads every rule, and its tests pass. Each alert has a case in which it fires and one in which it stays silent, and
  these are worth something: an alert that never fires, or always, must break them.
- Both sets of manifests say the same of the workers. Every alert has a severity, a summary, a description with values and a
  link, and its row in the runbook; the runbook has no row for an alert that is not there.
- Every metric of ours that an alert or the dashboard names comes from a real worker, to which all that goes wrong is done; every
  other one is in FOREIGN, with its source; recorded ones are recorded here.

`--extract DIR` only writes the rules as files that Prometheus reads. Needs promtool (Debian's package prometheus); without it
one line says what is left out, and with CI set that is a failure.

Usage: alerts_check.py [--bin DIR] [--extract DIR]
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
COMPONENTS = REPOSITORY / "k8s/components"
DASHBOARD = COMPONENTS / "dashboard/inferq-dashboard.json"
FIXTURES = REPOSITORY / "tests/fixtures/alerts"
RUNBOOK = REPOSITORY / "docs/operations.md"
MANIFESTS = {
    "PrometheusRule": COMPONENTS / "alerts/inferq-prometheusrule.yaml",
    "Rules": COMPONENTS / "alerts-gmp/inferq-rules.yaml",
    "GlobalRules": COMPONENTS / "alerts-gmp/inferq-globalrules.yaml",
}
# The group of which both sets must say the same.
SHARED_GROUP = "inferq-workers"
SEVERITIES = {"warning", "critical"}

# Metrics that are not ours: where they are documented.
FOREIGN = {
    # RabbitMQ's rabbitmq_prometheus, metrics-detailed.md, group queue_coarse_metrics.
    "rabbitmq_detailed_queue_messages_ready",
    # Google Cloud metrics, pubsub.googleapis.com/subscription/…, by the mapping of "PromQL in Cloud Monitoring".
    "pubsub_googleapis_com:subscription_num_undelivered_messages",
    "pubsub_googleapis_com:subscription_oldest_unacked_message_age",
    # Google Cloud metrics, kubernetes.io/container/restart_count.
    "kubernetes_io:container_restart_count",
    # kube-state-metrics, docs/metrics/workload/pod-metrics.md.
    "kube_pod_container_status_restarts_total",
    "kube_pod_container_status_last_terminated_exitcode",
    # NVIDIA's dcgm-exporter, etc/default-counters.csv.
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_FB_USED",
}
# Ours, documented, and not seen by this check: a swap needs two revisions of a real model. dashboard_check.py makes one.
NOT_PROVOKED = {"inferq_model_swaps_total"}

WORDS = {
    "and", "or", "unless", "on", "ignoring", "group_left", "group_right", "by", "without", "offset", "bool", "sum", "min", "max",
    "avg", "count", "rate", "increase", "round", "label_replace", "histogram_quantile", "max_over_time", "min_over_time",
    "avg_over_time", "le",
}


class Wrong(Exception):
    """What is wrong, in one line."""


def give_up(text):
    print(f"left out: {text}", file=sys.stderr)
    sys.exit(1 if os.environ.get("CI") else 0)


def with_packages(name, version, module):
    """This script again with a python that has the package, if this one has not."""
    try:
        __import__(module)
    except ImportError:
        made = subprocess.run([HERE / "venv.sh", name, version], stdout=subprocess.PIPE, text=True, check=False)
        python = made.stdout.strip()
        if not python:
            # It has said why.
            sys.exit(made.returncode)
        os.execv(python, [python, *sys.argv])


def binaries():
    target = os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target"
    return pathlib.Path(target) / "release"


# Rules


def load():
    """Kind → the groups of its manifest."""
    import yaml

    loaded = {}
    for kind, path in MANIFESTS.items():
        manifest = yaml.safe_load(path.read_text())
        fields = set(manifest), set(manifest["spec"])
        if manifest["kind"] != kind or fields != ({"apiVersion", "kind", "metadata", "spec"}, {"groups"}):
            raise Wrong(f"{path.name} is no {kind} with groups and nothing else")
        loaded[kind] = manifest["spec"]["groups"]
    return loaded


def rules_of(groups):
    return [rule for group in groups for rule in group["rules"]]


def extract(loaded, folder):
    """Each manifest's groups as a file that Prometheus reads, called as the manifest. JSON is YAML."""
    for kind, groups in loaded.items():
        (folder / MANIFESTS[kind].name).write_text(json.dumps({"groups": groups}))


def promtool(*arguments, folder):
    return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def fixtures():
    """Name → the parsed fixture."""
    import yaml

    return {path.name: yaml.safe_load(path.read_text()) for path in sorted(FIXTURES.glob("*.yaml"))}


def run_tests(loaded, names):
    """What promtool says against the tests of these names over these rules; empty when they pass."""
    with tempfile.TemporaryDirectory(prefix="inferq-alerts-") as name:
        folder = pathlib.Path(name)
        extract(loaded, folder)
        for fixture in names:
            shutil.copy(FIXTURES / fixture, folder)
        tested = promtool("test", "rules", *names, folder=folder)
        return "" if tested.returncode == 0 else tested.stdout + tested.stderr


def check_rules(loaded):
    with tempfile.TemporaryDirectory(prefix="inferq-alerts-") as name:
        folder = pathlib.Path(name)
        extract(loaded, folder)
        for path in MANIFESTS.values():
            checked = promtool("check", "rules", "--lint=all", "--lint-fatal", path.name, folder=folder)
            if checked.returncode != 0:
                raise Wrong(f"{path.name}: {checked.stdout}{checked.stderr}")
    shared = {kind: group for kind, groups in loaded.items() for group in groups if group["name"] == SHARED_GROUP}
    if set(shared) != {"PrometheusRule", "Rules"} or shared["PrometheusRule"]["rules"] != shared["Rules"]["rules"]:
        raise Wrong(f"the group {SHARED_GROUP} is not the same in the PrometheusRule and in the Rules")


def check_words(loaded):
    """Each alert's labels and annotations, and the runbook's rows."""
    text = RUNBOOK.read_text()
    section = text.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| `(Inferq\w+)`", section, re.MULTILINE))
    names = {rule["alert"] for groups in loaded.values() for rule in rules_of(groups) if "alert" in rule}
    for groups in loaded.values():
        for rule in rules_of(groups):
            if "alert" not in rule:
                continue
            name, notes = rule["alert"], rule["annotations"]
            if rule["labels"].get("severity") not in SEVERITIES:
                raise Wrong(f"{name} has no severity of {sorted(SEVERITIES)}")
            if set(notes) != {"summary", "description", "runbook_url"}:
                raise Wrong(f"{name} has other annotations than summary, description and runbook_url")
            if "{{" in notes["summary"] or "{{" not in notes["description"]:
                raise Wrong(f"{name}: values belong into the description, and not into the summary")
            if not notes["runbook_url"].endswith("/docs/operations.md#alerts"):
                raise Wrong(f"{name} does not lead to docs/operations.md#alerts")
    if rows != names:
        raise Wrong(f"docs/operations.md, Alerts: without a row {sorted(names - rows)}, without an alert {sorted(rows - names)}")


def check_cases(loaded):
    """Each alert has both cases, and they notice when it never fires, or always."""
    found = fixtures()
    by_file = {path.name: kind for kind, path in MANIFESTS.items()}
    cases = {}
    for fixture in found.values():
        kinds = [by_file[file] for file in fixture["rule_files"]]
        for test in fixture["tests"]:
            for case in test.get("alert_rule_test", []):
                outcome = "fires" if case.get("exp_alerts") else "silent"
                for kind in kinds:
                    cases.setdefault((kind, case["alertname"]), set()).add(outcome)
    failed = run_tests(loaded, list(found))
    if failed:
        raise Wrong(failed)
    mutants = 0
    # The Rules hold nothing but the shared group, which is tested where it stands in the PrometheusRule.
    for kind in ("PrometheusRule", "GlobalRules"):
        alerts = {rule["alert"]: rule for rule in rules_of(loaded[kind]) if "alert" in rule}
        for name in alerts:
            if cases.get((kind, name)) != {"fires", "silent"}:
                raise Wrong(f"{name} of the {kind} is not tested both ways")
        files = [name for name, fixture in found.items() if MANIFESTS[kind].name in fixture["rule_files"]]
        for what, change in (("never fire", "({}) and on () vector(1) == 2"), ("always fire", "({}) or vector(1)")):
            whole = {name: rule["expr"] for name, rule in alerts.items()}
            for name, rule in alerts.items():
                rule["expr"] = change.format(whole[name])
            noticed = set(re.findall(r"alertname: (\w+), time", run_tests(loaded, files)))
            for name, rule in alerts.items():
                rule["expr"] = whole[name]
            if noticed != set(alerts):
                raise Wrong(f"{sorted(set(alerts) - noticed)} of the {kind} may {what}, and no test notices")
            mutants += len(alerts)
    return len(cases), mutants


# Metrics


def named(expr):
    """The metrics that an expression names, each with the labels that it selects or groups by, as far as a reader can tell."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"{[^}]*}", "", bare)
    bare = re.sub(r"\boffset\s+\w+", "", bare)
    return {word for word in re.findall(r"[A-Za-z_][A-Za-z0-9_:]*", bare) if word not in WORDS}


def dashboard_targets():
    """(title of the panel, expression) of every query of the dashboard."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]


def documented():
    """Metric → its labels, by the table in docs/operations.md."""
    section = RUNBOOK.read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    table = {}
    for name, kind, labels in re.findall(r"^\| `(inferq_\w+)` \| (\w+) \| ([^|]*)\|", section, re.MULTILINE):
        suffixes = ["_bucket", "_sum", "_count"] if kind == "histogram" else [""]
        table.update({name + suffix: set(re.findall(r"`(\w+)`", labels)) for suffix in suffixes})
    return table


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url, patience_s=2.0):
    with urllib.request.urlopen(url, timeout=patience_s) as answer:
        return answer.read().decode()


@contextlib.contextmanager
def process(command, log, **options):
    """A process of ours, ended when the block is left, in a session of its own."""
    with open(log, "ab") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for(what, condition, patience_s=30.0, pause_s=0.05):
    """Waits until the condition holds, and returns what it says."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            if said := condition():
                return said
        time.sleep(pause_s)
    raise Wrong(f"in vain waited {patience_s:.0f} s for {what}")


def no_bucket():
    """The environment of a worker whose bucket is out of reach."""
    nowhere = {"AWS_ENDPOINT": f"http://127.0.0.1:{free_port()}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "nowhere"}
    return os.environ | nowhere | {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}


def faulty_worker(bins, folder, queue, health):
    """The command of a worker on which provoke() has its effects."""
    (folder / "objects").mkdir(exist_ok=True)
    # Where a folder is looked for lies a file: the store refuses, and is not merely away.
    (folder / "blocked").touch()
    allowed = [f"file://{folder}/objects/", f"file://{folder}/blocked/", "s3://nowhere/vectors/"]
    command = [bins / "inferq-worker", "--queue", queue, "--engine", "echo", "--echo-faults", "--health", health]
    return command + [f"--allow-write={prefix}" for prefix in allowed]


def provoke(bins, folder, queue):
    """Publishes a job for each way to end but two: what makes a worker unfit, and what ends it."""
    submit(bins, folder, queue, "succeeds", "a text")
    submit(bins, folder, queue, "fails", "!fail")
    submit(bins, folder, queue, "expires", "late", "--deadline", "2020-01-01T00:00:00Z")
    submit(bins, folder, queue, "is-rejected", "too wide", "--dimensions", "1000000")
    submit(bins, folder, queue, "is-put", "kept", "--reply-uri", f"file://{folder}/objects/")
    submit(bins, folder, queue, "is-refused", "kept", "--reply-uri", f"file://{folder}/blocked/")
    submit(bins, folder, queue, "is-not-put", "kept", "--reply-uri", "s3://nowhere/vectors/")


def submit(bins, folder, queue, name, text, *flags):
    """Publishes one job with one text."""
    path = folder / f"{name}.jsonl"
    path.write_text(json.dumps(text) + "\n")
    command = [bins / "inferq", "submit", "--queue", queue, "--input", path, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode != 0:
        raise Wrong(f"inferq submit {name}: {done.stderr}")


def submit_misfit(bins, folder, queue):
    submit(bins, folder, queue, "fits-nobody", "a text", "--model-name", "a-model-that-is-not-here")


def live(bins):
    """What real workers expose, metrics with their labels, and all values: one worker to which everything is done, and one
    whose broker is not there."""
    seen, values = {}, set()

    def look(health, *wanted):
        def all_there():
            text = get(f"http://{health}/metrics")
            for name, labels in re.findall(r"^(inferq_\w+)(?:{(.*)})? ", text, re.MULTILINE):
                seen.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
                values.update(re.findall(r'="([^"]*)"', labels))
            return all(name in seen for name in wanted)
        return all_there

    with tempfile.TemporaryDirectory(prefix="inferq-alerts-") as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        queue = f"sqlite://{folder}/queue.db"
        subprocess.run([bins / "inferq", "setup", "--queue", queue], capture_output=True, check=True)
        health, lost = (f"127.0.0.1:{free_port()}" for _ in range(2))
        worker = faulty_worker(bins, folder, queue, health)
        stack.enter_context(process(worker, folder / "worker.log", env=no_bucket()))
        nowhere = [bins / "inferq-worker", "--queue", f"amqp://127.0.0.1:{free_port()}/", "--engine", "echo", "--health", lost]
        stack.enter_context(process(nowhere, folder / "nowhere.log"))
        wait_for("a worker", look(health))
        provoke(bins, folder, queue)
        wait_for("failures of the broker", look(lost, "inferq_broker_failures_total"))
        unseen = ["inferq_bucket_failures_total", "inferq_dead_letters_total", "inferq_objects_total"]
        wait_for(f"all of {', '.join(unseen)}", look(health, *unseen), 60)
        submit_misfit(bins, folder, queue)
        wait_for("a release", look(health, "inferq_releases_total"))
        submit(bins, folder, queue, "loses", "!lose")
        # The worker ends some milliseconds after it has counted that.
        wait_for("a lost device", look(health, "inferq_device_failures_total"), 20, 0.001)
    return seen, values


def check_names(place, expr, seen, seen_values, recorded):
    """The metrics, labels and values of one expression are there. Returns the metrics of ours."""
    table, text = documented(), RUNBOOK.read_text()
    ours = named(expr) - recorded - FOREIGN
    for name in ours:
        if name not in table:
            raise Wrong(f"{place} names {name}, which docs/operations.md does not")
        if name not in seen and name not in NOT_PROVOKED:
            raise Wrong(f"{place} names {name}, which no real worker has shown")
        if not table[name] >= seen.get(name, set()) - {"le"}:
            raise Wrong(f"{name} has other labels than documented: {sorted(seen[name])}")
    for name, labels in re.findall(r"(inferq_\w+){([^}]*)}", expr):
        for label, values in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', labels):
            if label in ("namespace", "pod"):
                continue
            if label not in table[name]:
                raise Wrong(f"{place}: {name} has no label {label}")
            unknown = [value for value in values.split("|") if value not in seen_values and f"`{value}`" not in text]
            if unknown:
                raise Wrong(f"{place}: {name} with the {label} {unknown}, which docs/operations.md does not know")
    return ours


def check_metrics(loaded, bins):
    recorded = {rule["record"] for groups in loaded.values() for rule in rules_of(groups) if "record" in rule}
    places = [(rule.get("alert") or rule["record"], rule["expr"]) for groups in loaded.values() for rule in rules_of(groups)]
    places += [(f"panel {title}", expr) for title, expr in dashboard_targets()]
    seen, seen_values = live(bins)
    ours = set().union(*(check_names(place, expr, seen, seen_values, recorded) for place, expr in places))
    wrong = [
        "rate(inferq_job_total[5m])", "rate(rabbitmq_detailed_queue_messages_redy[5m])", "inferq:work_second > 1",
        'sum(inferq_state{status="ready"})', 'sum(inferq_state{state="redy"})', "rate(inferq_jobs_total_sum[5m])",
    ]
    for expr in wrong:
        try:
            check_names("a planted fault", expr, seen, seen_values, recorded)
        except Wrong:
            continue
        raise Wrong(f"{expr} is taken for sound")
    return len(ours), len(places), len(wrong)


def end_orderly():
    """Whoever ends this script by SIGTERM ends what it has started too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def main():
    end_orderly()
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=pathlib.Path, default=binaries())
    parser.add_argument("--extract", type=pathlib.Path)
    options = parser.parse_args()
    with_packages("kubernetes-validate", "1.37.0", "yaml")
    loaded = load()
    if options.extract:
        extract(loaded, options.extract)
        return
    if not shutil.which("promtool"):
        give_up("the alerts: promtool is missing: apt install prometheus (its service need not run)")
    check_rules(loaded)
    count = sum(len(rules_of(groups)) for groups in loaded.values())
    print(f"rules: promtool reads {count} in {len(loaded)} manifests", flush=True)
    check_words(loaded)
    cases, mutants = check_cases(loaded)
    print(f"cases: {cases} alerts fire and stay silent where they should; {mutants} broken ones are noticed", flush=True)
    ours, places, wrong = check_metrics(loaded, options.bin)
    print(f"metrics: {ours} of ours in {places} expressions come from real workers; {wrong} planted faults are noticed")


if __name__ == "__main__":
    try:
        main()
    except Wrong as wrong:
        sys.exit(f"alerts_check: {wrong}")
