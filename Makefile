# Start with `make demo` or `make test`. Everything is installed into .venv, which you need not activate.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --disable-pip-version-check --constraint constraints.txt
# With --quiet, pip does not name the library that cannot be installed. If it fails, run it again without --quiet.
install = $(PIP) --quiet --editable $(1) || $(PIP) --editable $(1)
# Tests wait more than they compute, so six workers suit two cores.
WORKERS ?= 6
PYTEST ?= $(BIN)/pytest
PAGE_TESTS := ui picture crowded_picture play_page pictures

TUTORIALS := hello-world work-queues publish-subscribe routing topics headers rpc publisher-confirms delayed-messages \
	stream-hello-world stream-offset-tracking \
	amqp10-hello-world amqp10-work-queues amqp10-publish-subscribe amqp10-routing amqp10-topics amqp10-rpc \
	incident

.PHONY: setup demo demo-cluster $(TUTORIALS:%=demo-%) demo-real-log test test-all test-page test-embedded test-rabbitmq soak siege simulate record differ mutants conformance corpus lint lint-page docs site bench \
	pictures up down clean
.DEFAULT_GOAL := help

# Many containers turn off Python's bytecode cache. Each worker would then recompile all tests, and each command all of
# mqtool.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help:  ## show these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-24s %s\n", $$1, $$2}'

setup: .venv/installed  ## install mqtool into .venv
	@echo "mqtool is installed. Next, run: $(BIN)/mqtool tutorial run hello-world"

.venv/installed: pyproject.toml constraints.txt
	@test -d .venv || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "cannot create .venv; on Debian and Ubuntu, first run: apt-get install python3-venv" >&2; exit 1; }
	@$(call install,.)
	@touch $@

.venv/installed-dev: .venv/installed
	@$(call install,'.[dev]')
	@touch $@

demo: .venv/installed  ## run every tutorial, then send a real log file (or LOG=FILE) through an exchange, and check the counts
	@$(BIN)/mqtool tutorial run --no-pause --lines $(TUTORIALS)
	@$(BIN)/python -m demo.real_log $(LOG)

$(TUTORIALS:%=demo-%): demo-%: .venv/installed
	@$(BIN)/mqtool tutorial run --no-pause --lines $*

demo-real-log: .venv/installed
	@$(BIN)/python -m demo.real_log $(LOG)

demo-cluster: .venv/installed  ## start three RabbitMQ nodes, and kill one of them while messages flow
	@$(BIN)/mqtool drill kill-node

test: .venv/installed-dev  ## run the tests, and a few cases of the long ones; on RabbitMQ, if available, mainly those of the client
	$(PYTEST) -n $(WORKERS) --dist worksteal -q --durations=25 $(TEST_OPTIONS)

test-all: export CI := 1
test-all: export ALL_CASES := 1
test-all: TEST_OPTIONS := --on-both-brokers
test-all: test  ## run every test on both brokers, with all of its cases

test-page: export CI := 1
test-page: .venv/installed-dev  ## run the tests of the page of mqtool ui in a browser (Debian: chromium, chromium-driver)
	$(PYTEST) -n $(WORKERS) --dist worksteal -q $(PAGE_TESTS:%=tests/cli/test_%.py)

lint: .venv/installed-dev  ## check style, types and imports; with npm, also the page of mqtool ui
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	@if ! command -v npm >/dev/null; then echo "the page of mqtool ui was not checked: npm is not installed"; \
	elif ! $(MAKE) --silent node_modules/.installed; then \
		echo "the page of mqtool ui was not checked: npm could not install what package.json lists"; \
	else $(MAKE) --no-print-directory lint-page; fi

PAGE = mqtool/ui/page

