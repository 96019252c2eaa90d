# Everything here works on a new machine: what builds, tests or measures first runs tests/setup/setup.sh, which installs what is missing for it.
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-clean lab lab-down test test-long bench dist lint clean

# Where `cargo install` and rustup put their programs. Added only where it is missing: the eBPF half is built anew when
# PATH changes.
CARGO_BIN := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin
ifeq ($(findstring :$(CARGO_BIN):,:$(PATH):),)
export PATH := $(CARGO_BIN):$(PATH)
endif
# CI passes --locked.
CARGO_FLAGS ?=
# What demo and bench are built as. CI, which measures nothing, says dev: what its tests have built already.
PROFILE ?= release
# Tests append here, one line each, what they did not run: a skip with its reason, a long variant.
export BULKHEAD_LEFT_OUT := $(CURDIR)/target/left-out.txt

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what this machine lacks (tests/setup/setup.sh --dry-run shows it first)
	@tests/setup/setup.sh

demo: setup ## two nodes, a VXLAN, a small shop: what a policy allows and blocks (KEEP=1 leaves it standing)
	cargo build --profile $(PROFILE) $(CARGO_FLAGS)
	@cargo run --profile $(PROFILE) --quiet $(CARGO_FLAGS) --bin bulkhead-demo

demo-clean: ## remove what make demo KEEP=1 left standing
	@cargo run --profile $(PROFILE) --quiet $(CARGO_FLAGS) --bin bulkhead-demo -- clean

lab: ## a Kubernetes of two nodes with flannel, Bulkhead by its chart, the shop as pods: to look around
	@tests/setup/setup.sh --lab
	cargo build --profile $(PROFILE) $(CARGO_FLAGS)
	@cargo run --profile $(PROFILE) --quiet $(CARGO_FLAGS) --bin bulkhead-lab -- up

lab-down: ## remove what make lab raised
	@cargo run --profile $(PROFILE) --quiet $(CARGO_FLAGS) --bin bulkhead-lab -- down

test: ## every test except long variants; tests on real links need root
	@tests/setup/setup.sh --test
	@mkdir -p $(dir $(BULKHEAD_LEFT_OUT)) && : > $(BULKHEAD_LEFT_OUT)
	@cargo test --workspace --no-fail-fast $(CARGO_FLAGS); status=$$?; \
	  sort -u $(BULKHEAD_LEFT_OUT) | sed '1i\\nleft out:' ; exit $$status

test-long: export BULKHEAD_LONG := 1
test-long: test ## every test, in its long variant where it has one

SUITE ?= datapath
bench: ## time per packet of the eBPF programs (SUITE=policy: of the compiler, cni: of container starts, kubernetes: of agents on a cluster; ARGS: see cargo run -p bulkhead-bench -- --help)
	@tests/setup/setup.sh $(if $(filter cni kubernetes,$(SUITE)),--test)
	cargo build --profile $(PROFILE) $(CARGO_FLAGS)
	@cargo run --profile $(PROFILE) --quiet $(CARGO_FLAGS) --bin bulkhead-bench -- $(SUITE) $(ARGS)

dist: ## one tarball to install from: static programs, units, chart, a dashboard, examples, checksums and a bill of materials, below target/dist
	@tests/setup/setup.sh --dist
	@CARGO_FLAGS="$(CARGO_FLAGS)" controller/deploy/dist.sh

lint: ## format, clippy, shell scripts, manifests, spelling, licences and sources of dependencies
	@tests/setup/setup.sh --lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(CARGO_FLAGS) -- -D warnings
	shellcheck .ci/run tests/setup/*.sh tests/kubernetes/*.sh tests/cluster/src/*.sh controller/deploy/*.sh controller/deploy/kubernetes/*.sh
	PATH="$(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/helm:$$PATH" controller/deploy/kubernetes/render.sh --check
	typos
	for fuzz in controller/fuzz dataplane-ebpf/fuzz; do \
	  cargo metadata --locked --format-version 1 --manifest-path $$fuzz/Cargo.toml >/dev/null || exit 1; \
	done
	cargo deny --all-features check licenses bans sources

clean: ## remove what was built
	cargo clean
