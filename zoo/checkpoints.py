"""
Checkpoints from which a killed run goes on as if nothing had happened.

    python zoo/train.py --env PointFourRooms-v0 --checkpoint-freq 5000
    python zoo/train.py --resume logs/hipi_sac/PointFourRooms-v0_1

A checkpoint stands between two rollouts, after the updates, and holds everything that the rest of the run depends on: model,
optimisers, replay buffer with its log Z, counters, random state, what the callbacks have counted. Only an environment cannot
be saved. Therefore every run, killed or not, resets its environments at a checkpoint, with a seed that depends on the run's
seed and the step alone. That is done at the end of an episode where it can be, and the curve of a resumed run is that of one
that was never interrupted, number for number on CPU.
"""

import json
import os
import random
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat, configure

from hipi_sb3.evaluation import TaskEvaluation
from hipi_sb3.experience.archives import check_no_link, read_npz
from hipi_sb3.experience.files import checksum, pack, unpack
from hipi_sb3.experience.whole import flush, remedy_named
from zoo.errors import ConfigurationError
from zoo.normalization import statistics_from_json, statistics_to_json

#: Checkpoints that are kept: should the last one be damaged, there is the one before.
N_KEPT = 2

CHECKSUMS = "checksums.json"

#: In a run folder.
CHECKPOINTS = "checkpoints"

REPLAY_BUFFER = "replay_buffer"

#: Everything else, as plain values, and their arrays.
STATE = "state.json"
STATE_ARRAYS = "state.npz"

#: What a callback has counted and found so far, where it has the attribute.
CALLBACK_STATE = (
    "n_calls",
    "best_mean_reward",
    "last_mean_reward",
    "evaluations",
    "evaluations_timesteps",
    "evaluations_results",
    "evaluations_length",
    "evaluations_successes",
    "history",
    "_next",
)

#: What ``learn`` sets back although the run goes on.
COUNTERS = ("num_timesteps", "_episode_num", "ep_info_buffer", "ep_success_buffer")


class RunStopped(Exception):
    """
    A signal ended the run; its state is in a checkpoint.

    :param signal_number: the signal
    :param num_timesteps: steps so far
    """

    def __init__(self, signal_number: int, num_timesteps: int) -> None:
        super().__init__(f"{signal.Signals(signal_number).name} after {num_timesteps} steps")
        self.signal_number = signal_number


