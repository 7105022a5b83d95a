"""For which task was a transition the right thing to do: the posterior and all that it is made of."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Classes that were here once: whoever asks for one has pickled it, or imports it by its old name."""
    if name[:1].isupper():
        raise ImportError(
            f"hipi_sb3.relabel.{name} has moved into a module of hipi_sb3.relabel. If a pickled buffer asks for it, an older "
            "hipi_sb3 0.1.0 wrote it: load it with that version and write it with buffer.save(folder), which this one reads."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
