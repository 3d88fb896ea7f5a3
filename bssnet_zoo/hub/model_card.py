"""The model card of a Hub repository: what the weights are, how to use them, what was measured, where they fail."""
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from torch import nn

from ..data.classes import ClassInfo
from ..files import sha256
from ..models import BSSNet, create_model
from ..models.bssnet import as_bssnet
from ..models.checkpoints import TRAINING_HEADS
from ..models.config import class_info
from ..models.summary import count_multiply_adds, count_parameters
from ..models.weights import ASSETS, WEIGHTS

__all__ = ["Provenance", "model_card"]

TEMPLATE = ASSETS / "model_card.md"

CAMVID_CITATION = """
```bibtex
@article{brostow2009semantic,
  author  = {Brostow, Gabriel J. and Fauqueur, Julien and Cipolla, Roberto},
  title   = {Semantic object classes in video: A high-definition ground truth database},
  journal = {Pattern Recognition Letters},
  volume  = {30},
  number  = {2},
  year    = {2009}
}
```
"""
CAMVID_USE = " The weights are for research: the terms of their data allow nothing else."
DATA_LIMITS = "- Trained on {dataset}. Expect less on other cameras, places, weather and times of day."
LIMITS = """\
- Every pixel gets one of the {num_classes} classes: what belongs to none of them is given the one it resembles most.
- Softmax values are not calibrated probabilities, and nothing tells an image of another kind from a good one.
- Nothing here has been validated for driving or any other use that people's safety depends on."""
CAMVID_LIMITS = """\
- **Thin and small things** are often missed: see pole, sign, fence and pedestrian in the table of classes.
- **Bright walls** may become sky, and sidewalk may become road."""
CAMVID_FAILURES = """

![Image, label and prediction, a row for each kind of error](failures.jpg)

*Test images on which these weights fail the most: for each kind of error, the image with the most such pixels, cut to
where they are. Colours are those of the table of classes; black is unlabelled.*"""
# title, class, what it was taken for (anything, if that is empty): what experiments/pictures.py finds in test images
FAILURES = (
    ("walls as sky", "building", ("sky",)),
    ("poles not found", "pole", ()),
    ("people not found", "pedestrian", ()),
    ("sidewalk as road", "sidewalk", ("road",)),
)
PAPER_CAMVID_MIOU = {"bssnet_t": 79.5, "bssnet_b": 81.6}


@dataclass(frozen=True)
class Provenance:
    """What a card has to say about weights that can't be read from them.

    Attributes:
        dataset: Name of the data set they were trained on.
        dataset_id: The same as an identifier: lower case, no spaces.
        data: How ``bssnet-zoo eval --data`` names it.
        training: How they were trained, in a sentence.
        license: Licence identifier of the Hub.
        license_name: Name of a licence that is ``other``.
        metrics: What was measured on it, in %: ``miou``, maybe ``pixel_accuracy`` and ``iou`` of each class.
        split: The split it was measured on.
        size: What images are resized to, (height, width) or the shorter side; None for their own size.
        precision: The precision it was measured with.
        sample_source: Where the sample image comes from, a sentence.
        trained_on: All data sets, if there were others than ``dataset``.
    """

    dataset: str
    dataset_id: str
    data: str
    training: str
    license: str
    license_name: str | None = None
    metrics: dict = field(default_factory=dict)
    split: str | None = None
    size: tuple[int, ...] | None = None
    precision: str = "float32"
    sample_source: str = ""
    trained_on: str = ""

    def eval_command(self, repo_id: str) -> str:
        split = f" --split {self.split}" if self.split else ""
        size = " --size " + "x".join(map(str, self.size)) if self.size else " --size full"
        precision = f" --precision {self.precision}" if self.precision != "float32" else ""
        return f"bssnet-zoo eval --model hf-hub:{repo_id} --data {self.data}{split}{size}{precision}"


