"""Files that anybody may have written, each with something in it that is to do harm: named, refused, and without effect."""

import io
import json
import pickle
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from line_walk import ACTIONS, GOALS, make_line_walk

import hipi_sb3
from hipi_sb3 import HIPIBC, HIPISAC, HIPIReplayBuffer, TaskConditionedBCPolicy, TrajectoryDataset
from hipi_sb3.experience import archives, files
from hipi_sb3.experience.archives import read_npz
from hipi_sb3.shipped import policies

SPACE = spaces.Box(-1.0, 1.0, (2,), np.float32)


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def header(text: str, content: bytes = b"\0" * 8) -> bytes:
    """An .npy file with this header, whatever it says."""
    encoded = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded + content


#: Contents of an .npy file, for the path of a mark.
NPY: dict[str, Callable[[Path], bytes]] = {
    "objects": lambda mark: npy(np.array([Payload(mark)], dtype=object)),
    "objects in a structure": lambda mark: npy(np.array([(Payload(mark), 1)], dtype=[("a", object), ("b", int)])),
    "code in the header": lambda mark: header(f"__import__('pathlib').Path({str(mark)!r}).touch()"),
    "code in a type": lambda mark: header(f"{{'descr': __import__('os').system('touch {mark}'), 'shape': ()}}"),
    "enormous shape": lambda mark: header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 1000000)}"),
    "a terabyte": lambda mark: header("{'descr': '<f8', 'fortran_order': False, 'shape': (137438953472,)}"),
    "enormous and empty": lambda mark: header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 1000000000)}"),
    "overflow to what is there": lambda mark: header(
        f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**62}, 4, 1)}}", b"\0" * 8
    ),
    "enormous item": lambda mark: header("{'descr': '<U2000000000', 'fortran_order': False, 'shape': (1,)}"),
    "deep": lambda mark: header("(" * 5000),
    "a pickle": lambda mark: pickle.dumps(Payload(mark)),
    "cut off": lambda mark: npy(np.zeros(100))[:-10],
    "nothing": lambda mark: b"",
}


