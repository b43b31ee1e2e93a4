# Two commands matter: `make quickstart` and `make test`. Both set up a virtual environment on their own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
RUN := runs/quickstart
EXPORT := saved_models/quickstart
SELECT ?= not slow
# A file at a time, in the order of the folders: those of many small files come last, so that no worker ends long before another.
SPREAD := --dist loadfile --no-loadscope-reorder
ON_JAX := $(addprefix tests/,layers fusion encoders losses models decoding)

.PHONY: help quickstart test test-jax lint bench clean
help:
	@echo "make quickstart   set up, train on the built-in pictures, evaluate, draw, export, verify"
	@echo "make test         set up and run the tests, on TensorFlow, and on JAX where it is installed"
	@echo "make test-jax     the tests of what uses Keras alone, on JAX; SELECT=\"\" with those that are slow there"
	@echo "make lint         ruff and mypy"
	@echo "make bench        the benchmarks, one JSON line a figure"

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[builtin]"
	touch $@

$(VENV)/.tests: $(STAMP)
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

quickstart: $(STAMP)
	$(BIN)/mmfusion train configs/quickstart.yaml --run $(RUN)
	$(BIN)/mmfusion evaluate $(RUN)
	$(BIN)/mmfusion export $(RUN) --output $(EXPORT) --overwrite
	$(BIN)/mmfusion verify $(EXPORT) --run $(RUN)
	@echo
	@echo "Pictures: $(RUN)/evaluation/retrieval.png, captions.png, attention.png and $(RUN)/figures/learning_curves.png"
	@echo "Try:      $(BIN)/mmfusion caption $(EXPORT) PICTURE..."
	@echo "          $(BIN)/mmfusion search $(EXPORT) \"red heart\" FOLDER"

test: $(VENV)/.tests
	mkdir -p test-results
	$(BIN)/python -m pytest -n $(WORKERS) $(SPREAD) -q -rs --durations=15 --junitxml=test-results/junit.xml
	@if $(BIN)/python -c "import jax" 2>/dev/null; then $(MAKE) test-jax; else echo "JAX is not installed: make test-jax was not run"; fi

test-jax: $(VENV)/.tests
	mkdir -p test-results
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n $(WORKERS) $(SPREAD) -q -rs -m "$(SELECT)" --durations=15 \
		--junitxml=test-results/junit-jax.xml $(ON_JAX)

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.tests
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/encoding.py
	$(BIN)/python benchmarks/attention.py

clean:
	rm -rf $(VENV) build dist test-results *.egg-info
