# canal: `make run` learns the embedded stream, `make test` proves it works. Both set themselves up.
# PYTHON=... names a Python 3.11, 3.12 or 3.13, TORCH_INDEX=... an index with torch's CPU build.
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := true
# Where it is set, each of the hundred processes of a run compiles canal anew: a quarter of a short command.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test lint bound bench-registry bench-exact-sums bench-engine bench-scaling bench-memory bench-annotate bench-serving bench-tune bench-tuned bench-novelty bench-strange bench-calibration bench-kinds bench-before bench-growth bench-combined bench-released bench-exact bench-unlearn drill bench-privacy bench-meanings bench-continual bench-exact-scale bench-exact-strange bench-hierarchy bench-installed chaos fuzz coverage docs reference release browser bench-silences bench-page bench-board gpu-check help

run:  ## install what is missing, then `canal run`: learn, register, show it, say what to commit
	@tools/setup.sh run
	@canal run

test: lint  ## install what is missing, look at style, types and rooms, and run every test
	@pytest

lint:  ## style, types, spelling, and which room may import which
	@tools/setup.sh test
	@ruff check src pipelines tests benchmarks tools examples
	@ruff format --check src pipelines tests benchmarks tools examples
	@mypy
	@lint-imports
	@codespell

bound:  ## the same network trained on all stages at once: what continual learning is measured against
	@tools/setup.sh run
	@python benchmarks/joint_bound.py

bench-engine:  ## the engine beside a plain implementation of the published loop: ratios, half an hour
	@tools/setup.sh run
	@python benchmarks/engine.py

gpu-check:  ## a GPU beside the CPU: logits, seconds of an epoch, bfloat16; fails where there is no GPU (ARGS="--preset scbert --genes 1000")
	@tools/setup.sh run
	@python benchmarks/gpu.py $(ARGS)

bench-scaling:  ## seconds against cells, genes and threads, and the share of the machine's peak
	@tools/setup.sh run
	@python benchmarks/scaling.py

bench-memory:  ## memory of a stage of 100,000 cells at scBERT size
	@tools/setup.sh run
	@python benchmarks/memory.py

bench-annotate:  ## cells a second and memory of labelling up to 100,000 cells x 30,000 genes (ARGS="--cells 1000000": more; ARGS="--root . --beside celltypist scanvi")
	@tools/setup.sh run
	@python benchmarks/annotate.py $(ARGS)

bench-serving:  ## requests a second, waiting times and memory of a real server under 32 clients (ARGS="--root PROJECT": its champion)
	@tools/setup.sh run
	@python benchmarks/serving.py $(ARGS)

bench-tune:  ## what a study of 20 trials costs beside one full training of the stage
	@tools/setup.sh run
	@python benchmarks/tuning.py

bench-tuned:  ## tuned lambda and L against the published ones, on test cells, over three seeds: an hour (ARGS="--into /tmp/best --set tuning.least_gain=0")
	@tools/setup.sh run
	@python benchmarks/tuned.py --into .canal/tuned $(ARGS)

bench-calibration:  ## how far a confidence may be believed, over the test cells of all stages (ARGS="--root /tmp/immune")
	@tools/setup.sh run
	@python benchmarks/calibration.py $(ARGS)

bench-novelty:  ## which score notices cells of unknown types, each type in turn (ARGS="--root . /tmp/immune": more)
	@tools/setup.sh run
	@python benchmarks/novelty.py $(ARGS)

bench-strange:  ## known cells called Unassigned in data sets never learned, and with genes gone (ARGS="--root /tmp/immune")
	@tools/setup.sh run
	@python benchmarks/strange.py $(ARGS)

bench-kinds:  ## hostile and odd inputs by kind: tried, and answered rightly (ARGS="--before b42cc87 --wrong")
	@tools/setup.sh test
	@python benchmarks/kinds.py $(ARGS)

bench-before:  ## canal annotate beside an earlier revision, by turns (ARGS="b42cc87 --preset small")
	@tools/setup.sh run
	@python benchmarks/before.py $(or $(ARGS),b42cc87)

bench-exact-strange:  ## known cells that the sums call Unassigned: new studies, genes gone, shallow cells (ARGS="--data FOLDER")
	@tools/setup.sh run
	@python benchmarks/exact_strange.py $(ARGS)

bench-hierarchy:  ## coarse types by the Cell Ontology beside leaving unsure cells without a name, by sums (DATA=FOLDER: immune, pancreas and first, too)
	@tools/setup.sh run
	@python benchmarks/hierarchy.py $(if $(DATA),--data "$(DATA)") $(ARGS)

bench-combined:  ## network, sums and both on the test cells of finished projects (ARGS="--root . /tmp/immune")
	@tools/setup.sh run
	@python benchmarks/combined.py $(ARGS)

