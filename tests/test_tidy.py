"""What no tool keeps: lengths, words, who may import what, and documents that tell the truth."""

from __future__ import annotations

import ast
import configparser
import importlib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orch.model.jobfile import load_job

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
SOURCE_ROOTS = ("orchestrator", "workers", "policies")
CODE_ROOTS = (*SOURCE_ROOTS, "tests", "examples")
DOCUMENT_ROOTS = ("docs", "deploy", "examples", "orchestrator", "workers", "policies", "tests")

FILE_LINES_MAX = 450
LONGEST_FILES: dict[str, int] = {}
"""Files over FILE_LINES_MAX with the lines they have today. They may only shrink; none is added."""
FUNCTION_LINES_MAX = 70
LONGEST_FUNCTIONS: dict[str, int] = {}
"""The same for functions, as `path:name`."""
RATCHET_LINES = 20
"""Whoever shrinks one of them by more writes down the new number."""

KNOWING = {
    "ray": {"orchestrator/orch/control/cluster.py", "workers/orch_workers/agent.py"},
    "fsspec": {"workers/orch_workers/checkpoint/storage.py"},
    "s3fs": {"workers/orch_workers/checkpoint/storage.py"},
    "sqlalchemy": {
        "orchestrator/orch/control/store.py",
        # the store's own parts: its tables, its engines, its writing side
        "orchestrator/orch/control/schema.py",
        "orchestrator/orch/control/database.py",
        "orchestrator/orch/control/transaction.py",
    },
}
"""Module → the only source files that import it (STYLE, rule 14)."""

SYNONYMS = {
    r"incarnations?": "generation",
    r"generation epochs?|fencing epochs?|epoch numbers?|epoch_no": "generation",
    r"replicas?": "worker",
    r"supervisors?|babysitters?|watchdogs?": "guard",
    r"coordinators?|chiefs?|rank[- ]?zero|master (?:process|worker)": "leader",
    r"head actor|control actor|job manager": "controller",
    r"save ?points?|recovery points?|resume points?": "restore point",
    r"retry budgets?|restart budgets?|fault budgets?": "budget",
    r"wasted (?:work|steps)|redone (?:work|steps)": "lost work",
    r"eviction notices?|termination notices?|interruption notices?": "preemption notice",
    r"training job run|job run|experiments?": "job",
}
"""Words that would be a second name for something in docs/GLOSSARY.md, and the one name it has."""
KEYS_OF_OTHERS = re.compile(r"\breplicas:")
"""What formats that are not ours (Kubernetes', compose's) call things."""
WORDS_FOR_LATER: set[str] = set()
"""In the glossary, for what a later version does; each leaves this list when it is first used."""


def files(pattern: str, *roots: str) -> list[Path]:
    """Paths below `roots`, relative to the checkout, without what tools leave there."""
    found = [path for root in roots for path in (ROOT / root).rglob(pattern)]
    return sorted(path.relative_to(ROOT) for path in found if not _made_by_tools(path))


def _made_by_tools(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return any(part == "__pycache__" or part.startswith(".") for part in parts)


PYTHON = files("*.py", *CODE_ROOTS)
SOURCES = files("*.py", *SOURCE_ROOTS)
DOCUMENTS = sorted([*files("*.md", *DOCUMENT_ROOTS), *(path.relative_to(ROOT) for path in ROOT.glob("*.md"))])


def text_of(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path), str(path))


# Lengths


def check_ratchet(lengths: dict[str, int], limit: int, longest: dict[str, int]) -> None:
    too_long = {
        name: f"{lines} lines, limit {longest.get(name, limit)}"
        for name, lines in lengths.items()
        if lines > longest.get(name, limit)
    }
    assert not too_long, "these have grown past a sitting; each is usually two things"
    slack = {
        name: lengths.get(name, 0)
        for name, lines in longest.items()
        if lengths.get(name, 0) <= max(limit, lines - RATCHET_LINES)
    }
    assert not slack, f"these have shrunk: write the new number, or take out what is at most {limit}"


def test_no_file_is_longer_than_a_sitting():
    lengths = {str(path): len(text_of(path).splitlines()) for path in PYTHON}
    check_ratchet(lengths, FILE_LINES_MAX, LONGEST_FILES)


def test_no_function_is_longer_than_a_screen():
    lengths = {}
    for path in PYTHON:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths[f"{path}:{node.name}"] = (node.end_lineno or node.lineno) - node.lineno + 1
    check_ratchet(lengths, FUNCTION_LINES_MAX, LONGEST_FUNCTIONS)


