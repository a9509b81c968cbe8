#!/usr/bin/env bash
# Makes a node pool for workers: memory and cores, or one kind of graphics card, between a smallest and a largest number of nodes.
# GKE itself labels nodes that have cards with cloud.google.com/gke-accelerator and taints them nvidia.com/gpu=present:NoSchedule;
# the components gpu-t4, gpu-l4 and gpu-h100 select and tolerate just these.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

KIND=${KIND:-}
POOL=${POOL:-}
MACHINE=${MACHINE:-}
MIN_NODES=${MIN_NODES:-}
MAX_NODES=${MAX_NODES:-}
ZONES=${ZONES:-}
SPOT=${SPOT:-}
DRIVER=${DRIVER:-default}
GPUS=${GPUS:-1}
LABELS=${LABELS:-}
TAINTS=${TAINTS:-}

help() {
    cat << 'HELP'
Makes a node pool for workers, that grows and shrinks by itself

Usage: create-node-pool.sh --project ID --kind cpu|t4|l4|h100 [FLAGS]

  --kind KIND       KIND: what a node is
                      cpu   n2-highmem-4, 4 vCPU, 32 GiB          1 to 3 nodes
                      t4    n1-standard-8 and one NVIDIA T4       0 to 3
                      l4    g2-standard-8 with one NVIDIA L4      0 to 3
                      h100  a3-highgpu-1g with one NVIDIA H100    0 to 1
  --pool NAME       POOL, the pool's name [the kind, or KIND-spot]
  --machine TYPE    MACHINE: another machine type
  --gpus N          GPUS, cards of a node, as the machine type has them [1]
  --min N, --max N  MIN_NODES, MAX_NODES: nodes in all zones together
  --zones A,B       ZONES that nodes may be in [the cluster's]. Cards are in some zones only:
                      gcloud compute accelerator-types list --filter name=nvidia-l4
  --spot            SPOT=1: spot machines, also tainted cloud.google.com/gke-spot=true:NoSchedule
  --driver VERSION  DRIVER that GKE installs: default or latest [default]
  --labels K=V,…    LABELS of the nodes, beside GKE's own
  --taints K=V:E,…  TAINTS of the nodes, beside GKE's own

Example: a pool for cards that costs nothing while no job waits, and one for the article's own shape
  create-node-pool.sh --project my-project --kind l4 --spot --max 10 --zones us-central1-a,us-central1-b
  create-node-pool.sh --project my-project --kind cpu --min 1 --max 3 --zones us-central1-a
HELP
}

split_flags "$@"
set -- "${words[@]}"
while (($#)); do
    taken=2
    case $1 in
        --kind) value_of "$@" && KIND=$value ;;
        --pool) value_of "$@" && POOL=$value ;;
        --machine) value_of "$@" && MACHINE=$value ;;
        --gpus) value_of "$@" && GPUS=$value ;;
        --min) value_of "$@" && MIN_NODES=$value ;;
        --max) value_of "$@" && MAX_NODES=$value ;;
        --zones) value_of "$@" && ZONES=$value ;;
        --spot) SPOT=1 taken=1 ;;
        --driver) value_of "$@" && DRIVER=$value ;;
        --labels) value_of "$@" && LABELS=$value ;;
        --taints) value_of "$@" && TAINTS=$value ;;
        *) common_flag "$@" ;;
    esac
    shift "$taken"
done

card=
case $KIND in
    cpu) machine=n2-highmem-4 least=1 most=3 ;;
    t4) machine=n1-standard-8 least=0 most=3 card=nvidia-tesla-t4 ;;
    l4) machine=g2-standard-8 least=0 most=3 card=nvidia-l4 ;;
    h100) machine=a3-highgpu-1g least=0 most=1 card=nvidia-h100-80gb ;;
    '') refuse "no kind of node: give --kind cpu, t4, l4 or h100" ;;
    *) refuse "--kind is cpu, t4, l4 or h100, not $KIND" ;;
esac
MACHINE=${MACHINE:-$machine}
MIN_NODES=${MIN_NODES:-$least}
MAX_NODES=${MAX_NODES:-$most}
POOL=${POOL:-$KIND${SPOT:+-spot}}
need_count --min "$MIN_NODES"
need_count --max "$MAX_NODES"
need_count --gpus "$GPUS"
((MAX_NODES > 0 && MIN_NODES <= MAX_NODES)) || refuse "--max is at least 1 and at least --min, not $MIN_NODES to $MAX_NODES"
((GPUS > 0)) || refuse "--gpus is at least 1"
[[ $DRIVER == default || $DRIVER == latest ]] || refuse "--driver is default or latest, not $DRIVER"
need_gcloud
need_project

pool=(gcloud container node-pools describe "$POOL" --cluster "$CLUSTER" --location "$REGION" --project "$PROJECT")
if is_there "${pool[@]}"; then
    found=$("${pool[@]}" --format 'value(config.machineType)')
    [[ $found == "$MACHINE" ]] ||
        fail "pool $POOL is there with machines $found, not $MACHINE: make one by another name, then migrate-pool.sh $POOL NAME"
    there_already "pool $POOL of $found"
    exit 0
fi

# A pool starts with --num-nodes in each zone. That is --min or a little more, and the autoscaler takes what is too many.
zones=3
if [[ -n $ZONES ]]; then
    commas=${ZONES//[!,]/}
    zones=$((${#commas} + 1))
fi
start=$(((MIN_NODES + zones - 1) / zones))
((start * zones <= MAX_NODES)) ||
    refuse "a pool starts with as many nodes in each zone: name --zones, of which $MIN_NODES is a multiple, or raise --max"
flags=(--machine-type "$MACHINE" --num-nodes "$start"
    --enable-autoscaling --total-min-nodes "$MIN_NODES" --total-max-nodes "$MAX_NODES"
    --service-account "$(nodes_account)" --workload-metadata GKE_METADATA --disk-type pd-balanced)
if [[ -n $card ]]; then
    # ANY takes a card in whichever zone has one; BALANCED would wait for the emptiest zone to have another.
    flags+=(--disk-size 100 --location-policy ANY
        --accelerator "type=$card,count=$GPUS,gpu-driver-version=$DRIVER")
else
    flags+=(--disk-size 50)
    if [[ -n $SPOT ]]; then flags+=(--location-policy ANY); fi
fi
taints=$TAINTS
if [[ -n $SPOT ]]; then
    flags+=(--spot)
    taints=cloud.google.com/gke-spot=true:NoSchedule${TAINTS:+,$TAINTS}
fi
if [[ -n $ZONES ]]; then flags+=(--node-locations "$ZONES"); fi
if [[ -n $LABELS ]]; then flags+=(--node-labels "$LABELS"); fi
if [[ -n $taints ]]; then flags+=(--node-taints "$taints"); fi
change gcloud container node-pools create "$POOL" --cluster "$CLUSTER" --location "$REGION" --project "$PROJECT" "${flags[@]}"
