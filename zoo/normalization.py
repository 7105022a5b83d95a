"""``VecNormalize`` in a file of plain numbers, in the place of stable-baselines3's pickle, which can run any code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from hipi_sb3.experience.whole import whole_file
from hipi_sb3.tasks.goal_env import is_goal_space
from zoo.errors import ConfigurationError

#: Its file, beside the configuration of a run, and the one that rl_zoo3 writes.
NORMALIZATION = "vecnormalize.json"
PICKLED = "vecnormalize.pkl"

_SETTINGS = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")


class PlainVecNormalize(VecNormalize):
    """
    ``VecNormalize`` that is saved as JSON.

    :param args: as in ``VecNormalize``
    :param kwargs: as in ``VecNormalize``
    """

    def save(self, save_path: str) -> None:
        """
        Save settings and statistics. Whenever the process is killed, the file is the old one or the new one.

        :param save_path: the path at which rl_zoo3 wants a pickle; the file beside it is written
        """
        path = Path(save_path).with_suffix(".json")
        state = {"settings": {name: getattr(self, name) for name in _SETTINGS}, **statistics_to_json(self)}
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(state, indent=1) + "\n")

    @staticmethod
    def load(load_path: str, venv: VecEnv) -> VecNormalize:
        """
        Wrap an environment as the saved one was.

        :param load_path: file
        :param venv: environment
        :return: wrapped environment
        :raises ConfigurationError: when the file is damaged
        """
        try:
            state = json.loads(Path(load_path).read_text())
            env = PlainVecNormalize(venv, **state["settings"])
            statistics_from_json(env, state)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"{load_path} is damaged ({error}): it has to be what train.py wrote.") from error
        return env


def load_normalization(folder: Path, venv: VecEnv, trust: bool) -> VecNormalize | None:
    """
    Wrap an environment as that of a run was.

    :param folder: folder with the file, that of the configuration
    :param venv: environment
    :param trust: whether a pickle may be read
    :return: wrapped environment; None if there is no file
    :raises ConfigurationError: when there is a pickle, and it may not be read
    """
    if (folder / NORMALIZATION).is_file():
        return PlainVecNormalize.load(str(folder / NORMALIZATION), venv)
    if not (folder / PICKLED).exists():
        return None
    check_trust(folder / PICKLED, trust)
    return VecNormalize.load(str(folder / PICKLED), venv)


def check_trust(path: Path, trust: bool) -> None:
    """
    Refuse a pickled file, unless the user trusts it.

    :param path: the file
    :param trust: whether the user does
    :raises ConfigurationError: when not
    """
    if not trust:
        raise ConfigurationError(
            f"{path} is pickled, and a pickle can run any code when it is read. If you wrote the file yourself or trust "
            "whoever did, add --trust."
        )


def make_normalization(env: VecEnv, **kwargs: Any) -> PlainVecNormalize:
    """
    Normalise environments. Tasks that are cut off look alike, and the buffer refuses that: where there are tasks nothing is
    clipped unless it is asked for, as rl_zoo3 would at 10 for ``normalize: true``.

    :param env: environments
    :param kwargs: as in ``VecNormalize``
    :return: the normalisation
    """
    has_tasks = env.has_attr("task_family") or is_goal_space(env.observation_space)
    return PlainVecNormalize(env, **({"clip_obs": np.inf} if has_tasks else {}) | kwargs)


def statistics_to_json(env: VecNormalize) -> dict[str, Any]:
    """
    Running mean and variance of observations and returns.

    :param env: environment
    :return: plain values
    """
    obs_rms: Any = getattr(env, "obs_rms", None)
    if isinstance(obs_rms, dict):
        obs_rms = {"parts": {key: _numbers_of(part) for key, part in obs_rms.items()}}
    elif obs_rms is not None:
        obs_rms = _numbers_of(obs_rms)
    return {"observations": obs_rms, "returns": _numbers_of(env.ret_rms)}


def statistics_from_json(env: VecNormalize, state: dict[str, Any]) -> None:
    """
    Set the statistics of an environment.

    :param env: environment
    :param state: what :func:`statistics_to_json` returned
    """
    env.ret_rms = _rms_of(state["returns"])
    obs_rms = state["observations"]
    if obs_rms is not None and "parts" in obs_rms:
        env.obs_rms = {key: _rms_of(part) for key, part in obs_rms["parts"].items()}
    elif obs_rms is not None:
        env.obs_rms = _rms_of(obs_rms)  # type: ignore[assignment]


def _numbers_of(rms: RunningMeanStd) -> dict[str, Any]:
    return {"mean": np.asarray(rms.mean).tolist(), "var": np.asarray(rms.var).tolist(), "count": float(rms.count)}


def _rms_of(numbers: dict[str, Any]) -> RunningMeanStd:
    rms = RunningMeanStd(shape=np.shape(numbers["mean"]))
    rms.mean, rms.var = np.array(numbers["mean"], dtype=np.float64), np.array(numbers["var"], dtype=np.float64)
    rms.count = numbers["count"]
    return rms
