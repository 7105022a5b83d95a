"""Who imports whom: no circles, and nobody looks into a room that is not theirs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: What a room of the package must not import, directly or round a corner.
FORBIDDEN = {
    "hipi_sb3.tasks": ("torch", "stable_baselines3", "sb3_contrib"),
    "hipi_sb3.experience": ("torch", "stable_baselines3", "sb3_contrib", "hipi_sb3.relabel", "hipi_sb3.networks"),
}
#: Words by which a critic or an actor is reached.
CRITIC = {"critic", "critic_target", "q_net", "q_net_target", "quantile_net", "quantile_net_target", "actor", "actor_target"}


def modules() -> dict[str, Path]:
    """All modules of the package and of the launcher by name."""
    names = {}
    for folder in ("hipi_sb3", "zoo"):
        for path in (ROOT / folder).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            names[name.removesuffix(".__init__")] = path
    return names


MODULES = modules()


def imports(name: str) -> set[str]:
    """What a module imports, anywhere in it, ``TYPE_CHECKING`` or not; packages that are imported on the way do not count."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {entry if entry in MODULES else node.module for entry in full}
    return found


def reached(name: str, seen: set[str] | None = None) -> set[str]:
    """What a module imports, directly or round a corner."""
    seen = set() if seen is None else seen
    for other in imports(name) - seen:
        seen.add(other)
        if other in MODULES:
            reached(other, seen)
    return seen


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_one_that_imports_it(name: str) -> None:
    assert name not in reached(name)


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_of_arrays_know_neither_networks_nor_algorithms(room: str) -> None:
    inside = [name for name in MODULES if name.startswith(room)]
    assert len(inside) > 3
    found = {(name, other) for name in inside for other in reached(name) if other.startswith(FORBIDDEN[room])}
    assert found == set()


def test_only_learners_and_networks_look_inside_a_critic() -> None:
    looking = set()
    for name in MODULES:
        if name.startswith("hipi_sb3."):
            nodes = ast.walk(ast.parse(MODULES[name].read_text()))
            attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            if attributes & CRITIC:
                looking.add(name)
    allowed = {name for name in looking if name.startswith("hipi_sb3.networks.")} | {"hipi_sb3.relabel.learners"}
    # Cloning has an actor of its own, and an algorithm can take it over.
    assert looking - allowed <= {"hipi_sb3.algorithms", "hipi_sb3.cloning.bc", "hipi_sb3.cloning.policy"}


@pytest.mark.parametrize("name", MODULES)
def test_files_and_classes_stay_small(name: str) -> None:
    text = MODULES[name].read_text()
    assert text.count("\n") <= 500
    classes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    sizes = {node.name: (node.end_lineno or 0) - node.lineno for node in classes}
    assert all(size <= 400 for size in sizes.values()), sizes
    if name == "hipi_sb3.buffers":
        assert text.count("\n") <= 400


def test_the_median_function_has_few_lines() -> None:
    sizes = []
    for name in MODULES:
        for node in ast.walk(ast.parse(MODULES[name].read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                sizes.append(node.end_lineno - body[0].lineno + 1 if body else 0)
    assert sorted(sizes)[len(sizes) // 2] <= 5
