"""Configurations as data: YAML files and expressions are read without running what is written in them."""

import argparse
import ast
import importlib
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
import yaml
from rl_zoo3.utils import ALGOS, SimpleLinearSchedule
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import VecEnvWrapper

from hipi_sb3 import HIPIReplayBuffer, LayerNormReLU
from hipi_sb3.experience.archives import check_no_link
from hipi_sb3.experience.whole import whole_file
from zoo.errors import ConfigurationError

#: Entries of a configuration that may be expressions, as rl_zoo3 has it, and what their values have to be: never a string,
#: which rl_zoo3 would run.
EXPRESSIONS: dict[str, tuple[type, ...]] = {
    "policy_kwargs": (dict, type(None)),
    "replay_buffer_class": (type, type(None)),
    "replay_buffer_kwargs": (dict, type(None)),
    "monitor_kwargs": (dict,),
    "normalize": (dict, bool),
}

#: Values in one configuration: aliases of aliases are a short text, and more than any memory holds.
MAX_VALUES = 100_000

#: What an expression may call.
KEY_TO_CALL: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "list": list,
    "tuple": tuple,
    "int": int,
    "float": float,
    "linear_schedule": SimpleLinearSchedule,
    "SimpleLinearSchedule": SimpleLinearSchedule,
}

#: Classes that an expression may name.
KEY_TO_CLASS: dict[str, type] = {
    "HIPIReplayBuffer": HIPIReplayBuffer,
    "hipi_sb3.HIPIReplayBuffer": HIPIReplayBuffer,
    "LayerNormReLU": LayerNormReLU,
    "hipi_sb3.LayerNormReLU": LayerNormReLU,
    "HerReplayBuffer": HerReplayBuffer,
    "ReplayBuffer": ReplayBuffer,
    "DictReplayBuffer": DictReplayBuffer,
    "RMSpropTFLike": RMSpropTFLike,
}

#: Modules whose classes an expression may name too, those that are of a kind.
KEY_TO_MODULE: dict[str, tuple[Any, type]] = {
    "nn": (th.nn, th.nn.Module),
    "th.nn": (th.nn, th.nn.Module),
    "torch.nn": (th.nn, th.nn.Module),
    "th.optim": (th.optim, th.optim.Optimizer),
    "torch.optim": (th.optim, th.optim.Optimizer),
}

#: Classes that a run folder of rl_zoo3 may name by a tag, ``!!python/name:torch.nn.modules.activation.ReLU``, by the module
#: and name that Python gives them: nothing is imported to find them.
KEY_TO_NAME: dict[str, type] = {
    f"{kind.__module__}.{kind.__qualname__}": kind
    for kind in (
        *(th.nn.ReLU, th.nn.Tanh, th.nn.ELU, th.nn.LeakyReLU, th.nn.SiLU, th.nn.GELU, th.nn.SELU, th.nn.Mish, th.nn.Sigmoid),
        *(th.nn.Softplus, th.nn.Hardtanh, th.nn.Identity, th.optim.Adam, th.optim.AdamW, th.optim.SGD, th.optim.RMSprop),
        *(LayerNormReLU, RMSpropTFLike, HIPIReplayBuffer, HerReplayBuffer, ReplayBuffer, DictReplayBuffer),
    )
}

#: What a configuration names by the path of its class, and of which kind that has to be.
KEY_TO_KIND: dict[str, type] = {
    "env_wrapper": gym.Wrapper,
    "vec_env_wrapper": VecEnvWrapper,
    "callback": BaseCallback,
    "policy": BasePolicy,
}


class DataLoader(yaml.SafeLoader):
    """YAML without Python objects. The tags that rl_zoo3 writes around plain data are read as what they hold."""


def _ordered_dict(loader: yaml.SafeLoader, node: yaml.Node) -> OrderedDict[Any, Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.constructor.ConstructorError(None, None, f"expected a list after {node.tag}", node.start_mark)
    (pairs,) = loader.construct_sequence(node, deep=True)
    return OrderedDict(pairs)


def _known_class(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> type:
    if name not in KEY_TO_NAME or getattr(node, "value", None) != "":
        raise yaml.constructor.ConstructorError(None, None, f"no class that is known: '{node.tag}'", node.start_mark)
    return KEY_TO_NAME[name]


DataLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", _known_class)
DataLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered_dict)
DataLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)


