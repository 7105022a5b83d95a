"""
One picture of every environment of this repository, rendered without a display.

    MUJOCO_GL=egl python examples/contact_sheet.py --output docs/environments.png

Each is shown after some random steps of an episode; where the simulator can draw the goal, it is in the picture.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hipi_sb3.envs import registered_env_ids

COLUMNS = 7
TILE, LABEL, GAP = 150, 17, 6
INK = (31, 36, 48)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/environments.png"), help="PNG file (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="random steps before the picture (default: %(default)s)")
    args = parser.parse_args()
    tiles = {env_id: frame(env_id, args.steps) for env_id in registered_env_ids()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(tiles)
    # Few enough colours for a palette, which makes the file several times smaller.
    sheet.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(args.output, optimize=True)
    print(f"{len(tiles)} environments: {args.output}, {args.output.stat().st_size / 1000:.0f} kB")


def frame(env_id: str, n_steps: int) -> np.ndarray:
    """An image of an environment in the middle of an episode, (height, width, 3), uint8."""
    env = gym.make(env_id, render_mode="rgb_array")
    env.action_space.seed(0)
    env.reset(seed=1)
    for _ in range(n_steps):
        env.step(env.action_space.sample())
    image = env.render()
    env.close()
    assert isinstance(image, np.ndarray)
    return image


def contact_sheet(tiles: dict[str, np.ndarray]) -> Image.Image:
    """Images in a grid with their names below."""
    rows = -(-len(tiles) // COLUMNS)
    size = (COLUMNS * (TILE + GAP) + GAP, rows * (TILE + LABEL + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for k, (env_id, image) in enumerate(tiles.items()):
        x, y = GAP + k % COLUMNS * (TILE + GAP), GAP + k // COLUMNS * (TILE + LABEL + GAP)
        sheet.paste(Image.fromarray(image).resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
        draw.text((x + TILE / 2, y + TILE + 2), env_id, fill=INK, font=font, anchor="ma")
    return sheet


if __name__ == "__main__":
    main()
