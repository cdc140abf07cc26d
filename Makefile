# The index of hack/. Each target runs one script, and the script's --help says more.
.PHONY: help demo test fast rotation cluster soak bench generate image fuzz mutants plugin

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
demo: ## Show the main job on a real cluster, step by step (root)
	hack/demo
test: ## Run every test, on a real cluster too (root)
	hack/test
fast: ## Run what needs no cluster: lints, generated files, unit and repository tests
	hack/test fast
rotation: ## Run the tests of certificates and leaders on two API servers; FILTER=name
	hack/test rotation $(FILTER)
cluster: ## Run the tests on a real cluster (root); FILTER=name
	hack/test cluster $(FILTER)
soak: ## Renew CAs under load; GENERATIONS=20
	hack/soak $(GENERATIONS)
bench: ## Measure; BENCH=policy, simulate, admission, footprint, eviction or connections
	hack/bench $(or $(BENCH),policy)
generate: ## Write the JSON schema, the pages of docs/ and manifests/install.yaml
	hack/generate
image: ## Build the image
	hack/image
fuzz: ## Fuzz what reads bytes of others; SECONDS=60 for each target
	hack/fuzz $(SECONDS)
mutants: ## Change decisions about evictions, and list what the tests do not notice
	hack/mutants
plugin: ## Build the kubectl plugin
	hack/krew build