def read_yaml(path: Path) -> dict[str, Any]:
    """
    Read a configuration, ours or one that rl_zoo3 wrote.

    :param path: file
    :return: its entries
    :raises ConfigurationError: when it is malformed, or has a tag that would run code
    """
    try:
        values = yaml.load(path.read_text(), Loader=DataLoader)
        _check_size(values)
    except yaml.constructor.ConstructorError as error:
        tag = (error.problem or "").rpartition("tag:yaml.org,2002:")[2].rstrip("'")
        where = error.problem_mark.line + 1 if error.problem_mark is not None else "?"
        raise ConfigurationError(
            f"{path}, line {where}: {'!!' + tag if 'tag' in (error.problem or '') else error.problem} is not read, because a "
            "tag of Python can run any code. A configuration is plain data: write a class as an expression, such as "
            '"dict(activation_fn=nn.ReLU)", and leave out the rest.'
        ) from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigurationError(f"{path} is malformed: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} has to hold entries (name: value), not {type(values).__name__}.")
    return values


def _check_size(values: Any) -> None:
    """Count values as often as they are mentioned; one that holds itself is mentioned without end."""
    waiting, n_values = [values], 0
    while waiting:
        value = waiting.pop()
        n_values += 1
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
        if n_values + len(waiting) > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """
    Write a configuration as plain data; whenever the process is killed, the file is the old one or the new one.

    :param path: file
    :param values: its entries; one with a class in it is written as an expression, see :func:`evaluated`
    """
    with whole_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(as_plain(values), sort_keys=False))


def as_plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """
    A configuration that YAML can write.

    :param values: its entries
    :return: the same; an entry with a class in it is an expression
    """
    return {name: value if _is_plain(value) else _expression_of(value) for name, value in values.items()}


# -- expressions ------------------------------------------------------------------------------------------------------


