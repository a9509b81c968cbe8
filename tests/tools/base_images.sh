#!/usr/bin/env bash
# Makes stand-ins for the public images that Dockerfile and docker-compose.yaml name, for machines that reach Debian's
# packages but no image registry: bookworm by debootstrap, this machine's Rust and Pub/Sub emulator, Debian's RabbitMQ and Java. An
# image that is there already, or that can be pulled, is left alone. Needs root, docker and debootstrap.
set -euo pipefail

DEBIAN=debian:bookworm-slim
RUST=rust:1.95-slim-bookworm
RABBITMQ=rabbitmq:4-management
EMULATORS=gcr.io/google.com/cloudsdktool/google-cloud-cli:emulators
# The certificates that this machine trusts: a proxy's own may be among them.
CERTIFICATES=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}

fail() {
    echo "base_images: $1" >&2
    exit 1
}
absent() { ! docker image inspect "$1" > /dev/null 2>&1 && ! timeout 60 docker pull --quiet "$1" > /dev/null 2>&1; }
trusting=(--change 'ENV SSL_CERT_FILE=/etc/inferq-ca.crt CARGO_HTTP_CAINFO=/etc/inferq-ca.crt PIP_CERT=/etc/inferq-ca.crt')

command -v docker > /dev/null || fail "docker is missing: apt install docker.io"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if absent "$DEBIAN"; then
    command -v debootstrap > /dev/null || fail "debootstrap is missing: apt install debootstrap"
    debootstrap --variant=minbase bookworm "$work/debian" http://deb.debian.org/debian > "$work/log" ||
        { tail -n 5 "$work/log" >&2; fail "debootstrap failed"; }
    rm -rf "$work"/debian/var/cache/apt/archives/*.deb "$work"/debian/var/lib/apt/lists/*
    cp "$CERTIFICATES" "$work/debian/etc/inferq-ca.crt"
    tar -C "$work/debian" -c . | docker import "${trusting[@]}" - "$DEBIAN" > /dev/null
fi

if absent "$RUST"; then
    toolchain=$(rustc --print sysroot)
    mkdir -p "$work/rust"
    # What a build needs of it: compiler, cargo and the standard library.
    tar -C "$toolchain" -c bin lib | tar -C "$work/rust" -x
    printf 'FROM %s\nCOPY rust /usr/local\nRUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*\n' \
        "$DEBIAN" > "$work/Dockerfile.rust"
    docker build --quiet --tag "$RUST" --file "$work/Dockerfile.rust" "$work" > /dev/null
fi

if absent "$RABBITMQ"; then
    mkdir -p "$work/rabbitmq"
    cat > "$work/rabbitmq/Dockerfile" << DOCKERFILE
FROM $DEBIAN
RUN printf 'exit 101\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d && apt-get update \\
    && apt-get install -y --no-install-recommends rabbitmq-server && rm -rf /var/lib/apt/lists/* \\
    && rabbitmq-plugins enable --offline rabbitmq_management \\
    && printf 'log.console = true\nloopback_users = none\n' > /etc/rabbitmq/rabbitmq.conf
USER rabbitmq
VOLUME /var/lib/rabbitmq
CMD ["/usr/lib/rabbitmq/bin/rabbitmq-server"]
DOCKERFILE
    docker build --quiet --tag "$RABBITMQ" "$work/rabbitmq" > /dev/null
fi

if absent "$EMULATORS"; then
    class_path=$("$(dirname "$0")/pubsub_emulator.sh")
    if [[ -n $class_path ]]; then
        mkdir -p "$work/emulators"
        cp -r "${class_path%%:*}" "$work/emulators/shim"
        cp "${class_path#*:}" "$work/emulators/emulator.jar"
        cat > "$work/emulators/gcloud" << 'SH'
#!/bin/sh
# `gcloud beta emulators pubsub start --host-port=HOST:PORT`, and nothing else.
for argument; do
    case $argument in --host-port=*) address=${argument#*=} ;; esac
done
exec java -Djava.util.logging.config.file=/shim/logging.properties -cp /shim:/emulator.jar \
    com.google.cloud.pubsub.testing.v1.Main --host="${address%:*}" --port="${address##*:}"
SH
        chmod +x "$work/emulators/gcloud"
        cat > "$work/emulators/Dockerfile" << DOCKERFILE
FROM $DEBIAN
RUN apt-get update && apt-get install -y --no-install-recommends default-jre-headless && rm -rf /var/lib/apt/lists/*
COPY shim /shim
COPY emulator.jar /
COPY gcloud /usr/local/bin/
DOCKERFILE
        docker build --quiet --tag "$EMULATORS" "$work/emulators" > /dev/null
    fi
fi
