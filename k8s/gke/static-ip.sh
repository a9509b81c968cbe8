#!/usr/bin/env bash
# Reserves the global address that the component expose gives to its Ingress, so that a name can point to it and stay right.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

ADDRESS=${ADDRESS:-inferq}

help() {
    cat << 'HELP'
Reserves a global static IP address, and prints it

Usage: static-ip.sh --project ID [FLAGS]

  --address NAME  ADDRESS, what the Ingress' annotation kubernetes.io/ingress.global-static-ip-name says [inferq]

Example:
  static-ip.sh --project my-project    # 203.0.113.10: make an A record for it, then certificate.sh
HELP
}

split_flags "$@"
set -- "${words[@]}"
while (($#)); do
    taken=2
    case $1 in
        --address) value_of "$@" && ADDRESS=$value ;;
        *) common_flag "$@" ;;
    esac
    shift "$taken"
done
need_gcloud
need_project

if is_there gcloud compute addresses describe "$ADDRESS" --global --project "$PROJECT"; then
    there_already "address $ADDRESS"
else
    # Global: an Ingress of GKE's is a global load balancer, and takes no regional one.
    change gcloud compute addresses create "$ADDRESS" --global --project "$PROJECT"
    if [[ -n $DRY_RUN ]]; then exit 0; fi
fi
gcloud compute addresses describe "$ADDRESS" --global --project "$PROJECT" --format 'value(address)'
