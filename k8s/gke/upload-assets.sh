#!/usr/bin/env bash
# Brings a model from this machine to a bucket, and from there to the cluster's volume: manifest with a known answer, every byte
# verified, published whole. What workers run keeps running: with INFERQ_WATCH_ASSETS they change over when the volume has it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

BUCKET=${BUCKET:-}
PREFIX=${PREFIX:-}
NAME=${NAME:-}
OVERLAY=${OVERLAY:-}
JOB=${JOB:-assets-sync}
FILL_TIMEOUT_S=${FILL_TIMEOUT_S:-1800}
INFERQ_WORKER=${INFERQ_WORKER:-inferq-worker}

help() {
    cat << 'HELP'
Uploads a model to a bucket, and fills the cluster's volume from it

Usage: upload-assets.sh DIR --project ID --bucket NAME [FLAGS]

  DIR                 the model's directory: config.json, tokenizer.json, model.safetensors, …
  --bucket NAME       BUCKET; made in the region, private, where it is absent
  --prefix PATH       PREFIX in the bucket [none]
  --name NAME         NAME that jobs call the model by [the directory's]
  --overlay DIR       OVERLAY: then run its Job again, which copies the bucket's model to the volume
  --job NAME          JOB, the name of that Job [assets-sync]
  --fill-timeout-s N  FILL_TIMEOUT_S, for that Job to end [1800]
  --worker PATH       INFERQ_WORKER, the binary that writes the manifest and copies [inferq-worker]

The copy is a root of models at gs://BUCKET/[PREFIX/]NAME, where the component assets-sync looks for it. Without the binary the
files go there as they are, by gcloud storage: no manifest, so no canary.
The binary takes credentials from GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`.

Example:
  upload-assets.sh ./all-MiniLM-L6-v2 --project my-project --bucket my-models --overlay k8s/overlays/gke-assets
HELP
}

model=
split_flags "$@"
set -- "${words[@]}"
while (($#)); do
    taken=2
    case $1 in
        --bucket) value_of "$@" && BUCKET=$value ;;
        --prefix) value_of "$@" && PREFIX=$value ;;
        --name) value_of "$@" && NAME=$value ;;
        --overlay) value_of "$@" && OVERLAY=$value ;;
        --job) value_of "$@" && JOB=$value ;;
        --fill-timeout-s) value_of "$@" && FILL_TIMEOUT_S=$value ;;
        --worker) value_of "$@" && INFERQ_WORKER=$value ;;
        -*) common_flag "$@" ;;
        *)
            [[ -z $model ]] || refuse "one directory, not $model and $1"
            model=$1 taken=1
            ;;
    esac
    shift "$taken"
done
[[ -n $model ]] || refuse "no directory: see upload-assets.sh --help"
[[ -f $model/config.json ]] || refuse "$model/config.json is not there: $model is no model's directory"
[[ -n $BUCKET ]] || refuse "no bucket: give --bucket or set BUCKET"
[[ $BUCKET != gs://* ]] || refuse "--bucket is a name without gs://"
[[ -z $OVERLAY || -d $OVERLAY ]] || refuse "--overlay: no directory $OVERLAY"
need_count --fill-timeout-s "$FILL_TIMEOUT_S"
NAME=${NAME:-$(basename "$(cd "$model" && pwd)")}
need_gcloud
need_project
if [[ -n $OVERLAY ]]; then need_kubectl; fi

if is_there gcloud storage buckets describe "gs://$BUCKET" --project "$PROJECT"; then
    there_already "bucket $BUCKET"
else
    change gcloud storage buckets create "gs://$BUCKET" --project "$PROJECT" --location "$REGION" \
        --uniform-bucket-level-access --public-access-prevention
fi

root=gs://$BUCKET/${PREFIX:+$PREFIX/}$NAME
if command -v "$INFERQ_WORKER" > /dev/null; then
    # The canary runs the model: a minute on the CPU, and a worker with other weights is never ready.
    if grep -qs '"canary"' "$model/manifest.json"; then
        there_already "$model/manifest.json with a canary"
    else
        change "$INFERQ_WORKER" assets manifest "$model" --name "$NAME" --canary
    fi
    # Goes on where it was; copies nothing where the bucket has it.
    change "$INFERQ_WORKER" assets sync "$model" "$root" --name "$NAME"
else
    # There, `current` says what is read, and files beside it are not.
    ! is_there gcloud storage objects describe "$root/current" --project "$PROJECT" ||
        fail "$root is a root of models: only $INFERQ_WORKER can add to it, and it is not here"
    say "$INFERQ_WORKER is not here: the files go to $root as they are, without a canary"
    change gcloud storage rsync "$model" "$root" --recursive --checksums-only --exclude '(^|.*/)\..*' --project "$PROJECT"
fi

if [[ -z $OVERLAY ]]; then
    say "next: fill the volume, upload-assets.sh … --overlay DIR, or run the Job $JOB again"
    exit 0
fi
need_context
# A Job can't be changed, only made again. The volume's model stays: what is copied becomes current in the end.
change kube delete job "$JOB" --namespace "$NAMESPACE" --ignore-not-found --wait
change kube apply --kustomize "$OVERLAY"
if [[ -z $DRY_RUN ]]; then
    kube wait "job/$JOB" --namespace "$NAMESPACE" --for condition=Complete --timeout "${FILL_TIMEOUT_S}s" >&2 ||
        fail "the volume is not filled: kubectl logs job/$JOB --namespace $NAMESPACE"
fi
