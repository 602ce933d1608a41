"""Find the programs that the goals "repair" are about, and copy them so that the learner can edit the copies."""

import ast
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from mqtool.errors import MqtoolError, UsageError, is_full


def _originals() -> Iterator[Traversable]:
    found = resources.files("mqtool.plays").joinpath("repair").iterdir()
    yield from sorted((each for each in found if each.name.endswith(".py")), key=lambda each: each.name)


def summaries() -> dict[str, str]:
    """Return the purpose of each program, by the program's name."""
    return {each.name: ast.get_docstring(ast.parse(each.read_text("utf-8"))) or "" for each in _originals()}


def copy_to(directory: Path) -> tuple[list[Path], list[Path]]:
    """Copy the programs to a directory, which is created if needed.

    Returns: the copies, and the files that already existed, which are left unchanged.

    Raises:
        UsageError: the directory or a copy cannot be written.
        MqtoolError: the disk is full.
    """
    new, kept = [], []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for each in _originals():
            copy = directory / each.name
            try:
                with copy.open("x", encoding="utf-8") as file:  # "x" follows no symbolic link
                    file.write(each.read_text("utf-8"))
            except FileExistsError:
                kept.append(copy)
            except OSError:
                copy.unlink(missing_ok=True)  # the next run would keep an incomplete copy
                raise
            else:
                new.append(copy)
    except OSError as error:
        failure = MqtoolError if is_full(error) else UsageError
        raise failure(
            f"cannot write to {directory}: {error.strerror}", "name a directory that you can write to"
        ) from error
    return new, kept
