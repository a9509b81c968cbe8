#!/usr/bin/env bash
# Moves everything from one node pool to another, and loses no job: new pods are ready on the new pool before old ones are
# stopped, and each pod gets its own grace period, in which a worker finishes what it has begun or gives it back.
#
# 1. The old pool stops growing, and its nodes take no more pods.
# 2. Deployments with pods there are rolled: some pods more than wanted, none less, until all are ready.
# 3. Its nodes are drained one by one under the PodDisruptionBudgets, for what is left.
# Whatever fails, or an interrupt, undoes 1, and 2 where it did not end; what has moved stays where it is. Exit code 1 then.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

READY_TIMEOUT_S=${READY_TIMEOUT_S:-7200}
DRAIN_TIMEOUT_S=${DRAIN_TIMEOUT_S:-900}
APPLY=${APPLY:-}
EMPTY=${EMPTY:-}
SURGE=${SURGE:-25%}
STOP_FIRST=${STOP_FIRST:-}

help() {
    cat << 'HELP'
Moves what runs on one node pool to another without downtime

Usage: migrate-pool.sh OLD NEW --project ID [FLAGS]

  --apply DIR          APPLY: `kubectl apply -k DIR` instead of a restart, where the new pool needs other manifests (another
                       card, another selector)
  --surge N|N%         SURGE: how many pods more than wanted may be there at once, so how fast it goes [25%]
  --stop-first         STOP_FIRST=1: stop a Deployment's pods before new ones start, for one whose disk can be on one node at a
                       time (ReadWriteOnce). Jobs wait meanwhile; none is lost
  --ready-timeout-s N  READY_TIMEOUT_S, for all new pods of a Deployment to be ready, nodes' start included. A Deployment that
                       gets nowhere for its progressDeadlineSeconds ends it sooner [7200]
  --drain-timeout-s N  DRAIN_TIMEOUT_S, for each node. A PodDisruptionBudget that lets nothing go ends it [900]
  --empty              EMPTY=1: shrink the old pool to no nodes in the end

Both pools must be there; the new one may have no nodes yet, if it can grow. Run again after a failure, it goes on with what
is left. The old pool stays, and no longer grows by itself.

Example: from one card to another
  create-node-pool.sh --project my-project --kind l4
  migrate-pool.sh t4 l4 --project my-project --apply k8s/overlays/gke-pubsub-l4 --empty
HELP
}

pools=()
split_flags "$@"
set -- "${words[@]}"
while (($#)); do
    taken=2
    case $1 in
        --apply) value_of "$@" && APPLY=$value ;;
        --surge) value_of "$@" && SURGE=$value ;;
        --stop-first) STOP_FIRST=1 taken=1 ;;
        --ready-timeout-s) value_of "$@" && READY_TIMEOUT_S=$value ;;
        --drain-timeout-s) value_of "$@" && DRAIN_TIMEOUT_S=$value ;;
        --empty) EMPTY=1 taken=1 ;;
        -*) common_flag "$@" ;;
        *) pools+=("$1") taken=1 ;;
    esac
    shift "$taken"
