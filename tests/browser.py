"""A page in headless Chromium: served by this process, driven by a script, which sends back what it found."""

import contextlib
import functools
import http.server
import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import lacking

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
)


def chromium() -> str:
    """
    Find the browser. Without one the test is skipped, in CI it fails.

    :return: path
    """
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        lacking(
            "Pages are looked at in Chromium, and there is none. `make test` installs it where it is root and has apt-get; "
            "elsewhere install chromium or google-chrome by hand: `sudo apt-get install chromium`."
        )
    return found


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, the script's own page, and a place to send results to."""

    harness = b""
    results: "queue.Queue[Any]"
    answer: Callable[[str, str, bytes], tuple[int, str, bytes]] | None = None

    def do_GET(self) -> None:
        if self.path == "/harness.html":
            self._answer(200, self.harness, "text/html; charset=utf-8")
        elif self.path == "/favicon.ico":
            self._answer(204, b"", "image/x-icon")
        elif self.answer is not None:
            status, kind, content = self.answer("GET", self.path, b"")
            self._answer(status, content, kind)
        else:
            super().do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/result":
            self.results.put(json.loads(body))
            self._answer(204, b"", "text/plain")
        else:
            status, kind, content = self.answer("POST", self.path, body)
            self._answer(status, content, kind)

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def drive(
    folder: Path,
    script: str,
    profile: Path,
    timeout: float = 180.0,
    answer: Callable[[str, str, bytes], tuple[int, str, bytes]] | None = None,
) -> tuple[Any, list[str]]:
    """
    Serve a folder, and run a script in Chromium on a page of the same origin.

    :param folder: folder with the pages
    :param answer: ``answer(method, path, body) -> (status, content type, content)`` instead of the folder's pages
    :param script: body of an async function; what it returns is sent back as JSON
    :param profile: folder for the browser's profile, new
    :param timeout: seconds until the browser is given up
    :return: what the script returned, and what the console said
    """
    results: queue.Queue[Any] = queue.Queue()
    sending = "body => fetch('/result', {method: 'POST', body: JSON.stringify(body)})"
    harness = (
        f"<!doctype html><body><script>(async () => {{ {script} }})().then(found => ({{found}}), "
        f"error => ({{error: String(error.stack || error)}})).then({sending});</script></body>"
    )
    handler = type(
        "Handler", (_Handler,), {"harness": harness.encode(), "results": results, "answer": answer and staticmethod(answer)}
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log = profile.with_name(profile.name + ".log")
    command = [chromium(), *FLAGS, f"--user-data-dir={profile}", f"http://127.0.0.1:{server.server_port}/harness.html"]
    with contextlib.ExitStack() as stack:
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stack.enter_context(open(log, "w")))
        stack.callback(process.wait)
        stack.callback(process.terminate)
        try:
            result = results.get(timeout=timeout)
        except queue.Empty:
            pytest.fail(f"Chromium sent nothing in {timeout:.0f} seconds:\n{log.read_text()[-2000:]}", pytrace=False)
    assert "error" not in result, result["error"]
    return result["found"], [line for line in log.read_text().splitlines() if "CONSOLE" in line]
