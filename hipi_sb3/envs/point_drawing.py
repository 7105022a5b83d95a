"""Pictures of a maze: frames in plain NumPy, and figures of trajectories with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

#: Pixels a unit of the map.
SCALE = 16

# Okabe and Ito's palette, which the colour-blind can tell apart.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
FLOOR, GRID, WALL, INK = "#F7F6F2", "#ECEAE3", "#3B4252", "#1F2430"


def maze_image(
    walls: np.ndarray,
    trail: Sequence[tuple[float, float]],
    position: tuple[float, float],
    goal: np.ndarray | None,
    goal_radius: float,
) -> np.ndarray:
    """
    Draw one frame: rows of the map downwards, columns to the right.

    :param walls: map, (height, width), bool
    :param trail: positions so far, (n, 2)
    :param position: position of the point, (2,)
    :param goal: goal, (2,), or None
    :param goal_radius: radius of its disc, in units of the map
    :return: image, (height * SCALE, width * SCALE, 3), uint8
    """
    image = np.array(_maze_background(walls.tobytes(), walls.shape), dtype=np.float32)
    if goal is not None:
        _blend(image, _disc(image, goal, goal_radius), GREEN, 0.35)
        _blend(image, _disc(image, goal, goal_radius) - _disc(image, goal, goal_radius - 0.12), GREEN, 1.0)
        _blend(image, _disc(image, goal, 0.16), GREEN, 1.0)
    _blend(image, _path(image, trail, 0.11), BLUE, 0.55)
    _blend(image, _disc(image, position, 0.62), "#FFFFFF", 1.0)
    _blend(image, _disc(image, position, 0.5), BLUE, 1.0)
    return np.round(image).astype(np.uint8)


def draw_maze(ax: Any, walls: np.ndarray, start: np.ndarray) -> None:
    """
    Draw the maze and the start on matplotlib axes.

    :param ax: matplotlib ``Axes``; x counts columns, y counts rows downwards
    :param walls: whether each square is a wall, (height, width)
    :param start: position of the start, (2,)
    """
    height, width = walls.shape
    ax.set_facecolor(FLOOR)
    for row, column in np.argwhere(walls):
        # Overlapping a little, so that no seams show between the squares.
        ax.add_patch(_rectangle((column - 0.01, row - 0.01), 1.02, 1.02, facecolor=WALL, edgecolor="none", zorder=1))
    ax.add_patch(_rectangle((0, 0), width, height, facecolor="none", edgecolor=WALL, linewidth=2.5, zorder=5, clip_on=False))
    ax.plot(start[1], start[0], "s", color=INK, markersize=8, zorder=7, clip_on=False)
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def plot_trajectories(
    walls: np.ndarray,
    start: np.ndarray,
    positions: Sequence[np.ndarray],
    goals: np.ndarray,
    successes: Sequence[bool],
    radius: float,
    path: str | Path,
) -> None:
    """
    Save a picture of trajectories to several goals; colour and line style say which goals were reached.

    :param walls: whether each square is a wall, (height, width)
    :param start: position of the start, (2,)
    :param positions: one array a trajectory, (n_steps + 1, 2), the first position to the last
    :param goals: goals, (n, 2)
    :param successes: whether each trajectory reached its goal, (n,)
    :param radius: radius around a goal that counts as reached
    :param path: PNG file to write
    :raises ValueError: when the numbers of trajectories, goals and successes differ
    :raises ImportError: when matplotlib is missing
    """
    goals = np.asarray(goals, dtype=np.float64)
    if goals.shape != (len(positions), 2) or len(successes) != len(positions):
        raise ValueError(
            f"plot_trajectories: {len(positions)} trajectories need goals of shape ({len(positions)}, 2) and as many "
            f"successes, not {goals.shape} and {len(successes)}."
        )
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from PIL import Image  # a dependency of matplotlib
    except ImportError as error:
        raise ImportError("Drawing trajectories needs matplotlib: run `pip install matplotlib`.") from error

    # A Figure of its own instead of pyplot: no display and no global state.
    figure = Figure(figsize=(6.4, 7.0), dpi=130, facecolor="white")
    ax = figure.add_axes((0.03, 0.08, 0.94, 0.86))
    draw_maze(ax, walls, start)
    for trajectory, goal, success in zip(positions, goals, successes, strict=True):
        rows, columns = np.asarray(trajectory)[:, :2].T
        color = BLUE if success else VERMILION
        ax.add_patch(_circle((goal[1], goal[0]), radius, facecolor=color, edgecolor="none", alpha=0.25, zorder=2))
        ax.add_patch(_circle((goal[1], goal[0]), radius, facecolor="none", edgecolor=color, linewidth=1.2, zorder=2))
        line: dict[str, Any] = {"solid_capstyle": "round", "solid_joinstyle": "round", "clip_on": False}
        ax.plot(columns, rows, color="white", linewidth=3.4, alpha=0.8, zorder=3, **line)
        ax.plot(
            columns, rows, linestyle="-" if success else (0, (4, 1.5)), color=color, linewidth=1.6, alpha=0.9, zorder=4, **line
        )
        marker: dict[str, Any] = {"marker": "o", "markersize": 5.5} if success else {"marker": "X", "markersize": 7.5}
        ax.plot(
            columns[-1], rows[-1], color=color, markeredgecolor="white", markeredgewidth=0.9, zorder=6, clip_on=False, **marker
        )
    handles = [
        Line2D([], [], color=INK, marker="s", linestyle="none", markersize=8, label="start"),
        Line2D([], [], color=BLUE, marker="o", markersize=5.5, label="goal reached"),
        Line2D([], [], color=VERMILION, marker="X", markersize=7.5, linestyle=(0, (4, 1.5)), label="goal missed"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=11)
    figure.text(
        0.5, 0.955, f"{sum(map(bool, successes))} of {len(successes)} goals reached", ha="center", fontsize=13, color=INK
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Few colours are in it: a palette makes the file three times smaller.
    palette = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(128, method=Image.Quantize.MAXCOVERAGE)
    palette.save(path, format="PNG", optimize=True)


def _rectangle(*args: Any, **kwargs: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(*args, **kwargs)


def _circle(*args: Any, **kwargs: Any) -> Any:
    from matplotlib.patches import Circle

    return Circle(*args, **kwargs)


# -- frames in NumPy: a shape is a coverage in [0, 1] a pixel, (height, width), soft at its edge ----------------------


@lru_cache(maxsize=8)
def _maze_background(walls: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Floor, a faint grid of units, walls: (height * SCALE, width * SCALE, 3), uint8."""
    is_wall = np.frombuffer(walls, dtype=bool).reshape(shape)
    is_wall = np.kron(is_wall, np.ones((SCALE, SCALE), dtype=bool))
    rows, columns = np.indices(is_wall.shape)
    on_grid = (rows % SCALE == 0) | (columns % SCALE == 0)
    image = np.where(on_grid[..., None], _rgb(GRID), _rgb(FLOOR))
    image = np.where(is_wall[..., None], _rgb(WALL), image)
    border = (np.minimum(rows, rows[::-1]) < 2) | (np.minimum(columns, columns[:, ::-1]) < 2)
    return np.where(border[..., None], _rgb(WALL), image).astype(np.uint8)


