# Everyday commands; bare `make` lists them.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Containers where an engine answers, else local processes; RUNTIME=process or RUNTIME=docker
# forces one. Processes that run already are kept.
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

##@ Run
.PHONY: up dev down logs
up: up-$(RUNTIME) ## Start every service, wait until all are healthy, print where they listen
dev: dev-$(RUNTIME) ## The same servers, but edited code is served at once and tracebacks are shown
down: down-$(RUNTIME) ## Stop every service; data stays
# copier: if edge
.PHONY: deploy rollback
deploy: ## Replace the running replicas by the code as it is, losing no request; VERSION=NAME
	@python3 deploy/rollout.py $(VERSION)
rollback: ## Return to the version before, in the same way
	@python3 deploy/rollout.py --rollback
# copier: endif
# copier: if "django" in stacks
.PHONY: manage
manage: manage-$(RUNTIME) ## Run a Django command: make manage ARGS=createsuperuser
# copier: endif
logs: logs-$(RUNTIME) ## Follow the logs

##@ Check
.PHONY: test doctor smoke lint
T ?= tests
test: .venv/test ## Run the tests, or some of them: make test T=tests/services/test_smoke.py
	.venv/bin/pytest $(T)

doctor: .venv/up ## Check that the files agree: timeouts, limits, trust; DIR=... for another project
	@cd $(or $(DIR),.) && PYTHONPATH=$(CURDIR) $(CURDIR)/.venv/bin/python -m serving.doctor

smoke: .venv/test ## Ask any deployment what it owes: make smoke URL=https://...; CA=FILE or INSECURE=1
	@.venv/bin/python -m tests.smoke "$(URL)"

# copier: if false
.PHONY: chaos bench
chaos: .venv/test ## Break everything under load, six minutes, and write docs/reliability.md
	CHAOS=1 .venv/bin/pytest --verbose tests/repository/test_faults.py

bench: .venv/bench ## Measure every server mode and write docs/choosing.md, a quarter of an hour; QUICK=1: two minutes
	@command -v wrk >/dev/null || { echo "wrk not found: apt install wrk, or brew install wrk" >&2; exit 1; }
	.venv/bin/python -m bench $(if $(QUICK),--quick)

# copier: endif
lint: .venv/test .venv/lint ## Run the linters and the type checker
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/hadolint Dockerfile
	$(CHECKOV) --file Dockerfile
	.venv/bin/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml deploy/dev.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
# copier: if false
	.venv/bin/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
# copier: endif
	.venv/bin/zizmor --offline --strict-collection --quiet --persona pedantic .github
	.venv/bin/compose-lint --fail-on low docker-compose.yml
# copier: if false
	.venv/bin/shellcheck .ci/*
# copier: endif
	$(if $(filter docker,$(RUNTIME)),docker build --check .)

# Apart from the lock: it excludes the packaging that pytest needs. Not asked for: a tag beside FROM (the
# build arguments have it) and HEALTHCHECK (docker-compose.yml has it, with the time that each may take).
CHECKOV = .venv/bin/uv tool run --quiet --python .venv/bin/python checkov@3.3.30 --skip-download --quiet --compact \
  --framework dockerfile --skip-check CKV_DOCKER_2,CKV_DOCKER_7

##@ Maintain
.PHONY: lock clean help
lock: .venv/lint ## Resolve all dependency groups at once and write requirements/
	.venv/bin/uv pip compile $(RESOLVE) $(GROUPS:%=--group %) --output-file .venv/all.txt
	for group in $(GROUPS); do .venv/bin/uv pip compile $(RESOLVE) --group $$group \
	  --generate-hashes --constraint .venv/all.txt --output-file requirements/$$group.txt || exit; done

clean: ## Remove the environment, the caches and the logs; data stays
# copier: if "django" in stacks
	rm -rf wsgi_app/django_site/staticfiles
# copier: endif
	rm -rf .venv .run .*_cache .hypothesis

help:
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' Makefile

# One environment for everything that runs outside containers. A file per purpose marks what
# is installed; the newest Python wins, and pyenv's and uv's are found without being on PATH.
GROUPS := $(shell awk '/^\[/ {on = /dependency-groups/} on && /^[a-z-]+ = \[$$/ {print $$1}' pyproject.toml)
RESOLVE := --quiet --universal --python-version 3.12 --upgrade --no-header --no-annotate --no-emit-index-url

# copier: filter replace(" .venv/bench", "") | replace(" bench template", "")
.venv/up: $(patsubst %,requirements/%.txt,$(filter-out test lint bench template,$(GROUPS)))
.venv/test: .venv/up requirements/test.txt
.venv/lint: requirements/lint.txt
# copier: if false
.venv/bench: .venv/up requirements/bench.txt
.venv/test: .venv/bench requirements/template.txt
# copier: endif
.venv/up .venv/bench .venv/test .venv/lint: | .venv/bin/python
# copier: endfilter
	@echo "Installing $(filter %.txt,$^)"
	@.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes $(patsubst %,-r %,$(filter %.txt,$^))
	@touch $@

.venv/bin/python:
	@for version in 3.15 3.14 3.13 3.12; do for python in python$$version \
	  $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version*/bin/python \
	  $${UV_PYTHON_INSTALL_DIR:-$$HOME/.local/share/uv/python}/cpython-$$version*/bin/python3; do \
	  $$python -c 'import ensurepip' 2>/dev/null && exec $$python -m venv .venv; \
	done; done; \
	echo "No Python 3.12 or newer with venv found: apt install python3-venv, brew install python, or uv python install" >&2; exit 1

