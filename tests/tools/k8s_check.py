#!/usr/bin/env python3
"""Renders every overlay of k8s/, and every component on the base, and checks what comes out, without a cluster.

In: k8s/, tests/fixtures/crds/, `kubectl` in the PATH, and the folder of our release binaries (`--bin`), which are
asked what they know: their `--help` for variables, a running worker for paths and for the values of the variables. Out:
a line for each render on stdout; on a fault one line for each, `render: Kind/name: what`, on stderr, and exit code 1.

1. Schemas, strictly: an unknown field anywhere is a fault. Kubernetes' own kinds by the package kubernetes-validate;
   KEDA's, the Prometheus operator's and Google's monitoring kinds by their CustomResourceDefinitions. NOT_VALIDATED has
   no schema here: of those only metadata is checked, and what refers to them.
2. What no schema knows: ports and paths that the worker serves, grace above the drain limit, variables, selectors,
   references, images, memory, security contexts; and, where `promtool` is, what the queries of scaling come to.
3. `--plant`: breaks rendered objects in memory, one fault at a time, and fails unless each is found.

Python 3.11 with the packages of tests/tools/k8s.sh: "$(tests/tools/k8s.sh)" tests/tools/k8s_check.py --bin DIR
"""

import argparse
import concurrent.futures
import copy
import functools
import http.client
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

import jsonschema
import kubernetes_validate.utils as builtin
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
KUBERNETES = "1.37"
NAMESPACE = "inferq"
MARGIN_S = 5  # between the drain limit and the end of grace, at least

# Kinds of GKE and of the snapshot controller, whose definitions are not kept here.
NOT_VALIDATED = {
    "cloud.google.com/v1/BackendConfig",
    "networking.gke.io/v1beta1/FrontendConfig",
    "networking.gke.io/v1/ManagedCertificate",
    "snapshot.storage.k8s.io/v1/VolumeSnapshot",
    "snapshot.storage.k8s.io/v1/VolumeSnapshotClass",
}
# Google's GlobalRules have the spec of its Rules.
SAME_SPEC = {("monitoring.googleapis.com/v1", "GlobalRules"): ("monitoring.googleapis.com/v1", "Rules")}
CLUSTER_WIDE = {
    "GlobalRules",
    "Namespace",
    "PersistentVolume",
    "StorageClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "VolumeSnapshotClass",
}

# Made by the operator, by a command that stands in the kustomization of the component; and what gke-assets has made before.
BY_THE_OPERATOR = {
    ("Secret", "inferq-queue"),
    ("Secret", "inferq-rabbitmq-management"),
    ("Secret", "inferq-origin-certificate"),
}
BY_GKE_ASSETS = {("PersistentVolumeClaim", "inferq-models")}

# Images that can't run on a read-only root; the manifest says why.
WRITABLE_ROOT = {("StatefulSet", "rabbitmq")}

# What a component is nothing without, in the order of rendering; the queue and the volume it gets besides.
BEFORE = {"keda-pubsub": ["keda"], "keda-rabbitmq": ["keda"], "expose-cloudflare": ["expose"]}
AFTER = {"keda": ["keda-pubsub"]}
# A part of assets-volume, assets-filestore and of the overlay gke-assets.
NOT_ALONE = {"assets-sync"}
SETTINGS = {
    "project": "project-1",
    "topic": "jobs",
    "queues": "^jobs([.]shards)?$",
    "bucket": "models",
    "model": "minilm",
    "revision": "r1",
    "domain": "inferq.example.com",
    "static_ip": "inferq",
    "prometheus": "http://prometheus-operated.monitoring:9090",
}

# It reads them anew for every object.
builtin.schema_contents = functools.cache(builtin.schema_contents)
builtin.all_versions = functools.cache(builtin.all_versions)


# Renders


def kustomize(folder):
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"k8s_check: {folder} can't be rendered: {done.stderr.strip()}")
    if done.stderr.strip():
        sys.exit(f"k8s_check: {folder}: kustomize warns: {done.stderr.strip()}")
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


def on_the_base(component):
    """The component with its companions on the base, in a folder that is gone afterwards."""
    queue = [] if component in ("pubsub", "rabbitmq") else ["pubsub"]
    volume = [] if component.startswith("assets-") else ["assets-local"]
    chosen = queue + volume + BEFORE.get(component, []) + [component] + AFTER.get(component, [])
    settings = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "data": SETTINGS,
        "metadata": {"name": "settings", "annotations": {"config.kubernetes.io/local-config": "true"}},
    }
    with tempfile.TemporaryDirectory() as folder:
        k8s = os.path.relpath(K8S, os.path.realpath(folder))
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": NAMESPACE,
            "resources": ["settings.yaml", f"{k8s}/base"],
            "components": [f"{k8s}/components/{name}" for name in chosen],
            "transformers": [f"{k8s}/transformers"],
        }
        for name, content in (("settings.yaml", settings), ("kustomization.yaml", kustomization)):
            pathlib.Path(folder, name).write_text(yaml.safe_dump(content), encoding="utf-8")
        return kustomize(folder)


def renders():
    """Name → objects. kubectl takes its time, so two at once."""
    overlays = sorted(path for path in (K8S / "overlays").iterdir() if path.is_dir())
    components = sorted(path.name for path in (K8S / "components").iterdir() if path.is_dir())
    components = [name for name in components if name not in NOT_ALONE]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = dict(zip((overlay.name for overlay in overlays), pool.map(kustomize, overlays), strict=True))
        found |= zip((f"base + {name}" for name in components), pool.map(on_the_base, components), strict=True)
    return found


# The binaries


