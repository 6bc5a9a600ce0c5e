##@ This repository alone
.PHONY: chaos bench render lint-repository
chaos: .venv/test ## Break everything under load, twelve minutes, and write docs/reliability.md
	CHAOS=1 .venv/bin/pytest --verbose tests/repository/test_faults.py

bench: .venv/test ## Measure the server modes and write docs/choosing.md; PART=edge, metrics, ...; QUICK=1
	.venv/bin/python -m bench $(PART) $(if $(QUICK),--quick)

render: .venv/test ## Show what a project would lose: make render STACKS=flask,fastapi
	.venv/bin/python -m bench.render $(STACKS)

lint: lint-repository
lint-repository: .venv/test lint-kubernetes
	$(CHECKOV) --framework dockerfile --skip-check CKV_DOCKER_2,CKV_DOCKER_7 --file Dockerfile
	$(CHECKOV) --framework kubernetes --skip-check CKV_K8S_25,CKV_K8S_35 --directory .venv/kubernetes
	.venv/bin/hadolint bench/Dockerfile
	.venv/bin/shellcheck .ci/*
	.venv/bin/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml

# Not in the lock: checkov excludes the `packaging` version that pytest needs, so uv downloads it into
# an environment of its own. Skipped: a tag beside FROM (the arguments name it), HEALTHCHECK
# (docker-compose.yml has it), the edge's NET_BIND_SERVICE, and secrets in variables (as in Compose).
CHECKOV = .venv/bin/uv tool run --quiet --python .venv/bin/python checkov@3.3.30 --skip-download \
  --quiet --compact
