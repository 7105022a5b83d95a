"""Resolve a string option through a ``KEY_TO_...`` table, and the way back."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def lookup(what: str, name: str, table: Mapping[str, T]) -> T:
    """
    Entry of a table by name.

    :param what: what is looked up, for the error
    :param name: the name given by the user
    :param table: valid names and their values
    :return: the value
    :raises ValueError: when there is no such name; the nearest one is suggested
    """
    if isinstance(name, str) and name in table:
        return table[name]
    nearest = difflib.get_close_matches(str(name), table, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"Unknown {what} {name!r}.{hint} Valid: {', '.join(map(repr, table))}.")


def describe(made: object, table: Mapping[str, type]) -> dict[str, Any]:
    """
    Describe an object that may have been made from a table of classes, so that it can be made again.

    :param made: an object; each argument of its constructor is an attribute of the same name
    :param table: names and classes
    :return: ``class``, the class's name; ``name`` of that class in the table, None where it has none; and its ``arguments``
    """
    kind = type(made)
    name = next((name for name, entry in table.items() if entry is kind), None)
    arguments = {} if name is None else {argument: getattr(made, argument) for argument in inspect.signature(kind).parameters}
    return {"name": name, "class": kind.__qualname__, "arguments": arguments}
