"""A replay buffer as a folder of arrays, and back."""

from pathlib import Path
from typing import Any

from hipi_sb3.experience.files import read_state, space_from_json, space_to_json, write_state
from hipi_sb3.her_arguments import ASK_FOR_HER
from hipi_sb3.relabel.log_partition import KEY_TO_LOG_PARTITION
from hipi_sb3.relabel.strategies import KEY_TO_STRATEGY


def save_buffer(buffer: Any, path: str | Path) -> None:
    """
    Write a buffer, see :meth:`HIPIReplayBuffer.save <hipi_sb3.buffers.HIPIReplayBuffer.save>`.

    :param buffer: the buffer
    :param path: folder
    """
    family = buffer.require_family()
    state = {
        "observation_space": space_to_json(buffer.observation_space),
        "action_space": space_to_json(buffer.action_space),
        "n_rows": buffer.buffer_size,
        "n_envs": buffer.n_envs,
        "options": {name: getattr(buffer, name) for name in ("handle_timeout_termination", "gamma")}
        | buffer.relabeler.options(),
        # Where the other two were not given, they are the algorithm's: of the one that loads it, too.
        "given": dict(zip(("n_steps", "gamma"), buffer._given, strict=True)),
        "tasks": {"space": space_to_json(family.task_space), "feature_dim": family.feature_dim},
        **buffer.relabeler.state_dict(),
        **buffer.experience.state_dict(),
    }
    write_state(path, state)


def load_buffer(kind: Any, path: str | Path, model: Any, mmap: bool, options: dict[str, Any]) -> Any:
    """
    Read a buffer, see :meth:`HIPIReplayBuffer.load <hipi_sb3.buffers.HIPIReplayBuffer.load>`.

    :param kind: class of the buffer
    :param path: folder
    :param model: the algorithm that it will belong to, if any
    :param mmap: map the arrays of a full buffer into memory instead of reading them
    :param options: options of the constructor that replace the saved ones
    :return: the buffer
    """
    state = read_state(path, mmap)
    given = {} if model is None else model.replay_buffer_kwargs
    saved = _restore_options(state["options"], options, given, path)
    if model is not None:
        saved |= state.get("given", {})
    if not options.keys().isdisjoint(ASK_FOR_HER):
        saved |= {"strategy": None, "relabel_prob": None}
    if "family" in given:
        options.setdefault("family", given["family"])
    buffer = kind(
        state["n_rows"] * state["n_envs"],
        space_from_json(state["observation_space"]),
        space_from_json(state["action_space"]),
        n_envs=state["n_envs"],
        **{"device": "auto" if model is None else model.device, **saved, **options},
    )
    if model is not None:
        buffer.attach(model)
    if buffer.family is None:
        raise ValueError(
            f"The buffer in {path} needs its task family, and code is not saved. Pass family=... to "
            "HIPIReplayBuffer.load, or a model that has its environment (model.set_env(env))."
        )
    tasks = {"space": space_to_json(buffer.family.task_space), "feature_dim": buffer.family.feature_dim}
    if tasks != state["tasks"]:
        raise ValueError(
            f"The buffer in {path} holds transitions of tasks in {space_from_json(state['tasks']['space'])} with "
            f"{state['tasks']['feature_dim']} features, but {type(buffer.family).__name__} has "
            f"{buffer.family.task_space} with {buffer.family.feature_dim}. Use the family that it was filled with."
        )
    buffer.relabeler.load_state_dict(state)
    buffer.experience.load_state_dict(state)
    buffer.pos, buffer.full = state["pos"], state["full"]
    return buffer


def _restore_options(saved: dict[str, Any], options: dict[str, Any], given: dict[str, Any], path: Any) -> dict[str, Any]:
    """
    Make the objects among saved options again, see :meth:`Relabeler.options
    <hipi_sb3.relabel.relabeler.Relabeler.options>`.

    :param saved: what was saved
    :param options: options that replace them
    :param given: options that the algorithm was made with, which may hold objects of a user's classes
    :param path: file, for the error
    :return: arguments of the constructor
    :raises ValueError: when an object was of a class that is not the package's, and none is given
    """
    saved = dict(saved)
    for name, registry in (("strategy", KEY_TO_STRATEGY), ("log_partition", KEY_TO_LOG_PARTITION)):
        if name in options or saved[name] is None:
            continue
        key = saved[name]["name"]
        if key is not None:
            saved[name] = registry[key](**saved[name]["arguments"])
        elif type(given.get(name)).__qualname__ == saved[name]["class"]:
            saved[name] = given[name]
        else:
            raise ValueError(
                f"The buffer in {path} had an object of the class {saved[name]['class']} as its {name}, and code is not "
                f"saved. Pass {name}=... to HIPIReplayBuffer.load, or in replay_buffer_kwargs to the algorithm."
            )
    return saved
