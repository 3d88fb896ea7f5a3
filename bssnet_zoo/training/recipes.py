"""Recipes: everything that decides what a training run computes, as one frozen dataclass and a table of them."""
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from ..data.classes import CAMVID, CITYSCAPES
from ..data.datasets import SPLITS, same_data
from ..device import PRECISIONS
from ..files import atomic_path, parse_yaml
from ..models.bssnet import MIN_SIZE

__all__ = ["RECIPES", "Recipe", "load_recipe", "parse_recipe", "save_recipe"]


def option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """A training recipe. Sizes are (height, width); an iteration is one update of the weights.

    Raises:
        ValueError: A value that can't work.

    Example:
        >>> recipe = RECIPES["finetune"].with_options(data="folder:data/mine", epochs=20)
        >>> recipe.model, recipe.epochs, recipe.lr
        ('bssnet_t', 20, 0.005)
    """

    model: str = option("bssnet_t", "bssnet_t or bssnet_b")
    init: str | None = option(None, "initial weights: a tag (camvid, street, pidnet_in1k), a checkpoint file, or for "
                              "bssnet_b widen:FILE with the checkpoint of a bssnet_t")
    data: str = option("camvid:data/camvid", "camvid:DIR, cityscapes:DIR, nightcity:DIR or folder:DIR")
    more_data: tuple[str, ...] | None = option(None, "further data sets of the same classes to train on; their images "
                                                     "take the place of those of the same split and name")
    teacher_labels: str | None = option(None, "folder with a teacher's label maps, SPLIT/NAME.png for an image NAME, "
                                              "255 where it isn't sure")
    teacher_weight: float = option(0.3, "weight of the cross-entropy on the teacher's label maps")
    train_split: str = option("train", "split to train on: train, or trainval")
    val_split: str = option("val", "split to validate on: val or test")

    base_size: tuple[int, int] = option((360, 480), "size to which images are resized, times a random scale")
    scale_range: tuple[float, float] = option((0.5, 2.), "range of the random scale")
    crop_size: tuple[int, int] = option((352, 480), "size of the random crop")
    val_size: tuple[int, int] | None = option(
        None, "size of the images in validation, of which the shorter side counts; base_size if left out")
    gamma: float = option(0., "largest natural logarithm of a random gamma, for other light; 0 leaves it out")
    class_mix: float = option(0., "share of the images that get the pixels of half of the classes of another one")
    class_weights: tuple[float, ...] | None = option(None, "weight of each class in the cross-entropy")
    loss_weights: tuple[float, ...] = option((1., 1., 1., 1., 1., 1.), "factors of the losses seg, seg_border, border, "
                                             "spatial, aux3 and aux4")

    epochs: int = option(0, "length of the run in epochs; 0 if iterations says it")
    iterations: int = option(0, "length of the run in iterations; 0 if epochs says it")
    batch_size: int = option(12, "images in an iteration, over all processes and accumulation steps")
    grad_accum: int = option(1, "steps over which the images of an iteration are spread, to save memory")
    opt: str = option("momentum", "timm's name of the optimiser; 'sgd' is the one with Nesterov")
    lr: float = option(0.01, "learning rate")
    momentum: float = option(0.9, "momentum")
    weight_decay: float = option(5e-4, "weight decay")
    decay_all: bool = option(True, "weight decay on biases and norm layers too")
    layer_decay: float | None = option(None, "factor of the learning rate from each layer to the one before it")
    warmup_iterations: int = option(0, "iterations in which the learning rate rises from 0")
    poly_power: float = option(0.9, "power of the polynomial decay to 0")
    clip_grad: float | None = option(None, "largest norm of the gradient")
    ema_decay: float = option(0., "decay of the averaged weights, which are validated and kept; 0 keeps the weights")
    sync_bn: bool = option(True, "statistics of BatchNorm over all processes (CUDA only)")
    freeze_bn: bool = option(False, "leave BatchNorm's statistics and weights as they are at the start")

    feature_teacher: str | None = option(None, "encoder of timm whose features the trunk learns to predict as well, "
                                         "for example tf_efficientnet_lite2")
    feature_checkpoint: str | None = option(None, "weights of the feature teacher instead of timm's own")
    feature_weight: float = option(1., "weight of the loss on the feature teacher's features")

    device: str | None = option(None, "cpu, cuda, cuda:1 or mps; if left out, a GPU if there is one")
    precision: str = option("float32", f"{', '.join(PRECISIONS)}: the latter two are mixed precision")
    compile: bool = option(False, "torch.compile the model")
    cache: bool = option(False, "keep decoded images in the memory of each worker")
    workers: int = option(2, "processes that load images; 0 loads in the training process, which is the fastest with "
                             "a cache on few cores. Never changes a result")
    seed: int = option(0, "seed of everything random")
    checkpoint_every: int = option(100, "iterations between checkpoints to resume from")
    validate_every: int = option(1, "epochs between validations")

    def __post_init__(self) -> None:
        for name, hint in _types().items():
            value = getattr(self, name)
            if not _fits(value, hint):
                advice = " (YAML takes 1e-3 for a text: write 1.0e-3)" if isinstance(value, str) else ""
                raise ValueError(f"{name} must be {_words(hint)}, got {value!r}{advice if _fits(0., hint) else ''}")
        architecture, _, tag = self.model.partition(".")
        if tag:
            raise ValueError(f"model is an architecture, got '{self.model}': to start from these weights give --model "
                             f"{architecture} --init {tag}")
        if (self.epochs > 0) == (self.iterations > 0) or min(self.epochs, self.iterations) < 0:
            raise ValueError("a recipe has either epochs or iterations, 1 or more of them, got "
                             f"epochs={self.epochs} and iterations={self.iterations}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be {', '.join(PRECISIONS)}, got '{self.precision}'")
        for f in fields(self):
            value = getattr(self, f.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(x) for x in numbers if isinstance(x, float)):
                raise ValueError(f"{f.name} must be finite, got {value}")
        for name in ("batch_size", "grad_accum", "lr", "checkpoint_every", "validate_every", "clip_grad",
                     "class_weights", "poly_power"):
            self._check(name, lambda x: x > 0, "more than 0")
        for name in ("teacher_weight", "feature_weight", "weight_decay", "warmup_iterations", "gamma", "loss_weights",
                     "workers", "seed"):
            self._check(name, lambda x: x >= 0, "0 or more")
        self._check("class_mix", lambda x: 0 <= x <= 1, "a share, 0 to 1")
        self._check("momentum", lambda x: 0 <= x < 1, "in [0, 1)")
        self._check("layer_decay", lambda x: 0 < x <= 1, "in (0, 1]")
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range must be two ascending numbers above 0, got {self.scale_range}")
        for name in ("base_size", "crop_size", "val_size"):
            size = getattr(self, name)
            if size is not None and min(size) < MIN_SIZE:
                raise ValueError(f"{name} must be {MIN_SIZE} or more high and wide, got {size}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")

    def _check(self, name: str, allowed: Callable[[Any], bool], what: str) -> None:
        """Raises ValueError if a number, or one of several, isn't allowed; None is."""
        value = getattr(self, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not allowed(number):
                raise ValueError(f"{name} must be {what}, got {value}")

    def with_options(self, **options: Any) -> "Recipe":
        """This recipe with some fields replaced; a length in epochs replaces one in iterations and vice versa."""
        if options.get("epochs"):
            options = {"iterations": 0, **options}
        elif options.get("iterations"):
            options = {"epochs": 0, **options}
        return replace(self, **options)

    @property
    def shorter_side(self) -> tuple[int]:
        """Of the images in validation; with it the weights are saved, and `Predictor` takes it from there."""
        return (min(self.val_size or self.base_size),)

    def trains_on(self, data: str, split: str) -> bool:
        """Whether images of a data set's split are among those to train on, as far as kind and folder tell."""
        specs = (self.data, *(self.more_data or ()))
        return bool(set(SPLITS[split]) & set(SPLITS[self.train_split])) and any(same_data(s, data) for s in specs)

    def __str__(self) -> str:
        """The recipe as YAML, as it is saved."""
        def plain(value: Any) -> Any:
            if isinstance(value, tuple):
                return [plain(each) for each in value]
            return value.item() if hasattr(value, "item") else value  # a number of NumPy

        values = {key: plain(value) for key, value in asdict(self).items()}
        return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)

    def summary(self) -> str:
        """The one of `RECIPES` that it is nearest to, and what differs.

        Example:
            >>> RECIPES["finetune"].with_options(lr=0.01, val_size=None).summary()
            'recipe finetune with val_size=None, lr=0.01'
        """
        values = asdict(self)
        others = {name: [f"{key}={values[key]!r}" for key, value in asdict(recipe).items() if values[key] != value]
                  for name, recipe in RECIPES.items()}
        name = min(others, key=lambda name: len(others[name]))
        return f"recipe {name} with {', '.join(others[name])}" if others[name] else f"recipe {name}"


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(Recipe)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type that a field of `Recipe` has; NumPy's numbers are numbers."""
    if isinstance(hint, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if get_origin(hint) is tuple:
        kind, *rest = get_args(hint)
        return isinstance(value, tuple) and (rest == [...] or len(value) == 1 + len(rest)) and all(
            _fits(each, kind) for each in value)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    """A type of a field of `Recipe`, for messages."""
    if isinstance(hint, UnionType):
        return " or ".join(map(_words, get_args(hint)))
    if get_origin(hint) is tuple:
        kind, *rest = get_args(hint)
        plural = {int: "whole numbers", float: "numbers", str: "texts"}[kind]
        return f"a list of {plural}" if rest == [...] else f"{1 + len(rest)} {plural}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "nothing"}[hint]


_CITYSCAPES = Recipe(
    init="pidnet_in1k", data="cityscapes:data/cityscapes", base_size=(1024, 2048), crop_size=(1024, 1024),
    val_size=(1024, 2048), class_weights=CITYSCAPES.class_weights, iterations=120_000, validate_every=10, workers=4)
_NIGHTCITY = replace(
    _CITYSCAPES, data="nightcity:data/nightcity", base_size=(512, 1024), val_size=(512, 1024), batch_size=16)

_CAMVID_HALF = Recipe(
    train_split="trainval", val_split="test", class_weights=CAMVID.class_weights, epochs=100, batch_size=8, opt="sgd",
    lr=0.02, decay_all=False, warmup_iterations=200, ema_decay=0.998, validate_every=5, cache=True, workers=0)

RECIPES: dict[str, Recipe] = {
    "cityscapes": _CITYSCAPES,
    "camvid": replace(
        _CITYSCAPES, data="camvid:data/camvid", train_split="trainval", val_split="test", base_size=(720, 960),
        crop_size=(720, 960), val_size=(720, 960), class_weights=CAMVID.class_weights, iterations=10_000, lr=0.00025),
    "nightcity_t": replace(_NIGHTCITY, crop_size=(512, 1024), class_weights=None),
    "nightcity_b": replace(_NIGHTCITY, model="bssnet_b"),
    "camvid_360x480": _CAMVID_HALF,
    "camvid_720x960": replace(
        _CAMVID_HALF, init="camvid", base_size=(720, 960), scale_range=(0.6, 2.), crop_size=(704, 960),
        val_size=(720, 960), gamma=0.5, class_mix=0.5, epochs=10, lr=0.01),
    "finetune": Recipe(
        init="camvid", data="folder:data/mine", base_size=(540, 960), val_size=(540, 960), crop_size=(512, 512),
        epochs=50, batch_size=8, opt="sgd", lr=0.005, decay_all=False, warmup_iterations=50, ema_decay=0.998,
        validate_every=5),
}


# fields that went, and the only value that is still computed by
GONE: dict[str, Any] = {"weighted": True, "channels_last": True}


def load_recipe(name: str | os.PathLike) -> Recipe:
    """A recipe of `RECIPES` by its name, or from a file that `save_recipe` wrote.

    Raises:
        ValueError: Neither, or a file that is no recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    try:
        text = Path(name).read_text(encoding="utf-8")
    except OSError:
        raise ValueError(f"no recipe '{name}': there is {', '.join(RECIPES)}, or give a recipe.yaml") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no recipe: {error}") from None
    return parse_recipe(text, name, strict=True)


def parse_recipe(text: str, source: object, strict: bool = False) -> Recipe:
    """A recipe from its YAML.

    Args:
        text: The YAML.
        source: Where it is from, for messages.
        strict: Refuse fields that this version doesn't have. The note of a checkpoint may be of another version: it
            says what was trained, and what is unknown in it is passed over.

    Raises:
        ValueError: It is none; the message names the source.
    """
    try:
        saved = parse_yaml(text)
        if not isinstance(saved, dict):
            raise ValueError("it has no lines like 'lr: 0.01'")
        unknown = [key for key in saved if key not in _types()]
        if strict and (refused := [key for key in unknown if key not in GONE or saved[key] != GONE[key]]):
            raise ValueError(f"it has {refused[0]!r}, which is no field")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()
            if key not in unknown}
        return Recipe(**values)
    except ValueError as error:
        raise ValueError(f"{source} is no recipe: {error}") from None


def save_recipe(recipe: Recipe, path: str | os.PathLike) -> None:
    """Writes a recipe as YAML."""
    with atomic_path(path) as temporary:
        temporary.write_text(str(recipe))
