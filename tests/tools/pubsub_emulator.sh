#!/bin/sh
# Google's Pub/Sub emulator with our shim in front of its jar: pubsub_emulator.sh PORT runs it in the foreground. Without a
# port its class path is printed, with --jar only the jar's path. Where Java or the jar is missing it says so in one line and
# prints nothing; with CI set it fails.
#
# The jar is INFERQ_PUBSUB_EMULATOR_JAR, or lies in the Cloud SDK: at CLOUDSDK_ROOT_DIR, where gcloud is, or in /usr/lib.
set -eu

SOURCE=$(cd "$(dirname "$0")" && pwd)/shim/io/grpc/InternalStatus.java
CACHE=${INFERQ_TOOLS_CACHE:-$HOME/.cache/inferq}

give_up() {
    echo "the Pub/Sub emulator: $1" >&2
    [ -z "${CI:-}" ] || exit 1
    exit 0
}

jar() {
    if [ -n "${INFERQ_PUBSUB_EMULATOR_JAR:-}" ]; then
        echo "$INFERQ_PUBSUB_EMULATOR_JAR"
        return
    fi
    gcloud=$(command -v gcloud || true)
    for sdk in "${CLOUDSDK_ROOT_DIR:-}" "${gcloud:+$(dirname "$(readlink -f "$gcloud")")/..}" /usr/lib/google-cloud-sdk; do
        for jar in "$sdk"/platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar; do
            if [ -n "$sdk" ] && [ -f "$jar" ]; then
                readlink -f "$jar"
                return
            fi
        done
    done
}

jar=$(jar)
[ -n "$jar" ] || give_up "it is missing: apt install google-cloud-cli-pubsub-emulator (https://cloud.google.com/sdk/docs/install), or INFERQ_PUBSUB_EMULATOR_JAR=its jar"
[ -f "$jar" ] || give_up "there is no $jar"
if [ "${1:-}" = --jar ]; then
    echo "$jar"
    exit 0
fi
if ! command -v java > /dev/null || ! command -v javac > /dev/null; then
    give_up "Java is missing: apt install default-jdk-headless"
fi

# Of this jar and this source.
shim=$CACHE/pubsub-shim-$(cat "$SOURCE" "$0" | cksum | cut -d ' ' -f 1)-$(basename "$jar" .jar)
mkdir -p "$CACHE"
exec 9> "$CACHE/pubsub-shim.lock"
flock 9
if [ ! -f "$shim/.complete" ]; then
    rm -rf "$shim"
    javac -cp "$jar" -d "$shim" "$SOURCE" >&2 || give_up "javac can't compile the shim against $jar"
    cat > "$shim/logging.properties" << 'PROPERTIES'
handlers = java.util.logging.ConsoleHandler
.level = WARNING
com.google.cloud.pubsub.testing.v1.Main.level = INFO
PROPERTIES
    touch "$shim/.complete"
fi
# The emulator should not hold it.
exec 9>&-
if [ -z "${1:-}" ]; then
    echo "$shim:$jar"
    exit 0
fi
exec java -Djava.util.logging.config.file="$shim/logging.properties" -cp "$shim:$jar" \
    com.google.cloud.pubsub.testing.v1.Main --host=127.0.0.1 --port="$1"
