"""Hostile or foreign model files are refused; the code of docs/sharing.md runs.

Round trips of trained runs are in the test modules of the experiments.
"""

import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import jax
import made_files
import numpy as np
import pytest
import safetensors.numpy
import toy_experiment as toy

import experiments
from experiments import images, load_model, omniglot, sinusoid
from experiments.core import finished, model_files, runner
from experiments.core.environment import environment
from experiments.core.files import FileError
from experiments.core.identity import RunError, identity_of
from experiments.core.results import make_row
from experiments.core.stages import Outcome
from maml_jax.classification import LabelledImages
from maml_jax.fitting import Selection
from maml_jax.regression import Examples

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = sinusoid.Config(methods=("maml", "oracle", "averaged"), hidden_sizes=(3,))
POINTS = Examples(np.ones((2, 1), np.float32), np.zeros((2, 1), np.float32))


def write(workdir, experiment, settings, classes=()):
    """Model files of parameters that were not trained, and the config.json beside them."""
    workdir.mkdir(parents=True, exist_ok=True)
    identity = identity_of(experiment.name, "paper", 0, settings)
    rows = [make_row("maml", "K=5", 1, "mse", np.array([1.0, 2.0]))]
    record = {**identity, "environment": environment(), "rows": rows}
    methods = settings.methods if experiment is sinusoid.EXPERIMENT else (settings.maml_name,)
    selections = {}
    for method in methods:
        network = experiment.blueprint(settings, method, tuple(classes)).network
        selections[method] = Selection((), jax.jit(network.init)(jax.random.key(1)), 0.0, 7)
    outcome = Outcome(rows, {}, tuple(classes))
    model_files.write_models(workdir, experiment, settings, record, selections, outcome)
    (workdir / "config.json").write_text(json.dumps(identity))
    return {method: selection.best_params for method, selection in selections.items()}


@pytest.fixture
def written(tmp_path):
    """The JSON file of a sinusoid's MAML."""
    write(tmp_path / "run", sinusoid.EXPERIMENT, SETTINGS)
    return tmp_path / "run" / "model" / "maml.json"


def test_what_a_model_offers(written):
    model = load_model(written)
    assert re.fullmatch(r"Model\(sinusoid, maml, [\d,]+ parameters\)", repr(model))
    assert model.settings == SETTINGS
    assert (model.record["meta_step"], model.record["rows"][0]["mean"]) == (7, 1.5)
    once, twice = model.adapt(POINTS), model.adapt(POINTS, 2, 0.1)
    by_hand = jax.tree.map(
        lambda p, g: p - SETTINGS.inner_lr * g,
        model.params,
        jax.grad(lambda p: model.problem.inner_loss(p, POINTS)[0])(model.params),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), once, by_hand)
    assert model.network.apply(twice, POINTS.inputs).shape == (2, 1)


def test_a_support_of_another_type_is_named(written):
    model = load_model(written)
    for support in (tuple(POINTS), LabelledImages(POINTS.inputs, POINTS.targets)):
        with pytest.raises(
            TypeError, match=r"must be maml_jax\.regression\.Examples\(inputs, targ"
        ):
            model.adapt(support)


def test_methods_without_an_inner_loop_say_so(written):
    averaged = load_model(written.with_name("averaged.json"))
    with pytest.raises(ValueError, match=r"without an inner loop; adapt needs both num_inner_ste"):
        averaged.adapt(POINTS)
    averaged.adapt(POINTS, num_inner_steps=1, inner_lr=0.1)
    with pytest.raises(ValueError, match=r"'oracle' takes no gradient steps; use network\.apply"):
        load_model(written.with_name("oracle.json")).adapt(POINTS)


def test_class_names_of_any_kind_are_kept(tmp_path):
    names = ("Latin/a", "$x_{$", os.fsdecode(b"\xff"), "π")
    small = {"network": "mlp", "hidden_sizes": (2,), "image_size": 8, "num_ways": 2}
    settings = omniglot.Config(dataset="synthetic", **small)
    write(tmp_path, omniglot.EXPERIMENT, settings, names)
    path = tmp_path / "model" / "maml_not_convolutional.json"
    assert tuple(load_model(path).record["classes"]) == names
    assert load_model(path).record["inputs"]["shape"] == [8, 8, 1]


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def settings_with(path, **changes):
    edit(path, config={**json.loads(path.read_text())["config"], **changes})


