# Every task is one call of the bootstrap, which sets up what is missing and then does it: `make help` lists them.
PYTHON ?= python3
ARGS ?=
TASKS := help run stop test test-unit test-integration test-e2e test-faults test-cluster test-install check images proto bench bench-cluster lock setup clean exec

.DEFAULT_GOAL := help
.PHONY: $(TASKS)

$(TASKS):
	@$(PYTHON) deploy/bootstrap.py $@ $(ARGS)
