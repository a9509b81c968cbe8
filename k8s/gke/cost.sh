#!/usr/bin/env bash
# What workers cost: a month of them, and a million items at the rate that was measured. Prices are in prices.csv, which is yours
# to edit. It asks nobody and changes nothing.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

KIND=${KIND:-}
MACHINE=${MACHINE:-}
NODES=${NODES:-1}
SPOT=${SPOT:-}
WORKERS=${WORKERS:-}
TOKENS_PER_S=${TOKENS_PER_S:-}
TOKENS_PER_ITEM=${TOKENS_PER_ITEM:-}
MEASURED=${MEASURED:-}
HOURS=${HOURS:-730}
SYSTEM_NODES=${SYSTEM_NODES:-3}
SYSTEM_MACHINE=${SYSTEM_MACHINE:-e2-standard-2}
VOLUME_GB=${VOLUME_GB:-30}
BUCKET_GB=${BUCKET_GB:-30}
PRICES=${PRICES:-$(dirname "$0")/prices.csv}

help() {
    cat << 'HELP'
Says what workers cost: a month, and a million items

Usage: cost.sh --kind cpu|t4|l4|h100 [FLAGS]

  --kind KIND          KIND of nodes, as create-node-pool.sh makes them
  --machine TYPE       MACHINE: another machine type of that kind
  --nodes N            NODES that run on average [1]
  --spot               SPOT=1: spot prices
  --hours N            HOURS of a month in which they run [730]
  --system-nodes N     SYSTEM_NODES of SYSTEM_MACHINE, as create-cluster.sh makes them [3]
  --volume-gb N        VOLUME_GB for the models [30]
  --bucket-gb N        BUCKET_GB for the models [30]
  --prices FILE        PRICES [prices.csv beside this command]

How much work they do, for a million items; one worker a node unless --workers says otherwise:
  --tokens-per-s N     TOKENS_PER_S of one worker
  --tokens-per-item N  TOKENS_PER_ITEM on average
  --workers N          WORKERS in all
  --measured FILE      MEASURED: instead of these, from `inferq status --json` (the mean worker), from a worker's /metrics, or
                       from `inferq bench --json` (answered items, all workers together: what was asked of them, and what they
                       can do only where that was more)

A node that waits costs as much as one that works: a million items cost this much while there is work for all of them.

Example:
  cost.sh --kind l4 --spot --nodes 2 --tokens-per-s 50000 --tokens-per-item 128    # figures for example
  inferq status --json > status.json && cost.sh --kind cpu --measured status.json --tokens-per-item 128
HELP
}

split_flags "$@"
set -- "${words[@]}"
while (($#)); do
    taken=2
    case $1 in
        --kind) value_of "$@" && KIND=$value ;;
        --machine) value_of "$@" && MACHINE=$value ;;
        --nodes) value_of "$@" && NODES=$value ;;
        --spot) SPOT=1 taken=1 ;;
        --workers) value_of "$@" && WORKERS=$value ;;
        --tokens-per-s) value_of "$@" && TOKENS_PER_S=$value ;;
        --tokens-per-item) value_of "$@" && TOKENS_PER_ITEM=$value ;;
        --measured) value_of "$@" && MEASURED=$value ;;
        --hours) value_of "$@" && HOURS=$value ;;
        --system-nodes) value_of "$@" && SYSTEM_NODES=$value ;;
        --volume-gb) value_of "$@" && VOLUME_GB=$value ;;
        --bucket-gb) value_of "$@" && BUCKET_GB=$value ;;
        --prices) value_of "$@" && PRICES=$value ;;
        *) common_flag "$@" ;;
    esac
    shift "$taken"
done

card=
case $KIND in
    cpu) machine=n2-highmem-4 ;;
    t4) machine=n1-standard-8 card=nvidia-tesla-t4 ;;
    # The price of these machines has the card's in it.
    l4) machine=g2-standard-8 ;;
    h100) machine=a3-highgpu-1g ;;
    '') refuse "no kind of node: give --kind cpu, t4, l4 or h100" ;;
    *) refuse "--kind is cpu, t4, l4 or h100, not $KIND" ;;
esac
MACHINE=${MACHINE:-$machine}
positive() { [[ $2 =~ ^[0-9]+(\.[0-9]+)?$ && $2 =~ [1-9] ]] || refuse "$1 is a number above 0, not $2"; }
for flag in nodes hours; do
    name=${flag^^}
    positive "--$flag" "${!name}"