class ResumableCallback(BaseCallback):
    """
    Writes checkpoints, and goes on from one.

    :param folder: folder of the checkpoints
    :param freq: steps between two of them, at least; the next end of an episode is waited for, up to as many steps again
    :param seed: seed of the run
    :param siblings: the other callbacks, whose counts are saved
    :param resumed: checkpoint whose model and buffer were loaded, to go on from; None for a new run
    """

    def __init__(self, folder: Path, freq: int, seed: int, siblings: list[BaseCallback], resumed: Path | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.freq = freq
        self.seed = seed
        self.siblings = siblings
        self.resumed = resumed
        self.stop_signal: int | None = None
        self._last = 0
        self._episode_ended = False
        self._state: dict[str, Any] | None = None

    def _init_callback(self) -> None:
        if self.resumed is None:
            return
        self._state = read_state(self.resumed)
        for name, value in self._state["counters"].items():
            if name not in COUNTERS:
                continue
            before = getattr(self.model, name)
            setattr(self.model, name, deque(value, before.maxlen) if isinstance(before, deque) else value)
        self.model._num_timesteps_at_start = self.model.num_timesteps
        self._last = self.model.num_timesteps
        self._restore_callbacks(self._state)

    def _restore_callbacks(self, state: dict[str, Any]) -> None:
        """Set back what the other callbacks have counted."""
        saved = list(state["callbacks"])
        for callback in self.siblings:
            # By class, in their order: --progress and --eval-freq bring others, and may be given anew.
            kind = type(callback).__name__
            place = next((i for i, entry in enumerate(saved) if entry.get("class", kind) == kind), None)
            if place is None:
                continue
            values = saved.pop(place)
            if "evaluations" in values:
                values = {**values, "evaluations": [TaskEvaluation(**evaluation) for evaluation in values["evaluations"]]}
            callback.__dict__.update({name: value for name, value in values.items() if name in CALLBACK_STATE})

    def _on_step(self) -> bool:
        self._episode_ended |= bool(np.any(self.locals["dones"]))
        return True

    def _on_rollout_start(self) -> None:
        # Transitions are stored and updates done: nothing is under way but the episode.
        if self._state is not None:
            self._restore(self._state)
            self._state = None
            self._renew()
        steps = self.model.num_timesteps - self._last
        if self.stop_signal is not None:
            if steps > 0:
                self._save()
            raise RunStopped(self.stop_signal, self.model.num_timesteps)
        if (steps >= self.freq and self._episode_ended) or steps >= 2 * self.freq:
            self._save()
            self._renew()
        self._episode_ended = False

    def _save(self) -> None:
        model = self.model
        state: dict[str, Any] = {
            "counters": {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)},
            "random": (random.getstate(), np.random.get_state(), th.get_rng_state().numpy()),
            "cuda": [state.numpy() for state in th.cuda.get_rng_state_all()] if th.cuda.is_available() else [],
            "callbacks": [
                {"class": type(c).__name__} | {k: v for k, v in vars(c).items() if k in CALLBACK_STATE} for c in self.siblings
            ],
            # Where the log of episodes and that of TensorBoard stand.
            "monitor": {path.name: path.stat().st_size for path in self.folder.parent.glob("*.monitor.csv")},
            "log_folder": model.logger.get_dir(),
        }
        normalize = model.get_vec_normalize_env()
        if normalize is not None:
            state["normalize"] = statistics_to_json(normalize)
        with new_checkpoint(self.folder, model.num_timesteps) as path:
            self._write_model(path)
            write_state(path, state)
        self._last = model.num_timesteps

    def _write_model(self, path: Path) -> None:
        """Write the model and its buffer into the folder of a checkpoint."""
        self.model.save(path / "model.zip")
        if getattr(self.model, "replay_buffer", None) is not None:
            # A folder of arrays where the algorithm writes one, else stable-baselines3 adds ".pkl".
            self.model.save_replay_buffer(path / REPLAY_BUFFER)  # type: ignore[attr-defined]

    def _restore(self, state: dict[str, Any]) -> None:
        """Set back what ``learn`` has changed since the model was loaded."""
        normalize = self.model.get_vec_normalize_env()
        if normalize is not None:
            statistics_from_json(normalize, state["normalize"])
        random.setstate(state["random"][0])
        np.random.set_state(state["random"][1])
        th.set_rng_state(th.from_numpy(state["random"][2]))
        if th.cuda.is_available() and len(state["cuda"]) == th.cuda.device_count():
            th.cuda.set_rng_state_all([th.from_numpy(state) for state in state["cuda"]])

    def _renew(self) -> None:
        """Start new episodes with a seed that depends on the run's seed and the step alone."""
        model, step = self.model, self.model.num_timesteps
        env = model.env
        assert env is not None
        seeds = np.random.SeedSequence([self.seed, step]).generate_state(3) % 2**31
        env.seed(int(seeds[0]))
        model.action_space.seed(int(seeds[1]))
        for callback in self.siblings:
            if isinstance(callback, EvalCallback):
                callback.eval_env.seed(int(seeds[2]))
        model._last_obs = env.reset()  # type: ignore[assignment]
        model._last_episode_starts = np.ones((env.num_envs,), dtype=bool)
        if model.get_vec_normalize_env() is not None:
            model._last_original_obs = model.get_vec_normalize_env().get_original_obs()  # type: ignore[union-attr]
        noise = getattr(model, "action_noise", None)
        if noise is not None:
            noise.reset()
        if model.use_sde:
            model.policy.reset_noise(env.num_envs)  # type: ignore[operator]

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """
        Let SIGTERM and Ctrl-C write a checkpoint and end the run; a second one ends it at once. Where the signal went to the
        processes of the environments too and they are gone, the last checkpoint it is.
        """

        def stop(signal_number: int, frame: FrameType | None) -> None:
            self.stop_signal = signal_number
            restore()

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        except (EOFError, ConnectionError):
            time.sleep(0.5)  # they may have got it a little earlier
            if self.stop_signal is None:
                raise
            saved = checkpoints(self.folder)
            raise RunStopped(self.stop_signal, int(saved[-1].name) if saved else 0) from None
        finally:
            restore()


@contextmanager
def new_checkpoint(folder: Path, step: int) -> Iterator[Path]:
    """
    Write a checkpoint that is there whole or not at all, and delete those that are too old.

    :param folder: folder of the checkpoints
    :param step: its number
    :return: folder to write its files into
    :raises NotWritten: when the disk is full, or cannot be written to; those that are there stay
    """
    temporary, final = folder / f"writing-{step}", folder / str(step)
    with remedy_named(final):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            sums = {path.relative_to(temporary).as_posix(): checksum(path) for path in files}
            (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n")
            for path in (*temporary.rglob("*"), temporary):
                flush(path)
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)  # on a full disk its room is needed
            raise
        shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same step
        os.rename(temporary, final)
        for path in (folder, folder.parent):
            flush(path)
        for old in checkpoints(folder)[:-N_KEPT]:
            shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """
    List the checkpoints.

    :param folder: folder of the checkpoints
    :return: their folders, the latest last
    """
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))


