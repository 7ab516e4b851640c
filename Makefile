# Each target sets itself up in .venv (test-lowest in .venv-lowest); a second call uses what is there. Needs Python 3.11 or later, git and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# Test processes side by side.
WORKERS ?= auto
# Where this is set every process compiles PyTorch and timm anew: 19 seconds for an import that takes 7.
unexport PYTHONDONTWRITEBYTECODE

# The lowest versions of everything that pyproject.toml allows, for test-lowest; without the app, whose Gradio needs a newer
# huggingface-hub than share does.
LOWEST := .venv-lowest
LOWEST_READY := $(LOWEST)/ready

.PHONY: demo test test-slow test-long test-lowest test-networks test-exports test-yolo test-libraries test-cam test-keras sanitize aarch64 docs dist lint bench bench-kernels setup setup-lowest clean

# The kernels first, which are set-up: built once, in a minute; without a compiler the demo does without.
demo: $(READY)
	-@$(BIN)/csham doctor --build > /dev/null
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

# The rest of what .ci/run runs.
test-slow: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

# Everything about all 57 networks of tests/attach/networks.py: a quarter of an hour on two cores.
test-networks: $(READY)
	CSHAM_ALL_NETWORKS=1 $(BIN)/python -m pytest -n $(WORKERS) tests/attach/test_every_network.py \
		tests/attach/fusing/test_epilogue.py tests/attach/test_acceleration.py tests/backbones/test_create.py

# Every backbone under every strategy, and every attention, through ONNX and PT2: hours on two cores.
# EXPORTS takes a part of them: make test-exports EXPORTS="resnet18 and onnx".
test-exports: $(READY)
	CSHAM_ALL_NETWORKS=1 CSHAM_LONG_TESTS=1 $(BIN)/python -m pytest -n $(WORKERS) tests/export/test_every_network.py -k "$(EXPORTS)"

# What takes a minute or more each: compiling, clusters, many processes, studies from the documentation.
test-long: $(READY) test-yolo test-libraries test-cam test-keras
	CSHAM_LONG_TESTS=1 $(BIN)/python -m pytest -n $(WORKERS) -m long

# Ultralytics is under the AGPL, so it is no dependency, not even of the tests: an environment of its own, on top of .venv.
test-yolo: $(READY)
	test -x build/yolo/bin/python || $(BIN)/python -m venv build/yolo
	echo "import site; site.addsitedir('$(CURDIR)/$$(echo .venv/lib/python*/site-packages)')" \
		> $$(echo build/yolo/lib/python*/site-packages)/csham.pth
	$(BIN)/uv pip install --quiet --python build/yolo/bin/python --no-deps \
		ultralytics ultralytics-thop opencv-python-headless psutil polars polars-runtime-32 requests
	CSHAM_LONG_TESTS=1 build/yolo/bin/python -m pytest tests/attach/test_ultralytics.py

# Other libraries' networks, none of which csham needs: an environment of its own likewise.
test-libraries: $(READY)
	test -x build/libraries/bin/python || $(BIN)/python -m venv build/libraries
	echo "import site; site.addsitedir('$(CURDIR)/$$(echo .venv/lib/python*/site-packages)')" \
		> $$(echo build/libraries/lib/python*/site-packages)/csham.pth
	$(BIN)/uv pip install --quiet --python build/libraries/bin/python --no-deps \
		segmentation-models-pytorch transformers tokenizers regex monai
	CSHAM_LONG_TESTS=1 build/libraries/bin/python -m pytest tests/attach/test_libraries.py

# pytorch-grad-cam brings OpenCV, which nothing else needs: an environment of its own too.
test-cam: $(READY)
	test -x build/cam/bin/python || $(BIN)/python -m venv build/cam
	echo "import site; site.addsitedir('$(CURDIR)/$$(echo .venv/lib/python*/site-packages)')" \
		> $$(echo build/cam/lib/python*/site-packages)/csham.pth
	$(BIN)/uv pip install --quiet --python build/cam/bin/python --no-deps grad-cam ttach tqdm opencv-python-headless
	build/cam/bin/python -m pytest tests/explain/test_cams.py

# TensorFlow and JAX are the user's choice, so they are no dependencies: an environment of its own, on top of .venv.
test-keras: $(READY)
	test -x build/keras/bin/python || $(BIN)/python -m venv build/keras
	echo "import site; site.addsitedir('$(CURDIR)/$$(echo .venv/lib/python*/site-packages)')" \
		> $$(echo build/keras/lib/python*/site-packages)/csham.pth
	$(BIN)/uv pip install --quiet --python build/keras/bin/python keras tensorflow-cpu jax
	CSHAM_LONG_TESTS=1 build/keras/bin/python -m pytest tests/test_keras_backends.py tests/test_keras.py

# The tests of make test, and who may import what, on the lowest versions that pyproject.toml declares.
test-lowest: $(LOWEST_READY)
	$(LOWEST)/bin/lint-imports
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) -m "not slow"

# The CPU kernels built anew with AddressSanitizer and UndefinedBehaviorSanitizer, and their tests under both.
sanitize: $(READY)
	scripts/sanitize

# The CPU kernels' tests on an emulated ARM processor; Debian, root, 10 GB and half an hour.
aarch64: $(READY)
	scripts/aarch64

# The site in build/site, strictly (no broken link, no name without a docstring) and without the network; an environment of its
# own, which needs no PyTorch.
DOCS := build/docs
docs: $(READY)
	test -x $(DOCS)/bin/python || $(BIN)/uv venv --quiet $(DOCS)
	$(BIN)/uv pip install --quiet --python $(DOCS)/bin/python --constraint constraints.txt --group docs
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict

# The wheels and the source distribution in dist, built and checked; half an hour on two cores, on Linux on x86-64.
# TESTS takes a part of the tests: make dist TESTS="tests/ops tests/layers".
dist: $(READY)
	WORKERS=$(WORKERS) TESTS="$(TESTS)" scripts/check-dist

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/train_throughput.py
	$(BIN)/python benchmarks/prepare_throughput.py

# Every attention and four networks, compiled too, and then the tables and the picture of docs/kernels.md: some hours.
bench-kernels: $(READY)
	$(BIN)/python benchmarks/attention_cost.py
	$(BIN)/python benchmarks/attention_cost.py --memory
	$(BIN)/python benchmarks/network_tax.py
	$(BIN)/python benchmarks/attention_figure.py --write

setup: $(READY)

setup-lowest: $(LOWEST_READY)

# uv, not pip: it resolves torch and torchvision builds that fit each other, and installs them in seconds.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.8"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	touch $@

$(LOWEST_READY): pyproject.toml constraints-lowest.txt $(READY)
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		--constraint constraints-lowest.txt --editable ".[train,report,ray,export,share,parquet,keras,test]"
	touch $@

clean:
	rm -rf .venv $(LOWEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist src/*.egg-info