done
for flag in system-nodes volume-gb bucket-gb; do
    name=${flag^^} name=${name//-/_}
    [[ ${!name} =~ ^[0-9]+(\.[0-9]+)?$ ]] || refuse "--$flag is a number, not ${!name}"
done
[[ -r $PRICES ]] || refuse "no prices: $PRICES can't be read"
sampled=()
# price ITEM UNIT: sets `value`.
price() {
    local row source
    row=$(awk -F, -v item="$1" -v unit="$2" '$1 == item && $2 == unit { print; exit }' "$PRICES")
    [[ -n $row ]] || refuse "$PRICES has no price of $1 by the $2: add a row"
    IFS=, read -r _ _ value spot _ source <<< "$row"
    if [[ -n $SPOT && -n ${3:-} ]]; then
        value=$spot
        [[ -n $value ]] || refuse "$PRICES has no spot price of $1: look it up and add it"
    fi
    [[ $value =~ ^[0-9]+(\.[0-9]+)?$ ]] || refuse "$PRICES: the price of $1 is no number: $value"
    if [[ $source == sample ]]; then sampled+=("$1"); fi
}

items_per_s=
if [[ -n $MEASURED ]]; then
    [[ -r $MEASURED ]] || refuse "--measured: $MEASURED can't be read"
    need python3 "apt install python3"
    read -r kind rate per_item < <(
        python3 - "$MEASURED" << 'PYTHON'
import json, sys

text = open(sys.argv[1]).read()
try:
    known = json.loads(text)
except ValueError:
    # Prometheus' lines; labels are left out.
    known = {}
    for line in text.splitlines():
        if line.startswith("inferq_"):
            known[line.split("{")[0].split(" ")[0]] = float(line.rsplit(" ", 1)[1])
    rate, tokens, items = (known.get(f"inferq_{name}") for name in ("tokens_per_second", "tokens_total", "items_total"))
    print("worker" if rate else "none", rate, tokens / items if tokens and items else "-")
    sys.exit()
workers = [worker for worker in known.get("workers") or [] if worker.get("tokens_per_s")]
if workers:
    rate = sum(worker["tokens_per_s"] for worker in workers) / len(workers)
    items = sum(worker.get("items_per_s") or 0 for worker in workers) / len(workers)
    print("worker", rate, rate / items if items else "-")
elif known.get("answered_per_s"):
    print("all", known["answered_per_s"] * known["items_per_job"], "-")
else:
    print("none", "-", "-")
PYTHON
    ) || true
    case $kind in
        worker)
            TOKENS_PER_S=$rate
            # What was said beats what was seen: the next million may have other lengths.
            if [[ -z $TOKENS_PER_ITEM && $per_item != - ]]; then TOKENS_PER_ITEM=$per_item; fi
            ;;
        all) items_per_s=$rate ;;
        *) refuse "$MEASURED tells no rate: no worker in it has computed anything" ;;
    esac
fi

price "$MACHINE" hour spot
node=$value
if [[ -n $card ]]; then
    price "$card" hour spot
    node=$(awk -v a="$node" -v b="$value" 'BEGIN { print a + b }')
fi
price cluster hour
cluster=$value
system=0
if [[ $SYSTEM_NODES != 0 ]]; then
    price "$SYSTEM_MACHINE" hour
    system=$value
fi
price pd-balanced gb-month
disk=$value
price bucket gb-month
bucket=$value

if [[ -z $items_per_s && -n $TOKENS_PER_S$TOKENS_PER_ITEM ]]; then
    [[ -n $TOKENS_PER_S ]] || refuse "--tokens-per-item without --tokens-per-s or --measured"
    [[ -n $TOKENS_PER_ITEM ]] || refuse "--tokens-per-s without --tokens-per-item: how long is an item?"
    positive --tokens-per-s "$TOKENS_PER_S"
    positive --tokens-per-item "$TOKENS_PER_ITEM"
    WORKERS=${WORKERS:-$NODES}
    positive --workers "$WORKERS"
    items_per_s=$(awk -v a="$TOKENS_PER_S" -v b="$TOKENS_PER_ITEM" -v n="$WORKERS" 'BEGIN { printf "%.6f", a * n / b }')
fi

awk -v machine="$MACHINE${card:+ with $card}${SPOT:+, spot}" -v node="$node" -v nodes="$NODES" -v hours="$HOURS" \
    -v cluster="$cluster" -v own="$system" -v own_nodes="$SYSTEM_NODES" -v disk="$disk" -v volume="$VOLUME_GB" \
    -v bucket="$bucket" -v stored="$BUCKET_GB" -v rate="$items_per_s" '
    function row(what, usd) { printf "%-58s %12.2f\n", what, usd; sum += usd }
    BEGIN {
        printf "%-58s %12s\n", "a month", "USD"
        row(nodes " x " machine ", " hours " h at " sprintf("%.4f", node), nodes * hours * node)
        # These run whether or not there is work.
        row("the cluster, 730 h", 730 * cluster)
        row(own_nodes " nodes for the system, 730 h", 730 * own_nodes * own)
        row(volume " GB of volume", volume * disk)
        row(stored " GB in the bucket", stored * bucket)
        printf "%-58s %12.2f\n", "together", sum
        if (rate != "") {
            busy = nodes * node
            printf "\n%-58s %12.1f\n", "items a second", rate
            printf "%-58s %12.2f\n", "hours for a million items", 1e6 / rate / 3600
            printf "%-58s %12.4f\n", "a million items, the nodes alone", busy * 1e6 / rate / 3600
            printf "%-58s %12.4f\n", "a million items, with the rest of the month spread over", sum / (hours * 3600) * 1e6 / rate
        }
    }'
say "prices of $(awk -F, '$5 ~ /^[0-9]/ { print $5 }' "$PRICES" | sort | sed -n '1p;$p' | paste -sd ' ' | sed 's/ / to /')"
if ((${#sampled[@]})); then say "samples without a source, check them: ${sampled[*]}"; fi
