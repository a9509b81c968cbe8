#!/usr/bin/env python3
"""Measures three drains of a queue with real workers, for the scaling simulation to reproduce.

In: the binaries, a model. Out: tests/fixtures/scaling/drains.json, a list of
{name, broker, jobs, tokens_a_job, workers: [{started_s, phases, ready_s, tokens_per_s, stopped_s?, exited_s?}], drained_s}.
Times are seconds since the first worker was started; the queue is full by then. A worker's tokens_per_s is what its engine
computed while it had a batch, from its own metrics: not the queue's progress, so that a simulation that is given the rates
still has to find the time to drain by itself. A worker has one replica, so that two of them have a core each on two cores.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

POLL_S = 0.2
LIMIT_S = 600
WORDS = ("the ship sailed before dawn and nobody on the quay noticed how low she lay in the water because the rain had "
         "emptied every street of the harbour and even the gulls were silent").split()


def say(text):
    print(text, file=sys.stderr, flush=True)


def write_texts(path, count, seed):
    """Texts of about 60 tokens, all different, the same for a seed."""
    words = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join(words.choice(WORDS) for _ in range(58))
            file.write(json.dumps(f"{number} {text}") + "\n")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Worker:
    """A real worker process and what it says of itself."""

    def __init__(self, number, binary, model, queue, folder, zero):
        self.zero = zero
        self.address = f"http://127.0.0.1:{free_port()}"
        self.log = open(folder / f"worker-{number}.log", "wb")
        self.started_s = time.monotonic() - zero
        self.ready_s = self.stopped_s = self.exited_s = None
        self.status, self.metrics = {}, {}
        self.process = subprocess.Popen(
            [binary, "--queue", queue, "--model", model, "--replicas", "1", "--health", self.address.removeprefix("http://")],
            stdout=self.log, stderr=self.log)

    def ask(self, path):
        try:
            with urllib.request.urlopen(self.address + path, timeout=2) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return None

    def poll(self):
        """Remembers the last that the worker said, so that a worker that ended is known by its last word."""
        if self.process.poll() is not None:
            if self.exited_s is None:
                self.exited_s = time.monotonic() - self.zero
            return
        status = self.ask("/status")
        if status is None:
            return
        self.status = json.loads(status)
        if self.ready_s is None and self.status["state"] == "ready":
            self.ready_s = time.monotonic() - self.zero
        metrics = {}
        for line in (self.ask("/metrics") or "").splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                metrics[name] = float(value)
        if metrics:
            self.metrics = metrics

    def stop(self):
        self.stopped_s = time.monotonic() - self.zero
        self.process.send_signal(signal.SIGTERM)

    def tokens(self):
        return self.metrics.get("inferq_tokens_total", 0.0)

    def rate(self):
        busy_s = self.metrics.get("inferq_batch_duration_seconds_sum", 0.0)
        if busy_s == 0:
            raise SystemExit(f"a worker computed no batch: {self.status}")
        return self.tokens() / busy_s

    def as_json(self):
        phases = {name.removesuffix("_ms"): ms / 1000 for name, ms in self.status["phases"].items()}
        row = {"started_s": round(self.started_s, 2), "phases": phases, "ready_s": round(self.ready_s, 2),
               "tokens_per_s": round(self.rate(), 1)}
        if self.stopped_s is not None:
            row |= {"stopped_s": round(self.stopped_s, 2), "exited_s": round(self.exited_s, 2)}
        return row


def waiting(inferq, queue):
    """How many jobs have no answer, how many replies there are."""
    out = subprocess.run([inferq, "status", "--queue", queue, "--json"], check=True, capture_output=True).stdout
    status = json.loads(out)
    jobs = next(row for row in status["queues"] if row["role"] == "jobs")
    return jobs["waiting"] + jobs["leased"] + jobs["delayed"], status["routes"]["waiting"]


def drain(name, options, jobs, second_after_share=None, stop_first_after_share=None, both=False):
    """One drain. Shares are of the jobs answered when the second worker starts, or the first gets SIGTERM."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="inferq-drains-"))
    queue, texts = f"sqlite://{folder}/queue.db", folder / "texts.jsonl"
    write_texts(texts, jobs * options.items_a_job, seed=len(name))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([options.inferq, "setup", "--queue", queue], check=True, **quiet)
    subprocess.run([options.inferq, "submit", "--queue", queue, "--input", texts,
                    "--items-per-job", str(options.items_a_job)], check=True, **quiet)
    zero = time.monotonic()
    workers = []

    def start():
        workers.append(Worker(len(workers), options.worker, options.model, queue, folder, zero))

    try:
        start()
        if both:
            start()
        while True:
            for worker in workers:
                worker.poll()
            left, answered = waiting(options.inferq, queue)
            now = time.monotonic() - zero
            if second_after_share is not None and len(workers) == 1 and answered >= second_after_share * jobs:
                start()
            to_stop = stop_first_after_share is not None and answered >= stop_first_after_share * jobs
            if to_stop and workers[0].stopped_s is None:
                workers[0].stop()
            if answered >= jobs and left == 0:
                drained_s = now
                break
            if now > LIMIT_S:
                raise SystemExit(f"{name}: {answered} of {jobs} jobs answered after {LIMIT_S} s; see {folder}")
            time.sleep(POLL_S)
        for worker in workers:
            worker.poll()
        counted = sum(w.metrics.get("inferq_job_tokens_sum", 0.0) for w in workers)
        counted_jobs = sum(w.metrics.get("inferq_job_tokens_count", 0.0) for w in workers)
        row = {"name": name, "broker": "sqlite", "jobs": jobs, "tokens_a_job": round(counted / counted_jobs, 2),
               "workers": [worker.as_json() for worker in workers], "drained_s": round(drained_s, 2)}
        say(json.dumps(row))
        return row
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.terminate()
        for worker in workers:
            worker.process.wait(timeout=60)
            worker.log.close()
        shutil.rmtree(folder, ignore_errors=True)


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target")) / "release"
    arguments.add_argument("--bin", type=pathlib.Path, default=target, help="the folder of inferq and inferq-worker")
    arguments.add_argument("--model", type=pathlib.Path, required=True)
    arguments.add_argument("--jobs", type=int, default=600)
    arguments.add_argument("--items-a-job", type=int, default=4)
    arguments.add_argument("--out", type=pathlib.Path, default=root / "tests/fixtures/scaling/drains.json")
    options = arguments.parse_args()
    options.inferq, options.worker = options.bin / "inferq", options.bin / "inferq-worker"
    rows = [
        drain("one worker", options, options.jobs),
        drain("two workers, the second when a quarter is answered", options, options.jobs, second_after_share=0.25),
        drain("two workers, one stopped when half is answered", options, options.jobs, both=True,
              stop_first_after_share=0.5),
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {options.out}")


if __name__ == "__main__":
    main()
