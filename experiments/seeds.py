"""Several seeds of a method in one program."""

from __future__ import annotations

import jax

from maml_jax.training import TrainFn


def over_seeds(train: TrainFn, one_by_one: bool = False) -> TrainFn:
    """The same meta-steps for states, and data if any, with a leading axis of seeds.

    Args:
        train: for one state.
        one_by_one: one seed after the other rather than side by side, which is faster on a CPU
            where weights of each seed's own make small products smaller still.
    """

    def one(own):
        state, data = own
        return train(state, *data)

    def many(states, data):
        if one_by_one:
            return jax.lax.map(one, (states, data))
        return jax.vmap(one)((states, data))

    return TrainFn(jax.jit(many, donate_argnums=0), train.mesh, train.data_specs)