def last_checkpoint(folder: Path) -> Path | None:
    """
    Find the last checkpoint that is not damaged, and delete what is in the way: half-written and damaged ones.

    :param folder: folder of the checkpoints
    :return: its folder, or None
    """
    for path in folder.glob("writing-*"):
        shutil.rmtree(path)
    for path in reversed(checkpoints(folder)):
        damage = find_damage(path)
        if damage is None:
            return path
        print(f"The checkpoint after {path.name} steps is damaged ({damage}): going on from the one before.")
        shutil.rmtree(path)
    print(f"There is no checkpoint in {folder}: starting from the first step.")
    return None


def find_damage(path: Path) -> str | None:
    """
    Compare a checkpoint with its checksums.

    :param path: its folder
    :return: what is wrong, or None
    """
    try:
        sums = json.loads((path / CHECKSUMS).read_text())
        for name, expected in sums.items():
            if checksum(path / name) != expected:
                return f"{name} has another checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, AttributeError):
        return f"{CHECKSUMS} cannot be read"
    return None


def write_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """
    Write what a checkpoint holds beside the model and its buffer: a JSON file and its arrays.

    :param checkpoint: its folder
    :param state: state, see :class:`ResumableCallback`
    """
    arrays: dict[str, np.ndarray] = {}
    (checkpoint / STATE).write_text(json.dumps(pack(_plain(state), arrays)) + "\n")
    np.savez(checkpoint / STATE_ARRAYS, **arrays)  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    """What the counters hold beside numbers and arrays, as lists and dicts."""
    if isinstance(value, TaskEvaluation):
        return _plain(vars(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | deque):
        return [_plain(item) for item in value]
    return value


def read_state(checkpoint: Path) -> dict[str, Any]:
    """
    Read what a checkpoint holds beside the model and its buffer.

    :param checkpoint: its folder
    :return: state, see :class:`ResumableCallback`
    :raises ConfigurationError: when it is damaged, or pickled by an earlier version
    """
    if not (checkpoint / STATE).is_file() and (checkpoint / "state.pkl").is_file():
        raise ConfigurationError(
            f"{checkpoint / 'state.pkl'} is pickled, as earlier versions did, and a pickle can run any code when it is read: "
            f"the state of a checkpoint is {STATE} now. Resume the run with the version of hipi_sb3 that began it, or delete "
            f"{checkpoint.parent} to begin from the first step."
        )
    check_no_link(checkpoint / STATE)
    try:
        state = unpack(json.loads((checkpoint / STATE).read_text()), read_npz(checkpoint / STATE_ARRAYS))
        return {**state, "callbacks": list(state["callbacks"]), "counters": dict(state["counters"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigurationError(f"{checkpoint / STATE} is damaged: {error}. Delete {checkpoint}.") from error


def trim_monitor_files(folder: Path, sizes: dict[str, int]) -> None:
    """
    Drop the episodes that a killed run has logged after its checkpoint: the resumed run logs them again.

    Counting steps would not do: an episode that was cut off at a checkpoint is in no log.

    :param folder: folder of the run, with SB3's ``*.monitor.csv``
    :param sizes: bytes of each file at the checkpoint, by name
    """
    for name, size in sizes.items():
        if Path(name).name != name or not name.endswith(".monitor.csv"):
            raise ConfigurationError(f"The checkpoint in {folder} names {name!r}, which is no log of its run.")
        check_no_link(folder / name)
        if (folder / name).is_file():
            os.truncate(folder / name, min(size, (folder / name).stat().st_size))


def continued_logger(checkpoint: Path, verbose: int) -> Logger:
    """
    Make a logger that goes on in the TensorBoard folder of a run; SB3 would begin another one.

    :param checkpoint: folder of the checkpoint
    :param verbose: from 1 on, the log is printed too
    :return: logger
    """
    formats = ["stdout", "tensorboard"] if verbose >= 1 else ["tensorboard"]
    logger = configure(read_state(checkpoint)["log_folder"], formats)
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            # Has TensorBoard drop what was logged after the checkpoint: it is logged again.
            output.writer.close()
            output.writer.purge_step = int(checkpoint.name) + 1
    return logger


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Have the processes that are started here ignore Ctrl-C, which a terminal sends to them too: the run ends them itself."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
