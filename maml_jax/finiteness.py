"""Reports the meta-step and the task of the first value that is not finite."""

from __future__ import annotations

import numpy as np

from maml_jax.types import Metrics, NonFiniteError

CAUSES = (
    "Likely causes: an inner learning rate that makes the inner loop diverge, a meta learning rate "
    "that is too large, inputs or targets that are not finite, or a square root, logarithm or "
    "division at 0 in the loss or the inner optimizer (optax.adam needs eps_root > 0 to be "
    "differentiated)."
)


def check_finite(metrics: Metrics, first_step: int = 0) -> None:
    """Raises an error if a loss, a gradient or a parameter is not finite.

    Copies the metrics to the host.

    Args:
        metrics: from a train function, leaves [num_meta_steps] or [M, num_meta_steps].
        first_step: the meta-step at which the metrics begin.

    Raises:
        NonFiniteError: names the meta-step, the number of tasks, the first of them, and likely
            causes.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from maml_jax import NonFiniteError, check_finite, meta_step
        >>> loss = lambda theta, target: ((theta - target) ** 2, {})
        >>> sgd, theta = optax.sgd(0.1), jnp.array(0.0)
        >>> tasks = jnp.array([1.0, jnp.nan])
        >>> _, _, metrics = meta_step(loss, theta, sgd.init(theta), tasks, sgd)
        >>> try:
        ...     check_finite(metrics)
        ... except NonFiniteError as error:
        ...     str(error).partition(". ")[0]
        'the meta-loss is not finite at meta-step 0: 1 task(s), the first of them task 1'
    """

    def by_run(name: str) -> np.ndarray:
        values = np.atleast_1d(np.asarray(metrics[name]))
        return values.reshape(-1, values.shape[-1])  # [runs, meta-steps]

    tasks, update = by_run("nonfinite_tasks"), by_run("nonfinite_update")
    bad = (tasks > 0) | (update > 0)
    if not bad.any():
        return
    index = int(np.argmax(bad.any(axis=0)))
    run = int(np.argmax(bad[:, index]))
    where = f"at meta-step {first_step + index}" + (f" of run {run}" if len(bad) > 1 else "")
    if not tasks[run, index]:
        raise NonFiniteError(
            f"the meta-gradient, or a parameter after the step, is not finite {where}, and no "
            "single task causes it: the sum of gradients or the meta-optimizer's step overflows "
            "its type, or tasks were differentiated together. " + CAUSES
        )
    of_loss = by_run("nonfinite_losses")[run, index] > 0
    first = by_run("first_nonfinite_task")[run, index]
    raise NonFiniteError(
        f"the meta-{'loss' if of_loss else 'gradient'} is not finite {where}"
        + ("" if of_loss else ", although the losses are")
        + f": {int(tasks[run, index])} task(s), the first of them task {int(first)}. {CAUSES}"
    )