def _card_data(repo_id: str, architecture: str, provenance: Provenance) -> ModelCardData:
    metrics, results = provenance.metrics, []
    for key, kind, name in (("miou", "mean_iou", "mIoU"), ("pixel_accuracy", "accuracy", "pixel accuracy")):
        if key in metrics:
            results.append(EvalResult(
                task_type="image-segmentation", task_name="Semantic Segmentation",
                dataset_type=provenance.dataset_id, dataset_name=provenance.dataset, dataset_split=provenance.split,
                metric_type=kind, metric_name=f"{name} (%)", metric_value=metrics[key],
                metric_args={"command": provenance.eval_command(repo_id)}))
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-segmentation",
        license=provenance.license,
        license_name=provenance.license_name,
        license_link="LICENSE.md" if provenance.license_name else None,
        datasets=[provenance.dataset_id],
        metrics=["mean_iou"] if results else None,
        tags=["timm", "image-segmentation", "semantic-segmentation", "real-time", "bssnet", architecture],
        model_name=repo_id.partition("/")[2],
        eval_results=results or None,
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [[" ".join(cell.split()).replace("|", r"\|").replace("<", "&lt;") for cell in row]  # names may be anything
             for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _classes(classes: ClassInfo, iou: dict[str, float]) -> str:
    rows = [[str(i), name, f"`{colour}`"] for i, (name, colour) in
            enumerate(zip(classes.names, classes.hex_palette, strict=True))]
    if not iou:
        return _table(["id", "class", "colour"], rows)
    rows = [[*row, f"{iou[name]:.1f}"] for row, name in zip(rows, classes.names, strict=True)]
    return _table(["id", "class", "colour", "IoU %"], rows)


def _evaluation(repo_id: str, architecture: str, provenance: Provenance) -> str:
    metrics, command = provenance.metrics, provenance.eval_command(repo_id)
    if not metrics:
        return f"No accuracy was measured when this was published. To measure it: `{command}`"
    name = repo_id.partition("/")[2]
    rows = {f"**{name}**": (provenance.size, metrics)}
    if name in WEIGHTS:
        rows |= {other: (weights.size, weights.metrics) for other, weights in WEIGHTS.items() if other != name}
    table = _table(["model", "input", "mIoU %", "pixel accuracy %"], [
        [row, "x".join(map(str, size)) if size else "own size", f"{values['miou']:.2f}",
         f"{values['pixel_accuracy']:.2f}" if "pixel_accuracy" in values else ""]
        for row, (size, values) in rows.items()])
    on = f"{provenance.dataset}, {provenance.split} split" if provenance.split else provenance.dataset
    how = f"whole images, one scale, no flip, {provenance.precision}"
    text = f"{on}; {how}:\n\n{table}\n\n```bash\n{command}\n```"
    if name in WEIGHTS:
        text += (f"\n\nThe paper gives {PAPER_CAMVID_MIOU[architecture]} % for this network on CamVid, trained at "
                 "720 x 960 from an ImageNet trunk. Its weights were never published, and these, trained from random "
                 "weights, don't reach it.")
    if "other_streets" in metrics:
        text += ("\n\nOn streets of other cities, the 203 test photographs of LabelMeFacade, the mean IoU of sky, "
                 f"building, road, sidewalk, tree and car is {metrics['other_streets']:.1f} %.")
    return text


def _licence(provenance: Provenance) -> str:
    if provenance.license_name:
        return ("For research only, under the terms of the images that the weights and the pictures here come from: "
                "[LICENSE.md](LICENSE.md). The code of `bssnet-zoo` is under Apache-2.0.")
    return f"The weights: {provenance.license}. The code of `bssnet-zoo` is under Apache-2.0."


def _model_facts(model: BSSNet) -> dict[str, object]:
    cfg = model.pretrained_cfg
    _, height, width = cfg["input_size"]
    # a twin without memory: counting takes a forward pass
    twin = as_bssnet(create_model(cfg["architecture"], num_classes=model.num_classes, device="meta")).eval()
    channels = [str(info["num_chs"]) for info in model.feature_info]
    return dict(
        variant=cfg["architecture"][-1].upper(),
        num_classes=model.num_classes,
        height=height,
        width=width,
        short_side=min(height, width),
        mean=", ".join(map(str, cfg["mean"])),
        std=", ".join(map(str, cfg["std"])),
        params=f"{count_parameters(model) / 1e6:.2f}",
        gmacs=f"{count_multiply_adds(twin, height, width) / 1e9:.2f}",
        stride=8 if isinstance(model.get_submodule("decoder.refine"), nn.Identity) else 4,
        channels=f"{', '.join(channels[:-1])} and {channels[-1]}",
    )


def _file_facts(weights: Path) -> dict[str, str]:
    with safe_open(weights, "pt") as file:
        heads = any(name.startswith(TRAINING_HEADS) for name in file.keys())
    return dict(
        sha256=sha256(weights),
        megabytes=f"{weights.stat().st_size / 1e6:.1f}",
        training_heads=", the heads for training included" if heads else "",
    )


def model_card(model: BSSNet, repo_id: str, weights: Path, provenance: Provenance) -> ModelCard:
    """The model card of published weights.

    Args:
        model: The model as it loads from the repository; its pretrained config has the image size and the classes.
        repo_id: The repository, ``organization/model.tag``.
        weights: The ``.safetensors`` file in it.
        provenance: What the weights themselves don't say.
    """
    architecture, name = model.pretrained_cfg["architecture"], repo_id.partition("/")[2]
    limits = LIMITS.format(num_classes=model.num_classes)
    if name in WEIGHTS:
        limits = f"- {WEIGHTS[name].limits}\n{CAMVID_LIMITS}\n{limits}{CAMVID_FAILURES}"
    else:
        limits = f"{DATA_LIMITS.format(dataset=provenance.dataset)}\n{limits}"
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        _model_facts(model),
        **_file_facts(weights),
        name=name,
        repo_id=repo_id,
        sample_source=provenance.sample_source,
        dataset=provenance.trained_on or provenance.dataset,
        training=provenance.training,
        classes=_classes(class_info(model), provenance.metrics.get("iou", {})),
        evaluation=_evaluation(repo_id, architecture, provenance),
        use=CAMVID_USE if name in WEIGHTS else "",
        limits=limits,
        licence=_licence(provenance),
        data_citation=CAMVID_CITATION if name in WEIGHTS else "",
    )
    data = _card_data(repo_id, architecture, provenance)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text.rstrip()}\n")
