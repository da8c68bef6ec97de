"""Model-agnostic meta-learning (MAML) in JAX: pure functions on pytrees.

============== =======================================================================
`inner_update` takes one gradient step on the support batch of one task
`adapt`        takes S such steps
`meta_loss`    returns the query loss after adaptation, to differentiate in theta
`meta_step`    takes one optimizer step on the mean meta-loss of T tasks
============== =======================================================================

Compose these functions with `jax.grad`, `jax.vmap` and `jax.jit`, or train with `make_train_fn`. A
`Problem` defines what is learned, a `MetaLearner` defines how one task is learned, and a
`MetaUpdate` defines how the meta-parameters move.

Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from maml_jax import Task, meta_loss
    >>> def loss_fn(theta, target):
    ...     return (theta - target) ** 2, {}
    >>> task = Task(support=jnp.array(1.0), query=jnp.array(2.0))
    >>> meta_gradient, metrics = jax.grad(meta_loss, argnums=1, has_aux=True)(
    ...     loss_fn, jnp.array(0.0), task, inner_lr=0.25)
    >>> float(meta_gradient), float(metrics["query"]["loss"])
    (-1.5, 2.25)
"""

from maml_jax import algorithms, pooling, task_gradients
from maml_jax.evaluation import Evaluation, adaptation_curve, confidence_interval, make_evaluate_fn
from maml_jax.finiteness import check_finite
from maml_jax.fitting import Selection, fit
from maml_jax.inner_loop import PerStep
from maml_jax.maml import adapt, inner_update, meta_loss, meta_step
from maml_jax.members import over_members
from maml_jax.memory import MemoryUse, advise, fitting_modes, format_memory_report, memory_report
from maml_jax.mesh import member_mesh, task_mesh
from maml_jax.meta_gradient import MODES
from maml_jax.training import MetaState, init, make_train_fn
from maml_jax.types import MetaLearner, MetaUpdate, NonFiniteError, Problem, Task
from maml_jax.updates import gradient_update

__version__ = "0.2.0"

__all__ = [
    "MODES",
    "Evaluation",
    "MemoryUse",
    "MetaLearner",
    "MetaState",
    "MetaUpdate",
    "NonFiniteError",
    "PerStep",
    "Problem",
    "Selection",
    "Task",
    "adapt",
    "adaptation_curve",
    "advise",
    "algorithms",
    "check_finite",
    "confidence_interval",
    "fit",
    "fitting_modes",
    "format_memory_report",
    "gradient_update",
    "init",
    "inner_update",
    "make_evaluate_fn",
    "make_train_fn",
    "member_mesh",
    "memory_report",
    "meta_loss",
    "meta_step",
    "over_members",
    "pooling",
    "task_gradients",
    "task_mesh",
]
