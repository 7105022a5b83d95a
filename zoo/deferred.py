"""What rl_zoo3 and stable-baselines3 import on the off chance, imported when it is first used.

A training uses neither Optuna's figures nor the Hub, but rl_zoo3 imports them, and matplotlib with them, at its start.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

#: Functions that rl_zoo3 imports by name, by the module that has them.
DEFERRED: dict[str, tuple[str, ...]] = {
    "optuna.visualization": ("plot_optimization_history", "plot_param_importances"),
}

#: Packages of environments that rl_zoo3 imports where they are installed, and that take their time: more than a second, and
#: matplotlib with it. ``--gym-packages`` imports them where they are wanted.
LEFT_TO_GYM_PACKAGES = ("highway_env",)


def defer_imports() -> None:
    """
    Put functions that import their module when they are called in the place of those that rl_zoo3 imports.

    Afterwards ``sys.modules`` is as it would be without: only rl_zoo3 holds the stand-ins. Modules that are imported already
    stay as they are.
    """
    if "rl_zoo3.exp_manager" in sys.modules:
        return
    waiting = {name: names for name, names in DEFERRED.items() if name not in sys.modules}
    for module_name, names in waiting.items():
        stand_in = ModuleType(module_name)
        for name in names:
            setattr(stand_in, name, _when_called(module_name, name))
        sys.modules[module_name] = stand_in
    left_out = [name for name in LEFT_TO_GYM_PACKAGES if name not in sys.modules]
    sys.modules.update(dict.fromkeys(left_out))  # type: ignore[arg-type]  # None: Python says that there is no such module
    try:
        importlib.import_module("rl_zoo3.exp_manager")
    finally:
        for module_name in (*waiting, *left_out):
            sys.modules.pop(module_name, None)


def _when_called(module_name: str, name: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module_name), name)(*args, **kwargs)

    call.__name__ = name
    return call
