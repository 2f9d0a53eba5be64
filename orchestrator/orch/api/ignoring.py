"""What is left out when a working folder is shipped: .gitignore as git reads it, .orchignore above it.

.orchignore has the same syntax and the last word: `!data.bin` in it ships what .gitignore leaves out (as with
git, a file in a folder that is left out needs the folder named first). Both may stand in any folder; a
.gitignore above the working folder counts up to the top of its repository.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from pathspec import GitIgnoreSpec

if TYPE_CHECKING:
    from pathlib import Path

ALWAYS = frozenset({".git", ".venv", "__pycache__", ".orch"})
"""Never shipped, at any depth: history, environments, compiled files and orch's own local checkpoints."""
IGNORE_FILE_BYTES_MAX = 1 << 20
PARENTS_MAX = 64
"""How far up the top of the repository is looked for."""


class _Rules(NamedTuple):
    """The patterns of one file. Paths below the working folder become the file's own by `prefix` or `cut`."""

    spec: GitIgnoreSpec
    prefix: str
    cut: int


class Ignoring:
    """The rules that hold in one folder; `inside` gives those of a folder below it."""

    def __init__(self, git: tuple[_Rules, ...] = (), orch: tuple[_Rules, ...] = ()) -> None:
        self._git = git
        self._orch = orch

    @classmethod
    def of(cls, root: Path) -> Ignoring:
        """The rules from above the working folder."""
        git: list[_Rules] = []
        prefix = ""
        for folder in (root, *list(root.parents)[:PARENTS_MAX]):
            if prefix:
                spec = _read(folder / ".gitignore")
                if spec is not None:
                    git.insert(0, _Rules(spec, prefix, 0))
            if (folder / ".git").exists():
                break
            prefix = f"{folder.name}/{prefix}"
        else:
            return cls()  # no repository: a .gitignore further up belongs to something else
        # A folder that git ignores as a whole was named by the user all the same: then ship it.
        named = any(rules.spec.match_file(rules.prefix) for rules in git)
        return cls(() if named else tuple(git))

    def inside(self, folder: Path, relative: str) -> Ignoring:
        """Adds the files of `folder`, which is `relative` ("" for the top). ValueError: a bad pattern."""
        cut = len(relative) + 1 if relative else 0
        git, orch = (_read(folder / name) for name in (".gitignore", ".orchignore"))
        if git is None and orch is None:
            return self
        return Ignoring(
            self._git if git is None else (*self._git, _Rules(git, "", cut)),
            self._orch if orch is None else (*self._orch, _Rules(orch, "", cut)),
        )

    def leaves_out(self, path: str, *, is_folder: bool) -> bool:
        """`path` is relative to the working folder. The innermost file with an opinion decides."""
        if path.rpartition("/")[2] in ALWAYS:
            return True
        name = path + "/" if is_folder else path
        for rules in (*reversed(self._orch), *reversed(self._git)):
            found = rules.spec.check_file(rules.prefix + name[rules.cut :]).include
            if found is not None:
                return found
        return False


def ignore_line(path: str) -> str:
    """The line for .orchignore that leaves out exactly this path."""
    return "/" + re.sub(r"([*?\[\]\\!# ])", r"\\\1", path)


def _read(path: Path) -> GitIgnoreSpec | None:
    # As git does it: a link is not followed.
    if path.is_symlink() or not path.is_file():
        return None
    if path.stat().st_size > IGNORE_FILE_BYTES_MAX:
        raise ValueError(f"{path} is longer than {IGNORE_FILE_BYTES_MAX} bytes")
    try:
        return GitIgnoreSpec.from_lines(path.read_text(errors="surrogateescape").splitlines())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
