"""The code in the documents runs, and what they name exists."""

import contextlib
import importlib.util
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from conftest import require

require("rl_zoo3")
require("rliable")

from rl_zoo3.utils import ALGOS

from hipi_sb3.relabel.relabeler import Relabeler
from zoo import benchmark, enjoy, options, plugin, train
from zoo.configuration import StoreExpressions
from zoo.errors import ConfigurationError, check_name
from zoo.methods import KEY_TO_METHOD

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = [page for page in PAGES if "```python\n" in page.read_text()]
#: Extras that the code of a page needs; the page names them.
EXTRAS = {"families.md": "gymnasium_robotics", "coming_from_mo_gymnasium.md": "mo_gymnasium", "many_machines.md": "ray"}
#: What a configuration says beside the parameters of the algorithm.
YAML_KEYS = ("n_envs", "n_timesteps", "normalize", "env_wrapper", "callback", "policy")


def name_of(page):
    return str(page.relative_to(ROOT))


def load(path):
    """Import a script that lies in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # pickle looks for it there
    spec.loader.exec_module(module)
    return module


def run(command, cwd, timeout=300, **variables):
    """Run a command with the packages of the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def commands_in(text):
    """Commands that run a script of the checkout: its folder, its name and the arguments, without comments."""
    found = re.findall(r"python (zoo|benchmarks|examples)/(\w+\.py)(.*)", text.replace("\\\n", " "))
    return [(folder, script, shlex.split(rest, comments=True)) for folder, script, rest in found]


def pasted_commands(page):
    """Commands in the blocks of a page."""
    return commands_in("\n".join(re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)))


def told_commands(page):
    """Commands in the running text of a page, where one may be broken at the end of a line."""
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.S))
    return commands_in("\n".join(" ".join(span.split()) for span in spans))


def understood(script, words):
    """Read a command of the launcher as the script itself does, up to where it would begin to work."""
    module = importlib.import_module(f"zoo.{script.removesuffix('.py')}")
    if script == "train.py":
        args, for_rl_zoo3 = options.make_parser(None).parse_known_args(words)
        parser = options.rl_zoo3_parser(StoreExpressions)
        given = parser.parse_args(["--algo", args.algo, "--env", args.env, *for_rl_zoo3]).hyperparams or {}
        names = {*inspect.signature(ALGOS[args.algo]).parameters, *YAML_KEYS}
        for name in given:
            check_name("hyperparameter", name, names)
        relabel = train.check_arguments(args)
        if args.algo != "hipi_bc":
            Relabeler(**relabel)
        return
    args = module.make_parser().parse_args(words)
    if script == "enjoy.py":
        check_name("algorithm", args.algo, ALGOS)
        check_name("environment", args.env, gym.registry)
        check_name("--tasks", args.tasks or "all", enjoy.KEY_TO_TASKS)
    elif script == "benchmark.py":
        benchmark.make_cells(args)
    elif script == "plots.py":
        for method in (args.methods or "none").split(","):
            check_name("method", method, KEY_TO_METHOD)


def not_understood(script, words):
    """Why the launcher would refuse a command; None where it would not."""
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            understood(script, words)
    except SystemExit:
        return f"{script} {' '.join(words)}: {said.getvalue().splitlines()[-1]}"
    except (ConfigurationError, ValueError) as error:
        return f"{script} {' '.join(words)}: {error}"
    return None


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


def test_the_launcher_understands_every_command_on_the_pages(monkeypatch):
    require("gymnasium_robotics")
    monkeypatch.setattr(train.LauncherBC, "dataset_path", None)
    plugin.register()
    pasted, told = (
        [(script, words) for page in PAGES for folder, script, words in commands(page) if folder == "zoo"]
        for commands in (pasted_commands, told_commands)
    )
    assert {script for script, _ in pasted} >= {"train.py", "enjoy.py", "benchmark.py", "plots.py", "report.py", "export.py"}
    assert len(pasted) > 20 and len(told) > 5
    assert [reason for command in pasted + told if (reason := not_understood(*command)) is not None] == []


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("train.py --sed 0", "unrecognized arguments: --sed 0"),
        ("train.py -n many", "invalid int value: 'many'"),
        ("train.py --env PointFourRoms-v0", "Did you mean 'PointFourRooms-v0'?"),
        ("train.py --relabel stratgy=none", "Did you mean 'strategy'?"),
        ("train.py --relabel strategy=futur", "Did you mean 'future'?"),
        ("train.py --relabel temperature=hot", "not 'hot'"),
        ("train.py -params gradient_step:2", "Did you mean 'gradient_steps'?"),
        ("enjoy.py --pretraind", "unrecognized arguments: --pretraind"),
        ("enjoy.py --tasks al", "Did you mean 'all'?"),
        ("benchmark.py --suite pont", "Did you mean 'point'?"),
        ("benchmark.py --methods none,hippi", "Did you mean 'hipi'?"),
        ("plots.py --methods nne", "Did you mean 'none'?"),
        ("report.py --runs a --outt b", "unrecognized arguments: --outt b"),
        ("export.py", "required: run"),
    ],
)
def test_a_mistake_in_a_command_on_a_page_would_be_found(command, reason):
    plugin.register()
    script, *words = command.split()
    assert reason in not_understood(script, words)


def test_options_that_pages_give_to_benchmarks_and_examples_exist():
    found = [command for page in PAGES for command in pasted_commands(page) + told_commands(page)]
    commands = [(f"{folder}/{script}", words) for folder, script, words in found if folder != "zoo"]
    assert len(commands) > 20
    shared = (ROOT / "benchmarks" / "measuring.py").read_text()
    for path, words in commands:
        source = (ROOT / path).read_text() + (shared if path.startswith("benchmarks") else "")
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == [], path


def test_the_targets_of_make_that_pages_name_exist():
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.M))
    spans = [span for page in PAGES for span in re.findall(r"`make ([^`]+)`|^make (.+)$", page.read_text(), re.M)]
    named = [word for span in spans for word in "".join(span).split("#")[0].split() if re.fullmatch(r"[a-z][a-z-]*", word)]
    assert len(named) > 10
    assert set(named) <= targets


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
    commands = pasted_commands(page)
    assert len(commands) > 10 and {folder for folder, _, _ in commands} == {"zoo"}
    # What stands before a command, such as WANDB_MODE=offline, is harmless to the others.
    variables = dict(re.findall(r"^([A-Z_]+)=(\S+) python", page.read_text(), re.M))
    for _, script, words in commands:
        result = run([sys.executable, str(ROOT / "zoo" / script), *words], tmp_path, timeout=900, **variables)
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


def test_what_is_promised_names_tests_that_there_are():
    named = re.findall(r"`((?:tests|benchmarks)/[\w/]+(?:\.py)?/?)", (ROOT / "docs/promises.md").read_text())
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
