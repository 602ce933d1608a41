# The stages of .ci/run and .ci/weekly, for GNU make. After the colon of a stage stand the stages that it waits for:
# because it needs what they make, or because two cores are busy with one suite. `.ci/stage` runs a stage's command.

RUN := lint demo embedded-and-3.10 4.3 newest-python packages felt
WEEKLY := all-cases 4.0 trixie-python forky-python documentation-on-debian programs pika typer rstream compose conformance \
	simulation soak siege differ mutants audit
.PHONY: run weekly list install images $(RUN) $(WEEKLY)
run: $(RUN)
weekly: $(WEEKLY)
list: ; @python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' $(WEEKLY)

stage = @.ci/stage $@
in_docker = $(if $(DOCKER),$(stage),@echo "NOT RUN, because no Docker daemon can run here:")

install: ; $(stage) .ci/install
images: ; $(in_docker) .ci/images bookworm:3.10 trixie:4.0 forky:4.3

# For each change
lint: install ; $(stage) make lint site
demo: install ; $(stage) make demo
embedded-and-3.10: install images lint demo
	$(stage) $(if $(DOCKER),.ci/suite-on rabbitmq:3.10-debian,env CI=1 make test PYTEST=.ci/pytest TEST_OPTIONS=--on-both-brokers)
4.3: embedded-and-3.10 ; $(in_docker) .ci/suite-on rabbitmq:4.3-debian
newest-python: 4.3 ; $(in_docker) .ci/suite-on-python rabbitmq:4.3-debian $(QUICK)
packages: 4.3 ; $(stage) .ci/packages $(if $(DOCKER),rabbitmq:3.10-debian)
felt: 4.3 ; $(stage) .ci/felt

QUICK := tests/unit tests/integration tests/cli/test_start_up.py

# Weekly
all-cases: install images ; $(in_docker) env ALL_CASES=1 .ci/suite-on rabbitmq:3.10-debian
4.0: install images ; $(in_docker) .ci/suite-on rabbitmq:4.0-debian
trixie-python: install images ; $(in_docker) .ci/suite-on-python rabbitmq:4.0-debian $(QUICK)
forky-python: install images ; $(in_docker) .ci/suite-on-python rabbitmq:4.3-debian tests
documentation-on-debian: install ; $(stage) .ci/docs
programs: install ; $(stage) .ci/programs
pika typer rstream audit: install ; $(stage) .ci/$@
compose: install images ; $(in_docker) .ci/compose rabbitmq:4.0-debian
conformance soak siege differ: install ; $(stage) make $@
mutants: install
	$(stage) bash -c 'for module in $$(python3 -m tests.mutants --list | tr -d "[],\""); do make mutants MODULE=$$module; done'
simulation: install ; $(stage) make simulate SEEDS=100000
