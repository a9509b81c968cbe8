"""Every check and measurement that needs a card, in one run of less than ten minutes; `--device cpu` tries all of it
without one, in about a minute, with small shapes.

In: a folder with our release binaries (`inferq`, `inferq-worker`, `bench_device`), and a BERT directory as Hugging Face
lays it out. Out: `gpu_check.json` with every raw figure and `gpu_check.md` with one table, in the folder of `--out`,
written anew after each part; the table on stdout, progress on stderr. Exit code 1 if a check failed (self-test, parity,
readiness, zero loss, a sick worker that says so), else 0. What there was no time for is null, and said to be.

Needs Python 3.11, of other packages torch alone, and goes on without: then parity is against ../fixtures/parity.json
and speed against nothing. The peer is this script again in a process of its own (`--peer`), which builds the same model
from the same weights, so that neither a hanging compilation nor a card out of memory takes the check along.

Usage: gpu_check.py --bin DIR --model DIR [--device cuda:0] [--out DIR] [--minutes 9]
"""

import argparse
import array
import base64
import contextlib
import ctypes
import functools
import http.client
import json
import math
import os
import pathlib
import platform
import random
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types

HERE = pathlib.Path(__file__).resolve()
TOLERANCES = {"f32": 2e-3, "f16": 5e-3, "bf16": 2e-2}  # of f32 too: burn runs it on TF32 tensor cores
FIXTURE_TOLERANCE = 1e-4

# With these `max_batch_tokens` our engine has a shape for each of the budgets, without rows that only fill it up; of
# more tokens it makes several batches.
PLANS = {
    "cuda": types.SimpleNamespace(
        lengths=(128, 32, 256, 16, 64, 512), budgets=(16384, 65536, 4096, 1024), rounds=5, slice_s=(0.02, 0.3),
        compiled=((128, 16384), (32, 4096)), matmul=8192, max_batch_tokens=32768, every_fixture=1,
        random_lengths=(2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 200, 255, 256, 300, 511, 512),
        large=(128, 128), backlog=(128, 256), backlog_s=5.0, journey_s=10.0, echo_texts=50_000),
    "cpu": types.SimpleNamespace(
        lengths=(64, 16), budgets=(512, 64), rounds=5, slice_s=(0.01, 0.1),
        compiled=((16, 64),), matmul=1024, max_batch_tokens=4096, every_fixture=6,
        random_lengths=(2, 17, 64, 256), large=(64, 16),
        backlog=(64, 8), backlog_s=1.5, journey_s=3.0, echo_texts=5_000),
}


# Time: limits nest, and end what runs by an exception, whatever it waits for.


class OutOfTime(BaseException):
    """A limit is over. Not an Exception, so that no handler of failures takes it for one."""


ENDS: list[float] = []


def left() -> float:
    return ENDS[-1] - time.monotonic()


def alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, max(left(), 1e-3) if ENDS else 0)


@contextlib.contextmanager
def limit(seconds: float):
    end = time.monotonic() + seconds
    ENDS.append(min(end, ENDS[-1]) if ENDS else end)
    alarm()
    try:
        yield
    finally:
        ENDS.pop()
        alarm()


def out_of_time(*_: object) -> None:
    raise OutOfTime


def say(text: str) -> None:
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", file=sys.stderr, flush=True)


STARTED = time.monotonic()


# Processes: each in a session of its own, so that it can be ended with all that it started.

CHILDREN: set[subprocess.Popen] = set()


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("INFERQ_", "OTEL_"))}
    # NVML counts cards in this order; and threads of torch that wait must not take the cores from ours on the CPU.
    return kept | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "OMP_WAIT_POLICY": "passive"} | changes


def spawn(command: list, env: dict[str, str] | None = None, **pipes: object) -> subprocess.Popen:
    words = [str(word) for word in command]
    child = subprocess.Popen(words, env=env or environment(), start_new_session=True, **pipes)
    CHILDREN.add(child)
    return child


