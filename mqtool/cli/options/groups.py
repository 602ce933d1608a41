"""Groups of options: what several commands take, as one parameter of each."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import typer


def takes_groups(function: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options: a parameter whose type is a NamedTuple stands for all its fields."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type] = {}
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        group = hints[parameter.name]
        if isinstance(group, type) and issubclass(group, tuple):
            fields = get_type_hints(group, include_extras=True)
            defaults = group._field_defaults  # type: ignore[attr-defined]
            groups[parameter.name] = group
            parameters += [_keyword(name, defaults.get(name, inspect.Parameter.empty), fields[name]) for name in fields]
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


def takes_groups_but(**changed: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """takes_groups, for a command that takes some of a group's fields otherwise, such as a name as an argument.

    Args:
        changed: the annotation of each such field; those that are arguments have to be given.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        run: Any = takes_groups(function)
        parameters = [
            parameter.replace(annotation=changed[name], default=_default(changed[name], parameter.default))
            if name in changed
            else parameter
            for name, parameter in run.__signature__.parameters.items()
        ]
        run.__signature__ = inspect.Signature(parameters)
        run.__annotations__ |= changed
        return run  # type: ignore[no-any-return]

    return decorate


def _default(annotation: Any, otherwise: Any) -> Any:
    is_argument = any(isinstance(each, typer.models.ArgumentInfo) for each in annotation.__metadata__)
    return inspect.Parameter.empty if is_argument else otherwise


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
