#!/usr/bin/env python3
"""Asks every question of the dashboard of a real Prometheus that reads real workers under load, and draws the answers.

In: k8s/components/dashboard/inferq-dashboard.json, the recording rules of the component alerts, our release binaries, a model.
Out: a picture of all panels, each in its place (`--out`, .svg or .png), and exit code 1 with what is wrong: a query that fails,
one that is empty, two panels in one place, a variable, unit or field that Grafana does not know.

Workers: two with the echo engine on RabbitMQ, which `inferq submit` and `inferq bench` load until jobs wait; one with a real
model on an embedded queue, which goes over to another revision; one to which everything goes wrong; one that has no broker.
RabbitMQ's own figures are real. Those of Pub/Sub, kube-state-metrics and dcgm-exporter are not to be had here: a server in this
process says them (PLANTED), so that their queries are asked too; and a lost device, as a worker that loses it ends before it is
read again. Grafana itself is not run.

Needs Debian's packages prometheus and rabbitmq-server (no service need run), and matplotlib, which it fetches. What is missing
is said in one line; with CI set that is a failure.

Usage: dashboard_check.py [--bin DIR] [--model DIR] [--out FILE]
"""

import argparse
import contextlib
import copy
import http.server
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

import alerts_check
from alerts_check import HERE, Wrong, free_port, get, process, wait_for

MATPLOTLIB = "3.11.2"
RABBITMQ = ["/usr/lib/rabbitmq/bin/rabbitmq-server", "/opt/rabbitmq/sbin/rabbitmq-server"]
LOAD_S = 30
# What Grafana puts in for $__rate_interval: four times the interval of scraping, at least.
RATE_INTERVAL = "5s"
# Schema 41 is of Grafana 12, which brings later ones up to date by itself.
SCHEMA = 41
PANELS = {"row", "stat", "timeseries"}
# Of Grafana's units; "suffix:" takes any text.
UNITS = {"short", "s", "percent", "percentunit", "mbytes"}

# As the exporters' documentation names and labels them.
PLANTED = """\
# TYPE pubsub_googleapis_com:subscription_oldest_unacked_message_age gauge
pubsub_googleapis_com:subscription_oldest_unacked_message_age{project_id="p",subscription_id="jobs"} 4
# TYPE kube_pod_container_status_restarts_total counter
kube_pod_container_status_restarts_total{namespace="inferq",pod="inferq-worker-a",container="worker",uid="u"} 0
kube_pod_container_status_restarts_total{namespace="inferq",pod="inferq-worker-b",container="worker",uid="v"} 1
# TYPE inferq_device_failures_total counter
inferq_device_failures_total{namespace="inferq",pod="inferq-worker-z"} 1
# TYPE DCGM_FI_DEV_GPU_UTIL gauge
DCGM_FI_DEV_GPU_UTIL{gpu="0",Hostname="node-1",modelName="NVIDIA L4"} 87
# TYPE DCGM_FI_DEV_FB_USED gauge
DCGM_FI_DEV_FB_USED{gpu="0",Hostname="node-1",modelName="NVIDIA L4"} 9120
"""


def log(text):
    print(text, file=sys.stderr, flush=True)


# The dashboard's own form