def end(child: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    CHILDREN.discard(child)


def call(command: list) -> str:
    """What a command prints; its failure is ours."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(words)}: exit code {done.returncode}: {done.stderr.strip()[-600:]}")
    return done.stdout


def tail(file) -> str:
    file.seek(0)
    return file.read().strip()[-600:]


class Partner:
    """A process that answers each line of JSON with one: `bench_device`, or this script as the peer."""

    def __init__(self, command: list) -> None:
        asked, self.name, self.log = time.monotonic(), pathlib.Path(command[0]).name, tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.child = spawn(command, text=True, bufsize=1, **pipes)
        try:
            self.hello = self.answer()
        except Exception:
            end(self.child)
            raise
        self.hello["start_s"] = time.monotonic() - asked

    def ask(self, **request: object) -> dict:
        self.child.stdin.write(json.dumps(request) + "\n")
        return self.answer()

    def answer(self) -> dict:
        try:
            line = self.child.stdout.readline()
        except OutOfTime:
            end(self.child)  # its next line would be the answer to an older question
            raise
        if not line:
            end(self.child)
            raise RuntimeError(f"{self.name} ended, exit code {self.child.returncode}: {tail(self.log)}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer


def bench(job, precision: str, *flags: str) -> Partner:
    """Our engine of this precision, started once for all parts: a start on a card takes seconds."""
    name = " ".join([precision, *flags])
    if name not in job.partners or job.partners[name].child.poll() is not None:
        say(f"bench_device {name} starts")
        command = [job.bin / "bench_device", "--model", job.model, "--device", job.device, "--precision", precision]
        command += ["--cache-dir", job.work / "cache", "--max-batch-tokens", job.plan.max_batch_tokens]
        job.partners[name] = Partner(command + list(flags))
    return job.partners[name]


def peer(job, device: str, name: str | None = None) -> Partner | None:
    """torch on this device; None where it can't be had, which is tried once."""
    name = name or f"torch {device}"
    there = job.partners.get(name)
    if name not in job.no_torch and (there is None or there.child.poll() is not None):
        try:
            command = [sys.executable, HERE, "--peer", "--model", job.model, "--device", device]
            there = job.partners[name] = Partner(command)
            job.report["machine"]["torch"] = there.hello["torch"]
        except RuntimeError as error:
            job.no_torch[name] = job.report["errors"][name] = str(error)
            say(f"without {name}: {error}")
    return None if name in job.no_torch else there


# Checks and failures.


def check(job, name: str, passed: bool, why: str = "") -> None:
    job.report["checks"][name] = {"passed": passed, "why": why}
    say(f"{name}: {'passed' if passed else 'FAILED'} {why}")


@contextlib.contextmanager
def attempt(job, what: str, checks: str | None = None):
    """A failure within is recorded, fails the checks that it leaves open, and goes no further."""
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"
        job.report["errors"][what] = said
        say(f"{what} failed: {said}")
        for name, found in job.report["checks"].items():
            if checks and re.fullmatch(checks, name) and found["passed"] is None:
                check(job, name, False, said)


@contextlib.contextmanager
def turn(job, what: str, seconds: float, checks: str | None = None):
    """The same, and no longer than so, for one of several that shall not take the others' time."""
    try:
        with attempt(job, what, checks), limit(seconds):
            yield
    except OutOfTime:
        job.report["errors"][what] = "out of time"
        say(f"{what}: out of time")


# Part 1: which devices our binary sees.


def devices(job, found: dict) -> None:
    found["devices"] = json.loads(call([job.bin / "inferq-worker", "devices", "--model", job.model, "--json"]))


# Part 2: parity.


def random_items(job, lengths: list[int], seed: int) -> list[list[int]]:
    rng, words = random.Random(seed), job.config["vocab_size"]
    return [[101] + [rng.randrange(words // 20, words) for _ in range(n - 2)] + [102] for n in lengths]


def fixture(job) -> list[tuple[list[int], list[float]]]:
    """Texts that transformers embedded, if this is the model that it had."""
    path = HERE.parent.parent / "fixtures" / "parity.json"
    shape = [job.config[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")]
    if not path.exists() or shape != [384, 6, 30522]:
        return []
    cases = json.loads(path.read_text())["cases"][:: job.plan.every_fixture]
    return [(case["ids"], floats(case["embedding"])) for case in cases]


def floats(packed: str) -> list[float]:
    return array.array("f", base64.b64decode(packed)).tolist()


def infer(partner: Partner, items: list[list[int]], batch: int, **more: str) -> list[list[float]]:
    groups = [items[i : i + batch] for i in range(0, len(items), batch)]
    return [vector for group in groups for vector in partner.ask(op="infer", items=group, **more)["vectors"]]


def compare(ours: list[list[float]], theirs: list[list[float]]) -> dict:
    """The largest difference of any number and the least cosine of unit vectors."""
    if len(ours) != len(theirs):
        raise RuntimeError(f"{len(ours)} vectors for {len(theirs)} items")
    largest, least = 0.0, 1.0
    for a, b in zip(ours, theirs):
        if len(a) != len(b) or not all(map(math.isfinite, a + b)):
            return {"largest_difference": None, "least_cosine": None, "why": "numbers are missing or not finite"}
        largest = max(largest, max(abs(x - y) for x, y in zip(a, b)))
        least = min(least, sum(map(float.__mul__, a, b)) / (math.hypot(*a) * math.hypot(*b) or math.inf))
    return {"largest_difference": largest, "least_cosine": least}


def parity(job, found: dict) -> None:
    """Each item alone, items of all lengths in one batch, and a large batch, which may run other kernels."""
    known, reference, large, large_truth = fixture(job), peer(job, "cpu"), [], []
    items, truth = [ids for ids, _ in known], [vector for _, vector in known]
    if reference:
        if known:
            found["reference"] = compare(infer(reference, items, 1, precision="f32"), truth)
            judge(job, "reference", found["reference"], FIXTURE_TOLERANCE)
        more = random_items(job, [n for n in job.plan.random_lengths if n <= job.longest], 1)
        large = random_items(job, [min(job.plan.large[0], job.longest)] * job.plan.large[1], 2)
        items, truth = items + more, truth + infer(reference, more, 1, precision="f32")
        large_truth = infer(reference, large, 16, precision="f32")
    elif not known:
        raise RuntimeError("there is neither torch nor a fixture of this model to compare with")
    for precision in job.precisions:
        # The first is the most used, and its start may have to tune every kernel.
        seconds = left() * (1 if precision == job.precisions[-1] else 0.6)
        with turn(job, f"parity {precision}", seconds, rf"(self-test|parity).* {precision}"):
            ours = bench(job, precision)
            check(job, f"self-test {precision}", ours.hello["check"] is None, ours.hello["check"] or "")
            of = found[precision] = {"ready": ours.hello}
            alone, mixed = infer(ours, items, 1), infer(ours, items, 16)
            of["mixed_beside_alone"] = compare(mixed, alone)
            for kind, vectors in (("alone", alone), ("mixed", mixed), ("large", infer(ours, large, len(large) or 1))):
                if vectors:
                    of[kind] = compare(vectors, large_truth if kind == "large" else truth)
                    judge(job, f"parity {kind} {precision}", of[kind], TOLERANCES[precision])
    # What the same precision costs torch says how much of ours is the precision's.
    for precision in job.precisions if reference and peer(job, job.device) else []:
        with attempt(job, f"torch's parity {precision}"):
            theirs = infer(peer(job, job.device), items, 16, precision=precision)
            found.setdefault(precision, {})["torch"] = compare(theirs, truth)


def judge(job, name: str, found: dict, tolerance: float) -> None:
    difference = found["largest_difference"]
    found["tolerance"] = tolerance
    passed = difference is not None and difference <= tolerance and found["least_cosine"] > 0.99
    why = found.get("why") or f"{difference:.1e} of {tolerance:.0e}, least cosine {found['least_cosine']:.6f}"
    check(job, name, passed, why)


# Part 3: speed, one batch at a time.


def shapes(job) -> list[tuple[int, int]]:
    lengths = [length for length in job.plan.lengths if length <= job.longest]
    return [(length, max(budget // length, 1)) for budget in job.plan.budgets for length in lengths]


def speed(job, found: dict) -> None:
    grids = {precision: [new_case(precision, *shape) for shape in shapes(job)] for precision in job.precisions}
    compiled = [new_case(job.precisions[0], length, budget // length) for length, budget in job.plan.compiled]
    # Attention in steps, which ours is, and by burn's own operation: which of the two pays is for the card to say.
    fused = [new_case(job.precisions[0], *shape) for shape in shapes(job)[: len(job.plan.compiled)]]
    found["cases"] = [*sum(grids.values(), []), *compiled, *fused]
    found["matmul_tflops"] = {}
    for precision in job.precisions if peer(job, job.device) else []:
        with attempt(job, f"matmul {precision}"):
            answer = peer(job, job.device).ask(op="matmul", precision=precision, size=job.plan.matmul, seconds=0.5)
            found["matmul_tflops"][precision] = answer["tflops"]
    for done, precision in enumerate(job.precisions):
        # One share more than there are precisions: the last is for what compiles.
        with turn(job, f"speed {precision}", left() / (len(job.precisions) - done + 1)):
            partners = {"ours": bench(job, precision)}
            if peer(job, job.device):
                partners |= {"sdpa": peer(job, job.device), "eager": peer(job, job.device)}
            interleave(job, grids[precision], partners)
    with attempt(job, "torch.compile"):
        compiling = peer(job, job.device, "compiled")
        for case in compiled:
            if compiling:
                interleave(job, [case], {"ours": bench(job, job.precisions[0]), "compiled": compiling})
            else:
                case["errors"]["compiled"] = job.no_torch["compiled"]


    flag = "--fused" if job.cuda else "--padded"
    with attempt(job, "fused attention"):
        interleave(job, fused, {"ours": bench(job, job.precisions[0]), "fused": bench(job, job.precisions[0], flag)})


def new_case(precision: str, length: int, batch: int) -> dict:
    return {"precision": precision, "length": length, "batch": batch, "first_ms": {}, "ms": {}, "errors": {}}


def interleave(job, cases: list[dict], partners: dict[str, Partner]) -> None:
    """Every side of every shape in turn, round after round, so that what the machine does meanwhile meets all alike."""
    warm, half = [], left() / 2
    for case in cases:
        # First runs may tune kernels for seconds; what they leave no time to measure is not begun.
        if warm and left() < half:
            break
        for side in partners:
            measure(case, side, partners[side], 0, case["first_ms"])
        warm.append(case)
        firsts = ", ".join(f"{side} {ms[0]:.0f} ms" for side, ms in case["first_ms"].items())
        say(f"speed {case['precision']} {case['length']} × {case['batch']}, first runs: {firsts}")
    least, most = job.plan.slice_s
    slice_s = min(max(0.8 * left() / (job.plan.rounds * len(warm) * len(partners)), least), most)
    for lap in range(job.plan.rounds):
        say(f"speed {cases[0]['precision']}: round {lap + 1} of {job.plan.rounds}, {slice_s:.3f} s a measurement")
        for case in warm:
            for side in list(partners)[:: -1 if lap % 2 else 1]:
                measure(case, side, partners[side], slice_s, case["ms"])


def measure(case: dict, side: str, partner: Partner, seconds: float, into: dict) -> None:
    if side in case["errors"]:
        return
    request = {"op": "time", "length": case["length"], "batch": case["batch"], "seconds": seconds}
    if side not in ("ours", "fused"):
        request |= {"variant": side, "precision": case["precision"]}
    try:
        ms = partner.ask(**request)["ms"]
        into.setdefault(side, []).append(ms)
    except RuntimeError as error:
        if partner.child.poll() is not None:
            raise
        case["errors"][side] = str(error)  # such as out of memory: the other sides and shapes go on


def flops(config: dict, length: int) -> float:
    """Of one token: the linear layers, and attention over so many tokens. Embeddings are looked up."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    return config["num_hidden_layers"] * (2 * (4 * hidden * hidden + 2 * hidden * wide) + 4 * length * hidden)


def peak(job, precision: str, matmul: dict) -> tuple[float | None, str]:
    """TFLOP/s, and where from."""
    for device in job.report["parts"].get("devices", {}).get("devices", []):
        if device["device"] == job.device and precision in device.get("peak_tflops", {}):
            return device["peak_tflops"][precision], "the card's cores and clock"
    return matmul.get(precision), "torch's own matmul"


def speed_rows(job, found: dict) -> None:
    """Medians, ratios and shares of the peak, from whatever was measured."""
    rows, found["peaks"] = [], {p: peak(job, p, found["matmul_tflops"]) for p in job.precisions}
    for case in found["cases"]:
        ms = {side: statistics.median(values) for side, values in case["ms"].items()}
        tokens, ours = case["length"] * case["batch"], ms.get("ours")
        row = {name: case[name] for name in ("precision", "length", "batch")} | {"ms": ms, "errors": case["errors"]}
        row["runs"] = {side: len(values) for side, values in case["ms"].items()}
        row["tokens_per_s"] = tokens / ours * 1e3 if ours else None
        row["tflops"] = tokens * flops(job.config, case["length"]) / ours / 1e9 if ours else None
        best = found["peaks"][case["precision"]][0]
        row["share_of_peak"] = row["tflops"] / best if ours and best else None
        row["ratios"] = {side: value / ours for side, value in ms.items() if side != "ours" and ours}
        rows.append(row)
    found["rows"] = rows
    for side in ("sdpa", "eager", "compiled", "fused"):
        for precision in (*job.precisions, "all"):
            ratios = [r["ratios"][side] for r in rows if side in r["ratios"] and precision in (r["precision"], "all")]
            if ratios:
                mean = statistics.geometric_mean(ratios)
                found.setdefault("geometric_means", {}).setdefault(side, {})[precision] = mean


# Part 4: a backlog, and what the card does meanwhile.


def nvml_meter(index: int):
    """NVML by ctypes: what pynvml does, without having to be installed."""
    nvml, card = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(card)):
        raise OSError("NVML knows no such card")

    def read(name: str, kind: type):
        value = kind()
        return None if getattr(nvml, name)(card, ctypes.byref(value)) else getattr(value, "value", value)

    def sample() -> dict:
        use = read("nvmlDeviceGetUtilizationRates", ctypes.c_uint * 2)
        thousandths = {"watts": read("nvmlDeviceGetPowerUsage", ctypes.c_uint),
                       "joules": read("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)}
        scaled = {name: None if value is None else value / 1e3 for name, value in thousandths.items()}
        return {"utilisation": None if use is None else use[0]} | scaled

    return sample


def smi(index: int, *columns: str) -> list[str]:
    query = ["nvidia-smi", f"--query-gpu={','.join(columns)}", "--format=csv,noheader,nounits", "-i", str(index)]
    return [value.strip() for value in call(query).split(",")]


def smi_meter(index: int) -> dict:
    values = [float(value) if value[:1].isdigit() else None for value in smi(index, "utilization.gpu", "power.draw")]
    return {"utilisation": values[0], "watts": values[1], "joules": None}


def meter(job):
    """A function that reads the card; None where there is nothing to read."""
    if not job.cuda:
        return None
    with contextlib.suppress(OSError):
        return nvml_meter(job.index)
    with contextlib.suppress(OSError, RuntimeError):
        smi_meter(job.index)
        return functools.partial(smi_meter, job.index)
    return None


@contextlib.contextmanager
def watched(read):
    """Reads the card ten times a second while the block runs, at its beginning, and at its end."""
    samples, over = [], threading.Event()

    def sample() -> None:
        with contextlib.suppress(OSError, RuntimeError):
            samples.append({"s": time.monotonic()} | read())

    def watch() -> None:
        while not over.wait(0.1):
            sample()

    if read:
        sample()
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
    try:
        yield samples
    finally:
        over.set()
        if read:
            thread.join()
            sample()


def consumption(samples: list[dict]) -> dict:
    """Median use, and the energy: by the card's own counter, else the power over time."""
    settled = [s for s in samples[:-1] if s["s"] > samples[0]["s"] + 1] if samples else []
    use = [s["utilisation"] for s in settled if s["utilisation"] is not None]
    powers = [s for s in samples if s["watts"] is not None]
    joules, by = None, None
    if samples and samples[0]["joules"] and samples[-1]["joules"]:
        joules, by = samples[-1]["joules"] - samples[0]["joules"], "the card's energy counter"
    elif len(powers) > 1:
        pairs = zip(powers, powers[1:])
        joules, by = sum((b["s"] - a["s"]) * (a["watts"] + b["watts"]) / 2 for a, b in pairs), "power samples"
    watts = [s["watts"] for s in settled if s["watts"] is not None]
    return {"utilisation": statistics.median(use) if use else None, "joules": joules, "joules_by": by,
            "watts": statistics.median(watts) if watts else None, "samples": len(samples)}


def backlog(job, found: dict) -> None:
    length, batch = job.plan.backlog
    found["length"], found["batch"], read = min(length, job.longest), batch, meter(job)
    shape = {"length": found["length"], "batch": batch}
    found.update(dict.fromkeys(job.precisions))
    for done, precision in enumerate(job.precisions):
        with turn(job, f"backlog {precision}", left() / (len(job.precisions) - done)):
            ours = bench(job, precision)
            ours.ask(op="time", **shape, seconds=0)
            single = ours.ask(op="time", **shape, seconds=1)
            single_rate = found["length"] * batch / single["ms"] * 1e3
            with watched(read) as idle:
                time.sleep(0.5)
            with watched(read) as samples:
                answer = ours.ask(op="backlog", **shape, seconds=min(job.plan.backlog_s, left() / 2))
            of = found[precision] = answer | {"single_tokens_per_s": single_rate} | consumption(samples)
            of["of_single"] = answer["tokens_per_s"] / single_rate
            of["idle_watts"] = idle[-1]["watts"] if idle else None
            # All tokens of the call: what it ran before it began to count is in neither figure if it counts all.
            tokens = answer["batches"] * batch * found["length"]
            of["joules_a_million_tokens"] = of["joules"] and of["joules"] / tokens * 1e6
            say(f"backlog {precision}: {answer['tokens_per_s']:.0f} tokens/s, {of['of_single']:.2f} of single stream")


# Part 5: from exec to ready.


def get(address: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return answer


@contextlib.contextmanager
def worker(job, queue: str, flags: list, env: dict[str, str] | None = None):
    """A running worker: its process, its log, and when it was started. Stopped at the end as an operator does."""
    log = job.work / f"worker-{time.monotonic_ns()}.log"
    command = [job.bin / "inferq-worker", "--queue", queue, "--health", "127.0.0.1:0", *flags]
    with log.open("wb") as file:
        begun = time.monotonic()
        process = spawn(command, env, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield types.SimpleNamespace(process=process, log=log, begun=begun)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=min(30, max(left(), 0.1)))
    finally:
        end(process)


def until_ready(running) -> tuple[str, float]:
    """The worker's address, and seconds from its start to ready. Its log names the port that the system gave it."""
    address = None
    while True:
        if running.process.poll() is not None:
            log = running.log.read_text()[-600:]
            raise RuntimeError(f"the worker ended, exit code {running.process.returncode}: {log}")
        if address is None:
            bound = re.search(r'^.*"health endpoint bound".*$', running.log.read_text(), re.MULTILINE)
            address = json.loads(bound[0])["address"] if bound else None
        if address and get(address, "/healthz")[0] == 200:
            return address, time.monotonic() - running.begun
        time.sleep(0.01)


def model_flags(job, cache: pathlib.Path, device: str | None = None) -> list:
    return ["--model", job.model, "--device", device or job.device, "--cache-dir", cache, *job.worker_flags]


def new_queue(job, name: str) -> str:
    (job.work / name).mkdir()
    queue = f"sqlite://{job.work / name / 'queue.db'}"
    call([job.bin / "inferq", "setup", "--queue", queue])
    return queue


def ready(job, found: dict) -> None:
    queue, cache = new_queue(job, "ready"), job.work / "cache-ready"
    # The driver keeps compiled kernels too, in a folder of its own.
    env = environment(CUDA_CACHE_PATH=str(job.work / "driver-cache"))
    found.update(dict.fromkeys(("cold", "warm", "warm_again")))
    for start in found:
        with worker(job, queue, model_flags(job, cache), env) as running:
            address, seconds = until_ready(running)
            found[start] = {"ready_s": seconds, "status": json.loads(get(address, "/status")[1])}
            found[start]["log"] = running.log.read_text().splitlines()
        found[start]["exit_code"] = running.process.returncode
        say(f"{start}: ready after {seconds:.2f} s")
    codes = [start["exit_code"] for start in found.values()]
    check(job, "readiness", codes == [0, 0, 0], f"exit codes {codes} after SIGTERM")


# Part 6: end to end.


def write_texts(job, path: pathlib.Path, count: int, tokens: int) -> None:
    """Texts of so many tokens each: words that are one token, all different as good as surely."""
    vocabulary = json.loads((job.model / "tokenizer.json").read_text())["model"]["vocab"]
    rng = random.Random(3)
    words = rng.choices([word for word in vocabulary if re.fullmatch("[a-z]{3,}", word)], k=50_000)
    with path.open("w") as file:
        for i in range(count):
            parts = []
            for share in ((tokens - 2) // 2, tokens - 2 - (tokens - 2) // 2):
                start = rng.randrange(len(words) - share)
                parts += words[start : start + share]
            file.write(json.dumps({"id": f"text-{i}", "text": " ".join(parts)}) + "\n")


def counters(address: str) -> dict:
    page = get(address, "/metrics")[1]
    wanted = ("tokens", "padded_tokens", "batches")
    values = {name: re.search(rf"^inferq_{name}_total (\S+)$", page, re.MULTILINE) for name in wanted}
    return {"s": time.monotonic()} | {name: float(value[1]) if value else 0.0 for name, value in values.items()}


def journey(job, name: str, flags: list, count: int, tokens: int, numbers: int) -> dict:
    """So many texts through setup, submit, a ready worker and collect."""
    queue, folder = new_queue(job, name), job.work / name
    texts, ledger, vectors = folder / "texts.jsonl", folder / "ledger.db", folder / "vectors.jsonl"
    write_texts(job, texts, count, tokens)
    inferq = job.bin / "inferq"
    with worker(job, queue, flags) as running, tempfile.TemporaryFile("w+") as log:
        address, ready_s = until_ready(running)
        begun, samples = time.monotonic(), []
        call([inferq, "submit", "--queue", queue, "--input", texts, "--ledger", ledger])
        submitted = time.monotonic()
        command = [inferq, "collect", "--ledger", ledger, "--output", vectors, "--encoding", "base64"]
        collecting = spawn(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while collecting.poll() is None:
                samples.append(counters(address))
                time.sleep(0.05)
        finally:
            end(collecting)
        collected = time.monotonic()
        if collecting.returncode != 0:
            raise RuntimeError(f"collect: exit code {collecting.returncode}: {tail(log)}")
        last = counters(address)
    found = {"texts": count, "ready_s": ready_s, "submit_s": submitted - begun, "whole_s": collected - begun}
    found |= {name: last[name] for name in ("tokens", "padded_tokens", "batches")}
    found |= {"items_per_s": count / found["whole_s"], "tokens_per_s": last["tokens"] / found["whole_s"]}
    # The worker alone, while it had enough to do: from the first sample with tokens to the first with all of them.
    # Of few batches that says nothing, as the others are half done when the first is.
    busy = [s for s in samples + [last] if s["tokens"] > 0]
    whole = next(s for s in busy if s["tokens"] == last["tokens"])
    if last["batches"] >= 20 and whole["s"] - busy[0]["s"] > 0.5:
        found["worker_tokens_per_s"] = (whole["tokens"] - busy[0]["tokens"]) / (whole["s"] - busy[0]["s"])
    wrong = faults(vectors, count, numbers)
    check(job, f"zero loss {name}", not wrong, wrong or f"{count} texts, each with one vector")
    shutil.rmtree(folder)
    return found


def faults(path: pathlib.Path, count: int, numbers: int) -> str:
    """What is wrong with the vectors; empty if nothing is."""
    seen = set()
    with path.open() as file:
        for line in file:
            row = json.loads(line)
            if "embedding" not in row or row["id"] in seen:
                return f"{row['id']}: {row.get('error', 'stands twice')}"
            seen.add(row["id"])
            if len(row["embedding"]) != 4 * math.ceil(numbers * 4 / 3):
                return f"{row['id']}: not a vector of {numbers} numbers"
            # Every vector's numbers would take Python longer than the worker took to make them.
            if len(seen) % 50 == 1 and not abs(math.hypot(*floats(row["embedding"])) - 1) < 1e-2:
                return f"{row['id']}: its length is not 1"
    missing = {f"text-{i}" for i in range(count)} ^ seen
    return f"{len(missing)} texts without a vector or vectors without a text, such as {min(missing)}" if missing else ""


def end_to_end(job, found: dict) -> None:
    ours = job.report["parts"].get("backlog", {})
    rates = {p: ours[p]["tokens_per_s"] for p in job.precisions if ours.get(p)}
    tokens = ours.get("length", min(job.plan.backlog[0], job.longest))
    fallback = 20_000 if job.cuda else 200
    count = int(max(rates.values()) / tokens * job.plan.journey_s) if rates else fallback
    count = min(max(count, 200), 150_000)
    found.update(model=None, echo=None)
    with attempt(job, "end to end", "zero loss model"):
        warm = "cache-ready" if job.report["parts"]["ready"].get("warm") else "cache"
        flags = model_flags(job, job.work / warm)
        found["model"] = journey(job, "model", flags, count, tokens, job.config["hidden_size"])
        done = found["model"].get("worker_tokens_per_s") or found["model"]["tokens_per_s"]
        found["model"]["of_backlog"] = {p: done / rate for p, rate in rates.items()}
    # The rest of the line, without a model; its vectors have eight numbers, so replies are smaller than a model's.
    with attempt(job, "end to end, echo", "zero loss echo"):
        found["echo"] = journey(job, "echo", ["--engine", "echo"], job.plan.echo_texts, tokens, 8)


# Part 7: workers that must refuse.


def without_nvrtc(paths: str) -> str:
    kept = [path for path in paths.split(":") if path and not list(pathlib.Path(path).glob("libnvrtc*"))]
    return ":".join(kept)


def sick(job, found: dict) -> None:
    queue, empty = new_queue(job, "sick"), job.work / "empty"
    empty.mkdir()
    bare = {"CUDA_PATH": str(empty), "CUDA_HOME": str(empty), "CUDA_CACHE_PATH": str(job.work / "sick-driver-cache")}
    # What a worker is given, and what it must say: a build without CUDA refuses too, and shows nothing.
    cases = {"no such card": ({}, "cuda:99", "cuda:99" if job.cuda else "")}
    if job.cuda:
        hidden = without_nvrtc(os.environ.get("LD_LIBRARY_PATH", ""))
        cases["no headers"] = (bare, job.device, "headers")
        cases["no NVRTC and no headers"] = (bare | {"LD_LIBRARY_PATH": hidden}, job.device, "NVRTC|headers")
        listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
        found["nvrtc_is_found_without_ld_library_path"] = "libnvrtc" in listed  # then the last two cases are one
    for name, (changes, device, says) in cases.items():
        with attempt(job, f"sick: {name}", f"sick: {name}"):
            # A cache of its own, so that no kernel is there already.
            flags = model_flags(job, job.work / f"cache-{name.replace(' ', '-')}", device)
            found[name] = refusal(job, queue, [*flags, "--log", "error"], environment(**changes))
            code, lines = found[name]["exit_code"], found[name]["lines"]
            said = f"exit code {code}, {len(lines)} lines: {lines[-1][:200] if lines else ''}"
            check(job, f"sick: {name}", code == 64 and len(lines) == 1 and bool(re.search(says, lines[0])), said)


def refusal(job, queue: str, flags: list, env: dict[str, str]) -> dict:
    with worker(job, queue, flags, env) as running:
        began = time.monotonic()
        while running.process.poll() is None and time.monotonic() < began + 60:
            time.sleep(0.05)
        code = running.process.returncode
    return {"exit_code": code, "s": time.monotonic() - running.begun, "lines": running.log.read_text().splitlines()}


# The report.


def number(value: float | None, pattern: str = "{:.2f}") -> str:
    return "–" if value is None else pattern.format(value)


def speed_lines(found: dict):
    for row in found.get("rows", []):
        ms = ", ".join(f"{side} {value:.2f} ms" for side, value in row["ms"].items() if side != "ours")
        ratios = ", ".join(f"{side} {value:.2f}" for side, value in row["ratios"].items())
        figure = f"{number(row['ms'].get('ours'))} ms, {number(row['tokens_per_s'], '{:,.0f}')} tokens/s"
        figure += f", {number(row['share_of_peak'])} of peak"
        missing = "; ".join(f"{side}: {error[:80]}" for side, error in row["errors"].items())
        what = f"{row['precision']} {row['length']} × {row['batch']}"
        figure = figure if row["ms"] else "no time" * (not missing)
        yield "speed", what, figure, ms, ratios + missing
    for side, means in found.get("geometric_means", {}).items():
        said = ", ".join(f"{precision} {number(mean)}" for precision, mean in means.items())
        yield "speed", f"geometric mean, ours to {side}", "", "", said
    for precision, (rate, source) in found.get("peaks", {}).items():
        matmul = number(found["matmul_tflops"].get(precision), "{:.1f}")
        figure = f"{number(rate, '{:.1f}')} TFLOP/s by {source}"
        yield "speed", f"peak {precision}", figure, f"torch's matmul {matmul}", ""


def backlog_lines(found: dict):
    for precision in (p for p in TOLERANCES if found.get(p)):
        of = found[precision]
        figure = f"{of['tokens_per_s']:,.0f} tokens/s, {of.get('replicas')} replicas, use {number(of['utilisation'])} %"
        energy = f"{number(of['joules_a_million_tokens'])} J a million tokens by {of['joules_by'] or 'nothing'}"
        what = f"{precision} {found['length']} × {found['batch']}"
        single = f"single stream {of['single_tokens_per_s']:,.0f} tokens/s"
        yield "backlog", what, f"{figure}, {energy}", single, number(of["of_single"])


def other_lines(parts: dict):
    for start in ("cold", "warm", "warm_again"):
        of = parts.get("ready", {}).get(start)
        if of:
            phases = ", ".join(f"{name} {value}" for name, value in of["status"]["phases"].items())
            yield "ready", start, f"{of['ready_s']:.2f} s", phases, ""
    for name, of in parts.get("end_to_end", {}).items():
        if of and name != "out_of_time":
            figure = f"{of['items_per_s']:,.0f} texts/s, {of['tokens_per_s']:,.0f} tokens/s"
            alone = f"the worker alone {number(of.get('worker_tokens_per_s'), '{:,.0f}')} tokens/s"
            ratio = ", ".join(f"of backlog {p} {value:.2f}" for p, value in of.get("of_backlog", {}).items())
            yield "end to end", f"{name}, {of['texts']} texts", figure, alone, ratio


def markdown(job) -> str:
    report, parts = job.report, job.report["parts"]
    verdicts = {True: "passed", False: "FAILED", None: "not shown"}
    rows = [("check", name, found["why"] or "no time" * (found["passed"] is None), "", verdicts[found["passed"]])
            for name, found in report["checks"].items()]
    rows += [*speed_lines(parts.get("speed", {})), *backlog_lines(parts.get("backlog", {})), *other_lines(parts)]
    rows += [("no time left", name, "", "", "") for name, found in parts.items() if found.get("out_of_time")]
    rows += [("error", name, error[:300], "", "") for name, error in report["errors"].items()]
    machine = ", ".join(f"{name}: {value}" for name, value in report["machine"].items() if value)
    head = f"{machine}. Ratios above 1: ours is faster.\n\n| part | what | figure | beside it | ratio or verdict |\n"
    clean = (" | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in row) for row in rows)
    return head + "|---|---|---|---|---|\n" + "".join(f"| {row} |\n" for row in clean)


def write(job) -> None:
    job.report["seconds"] = time.monotonic() - STARTED
    (job.out / "gpu_check.json").write_text(json.dumps(job.report, indent=1) + "\n")
    (job.out / "gpu_check.md").write_text(markdown(job))


# The parts in order of importance, each with the most that it may take of the time that is left by then.
PARTS = [
    ("devices", devices, 0.1, None),
    ("parity", parity, 0.5, "reference|(self-test|parity).*"),
    ("speed", speed, 0.5, None),
    ("backlog", backlog, 0.5, None),
    ("ready", ready, 0.6, "readiness"),
    ("end_to_end", end_to_end, 0.7, "zero loss.*"),
    ("sick", sick, 1.0, "sick.*"),
]


def card(index: int) -> dict:
    try:
        columns = ("name", "compute_cap", "driver_version", "memory.total")
        return dict(zip(columns, smi(index, *columns)))
    except (OSError, RuntimeError):
        return {}


def prepare(args) -> types.SimpleNamespace:
    job = types.SimpleNamespace(**vars(args), partners={}, no_torch={}, work=pathlib.Path(tempfile.mkdtemp()))
    job.cuda = job.device.startswith("cuda")
    job.index = int(job.device.partition(":")[2] or 0)
    job.plan = PLANS["cuda" if job.cuda else "cpu"]
    job.config = json.loads((job.model / "config.json").read_text())
    sentence = job.model / "sentence_bert_config.json"
    cut = json.loads(sentence.read_text())["max_seq_length"] if sentence.exists() else math.inf
    job.longest = min(job.config["max_position_embeddings"], cut)
    job.card = card(job.index) if job.cuda else {}
    job.report = {"machine": {"card": job.card, "device": job.device, "cores": os.cpu_count(),
                              "python": platform.python_version(), "system": platform.platform()},
                  "arguments": {name: str(value) for name, value in vars(args).items()},
                  "checks": {}, "errors": {}, "parts": {}}
    return job


def choose(job) -> None:
    """The precisions that the card has, the most used first; and the checks that there will be."""
    torch, reference = peer(job, job.device), peer(job, "cpu")
    if not job.card and torch:
        job.card.update(torch.hello["card"])
    capability = float(job.card.get("compute_cap", 0))
    usual = ("bf16", "f16", "f32") if capability >= 8 else ("f16", "f32") if job.cuda else ("f32",)
    job.precisions = job.precisions or usual
    names = ["reference"] + [f"{kind} {p}" for p in job.precisions
                             for kind in ("self-test", "parity alone", "parity mixed", "parity large")]
    names += ["readiness", "zero loss model", "zero loss echo", "sick: no such card"]
    names += ["sick: no headers", "sick: no NVRTC and no headers"] if job.cuda else []
    without = "" if reference else job.no_torch["torch cpu"]
    why = {name: without for name in names if re.match("reference|parity large", name)}
    job.report["checks"] = {name: {"passed": None, "why": why.get(name, "")} for name in names}


def run(job) -> None:
    with limit(left() / 3):
        choose(job)
    for name, part, share, checks in PARTS:
        found = job.report["parts"][name] = {}
        say(f"{name}: begins, for {share * left():.0f} s at most")
        try:
            with attempt(job, name, checks), limit(share * left()):
                part(job, found)
        except OutOfTime:
            found["out_of_time"] = True
            say(f"{name}: out of time")
        if "cases" in found:
            speed_rows(job, found)
        if name == "backlog":
            end_partners(job)  # what follows has the card for itself
        write(job)


def end_partners(job) -> None:
    for partner in job.partners.values():
        end(partner.child)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, help="the folder of our release binaries")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="a BERT directory")
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), help="where the report goes")
    parser.add_argument("--minutes", type=float, default=9.0, help="the most that all of it may take")
    parser.add_argument("--precisions", type=lambda text: text.split(","), help="instead of all that the card has")
    parser.add_argument("--worker-flags", type=shlex.split, default=[], help="further flags of inferq-worker")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return serve(args.model, args.device)
    if args.bin is None:
        parser.error("--bin is missing")
    args.bin, args.model, args.out = args.bin.resolve(), args.model.resolve(), args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGALRM, out_of_time)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    job = prepare(args)
    try:
        with contextlib.suppress(OutOfTime), limit(60 * args.minutes - 5):  # the rest is for ending what runs
            run(job)
    finally:
        for child in list(CHILDREN):
            end(child)
        shutil.rmtree(job.work, ignore_errors=True)
        write(job)
    print(markdown(job))
    return int(any(found["passed"] is False for found in job.report["checks"].values()))


# The peer: the same model in torch. Nothing above this line imports it.


def serve(directory: pathlib.Path, device: str) -> int:
    """Answers the lines that `bench_device` does, with `precision` and `variant` in each."""
    try:
        import torch
        peer = load_peer(torch, directory, device)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        return 1
    print(json.dumps({"ready": True, "torch": torch.__version__, "card": peer.card}), flush=True)
    operations = {"time": peer_time, "infer": peer_infer, "matmul": peer_matmul}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            with torch.inference_mode():
                answer = operations[request.pop("op")](torch, peer, **request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # the other processes on this card need what is not used
        print(json.dumps(answer), flush=True)
    return 0


def load_peer(torch, directory: pathlib.Path, device: str) -> types.SimpleNamespace:
    found = {}
    if device.startswith("cuda"):
        # As burn does: f32 runs on TF32 tensor cores. On the CPU it stays exact, to be the reference.
        torch.set_float32_matmul_precision("high")
        major, minor = torch.cuda.get_device_capability(device)
        found = {"name": torch.cuda.get_device_name(device), "compute_cap": f"{major}.{minor}"}
    config = json.loads((directory / "config.json").read_text())
    weights = read_safetensors(torch, directory / "model.safetensors")
    dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

    @functools.cache
    def of(precision: str) -> dict:
        return {name: tensor.to(device, dtypes[precision]) for name, tensor in weights.items()}

    @functools.cache
    def embedder(precision: str, variant: str):
        plain = functools.partial(embed, torch, of(precision), config, variant == "eager")
        return torch.compile(plain, dynamic=False) if variant == "compiled" else plain

    return types.SimpleNamespace(config=config, device=device, dtypes=dtypes, embedder=embedder, card=found)


def read_safetensors(torch, path: pathlib.Path) -> dict:
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    dtypes, tensors = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}, {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__" and entry["dtype"] in dtypes:
            start, after = entry["data_offsets"]
            dtype = dtypes[entry["dtype"]]
            count = (after - start) // dtype.itemsize
            values = torch.frombuffer(data, dtype=dtype, count=count, offset=8 + size + start)
            tensors[name.removeprefix("bert.")] = values.reshape(entry["shape"])
    return tensors


def embed(torch, weights: dict, config: dict, eager: bool, ids, mask):
    """Unit vectors, as transformers and sentence-transformers compute them. `mask`: True for real tokens, or None."""
    functional, hidden, heads = torch.nn.functional, config["hidden_size"], config["num_attention_heads"]
    batch, length = ids.shape

    def linear(x, name: str):
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name: str):
        gamma, beta = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return functional.layer_norm(x, (hidden,), gamma, beta, config["layer_norm_eps"])

    def split(x):
        return x.view(batch, length, heads, hidden // heads).transpose(1, 2)

    def attention(query, key, value):
        wide = None if mask is None else mask[:, None, None, :]
        if not eager:
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=wide)
        scores = query @ key.transpose(2, 3) / (hidden // heads) ** 0.5
        scores = scores if wide is None else scores.masked_fill(~wide, torch.finfo(scores.dtype).min)
        return scores.softmax(-1) @ value

    x = functional.embedding(ids, weights["embeddings.word_embeddings.weight"])
    x = x + weights["embeddings.position_embeddings.weight"][:length]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        mixed = attention(*(split(linear(x, f"{layer}.attention.self.{name}")) for name in ("query", "key", "value")))
        mixed = mixed.transpose(1, 2).reshape(batch, length, hidden)
        x = norm(linear(mixed, f"{layer}.attention.output.dense") + x, f"{layer}.attention.output.LayerNorm")
        wide = functional.gelu(linear(x, f"{layer}.intermediate.dense"))
        x = norm(linear(wide, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
    if mask is None:
        return functional.normalize(x.mean(1, dtype=torch.float32), dim=1)
    return functional.normalize((x * mask[:, :, None]).sum(1, dtype=torch.float32), dim=1)


def peer_time(torch, peer, precision: str, variant: str, length: int, batch: int, seconds: float) -> dict:
    """One run is all that ours does: ids of the host to the device, forward, and the vectors back."""
    embedder, words = peer.embedder(precision, variant), peer.config["vocab_size"]
    batches = [torch.randint(words // 20, words, (batch, length)) for _ in range(4)]
    spent = []
    while not spent or sum(spent) < seconds:
        begun = time.perf_counter()
        embedder(batches[len(spent) % 4].to(peer.device), None).cpu()
        spent.append(time.perf_counter() - begun)
    return {"ms": statistics.median(spent) * 1e3, "runs": len(spent)}


def peer_infer(torch, peer, precision: str, items: list[list[int]]) -> dict:
    longest = max(map(len, items))
    ids = torch.tensor([item + [0] * (longest - len(item)) for item in items], device=peer.device)
    lengths = torch.tensor([len(item) for item in items], device=peer.device)
    mask = torch.arange(longest, device=peer.device)[None] < lengths[:, None]
    mask = None if all(len(item) == longest for item in items) else mask
    return {"vectors": peer.embedder(precision, "sdpa")(ids, mask).tolist()}


def peer_matmul(torch, peer, precision: str, size: int, seconds: float) -> dict:
    """TFLOP/s of a large product, the best of many runs. On random numbers: zeros take less power and run faster."""
    a, b = (torch.randn(size, size, device=peer.device, dtype=peer.dtypes[precision]) for _ in range(2))
    best, over = math.inf, time.perf_counter() + seconds
    while best == math.inf or time.perf_counter() < over:
        begun = time.perf_counter()
        for _ in range(4):
            product = a @ b
        product[0, 0].item()  # waits for all of them
        best = min(best, (time.perf_counter() - begun) / 4)
    return {"tflops": 2 * size**3 / best / 1e12}


if __name__ == "__main__":
    sys.exit(main())
