# A newcomer's whole interface; CI calls only these. One profile serves all, so that nothing compiles twice.
#
# Needs Rust, Python 3, make and a C compiler. The model is downloaded once, into ~/.cache/inferq. Every build is of the
# whole workspace: a part of it would select other features and compile the libraries again.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
DEMO := $(TARGET)/demo
SENTENCES := tests/fixtures/demo/sentences.jsonl
SEEDS ?= 20000
SEED_FROM ?= 0
FUZZ_SECONDS ?= 600
FUZZ_TARGETS := job reply broker_url line
PEERS ?=
MINUTES ?= 10
BROKER ?= rabbitmq

# The model's folder: INFERQ_TEST_MODEL if that is set, else fetched once. A recipe's shell variable.
MODEL = model="$${INFERQ_TEST_MODEL:-$$(tests/tools/fetch_model.sh | tail -n 1)}"

# Graphics cards beside the CPU; the default build has none.
CUDA := --features inferq-worker/cuda
DEVICE ?= cuda:0

.PHONY: binaries help demo test lint cuda cuda-kernels gpu-check fuzz soak mutants compose-test bench-engine bench-queue bench-producer bench-rabbitmq bench-pubsub chaos drains simulate-scaling k8s-check clean tools

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

# One line for what is missing, instead of a page from the compiler.
tools:
	@command -v $(CARGO) > /dev/null || { echo "cargo is missing: install Rust from https://rustup.rs" >&2; exit 1; }
	@command -v python3 > /dev/null || { echo "python3 is missing: apt install python3 python3-pip" >&2; exit 1; }
	@command -v cc > /dev/null || { echo "a C compiler is missing (SQLite is compiled in): apt install gcc" >&2; exit 1; }

demo: tools ## embed 325 sentences and print the nearest ones to a few queries
	@$(MODEL); \
	$(CARGO) build --release --locked --workspace; \
	rm -rf "$(DEMO)"; mkdir -p "$(DEMO)"; \
	"$(TARGET)/release/inferq" run --model "$$model" --input $(SENTENCES) --output "$(DEMO)/vectors.jsonl"; \
	python3 tests/tools/demo.py $(SENTENCES) "$(DEMO)/vectors.jsonl"