def _rgb(color: str) -> np.ndarray:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32)


def _blend(image: np.ndarray, coverage: np.ndarray, color: str, opacity: float) -> None:
    """Paint a shape onto an image, in place."""
    image += (opacity * coverage)[..., None] * (_rgb(color) - image)


def _disc(image: np.ndarray, center: Any, radius: float) -> np.ndarray:
    """Coverage of a disc; centre and radius in units of the map."""
    return _path(image, [center], radius)


def _path(image: np.ndarray, points: Sequence[Any], half_width: float) -> np.ndarray:
    """Coverage of a line through points, (n, 2), with round caps and joints; one point makes a disc."""
    coverage = np.zeros(image.shape[:2], dtype=np.float32)
    pixels = SCALE * np.asarray(points, dtype=np.float64)
    radius = SCALE * half_width
    for start, end in pairwise(pixels) if len(pixels) > 1 else [(pixels[0], pixels[0])]:
        # Only the pixels around this segment.
        low = np.maximum(np.minimum(start, end) - radius - 2, 0).astype(int)
        high = np.maximum(np.maximum(start, end) + radius + 2, 0).astype(int)
        patch = coverage[low[0] : high[0], low[1] : high[1]]
        at = np.moveaxis(np.indices(patch.shape), 0, -1) + low + 0.5  # centres of the pixels, (rows, columns, 2)
        along = end - start
        share = np.clip((at - start) @ along / max(float(along @ along), 1e-12), 0.0, 1.0)
        distance = np.linalg.norm(at - start - share[..., None] * along, axis=-1)
        np.maximum(patch, np.clip(radius + 0.5 - distance, 0.0, 1.0), out=patch, casting="same_kind")
    return coverage