lint-page: node_modules/.installed  ## check the style and the types of the page's JavaScript, CSS and HTML
	node_modules/.bin/prettier --check --log-level warn $(PAGE) package.json eslint.config.mjs
	node_modules/.bin/eslint --max-warnings 0 $(PAGE)
	node_modules/.bin/tsc $(TYPES) $(PAGE)/*.js

TYPES = --noEmit --allowJs --checkJs --strict false --target es2022 --module esnext --moduleResolution bundler \
	--lib es2022,dom,dom.iterable,dom.asynciterable

node_modules/.installed: package.json
	@npm install --no-save --no-package-lock --ignore-scripts --engine-strict --no-audit --no-fund --silent --prefer-offline \
		--fetch-retries 0 --fetch-timeout 20000
	@touch $@

.venv/installed-docs: .venv/installed
	@$(call install,'.[docs]')
	@touch $@

.venv/installed-mutants: .venv/installed-dev
	@$(call install,'.[mutants]')
	@touch $@

.venv/installed-release: .venv/installed
	@$(call install,'.[release]')
	@touch $@

test-embedded: .venv/installed-dev  ## run the tests that need no RabbitMQ
	$(PYTEST) -n $(WORKERS) --dist worksteal -q -k 'not [rabbitmq'

test-rabbitmq: .venv/installed-dev  ## run tests/protocol and tests/integration on RabbitMQ (at MQTOOL_TEST_URL, if set)
	$(PYTEST) -n $(WORKERS) --dist worksteal -q -k '[rabbitmq' tests/protocol tests/integration

RECORDINGS := docs/pictures/messages.html docs/pictures/tutorials.html

docs: $(RECORDINGS) site  ## write the reference and the man page, make recordings, and build the site: docs/_build

site: .venv/installed-dev .venv/installed-docs  ## the same as docs, but without the recordings, which take minutes to make
	$(BIN)/python -m docs.generate
	$(BIN)/python -m sphinx -q -W --keep-going --fresh-env docs docs/_build
	@echo "docs/_build/index.html"

# Recordings of real runs take about eight minutes to make, so only missing ones are made. `make clean` removes them.
$(RECORDINGS): docs/pictures/%.html: | .venv/installed
	@$(BIN)/python -m demo.recordings $*

bench: .venv/installed-dev up  ## run the benchmarks: mqtool and comparable programs alternately
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.rpc
	$(BIN)/python -m benchmarks.exec
	$(BIN)/python -m benchmarks.delay
	$(BIN)/python -m benchmarks.replay
	$(BIN)/python -m benchmarks.topology
	$(BIN)/python -m benchmarks.listing
	$(BIN)/python -m benchmarks.embedded_peer
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.large
	$(BIN)/python -m benchmarks.tap
	$(BIN)/python -m benchmarks.ui

soak: .venv/installed-dev  ## cause random faults on queues, delays and streams; then test malformed connections, requests and data directories (SEED=1 repeats a run; Linux, as root)
	$(BIN)/python -m tests.soak --seconds $(or $(SOAK_SECONDS),300) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.siege --seconds $(or $(SIEGE_SECONDS),1800) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.protocol.hostile_requests --seconds $(or $(REQUESTS_SECONDS),600) $(if $(SEED),--seed $(SEED))
	MQTOOL_EXAMPLES=$(or $(DIRECTORIES),3000) $(BIN)/pytest -q tests/protocol/test_data_directory.py -k 'surviv or corrupted_definition' --timeout 3600

siege: .venv/installed-dev  ## run attacks for hours: a user with few permissions forges data that an administrator's commands read, and clients send the largest legal frames
	MQTOOL_EXAMPLES=$(or $(FORGERIES),9000) $(BIN)/pytest -q -s tests/cli/test_claims.py -k 'no_forged and embedded'
	$(BIN)/python -m tests.protocol.costs --seconds $(or $(COSTS_SECONDS),3600) $(if $(SEED),--seed $(SEED))

simulate: .venv/installed-dev  ## run the embedded broker on a virtual clock, network and disk (SEEDS=1000 FIRST=0, or SEED=7 to print its history)
	$(BIN)/python -m tests.simulation --processes $$(nproc) --seeds $(or $(SEEDS),1000) \
		--first $(or $(FIRST),0) $(if $(SEED),--seed $(SEED))

record: .venv/installed-dev  ## record the answers of RabbitMQ at MQTOOL_TEST_URL in tests/recordings/VERSION (VERSION=4.3)
	@mkdir -p tests/recordings/$(VERSION)
	$(BIN)/python -m tests.conversations $(VERSION) $(SUBJECTS)
	$(if $(SUBJECTS),,$(BIN)/python -m tests.protocol.management_requests $${MQTOOL_TEST_MANAGEMENT:-http://127.0.0.1:15672} \
		>tests/recordings/$(VERSION)/management.ndjson)

differ: .venv/installed-dev  ## compare the embedded broker with RabbitMQ (at MQTOOL_TEST_URL, or a private node) after random operations, for an hour (SECONDS=3600 FIRST=0, or SEED=7)
	$(BIN)/python -m tests.differ --seconds $(or $(SECONDS),3600) --first $(or $(FIRST),0) $(if $(SEED),--seed $(SEED))

mutants: .venv/installed-mutants  ## make many small changes to MODULE=mqtool/routing.py, and show those that its tests do not notice
	$(BIN)/python -m tests.mutants $(MODULE)

conformance: .venv/installed-dev  ## run the client libraries' own tests on both brokers, and write docs/reference/conformance.md (SUITES="kombu aiormq" runs only these)
	$(BIN)/python -m tests.conformance $(SUITES)

corpus: .venv/installed-dev  ## record again what other clients publish (see tests/corpus/README.md)
	GO111MODULE=off GOPATH=/usr/share/gocode $(BIN)/python -m tests.corpus

pictures: .venv/installed  ## make the pictures of the README and docs/, from real runs
	@$(BIN)/python -m demo.pictures
	@$(BIN)/python -m demo.screencast

up: .venv/installed  ## start a broker, unless one is reachable
	$(BIN)/mqtool broker up

down: .venv/installed  ## stop the broker that `make up` started
	$(BIN)/mqtool broker down

clean:  ## remove .venv, the site, recordings, packages and caches; keep the broker's data
	rm -rf .venv docs/_build $(RECORDINGS) demo-output build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
