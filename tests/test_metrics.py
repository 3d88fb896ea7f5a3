"""IoU as Cityscapes' own scripts count it, border F1 on shapes one can count by hand, and sums over processes."""
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torchvision.datasets import Cityscapes

from bssnet_zoo import BoundaryF1, ConfusionMatrix


def random_maps(num_classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction that is right on most pixels, and labels with ignored ones: (4, 40, 60)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (4, 5, 6), generator=generator)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(10, 2)
    prediction = labels.roll(1, 2)
    wrong = torch.rand(labels.shape, generator=generator) < 0.02
    prediction[wrong] = torch.randint(num_classes, (int(wrong.sum()),), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.05] = 255
    return prediction, labels


def test_confusion_matrix_counts():
    prediction, labels = random_maps()
    matrix = ConfusionMatrix(5)
    for i in range(4):
        matrix.update(prediction[i:i + 1].to(torch.uint8), labels[i:i + 1])
    expected = torch.tensor([[((labels == row) & (prediction == column)).sum() for column in range(5)]
                             for row in range(5)])
    assert torch.equal(matrix.counts, expected)
    valid = labels != 255
    assert matrix.pixel_accuracy == pytest.approx((prediction == labels)[valid].double().mean().item())
    union = [(valid & ((prediction == i) | (labels == i))).sum().item() for i in range(5)]
    assert matrix.iou.tolist() == pytest.approx([expected[i, i].item() / union[i] for i in range(5)])


def test_classes_without_union_are_left_out():
    labels = torch.tensor([[[0, 0, 1, 1, 255]]])
    prediction = torch.tensor([[[0, 1, 1, 1, 3]]])
    matrix = ConfusionMatrix(4)
    matrix.update(prediction, labels)
    assert matrix.iou.tolist() == pytest.approx([1 / 2, 2 / 3, math.nan, math.nan], nan_ok=True)
    assert matrix.miou == pytest.approx(7 / 12)
    assert matrix.pixel_accuracy == 3 / 4


@pytest.mark.parametrize("metric", [ConfusionMatrix, BoundaryF1])
def test_nothing_seen_is_nan(metric):
    metric = metric(3)
    metric.update(torch.zeros(1, 4, 4, dtype=torch.int64), torch.full((1, 4, 4), 255))
    assert metric.counts.sum() == 0
    assert math.isnan(metric.miou if isinstance(metric, ConfusionMatrix) else metric.value)


