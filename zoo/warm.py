"""
Runs of ``train.py`` forked from a process that has imported everything: each begins where a fresh one is after seconds.

A forked run gives what a fresh one does: it seeds everything that it draws from, and the process that it is forked from has
one thread and has drawn nothing, opened nothing and set nothing up but imports.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)


class WarmProcess:
    """A process that has imported ``zoo.train`` and runs one command line of it at a time, each in a fork of itself."""

    def __init__(self) -> None:
        # In a session of its own: Ctrl-C would end a training early, and it would look finished.
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def run(self, arguments: list[str], output: Path) -> tuple[int, float, float]:
        """
        Run ``train.py`` in this process's working directory.

        :param arguments: its command line
        :param output: file for what it prints
        :return: exit code, negative for a signal, seconds since the fork, and seconds of processor time
        :raises RuntimeError: when the process that forks it has ended
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([arguments, str(output), os.getcwd()]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"The process that runs are forked from has ended, with exit code {self._process.wait()}.")
        exit_code, wall_seconds, cpu_seconds = json.loads(answer)
        return exit_code, wall_seconds, cpu_seconds

    def close(self) -> None:
        """End the process, which waits for its next command."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def kill(self) -> None:
        """End the process and the run in it."""
        os.killpg(self._process.pid, signal.SIGKILL)


def serve() -> None:
    """Read commands, fork a run for each, wait for it, and answer with its exit code and processor time."""
    # Prints of imports must not pass for answers.
    commands, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch as th

    from zoo import train

    # The first optimizer imports PyTorch's compiler, which takes a second.
    th.optim.Adam([th.nn.Parameter(th.zeros(1))])
    gc.collect()
    gc.freeze()  # what is there stays shared with the runs
    for command in commands:
        arguments, output, folder = json.loads(command)
        start = time.perf_counter()
        process = os.fork()
        if process == 0:
            os.chdir(folder)
            for stream in (commands, answers):
                os.close(stream.fileno())
            nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(nothing, 0)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.argv = [str(Path(train.__file__)), *arguments]
            train.main(arguments)
            sys.exit()
        _, status, usage = os.wait4(process, 0)
        seconds = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
        answers.write(json.dumps([os.waitstatus_to_exitcode(status), *seconds]) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