def check_form(dashboard):
    if dashboard["schemaVersion"] != SCHEMA or not dashboard["uid"] or dashboard.get("id"):
        raise Wrong(f"the dashboard wants schemaVersion {SCHEMA}, a uid, and no id")
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    if variables != {"datasource": "datasource", "namespace": "query"}:
        raise Wrong(f"its variables are {variables}")
    panels = dashboard["panels"]
    if len({panel["id"] for panel in panels}) != len(panels):
        raise Wrong("two panels have one id")
    taken = {}
    for panel in panels:
        title, place = panel["title"], panel["gridPos"]
        if panel["type"] not in PANELS:
            raise Wrong(f"{title}: a panel of type {panel['type']}")
        if place["x"] < 0 or place["w"] < 1 or place["x"] + place["w"] > 24:
            raise Wrong(f"{title} reaches beyond the 24 columns")
        for cell in itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])):
            if cell in taken:
                raise Wrong(f"{title} and {taken[cell]} lie upon each other at {cell}")
            taken[cell] = title
        if panel["type"] == "row":
            continue
        unit = panel["fieldConfig"]["defaults"].get("unit", "")
        if unit not in UNITS and not unit.startswith("suffix:"):
            raise Wrong(f"{title} has the unit {unit!r}")
        if not panel.get("description") or not panel["targets"]:
            raise Wrong(f"{title} has no description, or asks nothing")
        if len({target["refId"] for target in panel["targets"]}) != len(panel["targets"]):
            raise Wrong(f"{title}: two queries have one refId")
        for target in [panel, *panel["targets"]]:
            if target["datasource"] != {"type": "prometheus", "uid": "${datasource}"}:
                raise Wrong(f"{title} does not ask the chosen data source")
        for target in panel["targets"]:
            unknown = set(re.findall(r"\$\{?(\w+)", target["expr"])) - {"namespace", "__rate_interval"}
            if unknown:
                raise Wrong(f"{title} has the variables {sorted(unknown)}")
            if "inferq" in target["expr"] and 'namespace=~"$namespace"' not in target["expr"]:
                raise Wrong(f"{title} does not heed the chosen namespace: {target['expr']}")
    # A ConfigMap goes into an annotation of 262,144 bytes when it is applied by a client.
    if alerts_check.DASHBOARD.stat().st_size > 200_000:
        raise Wrong("the dashboard is too large for a ConfigMap that kubectl applies")


def prove_form(dashboard):
    """Each fault that the form may have is noticed."""
    def panel(planted, title):
        return next(panel for panel in planted["panels"] if panel["title"] == title)

    def query(planted, old, new):
        target = panel(planted, "Jobs answered")["targets"][0]
        target["expr"] = target["expr"].replace(old, new)

    faults = {
        "an old schema": lambda planted: planted.update(schemaVersion=16),
        "a variable too few": lambda planted: planted["templating"]["list"].pop(),
        "an id twice": lambda planted: panel(planted, "Padding").update(id=1),
        "a panel upon another": lambda planted: panel(planted, "Padding")["gridPos"].update(x=1),
        "a panel beyond the edge": lambda planted: panel(planted, "Restarts")["gridPos"].update(w=17),
        "an unknown panel": lambda planted: panel(planted, "Padding").update(type="graph"),
        "an unknown unit": lambda planted: panel(planted, "Padding")["fieldConfig"]["defaults"].update(unit="pads"),
        "another data source": lambda planted: panel(planted, "Padding").update(datasource=None),
        "an unknown variable": lambda planted: query(planted, "$__rate_interval", "$interval"),
        "every namespace": lambda planted: query(planted, 'namespace=~"$namespace"', ""),
    }
    for what, plant in faults.items():
        planted = copy.deepcopy(dashboard)
        plant(planted)
        try:
            check_form(planted)
        except Wrong:
            continue
        raise Wrong(f"{what} is not noticed")
    return len(faults)


# The world that it looks at


