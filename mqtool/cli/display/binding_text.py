"""Bindings and headers as words."""

import json
from collections.abc import Mapping
from typing import Any

from mqtool.cli.display.styled import shown
from mqtool.topology import Binding


def bound_by(binding: Binding) -> str:
    """The key, or the header arguments, by which something is bound."""
    key = [repr(binding.routing_key)] if binding.routing_key or not binding.arguments else []
    return " ".join([*key, *fields(binding.arguments)])


def fields(values: Mapping[str, Any]) -> list[str]:
    """Headers or arguments, as -H writes them."""
    return [
        f"{shown(name)}={shown(value)}" if isinstance(value, str) else f"{shown(name)}:={json.dumps(value)}"
        for name, value in values.items()
    ]
