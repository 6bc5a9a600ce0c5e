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

##@ Watch
.PHONY: status test-alert
status: ## Show every service: replicas, version, requests, errors, memory, restarts
	@$(firstword $(wildcard .venv/bin/python) python3) deploy/status.py
test-alert: ## Send an alert to ALERT_WEBHOOK_URL, and say whether it arrived
	@python3 deploy/send_alert.py
