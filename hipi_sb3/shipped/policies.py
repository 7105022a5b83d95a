"""Trained policies as two files: ``<env>.npz`` with the parameters and ``<env>.json``, a card that says where they come from.

To add one: train it with ``zoo/train.py`` and export the run with ``zoo/export.py``; ``make pretrained`` has the commands of
those that are here.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from hipi_sb3.cloning.policy import TaskConditionedBCPolicy
from hipi_sb3.experience.archives import read_npz_stream
from hipi_sb3.experience.files import space_from_json, space_to_json
from hipi_sb3.names import lookup
from hipi_sb3.networks.layers import LayerNormReLU

FOLDER = Path(__file__).parent

KEY_TO_ACTIVATION: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "layer_norm_relu": LayerNormReLU,
}


class PretrainedPolicy(TaskConditionedBCPolicy):
    """
    A policy pi(a | s, psi) that is there to be looked at: it has ``predict``, and no algorithm behind it.

    :param observation_space: observation space, with the task
    :param action_space: action space, ``Box``
    :param net_arch: units of the hidden layers
    :param activation: activation function, ``"relu"``, ``"tanh"``, ``"elu"`` or ``"layer_norm_relu"``
    :param card: where it comes from: command, commit, versions, machine, result
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        net_arch: list[int],
        activation: str = "relu",
        card: dict[str, Any] | None = None,
    ) -> None:
        activation_fn = lookup("activation function", activation, KEY_TO_ACTIVATION)
        super().__init__(observation_space, action_space, lambda progress: 0.0, net_arch, activation_fn)
        self.activation = activation
        self.card = card or {}
        self.set_training_mode(False)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = ("observation_space", "action_space", "net_arch", "activation", "card")
        return {name: getattr(self, name) for name in names}

    def write(self, folder: str | Path, name: str) -> Path:
        """
        Write the parameters and the card; nothing is pickled.

        :param folder: folder of the two files
        :param name: their name, that of the environment
        :return: path of the parameters
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.npz"
        arrays = {key: value.numpy(force=True) for key, value in self.state_dict().items()}
        np.savez_compressed(path, allow_pickle=False, **arrays)
        architecture = {
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "net_arch": self.net_arch,
            "activation": self.activation,
            "sha256": _checksum(path),
        }
        path.with_suffix(".json").write_text(json.dumps({**self.card, "policy": architecture}, indent=1) + "\n")
        return path


def pretrained(env_id: str, folder: str | Path | None = None, device: str = "auto") -> PretrainedPolicy:
    """
    Load a trained policy: ``pretrained("PointFixedGoals-v0").predict(obs, deterministic=True)``.

    :param env_id: environment that it was trained in, see :func:`pretrained_env_ids`
    :param folder: folder with the two files; those of the package if None
    :param device: PyTorch device
    :return: the policy; its ``card`` says the command, the commit and the result
    :raises ValueError: when there is no policy for the environment, or its files do not belong together
    """
    folder = FOLDER if folder is None else Path(folder)
    card_path = lookup("pretrained policy", env_id, {name: folder / f"{name}.json" for name in pretrained_env_ids(folder)})
    card = json.loads(card_path.read_text())
    architecture = card["policy"]
    path = card_path.with_suffix(".npz")
    if not path.is_file() or _checksum(path) != architecture["sha256"]:
        raise ValueError(
            f"{path} is missing, damaged, or of another policy than {card_path.name} says: their checksums differ. Restore "
            "both files, or write them again with zoo/export.py."
        )
    with open(path, "rb") as file:
        arrays = read_npz_stream(file, path)
    if math.prod(architecture["net_arch"]) > math.prod(array.size for array in arrays.values() if array.ndim == 2):
        raise ValueError(
            f"{card_path} has layers of {architecture['net_arch']} units, but {path.name} has not: it is not read."
        )
    policy = PretrainedPolicy(
        space_from_json(architecture["observation_space"]),
        space_from_json(architecture["action_space"]),
        architecture["net_arch"],
        architecture["activation"],
        card,
    )
    policy.load_state_dict({key: th.as_tensor(array) for key, array in arrays.items()})
    return policy.to("cuda" if device == "auto" and th.cuda.is_available() else "cpu" if device == "auto" else device)


def pretrained_env_ids(folder: str | Path | None = None) -> list[str]:
    """
    List the environments for which there is a trained policy.

    :param folder: folder with the files; that of the package if None
    :return: ids
    """
    return sorted(path.stem for path in (FOLDER if folder is None else Path(folder)).glob("*.json"))


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