def evaluated(value: Any, name: str = "value") -> Any:
    """
    An entry of a YAML file or of the command line that may be an expression: a literal, or calls and classes that are known.

    :param value: the entry; what is no string is returned as it is
    :param name: what it is the value of, for the error
    :return: its value
    :raises ConfigurationError: when something else is in it, or the value is of another type than :data:`EXPRESSIONS` says
    """
    if not isinstance(value, str):
        return value
    try:
        found = _value_of(ast.parse(value.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise ConfigurationError(
            f"{name}: cannot read {value!r} ({' '.join(str(error).split())}). Nothing but literals is read (text in quotes), "
            f"the calls {', '.join(KEY_TO_CALL)}, the classes {', '.join(KEY_TO_CLASS)} and those of nn and th.optim, "
            "such as nn.ReLU."
        ) from error
    kinds = EXPRESSIONS.get(name)
    if kinds is not None and not isinstance(found, kinds):
        raise ConfigurationError(
            f"{name} has to be {' or '.join(kind.__name__ for kind in kinds)}, but {value!r} is {type(found).__name__}. "
            'Write it without quotes inside the quotes, such as "dict(net_arch=[64, 64])".'
        )
    return found


def _value_of(node: ast.expr) -> Any:
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        items = [_value_of(item) for item in node.elts]
        return {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)](items)
    if isinstance(node, ast.Dict):
        keys = [key for key in node.keys if key is not None]  # None stands for **
        return {_value_of(key): _value_of(item) for key, item in zip(keys, node.values, strict=True)}
    if isinstance(node, ast.Name | ast.Attribute):
        return _class_named(ast.unparse(node))
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name not in KEY_TO_CALL or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError(f"{name} is not called")
        keywords = {str(keyword.arg): _value_of(keyword.value) for keyword in node.keywords}
        return KEY_TO_CALL[name](*map(_value_of, node.args), **keywords)
    return ast.literal_eval(node)


def _class_named(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    if name in KEY_TO_CLASS:
        return KEY_TO_CLASS[name]
    if module in KEY_TO_MODULE:
        found, kind = getattr(KEY_TO_MODULE[module][0], attribute, None), KEY_TO_MODULE[module][1]
        if isinstance(found, type) and issubclass(found, kind):
            return found
    raise ValueError(f"{name} is not known")


class StoreExpressions(argparse.Action):
    """
    ``key:value`` pairs of the command line, in the place of rl_zoo3's ``StoreDict``, which runs the values.

    A value with a class in it stays an expression: that of a YAML file it could be, and so it is saved with the run.
    """

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        options = {}
        for pair in values:
            key, colon, text = pair.partition(":")
            if not colon:
                raise ConfigurationError(
                    f"{option_string} {pair} has no value. Write options as key:value, such as learning_rate:0.001."
                )
            value = evaluated(text, f"{option_string} {key}")
            options[key] = value if _is_plain(value) else text
        setattr(namespace, self.dest, options)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _expression_of(value: Any) -> str:
    """The text that :func:`evaluated` reads as the value, where it knows what is in it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_expression_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_expression_of, value)) + "]"
    if isinstance(value, type):
        known = next((name for name, entry in KEY_TO_CLASS.items() if entry is value), None)
        module = "nn" if issubclass(value, th.nn.Module) else "th.optim"
        return known or f"{module}.{value.__name__}"
    return repr(value)


# -- what a run folder names ------------------------------------------------------------------------------------------


def check_links(run_folder: str | Path) -> None:
    """
    Check that there is no symbolic link in a run folder: files are written into it, and would be written elsewhere.

    :param run_folder: the folder
    :raises ConfigurationError: when there is one
    """
    for path in Path(run_folder).rglob("*"):
        try:
            check_no_link(path)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error


def check_modules(names: list[str], run_folder: str | Path) -> None:
    """
    Check that none of the modules that a run folder names lies in it or in another run, for importing it would run it.

    :param names: modules, or paths of classes
    :param run_folder: the folder
    :raises ConfigurationError: when one does
    """
    folder = _folder_of_runs(Path(run_folder).resolve())
    for name in names:
        path = ""
        for part in name.split("."):
            path = os.path.join(path, part)
            for file in _files_of_module(path):
                if Path(file).resolve().is_relative_to(folder):
                    raise ConfigurationError(
                        f"{run_folder} names the module {name}, which is {file}, in a folder of runs: a run folder "
                        "is data, and importing it would run it. Move the module elsewhere if it is yours."
                    )


def _files_of_module(path: str) -> list[str]:
    """What an import runs: a module, or the beginning of a package. A folder without that is none."""
    bases = [os.path.join(root, path, "") + "__init__" for root in sys.path] + [os.path.join(root, path) for root in sys.path]
    return [base + suffix for base in bases for suffix in all_suffixes() if os.path.isfile(base + suffix)]


def _folder_of_runs(run_folder: Path) -> Path:
    """The log folder of a run (log folder / algorithm / run), as far up as nothing is imported from it anyway."""
    roots = {Path(root or ".").resolve() for root in sys.path}
    folder = run_folder
    while folder != run_folder.parents[1] and run_folder.parent.name in ALGOS and folder.parent not in roots:
        folder = folder.parent
    return folder


def check_classes(hyperparams: Mapping[str, Any], run_folder: str | Path) -> None:
    """
    Check what the configuration of a run folder names by the path of its class: rl_zoo3 imports it and calls it.

    :param hyperparams: the configuration
    :param run_folder: the folder
    :raises ConfigurationError: when it is not of the kind that belongs there
    """
    for key, kind in KEY_TO_KIND.items():
        entries = hyperparams.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            name = str(next(iter(entry))) if isinstance(entry, dict) else str(entry)
            module, dot, attribute = name.rpartition(".")
            if not dot and key == "policy":
                continue  # an alias of the algorithm
            check_modules([name], run_folder)
            found = getattr(importlib.import_module(module), attribute, None) if dot else None
            if not (isinstance(found, type) and issubclass(found, kind)):
                raise ConfigurationError(
                    f"{run_folder} has {key}: {name}, which is no {kind.__name__}: from a run folder nothing else is called."
                )
