"""Advice on memory: whether a meta-gradient fits, and otherwise what to change."""

import functools

import jax
import jax.numpy as jnp
import pytest

from experiments.core import process
from maml_jax import memory, meta_loss
from maml_jax.classification import ImageSet, classification_problem
from maml_jax.memory import advise
from maml_jax.networks import convolutional, fully_connected


def problem(network):
    """Losses of a 3-way 4-shot problem by mode, and shapes of parameters and a task."""
    episodes = classification_problem(network, 3, 4, 4)
    params = jax.eval_shape(network.init, jax.random.key(0))
    images = ImageSet(jnp.zeros((5, 8, 8, 8, 1), jnp.uint8), jnp.full(5, 8))
    task = jax.eval_shape(episodes.sample, params, jax.random.key(0), images)
    loss = lambda mode: functools.partial(
        meta_loss, episodes.inner_loss, inner_lr=0.1, num_inner_steps=4, mask=network.mask,
        mode=mode,
    )  # fmt: skip
    return loss, params, task


MLP = problem(fully_connected((8, 8, 1), 3, (8,)))
# Bytes by mode and number of tasks at once.
NEEDS = {("reverse", 8): 800, ("mixed", 8): 400, ("first_order", 8): 240,
         ("reverse", 1): 100, ("mixed", 1): 50, ("first_order", 1): 30}  # fmt: skip


@pytest.fixture
def compiled(monkeypatch):
    """Replaces compiling; lists the requests."""
    asked = []

    def needs(loss_of_mode, params, task, tasks_at_once, mode):
        asked.append((mode, tasks_at_once))
        return NEEDS[mode, tasks_at_once]

    monkeypatch.setattr(memory, "_needs", needs)
    return asked


def ask(available, mode="reverse", tasks_at_once=8):
    return advise(*MLP, mode=mode, tasks_at_once=tasks_at_once, available=available)


def test_nothing_is_compiled_if_memory_suffices(compiled):
    loss, tasks = memory._batched(MLP[0]("reverse"), MLP[2], 8)
    limit = memory.upper_bound(jax.value_and_grad(loss), MLP[1], tasks)
    assert ask(limit) == (limit, limit, {})
    assert compiled == []
    advice = ask(limit - 1)  # compiles, and the program fits
    assert compiled == [("reverse", 8)]
    assert advice.fits
    assert advice.needed == 800


@pytest.mark.parametrize(
    ("arguments", "changes", "sentence"),
    [
        ((800,), {}, "It fits."),
        ((799,), {"mode": "mixed"}, "mode='mixed' fits."),
        ((399,), {"batching": "scan"}, "batching='scan' fits."),
        ((99,), {"mode": "mixed", "batching": "scan"}, "mode='mixed' batching='scan' fits."),
        (
            (49,),
            {"mode": "first_order", "batching": "scan"},
            "Only mode='first_order' batching='scan' fits, which approximates the meta-gradient.",
        ),
        ((29,), None, "No mode fits: take fewer tasks at once"),
        ((239, "first_order"), {"batching": "scan"}, "batching='scan' fits."),
        ((29, "first_order"), None, "No mode fits"),
        ((49, "reverse", 1), {"mode": "first_order"}, "Only mode='first_order' fits"),
        ((29, "first_order", 1), None, "No mode fits"),
    ],
)
def test_the_first_change_that_fits(compiled, arguments, changes, sentence):
    advice = ask(*arguments)
    assert advice.changes == changes
    assert advice.sentence().startswith(sentence)
    assert advice.fits == (changes == {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"available": -1}, "available must be 0 or more bytes; received -1"),
        ({"mode": "forward"}, "mode must be one of .*received 'forward'"),
        ({"tasks_at_once": 0}, "tasks_at_once must be 1 or more; received 0"),
    ],
)
def test_impossible_questions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ask(**{"available": 1, **arguments})


@pytest.mark.parametrize("mode", ["reverse", "mixed"])
def test_the_bound_exceeds_the_compilers_plan(mode):
    """Also for a convolutional network, whose program has other primitives."""
    loss, params, task = problem(convolutional((8, 8, 1), 3, num_filters=4, num_layers=1))
    fn = jax.value_and_grad(loss(mode), has_aux=True)
    planned = memory._needs(loss, params, task, 1, mode)
    assert planned < memory.upper_bound(fn, params, task) < 100 * planned


MEMINFO = "MemTotal: 4000 kB\nMemAvailable:    3000 kB\n"


def system(root, groups, files):
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return process.host_memory(root)


def test_memory_of_the_machine_and_of_control_groups(tmp_path):
    kb = 1024
    assert process.host_memory(tmp_path / "none") is None
    assert system(tmp_path / "machine", "0::/\n", {}) == 3000 * kb
    v2 = {
        "sys/fs/cgroup/a/memory.max": "900000\n",  # the group around this one
        "sys/fs/cgroup/a/memory.current": "100000\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/b/memory.current": "1000\n",
    }
    assert system(tmp_path / "v2", "0::/a/b\n", v2) == 800_000
    v2["sys/fs/cgroup/a/memory.stat"] = "anon 5\ninactive_file 30000\n"
    assert system(tmp_path / "v2", "0::/a/b\n", v2) == 830_000
    v1 = {
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "500000",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "600000",
        "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 200000\n",
    }
    assert system(tmp_path / "v1", "4:memory:/job\n1:cpu:/\n", v1) == 100_000


def test_memory_of_accelerators(monkeypatch):
    class Device:
        def __init__(self, platform, stats):
            self.platform, self.memory_stats = platform, lambda: stats

    def available(*devices):
        monkeypatch.setattr(jax, "local_devices", lambda: devices)
        return process.available_memory()

    full, free = ({"bytes_limit": 100, "bytes_in_use": used} for used in (90, 20))
    assert available(Device("gpu", free), Device("gpu", full)) == 10
    assert available(Device("gpu", full), Device("gpu", None)) is None
    monkeypatch.setattr(process, "host_memory", lambda: 7)
    assert available(Device("cpu", None)) == 7