# What `up` says the addresses of: service:port, as .env.example has them.
SERVICES := $(shell awk -F '[_=]' '/^[A-Z]+_PORT=/ {print tolower($$1) ":" $$3}' .env.example)

# Containers

.PHONY: up-docker dev-docker down-docker logs-docker
up-docker:
	@echo "Running containers: $(WHY)."
	@docker compose up --build --detach --wait --remove-orphans || { docker compose logs --tail 20; exit 1; }
# copier: if edge
	@for pair in $(SERVICES); do echo "$${pair%:*} http://$$(docker compose port edge $${pair#*:})"; done
	@docker compose exec -T edge sh -c 'for pair in $(SERVICES); do \
	  echo "$${pair%:*} https://$${pair%:*}.$$DOMAIN:$$EDGE_HTTPS_PORT"; done'

# copier: else
# copier: print '\t@for pair in $(SERVICES); do name=$${pair%:*}; \\\n'
# copier: print '\t  echo "$$name http://$$(docker compose port $$name 8000)"; done\n'
# copier: print "\n"
# copier: endif

dev-docker:
	docker compose --file docker-compose.yml --file deploy/dev.yml up --build --remove-orphans

down-docker:
# copier: if edge
# A container that crashes while its pre_stop runs fails the first command; the engine knows no pre_stop.
	docker compose down --remove-orphans || \
	  { docker stop $$(docker compose ps --all --quiet) && docker compose down --remove-orphans; }

# copier: else
# copier: print '\tdocker compose down --remove-orphans\n'
# copier: print "\n"
# copier: endif

logs-docker:
	docker compose logs --follow --tail 100

# copier: if "django" in stacks
.PHONY: manage-docker
manage-docker:
	docker compose run --rm django python -m wsgi_app.django_site $(ARGS)

# copier: endif
# Processes, under supervisor. Variables come from the shell, then .env, then .env.example.

.PHONY: up-process start-process dev-process down-process logs-process
# copier: if "django" in stacks
.PHONY: manage-process
# copier: endif
WITH_ENV = $(foreach file,$(DEV) $(wildcard .env .env.example),.venv/bin/dotenv --file $(file) run --no-override --)
# copier: if "django" in stacks
MANAGE = $(WITH_ENV) .venv/bin/python -m wsgi_app.django_site
# copier: endif
CONTROL = .venv/bin/supervisorctl --configuration deploy/supervisord.conf
SOCKET = .run/supervisor.sock
# `make dev` waits for nobody: what is broken shows its traceback, and the next edit heals it.
READY = $(if $(DEV),:,.venv/bin/python -m serving.health --wait 60 $$url/readyz)
STOP = if [ -S $(SOCKET) ]; then $(CONTROL) shutdown || rm -f $(SOCKET); fi; while [ -S $(SOCKET) ]; do sleep 0.2; done

up-process: .venv/up
	@echo "Running local processes: $(WHY)."
	@mkdir -p .run
	@$(CONTROL) pid >/dev/null 2>&1 || $(MAKE) start-process RUNTIME=process
	@{ $(CONTROL) start all && $(WITH_ENV) sh -c 'for pair in $(SERVICES); do name=$${pair%:*}; \
	  url=http://127.0.0.1:$$(printenv $$(echo $$name | tr a-z A-Z)_PORT); \
	  $(READY) || exit; \
	  echo "$$name $$url"; done'; } || { tail -n 20 .run/*.log; $(STOP); exit 1; }

start-process:
# copier: if "django" in stacks
	@$(MANAGE) migrate --noinput
	@$(MANAGE) collectstatic --noinput -v 0
# copier: endif
	@$(WITH_ENV) .venv/bin/supervisord --configuration deploy/supervisord.conf

# Anew, as those that run already do not look at what is edited; Ctrl-C ends the logs, then the servers.
dev-process: export DEV = deploy/dev.env
dev-process: .venv/up down-process
	@trap : INT TERM; make up-process RUNTIME=process || { $(STOP); exit 1; }; tail -n 100 -F .run/*.log; $(STOP)

# copier: if "django" in stacks
manage-process: .venv/up
	@$(MANAGE) $(ARGS)

# copier: endif
down-process:
	@$(STOP)

logs-process:
	tail -n 100 -F .run/*.log
