"""The files that this process has open, for tests that check whether files are closed."""

import contextlib
from pathlib import Path


def open_files() -> set[tuple[Path, Path]]:
    """Return each open file descriptor of this process, with what it refers to, such as `socket:[1234]`.

    Compare the sets, not their sizes: garbage collection, or a thread of an earlier test, may close files at any time.
    """
    found = set()
    for descriptor in [*Path("/dev/fd").iterdir()]:
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            found.add((descriptor, descriptor.readlink()))
    return found