done
((${#pools[@]} == 2)) || refuse "two pools, OLD and NEW, not ${#pools[@]}: see migrate-pool.sh --help"
old=${pools[0]} new=${pools[1]}
[[ $old != "$new" ]] || refuse "OLD and NEW are both $old"
need_count --ready-timeout-s "$READY_TIMEOUT_S"
need_count --drain-timeout-s "$DRAIN_TIMEOUT_S"
[[ $SURGE =~ ^[1-9][0-9]*%?$ ]] || refuse "--surge is a number of at least 1, or a share like 25%, not $SURGE"
# kubectl takes 0 for "never": a drain that a budget blocks would wait for ever.
((READY_TIMEOUT_S > 0 && DRAIN_TIMEOUT_S > 0)) || refuse "a timeout is at least 1 second"
[[ -z $APPLY || -d $APPLY ]] || refuse "--apply: no directory $APPLY"
need_gcloud
need_kubectl
need_project

in_cluster=(--cluster "$CLUSTER" --location "$REGION" --project "$PROJECT")
for pool in "$old" "$new"; do
    is_there gcloud container node-pools describe "$pool" "${in_cluster[@]}" || fail "no pool $pool in cluster $CLUSTER"
done
need_context

nodes_of() { kube get nodes --selector "cloud.google.com/gke-nodepool=$1" --output name | sed 's|^node/||'; }
# columns KIND EXPRESSION…: objects of all namespaces as lines of words, `<none>` for what an object has not.
columns() {
    local kind=$1 list
    shift
    list=$(printf ',C:%s' "$@")
    kube get "$kind" --all-namespaces --no-headers --output "custom-columns=${list#,}"
}
# Namespace, name, kind and name of the owner, node, whether ready, when it was asked to end.
pods() {
    columns pods .metadata.namespace .metadata.name '.metadata.ownerReferences[0].kind' '.metadata.ownerReferences[0].name' \
        .spec.nodeName '.status.conditions[?(@.type=="Ready")].status' .metadata.deletionTimestamp
}
# Namespace, name, the Deployment that it belongs to.
replica_sets() { columns replicasets .metadata.namespace .metadata.name '.metadata.ownerReferences[0].name'; }
# Of the pods in $1, those on the nodes in $2 that a drain would move: not what belongs to each node.
movable() {
    awk 'NR == FNR { if ($1 != "") on[$1] = 1; next } ($5 in on) && $3 != "DaemonSet" && $3 != "Node"' <(echo "$2") <(echo "$1")
}
# Of the pods in $1, lines `NAMESPACE/DEPLOYMENT COUNT`. $2: the replica sets.
by_deployment() {
    awk 'NR == FNR { owner[$1 "/" $2] = $3; next }
        $3 == "ReplicaSet" && ($1 "/" $4) in owner { count[$1 "/" owner[$1 "/" $4]]++ }
        END { for (name in count) print name, count[name] }' <(echo "$2") <(echo "$1") | sort
}
counted() { awk -v name="$2" '$1 == name { found = $2 } END { print found + 0 }' <<< "$1"; }

nodes=$(nodes_of "$old")
all=$(pods)
moving=$(movable "$all" "$nodes")
bare=$(awk '$3 == "<none>" { print $1 "/" $2; exit }' <<< "$moving")
[[ -z $bare ]] || fail "pod $bare on $old has no owner that would make it again: delete it or move it yourself"
# Lines `NAMESPACE/NAME COUNT`.
mapfile -t deployments < <(by_deployment "$moving" "$(replica_sets)")
for deployment in "${deployments[@]}"; do
    name=${deployment% *}
    strategy=$(kube get deployment "${name#*/}" --namespace "${name%%/*}" --output 'jsonpath={.spec.strategy.type}')
    [[ $strategy == RollingUpdate ]] ||
        fail "deployment $name has the strategy $strategy, which stops its pods before new ones are there"
    claims=$(kube get deployment "${name#*/}" --namespace "${name%%/*}" \
        --output 'jsonpath={.spec.template.spec.volumes[*].persistentVolumeClaim.claimName}')
    for claim in $claims; do
        modes=$(kube get persistentvolumeclaim "$claim" --namespace "${name%%/*}" --output 'jsonpath={.spec.accessModes[*]}')
        # A new pod on another node would wait for the disk, and the old one for the new pod.
        [[ -n $STOP_FIRST || $modes == *Many* ]] ||
            fail "deployment $name has a disk for one node at a time, $claim: --stop-first, or give it one for many readers"
    done
done

empty_old() {
    if [[ -n $EMPTY ]]; then
        change gcloud container clusters resize "$CLUSTER" --node-pool "$old" --num-nodes 0 --location "$REGION" \
            --project "$PROJECT" --quiet
    else
        say "$old keeps its nodes, and they cost: --empty shrinks it; or gcloud container node-pools delete $old ${in_cluster[*]}"
    fi
}
if [[ -z $nodes ]]; then
    say "nothing to move: $old has no nodes"
    exit 0
fi

# What has been done, so that it can be undone.
cordoned=()
rolling=
revision=
paused=
growth=
undo_surge=()
finished=
roll_back() {
    local code=$?
    trap - EXIT INT TERM
    if [[ -n $finished || -n $DRY_RUN ]]; then exit "$code"; fi
    say "failed: rolling back"
    set +e
    if ((${#cordoned[@]})); then change kube uncordon "${cordoned[@]}"; fi
    if [[ -n $growth ]]; then grow_again; fi
    # A paused one can't go back. Where nothing had changed yet, going back to its own revision changes nothing.
    if [[ -n $paused ]]; then change kube rollout resume "deployment/${paused#*/}" --namespace "${paused%%/*}"; fi
    if [[ -n $rolling ]]; then
        change kube rollout undo "deployment/${rolling#*/}" --namespace "${rolling%%/*}" --to-revision "$revision"
    fi
    restore_surge
    say "rolled back: $old takes pods again; what is ready on $new stays there"
    exit 1
}
trap roll_back EXIT
trap 'exit 1' INT TERM

grow_again() {
    local least most total_least total_most policy flags
    IFS=, read -r _ least most total_least total_most policy <<< "$growth"
    if [[ -n $total_most ]]; then
        flags=(--total-min-nodes "${total_least:-0}" --total-max-nodes "$total_most")
    else
        flags=(--min-nodes "${least:-0}" --max-nodes "$most")
    fi
    if [[ -n $policy ]]; then flags+=(--location-policy "$policy"); fi
    change gcloud container node-pools update "$old" "${in_cluster[@]}" --enable-autoscaling "${flags[@]}"
}

# New pods first, whatever the Deployment does on other days: one on graphics cards may stop an old pod first, for want of a
# spare card, and here the new pool has them. Or all at once, when a disk has to change nodes.
surge() {
    local name=$1 found more=$SURGE less=0
    if [[ -n $STOP_FIRST ]]; then more=0 less=100%; fi
    found=$(kube get deployment "${name#*/}" --namespace "${name%%/*}" \
        --output 'jsonpath={.spec.strategy.rollingUpdate.maxSurge},{.spec.strategy.rollingUpdate.maxUnavailable}')
    [[ $found != "$more,$less" ]] || return 0
    undo_surge=("$name" "${found%,*}" "${found#*,}")
    patch_surge "$name" "$more" "$less"
}
patch_surge() {
    # A share is a string, a number is none.
    local surge=$2 unavailable=$3
    [[ $surge == *% ]] && surge="\"$surge\""
    [[ $unavailable == *% ]] && unavailable="\"$unavailable\""
    change kube patch deployment "${1#*/}" --namespace "${1%%/*}" --patch \
        "{\"spec\":{\"strategy\":{\"rollingUpdate\":{\"maxSurge\":$surge,\"maxUnavailable\":$unavailable}}}}"
}
restore_surge() {
    if ((${#undo_surge[@]})); then patch_surge "${undo_surge[@]}"; fi
    undo_surge=()
}

# 1. While it could grow, pods that wait would get new nodes of the old pool.
limits=autoscaling.minNodeCount,autoscaling.maxNodeCount,autoscaling.totalMinNodeCount,autoscaling.totalMaxNodeCount
found=$(gcloud container node-pools describe "$old" "${in_cluster[@]}" \
    --format "csv[no-heading](autoscaling.enabled,$limits,autoscaling.locationPolicy)")
if [[ $found == [Tt]rue,* ]]; then
    growth=$found
    change gcloud container node-pools update "$old" "${in_cluster[@]}" --no-enable-autoscaling
    # One may have come meanwhile.
    nodes=$(nodes_of "$old")
fi
closed=$(kube get nodes --selector "cloud.google.com/gke-nodepool=$old" --no-headers \
    --output custom-columns=C:.metadata.name,C:.spec.unschedulable | awk '$2 == "true" { print $1 }')
for node in $nodes; do
    grep -qxF "$node" <<< "$closed" || cordoned+=("$node")
done
if ((${#cordoned[@]})); then change kube cordon "${cordoned[@]}"; else there_already "$old takes no pods"; fi

# 2.
for deployment in "${deployments[@]}"; do
    name=${deployment% *} count=${deployment#* }
    target=("deployment/${name#*/}" --namespace "${name%%/*}")
    say "$count pods of deployment $name are on $old"
    revision=$(kube get "${target[@]}" --output 'jsonpath={.metadata.annotations.deployment\.kubernetes\.io/revision}')
    if [[ -n $APPLY && ${name%%/*} == "$NAMESPACE" ]]; then
        # Paused, so that nothing rolls before it is told how.
        change kube rollout pause "${target[@]}"
        paused=$name rolling=$name
        change kube apply --kustomize "$APPLY"
        surge "$name"
        change kube rollout resume "${target[@]}"
        paused=
    else
        surge "$name"
        rolling=$name
        change kube rollout restart "${target[@]}"
    fi
    if [[ -z $DRY_RUN ]]; then
        kube rollout status "${target[@]}" --timeout "${READY_TIMEOUT_S}s" >&2 ||
            fail "deployment $name is not ready: kubectl describe its pods"
        all=$(pods)
        sets=$(replica_sets)
        ready=$(awk '$6 == "True" && $7 == "<none>"' <<< "$all")
        moved=$(counted "$(by_deployment "$(movable "$ready" "$(nodes_of "$new")")" "$sets")" "$name")
        total=$(counted "$(by_deployment "$ready" "$sets")" "$name")
        # A scaler may have taken some away meanwhile.
        ((moved >= (count < total ? count : total))) ||
            fail "only $moved of $count pods of $name are ready on $new: the others went to another pool; let them select $new"
        say "$moved pods of $name are ready on $new"
    fi
    rolling=
    restore_surge
done

# 3. No --force, no --grace-period, no --disable-eviction: budgets and grace periods are kept. Volumes of kind emptyDir hold
# nothing that can't be made again.
for node in $nodes; do
    if ! is_there kube get node "$node"; then
        say "node $node is gone"
        continue
    fi
    change kube drain "$node" --ignore-daemonsets --delete-emptydir-data --timeout "${DRAIN_TIMEOUT_S}s" ||
        fail "node $node is not drained after $DRAIN_TIMEOUT_S s at most: kubectl get poddisruptionbudgets --all-namespaces"
done
if [[ -z $DRY_RUN ]]; then
    left=$(movable "$(pods)" "$nodes")
    [[ -z $left ]] || fail "pod $(awk '{ print $1 "/" $2; exit }' <<< "$left") is still on $old"
fi
finished=1
empty_old
say "moved from $old to $new"