def arrays_with(path, change):
    """Replaces the arrays, and their digest: a stranger can write that, too."""
    tensors = path.with_suffix(".safetensors")
    content = change(safetensors.numpy.load_file(tensors))
    content = content if isinstance(content, bytes) else safetensors.numpy.save(content)
    tensors.write_bytes(content)


KERNEL, BIAS = "Dense_0/kernel", "Dense_0/bias"
WIDE = {KERNEL: np.zeros((1, 3), np.float64)}
HEADER = b'{"Dense_0/bias":{"dtype":"F32","shape":[3],"data_offsets":[0,99]}}'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.write_text("{"), r"maml\.json is not JSON, or is cut off"),
        (lambda p: p.write_text("[]"), "holds a list; expected an object"),
        (lambda p: p.write_text("[" * 100_000), "nested too deeply"),
        (lambda p: p.write_text(" " * (model_files.MAX_JSON + 1)), "bytes; expected at most"),
        (lambda p: p.unlink(), r"maml\.json cannot be read: No such file"),
        (lambda p: edit(p, format=99), "has the format 99; this version of maml_jax reads 2"),
        (lambda p: edit(p, method=3), "has 'method': 3; expected text"),
        (lambda p: edit(p, method="\x1b[2J"), r"cannot be built: the method must be one of maml"),
        (lambda p: edit(p, classes=[1]), "has 'classes' that are not all text"),
        (lambda p: edit(p, experiment="os"), "experiment os, which this package lacks; pass"),
        (lambda p: edit(p, experiment="report"), "experiment report, which this package lacks"),
        (lambda p: edit(p, config={}), "it lacks 'methods'"),
        (lambda p: settings_with(p, inner_lr=-1), "--inner_lr must be above 0; received -1"),
        (
            lambda p: settings_with(p, hidden_sizes=[2] * 1_001),
            r"at most 1,000 values; received 1,001\. .* \(its 'environment' names the commit\)",
        ),
        (
            lambda p: edit(p, numbers={"jax_enable_x64": True}),
            r"trained with JAX_ENABLE_X64=True; set it \(this process has False\)",
        ),
        (
            lambda p: settings_with(p, hidden_sizes=[2_000_000_000]),
            r"Dense_0/bias: expected float32\[2000000000\], received float32\[3\]",
        ),
        (lambda p: p.with_suffix(".safetensors").unlink(), "safetensors cannot be read: No such"),
        (lambda p: arrays_with(p, lambda a: b""), "is not a safetensors file"),
        (lambda p: arrays_with(p, lambda a: b"\xff" * 64), "is not a safetensors file"),
        (
            lambda p: arrays_with(p, lambda a: len(HEADER).to_bytes(8, "little") + HEADER),
            "is not a safetensors file",
        ),
        (lambda p: arrays_with(p, lambda a: bytes(2_000_000)), r"2,000,000 bytes; expected at mo"),
        (
            lambda p: arrays_with(p, lambda a: {**a, KERNEL: a[KERNEL].T}),
            r"Dense_0/kernel: expected float32\[1, 3\], received float32\[3, 1\]",
        ),
        (
            lambda p: arrays_with(p, lambda a: {**a, **WIDE}),
            r"Dense_0/kernel: expected float32\[1, 3\], received float64\[1, 3\]",
        ),
        (
            lambda p: arrays_with(p, lambda a: {k: v for k, v in a.items() if k != BIAS}),
            r"Dense_0/bias: expected float32\[3\], received nothing",
        ),
        (
            lambda p: arrays_with(p, lambda a: {**a, "\x1b[31m": a[BIAS]}),
            r"\\x1b\[31m: expected nothing, received float32\[3\]",
        ),
        (
            lambda p: arrays_with(p, lambda a: {**a, BIAS: a[BIAS] + 1}),
            "damaged or of another run: its SHA-256 differs",
        ),
    ],
)
def test_files_that_are_refused(written, change, message):
    change(written)
    with pytest.raises(FileError, match=message) as caught:
        load_model(written)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_networks_that_cannot_be_described_are_refused(written, error):
    def fail(*_):
        raise error

    with pytest.raises(FileError, match=rf"cannot be built: {error.__name__}"):
        load_model(written, dataclasses.replace(sinusoid.EXPERIMENT, blueprint=fail))


