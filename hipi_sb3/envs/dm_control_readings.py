"""What the rewards of dm_control's tasks are read from: positions, gaits and velocities in its simulator."""

from collections.abc import Callable
from typing import Any

import numpy as np

#: Reads some numbers from the simulator, (n,).
Reading = Callable[[], np.ndarray]
#: Looks names up once and returns a function that reads: dm_control's named access takes as long as a physics step.
Reader = Callable[[Any], Reading]


def quadruped_xy(physics: Any) -> Reading:
    """Position of the quadruped's torso in the plane, (2,)."""
    positions, torso = physics.data.ptr.xpos, physics.model.name2id("torso", "body")
    return lambda: positions[torso, :2]


def spinner_tip(physics: Any) -> Reading:
    """Position of the spinner's tip relative to its hinge, x and z, (2,)."""
    sensors = physics.data.ptr.sensordata
    tip, hinge = (_sensor(physics, name)[[0, 2]] for name in ("tip", "spinner"))
    return lambda: sensors[tip] - sensors[hinge]


def fingertip_xy(physics: Any) -> Reading:
    """Position of the reacher's fingertip, (2,)."""
    positions, finger = physics.data.ptr.geom_xpos, physics.model.name2id("finger", "geom")
    return lambda: positions[finger, :2]


def nose_xy(physics: Any) -> Reading:
    """Position of the swimmer's nose, (2,)."""
    positions, nose = physics.data.ptr.geom_xpos, physics.model.name2id("nose", "geom")
    return lambda: positions[nose, :2]


def nose_and_heading(physics: Any) -> Reading:
    """Position of the swimmer's nose and the x axis of its head, (4,)."""
    data, nose, head = physics.data.ptr, physics.model.name2id("nose", "geom"), physics.model.name2id("head", "body")
    positions, axes = data.geom_xpos, data.xmat
    # xmat has the rows of the matrix one after the other: its first column is the x axis.
    return lambda: np.concatenate([positions[nose, :2], axes[head, [0, 3]]])


def mouth_xyz(physics: Any) -> Reading:
    """Position of the fish's mouth, (3,)."""
    positions, mouth = physics.data.ptr.geom_xpos, physics.model.name2id("mouth", "geom")
    return lambda: positions[mouth]


def mouth_and_orientation(physics: Any) -> Reading:
    """Position of the fish's mouth and the quaternion of its torso, (7,)."""
    data, mouth = physics.data.ptr, physics.model.name2id("mouth", "geom")
    positions, qpos = data.geom_xpos, data.qpos
    return lambda: np.concatenate([positions[mouth], qpos[3:7]])


def walker_gait(physics: Any) -> Reading:
    """Height, horizontal velocity, and where the feet are relative to the torso, (6,): see :func:`make_walker_linear`."""
    data = physics.data.ptr
    positions, sensors = data.xpos, data.sensordata
    torso, left, right = (physics.model.name2id(name, "body") for name in ("torso", "left_foot", "right_foot"))
    velocity = _sensor(physics, "torso_subtreelinvel")[0]

    def read() -> np.ndarray:
        x, _, z = positions[torso].tolist()
        left_x, _, left_z = positions[left].tolist()
        right_x, _, right_z = positions[right].tolist()
        return np.array([z - 0.5, sensors[velocity], left_x - x, left_z - z + 0.7, right_x - x, right_z - z + 0.7])

    return read


def hopper_gait(physics: Any) -> Reading:
    """Touch of toe and heel (log(1 + force)), height of the torso over the foot, horizontal velocity, (4,)."""
    data = physics.data.ptr
    centers, sensors = data.xipos, data.sensordata
    torso, foot = (physics.model.name2id(name, "body") for name in ("torso", "foot"))
    toe, heel, velocity = (_sensor(physics, name)[0] for name in ("touch_toe", "touch_heel", "torso_subtreelinvel"))

    def read() -> np.ndarray:
        height = centers[torso, 2] - centers[foot, 2]
        return np.array([np.log1p(sensors[toe]), np.log1p(sensors[heel]), height, sensors[velocity]])

    return read


def humanoid_gait(physics: Any) -> Reading:
    """Height of the head above 1.4 m, velocity of the centre of mass along x and y, z axis of the torso upwards, (4,)."""
    data = physics.data.ptr
    positions, axes, sensors = data.xpos, data.xmat, data.sensordata
    torso, head = (physics.model.name2id(name, "body") for name in ("torso", "head"))
    velocity = _sensor(physics, "torso_subtreelinvel")[:2]
    return lambda: np.array([positions[head, 2] - 1.4, *sensors[velocity].tolist(), axes[torso, 8]])


def cheetah_velocity(physics: Any) -> Reading:
    """Horizontal velocity of the centre of mass, (1,)."""
    sensors, velocity = physics.data.ptr.sensordata, _sensor(physics, "torso_subtreelinvel")[:1]
    return lambda: sensors[velocity]


def _sensor(physics: Any, name: str) -> np.ndarray:
    """Indices of a sensor's numbers."""
    sensor = physics.model.name2id(name, "sensor")
    first = int(physics.model.sensor_adr[sensor])
    return np.arange(first, first + int(physics.model.sensor_dim[sensor]))


# -- features: what was read when the step happened -------------------------------------------------------------------
