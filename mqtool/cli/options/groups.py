"""Groups of options: what several commands take, as one parameter of each."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def takes_groups(function: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options: a parameter whose type is a NamedTuple stands for all its fields."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type] = {}
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        group = hints[parameter.name]
        if isinstance(group, type) and issubclass(group, tuple):
            fields = get_type_hints(group, include_extras=True)
            groups[parameter.name] = group
            parameters += [_keyword(name, group._field_defaults[name], fields[name]) for name in fields]  # type: ignore[attr-defined]
        else:
            parameters.append(_keyword(parameter.name, parameter.default, group))

    @functools.wraps(function)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field: values.pop(field) for field in group._fields})  # type: ignore[attr-defined]
        function(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
