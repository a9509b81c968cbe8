# Both binaries, in one image without a compiler. `docker build .`, or `docker compose up --build`.
#
# Dependencies are built from the manifests alone, before the sources come: a change of our code doesn't build them
# again. No syntax of BuildKit's own, so that any builder takes it.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY shared/Cargo.toml shared/
COPY worker/Cargo.toml worker/
COPY producer/Cargo.toml producer/
COPY tests/Cargo.toml tests/
# Empty crates in the places of ours.
RUN mkdir -p shared/src worker/src producer/src tests/src tests/it \
    && touch shared/src/lib.rs worker/src/lib.rs producer/src/lib.rs tests/src/lib.rs tests/it/main.rs \
    && echo 'fn main() {}' | tee worker/src/main.rs > producer/src/main.rs \
    && cargo build --release --locked -p inferq-worker -p inferq-producer
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

FROM debian:bookworm-slim AS inferq
LABEL org.opencontainers.image.title="inferq" \
      org.opencontainers.image.description="Asynchronous inference: a worker that batches across jobs, and its producer" \
      org.opencontainers.image.source="https://github.com/inferq/inferq" \
      org.opencontainers.image.licenses="Apache-2.0"
# Root certificates, for brokers and buckets over TLS.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && useradd --system --uid 10001 --user-group --no-create-home inferq \
    && install -d -o inferq -g inferq /models /data
COPY --from=build /inferq /inferq-worker /usr/local/bin/
USER 10001:10001
WORKDIR /data
ENV INFERQ_HEALTH=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s --retries=3 CMD ["inferq-worker", "health"]
# Not through a shell: the worker is process 1 and gets SIGTERM.
ENTRYPOINT ["inferq-worker"]

FROM inferq AS assets
COPY --from=model /model /model

FROM inferq
