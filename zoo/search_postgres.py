"""
Search with several workers on a private PostgreSQL: the way a search runs on many machines, tried on one.

    python zoo/search_postgres.py --trials 8 --workers 2 -- --algo hipi_sac --env PointFourRooms-v0 -n 600

A cluster of its own is made in a temporary folder, listens on the loopback address only, and is gone afterwards. The study is
created first (workers that all find an empty database would create its tables at the same time), then the workers start: each
is ``zoo/train.py -optimize`` with what stands behind ``--``. On real machines, replace the URL by that of your server.
"""

import argparse
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import optuna

from zoo.errors import ConfigurationError, exit_with_error
from zoo.workers import WORKER, make_storage

ROOT = Path(__file__).resolve().parent.parent
STUDY = "postgres"


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: command line; that of the process if None
    """
    args = make_parser().parse_args(arguments)
    try:
        with private_postgres() as url:
            sys.exit(search(url, args.trials, args.workers, args.train))
    except ConfigurationError as error:
        exit_with_error("search_postgres.py", error)


def make_parser() -> argparse.ArgumentParser:
    """
    Make the parser of the command line.

    :return: parser
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8, help="finished trials of the study (default: 8)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument("train", nargs="*", help="arguments of zoo/train.py, after --")
    return parser


def search(url: str, n_trials: int, n_workers: int, train_arguments: list[str]) -> int:
    """
    Create the study, run the workers and say which of them ran which trial.

    :param url: URL of the database
    :param n_trials: finished trials of the study
    :param n_workers: number of workers
    :param train_arguments: more arguments of ``zoo/train.py``
    :return: exit code: 0 when all trials are finished and every worker contributed
    """
    study = optuna.create_study(storage=make_storage(url, heartbeat=60), study_name=STUDY, direction="maximize")
    command = [sys.executable, str(ROOT / "zoo" / "train.py"), "-optimize", "--storage", url, "--study-name", STUDY]
    command += ["--max-total-trials", str(n_trials), *train_arguments]
    workers = [subprocess.Popen(command, stdout=subprocess.DEVNULL if k else None) for k in range(n_workers)]
    codes = [worker.wait() for worker in workers]
    trials = study.get_trials(deepcopy=False)
    shares = Counter(
        trial.user_attrs[WORKER]["name"] for trial in trials if trial.state.is_finished() and WORKER in trial.user_attrs
    )
    print("\ntrial  state     value    worker")
    for trial in trials:
        value = "" if trial.value is None else f"{trial.value:.2f}"
        print(f"{trial.number:5d}  {trial.state.name:8s}  {value:7s}  {trial.user_attrs.get(WORKER, {}).get('name', '')}")
    print(f"{len(shares)} of {n_workers} workers contributed: {', '.join(f'{w} ran {n}' for w, n in shares.items())}")
    return 0 if not any(codes) and len(shares) == n_workers else 1


@contextmanager
def private_postgres() -> Iterator[str]:
    """
    Run a PostgreSQL cluster of our own in a temporary folder, on the loopback address and a free port.

    The password is in the environment (``PGPASSWORD``) while the context lasts, not in the URL, which others could read in
    the list of processes.

    :return: URL of its database, for ``--storage``
    :raises ConfigurationError: when PostgreSQL is not installed or does not start
    """
    initdb, pg_ctl = find_program("initdb"), find_program("pg_ctl")
    # PostgreSQL refuses to run as root.
    user = _other_user() if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    password = secrets.token_hex(16)
    password_file, data, log = folder / "password", folder / "data", folder / "log"
    password_file.write_text(password)
    if user is not None:
        for path in (folder, password_file):
            shutil.chown(path, user)
    port = _free_port()

    def call(*command: str | Path) -> None:
        # Its output goes to a file: the server would keep a pipe open for ever.
        with open(folder / "output", "a") as output:
            result = subprocess.run(
                [str(part) for part in command],
                user=user,
                cwd=folder,
                stdout=output,
                stderr=output,
                env={**os.environ, "LC_ALL": "C"},
            )
        if result.returncode != 0:
            raise ConfigurationError(f"{command[0]} failed: {' '.join((folder / 'output').read_text().split()[-40:])}")

    before = os.environ.get("PGPASSWORD")
    try:
        call(initdb, "-D", data, "-U", "hipi", "-A", "scram-sha-256", f"--pwfile={password_file}", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
        call(pg_ctl, "start", "-w", "-D", data, "-l", log, "-o", options)
        os.environ["PGPASSWORD"] = password
        try:
            yield f"postgresql://hipi@127.0.0.1:{port}/postgres"
        finally:
            call(pg_ctl, "stop", "-w", "-m", "immediate", "-D", data)
    finally:
        if before is None:
            os.environ.pop("PGPASSWORD", None)
        else:
            os.environ["PGPASSWORD"] = before
        shutil.rmtree(folder, ignore_errors=True)


def find_program(name: str) -> str:
    """
    Find a program of PostgreSQL, which Debian does not put on the path.

    :param name: ``initdb`` or ``pg_ctl``
    :return: path
    :raises ConfigurationError: when it is not installed
    """
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parent.parent.name))
    found = shutil.which(name) or (str(places[-1]) if places else None)
    if found is None:
        raise ConfigurationError(f"{name} was not found. Install PostgreSQL (Debian: apt install postgresql).")
    return found


def _other_user() -> str:
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
