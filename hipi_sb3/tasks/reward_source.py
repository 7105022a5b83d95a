"""Where the functions of a GoalEnv are called: in an instance of our own, or else in the environment that is trained in."""

import copy
import hashlib
import pickle
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

_LOST = (
    "These goals were read from a file, and their environment could not be saved, so that nothing can be relabeled. Call "
    "buffer.attach(model) with a model that has the environment."
)

GOAL_KEYS = ("achieved_goal", "desired_goal")


class RewardSource(ABC):
    """
    An environment whose functions of goals can be called.

    :param space: space of its observations, as its functions take them
    """

    #: Whether the environment is ours, so that it may be reset and stepped.
    is_private = True

    def __init__(self, space: spaces.Space) -> None:
        self.space = space

    @property
    @abstractmethod
    def is_there(self) -> bool:
        """Whether functions can be called; not where it was read from a file and could not take its environment along."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """
        Whether there is a function.

        :param name: its name
        :return: whether there is
        """

    @abstractmethod
    def function(self, name: str) -> Callable[..., Any]:
        """
        A function of the environment.

        :param name: its name
        :return: the function
        :raises RuntimeError: when the environment is not there
        """

    def __deepcopy__(self, memo: dict[int, Any]) -> "RewardSource":
        """A copy in this process calls the same functions."""
        return self


class PrivateInstance(RewardSource):
    """
    An instance of our own: its functions run in this process, and it may be reset.

    :param recipe: how to make one: its spec, its :class:`Pickle`, or the instance itself, which cannot be saved
    """

    def __init__(self, recipe: "EnvSpec | Pickle | gym.Env") -> None:
        self._recipe: EnvSpec | Pickle | None = None if isinstance(recipe, gym.Env) else recipe
        self._env: Any = recipe if isinstance(recipe, gym.Env) else None
        super().__init__(self.env.observation_space)

    @property
    def env(self) -> Any:
        """The instance, unwrapped; made when it is first asked for."""
        if self._env is None:
            if self._recipe is None:
                raise RuntimeError(_LOST)
            if isinstance(self._recipe, Pickle):
                self._env = self._recipe.load().unwrapped
            else:
                spec = copy.deepcopy(self._recipe)
                spec.kwargs.pop("render_mode", None)
                spec.additional_wrappers = ()
                self._env = gym.make(spec, disable_env_checker=True).unwrapped
        return self._env

    def __str__(self) -> str:
        return str(self.env)

    @property
    def is_there(self) -> bool:
        return self._env is not None or (
            self._recipe.is_ours if isinstance(self._recipe, Pickle) else self._recipe is not None
        )

    def has(self, name: str) -> bool:
        return callable(getattr(self.env, name, None))

    def function(self, name: str) -> Callable[..., Any]:
        return getattr(self.env, name)

    def __getstate__(self) -> dict[str, Any]:
        """State without the instance."""
        return {**self.__dict__, "_env": None}


class Pickle:
    """
    An environment, pickled. It is made from the environment, never from bytes, and only what this process has pickled itself
    is unpickled: one that comes out of a file is not.

    :param env: the environment
    """

    _ours: ClassVar[set[bytes]] = set()

    def __init__(self, env: gym.Env) -> None:
        if not isinstance(env, gym.Env):
            raise TypeError(f"Only an environment is pickled here, not {type(env).__name__}.")
        self._content = pickle.dumps(env)
        self._ours.add(hashlib.sha256(self._content).digest())

    @property
    def is_ours(self) -> bool:
        """Whether this process has pickled it."""
        return hashlib.sha256(self._content).digest() in self._ours

    def load(self) -> gym.Env:
        """
        Make the environment anew.

        :return: the environment
        :raises RuntimeError: when somebody else has pickled it
        """
        if not self.is_ours:
            raise RuntimeError(_LOST)
        return pickle.loads(self._content)


class TrainingEnv(RewardSource):
    """
    The first environment that is trained in, as HerReplayBuffer has it: it may be in another process, and may not be reset.

    :param vec_env: the environments, a ``VecEnv``
    """

    is_private = False

    def __init__(self, vec_env: Any) -> None:
        super().__init__(vec_env.observation_space)
        self._vec_env = vec_env

    @property
    def is_there(self) -> bool:
        return self._vec_env is not None

    def has(self, name: str) -> bool:
        # Of an abstract compute_terminated a process would die.
        return name == "compute_reward" and self._vec_env.has_attr(name)

    def function(self, name: str) -> Callable[..., Any]:
        if self._vec_env is None:
            raise RuntimeError(_LOST)
        return lambda *arguments: self._vec_env.env_method(name, *arguments, indices=[0])[0]

    def __getstate__(self) -> dict[str, Any]:
        """State without the environment."""
        return {**self.__dict__, "_vec_env": None}


def source_of_env(env: gym.Env) -> PrivateInstance:
    """
    An instance like an environment of this process.

    :param env: the environment
    :return: the instance
    :raises ValueError: when there is no way to make one
    """
    tried: list[str] = []
    inner = env.unwrapped
    source = _from_spec(inner.spec, env.observation_space, tried) or _from_copies(inner, tried)
    if source is None:
        raise ValueError(f"No second instance of {env} can be made to call its reward function: {'; '.join(tried)}.")
    return source


def source_of_vec_env(vec_env: Any) -> RewardSource:
    """
    An instance like the environments of a ``VecEnv``, or, where there is no way to make one, the first of them itself.

    :param vec_env: the environments, in this process or in others
    :return: where their functions can be called
    """
    tried: list[str] = []
    spec = vec_env.get_attr("spec", indices=[0])[0]
    source: RewardSource | None = _from_spec(spec, vec_env.observation_space, tried)
    if source is None:
        envs = getattr(vec_env.unwrapped, "envs", None)
        source = _over_a_pipe(vec_env, tried) if envs is None else _from_copies(envs[0].unwrapped, tried)
    if source is None:
        warnings.warn(
            "Rewards of relabeled rows are computed in the training environment, as HerReplayBuffer does it. With "
            "SubprocVecEnv every batch crosses a pipe and waits for that process, and the prior cannot be drawn from by "
            f"resetting. No second instance could be made: {'; '.join(tried)}. Register the environment with "
            "gymnasium.register, or make it picklable.",
            stacklevel=2,
        )
        source = TrainingEnv(vec_env)
    return source


class _CanBePickled(type):
    """
    ``isinstance(env, Picklable)`` tries it, in the environment's process: ``VecEnv.env_is_wrapped`` asks this of wrappers.
    A worker of ``SubprocVecEnv`` that was asked for something that cannot be pickled would be dead.
    """

    def __instancecheck__(cls, env: Any) -> bool:
        try:
            pickle.dumps(env.unwrapped)
        except Exception:
            return False
        return True


class Picklable(metaclass=_CanBePickled):
    """What an environment is an instance of that can be pickled."""


def _from_spec(spec: EnvSpec | None, space: spaces.Space, tried: list[str]) -> PrivateInstance | None:
    if spec is None:
        tried.append("it has no spec")
        return None
    source = _try("its spec", lambda: PrivateInstance(spec), tried)
    if source is not None and not _have_same_goals(source.space, space):
        tried.append(f"its spec makes another environment, with {source.space}")
        return None
    return source


def _from_copies(env: gym.Env, tried: list[str]) -> PrivateInstance | None:
    return _try("its pickle", lambda: PrivateInstance(Pickle(env)), tried) or _try(
        "a copy of it", lambda: PrivateInstance(copy.deepcopy(env)), tried
    )


def _over_a_pipe(vec_env: Any, tried: list[str]) -> PrivateInstance | None:
    if not vec_env.env_is_wrapped(Picklable, indices=[0])[0]:
        tried.append("its pickle: it is in another process, where it cannot be pickled (or has no wrapper such as Monitor)")
        return None

    def copy_of_first() -> PrivateInstance:
        return PrivateInstance(Pickle(vec_env.get_attr("unwrapped", indices=[0])[0]))  # pickled on the way as well

    return _try("its pickle", copy_of_first, tried)


def _try(way: str, make: Callable[[], PrivateInstance], tried: list[str]) -> PrivateInstance | None:
    """What is made, or None and the reason among those why others were not."""
    try:
        return make()
    except Exception as error:
        tried.append(f"{way}: {type(error).__name__}: {error}".rstrip("."))
        return None


def _have_same_goals(made: spaces.Space, space: spaces.Space) -> bool:
    """Whether goals are alike; wrappers may have moved the channels of images."""
    if not (isinstance(made, spaces.Dict) and isinstance(space, spaces.Dict)):
        return False
    for key in GOAL_KEYS:
        mine, theirs = made.spaces.get(key), space.spaces.get(key)
        if mine is None or theirs is None or mine.dtype != theirs.dtype:
            return False
        if sorted(mine.shape or ()) != sorted(theirs.shape or ()):
            return False
        if not isinstance(mine, spaces.Box) and mine != theirs:
            return False
    return True