bench-growth:  ## whether it pays to add genes to the panel (ARGS="immune --data FOLDER --into FOLDER")
	@tools/setup.sh run
	@python benchmarks/growth.py $(ARGS)

bench-released:  ## today's pipeline on a project of an earlier revision: one more stage, and no other, is learned
	@tools/setup.sh test
	@python benchmarks/released.py $(ARGS)

bench-exact:  ## the exact memory on streams, over 20 split seeds, beside SLDA, RanPAC and logistic regression (ARGS="--data FOLDER")
	@tools/setup.sh run
	@python benchmarks/exact.py $(ARGS)

bench-continual:  ## canal beside 15 rivals: forgetting, new studies, novelty, cost, and a page of figures; resumable (DATA=FOLDER: immune and pancreas, too; ARGS="--quick": minutes)
	@tools/setup.sh run
	@python benchmarks/continual.py $(if $(DATA),--data "$(DATA)") $(ARGS)

bench-unlearn:  ## seconds and bytes of canal unlearn beside learning the stages, on a finished project (ARGS="--root /tmp/immune")
	@tools/setup.sh run
	@python benchmarks/unlearn.py $(ARGS)

drill:  ## some cells leave a finished project: unlearned, erased, and every answer about them checked (ARGS="--data FOLDER": a donor leaves immune; ARGS="--root . --cells 40")
	@tools/setup.sh run
	@python benchmarks/drill.py $(or $(ARGS),--root .)

bench-privacy:  ## what shared sums reveal: membership, reconstruction, differences of releases, noise per donor
	@tools/setup.sh run
	@python benchmarks/privacy.py $(ARGS)

bench-meanings:  ## whether canal merge notices names that mean other cells, on all pairs of the stream's studies
	@tools/setup.sh run
	@python benchmarks/meanings.py $(ARGS)

bench-exact-scale:  ## seconds and memory of one more stage of 100,000 cells by sums, and megabytes a stage
	@tools/setup.sh run
	@python benchmarks/exact_scale.py $(ARGS)

bench-installed:  ## megabytes of the wheel with no extra, and seconds to label 3,000 cells by a bundle (ARGS="--root PROJECT")
	@tools/setup.sh test
	@python benchmarks/installed.py $(ARGS)

bench-silences:  ## seconds without a line on the error stream, by command, in a copy of a finished project (ARGS="--root PROJECT")
	@tools/setup.sh test
	@python benchmarks/silences.py $(ARGS)

bench-page:  ## seconds and bytes of the page of each version (ARGS="--root PROJECT --most 5")
	@tools/setup.sh test
	@python benchmarks/page.py $(ARGS)

bench-board:  ## seconds of the board: start, pages with 200 versions and 10,000 records, 32 readers beside a promotion, a dropped file
	@tools/setup.sh test
	@python benchmarks/board.py $(ARGS)

bench-registry:  ## seconds of versions, show, lineage, audit and promote --dry-run with 200 versions, 50 streams, 10,000 runs
	@tools/setup.sh test
	@python benchmarks/registry.py $(ARGS)

bench-exact-sums:  ## sums of up to a million synthetic cells by one process and by Dask: seconds, memory, equal bytes (ARGS="--cells 10000000 --workers 2")
	@tools/setup.sh test
	@python benchmarks/exact_sums.py $(ARGS)

chaos:  ## kills of learning and of every command that writes, races, crowds, full disks; a registry, ledger and bundles forged by the hundred: hours (`pytest -m chaos`: campaigns in small and long walks, half an hour)
	@tools/setup.sh test
	@pytest -m chaos
	@python -m tests.faults.chaos --kills 100
	@python -m tests.faults.chaos_ledger
	@python -m tests.faults.tampering

browser:  ## the pages in a real Chromium (Debian: apt-get install chromium), and what axe says of them
	@tools/setup.sh browser
	@pytest -n 0 -m browser tests/browser

fuzz:  ## 1,000 mutated inputs of all kinds: answered rightly or refused by one message (ARGS="--only 417")
	@tools/setup.sh test
	@python -m tests.faults.fuzz $(ARGS)

coverage:  ## lines of src/canal that the suite runs; fails below the floor in pyproject.toml (from Python 3.12 on it is quick: PYTHON=python3.12)
	@tools/setup.sh test
	@COVERAGE_CORE=$$(python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') pytest --cov

docs:  ## the documentation as a site in site/, which works from a disk: open site/index.html (installs what tests need, too)
	@tools/setup.sh test
	@python tools/reference_pages.py --check
	@NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict
	@echo "docs: open site/index.html"

reference:  ## docs/reference/commands.md and params.md, from the code
	@tools/setup.sh test
	@python tools/reference_pages.py

release:  ## a wheel, an sdist and its notes in dist/, where every file names one version (tools/release.py)
	@tools/setup.sh test
	@python tools/release.py

help:  ## show this
	@grep -E '^[a-z-]+: ' Makefile | sed 's/:.*## /: /'
