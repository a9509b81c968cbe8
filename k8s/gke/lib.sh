# shellcheck shell=bash
# What the commands beside this file share: flags, dry runs, looking before creating, and errors of one line. Sourced, never
# run. Results go to stdout, what a command is doing to stderr.
#
# Exit codes: 0 done or there already; 1 something failed; 64 a flag, a variable, a file or a tool is missing or wrong.

command_name=$(basename "$0" .sh)

PROJECT=${PROJECT:-}
REGION=${REGION:-us-central1}
CLUSTER=${CLUSTER:-inferq}
NAMESPACE=${NAMESPACE:-inferq}
DRY_RUN=${DRY_RUN:-}

say() { echo "$command_name: $*" >&2; }
fail() {
    say "$*"
    exit 1
}
refuse() {
    say "$*"
    exit 64
}

# The part of --help that all commands have.
common_help() {
    cat << 'HELP'

Flags that every command has, and the variables that set them:
  --project ID      PROJECT, the Google Cloud project; has no default
  --region NAME     REGION [us-central1]
  --cluster NAME    CLUSTER [inferq]
  --namespace NAME  NAMESPACE, of the workers [inferq]
  --dry-run         look at what is there, print the commands that would change something, change nothing
  --help

What is there already is left as it is. Exit codes: 0 done, 1 something failed, 64 wrong usage or a missing tool.
HELP
}

# Makes `words` of the arguments: --flag=value as two words, so that both spellings work.
split_flags() {
    words=()
    local word
    for word; do
        if [[ $word == --*=* ]]; then words+=("${word%%=*}" "${word#*=}"); else words+=("$word"); fi
    done
}

# Sets `value` to the word after a flag. Not an output: in a subshell it could not end the command.
value_of() {
    [[ -n ${2:-} ]] || refuse "$1 needs a value: see $command_name.sh --help"
    value=$2
}

# A flag that is not the command's own. Sets `taken` to the number of words that it was; a word that is no flag is refused.
# shellcheck disable=SC2034 # the commands read it
common_flag() {
    taken=2
    case $1 in
        --project) value_of "$@" && PROJECT=$value ;;
        --region) value_of "$@" && REGION=$value ;;
        --cluster) value_of "$@" && CLUSTER=$value ;;
        --namespace) value_of "$@" && NAMESPACE=$value ;;
        --dry-run) DRY_RUN=1 taken=1 ;;
        --help | -h)
            help
            common_help
            exit 0
            ;;
        *) refuse "unknown: $1; see $command_name.sh --help" ;;
    esac
}

# need TOOL HOW: ends the command where TOOL is missing.
need() { command -v "$1" > /dev/null || refuse "$1 is missing: $2"; }
need_gcloud() { need gcloud "install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install"; }
need_kubectl() { need kubectl "gcloud components install kubectl, or https://kubernetes.io/docs/tasks/tools"; }
need_project() { [[ -n $PROJECT ]] || refuse "no project: give --project or set PROJECT"; }
# need_count FLAG VALUE: a whole number.
need_count() { [[ $2 =~ ^(0|[1-9][0-9]{0,6})$ ]] || refuse "$1 is a whole number, not $2"; }

# Runs what changes something, its output with the progress on stderr; in a dry run, prints it as one line that a shell takes.
change() {
    local line
    if [[ $1 == kube ]]; then set -- kubectl --context "$(context)" "${@:2}"; fi
    printf -v line '%q ' "$@"
    if [[ -n $DRY_RUN ]]; then
        echo "${line% }"
    else
        say "${line% }"
        "$@" >&2
    fi
}

# Whether what a command describes is there. Another failure than "not found" ends the whole command: without a permission or a
# network, what is there can't be told from what is absent.
is_there() {
    local said
    if said=$("$@" 2>&1 > /dev/null); then return 0; fi
    grep -qiE 'not[ _]?found|code=404|does not exist' <<< "$said" || fail "${said:-$* failed}"
    return 1
}
there_already() { say "there already: $*"; }

# What a describing command prints, without its complaints; empty where it fails.
told_by() { "$@" 2> /dev/null || true; }

# kubectl on the cluster that the flags name, whatever the current context is.
kube() { kubectl --context "$(context)" "$@"; }
context() { echo "gke_${PROJECT}_${REGION}_$CLUSTER"; }
# Fetches the cluster's address and credentials where kubectl has none.
need_context() {
    [[ -n $(told_by kubectl config get-contexts "$(context)" --output name) ]] ||
        change gcloud container clusters get-credentials "$CLUSTER" --location "$REGION" --project "$PROJECT"
}

# The account that the nodes run as; pods have their own.
nodes_account() { echo "inferq-nodes@$PROJECT.iam.gserviceaccount.com"; }

# has_grant ROLE MEMBER COMMAND…: whether the policy that COMMAND prints grants it. One that can't be read ends the command.
has_grant() {
    local role=$1 member=$2 policy
    shift 2
    policy=$("$@" --flatten 'bindings[].members' --format 'csv[no-heading](bindings.role,bindings.members)' 2>&1) ||
        fail "$policy"
    grep -qxF "$role,$member" <<< "$policy"
}
# grant ROLE MEMBER GROUP… NAME: adds a role to the policy of one thing, as in `grant R M pubsub topics jobs`.
grant() {
    local role=$1 member=$2
    shift 2
    local name=${*: -1}
    local group=("${@:1:$#-1}")
    if has_grant "$role" "$member" gcloud "${group[@]}" get-iam-policy "$name" --project "$PROJECT"; then
        there_already "$role on $name for $member"
        return
    fi
    local condition=()
    # A policy that has conditions asks for one without this; topics and subscriptions have none.
    if [[ ${group[0]} != pubsub ]]; then condition=(--condition None); fi
    local attempt
    for attempt in 1 2 3 4 5; do
        # Without a format it prints the whole policy.
        if change gcloud "${group[@]}" add-iam-policy-binding "$name" --member "$member" --role "$role" "${condition[@]}" \
            --project "$PROJECT" --format none; then return; fi
        # An account that has just been made is not known everywhere at once.
        sleep $((attempt * 2))
    done
    fail "can't grant $role on $name to $member"
}
