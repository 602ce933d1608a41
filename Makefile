PYTHON ?= .venv/bin/python

DEMOS = hello-world work-queues publish-subscribe routing topics headers rpc publisher-confirms real-log

.PHONY: demo $(DEMOS:%=demo-%)

# Every tutorial in turn, checked, in half a minute. LOG=FILE names the log file for the last part.
demo:
	@$(PYTHON) -m demo

# One of them alone: make demo-hello-world, …
$(DEMOS:%=demo-%): demo-%:
	@$(PYTHON) -m demo $*