def test_floats_of_another_width_are_refused(written):
    with jax.enable_x64(True), pytest.raises(FileError, match="JAX_ENABLE_X64=False; set it"):
        load_model(written)


def test_names_of_files_are_printable_in_errors(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "\x1b[2J.safetensors").touch()
    with pytest.raises(FileError, match=r"such as .*/\\x1b\[2J\.json"):
        load_model(tmp_path)
    hostile = tmp_path / "model" / "\x1b[2J.json"
    hostile.write_text("{")
    with pytest.raises(FileError, match=r"/\\x1b\[2J\.json is not JSON"):
        load_model(hostile)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("maml", "MAML"), "received 'MAML' and another such name"),
        (("a, b", "a b"), "received 'a b' and another such name"),
        (("µ",), "must have an ASCII letter; received 'µ'"),
    ],
)
def test_stages_whose_files_would_overwrite_each_other(stages, message):
    with pytest.raises(ValueError, match=message):
        model_files.file_names(stages)


def test_names_of_files_are_checked_before_training(tmp_path, monkeypatch):
    def stages(config):
        return [dataclasses.replace(stage, name="µ") for stage in toy.make_stages(config)]

    experiment = dataclasses.replace(toy.EXPERIMENT, stages=stages, blueprint=pytest.fail)
    with pytest.raises(ValueError, match="must have an ASCII letter"):
        runner.run(experiment, tmp_path / "run", toy.Config())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_numbers_that_are_not_finite_are_refused(written):
    arrays_with(written, lambda a: {**a, BIAS: a[BIAS] * np.nan})
    content = written.with_suffix(".safetensors").read_bytes()
    edit(written, sha256=model_files.hashlib.sha256(content).hexdigest())
    with pytest.raises(FileError, match="not finite, in Dense_0/bias"):
        load_model(written)


def test_paths_that_are_no_model(written):
    with pytest.raises(FileError, match=r"is a folder; expected .*model/averaged\.json"):
        load_model(written.parent.parent)
    with pytest.raises(FileError, match=r"not a model's description; expected maml\.json"):
        load_model(written.with_suffix(".safetensors"))
    with pytest.raises(FileError, match="of the experiment sinusoid; expected omniglot"):
        load_model(written, omniglot.EXPERIMENT)
    edit(written, experiment="toy")
    with pytest.raises(FileError, match="toy defines no blueprint"):
        load_model(written, toy.EXPERIMENT)


def test_a_mode_reads_the_model_files_alone(written):
    """Without checkpoints, results and data; a file of another run is refused."""
    run = finished.load_params(sinusoid.EXPERIMENT, written.parent.parent)
    assert set(run.params) == set(SETTINGS.methods)
    assert (run.settings, run.rows, run.states) == (SETTINGS, (), {})
    edit(written, seed=3)
    with pytest.raises(RunError, match=r"maml\.json is of another run: it has seed=3, config"):
        finished.load_params(sinusoid.EXPERIMENT, written.parent.parent)


def test_the_code_of_the_guide_runs(tmp_path, monkeypatch):
    write(tmp_path / "runs" / "sines", sinusoid.EXPERIMENT, SETTINGS)
    small = images.Config(num_ways=2, num_layers=1, num_filters=2, image_size=8, norm="none")
    write(tmp_path / "runs" / "mine", images.EXPERIMENT, small)
    for name in ("a", "b"):
        made_files.write(tmp_path / "labelled" / name / "1.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "maml_jax_experiments", experiments)
    page = (ROOT / "docs" / "sharing.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"__name__": "page"}
    exec(compile("\n".join(blocks), "sharing.md", "exec"), names)
    ours = names["model"].network.apply(names["model"].params, names["x"])
    np.testing.assert_allclose(names["before"], ours, rtol=1e-5, atol=1e-6)
    assert (names["classes"], names["labels"].tolist()) == (["a", "b"], [0, 1])
    assert names["images"].shape == (2, 8, 8, 1)
    about = names["about"]
    for key in re.findall(r"`(\w+)`", re.findall(r"\| key of the JSON.*?\n\n", page, re.S)[0]):
        assert key in about or key in ("protocols", "adapt", "tasks"), key
