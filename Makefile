# One word per job: build check test test-all models fuzz fuzz-coverage demo bench bench-full figures wheel install-c clean.
# Variables: PYTHON (makes the environment), VENV (where it is, .venv), SHARD=k/n (test-all), JOBS (pytest -n), MINUTES (fuzz, a target), PREFIX and DESTDIR (install-c).
# An environment of your own: make PYTHON=/path/bin/python VENV=/path test

PYTHON ?= $(shell command -v python3)
VENV   ?= .venv
JOBS   ?= auto
SHARDS := 6
CC     ?= gcc

BIN     := $(VENV)/bin
comma   := ,
C_CORE  := $(wildcard csrc/*.c)
C_HEADS := $(wildcard csrc/*.h)
C_TESTS := $(wildcard tests/c/test_*.c)
# The core is compiled by the same flags everywhere; setup.py has them too.
CFLAGS_CORE := -std=gnu11 -Wall -Wextra -pthread -Icsrc
# The library for C programs: all of the core but what is for Python.
PREFIX     ?= /usr/local
LIBDIR     ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
C_LIB      := build/lib/libshmlog.so.1
C_LIB_SRC  := $(filter-out csrc/pyext.c,$(C_CORE))
VERSION     = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# An environment may serve several checkouts and a checkout several environments: the stamps carry the environment's path.
STAMP   := build/stamp$(subst /,-,$(abspath $(VENV)))

.DELETE_ON_ERROR:
.PHONY: help build check test test-c test-c-long test-c-tsan test-c-aarch64 test-c-stress fuzz fuzz-short fuzz-full fuzz-coverage
.PHONY: test-all models demo bench bench-full figures wheel install-c clean prerequisites
help:
	@sed -n '1,3s/^# *//p' Makefile

# ---- build -------------------------------------------------------------------------------------------------------------

# Asked of the system, not of dpkg: what counts is that it works. An environment that is already there needs no python3-venv.
prerequisites:
	@missing=; \
	py="$(PYTHON)"; if [ -x $(BIN)/python ]; then py=$(BIN)/python; fi; \
	if [ -z "$$py" ] || ! command -v "$$py" >/dev/null; then missing="python3 python3-dev python3-venv"; else \
	  "$$py" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
	    || missing="$$missing python3-dev"; \
	  [ -x $(BIN)/python ] || "$$py" -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	  "$$py" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "shmlog needs Python 3.11 or newer; $$py is $$("$$py" -V). Name another: make PYTHON=..." >&2; exit 1; }; \
	fi; \
	if ! command -v $(CC) >/dev/null; then missing="$$missing gcc libc6-dev"; \
	elif ! printf '#include <linux/futex.h>\n#include <pthread.h>\n' | $(CC) -E - >/dev/null 2>&1; then missing="$$missing libc6-dev"; fi; \
	if [ -n "$$missing" ]; then echo "Missing here: install it with" >&2; echo "    sudo apt-get install -y" $$missing >&2; exit 1; fi

$(BIN)/python: | prerequisites
	$(PYTHON) -m venv $(VENV)

# The environment: tools for building at their own versions (no build isolation, so that a rebuild needs no network), then
# shmlog itself, editable.
$(STAMP): pyproject.toml setup.py shmlog/_build.py $(C_CORE) $(C_HEADS) | prerequisites $(BIN)/python
	@$(BIN)/python -c 'import sys, cffi, setuptools; sys.exit(int(setuptools.__version__.split(".")[0]) < 77)' 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'setuptools>=77' wheel 'cffi>=1.16'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[rich,test,dev]'
	@mkdir -p $(@D) && touch $@

build: prerequisites $(STAMP)

# Only what shmlog.h declares is exported. The file's name has the number that changes when programs must be built anew.
$(C_LIB): $(C_LIB_SRC) $(C_HEADS)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_CORE) -O2 -fPIC -fvisibility=hidden '-DSHMLOG_API=__attribute__((visibility("default")))' $(CFLAGS) \
	  -shared -Wl,-soname,$(@F) -Wl,-z,defs -o $@ $(C_LIB_SRC) $(LDFLAGS)

