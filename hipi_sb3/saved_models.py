"""Files of models without code in them: what stable-baselines3 pickles is written as plain values, and read back as such."""

import base64
import importlib
import io
import itertools
import json
import pickle
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import GymEnv, TrainFreq, TrainFrequencyUnit
from torch import nn
from torch.optim import Optimizer

from hipi_sb3.buffers import HIPIReplayBuffer
from hipi_sb3.experience.archives import check_archive, check_torch_file
from hipi_sb3.experience.files import space_from_json, space_to_json
from hipi_sb3.names import describe, lookup
from hipi_sb3.owner import truncate_goal_env
from hipi_sb3.relabel.log_partition import KEY_TO_LOG_PARTITION
from hipi_sb3.relabel.strategies import KEY_TO_STRATEGY

#: Keys of a pickled entry of a file, as stable-baselines3 writes it, and of a plain one.
PICKLED, PLAIN = ":serialized:", ":plain:"

#: Modules whose classes are written by name, and what such a class has to be.
_MODULES = ("hipi_sb3.", "stable_baselines3.", "sb3_contrib.", "torch.nn.", "torch.optim.")
_CLASSES = (nn.Module, BaseBuffer, Optimizer)
#: Objects that are nothing but their attributes.
_OBJECTS = {
    *(f"stable_baselines3.common.utils:{name}" for name in ("FloatSchedule", "ConstantSchedule", "LinearSchedule")),
    *(
        f"stable_baselines3.common.noise:{name}"
        for name in ("NormalActionNoise", "OrnsteinUhlenbeckActionNoise", "VectorizedActionNoise")
    ),
    "rl_zoo3.utils:SimpleLinearSchedule",
    "hipi_sb3.cloning.labels:TrajectoryLabeler",
    "hipi_sb3.relabel.posterior:TaskInference",
    *(f"hipi_sb3.tasks.goals:{name}" for name in ("GoalReaching", "GoalMargin")),
    "hipi_sb3.tasks.linear:TargetVelocity",
}
#: Objects that are made from a name and arguments.
_TABLES: tuple[Mapping[str, type], ...] = (KEY_TO_STRATEGY, KEY_TO_LOG_PARTITION)

_WHOLE = (int, np.integer)
_NUMBER = (int, float, np.number)
_SCHEDULE = (*_NUMBER, Callable)
_ABSENT: tuple[Any, ...] = (type(None),)
#: Entries that stable-baselines3 reads, and what they have to be: of an ``env`` that is a text it would import the module that
#: stands there. What ``save`` leaves out has no business in a file.
ENTRIES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("env", "eval_env", "policy", "actor", "critic", "critic_target", "q_net", "q_net_target", "quantile_net"), _ABSENT
    ),
    **dict.fromkeys(("quantile_net_target", "log_ent_coef", "ent_coef_tensor", "ent_coef_optimizer", "device"), _ABSENT),
    **dict.fromkeys(("replay_buffer", "rollout_buffer", "_vec_normalize_env", "_episode_storage", "_logger"), _ABSENT),
    **dict.fromkeys(("observation_space", "action_space"), (spaces.Space, *_ABSENT)),
    **dict.fromkeys(("_last_obs", "_last_original_obs"), (np.ndarray, dict, *_ABSENT)),
    **dict.fromkeys(("lr_schedule", "exploration_schedule", "learning_rate"), _SCHEDULE),
    **dict.fromkeys(("ent_coef", "target_entropy"), (str, *_NUMBER)),
    **dict.fromkeys(("policy_kwargs", "replay_buffer_kwargs"), (dict, *_ABSENT)),
    **dict.fromkeys(("n_envs", "n_steps", "buffer_size", "batch_size", "gradient_steps"), _WHOLE),
    **dict.fromkeys(("_n_updates", "verbose", "_episode_num", "_stats_window_size"), _WHOLE),
    # Only compared and divided by: learn(1e5) leaves a number with a point, and so does learning_starts=1e4.
    **dict.fromkeys(("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "learning_starts"), _NUMBER),
    **dict.fromkeys(("policy_delay", "target_update_interval"), _NUMBER),
    **dict.fromkeys(("use_sde", "use_sde_at_warmup", "optimize_memory_usage"), (bool,)),
    **dict.fromkeys(("gamma", "tau", "sde_sample_freq", "_current_progress_remaining"), _NUMBER),
    **dict.fromkeys(("ep_info_buffer", "ep_success_buffer"), (deque, *_ABSENT)),
    "seed": (int, *_ABSENT),
    "action_noise": (ActionNoise, *_ABSENT),
    "train_freq": (TrainFreq, int, tuple),
    "tensorboard_log": (str, *_ABSENT),
    "policy_class": (type[BasePolicy],),
    "replay_buffer_class": (type[ReplayBuffer], *_ABSENT),
    "rollout_buffer_class": (type[RolloutBuffer], *_ABSENT),
}
#: The same for the entries of ``policy_kwargs``.
POLICY_ENTRIES: dict[str, tuple[Any, ...]] = {
    "features_extractor_class": (type[BaseFeaturesExtractor], *_ABSENT),
    "activation_fn": (type[nn.Module],),
    "optimizer_class": (type[Optimizer],),
    **dict.fromkeys(("features_extractor_kwargs", "optimizer_kwargs"), (dict, *_ABSENT)),
}

#: Entries of ``policy_kwargs`` that say how many weights there are: of each unit of each layer one at least.
_SIZES = {"net_arch", "features_extractor_kwargs", "n_critics", "n_quantiles"}

#: What torch says to a file that it cannot read, or that holds more than it may.
_UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, EOFError)


