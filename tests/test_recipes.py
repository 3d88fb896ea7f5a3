"""Recipes: each field does what it says, bad values are refused, and files are read again."""
import argparse
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import write_folder
from torch.utils.data import DataLoader

import bssnet_zoo
from bssnet_zoo.cli.train import add_recipe_arguments, default_recipe, recipe_from_arguments
from bssnet_zoo.distributed import Process
from bssnet_zoo.evaluation import Evaluation
from bssnet_zoo.training import loop, parts, run_log
from bssnet_zoo.training.loop import train
from bssnet_zoo.training.parts import create_state, create_student
from bssnet_zoo.training.recipes import RECIPES, Recipe, load_recipe, parse_recipe, save_recipe
from bssnet_zoo.training.state import TrainState

CPU = Process(torch.device("cpu"))
DOCS = Path(__file__).parents[1] / "docs"

# field: another value, and all that changes in a run, one entry for each place that reads the field. TEACHER and
# FEATURES are what the run has besides: (field: value, {what it needs})
TEACHER = {"teacher_labels": "{root}/teacher"}
FEATURES = {"feature_teacher": "resnet10t", "feature_checkpoint": "{root}/encoder.pth"}
FIELDS: dict[str, tuple] = {
    "model": ("bssnet_b", "network"),
    "init": ("{root}/bssnet_t.pth", "start"),
    "data": ("folder:{root}/other", "train files", "val files"),
    "more_data": (("folder:{root}/other",), "train files"),
    "teacher_labels": ("{root}/teacher", "teacher"),
    "teacher_weight": (1.5, "teacher", TEACHER),
    "train_split": ("trainval", "train files"),
    "val_split": ("test", "val files"),
    "base_size": ((96, 144), "sample"),
    "scale_range": ((0.5, 0.6), "sample"),
    "crop_size": ((32, 96), "sample", "steps"),
    "val_size": ((32, 64), "val size"),
    "gamma": (1., "sample"),
    "class_mix": (1., "sample"),
    "class_weights": ((1., 9., 1.), "seg", "seg_border", "teacher", TEACHER),
    "loss_weights": ((2., 3., 4., 5., 6., 7.), "seg", "seg_border", "border", "spatial", "aux3", "aux4"),
    "epochs": (2, "rates", {"iterations": 0}),
    "iterations": (4, "rates", {"epochs": 0}),
    "batch_size": (4, "steps", "order", "validations"),
    "grad_accum": (2, "steps", "order", {"batch_size": 4}),
    "opt": ("adamw", "weights"),
    "lr": (0.02, "rates"),
    "momentum": (0.5, "weights"),
    "weight_decay": (0.1, "weights"),
    "decay_all": (False, "weights"),
    "layer_decay": (0.5, "weights"),
    "warmup_iterations": (1, "rates"),
    "poly_power": (2., "rates"),
    "clip_grad": (0.01, "weights"),
    "ema_decay": (0.9, "average"),
    "freeze_bn": (True, "network"),
    "feature_teacher": ("resnet10t", "features", {"feature_checkpoint": "{root}/encoder.pth"}),
    "feature_checkpoint": ("{root}/encoder2.pth", "features", FEATURES),
    "feature_weight": (3., "features", FEATURES),
    "device": ("cuda:1", "device"),
    "precision": ("bfloat16", "type", "val precision"),
    "compile": (True, "compiled"),
    "cache": (True, "cache"),
    "workers": (1, "train workers", "val workers"),
    "seed": (1, "start", "order", "sample", "noise"),
    "checkpoint_every": (1, "saves"),
    "validate_every": (2, "validations"),
}
NEUTRAL = ("ema_decay", "device", "compile", "cache", "workers", "checkpoint_every", "validate_every", "val_size",
           "val_split")  # these leave the trained weights alone


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two data sets of three splits, a teacher's maps, weights to start from and two encoders."""
    root = tmp_path_factory.mktemp("root")
    for name, train_images in (("data", 4), ("other", 5)):
        write_folder(root / name, train=train_images, val=2)
        for kind in ("images", "masks"):
            shutil.copytree(root / name / kind / "val", root / name / kind / "test")
    shutil.copytree(root / "data" / "masks" / "train", root / "teacher" / "train")
    torch.manual_seed(1)
    for name in ("bssnet_t", "bssnet_b"):
        model = bssnet_zoo.create_model(name, dim=8, num_classes=3, aux_heads=True)
        torch.save(model.state_dict(), root / f"{name}.pth")
    for name in ("encoder", "encoder2"):
        torch.save(timm.create_model("resnet10t").state_dict(), root / f"{name}.pth")
    return root