# Needs a C compiler and nothing else, no Python.
install-c: $(C_LIB)
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(INCLUDEDIR)
	install -m 644 csrc/shmlog.h $(DESTDIR)$(INCLUDEDIR)/
	install -m 755 $(C_LIB) $(DESTDIR)$(LIBDIR)/
	ln -sf $(notdir $(C_LIB)) $(DESTDIR)$(LIBDIR)/libshmlog.so
	sed 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@INCLUDEDIR@|$(INCLUDEDIR)|; s|@VERSION@|$(VERSION)|' csrc/shmlog.pc.in \
	  > $(DESTDIR)$(LIBDIR)/pkgconfig/shmlog.pc

# ---- check -------------------------------------------------------------------------------------------------------------

check: build
	$(BIN)/ruff check .
	$(BIN)/mypy
	@set -e; for c in $(C_CORE); do \
	  $(CC) $(CFLAGS_CORE) -O2 -Werror -fvisibility=hidden -fsyntax-only $$c; done; echo "C: $(words $(C_CORE)) files without a warning"
	$(CC) $(CFLAGS_CORE) -O2 -Werror -DSL_PYEXT -DPy_LIMITED_API=0x030B0000 -I$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))') -fsyntax-only csrc/pyext.c
	@# aarch64 has a weaker memory and other intrinsics; where its compiler is at hand the core must at least compile.
	@if command -v aarch64-linux-gnu-gcc >/dev/null; then set -e; for c in $(C_CORE); do \
	  aarch64-linux-gnu-gcc $(CFLAGS_CORE) -O2 -Werror -fsyntax-only $$c; done; echo "C: the same for aarch64"; \
	else echo "C: aarch64 not checked here (no aarch64-linux-gnu-gcc)"; fi
	$(BIN)/python -m pytest -q tests/test_layering.py
	$(BIN)/python -m perf.figures

# Rewrites the table that `check` compares with: instructions, locked instructions, system calls, page faults, bytes.
figures: build
	$(BIN)/python -m perf.figures --write

# ---- test --------------------------------------------------------------------------------------------------------------

# tests/c/test_*.c are programs, linked with all of the core; tests/c/Makefile says how. What they print is shown when they fail.
C_MAKE = $(MAKE) --no-print-directory -s -C tests/c BUILD=$(CURDIR)/build/c
quiet = log=build/c-$(or $(3),$(1)).log; mkdir -p build; echo "C tests: $(or $(3),$(1))"; $(C_MAKE) $(1) $(2) > $$log 2>&1 || { code=$$?; cat $$log; exit $$code; }
test-c:
	@$(call quiet,check)
# Ten times the damaged files of test-c: minutes where the disk is slow, so not in make test.
test-c-long: export ROUNDS = 20000
test-c-long:
	@$(call quiet,check,TESTS=test_file WORDS='damaged files',long)
test-c-tsan:
	@$(call quiet,tsan)
test-c-aarch64:
	@$(call quiet,aarch64)
# 10^8 appends: one or two minutes.
test-c-stress:
	@$(call quiet,stress)

# Hostile files, frames, batches and memory (tests/fuzz): short needs no clang; full is 10^6 executions a target and a minute of libFuzzer each where
# clang is; fuzz is libFuzzer for as long as you like.
FUZZ_MAKE = $(MAKE) --no-print-directory -s -C tests/fuzz BUILD=$(CURDIR)/build/fuzz
fuzz-short:
	@mkdir -p build; echo "fuzz: short"; $(FUZZ_MAKE) short > build/fuzz-short.log 2>&1 || { code=$$?; cat build/fuzz-short.log; exit $$code; }
fuzz-full:
	@$(FUZZ_MAKE) full MINUTES=1
