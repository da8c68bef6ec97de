# mujoco's compiled module has no types.
# pyright: reportAttributeAccessIssue=false

"""Computes the capsules of a robot in space, for pictures."""

from __future__ import annotations

from typing import Any, NamedTuple

import mujoco
import numpy as np


class Capsules(NamedTuple):
    """The G capsules of a robot over time; a sphere is a capsule of length 0.

    Attributes:
        ends: ends of each capsule's axis, metres [frames, G, 2, 3].
        radii: radius of each capsule, metres [G].

    Example:
        >>> import numpy as np
        >>> from maml_jax.reinforcement.locomotion import Capsules
        >>> sphere = Capsules(ends=np.zeros((5, 1, 2, 3)), radii=np.array([0.25]))
        >>> sphere.ends.shape
        (5, 1, 2, 3)
    """

    ends: np.ndarray
    radii: np.ndarray


def capsules(model: Any, poses: np.ndarray) -> Capsules:
    """Computes a robot's capsules and spheres in each pose, on the host.

    Args:
        model: MuJoCo's model, `Physics.model`.
        poses: generalised coordinates in MuJoCo's order [frames, nq].

    Raises:
        ValueError: the poses do not fit the model.

    Example:
        >>> import numpy as np
        >>> from maml_jax.reinforcement.locomotion import capsules, make_physics
        >>> model = make_physics("half_cheetah").model
        >>> capsules(model, np.zeros((2, model.nq))).ends.shape
        (2, 8, 2, 3)
    """
    poses = np.asarray(poses, np.float64)
    if poses.ndim != 2 or poses.shape[1] != model.nq:
        raise ValueError(
            f"poses must have shape (frames, {model.nq}) for this robot; received {poses.shape}."
        )
    round_shapes = (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_SPHERE)
    shown = np.flatnonzero(np.isin(model.geom_type, round_shapes))
    is_capsule = model.geom_type[shown] == mujoco.mjtGeom.mjGEOM_CAPSULE
    half = np.where(is_capsule, model.geom_size[shown, 1], 0.0)
    data, ends = mujoco.MjData(model), []
    for pose in poses:
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        middle, axis = data.geom_xpos[shown], data.geom_xmat[shown].reshape(-1, 3, 3)[:, :, 2]
        arm = half[:, None] * axis
        ends.append(np.stack([middle - arm, middle + arm], axis=1))
    return Capsules(np.stack(ends), model.geom_size[shown, 0].copy())
