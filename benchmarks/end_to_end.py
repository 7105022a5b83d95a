"""Training, end to end: environment steps a second with one gradient step each.

    OMP_NUM_THREADS=1 python benchmarks/end_to_end.py --json benchmarks/results/end_to_end.json

``learn`` of SAC without relabeling, SAC with HIPIReplayBuffer and HIPISAC, and of SAC with HerReplayBuffer on FetchReach:
batch 256, nets of 256 x 256, everything else the default (half of the rows relabeled, 32 candidates).

Then HIPISAC in the setting in which the HIPI authors' released code was once timed (2D navigation with noise, one gradient
step an environment step): steps per second of processor time at batch 32 with 32 candidates and at batch 256 with 256. Their
code did 31 and 1.3 there, on one thread of another two-core machine of the same class: the quotient is an order of magnitude.
"""

import pathlib
import sys
import time
from typing import Any

import gymnasium as gym
from stable_baselines3 import SAC

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.gradient_speed import learner
from benchmarks.measuring import interval_of_median, parser, ratio, run, show, take_turns

#: Steps per CPU-second of the authors' code, by (batch size, candidates), on other hardware of the same class.
AUTHORS = {(32, 32): 31.0, (256, 256): 1.3}


def goes_on(model: SAC, n_steps: int, batch_size: int) -> Any:
    """Train for some steps more."""
    model.batch_size, model.learning_starts = batch_size, 0
    return lambda: model.learn(n_steps, reset_num_timesteps=False, log_interval=None)


def measure(turns: int, n_steps: int, n_collected: int, batch_size: int, width: int) -> dict[str, Any]:
    """Steps a second, and ratios to SAC without relabeling."""
    results: dict[str, Any] = {}
    env_ids = ["PointFourRooms-v0", "HalfCheetahVelocity-v0"]
    try:
        import gymnasium_robotics

        gym.register_envs(gymnasium_robotics)
        env_ids.append("FetchReach-v4")
    except ImportError:
        print('FetchReach-v4 is not measured: pip install "hipi_sb3[robotics]"')
    for env_id in env_ids:
        kinds = ["sac", "sac_hipi", "hipisac", *(["her"] if env_id.startswith("Fetch") else [])]
        models = {kind: learner(kind, n_collected, gym.make(env_id), width) for kind in kinds}
        times = take_turns({kind: goes_on(model, n_steps, batch_size) for kind, model in models.items()}, turns, calls=1)
        print(f"\n{env_id}: environment steps a second, one gradient step each")
        results[env_id] = {}
        for kind, seconds in times.items():
            values = {
                "steps_per_second": interval_of_median(n_steps / seconds),
                "over_sac": ratio(times["sac"], seconds),
            }
            results[env_id][kind] = values
            show(f"  {kind}", values["steps_per_second"], unit=" /s")
            if kind != "sac":
                show("    over SAC without relabeling", values["over_sac"])
    return {"turns": turns, "steps_a_turn": n_steps, "environments": results}


def measure_navigation(turns: int, n_steps: int, n_collected: int, width: int) -> dict[str, Any]:
    """Steps per CPU-second of HIPISAC in the authors' setting."""
    result = {}
    print("\nPointFourRoomsPaper-v0, one gradient step an environment step: steps per CPU-second")
    for (batch_size, n_candidates), theirs in AUTHORS.items():
        model = learner("hipisac", n_collected, gym.make("PointFourRoomsPaper-v0"), width, n_candidate_tasks=n_candidates)
        function = goes_on(model, n_steps, batch_size)
        (seconds,) = take_turns({"hipisac": function}, turns, calls=1, clock=time.process_time).values()
        ours = interval_of_median(n_steps / seconds)
        quotient = {key: value / theirs for key, value in ours.items()}
        label = f"batch {batch_size}, {n_candidates} candidates"
        result[label] = {
            "steps_per_cpu_second": ours,
            "authors_steps_per_cpu_second": theirs,
            "ours_over_authors_on_other_hardware": quotient,
        }
        show(f"  {label}", ours, unit=" /s")
        show(f"    over the authors' {theirs} on other hardware of the same class", quotient)
    return result


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--turns", type=int, default=9, help="turns of each learner")
    args = options.parse_args()
    sizes, batch_size, width = ((2, 2, 60), 4, 8) if args.quick else ((args.turns, 64, 1000), 256, 256)

    def both() -> dict[str, Any]:
        return {**measure(*sizes, batch_size, width), "authors_setting": measure_navigation(*sizes, width)}

    run("end_to_end.py", args, both)


if __name__ == "__main__":
    main()