test: tools ## every test
	@[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || [ -x /opt/rabbitmq/sbin/rabbitmq-server ] || \
		echo "left out: tests on RabbitMQ (apt install rabbitmq-server; the service need not run)"
	@[ -n "$$(tests/tools/pubsub_emulator.sh)" ] || echo "left out: tests on Pub/Sub"
	@$(MODEL); export INFERQ_TEST_MODEL="$$model"; \
	$(CARGO) build --release --locked --workspace; \
	$(CARGO) test --release --locked --workspace

lint: tools ## format, clippy, documentation, licences; shell scripts where shellcheck is there
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --release --locked --workspace --all-targets $(CUDA) -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --release --locked --workspace --no-deps --document-private-items
	@if command -v cargo-deny > /dev/null; then cargo-deny --locked check --hide-inclusion-graph licenses bans sources; \
	elif [ -n "$${CI:-}" ]; then echo "cargo-deny is missing: cargo install cargo-deny --locked" >&2; exit 1; \
	else echo "lint: licences not checked (cargo install cargo-deny --locked)"; fi
	@if command -v shellcheck > /dev/null; then shellcheck .ci/run $$(git ls-files '*.sh'); \
	elif [ -n "$${CI:-}" ]; then echo "shellcheck is missing: apt install shellcheck" >&2; exit 1; \
	else echo "lint: shell scripts not checked (apt install shellcheck)"; fi

cuda: tools ## the binaries with CUDA, stripped, in the target folder's cuda/; they run on the CPU too
	$(CARGO) build --release --locked --workspace $(CUDA)
	@mkdir -p "$(TARGET)/cuda"
	@for binary in inferq inferq-worker bench_device; do \
		strip --strip-all -o "$(TARGET)/cuda/$$binary" "$(TARGET)/release/$$binary"; \
	done
	@ls -l "$(TARGET)/cuda"

cuda-kernels: cuda ## compile and assemble the kernels for each kind of card, without one; takes long
	@$(MODEL); tests/tools/cuda_kernels.sh "$(TARGET)/cuda/bench_device" "$$model"

gpu-check: ## every check and measurement of a graphics card, in ten minutes; DEVICE=cpu for a dry run
	@if [ "$(DEVICE)" = cpu ]; then $(MAKE) --no-print-directory binaries; else $(MAKE) --no-print-directory cuda; fi
	@$(MODEL); folder=cuda; if [ "$(DEVICE)" = cpu ]; then folder=release; fi; \
	python3 tests/tools/gpu_check.py --bin "$(TARGET)/$$folder" --model "$$model" --device "$(DEVICE)" \
		--out "$(TARGET)/gpu-check"

binaries: tools
	@$(CARGO) build --release --locked --workspace

fuzz: tools ## fuzz each decoder, FUZZ_SECONDS=600 in total; needs a nightly Rust
	@$(CARGO) +nightly --version > /dev/null || { echo "nightly Rust is missing: rustup install nightly" >&2; exit 1; }
	@command -v cargo-fuzz > /dev/null || $(CARGO) install cargo-fuzz --locked
	@for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/corpus/$$target; \
		seeds=(); if [ -d tests/fixtures/fuzz/$$target ]; then seeds+=(tests/fixtures/fuzz/$$target); fi; \
		if compgen -G "tests/fixtures/wire/*/$$target-*" > /dev/null; then \
			mkdir -p fuzz/corpus/$$target.seeds; cp tests/fixtures/wire/*/$$target-* fuzz/corpus/$$target.seeds; \
			seeds+=(fuzz/corpus/$$target.seeds); \
		fi; \
		CARGO_TARGET_DIR="$(abspath $(TARGET))/fuzz" $(CARGO) +nightly fuzz run $$target fuzz/corpus/$$target "$${seeds[@]}" -- \
			-max_total_time=$$(($(FUZZ_SECONDS) / $(words $(FUZZ_TARGETS)))) -max_len=65536 -timeout=10 -print_final_stats=1; \
	done

soak: tools ## the simulation over SEEDS=20000 seeds from SEED_FROM=0 on
	INFERQ_SEEDS=$(SEEDS) INFERQ_SEED_FROM=$(SEED_FROM) \
		$(CARGO) test --release --locked --workspace --test it -- --nocapture faults

mutants: tools ## planted faults: the simulation must catch each within 500 seeds
	$(CARGO) test --release --locked --workspace --features inferq-tests/mutants --test it -- --nocapture mutants

compose-test: ## docker-compose.yaml for real: 500 texts, a worker killed, RabbitMQ restarted; needs docker
	@tests/tools/compose_test.sh

bench-engine: tools ## the engine by length and batch, and inferq run against it; PEERS=1 adds onnxruntime
	@$(MODEL); export INFERQ_TEST_MODEL="$$model"; \
	$(CARGO) build --release --locked --workspace; \
	PEERS=$(PEERS) tests/tools/bench_engine.sh; \
	"$(TARGET)/release/bench_worker" across; \
	"$(TARGET)/release/bench_worker" run

bench-queue: tools ## the embedded queue's rates, and the worker's without a model
	@$(CARGO) build --release --locked --workspace; \
	"$(TARGET)/release/bench_queue"; \
	"$(TARGET)/release/bench_worker" echo; \
	"$(TARGET)/release/bench_worker" traces; \
	"$(TARGET)/release/bench_worker" memory

bench-producer: tools ## submit's and collect's rates on the embedded queue, and their memory over 10,000,000 lines
	@$(CARGO) build --release --locked --workspace; \
	"$(TARGET)/release/bench_producer" submit; \
	"$(TARGET)/release/bench_collect" rate; \
	"$(TARGET)/release/bench_collect" memory

bench-rabbitmq: tools ## worker and submit over RabbitMQ, beside bare client loops on the same server
	@$(MODEL); export INFERQ_TEST_MODEL="$$model"; \
	$(CARGO) build --release --locked --workspace; \
	"$(TARGET)/release/bench_rabbitmq"

bench-pubsub: tools ## worker and submit over the Pub/Sub emulator, beside bare loops with Google's own client
	@$(CARGO) build --release --locked --workspace; \
	"$(TARGET)/release/bench_pubsub"

chaos: tools ## MINUTES=10 of faults at workers, links and a BROKER=rabbitmq or pubsub of its own; every job must be answered
	@$(CARGO) build --release --locked --workspace; \
	INFERQ_CHAOS_SECONDS=$$(($(MINUTES) * 60)) "$(TARGET)/release/chaos" $(BROKER)

drains: tools ## workers stopped as the kubelet does it, in each phase, on each broker; rolling updates under load
	@$(MODEL); export INFERQ_TEST_MODEL="$$model"; \
	$(CARGO) build --release --locked --workspace; \
	"$(TARGET)/release/drains"

simulate-scaling: tools ## docs/scaling.md: autoscaling simulated, from measured drains
	@$(CARGO) build --release --locked --workspace; \
	"$(TARGET)/release/simulate_scaling" --plots "$(TARGET)/scaling/figures.json"; \
	python="$$(tests/tools/venv.sh matplotlib 3.11.2)"; [ -z "$$python" ] || \
		"$$python" tests/tools/plot_scaling.py "$(TARGET)/scaling/figures.json" docs/scaling

k8s-check: tools ## k8s/: rendered, validated, asked of real workers, the dashboard drawn; needs kubectl and prometheus
	@$(MODEL); $(CARGO) build --release --locked --workspace; \
	"$$(tests/tools/k8s.sh)" tests/tools/k8s_check.py --bin "$(TARGET)/release" --plant; \
	tests/tools/alerts_check.py --bin "$(TARGET)/release"; \
	tests/tools/dashboard_check.py --bin "$(TARGET)/release" --model "$$model" --out "$(TARGET)/dashboard.svg"

clean: ## remove what was built
	$(CARGO) clean