class Binaries:
    """What `inferq` and `inferq-worker` know."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    @functools.cache
    def help(self, *command):
        path = self.folder / command[0]
        if not path.exists():
            sys.exit(f"k8s_check: {path} is missing: build the release first, or name its folder with --bin")
        done = subprocess.run([path, *command[1:], "--help"], capture_output=True, text=True, check=True)
        return done.stdout

    def variables(self, *command):
        return set(re.findall(r"\[env: (INFERQ_\w+)", self.help(*command)))

    def drain_limit_s(self):
        return int(re.search(r"INFERQ_DRAIN_LIMIT_S=\]\s+\[default: (\d+)\]", self.help("inferq-worker"))[1])

    @functools.cache
    def served(self, environment):
        """What a worker with this environment answers on each path, or why it does not start; on a queue of its own."""
        with tempfile.TemporaryDirectory() as folder:
            queue = ["--queue", f"sqlite:{folder}/queue.db"]
            subprocess.run([self.folder / "inferq", "setup", *queue], capture_output=True, check=True)
            worker = subprocess.Popen(
                [
                    self.folder / "inferq-worker",
                    *queue,
                    "--engine=echo",
                    "--health=127.0.0.1:0",
                    "--log=info",
                    f"--termination-log={folder}/end",
                ],
                env=dict(environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            # It is ready within a second; one that never is ends here, and is told like one that ends by itself.
            limit = threading.Timer(60, worker.kill)
            limit.start()
            try:
                address, last = None, ""
                for last in worker.stdout:
                    line = json.loads(last) if last.startswith("{") else {}
                    address = line.get("address", address)
                    if line.get("message") == "ready":
                        break
                else:
                    return f"a worker with these variables does not start: {last.strip()}"
                host, port = address.rsplit(":", 1)
                answers = {}
                for path in ("/livez", "/healthz", "/readyz", "/metrics", "/status", "/absent"):
                    connection = http.client.HTTPConnection(host, int(port), timeout=10)
                    connection.request("GET", path)
                    answers[path] = connection.getresponse().status
                    connection.close()
                return answers
            finally:
                worker.send_signal(signal.SIGTERM)
                worker.communicate()
                limit.cancel()


# Schemas


def crd_schemas():
    """(apiVersion, kind) → a strict JSON schema of each version of each CustomResourceDefinition."""
    schemas = {}
    for path in sorted((ROOT / "tests/fixtures/crds").glob("*.yaml")):
        spec = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            # The API server's own part, checked apart.
            schema["properties"]["metadata"] = {"type": "object"}
            schemas[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = jsonschema.Draft7Validator(schema)
    return schemas


def strict(schema):
    """An OpenAPI schema of Kubernetes' as JSON schema, in which objects have the properties they name and no others."""
    schema = {key: value for key, value in schema.items() if key not in ("default", "example")}
    if schema.pop("x-kubernetes-int-or-string", False):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    for key in ("properties", "patternProperties"):
        if key in schema:
            schema[key] = {name: strict(value) for name, value in schema[key].items()}
    for key in ("items", "additionalProperties", "not"):
        if isinstance(schema.get(key), dict):
            schema[key] = strict(schema[key])
    # allOf and its like narrow what stands beside them and name no new properties, so they stay as they are.
    loose = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if "properties" in schema and "additionalProperties" not in schema and not loose:
        schema["additionalProperties"] = False
    if schema.pop("nullable", False) and "type" in schema:
        schema["type"] = [schema["type"], "null"]
    return schema


CRDS = crd_schemas()


def schema_faults(thing):
    """Faults by schema, and how it was checked."""
    group_kind = (thing["apiVersion"], thing["kind"])
    group_kind = SAME_SPEC.get(group_kind, group_kind)
    # Metadata of kinds that the package doesn't know, as that of one which it does.
    stand_in = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": thing["metadata"]}
    if group_kind in CRDS:
        errors = [f"{dotted(error.absolute_path)}: {error.message}" for error in CRDS[group_kind].iter_errors(thing)]
        return errors + builtin_faults(stand_in), "crd"
    if "/".join(group_kind) in NOT_VALIDATED:
        return builtin_faults(stand_in), "none"
    return builtin_faults(thing), "builtin"


def builtin_faults(thing):
    return list(builtin_faults_of(json.dumps(thing)))


@functools.cache
def builtin_faults_of(text):
    """Most objects stand in many renders."""
    thing = json.loads(text)
    try:
        builtin.validate(thing, KUBERNETES, strict=True)
    except builtin.ValidationError as error:
        return [f"{dotted(error.absolute_path)}: {error.message}"]
    except builtin.SchemaNotFoundError:
        return [
            f"no schema for {thing['apiVersion']}/{thing['kind']}: if that is no mistake, put it into tests/fixtures/crds"
        ]
    return []


def dotted(path):
    return ".".join(str(step) for step in path) or "."


# What no schema knows


