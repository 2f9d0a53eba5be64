# Everything a person or CI runs. `just` without arguments lists the recipes.

set positional-arguments := true

venv := justfile_directory() / ".venv"
python := venv / "bin" / "python"
bin := venv / "bin"

[private]
default:
    @just --list

# The environment in .venv with the whole tested set of versions.
setup:
    #!/usr/bin/env bash
    set -euo pipefail
    [ -x "{{ python }}" ] || python3 -m venv "{{ venv }}"
    # Done already, for these very requirements? Then nothing to do.
    stamp="{{ venv }}/.orch-setup"
    want=$(cat pyproject.toml constraints.txt | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
        # torch first and by its exact version: a range would bring gigabytes of CUDA.
        "{{ python }}" -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
        "{{ python }}" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,torch]'
        printf '%s' "$want" > "$stamp"
    fi

# Submits the digits job, kills it twice, shows that the result is the undisturbed one. `just demo s3`: on SeaweedFS.
demo storage="local": setup
    @"{{ python }}" examples/digits/demo.py "{{ storage }}"

# All tests: unit and simulation (which need no service) in two processes, then integration and chaos in three (each with
# a server and a Ray of its own: they wait for much and compute little), then the frameworks' in two.
test: setup
    @"{{ python }}" -m pytest -n 2 -q tests/test_tidy.py tests/unit tests/simulation tests/scenarios
    @"{{ python }}" -m pytest -n 3 --dist loadfile tests/integration tests/chaos
    @"{{ python }}" -m pytest -n 2 --dist loadfile -q tests/frameworks

# Unit tests alone (no Ray, no servers).
test-unit *args: setup
    @"{{ python }}" -m pytest tests/test_tidy.py tests/unit "$@"

# Simulation alone.
test-simulation *args: setup
    @"{{ python }}" -m pytest tests/simulation tests/scenarios "$@"

# Integration alone (real Ray, SeaweedFS).
test-integration *args: setup
    @"{{ python }}" -m pytest tests/integration "$@"

# Chaos alone (real kills).
test-chaos *args: setup
    @"{{ python }}" -m pytest tests/chaos "$@"

# The repetitions behind docs/evidence.md: many kills, many seeds. Prints what it found as JSON.
soak *args: setup
    @"{{ python }}" -m tests.soak "$@"

# Seeded schedules of crashes against the real lifecycle: `just simulate 1000000 [FIRST SEED]`.
simulate *args: setup
    @cd tests && "{{ python }}" -m simulation "$@"

# Linters and type checkers.
lint: setup
    "{{ bin }}/ruff" check .
    "{{ bin }}/ruff" format --check .
    "{{ bin }}/mypy"
    "{{ bin }}/pyright"
    "{{ bin }}/lint-imports"

# Formats the code and mends what ruff can mend.
format: setup
    "{{ bin }}/ruff" check --fix .
    "{{ bin }}/ruff" format .

# Benchmarks beside peers; alone on the machine, please.
bench *args: setup
    "{{ python }}" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
    @"{{ python }}" -m tests.benchmarks "$@"

# Checks the documents: links, commands, examples.
docs: setup
    @"{{ python }}" -m pytest -q tests/test_tidy.py
    @"{{ bin }}/orch" schema > /dev/null
