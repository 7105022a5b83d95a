"""End-to-end steps a second beside SBX, whose SAC is compiled by JAX.

    python benchmarks/against_sbx.py --json benchmarks/results/against_sbx.json

Half cheetah with target velocities, one step of the environment and ``gradient_steps`` updates in turn, all on one core of the
processor. SBX has an environment of its own in ``benchmarks/.jax``, made at the first call; its process and this one take
turns, and each waits while the other computes. Everybody steps the same environment; SAC and SBX's SAC see the task in one
flat observation and do not relabel.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from functools import partial
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

JAX_ENVIRONMENT = ROOT / "benchmarks" / ".jax"
#: torch first and alone, so that what follows takes it as it is.
JAX_PACKAGES = (["torch==2.13.0"], ["sbx-rl", "jax", "sb3-contrib", "scipy", "gymnasium[mujoco]"])

LEARNING_STARTS = 300
#: Updates a turn by batch size: multiples of the times that a label is used, so that each turn pays for its labels.
UPDATES = {64: 96, 256: 48, 1024: 32}
LEARNERS = ("sb3", "sbx", "hipisac, no relabeling", "hipisac, relabeling")


def make_learner(name: str, width: int, batch_size: int, gradient_steps: int) -> Any:
    """
    Make a learner that has made its first updates.

    :param name: one of ``LEARNERS``
    :param width: width of the two hidden layers
    :param batch_size: transitions an update
    :param gradient_steps: updates a step of the environment
    :return: the learner
    """
    import gymnasium as gym

    from hipi_sb3 import HIPISAC, MultiTaskWrapper, TargetVelocity

    is_ours = name.startswith("hipisac")
    env = MultiTaskWrapper(gym.make("HalfCheetah-v5"), TargetVelocity(low=0.0, high=3.0), flatten=not is_ours)
    options: dict[str, Any] = {"gradient_steps": gradient_steps, "batch_size": batch_size, "learning_starts": LEARNING_STARTS}
    options |= {"policy_kwargs": {"net_arch": [width, width]}, "buffer_size": 50_000, "seed": 0}
    if name == "sbx":
        import sbx

        model = sbx.SAC("MlpPolicy", env, **options)
    elif name == "sb3":
        from stable_baselines3 import SAC

        model = SAC("MlpPolicy", env, **options)
    else:
        strategy = {"strategy": "none"} if "no" in name.split() else {"relabel_prob": 0.5}
        model = HIPISAC("MultiInputPolicy", env, replay_buffer_kwargs=strategy, **options)
    return model.learn(LEARNING_STARTS + 5 * max(1, 16 // gradient_steps), log_interval=None)


def seconds_of(model: Any, n_steps: int) -> float:
    """Seconds of so many steps with their updates."""
    start = time.perf_counter()
    model.learn(n_steps, reset_num_timesteps=False, log_interval=None)
    return time.perf_counter() - start


class OtherProcess:
    """A learner in SBX's environment, which computes only while it is asked to."""

    def __init__(self, *arguments: Any) -> None:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        self.process = subprocess.Popen(
            [str(JAX_ENVIRONMENT / "bin" / "python"), __file__, "--serve", json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        )
        self._read()  # ready

    def _read(self) -> float:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"SBX's process ended with exit code {self.process.wait()}: its error stands above.")
        return float(line)

    def seconds_of(self, n_steps: int) -> float:
        """Seconds of so many steps with their updates."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{n_steps}\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(arguments: list[Any]) -> None:
    """What the other process does: read numbers of steps, answer with seconds."""
    import torch as th

    th.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    model = make_learner(*arguments)
    print(0.0, file=answers, flush=True)
    for line in sys.stdin:
        print(seconds_of(model, int(line)), file=answers, flush=True)


def make_jax_environment() -> dict[str, str]:
    """Make SBX's environment where there is none, and give the versions in it."""
    python = JAX_ENVIRONMENT / "bin" / "python"
    if not (JAX_ENVIRONMENT / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", str(JAX_ENVIRONMENT)], check=True)
        for packages in JAX_PACKAGES:
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        (JAX_ENVIRONMENT / "made").touch()
    show_versions = (
        "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in ('sbx-rl', 'jax', 'torch')}))"
    )
    return json.loads(subprocess.run([str(python), "-c", show_versions], capture_output=True, text=True, check=True).stdout)


def measure(quick: bool, turns: int) -> dict[str, Any]:
    """Steps a second of everybody, and as a ratio to SBX."""
    import numpy as np

    from benchmarks.measuring import interval_of_median, ratio, show

    versions = make_jax_environment()
    print(versions)
    rows = []
    for width in [16] if quick else [128, 256]:
        for batch_size in [64] if quick else [64, 256, 1024]:
            for gradient_steps in [1, 8]:
                n_steps = (16 if quick else UPDATES[batch_size]) // gradient_steps
                setting = (width, batch_size, gradient_steps)
                learners = {name: make_learner(name, *setting) for name in LEARNERS if name != "sbx"}
                other = OtherProcess("sbx", *setting)
                functions: dict[str, Any] = {
                    name: other.seconds_of if name == "sbx" else partial(seconds_of, learners[name]) for name in LEARNERS
                }
                times = {name: np.zeros(turns) for name in LEARNERS}
                for function in functions.values():
                    function(n_steps)
                for turn in range(turns):
                    for name, function in functions.items():
                        times[name][turn] = function(n_steps)
                other.close()
                row: dict[str, Any] = {"width": width, "batch_size": batch_size, "gradient_steps": gradient_steps}
                print(f"\nnets {width} x {width}, batch {batch_size}, {gradient_steps} updates a step")
                for name, seconds in times.items():
                    row[name] = {
                        "steps_per_second": interval_of_median(n_steps / seconds),
                        "over_sbx": ratio(times["sbx"], seconds),
                    }
                    show(f"  {name}", row[name]["steps_per_second"], unit=" /s")
                    if name != "sbx":
                        show("    over SBX", row[name]["over_sbx"])
                rows.append(row)
    met = [row["hipisac, relabeling"]["over_sbx"]["median"] >= 1.0 for row in rows]
    print(f"\nHIPISAC with relabeling is at least as fast as SBX's SAC without in {sum(met)} of {len(met)} rows")
    return {"jax_environment": versions, "turns": turns, "rows": rows}


def main() -> None:
    from benchmarks.measuring import parser, run

    options = parser(__doc__)
    options.add_argument("--turns", type=int, default=7, help="turns of each learner (default: 7)")
    options.add_argument("--core", type=int, help="core that everything runs on (default: the last one)")
    args = options.parse_args()
    core = max(os.sched_getaffinity(0)) if args.core is None else args.core
    os.sched_setaffinity(0, {core})
    run("against_sbx.py", args, lambda: measure(args.quick, 2 if args.quick else args.turns))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    if sys.argv[1:2] == ["--serve"]:
        serve(json.loads(sys.argv[2]))
    else:
        main()
