"""Environments in the actors of a Ray cluster, as one ``VecEnv``: the processes may stand on other machines."""

import logging
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

#: Methods whose effect lasts: an actor that takes a dead one's place is called with them again.
LASTING_METHODS = ("fix_task",)

_logger = logging.getLogger(__name__)


class RayVecEnv(VecEnv):
    """
    A ``VecEnv`` whose environments live in Ray actors, on this machine or on a cluster.

    It gives what a ``DummyVecEnv`` of the same functions gives with the same seeds, in the same order::

        env = RayVecEnv([make_env] * 64, envs_per_actor=8)                                       # eight processes here
        env = RayVecEnv([make_env] * 64, envs_per_actor=8, address="ray://head-node:10001")      # eight on a cluster

    A function may also return a ``VecEnv``, such as :class:`~hipi_sb3.vec_env.PointVecEnv`, which then has an actor of its own
    (``envs_per_actor=1``).

    An actor that dies is replaced, which is logged as a warning. The episodes in it end as truncated, with the step that was
    lost reported as standing still: last observation, reward and info of the step before, and no ``episode`` in the info, so
    that they do not count as returns. The new actor's environments get other seeds, the attributes of ``set_attr`` and the
    tasks of ``fix_task``. An exception of an environment is no death: it is raised here.

    :param env_fns: functions that make an environment; those that are no functions of a module are sent by value
    :param envs_per_actor: environments that an actor steps one after another
    :param address: of a Ray cluster, such as ``"auto"`` or ``"ray://host:10001"``. If None, Ray as it runs already in this
        process, or else a new one on this machine, which :meth:`close` ends
    :param num_cpus: processors that Ray reserves for an actor
    :param max_restarts: actors that may be replaced before it is an error
    :raises ImportError: when Ray is not installed
    :raises ValueError: when there are no environments, a number is out of range, or the cluster has too few processors
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env | VecEnv]],
        envs_per_actor: int = 1,
        address: str | None = None,
        num_cpus: float = 1,
        max_restarts: int = 100,
    ) -> None:
        if len(env_fns) == 0:
            raise ValueError("RayVecEnv needs at least one environment, but env_fns is empty. Pass a list of functions.")
        if envs_per_actor < 1 or max_restarts < 0:
            raise ValueError(
                f"envs_per_actor must be at least 1 and max_restarts at least 0, not {envs_per_actor} and {max_restarts}."
            )
        groups = [list(env_fns[i : i + envs_per_actor]) for i in range(0, len(env_fns), envs_per_actor)]
        self._ray, self._owns_ray = _connect(address, n_actors=len(groups), num_cpus=num_cpus)
        self._actor_class = self._ray.remote(num_cpus=num_cpus, max_restarts=0)(EnvActor)
        self._groups = groups
        self._max_restarts = max_restarts
        #: Actors that were replaced.
        self.n_restarts = 0
        self._lasting: list[tuple[str, list[int], tuple[Any, ...]]] = []
        self._first_seeds: list[int | None] = []
        self.actors = [self._actor_class.remote(group) for group in groups]
        described = self._ray.get([actor.describe.remote() for actor in self.actors])
        self._sizes = [n_envs for n_envs, *_ in described]
        starts = np.cumsum([0, *self._sizes])
        #: Environments of each actor.
        self.slices = [slice(int(start), int(stop)) for start, stop in pairwise(starts)]
        _, observation_space, action_space, metadata = described[0]
        self.num_envs = int(starts[-1])  # the base class asks for attributes before it sets it
        super().__init__(self.num_envs, observation_space, action_space)
        self.metadata = metadata
        self._last_obs: list[Any] = [None] * len(groups)
        #: Reward and info of each environment's step before, None at the start of an episode.
        self._last_steps: list[tuple[float, dict[str, Any]] | None] = [None] * self.num_envs
        self._actions = np.empty(0)
        self._answers: list[Any] = []
        #: Actors that were replaced between two steps: their episodes have yet to be ended.
        self._lost: set[int] = set()

    # -- steps ----------------------------------------------------------------------------------------------------------

    def reset(self) -> VecEnvObs:
        if any(seed is not None for seed in self._seeds):
            self._first_seeds = list(self._seeds)
        requests = [(self._seeds[where], self._options[where]) for where in self.slices]
        self._lost.clear()
        results = self._ask_all("reset", requests)
        self._last_obs = [obs for obs, _ in results]
        self._last_steps = [None] * self.num_envs
        self.reset_infos = [info for _, infos in results for info in infos]
        # Seeds and options are only used once.
        self._reset_seeds()
        self._reset_options()
        return _concatenated(self._last_obs)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions
        self._answers = [
            None if index in self._lost else actor.step.remote(actions[where])
            for index, (actor, where) in enumerate(zip(self.actors, self.slices, strict=True))
        ]

    def step_wait(self) -> VecEnvStepReturn:
        results = []
        for index, answer in enumerate(self._answers):
            try:
                results.append(self._lost_step(index, None) if answer is None else self._ray.get(answer))
            except self._ray.exceptions.RayActorError as error:
                results.append(self._lost_step(index, error))
        self._answers = []
        self._lost.clear()
        self._last_obs = [result[0] for result in results]
        rewards = np.concatenate([result[1] for result in results])
        dones = np.concatenate([result[2] for result in results])
        infos = [info for result in results for info in result[3]]
        self.reset_infos = [info for result in results for info in result[4]]
        self._last_steps = [None if done else (reward, info) for reward, done, info in zip(rewards, dones, infos, strict=True)]
        return _concatenated(self._last_obs), rewards, dones, infos

    def _lost_step(
        self, index: int, error: Exception | None
    ) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]], list[Any]]:
        """Replace a dead actor unless that is done, and end its episodes as truncated; as :meth:`EnvActor.step` returns it."""
        where, obs = self.slices[index], self._last_obs[index]
        while True:
            if error is not None:
                self._restart(index, error)
            try:
                # An episode that had no step yet has none to repeat: another one's first step, for the same task.
                tasks = [info.get("task") for info in self.reset_infos[where]]
                options = [{} if task is None else {"task": task} for task in tasks]
                steps: list[Any] = self._last_steps[where]
                if None in steps:
                    self._ray.get(self.actors[index].reset.remote([None] * len(steps), options))
                    first_obs, rewards, _, first_infos, _ = self._ray.get(self.actors[index].step.remote(self._actions[where]))
                    terminal = [info.get("terminal_observation", _row(first_obs, i)) for i, info in enumerate(first_infos)]
                new_obs, reset_infos = self._ray.get(
                    self.actors[index].reset.remote(self._new_seeds(where), [{}] * len(steps))
                )
                break
            except self._ray.exceptions.RayActorError as another:
                error = another
        lost = np.zeros(len(steps), dtype=np.float32)
        infos = []
        for i, step in enumerate(steps):
            lost[i], info = step if step is not None else (rewards[i], first_infos[i])
            last = _row(obs, i) if step is not None else terminal[i]
            ended = {"TimeLimit.truncated": True, "terminal_observation": last, "actor_died": True}
            infos.append({key: value for key, value in info.items() if key != "episode"} | ended)
        return new_obs, lost, np.ones(len(steps), dtype=bool), infos, reset_infos

    def _restart(self, index: int, error: Exception) -> None:
        """Put a new actor in the place of a dead one."""
        self.n_restarts += 1
        where = self.slices[index]
        said = " ".join(str(error).split())[:300]
        if self.n_restarts > self._max_restarts:
            raise RuntimeError(
                f"More than max_restarts={self._max_restarts} Ray actors have died, the last one with environments "
                f"{where.start} to {where.stop - 1}: {said} Look for what ends them (memory, machines that leave), or raise "
                "max_restarts."
            ) from error
        _logger.warning(
            "Ray actor %d with environments %d to %d died and is replaced (%d so far); its episodes count as truncated. %s",
            index,
            where.start,
            where.stop - 1,
            self.n_restarts,
            said,
        )
        self.actors[index] = actor = self._actor_class.remote(self._groups[index])
        for name, indices, args in self._lasting:
            own = [i - where.start for i in indices if where.start <= i < where.stop]
            if own:
                actor.call.remote(name, args, {}, own)

    def _new_seeds(self, where: slice) -> list[int | None]:
        """Seeds of an actor that takes a dead one's place: its episodes are not those that have been."""
        seeds = self._first_seeds[where] or [None] * (where.stop - where.start)
        return [None if seed is None else (seed + 1_000_003 * self.n_restarts) % 2**32 for seed in seeds]

    # -- what a VecEnv asks of each environment -------------------------------------------------------------------------

    def close(self) -> None:
        if not self.actors:
            return
        for actor in self.actors:
            try:
                self._ray.get(actor.close.remote())
            except self._ray.exceptions.RayActorError:
                continue  # it is closed already
            self._ray.kill(actor)
        self.actors = []
        if self._owns_ray:
            self._ray.shutdown()

    def get_images(self) -> Sequence[np.ndarray | None]:
        images = self._ask_all("call", [("get_images", (), {}, None) for _ in self.actors])
        return [image for of_actor in images for image in of_actor]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return self._call("get_attr", (attr_name,), {}, indices)

    def has_attr(self, attr_name: str) -> bool:
        return all(self._ask_all("call", [("has_attr", (attr_name,), {}, None) for _ in self.actors]))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        self._lasting.append(("set_attr", list(self._get_indices(indices)), (attr_name, value)))
        self._call("set_attr", (attr_name, value), {}, indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        if method_name in LASTING_METHODS:
            rows, args = list(self._get_indices(indices)), (method_name, *method_args, *method_kwargs.values())
            # Each call replaces the one before.
            before = [
                (name, [i for i in where if i not in rows], old) for name, where, old in self._lasting if old[0] == args[0]
            ]
            others = [entry for entry in self._lasting if entry[2][0] != method_name]
            self._lasting = [*others, *(entry for entry in before if entry[1]), ("env_method", rows, args)]
        return self._call("env_method", (method_name, *method_args), method_kwargs, indices)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return self._call("env_is_wrapped", (wrapper_class,), {}, indices)

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], indices: VecEnvIndices) -> list[Any]:
        """Call a method of the ``VecEnv`` in each actor for some environments, in the order of ``indices``."""
        rows = [int(i) for i in self._get_indices(indices)]
        of_actor = [[i - where.start for i in rows if where.start <= i < where.stop] for where in self.slices]
        requests = [(name, args, kwargs, own) if own else None for own in of_actor]
        answers = self._ask_all("call", requests)
        values: dict[int, Any] = {}
        for where, own, answer in zip(self.slices, of_actor, answers, strict=True):
            if own and answer is not None:
                values |= dict(zip([i + where.start for i in own], answer, strict=True))
        return [values.get(i) for i in rows]

    def _ask_all(self, method: str, requests: Sequence[tuple[Any, ...] | None]) -> list[Any]:
        """Call a method of all actors that have a request, at once; one that has died is asked again in its new place."""
        answers = [
            None if request is None else getattr(actor, method).remote(*request)
            for actor, request in zip(self.actors, requests, strict=True)
        ]
        results: list[Any] = []
        for index, request in enumerate(requests):
            answer = answers[index]
            while answer is not None:
                try:
                    results.append(self._ray.get(answer))
                    break
                except self._ray.exceptions.RayActorError as error:
                    self._restart(index, error)
                    if method != "reset" and self._last_obs[index] is not None:
                        self._lost.add(index)
                        # What is asked may need an episode: another one, until the next step ends it.
                        n_envs, seeds = self._sizes[index], self._new_seeds(self.slices[index])
                        self.actors[index].reset.remote(seeds, [{}] * n_envs)
                    assert request is not None
                    answer = getattr(self.actors[index], method).remote(*request)
            else:
                results.append(None)
        return results