def test_the_ratchet_refuses_growth_and_slack():
    check_ratchet({"a": 10, "b": 52}, 10, {"b": 52})
    with pytest.raises(AssertionError, match="grown"):
        check_ratchet({"a": 11}, 10, {})
    with pytest.raises(AssertionError, match="grown"):
        check_ratchet({"b": 53}, 10, {"b": 52})
    with pytest.raises(AssertionError, match="shrunk"):
        check_ratchet({"b": 30}, 10, {"b": 52})
    with pytest.raises(AssertionError, match="shrunk"):
        check_ratchet({"b": 9}, 10, {"b": 15})


# Imports


def imported(path: Path) -> Iterator[str]:
    """Top-level modules that a file imports anywhere, inside functions and for type checkers too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_few_files_know_ray_fsspec_and_sql():
    strangers = [
        f"{path} imports {module}"
        for path in SOURCES
        for module in sorted(set(imported(path)))
        if module in KNOWING and str(path) not in KNOWING[module]
    ]
    assert not strangers


def test_the_training_side_is_python_3_8():
    inside = [path for path in SOURCES if "training" in path.parts]
    assert len(inside) > 10
    for path in [*inside, Path("orchestrator/orch/__init__.py"), Path("workers/orch_workers/__init__.py")]:
        ast.parse(text_of(path), str(path), feature_version=(3, 8))


# Public names


def packages() -> list[str]:
    folders = [path.parent for path in SOURCES if path.name == "__init__.py"]
    return sorted(".".join(folder.parts[1:]) for folder in folders)


@pytest.mark.parametrize("name", packages())
def test_public_names_are_listed_and_exist(name):
    package = importlib.import_module(name)
    listed = getattr(package, "__all__", None)
    offered = {
        alias.asname or alias.name
        for node in ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
        if not (alias.asname or alias.name).startswith("_") and alias.name not in {"TYPE_CHECKING", "Any"}
    }
    assert offered <= set(listed or ()), "imported into a package's __init__, so listed in its __all__"
    assert [entry for entry in listed or () if not hasattr(package, entry)] == []


# Words


@pytest.mark.parametrize(("synonym", "word"), SYNONYMS.items())
def test_one_word_per_concept(synonym, word):
    # Parts of names count as words too: `replica_count`, `Incarnation`.
    pattern = re.compile(rf"(?<![a-z])(?:{synonym})(?![a-z])", re.IGNORECASE)
    found = []
    for path in [*SOURCES, *DOCUMENTS, *files("*.yaml", "examples", "deploy"), *files("*.service", "deploy")]:
        for number, line in enumerate(text_of(path).splitlines(), start=1):
            if pattern.search(KEYS_OF_OTHERS.sub("", line)):
                found.append(f"{path}:{number}: {line.strip()}")
    assert not found, f"the word is {word!r} (docs/GLOSSARY.md)"


def test_the_glossary_is_used():
    rows = re.findall(r"^\| ([^|]+?) \| [^|]+ \|$", text_of(Path("docs/GLOSSARY.md")), re.MULTILINE)
    words = [word for row in rows[2:] for word in row.split(", ")]
    assert len(words) > 20
    others = [path for path in [*SOURCES, *DOCUMENTS] if path.name != "GLOSSARY.md"]
    everything = "\n".join(text_of(path) for path in others).lower()
    unused = {word for word in words if not re.search(rf"\b{re.escape(word.lower())}", everything)}
    assert unused == WORDS_FOR_LATER


# Jobs


def job_examples() -> list[tuple[str, str]]:
    """(where, YAML) of every job file under examples/ and every YAML block of a document that has a `run`."""
    found = [(str(path), text_of(path)) for path in files("job*.yaml", "examples")]
    for path in DOCUMENTS:
        text = text_of(path)
        blocks = re.finditer(r"^```ya?ml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        jobs = [block for block in blocks if re.search(r"^run:", block[1], re.MULTILINE)]
        found += [(f"{path}:{text.count(chr(10), 0, block.start()) + 1}", block[1]) for block in jobs]
    return found


EXAMPLES = job_examples()


def test_there_are_examples():
    files_with_one = {where.split(":")[0] for where, _ in EXAMPLES}
    assert {"README.md", "examples/digits/job.yaml", "docs/job-file.md"} <= files_with_one


@pytest.mark.parametrize(("where", "text"), EXAMPLES, ids=[where for where, _ in EXAMPLES])
def test_every_job_example_is_a_job(where, text, tmp_path):
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    loaded = load_job(tmp_path / "job.yaml")
    assert loaded.spec.run


def test_the_scripts_that_examples_run_are_there():
    for path in files("job*.yaml", "examples"):
        loaded = load_job(ROOT / path)
        scripts = [word for word in loaded.spec.run.split() if word.endswith(".py")]
        assert [script for script in scripts if not (Path(loaded.spec.workdir) / script).is_file()] == []


# Documents

RECIPE = re.compile(r"^([a-z][a-z0-9-]*)(?: [^:\n]*)?:(?!=)", re.MULTILINE)
JUST = re.compile(r"(?:^|[/`\s(])just ([a-z][a-z0-9-]*)", re.MULTILINE)
SHELL_BLOCK = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_in(text: str) -> str:
    """What a document gives to type: its shell blocks and its inline code."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*SHELL_BLOCK.findall(text), *re.findall(r"`([^`\n]+)`", outside)])


def test_just_commands_are_recipes():
    recipes = set(RECIPE.findall(text_of(Path("justfile"))))
    assert {"setup", "demo", "test", "soak", "lint", "format", "bench", "docs"} <= recipes
    for path in DOCUMENTS:
        named = set(JUST.findall(commands_in(text_of(path))))
        assert named <= recipes, path


def test_what_recipes_run_exists():
    text = text_of(Path("justfile"))
    modules = [Path(*name.split(".")) for name in re.findall(r"-m (tests\.[a-z_.]+)", text)]
    assert modules
    assert [
        module for module in modules if not any((ROOT / found).exists() for found in (module, f"{module}.py"))
    ] == []
    named = re.findall(r"\b((?:tests|examples)/[\w/.]+)", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_ci_runs_the_readmes_test_command():
    start = "python3 -m venv .venv && .venv/bin/pip install rust-just && .venv/bin/just"
    readme = text_of(Path("README.md")).splitlines()
    assert f"{start} demo" in readme
    assert f"{start} test" in readme
    assert ".venv/bin/just test" in text_of(Path(".ci/run"))
    assert ".venv/bin/just lint" in text_of(Path(".ci/run"))


def test_orch_commands_in_documents_exist():
    from typer.main import get_command

    from orch.cli.main import app

    group = get_command(app)
    context = group.make_context("orch", [], resilient_parsing=True)
    verbs = set(group.list_commands(context))
    for path in DOCUMENTS:
        named = set(re.findall(r"(?:^|\s)orch ([a-z][a-z-]+)", commands_in(text_of(path)), re.MULTILINE))
        assert named <= verbs, path


def anchors_of(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_links_of_documents_resolve(path):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
        if re.match(r"[a-z]+:", target):
            continue  # another place on the network: not ours to check
        name, _, anchor = target.partition("#")
        file = (ROOT / path).parent / name if name else ROOT / path
        if not file.exists() or (anchor and anchor not in anchors_of(file.read_text(encoding="utf-8"))):
            broken.append(target)
    assert not broken


FOLDERS_OF_PATHS = ("", "orchestrator", "orchestrator/orch", "workers", "workers/orch_workers", "policies")
"""What a path in a document may be relative to."""


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_files_that_documents_name_exist(path):
    named = set(re.findall(r"`([\w.-]+(?:/[\w.-]+)*/[\w.-]*)`", text_of(path)))
    ours = {name for name in named if name.endswith((".py", ".md")) or name.split("/")[0] in CODE_ROOTS}
    roots = [ROOT / folder for folder in FOLDERS_OF_PATHS]
    assert [name for name in sorted(ours) if not any((root / name).exists() for root in roots)] == []


def test_every_dependency_has_its_reason():
    project = tomllib.loads(text_of(Path("pyproject.toml")))["project"]
    wanted = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    names = {re.split(r"[^A-Za-z0-9-]", one)[0].lower() for one in wanted} - {project["name"]}
    rows = re.findall(
        r"^\| ([a-z0-9-]+) \| .+ \| .+ \|$", text_of(Path("docs/dependencies.md")), re.MULTILINE
    )
    assert set(rows) - {"package", "---"} == names
    pinned = {line.split("==")[0].lower() for line in text_of(Path("constraints.txt")).splitlines()}
    assert names - {"tensorflow"} <= pinned  # tested as tensorflow-cpu, the same without its GPU half


# Deployment


def test_the_systemd_unit_is_right(tmp_path):
    path = ROOT / "deploy/systemd/orch.service"
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(path)
    assert unit["Service"]["ExecStart"].endswith("orch server run")
    assert unit["Service"]["KillMode"] == "mixed", (
        "agents must not get the SIGTERM before they were asked to save"
    )
    assert unit["Service"]["OOMPolicy"] == "continue", (
        "a job that is out of memory must not take the server along"
    )
    verify = shutil.which("systemd-analyze")
    if verify:  # not on every machine; what it finds is found where it is
        done = subprocess.run(
            [verify, "--user", "--man=no", "verify", str(path)],
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
