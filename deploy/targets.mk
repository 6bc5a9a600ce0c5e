# make would replace $(...) in the version, and could run a command that stands there.
$(if $(findstring $$,$(value VERSION)),$(error VERSION: must be an image tag, without $$))

##@ Deploy
.PHONY: deploy rollback prune pin
deploy: ## Replace the running version, losing no request: VERSION=NAME; PULL=1 for new base images
	@python3 -m checks.variables
	@python3 deploy/rollout.py $(if $(PULL),--pull) -- $${VERSION:+"$$VERSION"}
rollback: ## Return to the version before, in the same way
	@python3 deploy/rollout.py --rollback
prune: ## Remove the images of all versions but the running one and the one before
	@python3 deploy/rollout.py --prune
pin: ## Write the digests of the base images into the Dockerfile, or newer ones
	@python3 -m deploy.base_images

# Django's database and files, the certificates and .env. docs/operations.md explains the commands.
$(if $(findstring $$,$(value BACKUP)),$(error BACKUP: must be the path of a backup, without $$))
.PHONY: backup restore restore-test
BACKUP_PYTHON := $(if $(filter process,$(RUNTIME)),.venv/bin/python,python3)
backup restore restore-test: $(if $(filter process,$(RUNTIME)),.venv/up)
backup: ## Write one checked file to BACKUP_DIR: database, files, keys, certificates, .env
	@python3 -m checks.variables
	@$(BACKUP_PYTHON) -m deploy.backup --runtime $(RUNTIME) backup
restore: ## Restore BACKUP=FILE; FORCE=1 replaces a database and keeps the old one
	@$(BACKUP_PYTHON) -m deploy.backup --runtime $(RUNTIME) $(if $(FORCE),--force) restore \
	  -- $${BACKUP:+"$$BACKUP"}
restore-test: ## Restore the newest backup, or BACKUP=FILE, into a database for the test alone
	@python3 -m checks.variables
	@$(BACKUP_PYTHON) -m deploy.backup --runtime $(RUNTIME) restore-test -- $${BACKUP:+"$$BACKUP"}

# Each overlay is rendered and compared with the schemas of the oldest and of the newest version of
# Kubernetes that it is for.
OVERLAYS := $(notdir $(wildcard deploy/kubernetes/overlays/*))
.PHONY: lint-kubernetes
lint: lint-kubernetes
lint-kubernetes: $(OVERLAYS:%=.venv/kubernetes/%.yaml)
	$(if $^,.venv/bin/kubernetes-validate --strict --quiet --kubernetes-version 1.34 $^)
	$(if $^,.venv/bin/kubernetes-validate --strict --quiet --kubernetes-version 1.37 $^)
.venv/kubernetes/%.yaml: .venv/test ALWAYS
	@mkdir -p .venv/kubernetes
	.venv/bin/kubectl kustomize deploy/kubernetes/overlays/$* --output $@
ALWAYS:

##@ Watch
.PHONY: status test-alert
status: ## Show every service: replicas, version, requests, errors, memory, restarts
	@$(firstword $(wildcard .venv/bin/python) python3) deploy/status.py
test-alert: ## Send an alert to ALERT_WEBHOOK_URL, and say whether it arrived
	@python3 deploy/send_alert.py
