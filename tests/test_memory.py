"""Whether a run fits into memory is asked of the system, cheaply, and answered with a flag."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from experiments import omniglot
from experiments.core import process
from experiments.few_shot import data, memory, stages
from experiments.few_shot.config import make_network
from maml_jax import meta_loss
from maml_jax.batching import task_mesh
from maml_jax.classification import ImageSet, classification_problem

CONFIG = omniglot.Config(
    dataset="synthetic", num_ways=3, num_shots=4, inner_steps=4, num_tasks=8, network="mlp",
    hidden_sizes=(16,), image_size=12, methods=("maml",), meta_gradient="reverse",
    task_batching="vmap", rotations="none",
)  # fmt: skip


def problem(config):
    network = make_network(config)
    episodes = classification_problem(network, 3, 4, 4)
    params = jax.eval_shape(network.init, jax.random.key(0))
    images = ImageSet(jnp.zeros((5, 8, 12, 12, 1), jnp.uint8), jnp.full(5, 8))
    task = jax.eval_shape(episodes.sample, params, jax.random.key(0), images)
    loss = lambda mode: functools.partial(
        meta_loss, episodes.inner_loss, inner_lr=0.1, num_steps=4, mask=network.mask, mode=mode
    )
    return loss, params, task


# Bytes by mode and tasks at once.
NEEDS = {("reverse", 8): 800, ("mixed", 8): 400, ("first_order", 8): 240,
         ("reverse", 1): 100, ("mixed", 1): 50, ("first_order", 1): 30}  # fmt: skip


def asked(monkeypatch, available, **changes):
    """Warns (or not) with so many bytes on the CPU's one device; returns what was compiled."""
    compiled = []

    def needs(loss_of_mode, params, task, chunk, mode):
        compiled.append((mode, chunk))
        return NEEDS[mode, chunk]

    with monkeypatch.context() as patch:
        patch.setattr(process, "available_memory", lambda: available)
        patch.setattr(memory, "_needs", needs)
        config = dataclasses.replace(CONFIG, **changes)
        memory.warn_if_too_large(config, *problem(config), task_mesh(8, jax.devices()[:1]))
    return compiled


def test_nothing_is_compiled_where_there_is_room(monkeypatch, capsys):
    loss, params, task = problem(CONFIG)
    fn = lambda p, t: memory.sum_gradient(loss("reverse"), p, t, "vmap")
    limit = memory.bound(fn, params, memory._stack(task, 8))
    assert asked(monkeypatch, limit) == []
    assert asked(monkeypatch, None) == []
    assert asked(monkeypatch, limit - 1) == [("reverse", 8)]  # asks, and it fits
    assert capsys.readouterr().err == ""


def test_the_flag_that_fits_is_named(monkeypatch, capsys):
    def advice(available, **changes):
        asked(monkeypatch, available, **changes)
        return capsys.readouterr().err

    assert advice(800) == ""
    text = advice(799)
    assert text.startswith("warning: the meta-gradient of 8 tasks at once needs")
    assert text.endswith("are left. --meta_gradient=mixed fits.\n")
    assert advice(399).endswith("are left. --task_batching=scan fits.\n")
    assert advice(99).endswith("are left. --meta_gradient=mixed --task_batching=scan fits.\n")
    assert "Only --first_order --task_batching=scan fits, which is another" in advice(49)
    assert "No mode fits: take a smaller network" in advice(29)
    assert advice(239, first_order=True).endswith("are left. --task_batching=scan fits.\n")
    assert "No mode fits" in advice(29, first_order=True)
    assert "of 1 task at once" in advice(99, task_batching="scan")
    assert "Only --first_order fits" in advice(49, task_batching="scan")
    assert "No mode fits" in advice(29, task_batching="scan", first_order=True)


@pytest.mark.parametrize("mode", ["reverse", "mixed"])
def test_the_bound_is_more_than_the_compiler_plans(mode):
    """On a convolutional network, too, whose program is made of other primitives."""
    config = dataclasses.replace(CONFIG, network="conv", num_filters=4, num_layers=2)
    loss, params, task = problem(config)
    fn = jax.value_and_grad(loss(mode), has_aux=True)
    planned = memory._needs(loss, params, task, 1, mode)
    assert planned < memory.bound(fn, params, task) < 100 * planned


def test_training_asks_once_and_loading_does_not(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "warn_if_too_large", lambda *args: calls.append(args[0]))
    images = ImageSet(jnp.zeros((5, 8, 12, 12, 1), jnp.uint8), jnp.full(5, 8))
    (stage,) = stages.make_stages(CONFIG, 0, data.Images(images, None, images))
    stage.init()
    assert calls == []
    stage.make_advance(10)
    stage.make_advance(3)
    assert calls == [CONFIG]


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
        "sys/fs/cgroup/a/memory.max": "900000\n",  # the group that this one is in
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