fuzz:
	@$(FUZZ_MAKE) libfuzzer MINUTES=$(or $(MINUTES),5)
fuzz-coverage:
	@$(FUZZ_MAKE) coverage

# What the two bindings must answer alike; the run above it has the one that was built.
BY_CFFI := tests/client tests/test_types.py
test: build
	@$(MAKE) --no-print-directory test-c
	@$(MAKE) --no-print-directory fuzz-short
	$(BIN)/python -m pytest -n $(JOBS)
	@echo "The client without its extension"; SHMLOG_BINDING=cffi $(BIN)/python -m pytest -q -n $(JOBS) $(BY_CFFI)

# Everything, slow tests too, in SHARDS parts. A part that passed is not run again until a file changes (build/test-all/ has a
# stamp per state of the tree), so an interrupted run goes on where it was. SHARD=k/n runs that part alone.
# What each part has besides its tests: TSan and 64-bit ARM under qemu (which proves nothing about ordering), models, a long checksum stress, fuzzing.
SHARD_1 := models MODELS_SHARD=1/2
SHARD_2 := test-c-long test-c-tsan test-c-aarch64
SHARD_3 := models MODELS_SHARD=2/2
SHARD_4 := test-c-stress
SHARD_5 := fuzz-full
test-all: build
	@set -e; state=$$({ git ls-files -coz --exclude-standard 2>/dev/null || find . -name build -prune -o -type f -print0; } | xargs -0 -r sha1sum 2>/dev/null | sha1sum | cut -c1-16); \
	if [ -n "$(SHARD)" ]; then list="$(SHARD)"; \
	else list=$$(seq -f '%.0f/$(SHARDS)' 1 $(SHARDS)); fi; \
	for shard in $$list; do \
	  stamp=build/test-all/$$state/$$(echo $$shard | tr / -); \
	  if [ -e $$stamp ]; then echo "test-all $$shard: passed already for these files ($$stamp)"; continue; fi; \
	  echo "test-all $$shard"; \
	  $(foreach k,1 2 3 4 5,[ $$shard != $(k)/$(SHARDS) ] || $(MAKE) --no-print-directory $(SHARD_$(k));) \
	  $(BIN)/python -m pytest -n $(JOBS) -m '' --shard $$shard; \
	  SHMLOG_BINDING=cffi $(BIN)/python -m pytest -q -n $(JOBS) -m '' --shard $$shard $(BY_CFFI); \
	  mkdir -p $$(dirname $$stamp); touch $$stamp; \
	done

# MODELS_SHARD=k/n: a part of the searches; the memory orders (Rust's loom, where cargo is; its crates come over the network once) are in each.
MODELS_SHARD ?= 1/1
models:
	@command -v spin >/dev/null || { echo "The models need spin: sudo apt-get install -y spin" >&2; exit 1; }
	$(BIN)/python tests/models/run.py --shard $(MODELS_SHARD)
	$(BIN)/python tests/models/orders.py

# ---- use ---------------------------------------------------------------------------------------------------------------

demo: build
	$(BIN)/python examples/demo.py
# The harness of perf/, installed as shmlog.bench. Peers that are not there are left out; this brings those that come from PyPI, where it is reachable.
BENCH_STAMP := $(STAMP)-bench
$(BENCH_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[bench]' \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check hdrhistogram || echo "bench: some peers could not be installed and are left out" >&2
	@$(BIN)/python -m shmlog.bench --fetch
	@touch $@
bench: build $(BENCH_STAMP)
	$(BIN)/python -m shmlog.bench
# Goes on where it was interrupted.
bench-full: build $(BENCH_STAMP)
	$(BIN)/python -m shmlog.bench --full --resume

wheel: build
	$(BIN)/python -m build --no-isolation --outdir dist

clean:
	rm -rf build dist shmlog.egg-info .mypy_cache .ruff_cache .pytest_cache shmlog/_core.c shmlog/*.so
	@[ "$(VENV)" != .venv ] || rm -rf .venv
