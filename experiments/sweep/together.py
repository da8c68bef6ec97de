"""Several runs of one experiment, meta-trained in one compiled program: the stage of a sweep.

The members differ in seed, inner step size and meta learning rate. Their states are stacked on a
leading axis; the two rates are traced values, put into the settings from which the experiment makes
its stage, so that the program of one run becomes the program of all.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from experiments.core.runner import Advance, Experiment, Stage
from experiments.core.selection import Selection, ValidatedStage, validate
from experiments.sweep.config import RATES, Member
from maml_jax import MetaState, NonFiniteError, check_finite, seed_mesh
from maml_jax.batching import SEED_AXIS, place, shapes
from maml_jax.training import TrainFn, on_every_device
from maml_jax.types import Array

SPLIT = PartitionSpec(SEED_AXIS)  # members over devices


def stage_alone(experiment: Experiment, settings: Any, seed: int) -> Stage:
    """The stage of a member as it is run alone; settings name one method, so there is one."""
    (stage,) = experiment.stages(settings, seed)
    return stage


def on_one_device(states: Any) -> Any:
    """States that lie on several, to be sliced without a program over all of them for each leaf."""
    return jax.device_put(states, jax.local_devices()[0])


def slice_member(state: Any, index: int) -> Any:
    """The state of one member."""
    return jax.tree.map(lambda x: x[index], state)


def make_stage(experiment: Experiment, members: Sequence[Member]) -> Stage:
    """One stage that meta-trains all members.

    A member whose loss is no longer finite stays at the last dispatch before, with a warning, and
    the others go on: where step sizes are searched, some are too large.
    """
    first = members[0]
    alone = stage_alone(experiment, first.settings, first.seed)
    # Images that do not fit are spread over the devices that share a member's tasks: over all.
    spread = getattr(first.settings, "class_axis", None) is not None
    mesh = seed_mesh(1 if spread else len(members), first.settings.num_tasks)
    rates = {
        name: np.array([getattr(member.settings, name) for member in members], np.float32)
        for name in RATES
    }

    def start() -> Any:
        seeds = dict.fromkeys(member.seed for member in members)
        by_seed = {s: stage_alone(experiment, first.settings, s).init() for s in seeds}
        return jax.tree.map(lambda *x: jnp.stack(x), *(by_seed[m.seed] for m in members))

    @functools.cache
    def placed() -> tuple[tuple[Any, ...], Any]:
        """Arrays that training needs, and validation tasks."""
        if not isinstance(alone, ValidatedStage):
            return (), None
        train_set, tasks = alone.data(mesh)
        return (train_set,), tasks

    def scores(params: Any, tasks: Any, kept: np.ndarray) -> np.ndarray:
        """One for each member; lowest of all for one that is not trained any more."""
        params = on_one_device(params)
        found = np.full(len(members), -np.inf, np.float32)
        for i in np.flatnonzero(kept):
            stage: Any = stage_alone(experiment, members[i].settings, members[i].seed)
            found[i] = stage.score(slice_member(params, i), tasks)
        return found

    def make_advance(count: int) -> Advance:
        train_members = _compile(experiment, first, count, mesh)

        def advance(state: Any) -> tuple[Any, Any]:
            data, tasks = placed()
            training = _training(state)
            before = np.array(training.step)  # a copy: the state is donated
            # One placement for every call, or the second would compile another program.
            training, metrics, kept = train_members(*place((training, rates), mesh, SPLIT), *data)
            metrics, kept = jax.device_get((metrics, kept))
            _report_diverged(members, metrics, before, kept)
            if isinstance(alone, ValidatedStage):
                state, metrics = validate(
                    state._replace(train=training),
                    metrics,
                    None if tasks is None else lambda: scores(training.params, tasks, kept),
                    count=count,
                    every=alone.validate_every,
                    num_steps=alone.num_steps,
                )
            else:
                state = training
            return state, _by_member(members, metrics, kept)

        def compile_ahead(state: Any) -> None:
            arguments = (_training(state), rates)
            data, _ = placed()
            train_members.lower(*shapes(arguments, mesh, SPLIT), *data).compile()

        return Advance(advance, compile_ahead)

    return Stage(
        name=alone.name,
        num_steps=alone.num_steps,
        steps_per_call=alone.steps_per_call,
        init=start,
        make_advance=make_advance,
        shown=alone.shown,
    )


def _training(state: Any) -> MetaState:
    return state.train if isinstance(state, Selection) else state


def _compile(experiment: Experiment, first: Member, count: int, mesh: Mesh) -> Callable[..., Any]:
    """`(states, rates, *data) -> (states, metrics, kept)`, `count` meta-steps of every member."""

    def make_train(settings: Any) -> TrainFn:
        stage: Any = stage_alone(experiment, settings, first.seed)
        return stage.make_train(count, mesh)

    # Convolutions with weights of each member's own are slow as one batch where those with weights
    # of each task's own are; the experiment's settings know which way is faster.
    one_by_one = getattr(first.settings, "batching", "vmap") == "scan"

    def on_device(own: tuple[MetaState, dict[str, Array]], data: tuple[Any, ...]) -> Any:
        """A device's members; no member is told of another."""

        def one(member: tuple[MetaState, dict[str, Array]]) -> Any:
            state, rates = member
            settings = dataclasses.replace(first.settings, **rates)  # checks let traced values pass
            return make_train(settings).on_device(state, data)

        return jax.lax.map(one, own) if one_by_one else jax.vmap(one)(own)

    train = on_every_device(on_device, mesh, make_train(first.settings).data_specs, SPLIT)

    def train_members(states: MetaState, rates: dict[str, Array], *data: Any) -> Any:
        trained, metrics = train.compiled((states, rates), data)
        live = states.step == jnp.max(states.step)
        finite = (metrics["nonfinite_tasks"] == 0) & (metrics["nonfinite_update"] == 0)
        kept = live & jnp.all(finite, axis=-1)

        def pick(new: Array, old: Array) -> Array:
            return jnp.where(jnp.reshape(kept, (-1,) + (1,) * (old.ndim - 1)), new, old)

        params, optimizer_state, step = jax.tree.map(pick, trained[:3], states[:3])
        return MetaState(params, optimizer_state, step, states.key), metrics, kept

    return jax.jit(train_members, donate_argnums=0)


def _report_diverged(
    members: Sequence[Member], metrics: Any, before: np.ndarray, kept: np.ndarray
) -> None:
    """Warns of each member that this dispatch ended.

    Raises:
        NonFiniteError: no member is left.
    """
    at = int(before.max())
    for i in np.flatnonzero((before == at) & ~kept):
        try:
            check_finite(slice_member(metrics, i), at)
        except NonFiniteError as error:
            label = members[i].label
            if not kept.any():
                raise NonFiniteError(f"no member of the sweep is left. {label}: {error}") from None
            print(
                f"warning: {label} stays at step {at}, the others go on: {error}",
                file=sys.stderr,
            )


def _by_member(members: Sequence[Member], metrics: Any, kept: np.ndarray) -> dict[str, Any]:
    """The metrics' means over the members that go on, and under its label those of each."""
    singly = {
        members[i].label: {
            name: value
            for name, value in slice_member(metrics, i).items()
            if name != "first_nonfinite_task"
        }
        for i in np.flatnonzero(kept)
    }
    return {**jax.tree.map(lambda x: x[kept].mean(axis=0), metrics), **singly}
