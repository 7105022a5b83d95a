"""
Film the policies that come with the package, a few tasks each: ``docs/pretrained/<env>.gif``.

    MUJOCO_GL=egl python docs/pretrained_gifs.py
    MUJOCO_GL=egl python docs/pretrained_gifs.py SawyerReach-v0
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw

from hipi_sb3 import pretrained
from hipi_sb3.shipped.policies import pretrained_env_ids

FOLDER = Path(__file__).with_name("pretrained")
#: Width and height of the pictures, and how many colours they have.
SIDE, COLOURS = 200, 64
#: Steps of an episode that are shown, at most.
STEPS = 200
#: Milliseconds that a picture stands, and the last one of an episode.
BRIEFLY, LONGER = 60, 700

#: One picture in so many steps; one in each elsewhere.
KEY_TO_EVERY = {"PointFourRooms-v0": 2, "SawyerReach-v0": 2, "WalkerLinear-v0": 7}
#: Part of the picture that is shown: left, upper, right, lower end, as shares; all of it elsewhere.
KEY_TO_CROP = {"SawyerReach-v0": (0.08, 0.2, 0.78, 0.9)}
#: What is shown: a caption and a task.
KEY_TO_TASKS: dict[str, list[tuple[str, list[float]]]] = {
    "PointFixedGoals-v0": [(f"place {i}", np.eye(32)[i].tolist()) for i in (0, 5, 12, 18, 24, 30)],
    "PointFourRooms-v0": [(f"go to {x}, {y}", [x, y]) for x, y in ((25, 30), (30, 8), (8, 8), (5, 28), (25, 20))],
    "SawyerReach-v0": [
        (f"hand to {x}, {y}, {z}", [x, y, z]) for x, y, z in ((-0.08, 0.85, 0.1), (0.08, 0.85, 0.25), (0.0, 0.88, 0.06))
    ],
    # Height, velocity, x and z of the left and of the right foot, effort.
    "WalkerLinear-v0": [
        ("forwards", [0.3, 1, 0, 0, 0, 0, 0]),
        ("backwards", [0.3, -1, 0, 0, 0, 0, 0]),
        ("stand", [1, 0, 0, 0, 0, 0, -0.5]),
        ("stay low", [-1, 0, 0, 0, 0, 0, 0]),
    ],
}


def film(env_id: str, tasks: list[tuple[str, list[float]]]) -> tuple[list[Image.Image], list[int]]:
    """
    Run a policy greedily, and keep a small picture of the steps.

    :param env_id: environment
    :param tasks: captions and tasks
    :return: pictures, and how long each stands (ms)
    """
    policy, env = pretrained(env_id), gym.make(env_id, render_mode="rgb_array")
    pictures: list[Image.Image] = []
    durations: list[int] = []
    every, crop = KEY_TO_EVERY.get(env_id, 1), KEY_TO_CROP.get(env_id, (0, 0, 1, 1))
    for caption, task in tasks:
        obs, _ = env.reset(seed=0, options={"task": task})
        shown, n_steps, done = [env.render()], 0, False
        while not done:
            action, _ = policy.predict(obs, deterministic=True)
            obs, _, terminated, truncated, _ = env.step(action)
            n_steps += 1
            done = terminated or truncated or n_steps == STEPS
            if done or n_steps % every == 0:
                shown.append(env.render())
        pictures += [captioned(np.asarray(frame), caption, crop) for frame in shown]
        durations += [BRIEFLY] * (len(shown) - 1) + [LONGER]
    env.close()
    return pictures, durations


def captioned(frame: np.ndarray, caption: str, crop: tuple[float, ...]) -> Image.Image:
    """
    Make a small picture with a line of text below it.

    :param frame: picture, (height, width, 3), uint8
    :param caption: the text
    :param crop: left, upper, right and lower end of what is shown, as shares
    :return: picture
    """
    whole = Image.fromarray(frame)
    picture = Image.new("RGB", (SIDE, SIDE + 16), "white")
    part = whole.crop(tuple(round(share * size) for share, size in zip(crop, whole.size * 2, strict=True)))
    picture.paste(part.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    ImageDraw.Draw(picture).text((4, SIDE + 2), caption, fill="black")
    return picture


def few_colours(pictures: list[Image.Image]) -> list[Image.Image]:
    """
    Give all pictures the same few colours, so that what stands still is written once.

    :param pictures: pictures
    :return: the same with a palette
    """
    some = pictures[:: -(-len(pictures) // 20)]
    height = SIDE + 16
    sheet = Image.new("RGB", (SIDE, len(some) * height))
    for i, picture in enumerate(some):
        sheet.paste(picture, (0, i * height))
    palette = sheet.quantize(COLOURS)
    return [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]


def main() -> None:
    """Write the films."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_ids", nargs="*", help="environments (default: all that have a policy)")
    FOLDER.mkdir(exist_ok=True)
    for env_id in parser.parse_args().env_ids or pretrained_env_ids():
        pictures, durations = film(env_id, KEY_TO_TASKS[env_id])
        pictures, path = few_colours(pictures), FOLDER / f"{env_id}.gif"
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)
        print(f"{path}: {len(pictures)} pictures, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
