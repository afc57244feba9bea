# SPDX-License-Identifier: BSD-3-Clause
#
# For people: one word per thing one wants done.  Meson builds; the scripts in tools/ hold what is
# longer than a line.  Every target installs what it lacks first (tools/bootstrap.sh).
#
#   PYTHON=python3.13   the interpreter for any target; `none` leaves Python out
#   CC=clang            the compiler; takes effect in a fresh build folder (make clean)
#   PREFIX= DESTDIR=    where `make install` puts things

PYTHON ?= python3
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 20
TEST_SECONDS ?= 1800
BENCH_ARGS ?=
TEST_ARGS ?=
CONFORMANCE_ARGS ?=
export PYTHON TEST_SECONDS

# Asked for when first used, which is after the bootstrap may have installed Python.
# make exports nothing to $(shell) before its version 4.4, so the interpreter is named again.
VENV = $(eval VENV := $$(shell PYTHON='$(PYTHON)' tools/venv.sh name))$(VENV)

.DEFAULT_GOAL := help
.PHONY: help build build-c venv demo test test-c test-py check bench install wheel asan tsan \
        fuzz lint models matrix conformance clean

help:
	@echo 'make demo      build, then run the tour: real workloads, serial, Trireme and the stdlib'
	@echo 'make test      build, then run every test'
	@echo 'make build     the C library, the command line, the C tests and the Python package'
	@echo 'make bench     measure, side by side with other libraries'
	@echo 'make install   library, header, trireme.pc and command line into PREFIX=$(PREFIX)'
	@echo 'make wheel     a wheel in dist/, installed offline into a clean environment and tried'
	@echo 'make asan      C tests under AddressSanitizer and UBSan; tsan: under ThreadSanitizer'
	@echo 'make fuzz      every fuzzer for FUZZ_SECONDS=$(FUZZ_SECONDS)'
	@echo 'make models    the protocols, checked by Spin, and the mistakes that it must find'
	@echo 'make lint      formatting, static analysis, types'
	@echo 'make conformance    tests of multiprocessing and concurrent.futures by CPython'
	@echo 'make matrix    build and test with every Python >= 3.11 found'
	@echo 'make test-c, test-py, check    the three parts of make test'
	@echo 'make clean     remove what was built'
	@echo 'PYTHON=python3.X chooses the interpreter of any target; PYTHON=none leaves Python out.'

build-c:
	@tools/bootstrap.sh c
	@tools/build_c.sh build --werror

venv:
	@tools/bootstrap.sh c python
	@tools/venv.sh

build: build-c venv

demo: build-c venv
	@$(VENV)/bin/python examples/python/tour.py $(DEMO_ARGS)

test: test-c test-py check

test-c: build-c
	@meson test -C build --no-rebuild --print-errorlogs
	@tools/install_check.sh build

test-py: venv
	@tools/pytest.sh $(TEST_ARGS)

conformance: venv
	@$(VENV)/bin/python tools/conformance.py $(CONFORMANCE_ARGS)

check:
	@tools/bootstrap.sh c
	@tools/check_layers.py
	@tools/check_style.py

bench: build-c venv
	@$(VENV)/bin/python bench/run.py $(BENCH_ARGS)

install: build-c
	@meson configure build -Dprefix='$(PREFIX)'
	@meson install -C build $(if $(DESTDIR),--destdir '$(abspath $(DESTDIR))')

wheel: venv
	@tools/wheel.sh

asan: venv
	@tools/sanitize.sh asan

tsan:
	@tools/bootstrap.sh c
	@tools/sanitize.sh tsan

fuzz:
	@tools/bootstrap.sh c fuzz
	@tools/fuzz.sh $(FUZZ_SECONDS)

models:
	@tools/bootstrap.sh c models
	@models/run.sh

lint: build-c venv
	@tools/bootstrap.sh lint
	@tools/lint.sh

matrix:
	@tools/bootstrap.sh c
	@tools/matrix.sh

clean:
	rm -rf build build-* dist .venv .venv-* demo-out .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
