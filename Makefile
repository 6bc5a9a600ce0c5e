# Everyday commands; bare `make` lists them.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Containers where an engine answers, otherwise local processes; RUNTIME=docker or process decides.
ifdef RUNTIME
WHY := RUNTIME=$(RUNTIME) says so
else ifneq ($(wildcard .run/supervisor.sock),)
RUNTIME := process
WHY := they run already; "make down" first, to run edited code
else
RUNTIME := $(shell docker info >/dev/null 2>&1 && echo docker || echo process)
WHY := $(if $(filter docker,$(RUNTIME)),a Docker engine answers,no Docker engine answers)
endif
ifeq ($(filter docker process,$(RUNTIME)),)
$(error RUNTIME='$(RUNTIME)': must be docker or process)
endif
PROCESS := .venv/bin/python -m deploy.process
# What `make deploy` has built stays as it is, so that `make rollback` finds it.
BUILD := $(if $(shell grep -s '^PREVIOUS_VERSION=.' .env),--no-build,--build)

##@ Run
.PHONY: up dev down logs up-docker dev-docker down-docker logs-docker
.PHONY: up-process dev-process down-process logs-process
up: up-$(RUNTIME) ## Start every service and wait until all are healthy
dev: dev-$(RUNTIME) ## The same servers; edited code is served immediately, tracebacks are shown
down: down-$(RUNTIME) ## Stop every service; data stays
logs: logs-$(RUNTIME) ## Follow the logs

up-docker:
	@echo "Running containers: $(WHY)."
	@python3 -m checks.variables
	@docker compose up $(BUILD) --detach --wait --remove-orphans || python3 -m deploy.failures
	@docker compose ps --format 'table {{.Service}}\t{{.Status}}\t{{.Ports}}'
dev-docker:
	@python3 -m checks.variables
	@python3 -m checks.readable
	docker compose -f docker-compose.yml -f deploy/dev.yml up --build --remove-orphans
down-docker:
	docker compose --profile '*' down --remove-orphans
logs-docker:
	docker compose logs --follow --tail 100
up-process dev-process: %-process: .venv/up
	@echo "Running local processes: $(WHY)."
	@.venv/bin/python -m checks.variables
	@$(PROCESS) $*
down-process logs-process: %-process: .venv/up
	@$(PROCESS) $*

# Django's commands. Those that write code run as you, in the working copy; others on its data.
.PHONY: manage manage-docker manage-process
WRITES_CODE := $(filter makemigrations startapp,$(firstword $(ARGS)))
AS_YOU := --no-deps --user $(shell id -u) --volume ./wsgi_app:/app/wsgi_app \
  --env DJANGO_SECRET_KEY=unused --env DATABASE_URL=sqlite:////tmp/db.sqlite3 \
  --env COMPOSE_PROFILES=
manage: manage-$(RUNTIME) ## Run a Django command: make manage ARGS=createsuperuser
manage-docker:
	docker compose run --rm $(filter --build,$(BUILD)) $(if $(WRITES_CODE),$(AS_YOU)) django \
	  python -m wsgi_app.django_site $(ARGS)
manage-process: .venv/up
	@$(PROCESS) manage $(ARGS)

##@ Check
.PHONY: test test-slow test-all doctor smoke lint lock clean help
PARALLEL := -n auto --dist loadgroup
test: .venv/test ## Test what a change can break, a few minutes; T=tests/unit for a part
	.venv/bin/pytest $(or $(T),$(PARALLEL) -m "not slow")
test-slow: .venv/test ## The rest: deployments under load, hostile clients, the faults
	.venv/bin/pytest $(PARALLEL) -m "slow and not alone"
	.venv/bin/pytest -m alone
test-all: test test-slow ## Both
doctor: .venv/up ## Check that the files agree: timeouts, limits, trust; DIR=... for another project
	@.venv/bin/python -m checks.doctor $(DIR)
smoke: .venv/test ## Check any deployment from outside: URL=https://...; CA=FILE or INSECURE=1
	@.venv/bin/python -m checks.smoke "$(URL)"
lint: .venv/test ## Run the linters and the type checker
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/hadolint Dockerfile
	.venv/bin/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.compose-spec deploy/dev.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.compose-spec deploy/swarm/stack.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	.venv/bin/zizmor --offline --strict-collection --quiet --persona pedantic .github
	.venv/bin/compose-lint --no-env --quiet --fail-on low docker-compose.yml
	$(if $(filter docker,$(RUNTIME)),docker build --check .)

##@ Maintain
lock: .venv/test ## Write requirements/ for what pyproject.toml asks; UPGRADE=1 takes new versions
	.venv/bin/python requirements/lock.py $(if $(UPGRADE),--upgrade)
clean: ## Remove the environment, the caches and the logs; data stays
	rm -rf .venv .run .*_cache .hypothesis wsgi_app/*/staticfiles
help:
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One environment for everything outside containers. A file in it marks what is installed.
TOOLS := $(wildcard requirements/test.txt requirements/lint.txt requirements/bench.txt)
.venv/up: $(filter-out $(TOOLS),$(wildcard requirements/*.txt))
.venv/test: .venv/up $(TOOLS)
.venv/up .venv/test: | .venv/bin/python
	.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes \
	  $(patsubst %,--requirement=%,$(filter %.txt,$^))
	@touch $@
.venv/bin/python:
	@sh deploy/process/create-venv
include $(wildcard */targets.mk */*/targets.mk) # of folders that bring their own