def archive(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, content in entries:
            file.writestr(name, content)
    return stream.getvalue()


def link_entry() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("a.npy")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def edited(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content and len(old) == len(new)
    return content.replace(old, new)


#: Whole archives. The limit of what is unpacked is set to a MiB.
ARCHIVES: dict[str, Callable[[], bytes]] = {
    "bomb": lambda: archive(("a.npy", npy(np.zeros(1 << 20))), method=zipfile.ZIP_DEFLATED),
    "bomb of many": lambda: archive(*((f"a{i}.npy", npy(np.zeros(1 << 15))) for i in range(30)), method=zipfile.ZIP_DEFLATED),
    "path upwards": lambda: archive(("../a.npy", npy(np.zeros(3)))),
    "path of the root": lambda: archive(("/a.npy", npy(np.zeros(3)))),
    "path of another system": lambda: archive(("..\\a.npy", npy(np.zeros(3)))),
    "drive": lambda: archive(("c:a.npy", npy(np.zeros(3)))),
    "link": lambda: archive((link_entry(), b"/etc/passwd")),
    "twice": lambda: edited(archive(("a.npy", npy(np.zeros(3))), ("b.npy", npy(np.ones(3)))), b"b.npy", b"a.npy"),
    "damaged": lambda: archive(("a.npy", npy(np.arange(100.0))), method=zipfile.ZIP_DEFLATED)[:-200],
    "no archive": lambda: b"PK\x03\x04 and nothing more",
    "nothing": lambda: b"",
}


class Reader:
    """
    A kind of file, and how it is read.

    :param write: writes a good one into the folder, and returns the file that is to be replaced
    :param read: reads it
    :param sign: writes checksums anew, as whoever changed the file would
    """

    def __init__(
        self, write: Callable[[Path], Path], read: Callable[[Path], Any], sign: Callable[[Path], None] = lambda file: None
    ) -> None:
        self.write, self.read, self.sign = write, read, sign


def write_dataset(folder: Path, name: str) -> None:
    arrays = [np.zeros((5, size), np.float32) for size in (2, 1, 1)]
    TrajectoryDataset(GOALS, SPACE, ACTIONS, *arrays, np.array([2, 3])).save(folder / name)


def dataset_file(folder: Path) -> Path:
    write_dataset(folder, "data.npz")
    return folder / "data.npz"


def dataset_folder(folder: Path) -> Path:
    (folder / "data").mkdir()
    with np.load(dataset_file(folder)) as arrays:
        for name, array in arrays.items():
            if name == "spaces":
                (folder / "data/spaces.json").write_text(str(array))
            else:
                np.save(folder / f"data/{name}", array)
    return folder / "data/actions.npy"


def buffer_folder(folder: Path) -> Path:
    model = HIPISAC("MultiInputPolicy", make_line_walk(), buffer_size=50, learning_starts=100, device="cpu", seed=0).learn(20)
    model.save_replay_buffer(folder / "buffer")
    return min((folder / "buffer").glob("arrays-*/*.npy"))


def sign_buffer(file: Path) -> None:
    path = file.parent.parent / files.HEADER
    values = json.loads(path.read_text())
    values.pop("sha256")
    values["arrays"][file.stem]["sha256"] = files.checksum(file)
    path.write_text(json.dumps({**values, "sha256": files._text_checksum(values)}))


def pretrained_files(folder: Path) -> Path:
    name = hipi_sb3.shipped.policies.pretrained_env_ids()[0]
    for suffix in (".json", ".npz"):
        (folder / f"{name}{suffix}").write_bytes((policies.FOLDER / f"{name}{suffix}").read_bytes())
    return folder / f"{name}.npz"


def sign_pretrained(file: Path) -> None:
    card = json.loads(file.with_suffix(".json").read_text())
    card["policy"]["sha256"] = files.checksum(file)
    file.with_suffix(".json").write_text(json.dumps(card))


def state_file(folder: Path) -> Path:
    np.savez(folder / "state.npz", a=np.zeros(3))
    return folder / "state.npz"


ARRAYS = {
    "data set": Reader(dataset_folder, lambda file: TrajectoryDataset.load(file.parent, GOALS)),
    "buffer": Reader(buffer_folder, lambda file: HIPIReplayBuffer.load(file.parent.parent, family=GOALS), sign_buffer),
}
OF_ARRAYS = {
    "state of a run": Reader(state_file, read_npz),
    "data set": Reader(dataset_file, lambda file: TrajectoryDataset.load(file, GOALS)),
    "pretrained": Reader(
        pretrained_files, lambda file: hipi_sb3.pretrained(file.stem, file.parent, device="cpu"), sign_pretrained
    ),
}


def refused(reader: Reader, file: Path, content: bytes | None) -> None:
    """The file with that content is named, and leaves no mark."""
    if content is not None:
        file.write_bytes(content)
    reader.sign(file)
    with pytest.raises(ValueError, match=file.name.replace(".", r"\.")):
        reader.read(file)
    assert not (file.parent / "mark").exists()


@pytest.mark.parametrize("name", [*ARRAYS, *OF_ARRAYS])
def test_what_is_to_be_replaced_is_read(name: str, tmp_path: Path) -> None:
    """The control of everything below, signatures included."""
    reader = {**ARRAYS, **OF_ARRAYS}[name]
    file = reader.write(tmp_path)
    reader.sign(file)
    reader.read(file)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("payload", NPY)
def test_an_array_in_a_folder(name: str, payload: str, tmp_path: Path) -> None:
    file = ARRAYS[name].write(tmp_path)
    refused(ARRAYS[name], file, NPY[payload](file.parent / "mark"))


@pytest.mark.parametrize("name", OF_ARRAYS)
@pytest.mark.parametrize("payload", NPY)
def test_an_array_in_an_archive(name: str, payload: str, tmp_path: Path) -> None:
    file = OF_ARRAYS[name].write(tmp_path)
    refused(OF_ARRAYS[name], file, archive(("a.npy", NPY[payload](file.parent / "mark"))))


@pytest.mark.parametrize("name", OF_ARRAYS)
@pytest.mark.parametrize("payload", ARCHIVES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive(name: str, payload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FREE_BYTES", 1 << 20)
    refused(OF_ARRAYS[name], OF_ARRAYS[name].write(tmp_path), ARCHIVES[payload]())


@pytest.mark.parametrize("name", ["data set", "buffer"])
def test_a_link_in_the_place_of_an_array(name: str, tmp_path: Path) -> None:
    file = ARRAYS[name].write(tmp_path)
    file.rename(tmp_path / "elsewhere.npy")
    file.symlink_to(tmp_path / "elsewhere.npy")
    refused(ARRAYS[name], file, None)


def test_objects_are_unpickled_by_numpy_itself(tmp_path: Path) -> None:
    """The control of the payload."""
    np.load(io.BytesIO(NPY["objects"](tmp_path / "mark")), allow_pickle=True)
    assert (tmp_path / "mark").exists()


# -- files of torch ---------------------------------------------------------------------------------------------------


def torch_file(content: Any) -> bytes:
    stream = io.BytesIO()
    th.save(content, stream)
    return stream.getvalue()


def torch_bomb(content: Any) -> bytes:
    """The same, its entries compressed."""
    with zipfile.ZipFile(io.BytesIO(torch_file(content))) as file:
        entries = [(name, file.read(name)) for name in file.namelist()]
    return archive(*entries, method=zipfile.ZIP_DEFLATED)


TORCH: dict[str, Callable[[Path], bytes]] = {
    "an object": lambda mark: torch_file(Payload(mark)),
    "an object among tensors": lambda mark: torch_file({"state_dict": {"a": th.zeros(2)}, "plain": Payload(mark)}),
    "a pickle": lambda mark: pickle.dumps(Payload(mark)),
    "bomb": lambda mark: torch_bomb({"a": th.zeros(1 << 19)}),
    "nothing": lambda mark: b"",
}


def cloner(**kwargs: Any) -> HIPIBC:
    return HIPIBC("MultiInputPolicy", make_line_walk(), device="cpu", seed=0, policy_kwargs={"net_arch": [4]}, **kwargs)


def read_model(file: Path, kind: Any = HIPISAC) -> Any:
    return kind.load(file, device="cpu")


def model_with(content: bytes) -> bytes:
    stream = io.BytesIO()
    cloner().save(stream)
    with zipfile.ZipFile(stream) as file:
        entries = [(name, content if name == "policy.pth" else file.read(name)) for name in file.namelist()]
    return archive(*entries)


def resume_cloning(file: Path) -> Any:
    data = TrajectoryDataset(
        GOALS, SPACE, ACTIONS, np.zeros((5, 2), np.float32), np.zeros((5, 1), np.float32), np.zeros((5, 1), np.float32), [5]
    )
    return HIPIBC("MultiInputPolicy", device="cpu", seed=0).fit(data, n_updates=1, checkpoint=file)


OF_TENSORS: dict[str, tuple[Callable[[bytes], bytes], Callable[[Path], Any]]] = {
    "model": (model_with, lambda file: read_model(file, HIPIBC)),
    "policy": (lambda content: content, lambda file: TaskConditionedBCPolicy.load(file)),
    "checkpoint of cloning": (lambda content: content, resume_cloning),
}


@pytest.mark.parametrize("name", OF_TENSORS)
@pytest.mark.parametrize("payload", TORCH)
def test_a_file_of_tensors(name: str, payload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FREE_BYTES", 1 << 20)
    wrap, read = OF_TENSORS[name]
    file = tmp_path / "tensors.zip"
    file.write_bytes(wrap(TORCH[payload](tmp_path / "mark")))
    with pytest.raises(Exception, match=r"tensors\.zip") as error:
        read(file)
    assert isinstance(error.value, ValueError)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("payload", ARCHIVES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_archive_of_a_model(payload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FREE_BYTES", 1 << 20)
    refused(Reader(lambda folder: folder, read_model), tmp_path / "model.zip", ARCHIVES[payload]())
    assert not (tmp_path.parent / "a.npy").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{", '"x"', "3"])
def test_the_entries_of_a_model(text: str, tmp_path: Path) -> None:
    refused(Reader(lambda folder: folder, read_model), tmp_path / "model.zip", archive(("data", text.encode())))


@pytest.mark.parametrize(
    "entry",
    [
        {"array": {"dtype": "<f8", "shape": [10**12], "content": ""}},
        {"array": {"dtype": "<f8", "shape": [-1, 10**12], "content": ""}},
        {"array": {"dtype": "<U2000000000", "shape": [1], "content": ""}},
        {"array": {}},
        {"space": {"space": {"low": [0], "high": [1], "dtype": "O"}, "generator": None}},
        {"space": {"space": {"bits": [-1]}, "generator": None}},
        {"deque": [None]},
        {"class": 3},
        {"class": "torch.nn.modules.linear:Linear.__init__"},
        {"class": "hipi_sb3.__main__:report"},
        {},
    ],
    ids=str,
)
def test_an_entry_of_a_model(entry: Any, tmp_path: Path) -> None:
    content = archive(("data", json.dumps({"something": {":plain:": entry}}).encode()))
    refused(Reader(lambda folder: folder, read_model), tmp_path / "model.zip", content)
