"""Meta-training: all batchings of the task axis, any number of devices, no retracing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, classification_task, cross_entropy, mlp_params
from jax.sharding import Mesh

from benchmarks.programs import COLLECTIVES, collectives
from maml_jax import (
    NonFiniteError,
    Task,
    check_finite,
    gradient_update,
    init,
    make_train_fn,
    meta_loss,
    meta_step,
    training,
)
from maml_jax.batching import map_tasks, resolve_batching
from maml_jax.kernels.factorizations import in_pieces
from maml_jax.mesh import TASK_AXIS, task_mesh
from maml_jax.task_gradients import sum_gradient

LOSS = functools.partial(meta_loss, cross_entropy, inner_lr=0.3, num_inner_steps=2)
OPTIMIZER = optax.adam(1e-2)
UPDATE = gradient_update(LOSS, OPTIMIZER)


def sample(params, key):
    return classification_task(key, dtype=jnp.float64 if jax.config.jax_enable_x64 else jnp.float32)


def start(seed=0):
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    return init(mlp_params(jax.random.key(seed), (3, 8, 4), dtype), OPTIMIZER, seed)


@pytest.mark.parametrize("batching", ["scan", 1, 2, 3, 100])
@pytest.mark.accelerator
def test_batching_does_not_change_the_gradient(batching, x64):
    params = mlp_params(jax.random.key(0), (3, 8, 4))
    tasks = classification_task(jax.random.key(1), num_tasks=5)  # chunks of 2, 3 leave a rest
    fn = jax.jit(lambda b: sum_gradient(LOSS, params, tasks, b), static_argnums=0)
    assert_trees_close(fn(batching), fn("vmap"), 1e-12)


def wide_sample(params, key):
    """Draws a task of 256 KB."""
    x = jax.random.normal(key, (2, 256, 64, 2))
    return Task(x[0], x[1])


def wide_loss(params, batch):
    return jnp.mean((batch * params - 1.0) ** 2), {}


def wide_trainer(num_tasks, batching):
    task_loss = functools.partial(meta_loss, wide_loss, inner_lr=0.1)
    mesh = task_mesh(num_tasks, jax.devices()[:2])
    return make_train_fn(
        wide_sample,
        gradient_update(task_loss, optax.sgd(0.1), batching=batching),
        num_tasks=num_tasks,
        num_meta_steps=2,
        mesh=mesh,
    )


@pytest.mark.parametrize("batching", ["scan", "vmap"])
def test_a_loss_receives_jax_arrays_for_any_number_of_tasks(batching):
    def loss(params, task):
        return jnp.sum(params * task["x"].at[0].set(1.0)), {"seen": jnp.sum(task["x"])}

    for count in (1, 2):
        tasks = {"x": np.arange(3.0 * count, dtype=np.float32).reshape(count, 3)}
        losses, metrics, gradient, _ = sum_gradient(loss, jnp.ones(3), tasks, batching)
        np.testing.assert_allclose(losses, [4.0, 10.0][:count])
        np.testing.assert_allclose(metrics["seen"], [3.0, 12.0][:count])
        np.testing.assert_allclose(gradient, [[1.0, 1.0, 2.0], [2.0, 5.0, 7.0]][count - 1])


def test_thousands_of_tasks_need_the_memory_of_a_chunk():
    """Drawn at once, 4,096 tasks would take 512 MB a device."""
    state = init(jnp.ones((64, 2)), optax.sgd(0.1), 0)
    program = jax.jit(wide_trainer(4096, 16)).lower(state).compile()
    assert program.memory_analysis().temp_size_in_bytes < 50e6


def test_drawing_a_large_meta_batch_by_chunks_does_not_change_it(monkeypatch):
    result = {}
    for limit in (64, 0):
        monkeypatch.setattr(training, "DRAWN_AT_ONCE_MB", limit)
        state = init(jnp.ones((64, 2)), optax.sgd(0.1), 0)
        result[limit] = jax.device_get(wide_trainer(12, 4)(state))
    assert_trees_close(result[0][0].params, result[64][0].params, 1e-6)
    np.testing.assert_allclose(result[0][1]["loss"], result[64][1]["loss"], rtol=1e-6)


def test_map_tasks_equals_vmap():
    xs = jnp.arange(6.0)
    for batching in ("vmap", "scan", 4):
        np.testing.assert_array_equal(map_tasks(lambda x: x**2, xs, batching), xs**2)


def test_in_pieces_equals_vmap():
    """Under two vmaps, one without one of the arguments; 14 elements in pieces of 5, 5 and 4."""

    def fn(x, y):
        return {"product": x * y, "sum": x + y, "nothing": x[:0]}

    def both(f):
        return jax.vmap(jax.vmap(f, (0, None)), (0, 0))

    x, y = jnp.arange(28.0).reshape(7, 2, 2), jnp.arange(14.0).reshape(7, 2)
    expected = both(fn)(x, y)
    for at_most in (1, 5, 7, 100):
        result = jax.jit(both(in_pieces(fn, at_most)))
        assert_trees_close(result(x, y), expected, 0.0)
    text = str(jax.make_jaxpr(both(in_pieces(lambda x, y: x @ y, 5)))(x, y))
    assert text.count("scan") == 1
    assert "f32[2,5,2]" in text
    none = both(in_pieces(fn, 5))(x[:0], y[:0])
    assert jax.tree.map(jnp.shape, none) == jax.tree.map(jnp.shape, both(fn)(x[:0], y[:0]))
    with pytest.raises(ValueError, match=r"at_most must be .* received 0"):
        in_pieces(fn, 0)
    elsewhere = both(in_pieces(lambda x, y: x @ y, 5, platform="tpu"))
    assert "scan" not in str(jax.make_jaxpr(elsewhere)(x, y))


def test_batching_names():
    assert resolve_batching("vmap", 7) == 7
    assert resolve_batching("scan", 7) == 1
    assert resolve_batching(None, 7) >= 1
    for wrong in ("loop", 0, -2, True, 1.5):
        with pytest.raises(ValueError, match="batching must be None, 'vmap', 'scan' or a chunk"):
            resolve_batching(wrong, 7)


def test_meta_step_by_hand(x64):
    """SGD on a quadratic: theta - lr times the mean over tasks of the gradient by hand."""
    loss = lambda p, c: (0.5 * jnp.sum((p - c) ** 2), {})
    support, query = jnp.array([[1.0], [3.0]]), jnp.array([[2.0], [-1.0]])
    optimizer = optax.sgd(0.1)
    theta = jnp.array([0.5])
    task_loss = functools.partial(meta_loss, loss, inner_lr=0.2)
    params, _, metrics = meta_step(
        task_loss, theta, optimizer.init(theta), Task(support, query), optimizer
    )
    adapted = 0.5 - 0.2 * (0.5 - np.array([1.0, 3.0]))
    gradient = np.mean(0.8 * (adapted - np.array([2.0, -1.0])))
    np.testing.assert_allclose(params[0], 0.5 - 0.1 * gradient, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["loss"], np.mean(0.5 * (adapted - np.array([2.0, -1.0])) ** 2), rtol=1e-6
    )


@pytest.fixture(scope="module")
def ten_steps():
    """Runs ten meta-steps on D devices in float64; compiles once for each D."""

    @functools.cache
    def run(num_devices, num_steps=10, steps_per_draw=1):
        with jax.enable_x64(True):
            mesh = Mesh(np.array(jax.devices()[:num_devices]), (TASK_AXIS,))
            train = make_train_fn(
                sample,
                UPDATE,
                num_tasks=8,
                num_meta_steps=num_steps,
                steps_per_draw=steps_per_draw,
                mesh=mesh,
            )
            state, metrics = start(), []
            for _ in range(10 // num_steps):
                state, recorded = train(state)
                metrics.append(jax.device_get(recorded))
            metrics = jax.tree.map(lambda *x: np.concatenate(x), *metrics)
            return jax.device_get(state.params), metrics

    return run


@pytest.mark.parametrize("num_devices", [2, 4, 8])
def test_any_number_of_devices(ten_steps, num_devices):
    params, metrics = ten_steps(1)
    params_d, metrics_d = ten_steps(num_devices)
    assert_trees_close(params_d, params, 1e-10)
    assert_trees_close(metrics_d, metrics, 1e-10)


@pytest.mark.accelerator
def test_dispatches_and_draws_do_not_change_the_run(ten_steps):
    params, metrics = ten_steps(1)
    for num_steps, draw in ((5, 1), (10, 4), (5, 5)):  # draws of 4 leave a rest of 2
        params_n, metrics_n = ten_steps(1, num_steps, draw)
        assert_trees_close(params_n, params, 1e-10)
        assert_trees_close(metrics_n, metrics, 1e-10)


@pytest.mark.accelerator
def test_dispatch_equals_single_meta_steps(ten_steps):
    params, _ = ten_steps(1)
    with jax.enable_x64(True):
        theta, optimizer_state, _, run_key = start()
        step = jax.jit(lambda p, s, tasks: meta_step(LOSS, p, s, tasks, OPTIMIZER))
        for i in range(10):
            key = jax.random.fold_in(run_key, i)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(8))
            tasks = jax.vmap(lambda k: sample(None, k))(keys)
            theta, optimizer_state, _ = step(theta, optimizer_state, tasks)
        assert_trees_close(jax.device_get(theta), params, 1e-10)


def test_tasks_differ_between_steps_and_tasks(ten_steps):
    _, metrics = ten_steps(1)
    assert len(np.unique(metrics["loss"])) == 10


def test_one_all_reduce_and_no_other_collective():
    mesh = Mesh(np.array(jax.devices()[:4]), (TASK_AXIS,))
    train = make_train_fn(sample, UPDATE, num_tasks=8, num_meta_steps=3, mesh=mesh)
    result = collectives(jax.jit(train).lower(start()).compile().as_text())
    assert result == {name: int(name == "all-reduce") for name in COLLECTIVES}


@pytest.mark.accelerator
def test_compiled_once_ahead_of_time_and_no_host_traffic():
    mesh = Mesh(np.array(jax.devices()[:2]), (TASK_AXIS,))
    train = make_train_fn(sample, UPDATE, num_tasks=4, num_meta_steps=2, mesh=mesh)
    state = start()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **kw: compiled.append(event) if "backend_compile" in event else None
    )
    train.lower(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)).compile()
    first = len(compiled)
    state, _ = train(state)
    jax.block_until_ready(state)
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            state, _ = train(state)
        jax.block_until_ready(state)
    assert len(compiled) == first


@pytest.mark.accelerator
def test_state_is_donated_but_the_callers_params_are_not():
    params = mlp_params(jax.random.key(0), (3, 8, 4), jnp.float32)
    mesh = Mesh(np.array(jax.devices()[:1]), (TASK_AXIS,))
    train = make_train_fn(sample, UPDATE, num_tasks=4, num_meta_steps=2, mesh=mesh)
    state = init(params, OPTIMIZER, 0)
    train(state)
    assert state.params[0]["w"].is_deleted()
    assert not params[0]["w"].is_deleted()


@pytest.mark.accelerator
def test_seeds_train_under_vmap(full_precision):
    mesh = Mesh(np.array(jax.devices()[:1]), (TASK_AXIS,))
    train = make_train_fn(sample, UPDATE, num_tasks=4, num_meta_steps=3, mesh=mesh)
    one, _ = train(start(1))
    states = jax.tree.map(lambda a, b: jnp.stack([a, b]), start(0), start(1))
    many, metrics = jax.jit(jax.vmap(train))(states)
    assert_trees_close(jax.tree.map(lambda x: x[1], many.params), one.params, 1e-5)
    assert metrics["loss"].shape == (2, 3)


def test_an_outer_mask_keeps_parameters_bit_for_bit():
    """Masked parameters, integers too, stay equal; the others move as if alone."""
    body, head = start().params
    params = {"body": body, "head": head, "count": jnp.array(7)}
    loss = lambda p, task: LOSS([p["body"], p["head"]], task)
    update = gradient_update(
        loss, OPTIMIZER, mask={"body": {"w": False, "b": True}, "head": True, "count": False}
    )
    one = task_mesh(4, jax.devices()[:1])
    train = make_train_fn(sample, update, num_tasks=4, num_meta_steps=2, mesh=one)
    state, _ = train(init(params, update, 0))
    np.testing.assert_array_equal(state.params["body"]["w"], body["w"])
    assert state.params["count"] == 7
    assert np.all(state.params["head"]["w"] != head["w"])
    assert len(jax.tree.leaves(state.update_state)) == 1 + 2 * 3  # Adam's count and moments


def test_learned_inner_rate_trains():
    """Meta-parameters may be any pytree: here the network and its inner learning rate."""

    def task_loss(meta, task):
        return meta_loss(cross_entropy, meta["params"], task, meta["inner_lr"])

    meta = {"params": start().params, "inner_lr": jnp.float32(0.05)}
    train = make_train_fn(
        sample,
        gradient_update(task_loss, OPTIMIZER),
        num_tasks=4,
        num_meta_steps=5,
        mesh=task_mesh(4, jax.devices()[:1]),
    )
    state, _ = train(init(meta, OPTIMIZER, 0))
    assert state.params["inner_lr"] != meta["inner_lr"]


def test_data_is_an_argument():
    data = jnp.arange(12.0).reshape(3, 4)

    def draw(params, key, data):
        row = data[jax.random.randint(key, (), 0, 3)]
        return Task(row, row)

    loss = lambda p, row: (jnp.mean((p - row) ** 2), {})
    train = make_train_fn(
        draw,
        gradient_update(functools.partial(meta_loss, loss, inner_lr=0.1), OPTIMIZER),
        num_tasks=4,
        num_meta_steps=2,
        mesh=task_mesh(4, jax.devices()[:2]),
    )
    state, metrics = train(init(jnp.zeros(4), OPTIMIZER, 0), data)
    assert np.all(np.isfinite(metrics["loss"]))


def test_an_optimizer_that_keeps_the_initial_parameters():
    optimizer = optax.contrib.prodigy(1.0)
    train = make_train_fn(
        sample,
        gradient_update(LOSS, optimizer),
        num_tasks=2,
        num_meta_steps=2,
        mesh=task_mesh(2, jax.devices()[:1]),
    )
    state, _ = train(init(start().params, optimizer, 0))
    assert state.step == 2


def test_a_task_loss_without_metrics():
    with pytest.raises(TypeError, match=r"task_loss must return a pair \(loss, metrics\)"):
        sum_gradient(lambda p, task: jnp.sum(p), jnp.ones(2), Task(jnp.ones(3), jnp.ones(3)))


class TestMesh:
    def test_uses_the_largest_number_of_devices_that_divides_the_tasks(self):
        assert task_mesh(25).size == 5
        assert task_mesh(32).size == 8
        assert task_mesh(7, jax.devices()[:4]).size == 1

    def test_refuses_indivisible_tasks(self):
        mesh = Mesh(np.array(jax.devices()[:4]), (TASK_AXIS,))
        with pytest.raises(ValueError, match="received 6 tasks for 4 devices"):
            make_train_fn(sample, UPDATE, num_tasks=6, num_meta_steps=1, mesh=mesh)

    def test_refuses_another_axis(self):
        mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
        with pytest.raises(ValueError, match="the axis 'tasks', or 'members' and"):
            make_train_fn(sample, UPDATE, num_tasks=2, num_meta_steps=1, mesh=mesh)


class TestWrongUse:
    def test_integer_parameters(self):
        with pytest.raises(TypeError, match=r"not floating point: \['count'\]"):
            init({"w": jnp.ones(2), "count": jnp.arange(2)}, UPDATE, 0)

    def test_raw_key(self):
        with pytest.raises(TypeError, match="typed PRNG key"):
            init(jnp.ones(2), OPTIMIZER, jnp.zeros(2, jnp.uint32))

    @pytest.mark.parametrize("argument", ["num_tasks", "num_meta_steps"])
    def test_counts(self, argument):
        counts = {"num_tasks": 1, "num_meta_steps": 1, argument: 0}
        with pytest.raises(ValueError, match=f"{argument} must be 1 or more"):
            make_train_fn(sample, UPDATE, **counts)

    def test_tasks_without_a_task_axis(self):
        with pytest.raises(ValueError, match="one leading axis of T tasks"):
            UPDATE.update(*start()[:2], Task(jnp.ones(3), jnp.ones(4)))


def test_a_non_finite_loss_is_named():
    """Task 2 of meta-step 3 in the second dispatch has a target of NaN."""

    def draw(params, key, poison):
        del params
        return Task(jnp.ones(2), jnp.where(poison, jnp.nan, 1.0) * jnp.ones(2))

    loss = lambda p, y: (jnp.mean((p - y) ** 2), {})
    task_loss = functools.partial(meta_loss, loss, inner_lr=0.1)
    params, state = jnp.zeros(2), OPTIMIZER.init(jnp.zeros(2))
    step = jax.jit(gradient_update(task_loss, OPTIMIZER).update)
    recorded = []
    for i in range(5):
        poison = jnp.arange(4) == (2 if i == 3 else -1)
        tasks = jax.vmap(lambda p: draw(None, None, p))(poison)
        params, state, metrics = step(params, state, tasks)
        recorded.append(metrics)
    metrics = jax.tree.map(lambda *x: jnp.stack(x), *recorded)
    check_finite(jax.tree.map(lambda x: x[:3], metrics))
    with pytest.raises(
        NonFiniteError, match=r"meta-step 103: 1 task\(s\), the first of them task 2"
    ):
        check_finite(metrics, first_step=100)
    runs = jax.tree.map(lambda x: jnp.stack([x[:3], x[1:4]]), metrics)
    with pytest.raises(NonFiniteError, match="meta-step 2 of run 1"):
        check_finite(runs)