class Render:
    """The objects of one render, by kind and name."""

    def __init__(self, name, things):
        self.name = name
        self.things = things
        self.by_name = {(thing["kind"], thing["metadata"]["name"]): thing for thing in things}

    def of(self, *kinds):
        return [thing for thing in self.things if thing["kind"] in kinds]

    def worker(self):
        return self.by_name.get(("Deployment", "inferq-worker"))

    def templates(self):
        """(object, pod template) of whatever makes pods."""
        return [
            (thing, thing["spec"]["template"]) for thing in self.of("Deployment", "StatefulSet", "Job", "DaemonSet")
        ]

    def has(self, kind, name):
        return (kind, name) in self.by_name

    def environment(self, pod, container):
        """The variables of a container as far as they can be known here, in the order in which Kubernetes defines them."""
        values = {}
        for source in container.get("envFrom", []):
            kind, name = (
                ("ConfigMap", source["configMapRef"]["name"])
                if "configMapRef" in source
                else ("Secret", source["secretRef"]["name"])
            )
            thing = self.by_name.get((kind, name), {})
            values |= thing.get("data", {}) if kind == "ConfigMap" else {key: "" for key in thing.get("data", {})}
        for entry in container.get("env", []):
            values[entry["name"]] = self.value(pod, container, entry)
        return values

    def value(self, pod, container, entry):
        if "value" in entry:
            return entry["value"]
        source = entry.get("valueFrom", {})
        if "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            return self.by_name.get(("ConfigMap", reference["name"]), {}).get("data", {}).get(reference["key"])
        if "resourceFieldRef" in source:
            group, resource = source["resourceFieldRef"]["resource"].split(".")
            amount = container["resources"][group].get(resource, "1")
            return str(-(-int(amount[:-1]) // 1000)) if amount.endswith("m") else amount
        return f"<{entry['name']}>"


def fits(selector, labels):
    """Whether a label selector, as an object has it, selects what has these labels."""
    for expression in selector.get("matchExpressions", []):
        value = labels.get(expression["key"])
        wanted = expression.get("values", [])
        verdict = {
            "In": value in wanted,
            "NotIn": value not in wanted,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not verdict[expression["operator"]]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def images(render, _):
    for thing, template in render.templates():
        for container in containers(template):
            image = container["image"]
            name, at, digest = image.partition("@")
            tag = name.rsplit("/", 1)[-1].partition(":")[2]
            if at and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
                yield thing, f"image {image}: the digest is none"
            if not at and tag in ("", "latest"):
                yield thing, f"image {image}: no tag, or one that moves"


def memory(render, _):
    for thing, template in render.templates():
        for container in containers(template):
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            for resource in ("memory", "nvidia.com/gpu"):
                if requests.get(resource) != limits.get(resource) or (
                    resource == "memory" and not limits.get(resource)
                ):
                    yield (
                        thing,
                        f"{container['name']}: {resource}: requests {requests.get(resource)}, limits {limits.get(resource)}",
                    )
            if "cpu" not in requests or "cpu" in limits:
                yield thing, f"{container['name']}: cpu: must be requested and not limited"


def security(render, _):
    for thing, template in render.templates():
        pod = template["spec"]
        context = pod.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield thing, "runs as root, or does not say that it doesn't"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield thing, "seccompProfile is not RuntimeDefault"
        if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield thing, "shares the host's namespaces"
        allowed = {
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
            "secret",
        }
        for volume in pod.get("volumes", []):
            if not (volume.keys() - {"name"}) <= allowed:
                yield thing, f"volume {volume['name']} is of a kind that Pod Security's restricted profile refuses"
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield thing, f"volume {volume['name']} has no bound"
        token = pod.get("automountServiceAccountToken")
        if token is not False and thing is not render.worker():
            yield thing, "gets a token for the API server, and has no use for it"
        for container in containers(template):
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
                yield thing, f"{container['name']}: may escalate privileges"
            if own.get("capabilities") != {"drop": ["ALL"]}:
                yield thing, f"{container['name']}: keeps capabilities"
            if (
                own.get("readOnlyRootFilesystem") is not True
                and (thing["kind"], thing["metadata"]["name"]) not in WRITABLE_ROOT
            ):
                yield thing, f"{container['name']}: its root file system can be written"
    for role in render.of("Role", "ClusterRole"):
        if role["kind"] == "ClusterRole" or role["rules"] != [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}
        ]:
            yield role, "grants more than patching pods"


def containers(template):
    return template["spec"].get("initContainers", []) + template["spec"]["containers"]


def command_of(container):
    """Whose `--help` names the variables of a container of ours, or None."""
    if not re.search(r"(^|/)inferq(-cuda)?[:@]", container["image"]):
        return None
    if "command" in container:
        return tuple(container["command"][:2])
    subcommands = [word for word in container.get("args", [])[:2] if re.fullmatch(r"[a-z]+", word)]
    return ("inferq-worker", *subcommands)


def variables(render, binaries):
    for thing, template in render.templates():
        for container in containers(template):
            command = command_of(container)
            if command is None:
                continue
            values = render.environment(template["spec"], container)
            known = binaries.variables(*command)
            for name in values:
                if name.startswith("INFERQ_") and name not in known:
                    yield thing, f"{container['name']}: {name} is no variable of {' '.join(command)}"
            yield from ((thing, fault) for fault in expansions(container, values))


def expansions(container, values):
    """$(VAR) is expanded by what is defined before it only, and stays as it is where nothing is."""
    defined = values.keys() - {entry["name"] for entry in container.get("env", [])}
    for entry in container.get("env", []):
        for name in re.findall(r"\$\((\w+)\)", entry.get("value", "")):
            if name not in defined:
                yield f"{container['name']}: {entry['name']} uses {name}, which is not defined before it"
        defined.add(entry["name"])
        if values[entry["name"]] is None:
            yield f"{container['name']}: {entry['name']} refers to a key that its ConfigMap has not"
    for word in container.get("command", []) + container.get("args", []):
        for name in re.findall(r"\$\((\w+)\)", word):
            if name not in defined:
                yield f"{container['name']}: {word} uses {name}, which is not defined"


def expanded(text, values):
    return re.sub(r"\$\((\w+)\)", lambda found: values.get(found[1]) or found[0], text)


def worker_container(render):
    return next(
        container
        for container in render.worker()["spec"]["template"]["spec"]["containers"]
        if container["name"] == "worker"
    )


def served(render, binaries):
    """Ports and paths: what probes, monitors and load balancers ask for is what a worker answers."""
    worker = render.worker()
    if worker is None:
        return
    container = worker_container(render)
    values = render.environment(worker["spec"]["template"]["spec"], container)
    # Its own queue, engine and address, and nothing that is only there in a cluster or on a card.
    left_out = {
        "INFERQ_QUEUE",
        "INFERQ_MODEL",
        "INFERQ_HEALTH",
        "INFERQ_TERMINATION_LOG",
        "INFERQ_DEVICE",
        "INFERQ_CACHE_DIR",
        "INFERQ_POD_NAME",
        "INFERQ_POD_NAMESPACE",
    }
    environment = {name: value for name, value in values.items() if name.startswith("INFERQ_") and name not in left_out}
    answers = binaries.served(tuple(sorted(environment.items())))
    if isinstance(answers, str):
        yield worker, answers
        return
    port = int(values["INFERQ_HEALTH"].rsplit(":", 1)[1])
    if not values["INFERQ_HEALTH"].startswith("0.0.0.0:"):
        yield worker, f"INFERQ_HEALTH={values['INFERQ_HEALTH']} is not reached from outside of the pod"
    ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
    if ports != {"health": port}:
        yield worker, f"ports are {ports}, and the worker serves {port} alone"
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/healthz")):
        asked = container.get(probe, {}).get("httpGet", {})
        if asked.get("path") != path or answers.get(path) != 200:
            yield (
                worker,
                f"{probe} asks {asked.get('path')}, should ask {path}, which a worker answers {answers.get(path)}",
            )
        if ports.get(asked.get("port"), asked.get("port")) != port:
            yield worker, f"{probe} asks port {asked.get('port')}, and the worker serves {port}"
    if container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] < 30:
        yield worker, "startupProbe gives the process less than 30 s to bind its port"

    def absent(path):
        return answers.get(path, answers["/absent"]) == 404

    for monitor in render.of("PodMonitor", "PodMonitoring"):
        for endpoint in monitor["spec"].get("podMetricsEndpoints", []) + monitor["spec"].get("endpoints", []):
            if endpoint["port"] not in ("health", port) or absent(endpoint.get("path", "/metrics")):
                yield monitor, f"asks {endpoint['port']}{endpoint.get('path')}, which no worker serves"
    for service in render.of("Service"):
        if fits({"matchLabels": service["spec"]["selector"]}, worker["spec"]["template"]["metadata"]["labels"]):
            for entry in service["spec"]["ports"]:
                if entry["targetPort"] not in ("health", port) or entry["port"] != port:
                    yield service, f"port {entry['port']} → {entry['targetPort']}, and the worker serves {port}"
    for ingress in render.of("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for entry in rule["http"]["paths"]:
                if absent(entry["path"]) or entry["pathType"] != "Exact":
                    yield (
                        ingress,
                        f"{entry['pathType']} path {entry['path']}: must be Exact, and one that the worker serves",
                    )
    for config in render.of("BackendConfig"):
        check = config["spec"]["healthCheck"]
        if absent(check["requestPath"]) or check["port"] != port:
            yield config, f"checks {check['port']}{check['requestPath']}, which no worker serves"
    for policy in render.of("NetworkPolicy"):
        if fits(policy["spec"]["podSelector"], worker["spec"]["template"]["metadata"]["labels"]) and policy["spec"].get(
            "ingress"
        ):
            for rule in policy["spec"]["ingress"]:
                if [entry["port"] for entry in rule.get("ports", [])] != [port]:
                    yield policy, f"lets in more than, or other than, port {port}"


def grace(render, binaries):
    worker = render.worker()
    if worker is None:
        return
    values = render.environment(worker["spec"]["template"]["spec"], worker_container(render))
    drain = int(values.get("INFERQ_DRAIN_LIMIT_S", binaries.drain_limit_s()))
    period = worker["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
    if period < drain + MARGIN_S:
        yield (
            worker,
            f"terminationGracePeriodSeconds is {period}, INFERQ_DRAIN_LIMIT_S {drain}: less than {MARGIN_S} s between them",
        )


def selectors(render, _):
    pods = [template["metadata"]["labels"] for _, template in render.templates()]
    for thing in render.of("Deployment", "StatefulSet"):
        labels = thing["spec"]["template"]["metadata"]["labels"]
        if not fits(thing["spec"]["selector"], labels):
            yield thing, "its selector does not select its own pods"
        spec = thing["spec"]["template"]["spec"]
        wanted = [
            ("topologySpreadConstraints", term["labelSelector"]) for term in spec.get("topologySpreadConstraints", [])
        ]
        affinity = spec.get("affinity", {}).get("podAffinity", {})
        wanted += [
            ("podAffinity", term["labelSelector"])
            for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution", [])
        ]
        for field, selector in wanted:
            if not fits(selector, labels):
                yield thing, f"{field} does not select its own pods"
    for thing in render.of("Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor", "PodMonitoring"):
        field = "podSelector" if thing["kind"] == "NetworkPolicy" else "selector"
        selector = thing["spec"][field]
        selector = {"matchLabels": selector} if thing["kind"] == "Service" else selector
        if not any(fits(selector, labels) for labels in pods):
            yield thing, f"its {field} selects nothing"
    for service in render.of("Service"):
        selected = [
            template
            for _, template in render.templates()
            if fits({"matchLabels": service["spec"]["selector"]}, template["metadata"]["labels"])
        ]
        names = {
            port["name"]
            for template in selected
            for container in containers(template)
            for port in container.get("ports", [])
        }
        for port in service["spec"]["ports"]:
            if isinstance(port["targetPort"], str) and port["targetPort"] not in names:
                yield service, f"targetPort {port['targetPort']} is no port of its pods"


def references(render, _):
    for thing, kind, name in referred(render):
        outside = (kind, name) in BY_THE_OPERATOR or (
            thing["kind"] == "VolumeSnapshot" and (kind, name) in BY_GKE_ASSETS
        )
        if not render.has(kind, name) and not outside:
            yield thing, f"refers to {kind}/{name}, which is not there"


def referred(render):
    """(object, kind, name) of everything that an object refers to by name."""
    for thing, template in render.templates():
        pod = template["spec"]
        if "serviceAccountName" in pod:
            yield thing, "ServiceAccount", pod["serviceAccountName"]
        for volume in pod.get("volumes", []):
            for key, kind, field in (
                ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
                ("configMap", "ConfigMap", "name"),
                ("secret", "Secret", "secretName"),
            ):
                if key in volume:
                    yield thing, kind, volume[key][field]
        for container in containers(template):
            for source in container.get("envFrom", []):
                for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                    if key in source:
                        yield thing, kind, source[key]["name"]
            for entry in container.get("env", []):
                for key, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                    if key in entry.get("valueFrom", {}):
                        yield thing, kind, entry["valueFrom"][key]["name"]
        if thing["kind"] == "StatefulSet":
            yield thing, "Service", thing["spec"]["serviceName"]
    for thing in render.of("ScaledObject", "HorizontalPodAutoscaler"):
        yield thing, thing["spec"]["scaleTargetRef"].get("kind", "Deployment"), thing["spec"]["scaleTargetRef"]["name"]
        for trigger in thing["spec"].get("triggers", []):
            if "authenticationRef" in trigger:
                yield thing, "TriggerAuthentication", trigger["authenticationRef"]["name"]
    for thing in render.of("TriggerAuthentication"):
        for secret in thing["spec"].get("secretTargetRef", []):
            yield thing, "Secret", secret["name"]
    for thing in render.of("RoleBinding"):
        yield thing, thing["roleRef"]["kind"], thing["roleRef"]["name"]
        for subject in thing["subjects"]:
            yield thing, subject["kind"], subject["name"]
    for thing in render.of("ValidatingAdmissionPolicyBinding"):
        yield thing, "ValidatingAdmissionPolicy", thing["spec"]["policyName"]
    for thing in render.of("PersistentVolumeClaim"):
        if "dataSource" in thing["spec"]:
            yield thing, thing["spec"]["dataSource"]["kind"], thing["spec"]["dataSource"]["name"]
        if "volumeName" in thing["spec"]:
            yield thing, "PersistentVolume", thing["spec"]["volumeName"]
        if thing["spec"].get("storageClassName", "").startswith("inferq"):
            yield thing, "StorageClass", thing["spec"]["storageClassName"]
    for thing in render.of("PersistentVolume"):
        yield thing, "PersistentVolumeClaim", thing["spec"]["claimRef"]["name"]
    for thing in render.of("VolumeSnapshot"):
        yield thing, "VolumeSnapshotClass", thing["spec"]["volumeSnapshotClassName"]
        yield thing, "PersistentVolumeClaim", thing["spec"]["source"]["persistentVolumeClaimName"]
    for thing in render.of("Service"):
        config = thing["metadata"].get("annotations", {}).get("cloud.google.com/backend-config")
        if config:
            yield thing, "BackendConfig", json.loads(config)["default"]
    for thing in render.of("Ingress"):
        annotations = thing["metadata"].get("annotations", {})
        for key, kind in (
            ("networking.gke.io/managed-certificates", "ManagedCertificate"),
            ("networking.gke.io/v1beta1.FrontendConfig", "FrontendConfig"),
        ):
            if key in annotations:
                yield thing, kind, annotations[key]
        for entry in thing["spec"].get("tls", []):
            yield thing, "Secret", entry["secretName"]
        for rule in thing["spec"]["rules"]:
            for entry in rule["http"]["paths"]:
                yield thing, "Service", entry["backend"]["service"]["name"]


def model_volume(render, _):
    worker = render.worker()
    if worker is None:
        return
    pod, container = worker["spec"]["template"]["spec"], worker_container(render)
    values = render.environment(pod, container)
    model = expanded(values["INFERQ_MODEL"], values)
    mounts = [mount for mount in container["volumeMounts"] if model.startswith(mount["mountPath"] + "/")]
    if len(mounts) != 1 or not mounts[0].get("readOnly"):
        yield worker, f"INFERQ_MODEL={model} lies on no volume that is mounted read-only"
        return
    volume = next(volume for volume in pod["volumes"] if volume["name"] == mounts[0]["name"])
    claim = volume.get("persistentVolumeClaim", {})
    if not claim.get("readOnly"):
        yield worker, f"the claim of volume {volume['name']} is not read-only"
    # Who fills the volume puts the model where workers look for it, under the name that jobs call it by.
    for job in render.of("Job"):
        for filler in containers(job["spec"]["template"]):
            if filler.get("args", [])[:2] == ["assets", "sync"]:
                own = render.environment(job["spec"]["template"]["spec"], filler)
                if expanded(filler["args"][3], own) != model:
                    yield job, f"fills {expanded(filler['args'][3], own)}, and workers read {model}"
    one_node = render.by_name.get(("PersistentVolumeClaim", claim.get("claimName")), {}).get("spec", {}).get(
        "accessModes"
    ) == ["ReadWriteOnce"]
    together = pod.get("affinity", {}).get("podAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", [])
    budget = render.by_name.get(("PodDisruptionBudget", "inferq-worker"), {}).get("spec", {}).get("maxUnavailable")
    if one_node and "kubernetes.io/hostname" not in [term["topologyKey"] for term in together]:
        yield worker, "reads a ReadWriteOnce volume, and nothing keeps its pods on one node"
    if one_node and budget != "100%":
        yield worker, "reads a ReadWriteOnce volume, and the disruption budget would block the drain of its node"


def availability(render, _):
    worker = render.worker()
    if worker is None:
        return
    labels = worker["spec"]["template"]["metadata"]["labels"]
    budgets = [budget for budget in render.of("PodDisruptionBudget") if fits(budget["spec"]["selector"], labels)]
    if (
        len(budgets) != 1
        or "maxUnavailable" not in budgets[0]["spec"]
        or budgets[0]["spec"]["maxUnavailable"] in (0, "0%")
    ):
        yield worker, "needs one PodDisruptionBudget, with maxUnavailable above 0"
    rolling = worker["spec"]["strategy"]["rollingUpdate"]
    if rolling["maxSurge"] == 0 and rolling["maxUnavailable"] == 0:
        yield worker, "can't be rolled: neither a pod more nor one less"
    limits = worker_container(render)["resources"]["limits"]
    if "nvidia.com/gpu" in limits and rolling["maxSurge"] != 0:
        yield worker, "needs a spare card to be rolled"
    scalers = [
        thing
        for thing in render.of("ScaledObject", "HorizontalPodAutoscaler")
        if thing["spec"]["scaleTargetRef"]["name"] == "inferq-worker"
    ]
    if len(scalers) > 1 or (scalers and "replicas" in worker["spec"]):
        yield worker, "more than one sets the number of replicas"


def placement(render, _):
    """Namespaces, Secrets, and what was to be replaced while rendering."""
    for thing in render.things:
        namespace = thing["metadata"].get("namespace")
        if namespace != (None if thing["kind"] in CLUSTER_WIDE else NAMESPACE):
            yield thing, f"is in namespace {namespace}"
        if thing["kind"] == "Secret" and render.name != "rabbitmq-dev":
            yield thing, "holds a secret; only rabbitmq-dev may, whose passwords everybody knows"
        for word in sorted(
            set(re.findall(r"\b(?:QUERY|SERVER|QUEUES|REVISION|DOMAIN|STATIC_IP)\b", json.dumps(thing)))
        ):
            yield thing, f"{word} was not replaced"


def queries(render, _):
    """Metrics of ours that scaling asks for are those that docs/operations.md names, and the queries are PromQL."""
    documented = set(re.findall(r"`(inferq_\w+)`", (ROOT / "docs/operations.md").read_text(encoding="utf-8")))
    for thing in render.of("ScaledObject"):
        for trigger in thing["spec"]["triggers"]:
            query = trigger["metadata"].get("query", "")
            for name in re.findall(r"\binferq_\w+", query):
                if not {name, re.sub(r"_(sum|count|bucket)$", "", name)} & documented:
                    yield thing, f"trigger {trigger['name']}: {name} is no metric in docs/operations.md"
            if query:
                yield from ((thing, f"trigger {trigger['name']}: {fault}") for fault in promql_faults(query))


@functools.cache
def promql_faults(query):
    if shutil.which("promtool") is None:
        return ["promtool is missing: apt install prometheus"] if os.environ.get("CI") else []
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump({"groups": [{"name": "query", "rules": [{"record": "query", "expr": query}]}]}, file)
        file.flush()
        done = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True, check=False)
    return [done.stderr.strip().splitlines()[-1].strip()] if done.returncode else []


def backlog(metric, labels, key, messages):
    """Series of a broker: messages of each queue, for half an hour."""
    return {f'{metric}{{{labels}{key}="{queue}"}}': f"{count}x30" for queue, count in messages.items()}


MESSAGES = {"jobs": 600, "jobs.shards": 400, "jobs.dead": 5000, "otherjobs": 70}
BACKLOGS = {
    "base + keda-pubsub": backlog(
        "pubsub_googleapis_com:subscription_num_undelivered_messages",
        'monitored_resource="pubsub_subscription",',
        "subscription_id",
        MESSAGES,
    ),
    "base + keda-rabbitmq": backlog("rabbitmq_detailed_queue_messages", 'vhost="/",', "queue", MESSAGES),
}
# Two workers: jobs of 100 tokens on average, 1,000 and 3,000 tokens a second.
MEANS = {
    'inferq_job_tokens_sum{namespace="inferq",pod="a"}': "0+80x30",
    'inferq_job_tokens_count{namespace="inferq",pod="a"}': "0+1x30",
    'inferq_job_tokens_sum{namespace="inferq",pod="b"}': "0+120x30",
    'inferq_job_tokens_count{namespace="inferq",pod="b"}': "0+1x30",
}
NO_JOBS = {series: "0x30" for series in MEANS}
SPEEDS = {
    'inferq_tokens_per_second{namespace="inferq",pod="a"}': "1000x30",
    'inferq_tokens_per_second{namespace="inferq",pod="b"}': "3000x30",
}

RATES = {
    'inferq_tokens_total{namespace="inferq",pod="a"}': "0+60000x30",
    'inferq_tokens_total{namespace="inferq",pod="b"}': "0x30",
}


def signals(render, _):
    """The queries of scaling on made-up series: the right number, and 0, not NaN or nothing, where means are unknown."""
    if render.name not in BACKLOGS or shutil.which("promtool") is None:
        return
    queue, scaled = BACKLOGS[render.name], render.of("ScaledObject")[0]
    queries = {trigger["name"]: trigger["metadata"].get("query") for trigger in scaled["spec"]["triggers"]}
    # 1,000 messages × 100 tokens ÷ 2,000 tokens a second.
    cases = [("work", {**queue, **MEANS, **SPEEDS}, 50), ("work", queue, 0), ("work", {**queue, **MEANS}, 0)]
    cases += [("work", {**queue, **NO_JOBS, **SPEEDS}, 0), ("messages", queue, 1000)]
    # 1,000 tokens a second where a worker computes 2,000.
    cases += [("busy", {**RATES, **SPEEDS}, 0.5), ("busy", SPEEDS, 0), ("busy", RATES, 0)]
    for trigger, series, expected in cases:
        if queries[trigger]:
            fault = promql_differs(queries[trigger], tuple(series.items()), expected)
            if fault:
                yield scaled, f"trigger {trigger}: {fault}"


@functools.cache
def promql_differs(query, series, expected):
    """What promtool says if a query over these series is another number."""
    sample = {"labels": "{}", "value": expected}
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "promql_expr_test": [{"expr": f"round({query}, 0.001)", "eval_time": "30m", "exp_samples": [sample]}],
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump({"evaluation_interval": "1m", "tests": [test]}, file)
        file.flush()
        done = subprocess.run(["promtool", "test", "rules", file.name], capture_output=True, text=True, check=False)
    if not done.returncode:
        return None
    return f"{len(series)} series: " + " ".join((done.stdout + done.stderr).split())


CHECKS = (
    images,
    memory,
    security,
    variables,
    served,
    grace,
    selectors,
    references,
    model_volume,
    availability,
    placement,
    queries,
    signals,
)


def faults(name, things, binaries):
    """Every fault of a render as text, and how its objects were validated."""
    found, how = [], {"builtin": 0, "crd": 0, "none": 0}
    sound = True
    for thing in things:
        errors, by = schema_faults(thing)
        how[by] += 1
        sound = sound and not errors
        found += [f"{thing['kind']}/{thing['metadata']['name']}: {error}" for error in errors]
    render = Render(name, things)
    for check in CHECKS:
        try:
            found += [
                f"{thing['kind']}/{thing['metadata']['name']}: {fault}" for thing, fault in check(render, binaries)
            ]
        except (KeyError, TypeError, IndexError, StopIteration) as error:
            # An object without what every such object has is a fault by schema already. If it is not, this file errs.
            if sound:
                raise
            found.append(f"{check.__name__}: not looked at, as an object lacks {error}")
    return found, how


# Files


def file_faults():
    """One object a file, the file named for the object, and no file that nothing reads."""
    for folder in sorted(
        {
            path.parent
            for part in ("base", "components", "overlays")
            for path in (K8S / part).rglob("kustomization.yaml")
        }
    ):
        kustomization = yaml.load((folder / "kustomization.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
        patches = {patch["path"] for patch in kustomization.get("patches", []) if "path" in patch}
        resources = {name for name in kustomization.get("resources", []) if name.endswith(".yaml")}
        for path in sorted(folder.glob("*.yaml")):
            if path.name == "kustomization.yaml":
                continue
            where = path.relative_to(ROOT)
            if path.name not in patches | resources:
                yield f"{where}: no kustomization reads it"
            if path.name not in resources:
                continue
            objects = list(yaml.load_all(path.read_text(encoding="utf-8"), yaml.CSafeLoader))
            names = [
                f"{re.sub('-[A-Z]+$', '', thing['metadata']['name'])}-{thing['kind'].lower()}.yaml" for thing in objects
            ]
            if names != [path.name]:
                yield f"{where}: holds {', '.join(names)}"
    commands = "".join(path.read_text(encoding="utf-8") for path in (K8S / "components").rglob("kustomization.yaml"))
    for kind, name in sorted(BY_THE_OPERATOR):
        if not re.search(rf"#.*kubectl .*create {kind.lower()} \w+ {name} ", commands):
            yield f"{kind}/{name} is the operator's, and no component says how to make it"


# Planted faults

REMOVED = object()
POD = "spec.template.spec"
WORKER = f"{POD}.containers.0"
DEPLOYMENT, SCALED, BUDGET = (f"{kind}/inferq-worker" for kind in ("Deployment", "ScaledObject", "PodDisruptionBudget"))
LABEL = "app.kubernetes.io/component"

# What, in which render, in which object, where, what is put there, and a part of what must be reported.
# fmt: off
PLANTED = [
    ("an unknown field in a Deployment", "gke-pubsub-l4", DEPLOYMENT, f"{POD}/graceSeconds", 40, "graceSeconds"),
    ("an unknown field in a ScaledObject", "gke-pubsub-l4", SCALED,
     "spec.advanced.horizontalPodAutoscalerConfig/speed", 1, "speed"),
    ("an unknown field in a trigger", "gke-pubsub-l4", SCALED, "spec.triggers.0/treshold", "1", "treshold"),
    ("an unknown field in a PodMonitoring", "gke-pubsub-l4", "PodMonitoring/inferq-worker", "spec.endpoints.0/pth", "/", "pth"),
    ("an unknown field in a PodMonitor", "base + podmonitor", "PodMonitor/inferq-worker", "spec/podMetricEndpoints", [],
     "podMetricEndpoints"),
    ("an unknown field in metadata", "base + expose", "BackendConfig/inferq-expose", "metadata/lables", {}, "lables"),
    ("a kind that nobody knows", "seed", "Service/inferq-worker", "/kind", "Servise", "no schema"),
    ("a wrong type", "seed", DEPLOYMENT, f"{WORKER}.ports.0/containerPort", "8080", "is not of type"),
    ("a wrong port", "seed", DEPLOYMENT, f"{WORKER}.ports.0/containerPort", 8081, "serves 8080"),
    ("a Service's wrong port", "seed", "Service/inferq-worker", "spec.ports.0/targetPort", "http", "targetPort http"),
    ("a wrong path in a probe", "seed", DEPLOYMENT, f"{WORKER}.livenessProbe.httpGet/path", "/health",
     "should ask /livez"),
    ("liveness on readiness", "seed", DEPLOYMENT, f"{WORKER}.livenessProbe.httpGet/path", "/healthz",
     "should ask /livez"),
    ("a path for jobs in the Ingress", "base + expose", "Ingress/inferq-expose", "spec.rules.0.http.paths.0/path", "/jobs",
     "/jobs"),
    ("all ports open", "seed", "NetworkPolicy/inferq-worker", "spec.ingress.0/ports", [], "lets in more"),
    ("grace below the drain limit", "seed", DEPLOYMENT, f"{POD}/terminationGracePeriodSeconds", 20,
     "INFERQ_DRAIN_LIMIT_S 25"),
    ("a drain limit above grace", "seed", "ConfigMap/inferq-worker-", "data/INFERQ_DRAIN_LIMIT_S", "60",
     "INFERQ_DRAIN_LIMIT_S 60"),
    ("an unknown variable", "seed", "ConfigMap/inferq-worker-", "data/INFERQ_DRAIN_S", "1", "INFERQ_DRAIN_S is no variable"),
    ("a variable of another command", "gke-assets", "Job/assets-sync", f"{WORKER}.env.0/name", "INFERQ_LEASE_S",
     "INFERQ_LEASE_S is no variable of inferq-worker assets sync"),
    ("a value that the worker refuses", "seed", "ConfigMap/inferq-worker-", "data/INFERQ_ASSETS_WAIT_S", "soon",
     "does not start"),
    ("$(VAR) without its definition", "seed", DEPLOYMENT, f"{WORKER}.env.1/name", "MODELS", "not defined before"),
    (":latest", "seed", DEPLOYMENT, f"{WORKER}/image", "registry.example.com:5000/inferq:latest", "one that moves"),
    ("no tag", "seed", DEPLOYMENT, f"{WORKER}/image", "registry.example.com:5000/inferq", "no tag"),
    ("requests below limits", "seed", DEPLOYMENT, f"{WORKER}.resources.requests/memory", "4Gi",
     "memory: requests 4Gi"),
    ("a selector that selects nothing", "seed", BUDGET, f"spec.selector.matchLabels/{LABEL}", "server",
     "selects nothing"),
    ("a Deployment that does not select its pods", "seed", DEPLOYMENT,
     f"spec.template.metadata.labels/{LABEL}", "server", "its own pods"),
    ("a monitor that selects nothing", "gke-pubsub-cpu", "PodMonitoring/inferq-worker",
     f"spec.selector.matchLabels/{LABEL}", "server", "selects nothing"),
    ("a scaler of nothing", "gke-pubsub-cpu", SCALED, "spec.scaleTargetRef/name", "worker",
     "refers to Deployment/worker"),
    ("a Secret that nobody makes", "rabbitmq-dev", "Job/inferq-setup", f"{WORKER}.envFrom.0.secretRef/name", "queue",
     "refers to Secret/queue"),
    ("a ConfigMap that is not there", "seed", "ConfigMap/inferq-queue-", "metadata/name", "queue",
     "refers to ConfigMap/inferq-queue"),
    ("a claim that is not there", "seed", "PersistentVolumeClaim/inferq-models", "metadata/name", "models",
     "refers to PersistentVolumeClaim/inferq-models"),
    ("an identity that is not there", "seed", "ServiceAccount/inferq-assets", "metadata/name", "assets",
     "refers to ServiceAccount/inferq-assets"),
    ("a model that can be written", "seed", DEPLOYMENT, f"{WORKER}.volumeMounts.0/readOnly", REMOVED, "read-only"),
    ("a model where nobody looks", "seed", "Job/assets-sync", f"{WORKER}.args/3", "/models/another", "fills /models/another"),
    ("a root file system that can be written", "seed", DEPLOYMENT, f"{WORKER}.securityContext/readOnlyRootFilesystem",
     False, "can be written"),
    ("root", "seed", "Job/assets-sync", f"{POD}.securityContext/runAsNonRoot", REMOVED, "runs as root"),
    ("a token without a use", "seed", "Job/assets-sync", f"{POD}/automountServiceAccountToken", REMOVED, "gets a token"),
    ("no budget", "gke-pubsub-cpu", BUDGET, f"spec.selector.matchLabels/{LABEL}", "assets",
     "needs one PodDisruptionBudget"),
    ("a budget that blocks drains", "gke-pubsub-cpu", BUDGET, "spec/maxUnavailable", 0, "above 0"),
    ("one disk on two nodes", "seed", DEPLOYMENT, f"{POD}/affinity", REMOVED, "on one node"),
    ("one disk, one disruption at a time", "seed", BUDGET, "spec/maxUnavailable", 1, "would block"),
    ("two that scale", "seed", DEPLOYMENT, "spec/replicas", 2, "more than one sets"),
    ("a Role that reads Secrets", "seed", "Role/inferq-worker", "rules.0/resources", ["secrets"], "more than patching pods"),
    ("another namespace", "seed", "Service/inferq-worker", "metadata/namespace", "default", "is in namespace default"),
    ("a query that is no PromQL", "gke-pubsub-l4", SCALED, "spec.triggers.1.metadata/query", "sum(messages",
     "unclosed"),
    ("seconds of work that count dead letters", "base + keda-rabbitmq", SCALED, "spec.triggers.0.metadata/query",
     "sum(rabbitmq_detailed_queue_messages) or vector(0)", "trigger work"),
    ("a count of one queue alone", "base + keda-pubsub", SCALED, "spec.triggers.1.metadata/query",
     'pubsub_googleapis_com:subscription_num_undelivered_messages{subscription_id="jobs"}', "trigger messages"),
    ("a metric that nobody has", "gke-pubsub-l4", SCALED, "spec.triggers.1.metadata/query",
     "sum(inferq_messages)", "inferq_messages is no metric"),
]
# fmt: on


def changed(things, target, where, value):
    """A copy of the objects with one value put elsewhere: `a.b/c` is key `c` of what lies at a, b."""
    things = copy.deepcopy(things)
    kind, name = target.split("/")
    # The names of generated objects end in a digest.
    exact = [it for it in things if it["kind"] == kind and it["metadata"]["name"] == name]
    place = (exact or [it for it in things if it["kind"] == kind and it["metadata"]["name"].startswith(name)])[0]
    path, key = where.split("/", 1)
    for step in filter(None, path.split(".")):
        place = place[int(step)] if isinstance(place, list) else place[step]
    if isinstance(place, list):
        key = int(key)
    if value is REMOVED:
        del place[key]
    else:
        place[key] = value
    return things


def plant(found, binaries):
    missed = []
    for what, render, target, where, value, expected in PLANTED:
        if "metadata/query" in where and shutil.which("promtool") is None:
            print(f"left out: planting {what}, as promtool is missing")
            continue
        reported, _ = faults(render, changed(found[render], target, where, value), binaries)
        if not any(expected in fault for fault in reported):
            missed.append(f"{render}: planted {what}: not found; reported: {reported}")
    return missed


def main():
    parser = argparse.ArgumentParser(description="Checks k8s/ without a cluster.")
    parser.add_argument("--bin", required=True, help="the folder of inferq and inferq-worker")
    parser.add_argument("--plant", action="store_true", help="prove as well that faults are found")
    arguments = parser.parse_args()
    if shutil.which("kubectl") is None:
        sys.exit("k8s_check: kubectl is missing: https://kubernetes.io/docs/tasks/tools")
    binaries = Binaries(arguments.bin)

    failed = list(file_faults())
    found = renders()
    # One in the base stands in every render, and is told once.
    where = {}
    for name, things in found.items():
        reported, how = faults(name, things, binaries)
        for fault in reported:
            where.setdefault(fault, []).append(name)
        unseen = sorted(
            {thing["kind"] for thing in things if f"{thing['apiVersion']}/{thing['kind']}" in NOT_VALIDATED}
        )
        without = f", no schema for {', '.join(unseen)}" if unseen else ""
        verdict = f"{len(reported)} faults" if reported else "sound"
        by = f"{how['builtin']} by Kubernetes {KUBERNETES}, {how['crd']} by CRD{without}"
        print(f"{name}: {len(things)} objects, {by}: {verdict}")
    for fault, names in where.items():
        others = f" (and in {len(names) - 1} more)" if len(names) > 1 else ""
        failed.append(f"{names[0]}: {fault}{others}")
    if arguments.plant and not failed:
        failed += plant(found, binaries)
        print(f"planted: {len(PLANTED)} faults, {len(failed)} not found")
    for fault in failed:
        print(fault, file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
