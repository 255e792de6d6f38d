# calib: the commands of everyday work. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Which TensorRT the binary can load: rtx (TensorRT-RTX 1.x, the default), 11 (TensorRT 11.x) or none.
TENSORRT ?= rtx
feature_rtx := tensorrt-rtx
feature_11 := tensorrt
FEATURES ?= $(feature_$(TENSORRT))
cargo_features := $(if $(FEATURES),--features $(FEATURES))

# With rustup's llvm-tools, `make test` counts which lines the tests of engines run.
llvm_cov := $(wildcard $(shell rustc --print sysroot 2>/dev/null)/lib/rustlib/*/bin/llvm-cov)

export LIBCLANG_PATH := $(CURDIR)/.runtime/libclang
export BINDGEN_EXTRA_CLANG_ARGS := -isystem $(shell gcc -print-file-name=include 2>/dev/null)

.PHONY: help setup build demo test test-lean test-engines test-engines-rtx test-engines-11 coverage test-python wheel test-gpu fuzz kill-test soak test-large zoo check fmt example models bench doc clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

setup: ## fetch the runtime libraries into .runtime/ (once; needs the network)
	@scripts/check_prerequisites.sh
	@python3 scripts/fetch_runtime.py

setup-test: setup
	@python3 scripts/fetch_runtime.py --test

build: setup ## build the release binaries (TENSORRT=rtx|11|none)
	cargo build --release $(cargo_features)

demo: build ## run the main job on the embedded model and images
	./target/release/calib run --config configs/demo.toml

# Every test but those of engines: `make coverage` or `make test-engines` run these, once for each flavour.
tests := $(filter-out engines,$(shell sed -n '/^\[\[test\]\]/{n;s/^name = "\(.*\)"/\1/p}' Cargo.toml cli/Cargo.toml))

test: setup-test ## run every test
	cargo test $(cargo_features) --lib --bins $(tests:%=--test %)
	cargo test $(cargo_features) -p trtcalib --doc
	scripts/test_wheel.sh
	$(MAKE) $(if $(llvm_cov),coverage,test-lean test-engines)
	$(if $(llvm_cov),,@echo "The coverage was not checked: llvm-tools are missing (rustup component add llvm-tools)")

test-lean: setup-test
	cargo test -p trtcalib --features tensorrt --lib backend::tensorrt # against the lean runtime of TensorRT 11

# Kernels run on the stand-in's CPU as well: those of tests/gpu that need neither ONNX Runtime's CUDA provider nor gigabytes.
on_stand_in := magnitudes:: pairs:: values:: --skip a_large

test-engines: test-engines-rtx test-engines-11 ## run engines end to end, on stand-ins for TensorRT and the driver (REAL_DRIVER=1: on a GPU)

test-engines-rtx: setup-test
	tests/stand_in/build.sh
	$(if $(REAL_DRIVER),CALIB_REAL_DRIVER=1) cargo test --features tensorrt-rtx --test engines
	$(if $(REAL_DRIVER),,LD_LIBRARY_PATH=$(CURDIR)/target/stand_in/cuda cargo test --features tensorrt-rtx --test gpu -- --ignored --test-threads=1 $(on_stand_in))

test-engines-11: setup-test
	tests/stand_in/build.sh
	$(if $(REAL_DRIVER),CALIB_REAL_DRIVER=1) cargo test --features tensorrt --test engines

coverage: setup-test ## test-engines with the lines counted of src/backend/tensorrt and src/backend/cuda; fails below 85 %
	scripts/coverage.sh

test-python: setup-test ## build the wheel, install it into an empty environment and run its tests, those of Ray that take minutes, too
	scripts/test_wheel.sh --ray

wheel: setup ## build the Python package into target/wheels; auditwheel and abi3audit check its tags
	scripts/build_wheel.sh target/wheels --release

test-gpu: setup ## run the tests that need an NVIDIA GPU
	cargo test $(cargo_features) --test gpu -- --ignored --test-threads=1

test-large: setup-test build ## quantize a generated model of 2.3 GB within 1.5 times its weights (6 GB of disk)
	ORT_DYLIB_PATH=$(firstword $(wildcard $(CURDIR)/.runtime/onnxruntime/libonnxruntime.so.*)) \
	PYTHONPATH=.runtime/python python3 scripts/large_model.py target/release/calib

zoo: setup-test ## quantize, run and build every architecture of tests/fixtures/zoo; print the table of docs/zoo.md
	rm -f target/zoo/*.json
	PYTHONPATH=.runtime/python python3 scripts/zoo_peer.py target/zoo/peer.json
	CALIB_ZOO=all cargo test --release $(cargo_features) --test zoo -- --nocapture

fuzz: setup-test ## damage 24 000 files of every format: no panic, at most 1 GB and 5 s each
	CALIB_MUTANTS=24000 CALIB_MODEL_RUNS=200 cargo test $(cargo_features) --test robustness damaged -- --nocapture

kill-test: setup-test ## stop runs at 200 random moments: files are whole, and runs go on to the same bytes
	CALIB_KILLS=200 cargo test $(cargo_features) --test robustness a_killed -- --nocapture

soak: setup-test ## calibrate on 20 000 generated images with flat memory; list 50 000 files
	cargo test $(cargo_features) --test robustness soak -- --ignored --nocapture

check: setup-test ## formatting, lints, documentation, licences: the same as CI
	cargo fmt --check
	cargo clippy --all-targets --features tensorrt-rtx -- -D warnings
	cargo clippy --all-targets --features tensorrt -- -D warnings
	cargo clippy -p trtcalib-python --features tensorrt-rtx -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps $(cargo_features)
	@if command -v cargo-deny >/dev/null; then cargo deny $(cargo_features) check bans licenses sources; \
	else echo "cargo-deny is not installed; skipped (install it with: cargo install cargo-deny)"; fi

example: build ## record reports/example again, from the demo
	./target/release/calib run --config configs/demo.toml --tensorrt off --out runs/example
	cp runs/example/report.json reports/example/report.json
	CALIB_UPDATE=1 cargo test $(cargo_features) --lib report::json

models: setup-test build ## six models x four precisions in one table, runs/models/models.html
	benches/models.sh

bench: build ## measure what docs/benchmarks.md quotes
	benches/run.sh

doc: ## build the documentation of the library
	cargo doc --no-deps --open

clean: ## remove what was built, keep what was fetched
	cargo clean
	rm -rf runs
