"""Meta-trains the members of a run, seeds and swept values, in one program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from maml_jax import loop_checks
from maml_jax import mesh as mesh_lib
from maml_jax.batching import axis_size
from maml_jax.kernels.dispatch import settle
from maml_jax.training import WHOLE, MetaState, Sampler, TrainFn, check_data
from maml_jax.types import Array, Metrics, Params

Values = Mapping[str, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class MemberTrainFn:
    """Meta-steps of M members in one dispatch, from `over_members`; donates the states.

    Attributes:
        compiled: the compiled program; its arguments are the states, the tuple `(values,
            member_data)` and the tuple `data`.
        mesh: the mesh of the program.
        specs: the partition specs of these three arguments.
        draw: `draw(params, key, *data)`, the sampler of one member.
    """

    compiled: Any
    mesh: Mesh
    specs: tuple[Any, Any, Any]
    draw: Sampler
    _checked: list[Any] = dataclasses.field(default_factory=list, repr=False)

    def __call__(
        self,
        states: MetaState,
        *data: Any,
        values: Values | None = None,
        member_data: tuple[Any, ...] = (),
    ) -> tuple[MetaState, Metrics, Array]:
        """Places the arguments on the mesh and runs the program; see `over_members`."""
        loop_checks.check_state(states, stacked=True)
        given = jax.tree.leaves((data, member_data))
        arguments = mesh_lib.place(
            (states, (dict(values or {}), member_data), data), self.mesh, self.specs
        )
        states, (_, member_data), data = arguments
        if given:
            check_data(self._draw_first, self._checked, given, states, (data, member_data))
        return settle(self.compiled(*arguments), self.mesh)

    def _draw_first(self, params: Params, key: Array, data: Any, member_data: Any) -> Any:
        first = lambda tree: jax.tree.map(lambda x: x[0], tree)  # noqa: E731
        with jax.ensure_compile_time_eval():  # the sampler's checks read concrete values
            member_data = first(member_data)
        return self.draw(first(params), key[0], *data, *member_data)

    def lower(
        self,
        states: MetaState,
        *data: Any,
        values: Values | None = None,
        member_data: tuple[Any, ...] = (),
    ) -> jax.stages.Lowered:
        """Lowers the program for arguments of these shapes, as `TrainFn.lower` does."""
        loop_checks.check_state(states, stacked=True)
        arguments = states, (dict(values or {}), member_data), data
        return self.compiled.lower(*mesh_lib.shapes(arguments, self.mesh, self.specs))


def over_members(
    train: TrainFn,
    make: Callable[[Values], TrainFn] | None = None,
    *,
    one_by_one: bool = False,
) -> MemberTrainFn:
    """Meta-trains M members in one program: several seeds, or several learning rates.

    A `member_mesh` splits the members over devices; on a `task_mesh` every device runs all of them.
    Members do not communicate. A device with one member runs the program of a single run.

    Args:
        train: the meta-steps of one member, from `make_train_fn`; fixes mesh, sampler and data.
        make: `make(values)` returns the meta-steps of a member on the same mesh; `values` holds
            traced scalars by name. Default: members differ only in their states.
        one_by_one: runs the members of a device in sequence. This is faster on a CPU for small
            networks, whose products shrink further with separate weights per member
            (`kernels.preferences`).

    Returns:
        `train(states, *data, values={}, member_data=()) -> (states, metrics, kept)`, which donates
        the states. States, values and member_data have a leading axis of M; metrics have shape
        [M, num_meta_steps]. The sampler receives `(*data, *member_data)`. `kept`, bool [M], is
        False for members with a non-finite loss, gradient or parameter. If M > 1, these keep their
        previous state and the others continue.

    Raises:
        TypeError, ValueError: from the returned function: `states` is not a `MetaState` with a
            leading axis of M.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from maml_jax import gradient_update, init, make_train_fn, over_members, task_mesh
        >>> loss = lambda theta, target: ((theta - target) ** 2, {})
        >>> def make(values):
        ...     update = gradient_update(loss, optax.sgd(values["meta_lr"]))
        ...     return make_train_fn(lambda params, key: jnp.array(1.0), update, num_tasks=1,
        ...                          num_meta_steps=1, mesh=task_mesh(1))
        >>> update = gradient_update(loss, optax.sgd(1.0))  # its state does not depend on the rate
        >>> states = jax.vmap(lambda key: init(jnp.array(0.0), update, key))(
        ...     jax.random.split(jax.random.key(0), 2))
        >>> train = over_members(make({"meta_lr": 1.0}), make)
        >>> states, _, kept = train(states, values={"meta_lr": jnp.array([0.25, 0.5])})
        >>> states.params.tolist(), kept.tolist()
        ([0.5, 1.0], [True, True])
    """
    mesh, data_specs = train.mesh, train.data_specs
    split = mesh_lib.MEMBER_AXIS in mesh.axis_names
    member_specs = PartitionSpec(mesh_lib.MEMBER_AXIS) if split else WHOLE

    def on_device(states: MetaState, theirs: Any, data: Any) -> tuple[MetaState, Metrics]:
        members = states, theirs

        def one(member: Any) -> tuple[MetaState, Metrics]:
            state, (values, member_data) = member
            step = train if make is None else make(values)
            return step.on_device(state, (*data, *member_data))

        if axis_size(members) == 1:  # a batched axis of one costs copies on a CPU
            alone = one(jax.tree.map(lambda x: x[0], members))
            return jax.tree.map(lambda x: x[None], alone)
        return jax.lax.map(one, members) if one_by_one else jax.vmap(one)(members)

    specs = (member_specs, member_specs, data_specs)
    sharded = mesh_lib.on_mesh(on_device, mesh, specs, member_specs)

    def train_members(
        before: MetaState, theirs: Any, data: tuple[Any, ...]
    ) -> tuple[MetaState, Metrics, Array]:
        trained, metrics = sharded(before, theirs, data)
        finite = (metrics["nonfinite_tasks"] == 0) & (metrics["nonfinite_update"] == 0)
        kept = jnp.all(finite, axis=-1)
        if axis_size(before.step) > 1:
            trained = _choose(kept, trained, before)
        return mesh_lib.gather((trained, metrics, kept), mesh)

    compiled = jax.jit(train_members, donate_argnums=0)
    return MemberTrainFn(compiled, mesh, specs, train.draw)


def _choose(kept: Array, new: MetaState, old: MetaState) -> MetaState:
    """Returns the new state of the kept members and the old state of the others."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(jnp.reshape(kept, (-1,) + (1,) * (a.ndim - 1)), a, b)

    params, update_state, step = jax.tree.map(pick, new[:3], old[:3])
    return MetaState(params, update_state, step, old.key)
