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
.PHONY: up down logs manage
up: up-$(RUNTIME) ## Start every service, wait until all are healthy, print where they listen
down: down-$(RUNTIME) ## Stop every service; data stays
logs: logs-$(RUNTIME) ## Follow the logs
manage: manage-$(RUNTIME) ## Run a Django command: make manage ARGS=createsuperuser

##@ Check
.PHONY: test doctor smoke bench guide lint
T ?= tests
test: .venv/test ## Run the tests, or some of them: make test T=tests/test_smoke.py
	.venv/bin/pytest $(T)

doctor: .venv/up ## Check that the files agree: timeouts, limits, trust, how the server is started
	@.venv/bin/python -m serving.doctor

smoke: .venv/test ## Ask any deployment what it owes: make smoke URL=https://...; CA=FILE or INSECURE=1
	@.venv/bin/python -m tests.smoke "$(URL)"

bench: .venv/bench ## Measure every server mode side by side, a quarter of an hour; QUICK=1: two minutes
	@command -v wrk >/dev/null || { echo "wrk not found: apt install wrk, or brew install wrk" >&2; exit 1; }
	.venv/bin/python -m bench $(if $(QUICK),--quick)

guide: .venv/bench ## Write docs/choosing.md and its pictures from the last full measurement
	.venv/bin/python -m bench.guide

lint: .venv/test .venv/lint ## Run the linters and the type checker
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/hadolint Dockerfile
	$(CHECKOV) --file Dockerfile
	.venv/bin/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	.venv/bin/compose-lint docker-compose.yml
	.venv/bin/shellcheck .ci/*
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
	rm -rf .venv .run .*_cache .hypothesis wsgi_app/django_site/staticfiles

help:
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' Makefile

# One environment for everything that runs outside containers. A file per purpose marks what
# is installed; the newest Python wins, and pyenv's and uv's are found without being on PATH.
GROUPS := django flask fastapi fastapi-hybrid process test bench lint
RESOLVE := --quiet --universal --python-version 3.12 --upgrade --no-header --no-annotate --no-emit-index-url

.venv/up: $(patsubst %,requirements/%.txt,$(filter-out test bench lint,$(GROUPS)))
.venv/bench: .venv/up requirements/bench.txt
.venv/test: .venv/bench requirements/test.txt
.venv/lint: requirements/lint.txt
.venv/up .venv/bench .venv/test .venv/lint: | .venv/bin/python
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

# Containers

.PHONY: up-docker down-docker logs-docker manage-docker
up-docker:
	@echo "Running containers: $(WHY)."
	@docker compose up --build --detach --wait --remove-orphans || { docker compose logs --tail 20; exit 1; }
	@for pair in django:8001 flask:8002 fastapi:8003; do \
	  echo "$${pair%:*} http://$$(docker compose port edge $${pair#*:})"; done
	@docker compose exec -T edge sh -c 'for name in django flask fastapi; do \
	  echo "$$name https://$$name.$$DOMAIN:$$EDGE_HTTPS_PORT"; done'

down-docker:
	docker compose down --remove-orphans

logs-docker:
	docker compose logs --follow --tail 100

manage-docker:
	docker compose run --rm django python -m wsgi_app.django_site $(ARGS)

# Processes, under supervisor. Variables come from the shell, then .env, then .env.example.

.PHONY: up-process down-process logs-process manage-process
WITH_ENV = $(foreach file,$(wildcard .env .env.example),.venv/bin/dotenv --file $(file) run --no-override --)
MANAGE = $(WITH_ENV) .venv/bin/python -m wsgi_app.django_site
CONTROL = .venv/bin/supervisorctl --configuration deploy/supervisord.conf
SOCKET = .run/supervisor.sock
STOP = if [ -S $(SOCKET) ]; then $(CONTROL) shutdown || rm -f $(SOCKET); fi; while [ -S $(SOCKET) ]; do sleep 0.2; done

up-process: .venv/up
	@echo "Running local processes: $(WHY)."
	@mkdir -p .run
	@$(CONTROL) pid >/dev/null 2>&1 || { $(MANAGE) migrate --noinput && $(MANAGE) collectstatic --noinput -v 0 && \
	  $(WITH_ENV) .venv/bin/supervisord --configuration deploy/supervisord.conf; }
	@{ $(CONTROL) start all && $(WITH_ENV) sh -c 'for pair in django:$$DJANGO_PORT flask:$$FLASK_PORT fastapi:$$FASTAPI_PORT; do \
	  url=http://127.0.0.1:$${pair#*:}; .venv/bin/python -m serving.health --wait 60 $$url/readyz || exit; \
	  echo "$${pair%:*} $$url"; done'; } || { tail -n 20 .run/*.log; $(STOP); exit 1; }

down-process:
	@$(STOP)

logs-process:
	tail -n 100 -F .run/*.log

manage-process: .venv/up
	@$(MANAGE) $(ARGS)
