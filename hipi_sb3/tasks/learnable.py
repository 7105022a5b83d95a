"""The spaces that stable-baselines3 learns in: others are refused where an environment is wrapped, with a remedy."""

import numpy as np
from gymnasium import spaces

#: What an entry of an observation may be.
PARTS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_observation_space(owner: str, space: spaces.Space) -> None:
    """
    Check that an observation is one array or a dictionary of such.

    :param owner: what it was given to, for the error
    :param space: space of the observations, without a task
    :raises ValueError: when it is anything else, nested dictionaries among them
    """
    parts = space.spaces if isinstance(space, spaces.Dict) else {"observation": space}
    for key, part in parts.items():
        if not isinstance(part, PARTS):
            remedy = (
                "Put the environment into gymnasium.wrappers.FlattenObservation first, or leave entries out with "
                "FilterObservation."
                if part.is_np_flattenable
                else "Make an array of it with gymnasium.wrappers.TransformObservation first."
            )
            raise ValueError(
                f"{owner}: stable-baselines3 learns from Box, Discrete, MultiDiscrete, MultiBinary or one Dict of such, but "
                f"{key!r} is {part}. {remedy}"
            )


def check_action_space(owner: str, space: spaces.Space) -> None:
    """
    Check that an algorithm of stable-baselines3 can act in a space.

    :param owner: what it was given to, for the error
    :param space: space of the actions
    :raises ValueError: when it is none of these kinds, or a Box without bounds
    """
    if not isinstance(space, PARTS):
        raise ValueError(
            f"{owner}: stable-baselines3 acts in Box, Discrete, MultiDiscrete or MultiBinary spaces, not in {space}. Make one "
            "of these of it with gymnasium.wrappers.TransformAction first."
        )
    if isinstance(space, spaces.Box) and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        # RescaleAction cannot scale what is infinite.
        raise ValueError(
            f"{owner}: stable-baselines3 scales actions to the bounds of their space, but {space} has none. Give it bounds: "
            f"gymnasium.wrappers.TransformAction(env, lambda action: action, gymnasium.spaces.Box(-1.0, 1.0, {space.shape})), "
            "with those that make sense; gymnasium.wrappers.RescaleAction scales what has bounds to others. If it was "
            "gymnasium.wrappers.ClipAction that took them away, leave it out: actions of an algorithm keep to the bounds."
        )
