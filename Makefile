# The desk of a developer. Root is welcome: whatever runs containers is run as the user dc-compute-dev.
PYTHON := .venv/bin/python
# more than cores by one: tests of whole consortia mostly wait
WORKERS ?= 3
ARGS ?=
ROOT_TESTS := tests/pipeline/test_outputs.py tests/trust/test_keys.py tests/api/test_operator.py \
	tests/ports/test_memory_events.py tests/test_cli_doctor.py
SCRIPTS := install.sh .ci/rootless .ci/run tests/monitoring/journal.sh

.PHONY: seccomp help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

.PHONY: deps
deps: ## install what the targets below need: Debian packages (as root), .venv from the lock, an unprivileged user
	@sh ./install.sh --deps

.PHONY: deps-host
deps-host: deps ## what tests/host/vm needs besides: QEMU and mmdebstrap (Debian packages, as root)
	@sh ./install.sh --deps-host

.PHONY: demo
demo: deps ## three hospitals, one order, real data: the whole walk on this machine
	@.ci/rootless $(PYTHON) -m agent.devkit.demo $(ARGS)

.PHONY: town
town: deps ## the demo's hospitals and orchestrators to try things by hand: a shell among them (ARGS='sh -c …' for one command)
	@.ci/rootless $(PYTHON) -m agent.devkit.town $(ARGS)

.PHONY: pictures
pictures: deps ## docs/images: the status page, taken of a real run
	@mkdir -p build docs/images && .ci/rootless $(PYTHON) -m tests.pictures >build/pictures.tar
	@tar -C docs/images -xf build/pictures.tar && rm build/pictures.tar

.PHONY: test
test: deps ## every test (ARGS='-k words' picks some; WORKERS=0 runs them in one process)
	@.ci/rootless $(PYTHON) -m pytest -n $(WORKERS) --dist loadgroup -rs $(ARGS)
	@if [ "$$(id -u)" -eq 0 ] && [ -z "$(ARGS)" ]; then \
	    echo "once more as root: the files with tests that only root can run"; \
	    there=$$(mktemp -d) && $(PYTHON) -m pytest -q -p no:cacheprovider -rs --basetemp="$$there/t" $(ROOT_TESTS); \
	    code=$$?; rm -rf "$$there"; exit $$code; fi

# What must be root (a virtual machine) goes first: the closing line of the tests that every machine can run comes last.
# pytest answers 5 when no test has the words of ARGS.
.PHONY: test-host
test-host: deps-host ## the slow tests of the whole system: real workloads in the cage, a VM with cgroup v2 (as root); minutes
	@$(PYTHON) -m agent.devkit.workloads
	@code=0; none=0; [ -z "$(ARGS)" ] || none=5; \
	if [ ! -d tests/host/vm ]; then :; \
	elif [ "$$(id -u)" -ne 0 ]; then echo "not run: tests/host/vm, which root must run"; \
	else there=$$(mktemp -d); \
	    $(PYTHON) -m pytest -p no:cacheprovider -rs --basetemp="$$there/t" $(ARGS) tests/host/vm || code=$$?; \
	    rm -rf "$$there"; [ $$code -ne $$none ] || code=0; fi; \
	slow=0; .ci/rootless $(PYTHON) -m pytest -rs --durations=10 $(ARGS) tests/host/slow || slow=$$?; \
	[ $$slow -ne $$none ] || slow=0; [ $$code -ne 0 ] || code=$$slow; exit $$code

DURATION ?= 60
SEED ?= 1
.PHONY: chaos
chaos: deps ## three agents while everything is killed, cut and mangled (DURATION=seconds SEED=n): N violations
	@mkdir -p build/chaos
	@.ci/rootless --nets $(PYTHON) -m tests.chaos --duration $(DURATION) --seed $(SEED) $(ARGS)