class NotPlain(TypeError):
    """Something that has no plain form: code, above all."""


class PlainFiles:
    """
    Mixin for algorithms of stable-baselines3: ``save`` and ``save_replay_buffer`` write no pickle, and ``load`` and
    ``load_replay_buffer`` read none unless it is trusted.
    """

    replay_buffer: ReplayBuffer | None

    def save(
        self, path: str | Path | io.BufferedIOBase, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """
        Save the model as a zip file, as stable-baselines3 does, but spaces, schedules, classes and arrays as plain values.
        Only what is your own code (a schedule that is a function, a class of yours) is still pickled.

        :param path: file or stream
        :param exclude: attributes to leave out besides the usual ones
        :param include: attributes to keep that are usually left out
        """
        stream = io.BytesIO()
        super().save(stream, exclude, include)  # type: ignore[misc]
        _write_plain(stream, vars(self), path)

    @classmethod
    def load(
        cls,
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: Any = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trust: bool = False,
        **kwargs: Any,
    ) -> Self:
        """
        Load a model. Arguments as in stable-baselines3, and:

        :param trust: whether to unpickle what is pickled in the file, which runs whatever code its writer put there
        :return: the model
        :raises ValueError: when something in the file is pickled and neither trusted nor given in ``custom_objects``
        """
        objects = plain_objects(path, trust, custom_objects, cls)  # type: ignore[arg-type]
        try:
            return super().load(path, env, device, objects, print_system_info, force_reset, **kwargs)  # type: ignore[misc]
        except _UNREADABLE as error:
            raise ValueError(f"{path} holds more than tensors, or is damaged ({_line_of(error)}): it is not read.") from error
        except Exception as error:
            error.add_note(f"This was in {path}.")
            raise

    def save_replay_buffer(self, path: str | Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer: HIPI's into a folder, see :meth:`HIPIReplayBuffer.save
        <hipi_sb3.buffers.HIPIReplayBuffer.save>`, another one, or into a stream, by pickle as stable-baselines3 does.

        :param path: folder, which may hold an earlier buffer, or stream
        """
        if isinstance(self.replay_buffer, HIPIReplayBuffer) and isinstance(path, str | Path):
            self.replay_buffer.save(path)
        else:
            super().save_replay_buffer(path)  # type: ignore[misc]

    def load_replay_buffer(
        self, path: str | Path | io.BufferedIOBase, truncate_last_traj: bool = True, trust: bool = False
    ) -> None:
        """
        Load a replay buffer: from a folder, or a pickled one.

        :param path: folder, pickle file or stream
        :param truncate_last_traj: whether the last episode, if it is unfinished, ends where it was left; only in a GoalEnv, as
            for ``HerReplayBuffer``
        :param trust: whether to unpickle what is no folder, which runs whatever code its writer put there
        :raises ValueError: when it is damaged, pickled and not trusted, or does not fit this algorithm; the present one stays
        """
        if isinstance(path, str | Path) and Path(path).is_dir():
            mine = type(self.replay_buffer)
            kind = mine if issubclass(mine, HIPIReplayBuffer) else HIPIReplayBuffer
            self.replay_buffer = buffer = kind.load(path, self)  # type: ignore[arg-type]
            if truncate_last_traj:
                truncate_goal_env(buffer)
            return
        if not trust:
            file = open_path(path, "r", suffix="pkl")  # or there is none
            if file is not path:
                file.close()
            raise ValueError(
                f"{path} is a pickled buffer, and reading it runs whatever code its writer put there. If you know where it "
                "comes from, pass trust=True; save_replay_buffer(folder) writes HIPI's buffers without pickle."
            )
        super().load_replay_buffer(path, truncate_last_traj)  # type: ignore[misc]


def plain_objects(
    path: str | Path | io.BufferedIOBase,
    trust: bool = False,
    custom_objects: dict[str, Any] | None = None,
    kind: type[OffPolicyAlgorithm] = OffPolicyAlgorithm,
) -> dict[str, Any]:
    """
    What stands in a model's file in plain form. ``SAC.load(path, custom_objects=plain_objects(path))`` of stable-baselines3
    loads it.

    :param path: file or stream, which is left where it is
    :param trust: whether pickled entries may be left to stable-baselines3
    :param custom_objects: entries that the file's are not asked for
    :param kind: the algorithm
    :return: entries by name
    :raises ValueError: when an entry is pickled and is neither trusted nor given, or is nothing that belongs there
    """
    given = dict(custom_objects or {})
    data, n_policy_bytes = _read_data(path)
    pickled = [name for name, entry in data.items() if name not in given and isinstance(entry, dict) and PICKLED in entry]
    if pickled and not trust:
        raise ValueError(
            f"{path} holds pickled objects ({', '.join(pickled)}), and reading them runs whatever code its writer put there: "
            "it was written by stable-baselines3 itself or by an earlier version, or holds code such as a schedule that is a "
            "function. If you know where it comes from, pass trust=True; or give these objects yourself in custom_objects=..."
        )
    found = {}
    for name in data.keys() - given.keys() - set(pickled):
        entry = data[name]
        try:
            found[name] = decode(entry[PLAIN]) if isinstance(entry, dict) and PLAIN in entry else entry
            _check_entry(name, found[name], kind)
        except (ValueError, TypeError, LookupError, AttributeError, ImportError, ArithmeticError, RecursionError) as error:
            raise ValueError(
                f"{path}, entry {name!r}: {' '.join(str(error).split())} Nothing of the file was loaded. Load another copy, "
                f"or give this entry yourself in custom_objects=dict({name}=...)."
            ) from error
    _check_sizes(path, found.get("policy_kwargs"), n_policy_bytes)
    return found | given


def _check_sizes(path: Any, policy_kwargs: dict[str, Any] | None, n_bytes: int | None) -> None:
    """Check that networks are no larger than their weights in the file: they would be made before these are read."""
    if policy_kwargs is None or n_bytes is None:
        return
    for name in _SIZES & policy_kwargs.keys():
        asked = policy_kwargs[name]
        for part in asked.values() if isinstance(asked, dict) else [asked]:
            sizes = [size for size in (part if isinstance(part, list | tuple) else [part]) if isinstance(size, int)]
            if 4 * sum([*sizes, *(first * second for first, second in itertools.pairwise(sizes))]) > n_bytes:  # float32
                raise ValueError(
                    f"{path} asks for {name}={part!s:.60}, but its weights have {n_bytes} bytes: it is damaged, or made to "
                    "fill the memory. Nothing of it was loaded."
                )


def read_tensors(path: str | Path, device: Any) -> Any:
    """
    Read a file of ``torch.save`` that holds tensors and plain values.

    :param path: file
    :param device: PyTorch device
    :return: what is in it
    :raises ValueError: when it is damaged, or holds anything else
    """
    with open(path, "rb") as file:
        check_torch_file(file, path)
    try:
        return th.load(path, map_location=device, weights_only=True)
    except (*_UNREADABLE, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or holds more than tensors and plain values ({_line_of(error)}): it is not read."
        ) from error


def _line_of(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _read_data(path: str | Path | io.BufferedIOBase) -> tuple[dict[str, Any], int | None]:
    """The JSON of a model's file, after a look at what else is in it."""
    start = path.tell() if isinstance(path, io.IOBase) else 0
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            check_archive(archive, path)
            for name in archive.namelist():
                if name.endswith(".pth"):
                    check_torch_file(io.BytesIO(archive.read(name)), f"{path}, entry {name!r}")
            data = json.loads(archive.read("data")) if "data" in archive.namelist() else {}
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError, json.JSONDecodeError, RuntimeError, EOFError) as error:
        raise ValueError(f"Error: the file {path} wasn't a zip-file of a model ({error}). Load another copy of it.") from error
    finally:
        file.seek(start) if isinstance(path, io.IOBase) else file.close()
    if not isinstance(data, dict):
        raise ValueError(f"Error: the file {path} wasn't a zip-file of a model (no entries). Load another copy of it.")
    return data, sizes.get("policy.pth")


def _check_entry(name: str, value: Any, kind: type) -> None:
    """Check that an entry is what the algorithm takes it for: attributes of that name are set to it."""
    known = getattr(kind, name, None)
    if callable(known) or isinstance(known, property) or name.startswith("__"):
        raise ValueError(f"{name} is a method of {kind.__name__}, which no file replaces.")
    _check_type(name, value, ENTRIES.get(name))
    if name == "policy_kwargs":
        for key, entry in (value or {}).items():
            _check_type(f"{name}[{key!r}]", entry, POLICY_ENTRIES.get(key))


def _check_type(name: str, value: Any, kinds: tuple[Any, ...] | None) -> None:
    if kinds is None:
        return
    bases = [next(iter(getattr(kind, "__args__", ())), None) for kind in kinds]  # of type[Base]
    is_class = isinstance(value, type)
    for kind, base in zip(kinds, bases, strict=True):
        if issubclass(value, base or ()) if is_class else base is None and isinstance(value, kind):
            return
    wanted = [
        "nothing" if kind is type(None) else f"a {kind.__name__}" if base is None else f"a class of {base.__name__}"
        for kind, base in zip(kinds, bases, strict=True)
    ]
    raise ValueError(f"{name} is {str(value)[:60]!r}, but has to be {' or '.join(wanted)}.")


def _write_plain(source: io.BytesIO, values: Mapping[str, Any], path: Any) -> None:
    """Write the zip file that stable-baselines3 has made with pickled entries replaced by plain ones."""
    with zipfile.ZipFile(source) as archive:
        data = json.loads(archive.read("data"))
        for name, entry in data.items():
            if isinstance(entry, dict) and PICKLED in entry:
                try:
                    data[name] = {PLAIN: encode(values[name])}
                except NotPlain:
                    pass  # it stays pickled, and load says so
        file = open_path(path, "w", suffix="zip")
        with zipfile.ZipFile(file, "w") as target:
            for name in archive.namelist():
                target.writestr(name, json.dumps(data, indent=4) if name == "data" else archive.read(name))
        if file is not path:
            file.close()


def encode(value: Any) -> Any:
    """
    A value as JSON.

    :param value: the value
    :return: numbers, strings, lists, and dicts of one kind each
    :raises NotPlain: when it has no such form
    """
    if value is None or (isinstance(value, bool | int | float | str) and type(value).__module__ == "builtins"):
        return value
    for kind, (types, to_plain, _) in _KINDS.items():
        if isinstance(value, types):
            return {kind: to_plain(value)}
    if type(value) is list:
        return [encode(entry) for entry in value]
    return _encode_object(value)


def decode(entry: Any) -> Any:
    """
    The value of :func:`encode`.

    :param entry: what that returned
    :return: the value
    :raises ValueError: when it is nothing that could be written
    """
    if isinstance(entry, list):
        return [decode(part) for part in entry]
    if not isinstance(entry, dict):
        return entry
    if len(entry) != 1:
        raise ValueError(f"{entry} is no entry that save wrote.")
    kind, content = next(iter(entry.items()))
    if kind == "object":
        return _decode_object(content)
    return lookup("kind of entry in a model's file", kind, _KINDS)[2](content)


def _encode_object(value: Any) -> dict[str, Any]:
    for number, table in enumerate(_TABLES):
        made = describe(value, table)
        if made["name"] is not None:
            return {"object": {"table": number, "name": made["name"], "arguments": encode(made["arguments"])}}
    name = _name_of(type(value))
    if name not in _OBJECTS:
        raise NotPlain(f"{value!r} has no plain form.")
    return {"object": {"class": name, "state": encode(vars(value))}}


def _decode_object(content: dict[str, Any]) -> Any:
    if "table" in content:
        return lookup("object", content["name"], _TABLES[content["table"]])(**decode(content["arguments"]))
    if content["class"] not in _OBJECTS:
        raise ValueError(f"The file asks for an object of {content['class']}, which no model has. Do not trust this file.")
    kind = _named(content["class"])
    made = object.__new__(kind)
    made.__dict__.update(decode(content["state"]))
    return made


def _name_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _named(name: str) -> Any:
    """The class of that name, None if there is none."""
    if re.fullmatch(r"[a-z]\w*(\.\w+)*:\w+", name) is None or "__" in name:
        return None
    module, _, qualname = name.partition(":")
    return getattr(importlib.import_module(module), qualname, None)


def _encode_class(kind: type) -> str:
    name = _name_of(kind)
    if issubclass(kind, np.generic):
        return np.dtype(kind).name
    if not (name.startswith(_MODULES) and "<" not in name and issubclass(kind, _CLASSES) and _named(name) is kind):
        raise NotPlain(f"{kind} is a class of yours.")
    return name


def _decode_class(name: str) -> type:
    if ":" not in name:
        return np.dtype(name).type
    kind = _named(name) if name.startswith(_MODULES) else None
    if not (isinstance(kind, type) and issubclass(kind, _CLASSES)):
        raise ValueError(
            f"The file asks for {name}, which is neither a policy nor a network or buffer. Do not trust this file."
        )
    return kind


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    if array.dtype.kind not in "biuf":
        raise NotPlain(f"An array of {array.dtype} has no plain form.")
    content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "content": content}


def _decode_array(entry: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(entry["dtype"])
    if min(entry["shape"], default=0) < 0:
        raise ValueError(f"There is no array of shape {entry['shape']}.")
    if dtype.kind not in "biuf":
        raise ValueError(f"The file asks for an array of {dtype}, which no model has. Do not trust this file.")
    return np.frombuffer(base64.b64decode(entry["content"]), dtype).reshape(entry["shape"]).copy()


def _encode_space(space: spaces.Space) -> dict[str, Any]:
    try:
        entry = space_to_json(space)
    except ValueError as error:
        raise NotPlain(str(error)) from error
    generator = space._np_random
    return {"space": entry, "generator": None if generator is None else encode(generator.bit_generator.state)}


def _decode_space(entry: dict[str, Any]) -> spaces.Space:
    space = space_from_json(entry["space"])
    if entry["generator"] is not None:
        space.seed(0)
        space.np_random.bit_generator.state = decode(entry["generator"])
    return space


def _encode_dict(values: dict[Any, Any]) -> dict[str, Any]:
    if not all(isinstance(key, str) for key in values):
        raise NotPlain(f"The keys {list(values)} are not all strings.")
    return {key: encode(value) for key, value in values.items()}


#: Kind of an entry: types of the value, value to JSON, JSON to value.
_KINDS: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "number": (np.generic, lambda value: value.item(), lambda value: value),
    "array": (np.ndarray, _encode_array, _decode_array),
    "space": (spaces.Space, _encode_space, _decode_space),
    "class": (type, _encode_class, _decode_class),
    "train_freq": (TrainFreq, lambda freq: [freq[0], freq[1].value], lambda e: TrainFreq(e[0], TrainFrequencyUnit(e[1]))),
    "tuple": (tuple, lambda values: [encode(value) for value in values], lambda entry: tuple(map(decode, entry))),
    "deque": (
        deque,
        lambda values: [values.maxlen, [encode(value) for value in values]],
        lambda entry: deque(map(decode, entry[1]), maxlen=entry[0]),
    ),
    "dict": (dict, _encode_dict, lambda entry: {key: decode(value) for key, value in entry.items()}),
}
