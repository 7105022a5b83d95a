"""Mistakes of the user, answered in one line."""

import argparse
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import yaml
from rl_zoo3.utils import ALGOS

from hipi_sb3 import HIPIReplayBuffer


class ConfigurationError(Exception):
    """A mistake of the user, told in one line."""


@contextmanager
def configuration_errors(verbose: int = 1) -> Iterator[None]:
    """
    Turn whatever is raised while a configuration is read and tried into one line for the user.

    :param verbose: from 2 on, errors are left as they are, with their traceback
    """
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        if verbose >= 2:
            raise
        raise ConfigurationError(one_line(error)) from error


def mistake_in_command_line(error: Exception) -> Exception | None:
    """
    Tell the mistakes of the user from those of the code, among what is raised while rl_zoo3 reads the command line.

    :param error: what was raised
    :return: what to tell the user; None where it is no mistake of theirs
    """
    if type(error).__module__.split(".")[0] == "wandb":  # it has classes of its own
        return ConfigurationError(f"--track: {error} WANDB_MODE=offline needs no account and no network.")
    return error if isinstance(error, ValueError | AssertionError | ImportError) else None


def check_name(what: str, name: str, names: Any) -> None:
    """
    Check a name of the command line.

    :param what: what it names, for the error
    :param name: the name
    :param names: valid names
    :raises ConfigurationError: when it is none of them; the nearest one is suggested
    """
    if name not in names:
        raise ConfigurationError(f"unknown {what} {name!r}.{nearest(name, names)}")


def check_counts(args: argparse.Namespace, *names: str) -> None:
    """
    Check numbers of the command line that count something.

    :param args: command line
    :param names: attributes of it; those that are None were not given
    :raises ConfigurationError: when one is less than 1
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigurationError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")


def nearest(name: str, names: Any) -> str:
    """
    Suggest a name.

    :param name: what was given
    :param names: valid names
    :return: a sentence with the nearest one, or with all of them where they are few and none is near
    """
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Valid: {', '.join(names)}." if len(names) < 20 else ""


def exit_with_error(program: str, error: Exception) -> None:
    """
    End the process with one line and the exit code of a usage error.

    :param program: name of the command
    :param error: what went wrong
    """
    say_last(f"{program}: error: {error}")
    sys.exit(2)


def say_last(*lines: str) -> None:
    """
    Write lines to the standard error, after all that was printed: in a log with both, they come last.

    :param lines: the lines
    """
    with suppress(OSError):  # the log may be on the disk that is full
        sys.stdout.flush()
    print(*lines, sep="\n", file=sys.stderr)


def one_line(error: Exception) -> str:
    """What went wrong, on one line."""
    text = " ".join(str(error).split()).replace("pass trust=True", "add --trust")
    if isinstance(error, yaml.YAMLError):
        return f"malformed YAML: {text}"
    if re.search("eglQueryString|OpenGL platform library", text):
        return (
            "MuJoCo has nothing to draw with. Without a display it needs EGL; on Debian: apt-get install libegl1 libegl-mesa0"
        )
    if isinstance(error, KeyError):
        return f"there is no {text} in the configuration."
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    if isinstance(error, TypeError) and unknown:
        names = _keywords_of(unknown.group(1))
        return f"{unknown.group(1)} has no parameter {unknown.group(2)!r}.{nearest(unknown.group(2), names) if names else ''}"
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def _keywords_of(class_name: str) -> list[str]:
    """Constructor parameters of an algorithm or of the replay buffer, by the name of the class."""
    classes: list[type] = [base for algorithm in ALGOS.values() for base in algorithm.__mro__] + [HIPIReplayBuffer]
    constructor: Callable[..., None] | None = next((c.__init__ for c in classes if c.__name__ == class_name), None)  # type: ignore[misc]
    return [] if constructor is None else [name for name in inspect.signature(constructor).parameters if name != "self"]