.PHONY: bench
bench: deps ## what the agent costs beside bare containers: a table, and build/bench.json (ARGS='--parts task,hop --rounds 15 --short')
	@mkdir -p build && .ci/rootless $(PYTHON) -m agent.bench \
	    --commit "$$(git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null)" $(ARGS) >build/bench.json.part
	@mv build/bench.json.part build/bench.json

.PHONY: waterfall
waterfall: deps ## docs/images/task.svg: where the milliseconds of a no-op task go, drawn of a real run (ARGS='--rounds 15')
	@mkdir -p build && .ci/rootless $(PYTHON) -m agent.bench.phases --waterfall $(ARGS) >build/task.svg
	@mv build/task.svg docs/images/task.svg

.PHONY: package
package: deps ## wheel, sdist, the list of their parts (CycloneDX) and digests, in dist/: the same bytes every time
	@$(PYTHON) -m agent.devkit.package

# Wheels of the oldest glibc that every part is built for, for each Python that a supported system brings.
PYTHONS ?= 3.11 3.12 3.13
ARCH ?= $(shell uname -m)
WHEELHOUSE ?= build/wheelhouse
.PHONY: wheelhouse
wheelhouse: deps ## what `install.sh --offline build/wheelhouse` takes (PYTHONS='3.11 3.13' ARCH=aarch64 WHEELHOUSE=DIR)
	@for python in $(PYTHONS); do \
	    $(PYTHON) -m pip download -qq --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
	        --python-version $$python --platform manylinux_2_28_$(ARCH) --platform manylinux_2_17_$(ARCH) \
	        --platform manylinux2014_$(ARCH) --dest $(WHEELHOUSE) -r requirements.lock -r .ci/build.lock || exit; \
	done
	@echo "$(WHEELHOUSE): $$(ls $(WHEELHOUSE)/*.whl | wc -l) wheels, for Python $(PYTHONS) on $(ARCH)"

AGENTS ?= 50
TASKS ?= 2000
SEED ?= 1

.PHONY: simulate
simulate: deps ## many agents in virtual time, killed, cut off and lied to (AGENTS=1000 TASKS=100000 SEED=7)
	@$(PYTHON) -m tests.simulate --agents $(AGENTS) --tasks $(TASKS) --seed $(SEED) $(ARGS)

.PHONY: docs
docs: deps ## the documentation as a site in build/site, strictly: a link that leads nowhere fails
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict # --quiet would hide from --strict what it counts

.PHONY: check
check: deps ## format, lint, types, layout, shell scripts
	@$(PYTHON) -m ruff format --check --quiet .
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m mypy --no-error-summary
	@.venv/bin/shellcheck $(SCRIPTS)
	@$(PYTHON) -m pytest -q -p no:cacheprovider tests/test_layout.py

.PHONY: fmt
fmt: deps ## sort imports, mend what can be mended, format
	@$(PYTHON) -m ruff check --fix --quiet . || true
	@$(PYTHON) -m ruff format .

# The versions that are locked stay; `make lock UPGRADE=--upgrade` takes the newest ones.
UPGRADE ?=
COMPILE := UV_CUSTOM_COMPILE_COMMAND="make lock" .venv/bin/uv pip compile --quiet --system-certs --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links $(UPGRADE)

.PHONY: lock
lock: deps ## write the locked versions anew from pyproject.toml
	@$(COMPILE) pyproject.toml -o requirements.lock
	@$(COMPILE) pyproject.toml -c requirements.lock --group dev --group demo --group build -o requirements-dev.lock
	@$(COMPILE) -c requirements-dev.lock --group build -o .ci/build.lock
	@$(COMPILE) -c requirements-dev.lock --group workloads -o requirements-workloads.lock
	@! grep -nE '://|index-url|find-links' requirements.lock requirements-dev.lock requirements-workloads.lock .ci/build.lock

.PHONY: clean
seccomp: deps ## write seccomp/*.json anew from seccomp/source.toml
	@$(PYTHON) -m agent.devkit.seccomp

clean: ## remove what the targets made in this folder
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
