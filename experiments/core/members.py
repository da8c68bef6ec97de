"""The members of a run: seeds and swept values, on a leading axis M, of length 1 for one member.

Members train together in one compiled program and do not communicate. Each is evaluated alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from maml_jax import member_mesh, training
from maml_jax.fitting import Selection
from maml_jax.members import MemberTrainFn, over_members
from maml_jax.mesh import bring_home
from maml_jax.training import MetaState, TrainFn
from maml_jax.types import Array

from .config import ConfigError
from .identity import MAX_SEED
from .stages import Experiment, Stage

Swept = Mapping[str, tuple[float, ...]]


class Member(NamedTuple):
    """One member of a run.

    Attributes:
        label: a unique name, also of its directory: "seed=0,inner_lr=0.001".
        settings: its configuration, the same as in a run of this member alone.
        seed: its seed.
        values: its values of the swept settings, by name.
    """

    label: str
    settings: Any
    seed: int
    values: dict[str, float]

    @property
    def group(self) -> str:
        """The label without the seed; tables average over the members of a group."""
        return _label(self.values)


def make_members(
    settings: Any, seed: int, num_seeds: int = 1, swept: Swept | None = None
) -> list[Member]:
    """Makes a member of every combination of a seed and swept values; the seed changes slowest.

    Args:
        settings: the experiment's configuration. Its attribute `unused`, if it has one, maps each
            setting that has no effect to the flag that disables it.
        seed: the first seed.
        num_seeds: the number of seeds: seed, seed + 1, ...
        swept: the values of each setting that differs between members.

    Raises:
        ConfigError: a seed or a value is not allowed, a value is given twice, or a swept setting
            has no effect.
    """
    if num_seeds < 1:
        raise ConfigError(f"--num_seeds must be 1 or more; received {num_seeds}.")
    last = seed + num_seeds - 1
    if last > MAX_SEED:
        raise ConfigError(f"seeds must be from 0 to {MAX_SEED}; the last would be {last}.")
    swept = swept or {}
    unused = getattr(settings, "unused", {})
    for name, values in swept.items():
        if name in unused:
            raise ConfigError(
                f"--{name} takes one value with {unused[name]}, which does not use it; received "
                f"{','.join(map(str, values))}."
            )
        if len({np.float32(v) for v in values}) < len(values):
            shown = ",".join(map(str, values))
            raise ConfigError(f"--{name} must name each value once; received {shown}.")
    members = []
    for number, *chosen in itertools.product(range(seed, last + 1), *swept.values()):
        values = dict(zip(swept, chosen, strict=True))
        label = _label({"seed": number, **values})
        members.append(Member(label, dataclasses.replace(settings, **values), number, values))
    return members


def _label(values: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value!r}" for name, value in values.items())


def begin(stage: Stage, members: Sequence[Member]) -> Selection:
    """Initialises a stage, with a leading axis M on every leaf.

    A stage without a score selects no parameters: `best_params` is then empty.
    """

    def start(key: Array) -> MetaState:
        init_key, train_key = jax.random.split(key)
        return training.init(stage.init(init_key), stage.update, train_key)

    state = _for_members(start, members)
    best = () if stage.score is None else jax.tree.map(jnp.copy, state.params)
    scores = jnp.full((len(members),), -jnp.inf, jnp.float32)
    return Selection(state, best, scores, jnp.zeros_like(state.step))


def finished(stage: Stage, selection: Selection) -> Selection:
    """Returns the selection to evaluate: without a score, the last parameters are the best."""
    if stage.score is not None:
        return selection
    state = selection.state
    return selection._replace(best_params=state.params, best_step=state.step)


def _for_members(fn: Callable[[Array], Any], members: Sequence[Member]) -> Any:
    """Stacks `fn(key)` of each member's key; for one member, without `vmap`."""
    if len(members) == 1:
        alone = lambda key: jax.tree.map(lambda x: x[None], fn(key))  # noqa: E731
        return jax.jit(alone)(jax.random.key(members[0].seed))
    keys = jnp.stack([jax.random.key(member.seed) for member in members])
    return jax.jit(jax.vmap(fn))(keys)


def member_data(stage: Stage, members: Sequence[Member]) -> tuple[Any, ...]:
    """Makes the arrays that differ between members, with a leading axis M."""
    return () if stage.member_data is None else _for_members(stage.member_data, members)


def swept_values(members: Sequence[Member]) -> dict[str, np.ndarray]:
    """Returns the values of each swept setting, arrays [M]."""
    names = members[0].values
    return {name: np.array([m.values[name] for m in members], np.float32) for name in names}


def mesh_of(stage: Stage, num_members: int) -> Mesh:
    """Chooses the mesh of a stage. Data that is split over devices needs all of them per member."""
    spread = stage.data_specs != PartitionSpec()
    return member_mesh(1 if spread else num_members, stage.num_tasks)


def find_stage(experiment: Experiment, settings: Any, name: str) -> Stage:
    """Returns the stage of this name for a configuration, which may hold traced scalars."""
    return next(stage for stage in experiment.stages(settings) if stage.name == name)


def make_program(
    experiment: Experiment, members: Sequence[Member], stage: Stage, count: int, mesh: Mesh
) -> MemberTrainFn:
    """Makes the dispatch of `count` meta-steps of all members."""

    def train(one: Stage) -> TrainFn:
        return training.make_train_fn(
            one.sample,
            one.update,
            num_tasks=one.num_tasks,
            num_meta_steps=count,
            steps_per_draw=one.steps_per_draw,
            mesh=mesh,
            data_specs=one.data_specs,
        )

    def make(values: Mapping[str, Array]) -> TrainFn:
        settings = dataclasses.replace(members[0].settings, **values)
        return train(find_stage(experiment, settings, stage.name))

    return over_members(
        train(stage), make if members[0].values else None, one_by_one=stage.one_by_one
    )


def make_scores(
    experiment: Experiment, members: Sequence[Member], stage: Stage
) -> list[Callable[[Any], Any] | None]:
    """Returns the score function of each member; members of equal settings share one."""
    by_settings = {members[0].settings: stage}
    for member in members:
        if member.settings not in by_settings:
            by_settings[member.settings] = find_stage(experiment, member.settings, stage.name)
    return [by_settings[member.settings].score for member in members]


def to_this_process(tree: Any) -> Any:
    """Copies the leaves to this process's memory, where `take` compiles no program per shape."""

    def fetch(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, jax.local_devices()[0])
        return np.asarray(leaf)

    return jax.tree.map(fetch, bring_home(tree))


def take(tree: Any, index: int | slice) -> Any:
    """Takes one member's part of a tree of `to_this_process`; a slice keeps the axis M."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), tree)
