"""MAML (Finn, Abbeel, Levine 2017): an initialisation that adapts by gradient steps."""

from __future__ import annotations

from typing import Unpack

from maml_jax.inner_loop import Inner, InnerRate
from maml_jax.maml import adapt, meta_loss
from maml_jax.types import Array, Batch, MetaLearner, Metrics, Params, Problem, Task


def maml(
    problem: Problem, inner_lr: InnerRate, num_inner_steps: int = 1, **inner: Unpack[Inner]
) -> MetaLearner:
    """The meta-learner of Algorithm 1 for a problem.

    Args:
        problem: its `init`, `inner_loss` and `outer_loss` are used.
        inner_lr: alpha, as in `maml_jax.adapt`.
        num_inner_steps: S.
        **inner: `inner_optimizer`, `mask`, `mode` and `batch_per_step` of `maml_jax.adapt`;
            `mode="first_order"` makes it first-order MAML.

    Returns:
        The meta-learner; its meta-parameters are the problem's parameters.
    """

    def adapt_to(params: Params, support: Batch) -> Params:
        return adapt(problem.inner_loss, params, support, inner_lr, num_inner_steps, **inner)[0]

    def loss(params: Params, task: Task) -> tuple[Array, Metrics]:
        return meta_loss(
            problem.inner_loss,
            params,
            task,
            inner_lr,
            num_inner_steps,
            outer_loss=problem.outer_loss,
            **inner,
        )

    return MetaLearner(problem.init, adapt_to, loss)
