"""python -m mqtool, and the console script."""

import gc
import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _NotLoaded:
    """Stands where pika only names a type of the ssl module."""


class _Ssl(ModuleType):
    """The ssl module, loaded when it is first used. pika imports it even for a connection without TLS."""

    def __getattr__(self, name: str) -> Any:
        importer = sys._getframe(1).f_globals["__name__"]
        if name in ("SSLContext", "SSLSocket") and importer.startswith("pika."):
            return _NotLoaded  # in an annotation, or in a check of a context that there is not
        if sys.modules.get("ssl") is self:
            del sys.modules["ssl"]
        loaded = import_module("ssl")
        vars(self).update(vars(loaded))
        return getattr(loaded, name)


def _spare_what_pika_imports() -> None:
    """What pika imports and nothing here uses takes a fifth of the start-up time."""
    for kind in ("Asyncio", "Blocking"):
        adapter = ModuleType(f"pika.adapters.{kind.lower()}_connection")
        setattr(adapter, f"{kind}Connection", None)
        sys.modules.setdefault(adapter.__name__, adapter)
    sys.modules.setdefault("ssl", _Ssl("ssl"))


def main() -> None:
    """Run mqtool on the process's arguments and exit."""
    gc.disable()  # imports make many objects and no garbage: looking for some takes a tenth of the start-up time
    _spare_what_pika_imports()
    from mqtool.cli.app import run

    run()


if __name__ == "__main__":
    main()