class EnvActor:
    """
    The environments of one actor: a ``DummyVecEnv``, or the ``VecEnv`` that the only function makes.

    :param env_fns: functions that make an environment
    """

    def __init__(self, env_fns: list[Callable[[], gym.Env | VecEnv]]) -> None:
        first = env_fns[0]()
        if not isinstance(first, VecEnv):
            self.envs: VecEnv = DummyVecEnv([lambda: first, *env_fns[1:]])  # type: ignore[list-item]
        elif len(env_fns) == 1:
            self.envs = first
        else:
            raise ValueError(
                f"A function that makes a VecEnv has an actor of its own, but {len(env_fns)} share one. Use envs_per_actor=1."
            )

    def describe(self) -> tuple[int, gym.Space, gym.Space, dict[str, Any]]:
        """
        Say what the environments are.

        :return: their number, observation space, action space and metadata
        """
        return self.envs.num_envs, self.envs.observation_space, self.envs.action_space, self.envs.metadata

    def reset(self, seeds: list[int | None], options: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
        """
        Begin episodes.

        :param seeds: seed of each environment, or None
        :param options: options of each environment
        :return: observations and infos
        """
        # Wrappers of a VecEnv have lists of their own, which nobody reads.
        inner = self.envs.unwrapped
        inner._seeds, inner._options = list(seeds), list(options)
        obs = self.envs.reset()
        return obs, list(inner.reset_infos)

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]], list[dict[str, Any]]]:
        """
        Step all environments.

        :param actions: actions, (n_envs, ...)
        :return: observations, rewards, dones, infos, and the infos of the last resets
        """
        # What Ray hands over cannot be written to, which an environment may do to its action.
        return *self.envs.step(np.array(actions)), list(self.envs.unwrapped.reset_infos)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], indices: list[int] | None) -> Any:
        """
        Call a method of the ``VecEnv``.

        :param name: method
        :param args: positional arguments
        :param kwargs: keyword arguments
        :param indices: environments, for methods that take them; None for others
        :return: what it returns
        """
        given = {} if indices is None else {"indices": indices}
        return getattr(self.envs, name)(*args, **given, **kwargs)

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


