"""Draw which parts of the package import which, from the files themselves: a sampled row goes down, nothing calls back up.

python examples/house.py --picture docs/house.png
"""

import argparse
import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "hipi_sb3"

#: Rooms from top to bottom; a room may only import from below.
ROOMS = ["algorithms", "callbacks", "cloning", "buffers", "relabel", "networks", "experience", "envs", "wrappers", "tasks"]


def edges() -> set[tuple[str, str]]:
    """
    Who imports whom.

    :return: pairs of rooms
    """
    found = set()
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hipi_sb3."):
                other = str(node.module).split(".")[1]
                if room in ROOMS and other in ROOMS and other != room:
                    found.add((room, other))
    return found


def draw(path: Path) -> None:
    """
    Draw the rooms as boxes and the imports as arrows.

    :param path: PNG file to write
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 7.6), dpi=110, facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    place = {room: (0.5, 1 - (i + 0.5) / len(ROOMS)) for i, room in enumerate(ROOMS)}
    for room, other in sorted(edges()):
        distance = ROOMS.index(other) - ROOMS.index(room)
        side = 1 if distance > 1 else 0
        style = {
            "arrowstyle": "-|>",
            "color": "#0072B2",
            "lw": 1.2,
            "alpha": 0.75,
            "shrinkA": 2 if side else 12,
            "shrinkB": 2 if side else 14,
        }
        start, end = ((place[name][0] + side * 0.085, place[name][1]) for name in (room, other))
        ax.annotate("", end, start, arrowprops={**style, "connectionstyle": f"arc3,rad={-0.12 * side * distance ** 0.8}"})
    for room, (x, y) in place.items():
        ax.text(
            x,
            y,
            room,
            ha="center",
            va="center",
            fontsize=12,
            bbox={"boxstyle": "round,pad=0.45", "fc": "#F2F2F2", "ec": "#444444"},
        )
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    FigureCanvasAgg(figure).print_png(str(path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, required=True)
    draw(parser.parse_args().picture)
