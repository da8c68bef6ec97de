"""MAML (Finn, Abbeel, Levine 2017): an initialisation that adapts by gradient steps."""

from __future__ import annotations

from typing import Unpack

from maml_jax.inner_loop import Inner, InnerRate
from maml_jax.maml import adapt, meta_loss
from maml_jax.types import Array, Batch, MetaLearner, Metrics, Params, Problem, Task


def maml(
    problem: Problem, inner_lr: InnerRate, num_inner_steps: int = 1, **inner: Unpack[Inner]
) -> MetaLearner:
    """Makes the meta-learner of Algorithm 1 for a problem.

    Args:
        problem: provides `init`, `inner_loss` and `outer_loss`.
        inner_lr: alpha, as in `maml_jax.adapt`.
        num_inner_steps: S.
        **inner: `inner_optimizer`, `mask`, `mode` and `batch_per_step` of `maml_jax.adapt`;
            `mode="first_order"` selects first-order MAML.

    Returns:
        The meta-learner; its meta-parameters are the problem's parameters.

    Example:
        >>> import jax
        >>> from maml_jax import algorithms
        >>> from maml_jax.networks import mlp
        >>> from maml_jax.regression import sinusoid_problem
        >>> problem = sinusoid_problem(mlp(1, 1, hidden_sizes=(4,)), num_support=5, num_query=10)
        >>> learner = algorithms.maml(problem, inner_lr=0.01, num_inner_steps=2)
        >>> params = learner.init(jax.random.key(0))
        >>> task = problem.sample(params, jax.random.key(1))
        >>> loss, metrics = learner.loss(params, task)
        >>> loss.shape, metrics["support"]["loss"].shape
        ((), (2,))
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