def trace(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the parts of a run with a narrow network were given, and what became of it."""
    found: dict[str, Any] = {key: [] for key in ("steps", "type", "noise", "saves", "validations")}
    found["compiled"] = False

    def spy(module: Any, name: str, see: Callable[..., None]) -> None:
        """Shows the result and the arguments of a function."""
        function = getattr(module, name)

        def seen(*args, **kwargs):
            result = function(*args, **kwargs)
            see(result, *args, **kwargs)
            return result

        monkeypatch.setattr(module, name, seen)

    def data(sets, recipe):
        train_set, val_set = sets
        files = ([str(image) for image, _ in dataset.files] for dataset in sets)
        found["train files"], found["val files"] = files
        found["cache"] = train_set.cache is not None
        found["sample"], found["val size"] = tuple(train_set[0, i] for i in range(4)), val_set[0][0].shape

    def model(wrapped, state, *args):
        found["start"] = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
        found["network"] = [type(module) for module in state.model.modules()]

    def losses(criterion, recipe):
        def see(module, args):
            output, images, labels = args
            found["steps"].append(images.shape)
            found["type"].append(output.seg.dtype)
            found["noise"].append(torch.initial_seed())
        criterion.register_forward_pre_hook(see)

    def evaluate(model, dataset, precision, workers, **kwargs):
        found["val precision"], found["val workers"] = precision, workers
        return Evaluation(("sky", "road", "car"), (0.5, 0.5, 0.5), 0.5, 0.5, 0.5, 2, 1.)

    def loader(*args, num_workers, **kwargs):
        found["train workers"] = num_workers
        return DataLoader(*args, **kwargs)

    def compiled(model):
        found["compiled"] = True
        return model

    def init_process(device, patient):
        found["device"] = device
        return CPU

    spy(loop, "open_datasets", data)
    spy(loop, "wrap_model", model)
    spy(loop, "create_criterion", losses)
    spy(loop, "train_sampler", lambda sampler, *args: found.update(order=[sampler.batch(i) for i in range(3)]))
    monkeypatch.setattr(TrainState, "save", lambda state, path: found["saves"].append(state.iteration))
    spy(loop, "validate", lambda _, run, log: found["validations"].append(run.state.iteration))
    monkeypatch.setattr(parts, "create_model", partial(bssnet_zoo.create_model, dim=8))
    for name, function in (("evaluate", evaluate), ("init_process", init_process), ("save_strip", lambda *args: None),
                           ("save_curve", lambda folder: None)):
        monkeypatch.setattr(loop, name, function)
    monkeypatch.setattr(parts, "DataLoader", loader)
    monkeypatch.setattr(run_log, "open_board", lambda *args: None)
    monkeypatch.setattr(torch, "compile", compiled)
    state = train(recipe, folder)
    log = np.genfromtxt(folder / "log.csv", delimiter=",", names=True)
    found.update({name: log[name][:1] for name in loop.LOSS_NAMES}, rates=log["lr"])
    return found | {"weights": state.model.state_dict(), "average": state.ema.module.state_dict()}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@pytest.fixture(scope="module")
def traced(root, tmp_path_factory):
    """``traced(options)`` runs a recipe with these options, once."""
    known: dict[str, dict] = {}

    def run(options: dict[str, Any]) -> dict[str, Any]:
        options = {"iterations": 3, **options}
        if repr(options) not in known:
            recipe = Recipe(
                **{"data": f"folder:{root}/data", "base_size": (64, 96), "crop_size": (32, 64), "batch_size": 2,
                   "workers": 0, "weight_decay": 0.01, "sync_bn": False, **options})
            with pytest.MonkeyPatch.context() as patch:
                known[repr(options)] = trace(recipe, tmp_path_factory.mktemp("run"), patch)
        return known[repr(options)]

    return run


def test_every_field_has_a_row():
    assert {field.name for field in fields(Recipe)} == FIELDS.keys() | {"sync_bn"}


@pytest.mark.parametrize("field", FIELDS)
def test_field(field, root, traced):
    def placed(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{root}", str(root))
        return tuple(map(placed, value)) if isinstance(value, tuple) else value

    value, *changes = FIELDS[field]
    given = {key: placed(each) for key, each in changes.pop().items()} if isinstance(changes[-1], dict) else {}
    before = traced({"epochs": 1, **given} if field == "epochs" else {} if field.startswith("feature_t") else given)
    after = traced({**given, field: placed(value)})
    assert [name for name in changes if same(before[name], after[name])] == []
    assert same(before["weights"], after["weights"]) == (field in NEUTRAL)


def test_accumulation(traced):
    assert [shape[0] for shape in traced({"batch_size": 4, "grad_accum": 2})["steps"]] == 6 * [2]


def test_a_file_for_b(root, traced):
    start = traced({"model": "bssnet_b", "init": f"{root}/bssnet_b.pth"})["start"]
    assert same(start["stem.0.conv.weight"], torch.load(root / "bssnet_b.pth")["stem.0.conv.weight"])


def test_more_data_of_the_same_split(root, traced):
    files = traced({"more_data": (f"folder:{root}/other",), "train_split": "trainval"})["train files"]
    assert {f"{root}/other/images/{name}.png" for name in ("train/4", "val/0", "val/1")} <= set(files)


@pytest.mark.parametrize("sync_bn", [True, False])
def test_sync_bn(sync_bn, tiny_recipe, monkeypatch, capsys):
    recipe = replace(tiny_recipe, sync_bn=sync_bn)
    create_student(recipe, ("a", "b"), Process(CPU.device, 0, 2))
    assert ("SyncBN does not exist on cpu: plain BatchNorm" in capsys.readouterr().out) == sync_bn
    monkeypatch.setattr(parts, "convert_sync_batchnorm", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError if sync_bn else TypeError):  # torch knows no such device
        create_student(recipe, ("a", "b"), Process(SimpleNamespace(type="cuda"), 0, 2))


@pytest.mark.parametrize(("options", "message"), [
    ({"model": "bssnet_t.street"}, "to start from these weights give --model bssnet_t --init street"),
    ({"model": 3}, "model must be a text, got 3"),
    ({"lr": "1e-3"}, r"lr must be a number, got '1e-3' \(YAML takes 1e-3 for a text: write 1.0e-3\)"),
    ({"cache": 1}, "cache must be true or false, got 1"),
    ({"base_size": (1, 2, 3)}, r"base_size must be 2 whole numbers, got \(1, 2, 3\)"),
    ({"class_weights": ("a",)}, r"class_weights must be a list of numbers or nothing, got \('a',\)"),
    ({"precision": "half"}, "float32, bfloat16, float16, got 'half'"),
    ({"epochs": 0}, "either epochs or iterations"),
    ({"epochs": 1, "iterations": 5}, "either epochs or iterations"),
    ({"batch_size": 0}, "batch_size must be more than 0"),
    ({"grad_accum": 0}, "grad_accum must be more than 0"),
    ({"checkpoint_every": 0}, "checkpoint_every must be more than 0"),
    ({"validate_every": 0}, "validate_every must be more than 0"),
    ({"lr": 0.}, "lr must be more than 0"),
    ({"lr": float("nan")}, "lr must be finite, got nan"),
    ({"clip_grad": 0.}, "clip_grad must be more than 0"),
    ({"poly_power": 0.}, "poly_power must be more than 0"),
    ({"class_weights": (1., 0., 1.)}, "class_weights must be more than 0"),
    ({"weight_decay": -1e-4}, "weight_decay must be 0 or more"),
    ({"warmup_iterations": -1}, "warmup_iterations must be 0 or more"),
    ({"workers": -1}, "workers must be 0 or more"),
    ({"seed": -1}, "seed must be 0 or more"),
    ({"teacher_weight": -1.}, "teacher_weight must be 0 or more"),
    ({"feature_weight": -1.}, "feature_weight must be 0 or more, got -1.0"),
    ({"loss_weights": (1., 1., 1., 1., 1., -1.)}, "loss_weights must be 0 or more"),
    ({"gamma": -1.}, "gamma must be 0 or more"),
    ({"gamma": float("inf")}, "gamma must be finite"),
    ({"momentum": 1.}, r"momentum must be in \[0, 1\)"),
    ({"ema_decay": 1.}, r"ema_decay must be in \[0, 1\)"),
    ({"layer_decay": 2.}, r"layer_decay must be in \(0, 1\]"),
    ({"class_mix": 1.5}, "class_mix must be a share"),
    ({"scale_range": (2., 0.5)}, "scale_range must be two ascending"),
    ({"crop_size": (64,)}, "crop_size must be 2 whole numbers"),
    ({"crop_size": (8, 8)}, r"crop_size must be 32 or more high and wide, got \(8, 8\)"),
    ({"base_size": (64, 31)}, "base_size must be 32 or more"),
    ({"val_size": (64, 0)}, "val_size must be 32 or more high and wide"),
])
def test_bad_values(options, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPES["finetune"], **options)


class TestFiles:
    @pytest.mark.parametrize("recipe", [
        *RECIPES.values(),
        RECIPES["finetune"].with_options(class_weights=tuple(np.ones(3, np.float32)), epochs=np.int64(2))])
    def test_saved_and_read_again(self, recipe, tmp_path):
        save_recipe(recipe, tmp_path / "recipe.yaml")
        assert load_recipe(tmp_path / "recipe.yaml") == recipe

    @pytest.mark.parametrize(("text", "message"), [
        ("epochs: 3\nspeed: 7", "it has 'speed', which is no field"),
        ("epochs: 3\nweighted: false", "it has 'weighted', which is no field"),
        ("- 1", "it has no lines like 'lr: 0.01'"),
        ("lr: {", "while parsing"),
    ])
    def test_no_recipe(self, text, message, tmp_path):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"recipe.yaml is no recipe: .*{message}"):
            load_recipe(tmp_path / "recipe.yaml")
        with pytest.raises(ValueError, match="no recipe 'imagenet': there is cityscapes, "):
            load_recipe("imagenet")

    def test_of_another_version(self, tmp_path):
        """What a checkpoint says may have fields that come later, or that went."""
        text = f"{RECIPES['finetune']}speed: 7\nweighted: true\n"
        assert parse_recipe(text, "best.safetensors") == RECIPES["finetune"]
        (tmp_path / "recipe.yaml").write_text(f"{RECIPES['finetune']}weighted: true\nchannels_last: true\n")
        assert load_recipe(tmp_path / "recipe.yaml") == RECIPES["finetune"]  # a run that can be gone on with
        for path in (DOCS / "runs").glob("*/*/recipe.yaml"):
            assert parse_recipe(path.read_text(), path).model == path.parts[-3]


class TestTable:
    @pytest.mark.parametrize("name, iterations, batch, lr, base, crop, val, weights", [
        ("cityscapes", 120_000, 12, 0.01, (1024, 2048), (1024, 1024), (1024, 2048), 19),
        ("camvid", 10_000, 12, 0.00025, (720, 960), (720, 960), (720, 960), 11),
        ("nightcity_t", 120_000, 16, 0.01, (512, 1024), (512, 1024), (512, 1024), None),
        ("nightcity_b", 120_000, 16, 0.01, (512, 1024), (1024, 1024), (512, 1024), 19),
    ])
    def test_published(self, name, iterations, batch, lr, base, crop, val, weights):
        recipe = RECIPES[name]
        assert recipe.model == ("bssnet_b" if name == "nightcity_b" else "bssnet_t") and recipe.init == "pidnet_in1k"
        assert (recipe.iterations, recipe.batch_size, recipe.lr) == (iterations, batch, lr)
        assert (recipe.base_size, recipe.crop_size, recipe.val_size) == (base, crop, val)
        assert recipe.class_weights is None if weights is None else len(recipe.class_weights) == weights
        assert (recipe.opt, recipe.momentum, recipe.weight_decay, recipe.poly_power) == ("momentum", 0.9, 5e-4, 0.9)
        assert recipe.decay_all and recipe.warmup_iterations == 0 and recipe.ema_decay == 0
        assert (recipe.train_split, recipe.val_split) == (
            ("trainval", "test") if name == "camvid" else ("train", "val"))

    def test_default(self, root):
        assert default_recipe("folder:x") == default_recipe(f"{root}/data") == "finetune"
        assert default_recipe("camvid:x") == default_recipe(Recipe.data) == "camvid_360x480"
        assert (default_recipe("cityscapes:x"), default_recipe("nightcity:x")) == ("cityscapes", "nightcity_t")

    def test_summary(self):
        assert RECIPES["camvid"].summary() == "recipe camvid"
        recipe = RECIPES["nightcity_b"].with_options(epochs=3, crop_size=(64, 96))
        assert recipe.summary() == "recipe nightcity_b with crop_size=(64, 96), epochs=3, iterations=0"


def test_every_field_is_an_option():
    parser = argparse.ArgumentParser()
    add_recipe_arguments(parser)
    args = parser.parse_args(
        "--model bssnet_b --crop-size 64x96 --epochs 3 --class-weights 1 2 3 --val-size none --init none --compile "
        "--no-decay-all --clip-grad 5".split())
    recipe = recipe_from_arguments(args, RECIPES["camvid"])
    assert recipe == replace(
        RECIPES["camvid"], model="bssnet_b", crop_size=(64, 96), epochs=3, iterations=0, class_weights=(1., 2., 3.),
        val_size=None, init=None, compile=True, decay_all=False, clip_grad=5.)
    for name, value in asdict(recipe.with_options(loss_weights=(1., 1., 0., 0., 1., 1.))).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words = [option if value else option.replace("--", "--no-")]
        else:
            words = [option, *map(str, value if isinstance(value, tuple) else [value])]
        if name.endswith("_size") and isinstance(value, tuple):
            words = [option, "{}x{}".format(*value)]
        found = vars(parser.parse_args(["none" if word == "None" else word for word in words]))[name]
        found = None if found == [None] else tuple(found) if isinstance(found, list) else found
        assert found == value, name


@pytest.mark.parametrize("opt", ["adafactor", "lookahead_madgrad", "Muon", "adamw"])
def test_optimisers_with_and_without_foreach(opt):
    model = torch.nn.Conv2d(3, 4, 1)
    state = create_state(model, replace(RECIPES["finetune"], opt=opt), 10)
    model(torch.ones(1, 3, 2, 2)).sum().backward()
    state.optimizer.step()
    assert state.optimizer.defaults.get("foreach", None) in (None, opt == "adamw")


def test_optimiser():
    """The paper's: plain momentum, decay everywhere. Ours: Nesterov, decay on weights of two or more dimensions."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    (group,) = create_state(model, RECIPES["camvid"], 10).optimizer.param_groups
    assert len(group["params"]) == 4 and group["weight_decay"] == 5e-4 and not group["nesterov"]
    state = create_state(model, RECIPES["camvid_360x480"], 1000)
    decayed = [p for g in state.optimizer.param_groups if g["weight_decay"] for p in g["params"]]
    assert [p.ndim for p in decayed] == [4] and all(g["nesterov"] for g in state.optimizer.param_groups)
    rates = []
    for iteration in (1, 100, 200, 600, 1000):
        state.scheduler.step_update(iteration)
        rates.append(state.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-4, 0.01, 0.02 * 0.8 ** 0.9, 0.02 * 0.4 ** 0.9, 0.])
