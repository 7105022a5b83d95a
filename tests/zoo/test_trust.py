"""A run folder from somebody else is data: nothing in it runs."""

import json
import pickle
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import require

require("rl_zoo3")

import torch as th
from rl_zoo3.utils import SimpleLinearSchedule
from stable_baselines3 import HerReplayBuffer

from hipi_sb3 import HIPIReplayBuffer, LayerNormReLU
from hipi_sb3.experience.files import checksum
from zoo import enjoy, plugin, train
from zoo.configuration import evaluated, read_yaml, write_yaml
from zoo.errors import ConfigurationError

plugin.register()

ENV_ID = "SlowWalk-v0"
FEW = ["--seed", "3", "-n", "60", "--eval-freq", "40", "--eval-tasks", "2", "--n-eval-envs", "1", "--checkpoint-freq", "20"]
NET = ["-params", "learning_starts:10", "policy_kwargs:dict(net_arch=[8], activation_fn=nn.Tanh)", "normalize:True"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A log folder with a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["zoo/train.py"])
        patch.syspath_prepend(Path(__file__).parents[1])
        patch.chdir(folder)
        train.main(["--env", ENV_ID, "--gym-packages", "slow_tasks", *FEW, *NET])
    return folder / "logs"


@pytest.fixture
def run_folder(trained, tmp_path, monkeypatch):
    """A copy of its run, in the present folder, and unfinished."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["zoo/train.py"])
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    shutil.copytree(trained, tmp_path / "logs")
    folder = tmp_path / f"logs/hipi_sac/{ENV_ID}_1"
    path = folder / ENV_ID / "run.yml"
    path.write_text(path.read_text().replace("finished: 60\n", ""))
    return folder


def resume(folder, *more):
    train.main(["--resume", str(folder), *more])


def look(folder, *more):
    enjoy.main(["--env", ENV_ID, "-f", str(folder.parents[1]), "--no-render", "--eval-tasks", "2", *more])


def refused(call, folder, capsys, *more):
    """The error of a command that must leave no mark."""
    with pytest.raises(SystemExit) as exit_info:
        call(folder, *more)
    assert exit_info.value.code == 2
    assert not (folder.parents[2] / "mark").exists(), "the payload ran"
    return capsys.readouterr().err


def test_a_copied_run_can_be_looked_at_and_resumed(run_folder, capsys):
    """The control of everything below: without payload nothing is refused."""
    look(run_folder)
    resume(run_folder)
    assert "hipi_sac on SlowWalk-v0 after 60 steps" in capsys.readouterr().out


def test_all_that_a_run_writes_about_itself_is_plain_yaml(run_folder):
    for path in (run_folder / ENV_ID).glob("*.yml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict)
    assert evaluated(read_yaml(run_folder / ENV_ID / "config.yml")["policy_kwargs"]) == {
        "net_arch": [8],
        "activation_fn": th.nn.Tanh,
    }
    assert not list(run_folder.rglob("vecnormalize.pkl"))


PAYLOAD = "!!python/object/apply:os.system ['touch mark']"


@pytest.mark.parametrize("call", [resume, look], ids=["resume", "enjoy"])
@pytest.mark.parametrize("name", ["config.yml", "args.yml", "run.yml"])
def test_a_tag_in_a_yaml_file_runs_nothing(run_folder, capsys, call, name):
    path = run_folder / ENV_ID / name
    path.write_text(path.read_text() + f"evil: {PAYLOAD}\n")
    read = {resume: ("config.yml", "run.yml"), look: ("config.yml", "args.yml")}[call]
    if name in read:
        error = refused(call, run_folder, capsys)
        assert name in error and "!!python/object/apply:os.system is not read" in error and "is plain data" in error
    else:
        call(run_folder)
    assert not (run_folder.parents[2] / "mark").exists()


def test_the_payload_would_leave_its_mark(tmp_path, monkeypatch):
    """The control of the payload itself."""
    monkeypatch.chdir(tmp_path)
    yaml.load(f"evil: {PAYLOAD}", Loader=yaml.UnsafeLoader)
    assert (tmp_path / "mark").exists()


CODE = "__import__('os').system('touch mark')"


@pytest.mark.parametrize("call", [resume, look], ids=["resume", "enjoy"])
@pytest.mark.parametrize("name", ["normalize", "policy_kwargs", "replay_buffer_kwargs", "monitor_kwargs", "learning_rate"])
def test_an_expression_in_a_yaml_file_runs_nothing(run_folder, capsys, call, name):
    path = run_folder / ENV_ID / "config.yml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), name: CODE}))
    if call is look:
        look(run_folder)  # reads none of them
    else:
        assert f"{name}: cannot read" in refused(call, run_folder, capsys)
    assert not (run_folder.parents[2] / "mark").exists()


@pytest.mark.parametrize(
    "name", ["normalize", "policy_kwargs", "replay_buffer_kwargs", "replay_buffer_class", "monitor_kwargs"]
)
def test_a_text_in_an_expression_is_not_evaluated_again(run_folder, capsys, name):
    """The value of the expression is a string, and rl_zoo3 runs strings."""
    path = run_folder / ENV_ID / "config.yml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), name: repr(CODE)}))
    assert f"{name} has to be" in refused(resume, run_folder, capsys)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_an_expression_on_the_command_line_runs_nothing_however_often_it_is_quoted(tmp_path, monkeypatch, capsys, depth):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["zoo/train.py"])
    text = CODE
    for _ in range(depth):
        text = repr(text)
    with pytest.raises(SystemExit) as exit_info:
        train.main(["--env", "PointFourRooms-v0", "-n", "50", "-params", f"policy_kwargs:{text}"])
    assert exit_info.value.code == 2 and not (tmp_path / "mark").exists()
    assert "policy_kwargs" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-params", "--env-kwargs", "--eval-env-kwargs"])
def test_an_expression_in_a_recorded_command_line_runs_nothing(run_folder, capsys, option):
    path = run_folder / ENV_ID / "run.yml"
    run = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**run, "arguments": [*run["arguments"], option, f"key:{CODE}"]}))
    error = refused(resume, run_folder, capsys)
    assert "key: cannot read" in error and "the calls dict, list, tuple, int, float, linear_schedule" in error


@pytest.mark.parametrize("call", [resume, look], ids=["resume", "enjoy"])
@pytest.mark.parametrize(
    "entry",
    [
        {"env_wrapper": [{"subprocess.Popen": {"args": ["touch", "mark"]}}]},
        {"env_wrapper": "subprocess.call"},
        {"vec_env_wrapper": "os.system"},
        {"callback": [{"subprocess.call": {"args": ["touch", "mark"]}}]},
        {"policy": "os.system"},
    ],
    ids=lambda entry: next(iter(entry)),
)
def test_what_a_configuration_names_by_its_path_has_to_be_of_its_kind(run_folder, capsys, call, entry):
    path = run_folder / ENV_ID / "config.yml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **entry}))
    assert "from a run folder nothing else is called" in refused(call, run_folder, capsys)


@pytest.mark.parametrize("spelling", [["--gym-packages", "{}"], ["--gym-packages={}"], ["--gym-pack", "{}"]])
@pytest.mark.parametrize("dot", [".", "/"])
def test_a_module_in_a_run_folder_is_not_imported(run_folder, capsys, spelling, dot, monkeypatch):
    monkeypatch.syspath_prepend(run_folder.parents[2])
    (run_folder / "evil.py").write_text("import os; os.system('touch mark')")
    name = f"logs.hipi_sac.{ENV_ID}_1.evil".replace(".", dot)
    path = run_folder / ENV_ID / "run.yml"
    run = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**run, "arguments": [*run["arguments"], *(part.format(name) for part in spelling)]}))
    assert "a run folder is data, and importing it would run it" in refused(resume, run_folder, capsys)


@pytest.mark.parametrize("suffix", [".py", ".pyc", "/__init__.py"])
@pytest.mark.parametrize("algo", ["hipi_sac", "sac"])
def test_a_module_in_a_neighbouring_run_folder_is_not_imported(run_folder, capsys, algo, suffix, monkeypatch):
    """A folder of runs is handed on as a whole."""
    monkeypatch.syspath_prepend(run_folder.parents[2])
    neighbour = run_folder.parents[1] / algo / "Other-v0_1"
    neighbour.mkdir(parents=True)
    file = Path(f"{neighbour}/evil{suffix}")
    file.parent.mkdir(exist_ok=True)
    source = neighbour / "source.txt"
    source.write_text("import os; os.system('touch mark')")
    py_compile.compile(str(source), str(file)) if suffix == ".pyc" else source.rename(file)
    path = run_folder / ENV_ID / "run.yml"
    run = yaml.safe_load(path.read_text())
    module = f"logs.{algo}.Other-v0_1.evil"
    path.write_text(yaml.safe_dump({**run, "arguments": [*run["arguments"], "--gym-packages", module]}))
    assert "a run folder is data, and importing it would run it" in refused(resume, run_folder, capsys)


def test_a_module_of_the_user_beside_the_runs_is_imported(run_folder, capsys, monkeypatch):
    """Also where the runs lie in the folder from which modules are imported (-f .)."""
    folder = run_folder.parents[1]
    monkeypatch.syspath_prepend(folder)
    (folder / "my_environments.py").write_text("from pathlib import Path; Path('imported').touch()")
    path = run_folder / ENV_ID / "run.yml"
    run = yaml.safe_load(path.read_text())
    more = ["-f", "logs", "--gym-packages", "my_environments", "slow_tasks"]
    path.write_text(yaml.safe_dump({**run, "arguments": [*run["arguments"], *more]}))
    monkeypatch.syspath_prepend(run_folder.parents[2])
    resume(run_folder)
    assert Path("imported").exists()
    assert "hipi_sac on SlowWalk-v0 after 60 steps" in capsys.readouterr().out


class Evil:
    """Leaves its mark when it is unpickled."""

    def __reduce__(self):
        return subprocess.call, (["touch", "mark"],)


@pytest.mark.parametrize("call", [resume, look], ids=["resume", "enjoy"])
def test_a_pickled_normalisation_is_not_read(run_folder, capsys, call):
    for folder in (run_folder / ENV_ID, newest(run_folder) / ENV_ID):
        folder.mkdir(exist_ok=True)
        (folder / "vecnormalize.json").unlink(missing_ok=True)
        (folder / "vecnormalize.pkl").write_bytes(pickle.dumps(Evil()))
    error = refused(call, run_folder, capsys)
    assert "vecnormalize.pkl is pickled, and a pickle can run any code" in error and "add --trust" in error


def newest(run_folder):
    return max((run_folder / "checkpoints").iterdir(), key=lambda path: int(path.name))


def sign(checkpoint):
    """Write the checksums anew, as whoever changed the files would."""
    sums = {path.relative_to(checkpoint).as_posix(): checksum(path) for path in checkpoint.rglob("*") if path.is_file()}
    sums.pop("checksums.json")
    (checkpoint / "checksums.json").write_text(json.dumps(sums))


def test_the_pickled_state_of_an_earlier_version_is_named_with_the_remedy(run_folder, capsys):
    checkpoint = newest(run_folder)
    (checkpoint / "state.json").unlink()
    (checkpoint / "state.pkl").write_bytes(pickle.dumps(Evil()))
    sign(checkpoint)
    error = refused(resume, run_folder, capsys)
    assert "state.pkl is pickled, as earlier versions did" in error and "to begin from the first step" in error


@pytest.mark.parametrize("state", [{"dict": [["a", 1]]}, [], {"array": "none"}, {"what": 1, "else": 2}, "x"])
def test_a_state_that_no_run_has_written_is_named(run_folder, capsys, state):
    (newest(run_folder) / "state.json").write_text(json.dumps(state))
    sign(newest(run_folder))
    assert "state.json is damaged" in refused(resume, run_folder, capsys)


def test_an_array_of_objects_in_a_state_is_not_unpickled(run_folder, capsys):
    np.savez(newest(run_folder) / "state.npz", evil=np.array([Evil()], dtype=object))
    sign(newest(run_folder))
    assert "entry 'evil.npy' holds objects" in refused(resume, run_folder, capsys)


@pytest.mark.parametrize("name", ["../../../precious.monitor.csv", "precious.txt"])
def test_a_state_cannot_cut_off_files_outside_of_its_run(run_folder, capsys, name):
    for folder in (run_folder, run_folder.parents[2]):
        (folder / Path(name).name).write_text("precious")
    state = newest(run_folder) / "state.json"
    values = json.loads(state.read_text())
    (entry,) = (pair for pair in values["dict"] if pair[0] == "monitor")
    entry[1]["dict"].append([name, 0])
    state.write_text(json.dumps(values))
    sign(newest(run_folder))
    assert f"names {name!r}, which is no log of its run" in refused(resume, run_folder, capsys)
    assert (run_folder.parents[2] / Path(name).name).read_text() == "precious"


@pytest.mark.parametrize("call", [resume, look], ids=["resume", "enjoy"])
@pytest.mark.parametrize("name", [f"{ENV_ID}/writing-run.yml", "0.monitor.csv", "checkpoints/writing-80"])
def test_nothing_is_written_through_a_symbolic_link(run_folder, capsys, call, name):
    outside = run_folder.parents[2] / "outside"
    outside.write_text("precious")
    (run_folder / name).unlink(missing_ok=True)
    (run_folder / name).symlink_to(outside)
    assert f"{name} is a symbolic link" in refused(call, run_folder, capsys)
    assert outside.read_text() == "precious"


# -- reading and evaluating -------------------------------------------------------------------------------------------


def test_rl_zoo3s_tags_are_data(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(
        "!!python/object/apply:collections.OrderedDict\n- - - batch_size\n    - 64\n"
        "  - - train_freq\n    - !!python/tuple\n      - 1\n      - episode\n"
    )
    assert read_yaml(path) == {"batch_size": 64, "train_freq": (1, "episode")}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torch.nn.modules.activation.ReLU", th.nn.ReLU),
        ("torch.optim.adam.Adam", th.optim.Adam),
        ("hipi_sb3.networks.layers.LayerNormReLU", LayerNormReLU),
        ("stable_baselines3.her.her_replay_buffer.HerReplayBuffer", HerReplayBuffer),
    ],
)
def test_a_known_class_may_be_named_by_rl_zoo3s_tag(tmp_path, name, expected):
    path = tmp_path / "config.yml"
    text = yaml.dump({"policy_kwargs": {"activation_fn": expected}})
    assert f"!!python/name:{name} ''" in text
    path.write_text(text)
    read = read_yaml(path)
    assert read == {"policy_kwargs": {"activation_fn": expected}}
    write_yaml(path, read)
    assert evaluated(yaml.safe_load(path.read_text())["policy_kwargs"], "policy_kwargs") == read["policy_kwargs"]


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "torch.load",
        "torch.nn.ReLU",
        "torch.nn.modules.activation.os",
        "subprocess.Popen",
        "builtins.eval",
        "evil.A",
    ],
)
def test_no_other_name_is_looked_up(tmp_path, monkeypatch, name):
    (tmp_path / "evil.py").write_text("from pathlib import Path; Path('mark').touch(); A = int")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for text in (f"a: !!python/name:{name} ''", "a: !!python/name:torch.nn.modules.activation.ReLU [1]"):
        (tmp_path / "config.yml").write_text(text)
        with pytest.raises(ConfigurationError, match=r"config.yml, line 1: !!python/name:.* is not read"):
            read_yaml(tmp_path / "config.yml")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/name:os.system ''", r"config.yml, line 1: !!python/name:os.system is not read"),
        ("a: 1\nb: !!python/object:zoo.errors.ConfigurationError {}", "line 2: !!python/object:zoo.errors"),
        ("a: !!python/module:os ''", "!!python/module:os is not read"),
        ("a: !mine 1", "config.yml, line 1: .*mine"),
        ("!!python/object/apply:collections.OrderedDict {a: 1}", "config.yml, line 1"),
        ("a: [1", "config.yml is malformed"),
        ("- 1", "has to hold entries"),
        ("a: !!int ''", "config.yml is malformed"),
        ("a: !!bool x", "config.yml is malformed"),
        ("a: !!timestamp x", "config.yml is malformed"),
        ("a: " + "[" * 5000 + "]" * 5000, "config.yml is malformed"),
        ("a: &a [*a]", "config.yml is malformed: more than 100000 values"),
        ("a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40)), "more than 100000 values"),
    ],
)
def test_what_is_not_plain_names_file_and_tag(tmp_path, text, message):
    (tmp_path / "config.yml").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_yaml(tmp_path / "config.yml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.001", 0.001),
        ("-1", -1),
        ("'normal'", "normal"),
        ("None", None),
        ("int(1e6)", 1_000_000),
        ("float('inf')", float("inf")),
        ("(1, 'episode')", (1, "episode")),
        (" dict(net_arch=dict(pi=[8]),\n activation_fn=nn.ELU)", {"net_arch": {"pi": [8]}, "activation_fn": th.nn.ELU}),
        ("{'optimizer_class': th.optim.SGD}", {"optimizer_class": th.optim.SGD}),
        ("hipi_sb3.HIPIReplayBuffer", HIPIReplayBuffer),
        ("dict(activation_fn=LayerNormReLU)", {"activation_fn": LayerNormReLU}),
    ],
)
def test_known_expressions_have_their_values(text, value):
    assert evaluated(text) == value


def test_a_schedule_is_an_expression(tmp_path):
    schedule = evaluated("linear_schedule(0.002)")
    assert isinstance(schedule, SimpleLinearSchedule) and schedule(0.5) == 0.001
    write_yaml(tmp_path / "config.yml", {"learning_rate": schedule, "policy_kwargs": {"activation_fn": th.nn.ELU}})
    read = read_yaml(tmp_path / "config.yml")
    assert evaluated(read["learning_rate"])(0.5) == 0.001
    assert evaluated(read["policy_kwargs"]) == {"activation_fn": th.nn.ELU}


@pytest.mark.parametrize(
    "text",
    [
        CODE,
        "os.system('touch mark')",
        "nn.init",
        "nn.Module.__subclasses__()",
        "nn.ReLU()",
        "th.load('x')",
        "[x for x in (1, 2)]",
        "dict(**{'a': 1})",
        "{**{'a': 1}}",
        "(lambda: 1)()",
        "f'{1}'",
        "hipi_sb3.GoalEnvTasks(b'')",
        "1 if True else 2",
        "'a'.__class__",
        "(" * 5000,
        "int(1e400)",
        "",
    ],
)
def test_everything_else_is_refused_with_the_list_of_what_is_known(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"cannot read .*the calls dict, .* linear_schedule.*such as nn.ReLU"):
        evaluated(text)
    assert not (tmp_path / "mark").exists()


def test_the_normalisation_comes_back_as_it_was(run_folder):
    from rl_zoo3.utils import create_test_env

    from zoo.normalization import PlainVecNormalize, load_normalization, statistics_to_json

    def env():
        import slow_tasks  # noqa: F401

        return create_test_env(ENV_ID, should_render=False, hyperparams={})

    loaded = load_normalization(run_folder / ENV_ID, env(), trust=False)
    assert loaded.ret_rms.count > 40 and json.loads((run_folder / ENV_ID / "vecnormalize.json").read_text())
    loaded.save(str(run_folder / "again.pkl"))
    again = PlainVecNormalize.load(str(run_folder / "again.json"), env())
    assert statistics_to_json(again) == statistics_to_json(loaded)
    assert vars(again).keys() == vars(loaded).keys()