@contextlib.contextmanager
def planted():
    """An exporter of what cannot be had here: its address."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = PLANTED.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def rabbitmq(program, folder):
    """A server of our own with its metrics plugin: the address of its queue, and that of its metrics."""
    folder.mkdir()
    amqp, metrics, distribution, epmd = (free_port() for _ in range(4))
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{amqp}\nprometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {metrics}\n"
        "log.console = false\nlog.file = server.log\ndisk_free_limit.absolute = 50MB\nraft.wal_max_size_bytes = 67108864\n"
        # Its figures are gathered every 5 s otherwise.
        "collect_statistics_interval = 1000\n")
    (folder / "enabled_plugins").write_text("[rabbitmq_prometheus].\n")
    # Nothing of the machine's own server is read or met.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")} | {
        "HOME": str(folder), "ERL_EPMD_PORT": str(epmd), "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"inferq-{amqp}@localhost", "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null", "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"), "RABBITMQ_LOG_BASE": str(folder / "log"),
    }
    with process(["epmd", "-port", str(epmd)], folder / "epmd.log", env=environment), open(folder / "out.log", "wb") as output:
        server = subprocess.Popen([program], env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                  start_new_session=True)
        try:
            wait_for("RabbitMQ", lambda: "rabbitmq_identity" in get(f"http://127.0.0.1:{metrics}/metrics"), 60)
            yield f"amqp://guest:guest@127.0.0.1:{amqp}/%2F", f"127.0.0.1:{metrics}"
        finally:
            # Shell, Erlang and its helpers are one session.
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def prometheus(folder, targets, broker, exporter):
    """Its command and address. Targets: pod → address."""
    rules = folder / "rules"
    rules.mkdir()
    subprocess.run([sys.executable, HERE / "alerts_check.py", "--extract", rules], check=True)
    address = f"127.0.0.1:{free_port()}"
    pods = [{"targets": [at], "labels": {"namespace": "inferq", "pod": pod}} for pod, at in targets.items()]
    detailed = {"family": ["queue_coarse_metrics"]}
    # JSON is YAML.
    (folder / "prometheus.yml").write_text(json.dumps({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules / alerts_check.MANIFESTS["PrometheusRule"].name)],
        "scrape_configs": [
            {"job_name": "inferq", "static_configs": pods},
            {"job_name": "rabbitmq", "metrics_path": "/metrics/detailed", "params": detailed,
             "static_configs": [{"targets": [broker]}]},
            {"job_name": "planted", "honor_labels": True, "static_configs": [{"targets": [exporter]}]},
        ]}))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
               f"--web.listen-address={address}", "--log.level=warn"]
    return command, address


class Model:
    """A real model as a root of revisions."""

    def __init__(self, bins, source, folder):
        self.bins, self.files, self.root = bins, folder / "files", folder / "models"
        shutil.copytree(source, self.files)
        self.publish()

    def publish(self):
        """Makes what lies in `files` the current revision."""
        assets = [self.bins / "inferq-worker", "assets"]
        (self.files / "manifest.json").unlink(missing_ok=True)
        for command in ([*assets, "manifest", self.files, "--name", "minilm"], [*assets, "sync", self.files, self.root]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise Wrong(f"{' '.join(map(str, command))}: {done.stderr}")

    def revise(self):
        """Another revision with the same answers."""
        config = self.files / "config.json"
        config.write_text(config.read_text() + "\n")
        self.publish()


def load(bins, folder, echo, real):
    """Two queues under load: more than the echo workers can do at first, then what they can."""
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps(f"text {number} of a backlog") + "\n" for number in range(8000)))
    submit = [bins / "inferq", "submit", "--queue", echo, "--input", texts, "--items-per-job", "2"]
    subprocess.run(submit, capture_output=True, cwd=folder, check=True)
    bench = [bins / "inferq", "bench", "--duration-s", str(LOAD_S - 5), "--text-tokens", "8-64", "--timeout-s", "60"]
    return [[*bench, "--queue", echo, "--rate", "40", "--items-per-job", "4"],
            [*bench, "--queue", real, "--rate", "15", "--items-per-job", "2"]]


def world(stack, bins, model, folder, program):
    """Starts all, loads it, and returns Prometheus' address and the time span to ask for."""
    echo, broker = stack.enter_context(rabbitmq(program, folder / "rabbitmq"))
    queues = {"real": f"sqlite://{folder}/real.db", "faulty": f"sqlite://{folder}/faulty.db"}
    for queue in [echo, *queues.values()]:
        subprocess.run([bins / "inferq", "setup", "--queue", queue], capture_output=True, check=True)
    assets = Model(bins, model, folder)
    worker = bins / "inferq-worker"
    slow = [worker, "--queue", echo, "--engine", "echo", "--echo-batch-ms", "25", "--replicas", "1", "--max-batch-items", "8"]
    pods = {f"inferq-worker-{letter}": f"127.0.0.1:{free_port()}" for letter in "abcde"}
    at = list(pods.values())
    commands = [
        [*slow, "--health", at[0]], [*slow, "--health", at[1]],
        [worker, "--queue", queues["real"], "--model", assets.root, "--watch-assets", "--replicas", "1", "--health", at[2]],
        alerts_check.faulty_worker(bins, folder, queues["faulty"], at[3]),
        [worker, "--queue", f"amqp://127.0.0.1:{free_port()}/", "--engine", "echo", "--health", at[4]],
    ]
    exporter = stack.enter_context(planted())
    command, address = prometheus(folder, pods, broker, exporter)
    start = time.time()
    stack.enter_context(process(command, folder / "prometheus.log"))
    for number, command in enumerate(commands):
        stack.enter_context(process(command, folder / f"worker-{number}.log", env=alerts_check.no_bucket()))
    for health in at[:4]:
        wait_for("a worker that is ready", lambda health=health: "Ok" in get(f"http://{health}/healthz"), 60)
    log(f"all are ready after {time.time() - start:.0f} s")
    running = [subprocess.Popen(bench, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
               for bench in load(bins, folder, echo, queues["real"])]
    alerts_check.provoke(bins, folder, queues["faulty"])
    alerts_check.submit_misfit(bins, folder, queues["faulty"])
    time.sleep(LOAD_S / 2)
    assets.revise()
    for bench in running:
        _, said = bench.communicate(timeout=120)
        if bench.returncode != 0:
            raise Wrong(f"inferq bench ended with {bench.returncode}: {said}")
    return address, (start, time.time())


# Questions and answers


def ask(address, path, **arguments):
    try:
        return json.loads(get(f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}", 30))["data"]
    except urllib.error.HTTPError as error:
        raise Wrong(f"{arguments.get('query')}: {error.read().decode()}") from error


def answer(address, span, target):
    """The lines of one query: (legend, [(seconds since the start, value)])."""
    expr = target["expr"].replace("$__rate_interval", RATE_INTERVAL).replace("$namespace", "inferq")
    result = ask(address, "query_range", query=expr, start=span[0], end=span[1], step="1")["result"]
    lines = []
    for found in result:
        legend = re.sub(r"{{(\w+)}}", lambda name, labels=found["metric"]: labels.get(name[1], ""), target["legendFormat"])
        values = [(float(at) - span[0], float(value)) for at, value in found["values"] if value not in ("NaN", "+Inf", "-Inf")]
        if values:
            lines.append((legend, values))
    return lines


def check_answers(address, span, dashboard):
    """Panel's id → its lines. Fails with all that is empty."""
    answers, empty = {}, []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            lines = answer(address, span, target)
            if not lines:
                empty.append(f"{panel['title']} ({target['refId']}): {target['expr']}")
            if len({legend for legend, _ in lines}) != len(lines):
                raise Wrong(f"{panel['title']}: two lines have one legend: {[legend for legend, _ in lines]}")
            answers.setdefault(panel["id"], []).extend(lines)
    return answers, empty


def check_alerts(address):
    """Prometheus can work out every rule, and names no alert that fires within half a minute but those whose cause is here."""
    groups = ask(address, "rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    ill = [f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]
    if not rules or ill:
        raise Wrong(f"rules that Prometheus can't work out: {ill}")
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    expected = {"InferqDeadLetters", "InferqDeviceLost"}
    if firing != expected:
        raise Wrong(f"alerts that fire: {sorted(firing)}, instead of {sorted(expected)}")
    return len(rules)


# The picture


def draw(data_path, out):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    data = json.loads(pathlib.Path(data_path).read_text())
    panels, answers = data["panels"], data["answers"]
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    # An inch for a row of Grafana's grid is 30 pixels there; so all is drawn at twice its density.
    column, line = 0.8, 0.36
    figure = pyplot.figure(figsize=(24 * column, bottom * line), facecolor="#f4f5f5")
    colours = ["#3b78b8", "#d9822b", "#3f9142", "#b83b5e", "#7a5ab8", "#8a6d3b", "#2a9d8f", "#6c757d"]
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] / 24, 1 - place["y"] / bottom
        width, height = place["w"] / 24, place["h"] / bottom
        title = {"x": left + 0.004, "y": top - 0.25 / bottom, "va": "top", "ha": "left"}
        if panel["type"] == "row":
            figure.text(**title, s=panel["title"], fontsize=13, weight="bold")
            continue
        lines = answers.get(str(panel["id"]), [])
        figure.text(**title, s=panel["title"], fontsize=10, weight="bold")
        defaults = panel["fieldConfig"]["defaults"]
        unit = defaults["unit"].removeprefix("suffix:").strip()
        unit = {"short": "", "percentunit": "(1 = full)", "percent": "%", "mbytes": "MiB"}.get(unit, unit)
        if panel["type"] == "stat":
            value = lines[0][1][-1][1] if lines else None
            shown = "no data" if value is None else f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
            figure.text(left + width / 2, top - height * 0.62, shown, fontsize=20, ha="center", va="center", color="#2f6f4f")
            continue
        axes = figure.add_axes([left + 0.03, top - height * 0.78, width - 0.04, height * 0.6])
        axes.set_ylabel(unit, fontsize=8)
        stacked = defaults["custom"]["stacking"]["mode"] == "normal"
        base = {}
        for number, (legend, values) in enumerate(lines):
            colour = colours[number % len(colours)]
            times = [at for at, _ in values]
            heights = [base.get(round(at), 0) + value if stacked else value for at, value in values]
            if stacked:
                axes.fill_between(times, [base.get(round(at), 0) for at in times], heights, alpha=0.3, color=colour)
                base.update({round(at): value for at, value in zip(times, heights)})
            axes.plot(times, heights, color=colour, linewidth=1.2, label=legend, marker="." if len(values) < 3 else None)
        axes.set_xlim(0, data["seconds"])
        axes.set_ylim(bottom=defaults.get("min"), top=defaults.get("max"))
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        if lines:
            columns = min(len(lines), 4 if sum(len(legend) for legend, _ in lines) < 48 else 2)
            axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns, frameon=False)
        else:
            axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color="#b83b5e")
    figure.savefig(out, dpi=100)


