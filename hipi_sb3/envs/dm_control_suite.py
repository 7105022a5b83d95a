"""The HIPI paper's tasks on dm_control (arXiv 2002.11089), and those that its authors' code has beyond them.

An environment of dm_control's suite gives the physics, the start and the observation; its own task is left out: the target
is hidden from the observation, and reward, termination and success are a family's. Distances are in metres, speeds in metres
a second; episodes have 100 steps.

To add an environment: a reader (what its tasks are about, read from the simulator) and a ``make_...`` function.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled

from hipi_sb3.envs.dm_control_readings import (
    Reader,
    cheetah_velocity,
    fingertip_xy,
    hopper_gait,
    humanoid_gait,
    mouth_and_orientation,
    mouth_xyz,
    nose_and_heading,
    nose_xy,
    quadruped_xy,
    spinner_tip,
    walker_gait,
)
from hipi_sb3.envs.ring_goals import RingGoals
from hipi_sb3.tasks.family import TaskFamily
from hipi_sb3.tasks.finite import DiscreteTasks, FiniteTasks
from hipi_sb3.tasks.goals import GoalReaching
from hipi_sb3.tasks.linear import LinearReward, TargetVelocity
from hipi_sb3.wrappers import MultiTaskWrapper

try:
    from dm_control import suite
    from dm_control.rl.control import PhysicsError
except ImportError as error:
    raise DependencyNotInstalled(
        f'dm_control cannot be imported ({error}). Install it with `pip install "hipi_sb3[dm_control]"`.'
    ) from error


#: Largest angle by which each hinge differs from the default pose at an upright start (rad).
START_NOISE = 0.05


class DMControlEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    An environment of dm_control's suite without its task: the reward is 0, and only a physics error ends an episode.

    The observation is the suite's, flat and in float32. A physics error (an unstable simulation) terminates the episode with
    a warning, in the state before the step.

    :param domain: name of the suite's domain
    :param task: name of its task, for the start and the observation
    :param read: reader of what the tasks are about; the result of the last step is in :attr:`reading`
    :param extra: reader of what is added to the observation
    :param hidden: names of the suite's observations that are left out
    :param upright: start in the default pose, hinges up to ``START_NOISE`` off, instead of the suite's random one
    :param marker: name of the suite's target, which is drawn at the goal, see :meth:`show_goal`
    :param camera: camera that renders
    :param render_mode: ``"rgb_array"`` or None
    :raises ValueError: when the render mode is unknown
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 40}

    def __init__(
        self,
        domain: str,
        task: str,
        read: Reader,
        extra: Reader | None = None,
        hidden: Sequence[str] = (),
        upright: bool = False,
        marker: str | None = None,
        camera: int = 0,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"DMControlEnv: render_mode must be one of {self.metadata['render_modes']} or None, not {render_mode!r}."
            )
        self.domain, self.task = domain, task
        # Time limits are Gymnasium's: they truncate.
        self.suite_env = suite.load(domain, task, task_kwargs={"random": 0, "time_limit": float("inf")})
        self.physics, self.suite_task = self.suite_env.physics, self.suite_env.task
        self.upright = upright
        self.marker = marker
        self.camera = camera
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": round(1 / self.suite_env.control_timestep())}
        self._n_substeps = round(self.suite_env.control_timestep() / self.physics.timestep())
        data = self.physics.data.ptr
        self._state = (data.qpos, data.qvel, data.act)
        self._state_before = tuple(array.copy() for array in self._state)
        self._is_hinge = self.physics.model.jnt_qposadr[self.physics.model.jnt_type == 3]

        self._read = read(self.physics)
        self._extra = None if extra is None else extra(self.physics)
        self.suite_env.reset()
        #: What the tasks are about, after the last step.
        self.reading = np.array(self._read())
        # Where each observation of the suite goes in the flat one.
        self._slices: list[tuple[str, slice]] = []
        size = 0
        for name, value in self.suite_task.get_observation(self.physics).items():
            if name not in hidden:
                self._slices.append((name, slice(size, size + np.size(value))))
                size += np.size(value)
        self._n_suite = size
        size += 0 if self._extra is None else len(self._extra())
        self._last_obs = np.zeros(size, dtype=np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, shape=(size,), dtype=np.float32)
        spec = self.suite_env.action_spec()
        self.action_space: spaces.Box = spaces.Box(spec.minimum.astype(np.float32), spec.maximum.astype(np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if self.upright:
            with self.physics.reset_context():
                noise = self.np_random.uniform(-START_NOISE, START_NOISE, size=len(self._is_hinge))
                self._state[0][self._is_hinge] += noise
        else:
            # The suite's generator goes on from ours, so that one seed fixes both.
            self.suite_task.random.seed(int(self.np_random.integers(2**32)))
            self.suite_env.reset()
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        for before, now in zip(self._state_before, self._state, strict=True):
            before[:] = now
        try:
            self.suite_task.before_step(action, self.physics)
            self.physics.step(self._n_substeps)
            self.suite_task.after_step(self.physics)
        except PhysicsError as error:
            gym.logger.warn(f"The episode is terminated by a physics error, in the state before the step: {error}")
            with self.physics.suppress_physics_errors(), self.physics.reset_context():
                for before, now in zip(self._state_before, self._state, strict=True):
                    now[:] = before
            self.reading = np.array(self._read())
            return self._last_obs.copy(), 0.0, True, False, {"physics_error": str(error)}
        return self._observe(), 0.0, False, False, {}

    def render(self) -> np.ndarray | None:
        """
        Draw the scene.

        :return: image, (height, width, 3), uint8, with ``render_mode="rgb_array"``; otherwise None
        """
        if self.render_mode is None:
            gym.logger.warn('DMControlEnv.render() draws nothing without a render mode: pass render_mode="rgb_array".')
            return None
        return self.physics.render(height=480, width=480, camera_id=self.camera)

    def show_goal(self, goal: np.ndarray) -> None:
        """
        Draw the suite's own target, which nothing collides with, at this goal. Whoever knows the goal calls this.

        :param goal: position, (2,) or (3,), in the coordinates of the reading
        """
        if self.marker is None:
            return
        if self.marker == "spinner":
            # The finger's site, in the plane of x and z and relative to the hinge.
            at = self.physics.model.name2id("target", "site")
            hinge = self.physics.data.xanchor[self.physics.model.name2id("hinge", "joint")]
            for positions in (self.physics.model.site_pos, self.physics.data.site_xpos):
                positions[at, [0, 2]] = hinge[[0, 2]] + goal
        else:
            at = self.physics.model.name2id(self.marker, "geom")
            for positions in (self.physics.model.geom_pos, self.physics.data.geom_xpos):
                positions[at, : len(goal)] = goal

    def close(self) -> None:
        self.suite_env.close()

    def _observe(self) -> np.ndarray:
        self.reading = np.array(self._read())
        values = self.suite_task.get_observation(self.physics)
        obs = np.empty_like(self._last_obs)
        for name, where in self._slices:
            obs[where] = values[name]
        if self._extra is not None:
            obs[self._n_suite :] = self._extra()
        self._last_obs = obs
        return obs.copy()


class DMControlGoalWrapper(MultiTaskWrapper):
    """:class:`~hipi_sb3.wrappers.MultiTaskWrapper` for goals in :class:`DMControlEnv`, which are drawn when it renders."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(seed=seed, options=options)
        if self.render_mode is not None:
            assert self.task is not None
            family = self.task_family
            goal = family.parameters[np.argmax(self.task)] if isinstance(family, FiniteTasks) else self.task
            self.unwrapped.show_goal(goal)  # type: ignore[attr-defined]
        return obs, info