def write_cityscapes(folder) -> tuple[torch.Tensor, torch.Tensor]:
    """Ground truth and predictions as files in Cityscapes' layout; returns both in train ids."""
    rng = np.random.default_rng(0)
    train_id_of = np.full(256, 255)
    label_id_of = np.zeros(19, np.uint8)
    for entry in Cityscapes.classes:
        if entry.train_id not in (-1, 255):
            train_id_of[entry.id] = entry.train_id
            label_id_of[entry.train_id] = entry.id
    (folder / "results").mkdir()
    predictions, labels = [], []
    for i, city in enumerate(("aachen", "bonn", "bonn")):
        stem = f"{city}_{i:06}_000019"
        ids = rng.integers(0, 33, (8, 16), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        ids[ids == 31] = 7  # no train: a class that is in neither of the maps
        prediction = np.where((train_id_of[ids] < 19) & (rng.random(ids.shape) < 0.7), train_id_of[ids],
                              rng.integers(0, 16, ids.shape))
        city_folder = folder / "gtFine" / "val" / city
        city_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(city_folder / f"{stem}_gtFine_labelIds.png")
        Image.fromarray(label_id_of[prediction]).save(folder / "results" / f"{stem}_pred.png")
        predictions.append(prediction)
        labels.append(train_id_of[ids])
    return torch.from_numpy(np.stack(predictions)), torch.from_numpy(np.stack(labels))


def test_same_as_cityscapes_scripts(tmp_path, monkeypatch):
    scripts = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    prediction, labels = write_cityscapes(tmp_path)
    for name, value in dict(predictionPath=str(tmp_path / "results"), predictionWalk=None, evalInstLevelScore=False,
                            JSONOutput=False, quiet=True).items():
        monkeypatch.setattr(scripts.args, name, value)
    truths = sorted(str(path) for path in tmp_path.glob("gtFine/val/*/*_gtFine_labelIds.png"))
    assert len(truths) == 3
    expected = scripts.evaluateImgLists([scripts.getPrediction(scripts.args, path) for path in truths], truths,
                                        scripts.args)
    matrix = ConfusionMatrix(19)
    matrix.update(prediction, labels)
    assert 0.2 < matrix.miou < 0.9
    assert matrix.miou == pytest.approx(expected["averageScoreClasses"], abs=1e-6)
    for entry in Cityscapes.classes:
        if entry.train_id not in (-1, 255):
            score = expected["classScores"][entry.name]
            assert matrix.iou[entry.train_id].item() == pytest.approx(score, abs=1e-6, nan_ok=True), entry.name
    assert matrix.iou[16].isnan()


def squares(shift: int = 0, down: int = 0) -> torch.Tensor:
    """A 12x12 square of class 1 on class 0, moved right and down."""
    labels = torch.zeros(1, 40, 40, dtype=torch.int64)
    labels[:, 10 + down:22 + down, 10 + shift:22 + shift] = 1
    return labels


def boundary_f1(prediction: torch.Tensor, labels: torch.Tensor, tolerance: int = 2) -> BoundaryF1:
    metric = BoundaryF1(2, tolerance)
    metric.update(prediction, labels)
    return metric


def test_borders_within_the_tolerance_match():
    assert boundary_f1(squares(), squares()).value == 1
    assert boundary_f1(squares(2), squares()).value == 1
    assert boundary_f1(squares(3), squares()).value < 0.9
    assert boundary_f1(squares(3), squares(), tolerance=3).value == 1
    assert boundary_f1(squares(1), squares(), tolerance=0).value < 0.9


def test_tolerance_is_a_disk():
    point, diagonal = torch.zeros(2, 1, 9, 9, dtype=torch.int64)
    point[:, 3, 3] = diagonal[:, 5, 5] = 1
    assert boundary_f1(point, diagonal, tolerance=2).f1[1] == 0
    assert boundary_f1(point, diagonal, tolerance=3).f1[1] == 1


def test_precision_and_recall_are_accumulated_over_the_data_set():
    metric = BoundaryF1(2)
    metric.update(squares(), squares())
    nothing = torch.zeros_like(squares())
    metric.update(squares(), nothing)
    # Borders of a 12x12 square: 44 pixels inside, 48 outside, the corners touch none. Half of the predicted ones is
    # right, all expected ones are found.
    assert metric.counts.tolist() == [[48, 44], [96, 88], [48, 44], [48, 44]]
    assert metric.value == pytest.approx(2 / 3)
    metric.update(nothing, squares())
    assert metric.value == pytest.approx(1 / 2)


def test_wrong_class_is_no_match_and_ignored_pixels_make_no_border():
    metric = BoundaryF1(4)
    metric.update(squares() + 2, squares())
    assert metric.f1.tolist() == [0] * 4
    labels = squares()
    labels[:, 8:24, 8:24] = 255
    assert boundary_f1(squares(), labels).counts.sum() == 0


@pytest.mark.parametrize("metric", [ConfusionMatrix, BoundaryF1])
@pytest.mark.parametrize("prediction, labels, words", [
    (squares() + 1, squares(), "prediction 2 is outside the 2 classes, 0-1"),
    (squares(), squares() + 6, "label 6 is outside the 2 classes"),
    (squares() - 1, squares(), "prediction -1 is outside"),
    (squares(), squares()[0], r"both be \(N, H, W\), got \(1, 40, 40\) and \(40, 40\)"),
    (squares()[:, None], squares()[:, None], r"both be \(N, H, W\), got \(1, 1, 40, 40\)"),
    (squares().float(), squares(), "torch.float32.*argmax"),
])
def test_refuses_bad_maps(metric, prediction, labels, words):
    metric = metric(2)
    with pytest.raises(ValueError, match=words):
        metric.update(prediction, labels)
    assert metric.counts.sum() == 0


@pytest.mark.parametrize("metric, arguments, words", [
    (ConfusionMatrix, dict(num_classes=0), "num_classes must be 1 or more, got 0"),
    (BoundaryF1, dict(num_classes=0), "num_classes must be 1 or more, got 0"),
    (BoundaryF1, dict(num_classes=2, tolerance=-1), "0 or more, got -1"),
])
def test_refuses_bad_settings(metric, arguments, words):
    with pytest.raises(ValueError, match=words):
        metric(**arguments)


def count_half(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    prediction, labels = random_maps()
    half = slice(2 * rank, 2 * rank + 2)
    for metric in (ConfusionMatrix(5), BoundaryF1(5)):
        metric.update(prediction[half], labels[half])
        metric.reduce()
        torch.save(metric.counts, f"{folder}/{type(metric).__name__}{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_count_what_one_counts(tmp_path):
    other = torch.multiprocessing.get_context("spawn").Process(target=count_half, args=(1, str(tmp_path)))
    other.start()
    count_half(0, str(tmp_path))
    other.join()
    for metric in (ConfusionMatrix(5), BoundaryF1(5)):
        metric.update(*random_maps())
        metric.reduce()
        for rank in (0, 1):
            assert torch.equal(torch.load(tmp_path / f"{type(metric).__name__}{rank}.pth"), metric.counts)
