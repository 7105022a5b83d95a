"""Speed of the environments with tasks, against the simulators that they are made of.

    OMP_NUM_THREADS=1 python benchmarks/env_speed.py --json benchmarks/results/env_speed.json

For each environment, 1000 steps and more are taken by it (``gymnasium.make(id).step``, with task, reward, termination and time
limit) and by the simulator's own environment (its whole ``step``: physics, observation, its own reward), from the same states
and with the same actions, so that both meet the same contacts. They take turns of 50 steps, the first of a pair alternating.
Resets are not timed, and processor time is counted, not the clock's: what else the machine does then matters less. A ratio is
the median over the turns, with the 95 % bootstrap interval of that median; the aim is 0.8 or more.
"""

import gc
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.measuring import interval_of_median, parser, run
from hipi_sb3.envs import registered_env_ids

STEPS_A_TURN = 50

#: ``start(seed)`` begins an episode of the simulator's own environment in the state of ours.
Start = Callable[[int], None]
Step = Callable[[np.ndarray], Any]


def own_environment(env: gym.Env) -> tuple[Start, Step] | None:
    """The simulator's own environment, or None for environments that are ours alone."""
    inner: Any = env.unwrapped
    if hasattr(inner, "suite_env"):
        return own_dm_control(inner)
    if hasattr(inner, "arm"):
        return own_meta_world()
    if type(inner).__module__.startswith("hipi_sb3"):
        return None
    assert inner.spec is not None
    own = gym.make(inner.spec.id, disable_env_checker=True).unwrapped
    return lambda seed: own.reset(seed=seed), own.step


def own_dm_control(inner: Any) -> tuple[Start, Step]:
    from dm_control import suite

    domain, task = inner.domain, inner.task
    own = suite.load(domain, task)

    def start(seed: int) -> None:
        own.reset()
        with own.physics.reset_context():
            own.physics.set_state(inner.physics.get_state())

    return start, own.step


def own_meta_world() -> tuple[Start, Step]:
    from hipi_sb3.envs.meta_world import SawyerReachEnv

    own = SawyerReachEnv()
    return lambda seed: own.reset(seed=seed), own.arm.step


def seconds_a_step(step: Step, actions: np.ndarray) -> float:
    start = time.process_time()
    for action in actions:
        step(action)
    return (time.process_time() - start) / len(actions)


def unfinished(env: gym.Env) -> Any:
    """A task that random actions do not fulfil: a fulfilled one would end the turn."""
    family = env.get_wrapper_attr("task_family")
    return family.tasks[0] if family.tasks is not None else family.sample(np.random.default_rng(0), 1)[0]


def measure(env_id: str, turns: int) -> dict[str, Any]:
    env = gym.make(env_id, max_episode_steps=10 * STEPS_A_TURN)
    own = own_environment(env)
    env.action_space.seed(0)
    ours, theirs = [], []
    gc.disable()
    for turn in range(turns + 1):
        env.reset(seed=turn, options={"task": unfinished(env)})
        if own is not None:
            own[0](turn)
        actions = np.array([env.action_space.sample() for _ in range(STEPS_A_TURN)])
        candidates = [(ours, env.step)] + ([] if own is None else [(theirs, own[1])])
        for times, step in candidates if turn % 2 else candidates[::-1]:
            times.append(seconds_a_step(step, actions))
    gc.enable()
    env.close()
    # The first turn warms up.
    our_seconds, their_seconds = np.array(ours[1:]), np.array(theirs[1:])
    result: dict[str, Any] = {"steps_per_second": interval_of_median(1 / our_seconds)}
    if own is not None:
        result["own_steps_per_second"] = interval_of_median(1 / their_seconds)
        result["ratio"] = interval_of_median(their_seconds / our_seconds)
    return result


def measure_all(env_ids: list[str], turns: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    print(f"{'':24}{'steps/s':>10}{'own steps/s':>14}{'ratio':>8}")
    for env_id in env_ids:
        try:
            results[env_id] = result = measure(env_id, turns)
        except gym.error.DependencyNotInstalled as error:
            print(f"{env_id:24} not measured: {error}")
            continue
        line = f"{env_id:24}{result['steps_per_second']['median']:10.0f}"
        if "ratio" in result:
            own, ratio = result["own_steps_per_second"]["median"], result["ratio"]
            line += f"{own:14.0f}{ratio['median']:8.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        print(line, flush=True)
    return {"turns": turns, "steps_a_turn": STEPS_A_TURN, "environments": results}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--turns", type=int, default=40, help=f"turns of {STEPS_A_TURN} steps (default: %(default)s)")
    options.add_argument("--envs", nargs="+", default=registered_env_ids(), help="ids; all if not given")
    args = options.parse_args()
    run("env_speed.py", args, lambda: measure_all(args.envs, 2 if args.quick else args.turns))


if __name__ == "__main__":
    main()
