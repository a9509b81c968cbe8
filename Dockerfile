# Both binaries, in one image without a compiler. `docker build .`, or `docker compose up --build`. For NVIDIA's cards:
# `docker build --target inferq-cuda --tag inferq-cuda .`
#
# Dependencies are built from the manifests alone, before the sources come: a change of our code doesn't build them
# again. No syntax of BuildKit's own, so that any builder takes it.

# Bases, to be pinned by digest: --build-arg RUST_IMAGE=rust@sha256:… (`docker buildx imagetools inspect rust:1.95-slim-bookworm`).
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG DEBIAN_IMAGE=debian:bookworm-slim

FROM $RUST_IMAGE AS dependencies
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY vendor vendor
COPY shared/Cargo.toml shared/
COPY worker/Cargo.toml worker/
COPY producer/Cargo.toml producer/
COPY tests/Cargo.toml tests/
# Empty crates in the places of ours.
RUN mkdir -p shared/src worker/src producer/src tests/src tests/it \
    && touch shared/src/lib.rs worker/src/lib.rs producer/src/lib.rs tests/src/lib.rs tests/it/main.rs \
    && echo 'fn main() {}' | tee worker/src/main.rs > producer/src/main.rs \
    && cargo build --release --locked -p inferq-worker -p inferq-producer

FROM dependencies AS build
COPY shared shared
COPY worker worker
COPY producer producer
# What was compiled of the empty crates is newer than our sources.
RUN find shared worker producer -name '*.rs' -exec touch {} + \
    && cargo build --release --locked -p inferq-worker -p inferq-producer \
    && strip --strip-all -o /inferq target/release/inferq \
    && strip --strip-all -o /inferq-worker target/release/inferq-worker

# A model for trying it out, sentence-transformers/all-MiniLM-L6-v2.
FROM build AS model
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
COPY tests/tools/fetch_model.sh /
RUN INFERQ_MODEL_CACHE=/cache /fetch_model.sh && mv /cache/all-MiniLM-L6-v2 /model

FROM $DEBIAN_IMAGE AS runtime
LABEL org.opencontainers.image.title="inferq" \
      org.opencontainers.image.description="Asynchronous inference: a worker that batches across jobs, and its producer" \
      org.opencontainers.image.source="https://github.com/inferq/inferq" \
      org.opencontainers.image.licenses="Apache-2.0"
# Root certificates, for brokers and buckets over TLS.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && useradd --system --uid 10001 --user-group --no-create-home inferq \
    && install -d -o inferq -g inferq /models /data /cache
USER 10001:10001
WORKDIR /data
ENV INFERQ_HEALTH=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s --retries=3 CMD ["inferq-worker", "health"]
# Not through a shell: the worker is process 1 and gets SIGTERM.
ENTRYPOINT ["inferq-worker"]

FROM runtime AS inferq
COPY --from=build /inferq /inferq-worker /usr/local/bin/

FROM inferq AS assets
COPY --from=model /model /model

# What follows is for NVIDIA's cards, and comes last: builders without BuildKit build every stage before the one they are asked for.
FROM dependencies AS dependencies-cuda
RUN cargo build --release --locked -p inferq-worker -p inferq-producer --features inferq-worker/cuda

FROM dependencies-cuda AS build-cuda
COPY shared shared
COPY worker worker
COPY producer producer
RUN find shared worker producer -name '*.rs' -exec touch {} + \
    && cargo build --release --locked -p inferq-worker -p inferq-producer --features inferq-worker/cuda \
    && strip --strip-all -o /inferq target/release/inferq \
    && strip --strip-all -o /inferq-worker target/release/inferq-worker

# NVRTC and the headers that kernels include, and nothing else of CUDA.
FROM $DEBIAN_IMAGE AS cuda
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY tests/tools/cuda_toolkit.sh /
RUN INFERQ_TOOLS_CACHE=/cache /cuda_toolkit.sh --runtime-only > /folder && mv "$(tail -n 1 /folder)" /cuda

# The driver comes from the host, by NVIDIA's container toolkit.
FROM runtime AS inferq-cuda
COPY --from=cuda /cuda /usr/local/cuda
COPY --from=build-cuda /inferq /inferq-worker /usr/local/bin/
# CUDA_CACHE_PATH: where the driver keeps what it makes of the kernels that we keep.
ENV LD_LIBRARY_PATH=/usr/local/cuda/lib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    INFERQ_DEVICE=auto \
    INFERQ_CACHE_DIR=/cache \
    CUDA_CACHE_PATH=/cache/driver
VOLUME /cache

# By what it is for.
FROM inferq-cuda AS worker-cuda

FROM inferq
