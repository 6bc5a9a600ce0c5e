.PHONY: swarm-deploy
swarm-deploy: ## Deploy the images of VERSION=NAME on Docker Swarm, losing no request (docs/fleet.md)
	@python3 -m checks.variables
	@python3 -m deploy.swarm
