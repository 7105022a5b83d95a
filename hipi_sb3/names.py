"""Resolve a string option through a ``KEY_TO_...`` table."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

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
    if name in table:
        return table[name]
    nearest = difflib.get_close_matches(str(name), table, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"Unknown {what} {name!r}.{hint} Valid: {', '.join(map(repr, table))}.")
