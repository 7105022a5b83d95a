"""Many points in one maze as a ``VecEnv`` of stable-baselines3."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from hipi_sb3.envs.point_vector import PointVectorEnv


class PointVecEnv(VecEnv):
    """
    A :class:`~hipi_sb3.envs.point_vector.PointVectorEnv` for the algorithms of stable-baselines3.

    It does what a ``DummyVecEnv`` of the same environments does with the same seeds, many times as fast::

        envs = gym.make_vec("PointFourRooms-v0", num_envs=64, vectorization_mode="vector_entry_point")
        model = HIPISAC("MultiInputPolicy", PointVecEnv(envs))

    There is one environment inside, whose attributes all copies have; their own are ``task`` and ``fixed_task``. Put it into
    ``VecMonitor`` for the returns in the log. An ended episode is followed by the next one in the same step, whatever the
    ``autoreset_mode`` of ``env`` says.

    :param env: the environments
    :raises TypeError: when they are not a ``PointVectorEnv``
    """

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        if not isinstance(env, PointVectorEnv):
            raise TypeError(
                "PointVecEnv needs a PointVectorEnv, which gymnasium.make_vec(id, vectorization_mode='vector_entry_point') "
                f"makes of the point environments, not {type(env).__name__}. Use make_vec_env of stable-baselines3 for others."
            )
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.actions: np.ndarray | None = None

    def reset(self) -> VecEnvObs:
        self.env.begin(np.arange(self.num_envs), self._seeds, [options.get("task") for options in self._options])
        self.reset_infos = [{"task": task} for task in self.env.tasks.copy()]
        # Seeds and options are only used once.
        self._reset_seeds()
        self._reset_options()
        return self.env.observations()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        assert self.actions is not None, "Call step_async() first."
        env = self.env
        outcome = env.advance(self.actions)
        dones = outcome.terminated | outcome.truncated
        timeouts = (outcome.truncated & ~outcome.terminated).tolist()
        # Written out, key by key: making these dictionaries takes as long as the step.
        infos = [
            {"task": task, "task_features": features, "env_terminated": False, "TimeLimit.truncated": timeout}
            for task, features, timeout in zip(env.tasks.copy(), outcome.task_features, timeouts, strict=True)
        ]
        if outcome.is_success is not None:
            for info, is_success in zip(infos, outcome.is_success.tolist(), strict=True):
                info["is_success"] = is_success
        obs = env.observations()
        ended = np.flatnonzero(dones)
        if len(ended) > 0:
            for i in ended:
                infos[i]["terminal_observation"] = _row(obs, i)
            env.begin(ended)
            for i in ended:
                self.reset_infos[i] = {"task": env.tasks[i].copy()}
            obs = env.observations()
        return obs, outcome.rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self.env.render() or [None] * self.num_envs

    # -- what DummyVecEnv asks of each environment ----------------------------------------------------------------------

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        rows = list(self._get_indices(indices))
        if attr_name == "fixed_task":
            return [self.env.fixed_tasks[i] for i in rows]
        if attr_name == "task":
            return [self.env.tasks[i].copy() for i in rows]
        if attr_name == "np_random":
            return [self.env.np_random[i] for i in rows]
        return [self.env.single.get_wrapper_attr(attr_name)] * len(rows)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise AttributeError(
            f"PointVecEnv cannot set {attr_name!r}: all environments share one. Pass it to gymnasium.make_vec, or call "
            'env_method("fix_task", task) for the tasks.'
        )

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        rows = list(self._get_indices(indices))
        if method_name == "fix_task":
            for i in rows:
                self.env.fix_task(i, *method_args, **method_kwargs)
            return [None] * len(rows)
        if method_name == "render":
            images = self.env.render()
            return [None if images is None else images[i] for i in rows]
        if method_name in ("plot_trajectories", "get_wrapper_attr", "has_wrapper_attr"):
            method = getattr(self.env.single, method_name, None) or self.env.single.get_wrapper_attr(method_name)
            return [method(*method_args, **method_kwargs) for _ in rows]
        raise AttributeError(
            f"PointVecEnv has no method {method_name!r} for one of its environments: they are stepped together. It has "
            "'fix_task', 'plot_trajectories' and 'render'."
        )

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [is_wrapped(self.env.single, wrapper_class) for _ in self._get_indices(indices)]


def _row(obs: Any, index: int) -> Any:
    return {key: value[index].copy() for key, value in obs.items()} if isinstance(obs, dict) else obs[index].copy()
