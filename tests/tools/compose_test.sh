#!/usr/bin/env bash
# docker-compose.yaml for real: the images are built, 500 texts submitted, a worker killed and RabbitMQ restarted in between,
# everything collected and compared with what `inferq run` computes. It has a project, ports and data of its own, and
# leaves nothing but the images.
set -euo pipefail
cd "$(dirname "$0")/../.."

TEXTS=500
# How far two runs of one model may be apart: batches differ, and with them the order of sums.
TOLERANCE=1e-5

say() { echo "compose-test: $1" >&2; }
fail() {
    say "$1"
    exit 1
}

command -v docker > /dev/null || fail "docker is missing: apt install docker.io docker-compose"
docker info > /dev/null 2>&1 || fail "no docker daemon answers: start dockerd, or join the group docker"
if docker compose version > /dev/null 2>&1; then
    compose=(docker compose)
elif command -v docker-compose > /dev/null; then
    compose=(docker-compose)
else
    fail "docker compose is missing: apt install docker-compose"
fi
command -v python3 > /dev/null || fail "python3 is missing: apt install python3"

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
data=$(mktemp -d)
export COMPOSE_PROJECT_NAME="inferq-test-$$"
INFERQ_RABBITMQ_PORT=$(free_port)
INFERQ_MANAGEMENT_PORT=$(free_port)
INFERQ_RABBITMQ_PASSWORD=$(python3 -c 'import secrets; print(secrets.token_hex(8))')
INFERQ_UID=$(id -u)
INFERQ_GID=$(id -g)
export INFERQ_RABBITMQ_PORT INFERQ_MANAGEMENT_PORT INFERQ_RABBITMQ_PASSWORD INFERQ_UID INFERQ_GID INFERQ_DATA="$data"

end() {
    local code=$?
    if ((code != 0)); then "${compose[@]}" logs --tail 30 >&2 || true; fi
    "${compose[@]}" down --volumes --timeout 5 > /dev/null 2>&1 || true
    rm -rf "$data"
    exit "$code"
}
trap end EXIT

inferq() { "${compose[@]}" run --rm producer "$@"; }

say "building and starting"
"${compose[@]}" up --build --detach 2> "$data/up.log" || { tail -n 30 "$data/up.log" >&2; fail "it does not start"; }
python3 - "$TEXTS" > "$data/texts.jsonl" << 'PYTHON'
import json, sys

for number in range(int(sys.argv[1])):
    words = " ".join(f"word{(number * 7 + place) % 97}" for place in range(3 + number % 60))
    print(json.dumps({"id": f"doc-{number}", "text": f"text {number}: {words}"}))
PYTHON

say "submitting $TEXTS texts"
inferq submit --input texts.jsonl --items-per-job 4
say "killing a worker, restarting RabbitMQ"
worker=$("${compose[@]}" ps -q worker | head -n 1)
docker kill --signal KILL "$worker" > /dev/null
"${compose[@]}" restart rabbitmq > /dev/null 2>&1
say "collecting"
inferq collect --ledger texts.jsonl.ledger.db --output vectors.jsonl --timeout-s 300
"${compose[@]}" run --rm --entrypoint inferq --volume "$data:/data" --user "$INFERQ_UID:$INFERQ_GID" worker \
    run --model /models --input /data/texts.jsonl --output /data/expected.jsonl

python3 - "$data" "$TEXTS" "$TOLERANCE" << 'PYTHON'
import json, pathlib, sys

data, texts, tolerance = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
found, expected = ([json.loads(line) for line in open(data / name)] for name in ("vectors.jsonl", "expected.jsonl"))
ids = [f"doc-{number}" for number in range(texts)]
for name, rows in (("vectors.jsonl", found), ("expected.jsonl", expected)):
    if [row["id"] for row in rows] != ids:
        sys.exit(f"compose-test: {name} does not hold each of {texts} texts once, in order")
difference = max(
    abs(a - b) for ours, theirs in zip(found, expected) for a, b in zip(ours["embedding"], theirs["embedding"], strict=True)
)
print(f"compose-test: {texts} texts, each once; largest difference to `inferq run` {difference:.1e}")
sys.exit(0 if difference <= tolerance else f"compose-test: more than {tolerance}")
PYTHON

say "each running worker is healthy, and stops when asked to"
mapfile -t running < <(docker ps --quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" \
    --filter label=com.docker.compose.service=worker)
((${#running[@]})) || fail "no worker runs"
for container in "${running[@]}"; do
    docker exec "$container" inferq-worker health > /dev/null || fail "a worker is not healthy"
done
"${compose[@]}" stop worker > /dev/null 2>&1
for container in "${running[@]}"; do
    code=$(docker inspect --format '{{.State.ExitCode}}' "$container")
    [[ $code == 0 ]] || fail "a worker ended with exit code $code when it was stopped"
done
size=$(docker image inspect --format '{{.Size}}' inferq)
base=$(docker image inspect --format '{{.Size}}' debian:bookworm-slim)
say "the image is $(((size - base) / 1000000)) MB above its base"