def main():
    alerts_check.end_orderly()
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=pathlib.Path, default=alerts_check.binaries())
    parser.add_argument("--model", type=pathlib.Path, default=pathlib.Path.home() / ".cache/inferq/models/all-MiniLM-L6-v2")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--draw", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw:
        draw(options.draw, options.out)
        return
    dashboard = json.loads(alerts_check.DASHBOARD.read_text())
    check_form(dashboard)
    faults = prove_form(dashboard)
    print(f"form: {len(dashboard['panels'])} panels are in their places; {faults} planted faults are noticed", flush=True)
    program = next((path for path in RABBITMQ if os.access(path, os.X_OK)), None)
    for there, what in ((shutil.which("prometheus"), "prometheus is missing: apt install prometheus"),
                        (program, "rabbitmq-server is missing: apt install rabbitmq-server"),
                        (options.model.is_dir(), f"there is no model at {options.model}: tests/tools/fetch_model.sh")):
        if not there:
            alerts_check.give_up(f"the dashboard's queries: {what}")
    python = options.out and subprocess.run([HERE / "venv.sh", "matplotlib", MATPLOTLIB], stdout=subprocess.PIPE, text=True,
                                            check=True).stdout.strip()
    with tempfile.TemporaryDirectory(prefix="inferq-dashboard-") as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        address, span = world(stack, options.bin, options.model, folder, program)
        answers, empty = check_answers(address, span, dashboard)
        rules = None if empty else check_alerts(address)
        data = folder / "data.json"
        data.write_text(json.dumps({"panels": dashboard["panels"], "answers": answers, "seconds": span[1] - span[0]}))
        if python:
            subprocess.run([python, __file__, "--draw", data, "--out", options.out], check=True)
    if empty:
        raise Wrong("without data:\n" + "\n".join(empty))
    queries = sum(len(panel.get("targets", [])) for panel in dashboard["panels"])
    print(f"dashboard: {queries} queries of {len(answers)} panels have data, and {rules} rules can be worked out"
          f"{f'; drawn in {options.out}' if python else ''}")


if __name__ == "__main__":
    try:
        main()
    except Wrong as wrong:
        sys.exit(f"dashboard_check: {wrong}")
