"""
The workers of a search: one Optuna study, shared by any number of them, any of which may be killed.

    python zoo/train.py -optimize --storage study.log --study-name s --max-total-trials 50           (one machine, shared disk)
    python zoo/train.py -optimize --storage postgresql://user@host/db --study-name s --max-total-trials 50

Every worker runs the same command. What Optuna has is Optuna's: storages, heartbeats, retries. Added here is what it leaves
open: who runs a trial (a journal has no heartbeat, and a worker killed before its first one leaves a trial that is never
stale), and when the study has as many finished trials as were asked for.
"""

import hashlib
import os
import platform
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

#: A trial whose worker was killed is tried again so many times.
MAX_RETRIES = 3

#: Attribute of a trial that says who runs it.
WORKER = "worker"

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class SurplusTrial(Exception):
    """Another worker was faster: the study has its trials without this one."""


class Worker:
    """
    This process, as others can see whether it is alive: by its process id on the same machine, otherwise by a file that it
    touches in the folder beside the journal, or by Optuna's heartbeat in a database.

    :param heartbeat: seconds between two signs of life
    :param journal: path of the journal; None where the storage has heartbeats
    """

    def __init__(self, heartbeat: int, journal: Path | None = None) -> None:
        self.heartbeat = heartbeat
        self.folder = None if journal is None else journal.with_name(journal.name + ".workers")
        self.name = uuid.uuid4().hex[:12]
        self.machine = _machine()
        self._stop = threading.Event()
        self._unsigned: dict[int, float] = {}  # trials that nobody has signed: when they were first seen

    @property
    def grace(self) -> int:
        """Seconds without a sign of life after which a worker counts as dead, as by Optuna's default."""
        return 2 * self.heartbeat

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life as long as the context lasts."""
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        thread = threading.Thread(target=self._touch, daemon=True)
        self.folder.joinpath(self.name).touch()
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self.folder.joinpath(self.name).unlink(missing_ok=True)

    def _touch(self) -> None:
        assert self.folder is not None
        while not self._stop.wait(self.heartbeat / 4):
            self.folder.joinpath(self.name).touch()

    def sign(self, trial: optuna.Trial) -> None:
        """
        Write into a trial who runs it.

        :param trial: trial of this worker
        """
        # A retry inherits the attributes of the trial that died: the number tells whose this one is.
        signature = {"name": self.name, "machine": self.machine, "pid": os.getpid(), "started": _started(os.getpid())}
        trial.set_user_attr(WORKER, {**signature, "trial": trial.number})

    def is_dead(self, trial: FrozenTrial) -> bool:
        """
        Say whether the worker of a running trial is known to be dead.

        :param trial: running trial
        :return: False also where nothing is known
        """
        worker = trial.user_attrs.get(WORKER)
        if worker is None or worker["trial"] != trial.number:
            # Killed between asking for the trial and signing it, unless it happens right now. Timed with our own clock.
            seen = self._unsigned.setdefault(trial.number, time.monotonic())
            return time.monotonic() - seen > self.grace
        if worker["machine"] == self.machine:
            return _started(worker["pid"]) != worker["started"]
        if self.folder is None:
            return False  # Optuna's heartbeat decides
        try:
            # Both times are those of the file server, whose clock may not be ours.
            mine, theirs = (self.folder.joinpath(name).stat().st_mtime for name in (self.name, worker["name"]))
        except FileNotFoundError:
            return True
        return mine - theirs > self.grace


def make_storage(url: str | None, heartbeat: int) -> BaseStorage | None:
    """
    Open a storage.

    :param url: ``*.log`` for a journal, a URL for a database, None to keep the study in memory
    :param heartbeat: seconds between two heartbeats in a database
    :return: storage, or None
    """
    if url is None:
        return None
    if url.endswith(".log"):
        # Absolute: the lock of a killed worker, a link to the journal, would be a dangling one that Optuna never takes away.
        path = Path(url).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        engine_kwargs: dict[str, Any] = {"connect_args": {"timeout": 60}}  # several workers wait for one file
    else:
        engine_kwargs = {"pool_pre_ping": True}  # a trial may take longer than a connection lasts
    for prefix in ("postgres://", "postgresql://"):
        if url.startswith(prefix):
            url = "postgresql+psycopg://" + url.removeprefix(prefix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RDBStorage(
            url,
            engine_kwargs=engine_kwargs,
            heartbeat_interval=heartbeat,
            grace_period=2 * heartbeat,
            heartbeat_stale_trial_callback=_retry(),
        )


def sampler_seed(seed: int, is_shared: bool) -> int:
    """
    Choose the seed of the sampler: with the same one, all workers would suggest the same trials.

    :param seed: seed of the command line
    :param is_shared: whether other workers may take part
    :return: the seed itself for a study in memory, otherwise another one for every worker
    """
    if not is_shared:
        return seed
    own = np.random.SeedSequence([seed, uuid.uuid4().int])
    return int(own.generate_state(1)[0])


def run_trials(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float],
    worker: Worker,
    n_trials: int,
    n_total: int | None = None,
    n_jobs: int = 1,
    poll_seconds: float = 2.0,
) -> None:
    """
    Run trials until the asked number is finished. Pruned trials are finished; those whose worker died are not, and are run
    again.

    :param study: the study
    :param objective: what a trial does
    :param worker: this process
    :param n_trials: trials of this worker, where there is no ``n_total``
    :param n_total: trials of the study, whoever runs them, those of earlier searches included
    :param n_jobs: threads
    :param poll_seconds: how often to look whether the trials of others are finished
    """
    n_own = 0

    def signed(trial: optuna.Trial) -> float:
        worker.sign(trial)
        if n_total is not None:
            others = study.get_trials(deepcopy=False)
            ahead = [t for t in others if t.state == TrialState.RUNNING and t.number < trial.number]
            if len(ahead) + n_finished(study) >= n_total:
                raise SurplusTrial(f"the study has its {n_total} trials")
        return objective(trial)

    def count(study: optuna.Study, trial: FrozenTrial) -> None:
        nonlocal n_own
        n_own += trial.state in FINISHED

    with worker.alive():
        while True:
            retry_dead_trials(study, worker)
            if n_total is None:
                missing = n_trials - n_own
                if missing <= 0:
                    return
            else:
                missing = n_total - n_finished(study)
                if missing <= 0:
                    return
                missing -= len(study.get_trials(deepcopy=False, states=[TrialState.RUNNING]))
                if missing <= 0:
                    # Others run what is left. Should one of them die, its trial is ours.
                    time.sleep(poll_seconds)
                    _fail_stale_trials(study)
                    continue
            n_jobs_now = min(n_jobs, missing)
            try:
                study.optimize(
                    signed,
                    n_trials=n_jobs_now,
                    n_jobs=n_jobs_now,
                    catch=(SurplusTrial,),
                    callbacks=[count],
                    gc_after_trial=True,
                )
            except (UpdateFinishedTrialError, ValueError) as error:
                # This process slept for longer than the grace period and was taken for dead: another one has its trial.
                if not isinstance(error, UpdateFinishedTrialError) and "Cannot tell a" not in str(error):
                    raise
                print(f"A trial of this worker was given to another one in the meantime ({error}).")


def n_finished(study: optuna.Study) -> int:
    """
    Count the finished trials.

    :param study: the study
    :return: number of trials that are complete or pruned
    """
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def retry_dead_trials(study: optuna.Study, worker: Worker) -> list[int]:
    """
    Fail the trials whose workers are dead and queue them again, as Optuna does with those that miss their heartbeat.

    :param study: the study
    :param worker: this process
    :return: numbers of the trials
    """
    dead = []
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if not worker.is_dead(trial):
            continue
        try:
            if not study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
                continue
        except UpdateFinishedTrialError:
            continue  # another worker was faster
        dead.append(trial.number)
        _retry()(study, study._storage.get_trial(trial._trial_id))
        print(f"Trial {trial.number} is run again: its worker is gone.")
    return dead


def _retry() -> RetryHeartbeatStaleTrialCallback:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)


def _fail_stale_trials(study: optuna.Study) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def _machine() -> str:
    """What makes process ids comparable: host, boot and, in a container, its table of processes."""
    parts = [platform.node()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            parts.append(read().strip())
        except OSError:
            continue
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


def _started(pid: int) -> str | None:
    """When a process was started: another one may have its number. None where it is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    return None if stat[0] in "ZX" else stat[19]  # a zombie is dead already
