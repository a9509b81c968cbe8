#!/usr/bin/env bash
# Gives the cluster's service accounts their roles by Workload Identity Federation: no key, and no account of Google's in between.
# Each gets what docs/operations.md lists under Pub/Sub and Buckets, on the things themselves where that can be.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

TOPIC=${TOPIC:-}
SUBSCRIPTION=${SUBSCRIPTION:-}
BUCKET=${BUCKET:-}
RESULTS_BUCKET=${RESULTS_BUCKET:-}
WORKER_ACCOUNT=${WORKER_ACCOUNT:-inferq-worker}
SETUP_ACCOUNT=${SETUP_ACCOUNT:-inferq-setup}
ASSETS_ACCOUNT=${ASSETS_ACCOUNT:-inferq-assets}
KEDA_ACCOUNT=${KEDA_ACCOUNT:-keda/keda-operator}

help() {
    cat << 'HELP'
Gives service accounts of the cluster their roles on Google Cloud

Usage: grant-access.sh WHO… --project ID [FLAGS]

  setup   the Job that runs `inferq setup`, and producers: roles/pubsub.editor on the project. First of all
  worker  the workers. On Pub/Sub (--topic): subscriber and viewer of the subscriptions SUBSCRIPTION and
          TOPIC.shards, publisher to TOPIC.results, .dead and .shards, which `inferq setup` must have made; and what Pub/Sub
          itself needs for dead letters. On --results-bucket: roles/storage.objectUser
  assets  the Job that fills the volume: roles/storage.objectViewer on --bucket
  keda    KEDA's operator, which reads managed Prometheus: roles/monitoring.viewer on the project

  --topic NAME           TOPIC, the jobs' topic
  --subscription NAME    SUBSCRIPTION of the workers [the topic's name]
  --bucket NAME          BUCKET with the models
  --results-bucket NAME  RESULTS_BUCKET, with inputs and results of jobs
  --worker-account NAME  WORKER_ACCOUNT, --setup-account SETUP_ACCOUNT, --assets-account ASSETS_ACCOUNT in the namespace
                         [inferq-worker, inferq-setup, inferq-assets]
  --keda-account NS/NAME KEDA_ACCOUNT [keda/keda-operator]

Example:
  grant-access.sh setup assets keda --project my-project --bucket my-models    # before the Jobs run
  kubectl apply -k k8s/overlays/gke-pubsub-l4    # its setup Job makes the topics
  grant-access.sh worker --project my-project --topic jobs
HELP
}

who=()
split_flags "$@"
set -- "${words[@]}"
while (($#)); do
    taken=2
    case $1 in
        --topic) value_of "$@" && TOPIC=$value ;;
        --subscription) value_of "$@" && SUBSCRIPTION=$value ;;
        --bucket) value_of "$@" && BUCKET=$value ;;
        --results-bucket) value_of "$@" && RESULTS_BUCKET=$value ;;
        --worker-account) value_of "$@" && WORKER_ACCOUNT=$value ;;
        --setup-account) value_of "$@" && SETUP_ACCOUNT=$value ;;
        --assets-account) value_of "$@" && ASSETS_ACCOUNT=$value ;;
        --keda-account) value_of "$@" && KEDA_ACCOUNT=$value ;;
        setup | worker | assets | keda) who+=("$1") taken=1 ;;
        *) common_flag "$@" ;;
    esac
    shift "$taken"
done
((${#who[@]})) || refuse "whom: setup, worker, assets or keda; see grant-access.sh --help"
for one in "${who[@]}"; do
    [[ $one != assets || -n $BUCKET ]] || refuse "assets: no bucket: give --bucket or set BUCKET"
    [[ $one != worker || -n $TOPIC$RESULTS_BUCKET ]] || refuse "worker: give --topic, --results-bucket or both"
done
[[ $KEDA_ACCOUNT == */* ]] || refuse "--keda-account is NAMESPACE/NAME, not $KEDA_ACCOUNT"
SUBSCRIPTION=${SUBSCRIPTION:-$TOPIC}
need_gcloud
need_project
number=$(gcloud projects describe "$PROJECT" --format 'value(projectNumber)') || fail "can't read project $PROJECT"

# A service account of the cluster, as IAM calls it.
account() {
    local pool=projects/$number/locations/global/workloadIdentityPools/$PROJECT.svc.id.goog
    echo "principal://iam.googleapis.com/$pool/subject/ns/$1/sa/$2"
}

for one in "${who[@]}"; do
    case $one in
        setup) grant roles/pubsub.editor "$(account "$NAMESPACE" "$SETUP_ACCOUNT")" projects "$PROJECT" ;;
        keda) grant roles/monitoring.viewer "$(account "${KEDA_ACCOUNT%%/*}" "${KEDA_ACCOUNT#*/}")" projects "$PROJECT" ;;
        assets) grant roles/storage.objectViewer "$(account "$NAMESPACE" "$ASSETS_ACCOUNT")" storage buckets "gs://$BUCKET" ;;
        worker)
            worker=$(account "$NAMESPACE" "$WORKER_ACCOUNT")
            if [[ -n $TOPIC ]]; then
                for topic in "$TOPIC.results" "$TOPIC.dead" "$TOPIC.shards"; do
                    is_there gcloud pubsub topics describe "$topic" --project "$PROJECT" ||
                        fail "no topic $topic: run \`inferq setup\` (the overlay's Job), then this again"
                    grant roles/pubsub.publisher "$worker" pubsub topics "$topic"
                done
                # Pub/Sub itself moves what was delivered too often to the dead letters.
                pubsub=serviceAccount:service-$number@gcp-sa-pubsub.iam.gserviceaccount.com
                grant roles/pubsub.publisher "$pubsub" pubsub topics "$TOPIC.dead"
                for subscription in "$SUBSCRIPTION" "$TOPIC.shards"; do
                    grant roles/pubsub.subscriber "$worker" pubsub subscriptions "$subscription"
                    grant roles/pubsub.viewer "$worker" pubsub subscriptions "$subscription"
                    grant roles/pubsub.subscriber "$pubsub" pubsub subscriptions "$subscription"
                done
            fi
            if [[ -n $RESULTS_BUCKET ]]; then
                grant roles/storage.objectUser "$worker" storage buckets "gs://$RESULTS_BUCKET"
            fi
            ;;
    esac
done
