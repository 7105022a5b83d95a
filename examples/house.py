"""Draw which parts of the package import which, from the files themselves: a sampled row goes down, nothing calls back up.

python examples/house.py --picture docs/house.png
"""

import argparse
import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "hipi_sb3"

#: Rooms from top to bottom; a room may only import from below.
ROOMS = [
    "algorithms",
    "callbacks",
    "cloning",
    "buffers",
    "arrivals",
    "relabel",
    "networks",
    "envs",
    "wrappers",
    "tasks",
    "experience",
]

#: Of the picture in inches, and of a room as a share of the picture.
SIZE, WIDTH, HEIGHT = (4.8, 7.6), 0.26, 0.044


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
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=SIZE, dpi=110, facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    place = {room: (0.3, 1 - (i + 0.5) / len(ROOMS)) for i, room in enumerate(ROOMS)}
    for room, other in sorted(edges()):
        distance = ROOMS.index(other) - ROOMS.index(room)
        side = 1 if distance > 1 else 0
        style = {
            "arrowstyle": "-|>",
            "color": "#0072B2",
            "lw": 1.2,
            "alpha": 0.75,
            "shrinkA": 0 if side else HEIGHT / 2 * 72 * SIZE[1],
            "shrinkB": 1 if side else HEIGHT / 2 * 72 * SIZE[1] + 1,
        }
        start, end = ((place[name][0] + side * WIDTH / 2, place[name][1]) for name in (room, other))
        ax.annotate("", end, start, arrowprops={**style, "connectionstyle": f"arc3,rad={-0.12 * side * distance ** 0.8}"})
    for room, (x, y) in place.items():
        corner, size = (x - WIDTH / 2, y - HEIGHT / 2), (WIDTH, HEIGHT)
        ax.add_patch(FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=0.01", fc="#F2F2F2", ec="#444444"))
        ax.text(x, y, room, ha="center", va="center", fontsize=12)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    FigureCanvasAgg(figure).print_png(str(path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, required=True)
    draw(parser.parse_args().picture)