def _connect(address: str | None, n_actors: int, num_cpus: float) -> tuple[Any, bool]:
    """Ray, connected, and whether it was not before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError("RayVecEnv needs Ray: pip install 'hipi_sb3[ray]'") from error
    owns = not ray.is_initialized()
    if owns:
        # Actors of one machine may be more than its processors.
        here: dict[str, Any] = {
            "num_cpus": max(os.cpu_count() or 1, int(np.ceil(n_actors * num_cpus))),
            "include_dashboard": False,
        }
        ray.init(address=address, log_to_driver=False, **(here if address is None else {}))
    available = ray.cluster_resources().get("CPU", 0)
    if n_actors * num_cpus > available:
        if owns:
            ray.shutdown()
        raise ValueError(
            f"{n_actors} actors with num_cpus={num_cpus} each need {n_actors * num_cpus:g} processors, but the Ray cluster "
            f"has {available:g}. Raise envs_per_actor, lower num_cpus, or add machines."
        )
    return ray, owns


def _concatenated(parts: list[Any]) -> Any:
    """Observations of the actors one after another: arrays, dicts or tuples of arrays, (n_envs, ...)."""
    first = parts[0]
    if isinstance(first, dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(np.concatenate([part[k] for part in parts]) for k in range(len(first)))
    return np.concatenate(parts)


def _row(obs: Any, index: int) -> Any:
    """Observation of one environment, copied."""
    if isinstance(obs, dict):
        return {key: value[index].copy() for key, value in obs.items()}
    if isinstance(obs, tuple):
        return tuple(value[index].copy() for value in obs)
    return obs[index].copy()
