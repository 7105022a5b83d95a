"""The code in the documents runs, and what they name exists."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import require

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = [page for page in PAGES if "```python\n" in page.read_text()]
#: Extras that the code of a page needs; the page names them.
EXTRAS = {"families.md": "gymnasium_robotics", "coming_from_mo_gymnasium.md": "mo_gymnasium", "many_machines.md": "ray"}


def name_of(page):
    return str(page.relative_to(ROOT))


def load(path):
    """Import a script that lies in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # pickle looks for it there
    spec.loader.exec_module(module)
    return module


def run(command, cwd, timeout=300):
    """Run a command with the packages of the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def launcher_commands(page):
    """Commands of the launcher on a page: script and arguments, without comments."""
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)).replace("\\\n", " ").splitlines()
    found = (re.search(r"python zoo/(\w+\.py)(.*?)(?:\s#.*)?$", line) for line in lines)
    return [(match.group(1), match.group(2).split()) for match in found if match is not None]


@pytest.mark.parametrize("page", PYTHON, ids=name_of)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path):
    if page.name in EXTRAS:
        require(EXTRAS[page.name])
    result = run([sys.executable, str(ROOT / ".ci" / "run_page.py"), str(page)], tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_pages_with_code_are_those_that_a_reader_looks_for():
    names = {name_of(page) for page in PYTHON}
    assert names >= {"README.md", *(f"docs/{name}.md" for name in ("quickstart", "families", "own_family", "cloning"))}


def test_a_page_is_one_program_with_short_trainings():
    program = load(ROOT / ".ci" / "run_page.py").program
    page = "# Page\n```python\na = 1\n```\ntext\n```bash\nls\n```\n```python\nmodel.learn(10_000).learn(20)\n```\n"
    assert program(page) == "\n\na = 1\n\n\n\n\n\n\nmodel.learn(200).learn(20)\n"


def test_options_that_pages_give_to_the_launcher_exist():
    require("rl_zoo3")
    commands = [command for page in PAGES for command in launcher_commands(page)]
    assert {script for script, _ in commands} >= {"train.py", "enjoy.py", "benchmark.py", "plots.py", "report.py"}
    help_texts = {script: run([sys.executable, f"zoo/{script}", "--help"], ROOT).stdout for script, _ in commands}
    options = [(script, word) for script, words in commands for word in words if re.match(r"--?[a-zA-Z]", word)]
    assert len(options) > 50
    missing = [(script, word) for script, word in options if not re.search(rf"(?<![\w-]){word}(?![\w-])", help_texts[script])]
    assert missing == []


def commands_of_the_tour(folder):
    """What ``make tour`` runs, with this Python: lines of bash."""
    dry_run = run(["make", "-n", "tour", f"TOUR={folder}"], ROOT)
    assert dry_run.returncode == 0, dry_run.stderr
    lines = dry_run.stdout.replace("\\\n", " ").splitlines()
    return [re.sub(r"^\S+ \S+python", sys.executable, line) for line in lines if "python zoo/" in line]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_tour_leaves_everything_in_one_folder():
    commands = commands_of_the_tour("somewhere")
    assert [Path(command.split()[1]).name for command in commands] == [
        *("train.py", "enjoy.py", "benchmark.py", "plots.py", "report.py"),
    ]
    assert all("somewhere" in command for command in commands)


@pytest.mark.expensive
def test_the_tour_shows_methods_that_differ(tmp_path):
    for command in commands_of_the_tour(tmp_path):
        result = run(["bash", "-c", command], ROOT, timeout=600)
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    assert {"report.html", "video.mp4", "trajectories.png", "figures"} <= {path.name for path in tmp_path.iterdir()}
    methods = {
        entry["method"]: entry["mean"] for entry in json.loads((tmp_path / "benchmark/summary.json").read_text())["results"]
    }
    assert methods["hipi"] > methods["random"] > methods["none"]


@pytest.mark.expensive
def test_the_commands_of_the_launchers_page_run_in_their_order(tmp_path):
    page = ROOT / "docs" / "launcher.md"
    result = run([sys.executable, str(ROOT / ".ci" / "run_page.py"), str(page)], tmp_path)
    assert result.returncode == 0, result.stderr
    commands = launcher_commands(page)
    assert len(commands) > 10
    for script, words in commands:
        result = run([sys.executable, str(ROOT / "zoo" / script), *words], tmp_path, timeout=900)
        assert result.returncode == 0, f"{script} {' '.join(words)}\n{result.stderr}"


def test_files_that_documents_name_exist():
    page = (ROOT / "docs" / "contributing.md").read_text()
    named = re.findall(r"`((?:tasks|relabel|experience|examples|tests)/[\w/]*\.py)`", page)
    assert len(named) >= 5
    assert all((ROOT / "hipi_sb3" / name).is_file() or (ROOT / name).is_file() for name in named)


def test_the_readme_is_a_screen_and_a_half_whose_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 90
    links = [*re.findall(r"\]\(([^)#]+)[^)]*\)", text), *re.findall(r'src="([^"]+)"', text)]
    local = [link for link in links if not link.startswith("http")]
    assert len(local) > 10
    assert [link for link in local if not (ROOT / link).is_file()] == []
