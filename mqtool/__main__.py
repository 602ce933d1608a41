"""python -m mqtool, and the console script."""

import gc
import sys
from types import ModuleType


def main() -> None:
    """Run mqtool on the process's arguments and exit."""
    gc.disable()  # imports make many objects and no garbage: looking for some takes a tenth of the start-up time
    # pika imports its adapter for asyncio, which nothing here uses, and which takes another tenth.
    adapter = ModuleType("pika.adapters.asyncio_connection")
    adapter.AsyncioConnection = None  # type: ignore[attr-defined]
    sys.modules.setdefault(adapter.__name__, adapter)
    from mqtool.cli.app import run

    run()


if __name__ == "__main__":
    main()
