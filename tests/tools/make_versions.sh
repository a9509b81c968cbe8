#!/bin/sh
# Makes the folder of tests/fixtures/versions/ in which today's layouts are kept: make_versions.sh FOLDER-OF-BINARIES. To be
# run when a layout has changed, before that is released: what lies there stays for ever.
#
# queue.db, the embedded queue: one submission whose replies nobody has collected, one whose jobs wait.
# answered.db and waiting.db: the ledgers of the two.
set -eu

BIN=$(cd "$1" && pwd)
OUT=$(cd "$(dirname "$0")/.." && pwd)/fixtures/versions
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
QUEUE=sqlite:///var/lib/inferq/queue.db

mkdir -p "$OUT"
cd "$WORK"
sed 's/^/"/; s/$/"/' > texts.jsonl << TEXTS
A bird sings in the garden.
The train leaves at noon.
TEXTS
echo '{"id": "doc-3", "text": "Bread is made of flour."}' >> texts.jsonl

submit() {
    "$BIN/inferq" submit --queue sqlite:queue.db --input texts.jsonl --items-per-job 2 --ledger "$1.db"
}
"$BIN/inferq" setup --queue sqlite:queue.db
submit answered
"$BIN/inferq-worker" --engine echo --worker-name earlier --queue sqlite:queue.db --health 127.0.0.1:0 2> worker.log &
until [ "$("$BIN/inferq" status --queue sqlite:queue.db --json | python3 -c \
    'import json, sys; print(json.load(sys.stdin)["routes"]["waiting"])')" = 2 ]; do :; done
kill $!
wait $! || { cat worker.log; exit 1; }
submit waiting

python3 - "$WORK" "$OUT" "$QUEUE" << 'PYTHON'
import pathlib, shutil, sqlite3, sys

work, out, queue = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
versions = {}
for name in ["queue", "answered", "waiting"]:
    db = sqlite3.connect(work / f"{name}.db", isolation_level=None)
    if name != "queue":
        # Not where it was made.
        db.execute("UPDATE settings SET value = replace(value, ?, ?)", (f"sqlite://{work}/queue.db", queue))
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("VACUUM")
    versions[name] = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
folder = out / f"queue-{versions['queue']}-ledger-{versions['waiting']}"
if folder.exists():
    sys.exit(f"{folder} is there already, and stays")
folder.mkdir()
for name in versions:
    shutil.copy(work / f"{name}.db", folder)
print(folder)
PYTHON
