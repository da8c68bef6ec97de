"""Times the phases of locomotion's meta-iterations.

On a CPU each core is one JAX device with one thread, as in the experiments.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from benchmarks.harness import Row
from benchmarks.suites.physics import ENVIRONMENTS, LEAST, raw_speed
from benchmarks.suites.reinforcement import (
    EPISODES,
    SUBSAMPLE,
    Case,
    make_case,
    phases,
    time_iteration,
)
from maml_jax.reinforcement import locomotion as lib

HORIZON = 200


def locomotion_case(family: str, physics: str) -> Case:
    """Makes the case of a task family with the paper's numbers of episodes and steps.

    Args:
        family: of tasks, such as "cheetah_direction".
        physics: "paper" or "brax".
    """
    env = lib.locomotion(family, physics, horizon=HORIZON)
    return make_case(f"{family}, {physics}", env, ENVIRONMENTS // EPISODES)


def locomotion_suite(families: Sequence[str] = lib.TASKS) -> Iterator[Row]:
    """Times each phase, the rollout beside the physics alone, and the whole meta-iteration.

    Args:
        families: task families; each runs in both physics.
    """
    for family, physics in itertools.product(families, ("paper", "brax")):
        case = locomotion_case(family, physics)
        raw = raw_speed(lib.make_physics(lib.FAMILIES[family].robot, physics), HORIZON)
        for row in phases(case, LEAST):
            if row["name"].endswith(": rollout"):
                speed = case.num_steps / row["median_ms"] * 1e3
                row.update(steps_per_s=speed, raw_steps_per_s=raw, share_of_raw=speed / raw)
            yield row
        yield time_iteration(f"{case.name}: meta-iteration", case, SUBSAMPLE, LEAST)
