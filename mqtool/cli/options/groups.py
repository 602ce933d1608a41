"""Groups of options: what several commands take, as one parameter of each."""

import functools
import inspect
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import typer

_Group = TypeVar("_Group")


def in_panel(name: str) -> Callable[[_Group], _Group]:
    """Say where the help shows the options of a group, except those that name another panel."""

    def decorate(group: _Group) -> _Group:
        for hint in _hints(group).values():
            for about in get_args(hint)[1:]:
                if isinstance(about, typer.models.OptionInfo) and about.rich_help_panel is None:
                    about.rich_help_panel = name
        return group

    return decorate


def takes_groups(function: Callable[..., None], **changed: Any) -> Callable[..., None]:
    """Let a command take groups of options: a NamedTuple stands for its fields, which may be groups themselves.

    Args:
        changed: annotations of fields that it takes otherwise, such as a name as an argument; arguments are required
            unless None is among their types. None for a field that it does not take.
    """
    hints = _hints(function)
    groups = {name: hint for name, hint in hints.items() if _is_group(hint)}
    parameters = [
        parameter.replace(
            annotation=changed[parameter.name], default=_default(changed[parameter.name], parameter.default)
        )
        if parameter.name in changed
        else parameter
        for name, given in inspect.signature(function).parameters.items()
        for parameter in _parameters(name, hints[name], given.default)
        if changed.get(parameter.name, parameter) is not None
    ]

    @functools.wraps(function)
    def run(**values: Any) -> None:
        made = {name: _made(group, values) for name, group in groups.items()}
        function(**values, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def takes_groups_but(**changed: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """takes_groups() with changed fields, as a decorator."""
    return functools.partial(takes_groups, **changed)


@functools.cache
def _hints(thing: Any) -> dict[str, Any]:
    return get_type_hints(thing, include_extras=True)


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple)


def _parameters(name: str, hint: Any, default: Any) -> Iterator[inspect.Parameter]:
    if not _is_group(hint):
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        return
    for field, of_field in _hints(hint).items():
        yield from _parameters(field, of_field, hint._field_defaults.get(field, inspect.Parameter.empty))


def _made(group: Any, values: dict[str, Any]) -> Any:
    """A group, of the values that are its fields; they are taken out of all values. The others keep their defaults."""
    hints = _hints(group)
    fields = {
        name: _made(hint, values) if _is_group(hint) else values.pop(name)
        for name, hint in hints.items()
        if _is_group(hint) or name in values
    }
    return group(**fields)


def _default(annotation: Any, otherwise: Any) -> Any:
    kind, *about = get_args(annotation)
    is_argument = any(isinstance(each, typer.models.ArgumentInfo) for each in about)
    return inspect.Parameter.empty if is_argument and NoneType not in get_args(kind) else otherwise
