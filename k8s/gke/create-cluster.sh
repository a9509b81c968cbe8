#!/usr/bin/env bash
# Makes the cluster and what it stands on: Google's services switched on, an account for its nodes with no more than nodes need,
# and a small pool for the system's own pods. Workers get pools of their own: create-node-pool.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

SYSTEM_MACHINE=${SYSTEM_MACHINE:-e2-standard-2}
CHANNEL=${CHANNEL:-regular}

help() {
    cat << 'HELP'
Makes a GKE cluster for inferq, with workload identity, network policies and managed Prometheus

Usage: create-cluster.sh --project ID [FLAGS]

  --system-machine TYPE  SYSTEM_MACHINE, of the pool for the system's pods, one node a zone [e2-standard-2]
  --channel NAME         CHANNEL, of Kubernetes' versions: rapid, regular, stable [regular]

Example:
  create-cluster.sh --project my-project --region us-central1 --dry-run    # what it would do
  create-cluster.sh --project my-project --region us-central1
  create-node-pool.sh --project my-project --kind l4
HELP
}

split_flags "$@"
set -- "${words[@]}"
while (($#)); do
    taken=2
    case $1 in
        --system-machine) value_of "$@" && SYSTEM_MACHINE=$value ;;
        --channel) value_of "$@" && CHANNEL=$value ;;
        *) common_flag "$@" ;;
    esac
    shift "$taken"
done
[[ $CHANNEL =~ ^(rapid|regular|stable)$ ]] || refuse "--channel is rapid, regular or stable, not $CHANNEL"
need_gcloud
need_kubectl
need_project

services=(artifactregistry compute container iam iamcredentials monitoring pubsub storage)
enabled=$(gcloud services list --enabled --project "$PROJECT" --format 'value(config.name)') ||
    fail "can't list the services of project $PROJECT"
missing=()
for service in "${services[@]}"; do
    grep -qxF "$service.googleapis.com" <<< "$enabled" || missing+=("$service.googleapis.com")
done
if ((${#missing[@]})); then
    change gcloud services enable "${missing[@]}" --project "$PROJECT"
else
    there_already "the services"
fi

account=$(nodes_account)
if is_there gcloud iam service-accounts describe "$account" --project "$PROJECT"; then
    there_already "the nodes' account $account"
else
    change gcloud iam service-accounts create "${account%%@*}" --project "$PROJECT" --display-name "inferq: nodes"
fi
# What nodes do for themselves: write logs and metrics, pull images.
for role in roles/container.defaultNodeServiceAccount roles/artifactregistry.reader; do
    grant "$role" "serviceAccount:$account" projects "$PROJECT"
done

if is_there gcloud container clusters describe "$CLUSTER" --location "$REGION" --project "$PROJECT"; then
    there_already "cluster $CLUSTER in $REGION"
else
    # Dataplane V2 is what heeds network policies; the workload pool gives each pod an identity of its own.
    change gcloud container clusters create "$CLUSTER" --location "$REGION" --project "$PROJECT" \
        --release-channel "$CHANNEL" \
        --workload-pool "$PROJECT.svc.id.goog" --workload-metadata GKE_METADATA \
        --enable-dataplane-v2 --enable-ip-alias --enable-shielded-nodes --enable-managed-prometheus \
        --addons HorizontalPodAutoscaling,HttpLoadBalancing,GcePersistentDiskCsiDriver,GcpFilestoreCsiDriver \
        --service-account "$account" --machine-type "$SYSTEM_MACHINE" --num-nodes 1 \
        --disk-type pd-balanced --disk-size 50 --labels app=inferq
fi
need_context