# -- readers ----------------------------------------------------------------------------------------------------------


def last_reading(env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
    """What the tasks are about."""
    return env.unwrapped.reading  # type: ignore[attr-defined]


def reading_and_effort(env: gym.Env, obs: Any, action: Any, next_obs: Any, reward: Any, info: dict[str, Any]) -> np.ndarray:
    """What the tasks are about, and the squared norm of the action."""
    reading = env.unwrapped.reading  # type: ignore[attr-defined]
    features = np.empty(len(reading) + 1, dtype=np.float32)
    features[:-1], features[-1] = reading, np.dot(action, action)
    return features


# -- environments -----------------------------------------------------------------------------------------------------


def make_quadruped_goal(distance: float = 1.0, radius: float = 0.3, **options: Any) -> MultiTaskWrapper:
    """
    Make the quadruped walk to a point on a circle around its start. It starts upright; its position is observed.

    :param distance: radius of the circle
    :param radius: distance from the goal at which it counts as reached
    :param options: ``flatten``, ``fixed_task`` and ``render_mode``
    :return: the environment
    """
    family = RingGoals(distance, distance, radius, position=last_reading, limit=max(2.0, 2 * distance))
    return _make("quadruped", "run", family, quadruped_xy, extra=quadruped_xy, upright=True, camera=1, **options)


def make_finger_goal(radius: float = 0.01, **options: Any) -> MultiTaskWrapper:
    """
    Make the finger turn the spinner until its tip is at a point of the circle that it moves on.

    :param radius: distance from the goal at which it counts as reached
    :param options: ``flatten``, ``fixed_task`` and ``render_mode``
    :return: the environment
    """
    family = RingGoals(0.13, 0.13, radius, position=last_reading, limit=0.15)
    hidden = ("target_position", "dist_to_target")
    return _make("finger", "turn_hard", family, spinner_tip, hidden=hidden, marker="spinner", **options)


def make_reacher_goal(radius: float = 0.01, **options: Any) -> MultiTaskWrapper:
    """
    Make the two-link arm bring its fingertip to a point.

    In the authors' code the reward reads joint angles while the goals are fingertip positions. Here both are fingertip
    positions, at a distance of 0.05 to 0.20 from the centre as the suite's own targets, and the fingertip is observed.

    :param radius: distance from the goal at which it counts as reached
    :param options: ``flatten``, ``fixed_task`` and ``render_mode``
    :return: the environment
    """
    return _make_reacher(_fingertip_goals(radius), **options)


def make_reacher_discrete(n_goals: int = 32, goal_seed: int = 0, radius: float = 0.01, **options: Any) -> MultiTaskWrapper:
    """
    Make the two-link arm bring its fingertip to one of a few fixed points; the task says only which.

    :param n_goals: number of goals
    :param goal_seed: seed of their draw, as in :func:`make_reacher_goal`
    :param radius: distance from the goal at which it counts as reached
    :param options: ``flatten``, ``fixed_task`` and ``render_mode``
    :return: the environment
    """
    goals = _fingertip_goals(radius)
    return _make_reacher(FiniteTasks(goals, goals.sample(np.random.default_rng(goal_seed), n_goals)), **options)


def make_swimmer_goal(distance: float = 0.3, radius: float = 0.1, **options: Any) -> MultiTaskWrapper:
    """
    Make the six-link swimmer bring its nose to a point. Nose and heading are observed.

    :param distance: goals are within so much of the origin along each axis: the suite's near targets
    :param radius: distance from the goal at which it counts as reached; the suite's
    :param options: ``flatten``, ``fixed_task`` and ``render_mode``
    :return: the environment
    """
    near = np.full(2, distance)
    family = GoalReaching([-2, -2], [2, 2], radius, position=last_reading, prior=(-near, near))
    extra, hidden = nose_and_heading, ("to_target",)
    return _make("swimmer", "swimmer6", family, nose_xy, extra=extra, hidden=hidden, marker="target", **options)


def make_fish_goal(radius: float = 0.045, **options: Any) -> MultiTaskWrapper:
    """
    Make the fish bring its mouth to a point of the suite's tank. Mouth and orientation are observed.

    :param radius: distance from the goal at which it counts as reached; the suite's
    :param options: ``flatten``, ``fixed_task`` and ``render_mode``
    :return: the environment
    """
    tank = ((-0.4, -0.4, 0.1), (0.4, 0.4, 0.3))
    family = GoalReaching([-2, -2, -2], [2, 2, 2], radius, position=last_reading, prior=tank)
    extra, hidden = mouth_and_orientation, ("target",)
    return _make("fish", "swim", family, mouth_xyz, extra=extra, hidden=hidden, marker="target", **options)


def make_walker_linear(**options: Any) -> MultiTaskWrapper:
    """
    Make the walker with weights on what its body does. It starts upright.

    Weights in [-1, 1] on the height of the torso - 0.5, the horizontal velocity, and x and z + 0.7 of the left foot and of
    the right foot relative to the torso, and in [-1, 0] on the squared norm of the action.

    :param options: ``flatten``, ``fixed_task`` and ``render_mode``
    :return: the environment
    """
    return _make("walker", "walk", _weights(6), walker_gait, upright=True, **options)


def make_hopper_linear(**options: Any) -> MultiTaskWrapper:
    """
    Make the hopper with weights in [-1, 1] on the touch of toe and heel, the height of the torso over the foot and the
    horizontal velocity, and in [-1, 0] on the squared norm of the action. It starts as in the suite.

    :param options: ``flatten``, ``fixed_task`` and ``render_mode``
    :return: the environment
    """
    return _make("hopper", "hop", _weights(4), hopper_gait, **options)


def make_hopper_discrete(**options: Any) -> MultiTaskWrapper:
    """
    Make the hopper with four behaviours, each with rewards from 0 to 1: move forwards, move backwards, stand still and high,
    stay low. It starts as in the suite.

    :param options: ``flatten``, ``fixed_task`` and ``render_mode``
    :return: the environment
    """
    rewards = [hopper_forwards, hopper_backwards, hopper_stands, hopper_stays_low]
    family = DiscreteTasks(rewards, features=last_reading, feature_dim=4)
    return _make("hopper", "hop", family, hopper_gait, **options)


def make_humanoid_linear(**options: Any) -> MultiTaskWrapper:
    """
    Make the humanoid with weights in [-1, 1] on the height of the head - 1.4, the velocity of the centre of mass along x and
    along y and the z axis of the torso upwards, and in [-1, 0] on the squared norm of the action. It starts upright: after
    the suite's random start it would lie on the floor for most of the episode.

    :param options: ``flatten``, ``fixed_task`` and ``render_mode``
    :return: the environment
    """
    return _make("humanoid", "run", _weights(4), humanoid_gait, upright=True, camera=1, **options)


def make_cheetah_velocity(low: float = 0.0, high: float = 5.0, **options: Any) -> MultiTaskWrapper:
    """
    Make dm_control's cheetah run at a given speed (``HalfCheetahVelocity-v0`` is Gymnasium's).

    :param low: smallest target velocity
    :param high: largest target velocity; the suite's own task asks for 10 in episodes ten times as long
    :param options: ``flatten``, ``fixed_task`` and ``render_mode``
    :return: the environment
    """
    return _make("cheetah", "run", TargetVelocity(low, high, velocity=last_reading), cheetah_velocity, **options)


# Rewards of make_hopper_discrete: features (..., 4) are those of hopper_gait. 0.6 is the suite's height of standing and 2 its
# speed of hopping.


def hopper_forwards(features: np.ndarray) -> np.ndarray:
    """Speed forwards, full at 2 m/s."""
    return _share(features[..., 3] / 2.0)


def hopper_backwards(features: np.ndarray) -> np.ndarray:
    """Speed backwards, full at 2 m/s."""
    return _share(-features[..., 3] / 2.0)


def hopper_stands(features: np.ndarray) -> np.ndarray:
    """Torso at least 0.6 above the foot, and slow."""
    return (features[..., 2] >= 0.6) * _share(1.0 - np.abs(features[..., 3]))


def hopper_stays_low(features: np.ndarray) -> np.ndarray:
    """How far the torso is below 0.6."""
    return _share(1.0 - features[..., 2] / 0.6)


def _share(values: np.ndarray) -> np.ndarray:
    # As np.clip, in a third of the time.
    return np.minimum(np.maximum(values, 0.0), 1.0)


def _fingertip_goals(radius: float) -> RingGoals:
    return RingGoals(0.05, 0.20, radius, position=last_reading, limit=0.25)


def _make_reacher(family: TaskFamily, **options: Any) -> MultiTaskWrapper:
    return _make(
        "reacher", "hard", family, fingertip_xy, extra=fingertip_xy, hidden=("to_target",), marker="target", **options
    )


def _weights(n_readings: int) -> LinearReward:
    """Weights in [-1, 1] on what is read and in [-1, 0] on the squared norm of the action."""
    return LinearReward([-1.0] * (n_readings + 1), [1.0] * n_readings + [0.0], features=reading_and_effort)


def _make(
    domain: str, task: str, family: TaskFamily, read: Reader, flatten: bool = False, fixed_task: Any = None, **options: Any
) -> MultiTaskWrapper:
    env = DMControlEnv(domain, task, read, **options)
    wrapper = MultiTaskWrapper if env.marker is None else DMControlGoalWrapper
    return wrapper(env, family, flatten=flatten, fixed_task=fixed_task)
