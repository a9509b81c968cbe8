#!/usr/bin/env bash
# Builds the images, pushes them to Artifact Registry under a tag that names one state of the sources, writes what is in them
# (SBOM), and prints the digests to deploy. A tag that is there already is not built again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

REPOSITORY=${REPOSITORY:-inferq}
IMAGES=${IMAGES:-inferq,inferq-cuda}
TAG=${TAG:-}
SBOM_DIR=${SBOM_DIR:-sbom}
RUST_IMAGE=${RUST_IMAGE:-rust:1.95-slim-bookworm}
DEBIAN_IMAGE=${DEBIAN_IMAGE:-debian:bookworm-slim}
tree=$(cd "$(dirname "$0")/../.." && pwd)

help() {
    cat << 'HELP'
Builds the images and pushes them to Artifact Registry

Usage: push-images.sh --project ID [FLAGS]

  --images A,B         IMAGES: inferq (CPU), inferq-cuda (NVIDIA's cards, and the CPU) [both]
  --repository NAME    REPOSITORY in Artifact Registry; made with tags that can't be moved [inferq]
  --tag TAG            TAG [VERSION-COMMIT, from Cargo.toml and git; uncommitted changes are refused]
  --rust-image REF     RUST_IMAGE, which compiles [rust:1.95-slim-bookworm]
  --debian-image REF   DEBIAN_IMAGE, which the images stand on [debian:bookworm-slim]
  --sbom-dir DIR       SBOM_DIR: DIR/IMAGE-TAG.spdx.json, by syft [sbom]
  --no-sbom            SBOM_DIR=none

A base without a digest is pulled, and the digest that it has now is used and printed: keep it in the variable, and the next
build stands on the same. On stdout: IMAGE ADDRESS@sha256:… for each image, which an overlay's settings-configmap.yaml takes as
image and image_cuda.

Example:
  push-images.sh --project my-project
  RUST_IMAGE=rust@sha256:… DEBIAN_IMAGE=debian@sha256:… push-images.sh --project my-project --images inferq
HELP
}

split_flags "$@"
set -- "${words[@]}"
while (($#)); do
    taken=2
    case $1 in
        --images) value_of "$@" && IMAGES=$value ;;
        --repository) value_of "$@" && REPOSITORY=$value ;;
        --tag) value_of "$@" && TAG=$value ;;
        --rust-image) value_of "$@" && RUST_IMAGE=$value ;;
        --debian-image) value_of "$@" && DEBIAN_IMAGE=$value ;;
        --sbom-dir) value_of "$@" && SBOM_DIR=$value ;;
        --no-sbom) SBOM_DIR=none taken=1 ;;
        *) common_flag "$@" ;;
    esac
    shift "$taken"
done
IFS=, read -ra images <<< "$IMAGES"
for image in "${images[@]}"; do
    [[ $image == inferq || $image == inferq-cuda ]] || refuse "--images are inferq and inferq-cuda, not $image"
done
need_gcloud
need docker "https://docs.docker.com/engine/install"
need_project
if [[ $SBOM_DIR != none ]]; then need syft "https://github.com/anchore/syft, or --no-sbom"; fi

if [[ -z $TAG ]]; then
    need git "apt install git, or --tag"
    # A tag says which sources these are.
    commit=$(git -C "$tree" rev-parse --short=12 HEAD 2> /dev/null) || refuse "$tree is no git repository: give --tag"
    # What the Dockerfile copies; an overlay that was filled in is none of it.
    changed=$(git -C "$tree" status --porcelain Cargo.toml Cargo.lock Dockerfile vendor shared worker producer tests)
    [[ -z $changed ]] || refuse "uncommitted changes in $tree: commit them, or give --tag"
    version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$tree/Cargo.toml")
    TAG=$version-$commit
fi
[[ $TAG != latest ]] || refuse "latest says nothing about what it is: give another --tag"

registry=$REGION-docker.pkg.dev
if is_there gcloud artifacts repositories describe "$REPOSITORY" --location "$REGION" --project "$PROJECT"; then
    there_already "repository $REPOSITORY in $REGION"
else
    change gcloud artifacts repositories create "$REPOSITORY" --location "$REGION" --project "$PROJECT" \
        --repository-format docker --immutable-tags --description "inferq: images"
fi

digest_of() {
    gcloud artifacts docker images describe "$1" --project "$PROJECT" --format 'value(image_summary.digest)'
}
missing=()
for image in "${images[@]}"; do
    if is_there gcloud artifacts docker images describe "$registry/$PROJECT/$REPOSITORY/$image:$TAG" --project "$PROJECT"; then
        there_already "$image:$TAG"
    else
        missing+=("$image")
    fi
done

# Sets `value` to a base by its digest.
pinned() {
    value=$1
    [[ $1 != *@sha256:* ]] || return 0
    change docker pull --quiet "$1"
    [[ -z $DRY_RUN ]] || return 0
    value=$(docker image inspect --format '{{if .RepoDigests}}{{index .RepoDigests 0}}{{end}}' "$1")
    # One that was made on this machine has none.
    [[ -n $value ]] || fail "$1 comes from no registry, and has no digest: name one that does"
}
if ((${#missing[@]})); then
    pinned "$RUST_IMAGE"
    RUST_IMAGE=$value
    pinned "$DEBIAN_IMAGE"
    DEBIAN_IMAGE=$value
    say "bases: RUST_IMAGE=$RUST_IMAGE DEBIAN_IMAGE=$DEBIAN_IMAGE"
    change gcloud auth configure-docker "$registry" --quiet
fi
for image in "${missing[@]}"; do
    address=$registry/$PROJECT/$REPOSITORY/$image
    change docker build --target "$image" --tag "$address:$TAG" --build-arg "RUST_IMAGE=$RUST_IMAGE" \
        --build-arg "DEBIAN_IMAGE=$DEBIAN_IMAGE" "$tree"
    change docker push --quiet "$address:$TAG"
done
for image in "${images[@]}"; do
    address=$registry/$PROJECT/$REPOSITORY/$image
    if [[ -n $DRY_RUN && " ${missing[*]} " == *" $image "* ]]; then continue; fi
    digest=$(digest_of "$address:$TAG")
    [[ $digest == sha256:* ]] || fail "$address:$TAG has no digest"
    sbom=$SBOM_DIR/$image-$TAG.spdx.json
    if [[ $SBOM_DIR != none ]] && [[ ! -s $sbom ]]; then
        change mkdir -p "$SBOM_DIR"
        # Of what was pushed, by digest. Renamed when whole.
        change syft scan "registry:$address@$digest" --quiet --output "spdx-json=$sbom.part"
        change mv "$sbom.part" "$sbom"
    fi
    echo "$image $address@$digest"
done
