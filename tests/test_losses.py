"""Losses give the authors' numbers, survive odd batches, and refuse what makes no sense with words."""
import json

import fill
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, filled, image
from torch.utils._python_dispatch import TorchDispatchMode

import bssnet_zoo
from bssnet_zoo import BoundaryLoss, BSSNetLoss, BSSNetOutput, OhemCrossEntropyLoss
from bssnet_zoo.data.classes import CITYSCAPES
from bssnet_zoo.data.edges import edge_map
from bssnet_zoo.losses import bssnet_loss, resized
from bssnet_zoo.models.checkpoints import convert_names

PUBLISHED_LOSSES = {
    "seg": "decode.loss_sem_i",
    "seg_border": "decode.loss_sem_bd",
    "border": "decode.loss_bd",
    "spatial": "decode.loss_detail",
    "aux3": "aux_0.loss_ce",
    "aux4": "aux_1.loss_ce",
    "total": "total",
}


@pytest.fixture(scope="module")
def golden_numbers():
    return json.loads((GOLDEN / "golden.json").read_text())


def golden_labels() -> torch.Tensor:
    return torch.from_numpy(fill.label((2, 96, 160), 19))


def golden_output(golden, letter: str) -> BSSNetOutput:
    maps = {name: torch.from_numpy(golden[f"{letter}_train_{name}"])
            for name in ("seg", "border", "spatial", "aux0", "aux1")}
    return BSSNetOutput(maps["seg"], maps["border"], maps["spatial"], (maps["aux0"], maps["aux1"]))


def test_losses_and_gradients_of_the_published_code(variant, published, golden_numbers):
    model = bssnet_zoo.create_model(
        variant, num_classes=19, aux_heads=True, drop_rate=0., checkpoint_path=published(variant)).train()
    images = image(2, 3, 96, 160)
    found = BSSNetLoss(CITYSCAPES.class_weights)(model(images), images, golden_labels())
    found.total.backward()
    for name, published_name in PUBLISHED_LOSSES.items():
        expected = golden_numbers[f"{variant[-1]} train {published_name}"]
        assert getattr(found, name).item() == pytest.approx(expected, rel=1e-4), name

    published_names = list(filled(variant))
    ours = dict(zip(
        published_names, convert_names({name: torch.empty(0) for name in published_names}), strict=True))
    prefix = f"{variant[-1]} grad-norm "
    norms = {key.removeprefix(prefix): norm for key, norm in golden_numbers.items() if key.startswith(prefix)}
    assert len(norms) == 5
    for name, expected in norms.items():
        assert model.get_parameter(ours[name]).grad.norm().item() == pytest.approx(expected, rel=1e-2), name


@pytest.mark.parametrize("letter", "tb")
def test_single_losses_of_the_published_code(golden, golden_numbers, letter):
    output = golden_output(golden, letter)
    for min_kept in (100, 131072):
        found = OhemCrossEntropyLoss(min_kept=min_kept)(output.seg, golden_labels()).item()
        assert found == pytest.approx(golden_numbers[f"{letter} ohem thres .9 min_kept {min_kept} on seg"], rel=1e-4)
    found = BoundaryLoss()(output.border, edge_map(golden_labels())).item()
    assert found == pytest.approx(golden_numbers[f"{letter} boundary weight 20"], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_edge_map_of_the_published_code(golden, dtype):
    assert torch.equal(edge_map(golden_labels().to(dtype)), torch.from_numpy(golden["edge_map"]))


@pytest.mark.parametrize("dtype, ignore_index", [(torch.int64, -1), (torch.int32, 100), (torch.uint8, 7)])
def test_edge_map_ignores_any_index(dtype, ignore_index):
    labels = torch.zeros(1, 9, 9, dtype=torch.int64)
    labels[:, :, 4:] = ignore_index
    assert edge_map(labels.to(dtype), ignore_index).sum() == 0
    labels[:, :, 4:] = 1
    assert edge_map(labels.to(dtype), ignore_index).sum() > 0


# The same losses the obvious way: everything at full size, sorted.

def plain_resize(x, size, align_corners=True):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def plain_kept(logits, labels, threshold, min_kept):
    valid = labels != 255
    prob = logits.softmax(1).gather(1, labels.where(valid, 0)[:, None])[:, 0]
    ascending = prob[valid].sort().values
    if len(ascending) == 0:
        return valid
    return valid & (prob < max(threshold, ascending[min(min_kept, len(ascending) - 1)].item()))


def plain_ohem(logits, labels, class_weights, threshold, min_kept):
    kept = plain_kept(logits, labels, threshold, min_kept)
    pixel_losses = F.cross_entropy(logits, labels, class_weights, ignore_index=255, reduction="none")[kept]
    return pixel_losses.mean() if kept.any() else 0 * logits.sum()


def plain_boundary(logits, edges):
    num_edge, num_rest = (edges == 1).sum(), (edges == 0).sum()
    weights = torch.zeros_like(logits)
    weights[edges == 1] = num_rest / (num_edge + num_rest)
    weights[edges == 0] = num_edge / (num_edge + num_rest)
    target = (edges == 1).to(logits.dtype)
    prob = logits.sigmoid()
    return -20 * (weights * (target * prob.log() + (1 - target) * (1 - prob).log())).mean()


def plain_bssnet_losses(output, images, labels, class_weights, min_kept, aux_min_kept):
    size = labels.shape[1:]
    seg, border = plain_resize(output.seg, size), plain_resize(output.border, size)[:, 0]
    labels_border = labels.where(border.sigmoid() > 0.8, 255)
    found = [
        plain_ohem(seg, labels, class_weights, 0.9, min_kept),
        plain_ohem(seg, labels_border, class_weights, 0.9, min_kept),
        plain_boundary(border, edge_map(labels)),
        (plain_resize(output.spatial, size) - images).abs().mean(),
    ]
    for logits in output.aux:
        logits = plain_resize(logits, size, align_corners=False)
        kept = plain_kept(logits, labels, 0.7, aux_min_kept * len(labels))
        found.append((F.cross_entropy(logits, labels, ignore_index=255, reduction="none") * kept).mean())
    return found


def random_case(size=(45, 61), num_classes=5, confidence=8., seed=0, dtype=torch.float64):
    """Maps of a network that is right most of the time, its images and labels."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    labels = torch.randint(num_classes, (2, -(-height // 9), -(-width // 9)), generator=generator)
    labels = labels.repeat_interleave(9, 1).repeat_interleave(9, 2)[:, :height, :width].contiguous()
    onehot = F.one_hot(labels, num_classes).movedim(-1, 1).double()
    labels[:, 4:15, 10:30] = 255

    def noise(channels, stride):
        shape = (2, channels, -(-height // stride), -(-width // stride))
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def logits(stride):
        x = noise(num_classes, stride)
        return (x + confidence * F.interpolate(onehot, size=x.shape[2:], mode="area")).to(dtype).requires_grad_()

    output = BSSNetOutput(logits(8), (2 * noise(1, 8)).to(dtype).requires_grad_(),
                          noise(3, 8).to(dtype).requires_grad_(), (logits(16), logits(32)))
    return output, noise(3, 1).to(dtype), labels


def leaves(output):
    return [*output[:3], *output.aux]


@pytest.mark.parametrize("min_kept", [0, 30, 1000, 3000, 131072])
@pytest.mark.parametrize("size, confidence", [((45, 61), 8.), ((64, 96), 0.), ((33, 40), 30.)])
@pytest.mark.parametrize("strip", [2 ** 10, 2 ** 19])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_as_the_obvious_way(monkeypatch, min_kept, size, confidence, strip, dtype):
    monkeypatch.setattr(resized, "CPU_STRIP", strip)
    output, images, labels = random_case(size, confidence=confidence, dtype=dtype)
    class_weights = torch.tensor([0.5, 1., 2., 0., 1.5])
    criterion = BSSNetLoss(class_weights, min_kept=min_kept, aux_min_kept=min_kept // 2)
    found = criterion(output, images, labels)
    expected = plain_bssnet_losses(output, images, labels, class_weights.to(dtype), min_kept, min_kept // 2)
    # The weights of the boundary loss are shares in float32, images are compared in float32.
    torch.testing.assert_close(torch.stack([*found]).to(dtype), torch.stack(expected), rtol=1e-5, atol=1e-9)
    found_grads = torch.autograd.grad(found.total, leaves(output))
    expected_grads = torch.autograd.grad(sum(expected), leaves(output))
    for found_grad, expected_grad in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(found_grad, expected_grad, rtol=1e-4, atol=1e-8)


def test_the_cases_above_cover_every_regime_of_min_kept():
    output, _, labels = random_case((33, 40), confidence=30.)
    prob = bssnet_loss.resized_nll(output.seg, labels.where(labels != 255, 0)).neg().exp()[labels != 255]
    assert 30 < (prob < 0.9).sum() < 1000 < len(prob) < 3000


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size, new_size", [((3, 4), (8, 6)), ((5, 5), (5, 5)), ((7, 6), (3, 4)), ((1, 1), (4, 3))])
def test_gradient_of_resized_nll(monkeypatch, size, new_size, align_corners):
    monkeypatch.setattr(resized, "CPU_STRIP", 60)
    torch.manual_seed(0)
    logits = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    target = torch.randint(3, (2, *new_size))
    torch.testing.assert_close(
        bssnet_loss.resized_nll(logits, target, align_corners),
        F.cross_entropy(plain_resize(logits, new_size, align_corners), target, reduction="none"))
    assert torch.autograd.gradcheck(lambda x: bssnet_loss.resized_nll(x, target, align_corners), (logits,))


class LargestResult(TorchDispatchMode):
    """The number of elements of the largest tensor that an operator makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_resized_logits_never_exist_as_a_whole(monkeypatch):
    monkeypatch.setattr(resized, "CPU_STRIP", 2 ** 12)
    logits = torch.randn(2, 19, 4, 4, requires_grad=True)
    with LargestResult() as largest:
        OhemCrossEntropyLoss()(logits, torch.randint(19, (2, 64, 64))).backward()
    assert largest.numel < 2 * 19 * 64 * 64 / 10


def test_selects_only_if_too_few_pixels_are_hard(monkeypatch):
    selections = []
    monkeypatch.setattr(bssnet_loss, "kth_largest", lambda nll, index: selections.append(index) or nll.min())
    logits, labels = torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
    OhemCrossEntropyLoss(min_kept=63)(logits, labels)
    assert selections == []
    OhemCrossEntropyLoss(min_kept=50, threshold=0.2)(logits, labels)
    assert selections == [50]


@pytest.mark.parametrize("kth_largest", [bssnet_loss.kth_largest, bssnet_loss.torch_kth_largest])
def test_kth_largest(kth_largest):
    values = torch.rand(7, 11)
    for index in (0, 30, 76):
        assert kth_largest(values, index) == values.flatten().sort(descending=True).values[index]


def test_autocast_changes_nothing():
    output, images, labels = random_case(dtype=torch.float32)
    expected = BSSNetLoss()(output, images, labels)
    expected_grads = torch.autograd.grad(expected.total, leaves(output))
    with torch.autocast("cpu", torch.bfloat16):
        found = BSSNetLoss()(output, images, labels)
        found_grads = torch.autograd.grad(found.total, leaves(output))
    assert torch.equal(torch.stack([*found]), torch.stack([*expected]))
    for found_grad, expected_grad in zip(found_grads, expected_grads, strict=True):
        assert torch.equal(found_grad, expected_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_maps_are_computed_in_float32(dtype):
    logits = torch.randn(2, 5, 6, 6).to(dtype).requires_grad_()
    labels = torch.randint(5, (2, 40, 40))
    loss = OhemCrossEntropyLoss()(logits, labels)
    loss.backward()
    assert loss.dtype == torch.float32 and logits.grad.dtype == dtype
    assert torch.equal(loss, OhemCrossEntropyLoss()(logits.float(), labels))


def finite(output, found):
    assert all(x.isfinite() for x in found)
    return all(x.isfinite().all() for x in torch.autograd.grad(found.total, leaves(output)))


@pytest.mark.parametrize("padding", [False, True])
def test_nothing_but_ignored_pixels(padding):
    output, images, labels = random_case()
    images = images * (not padding)
    found = BSSNetLoss()(output, images, labels.fill_(255))
    assert [found.seg, found.seg_border, found.border, found.aux3, found.aux4] == [0] * 5
    assert finite(output, found)
    alone = OhemCrossEntropyLoss()(output.seg, labels)
    assert alone == 0 and torch.equal(torch.autograd.grad(alone, output.seg)[0], torch.zeros_like(output.seg))


def test_single_class():
    output, images, labels = random_case()
    found = BSSNetLoss()(output, images, torch.zeros_like(labels))
    assert finite(output, found) and found.border == 0 and found.seg > 0


def test_single_valid_pixel():
    output, images, labels = random_case()
    labels.fill_(255)[0, 20, 20] = 3
    assert finite(output, BSSNetLoss()(output, images, labels))


def test_fewer_pixels_than_min_kept_keeps_all_but_the_easiest():
    logits = torch.tensor([[5., 4., 3., 2.], [0., 0., 0., 0.]])[None, :, None]
    found = OhemCrossEntropyLoss()(logits, torch.zeros(1, 1, 4, dtype=torch.uint8))
    assert found.item() == pytest.approx(F.softplus(-torch.tensor([4., 3., 2.])).mean().item(), rel=1e-5)


def test_nan_is_not_hidden():
    output, images, labels = random_case()
    output.seg.data[0, 0, 0, 0] = torch.nan
    found = BSSNetLoss()(output, images, labels)
    assert found.seg.isnan() and found.total.isnan()


def test_padding_is_neither_edge_nor_rest():
    output, images, labels = random_case((48, 64))
    images[:, :, 40:] = 0
    labels[:, 40:] = 255
    found = BSSNetLoss()(output, images, labels)
    border = plain_resize(output.border, (48, 64))[:, 0]
    edges = edge_map(labels)
    edges[:, 40:] = 255
    assert found.border.item() == pytest.approx(plain_boundary(border, edges).item(), rel=1e-5)
    assert found.border.item() != pytest.approx(plain_boundary(border, edge_map(labels)).item(), rel=1e-3)
    expected = (plain_resize(output.spatial, (48, 64)) - images).abs().mean()
    assert found.spatial.item() == pytest.approx(expected.item(), rel=1e-5)


def test_total_is_the_sum_of_six():
    found = bssnet_loss.BSSNetLosses(*torch.arange(1., 7.))
    assert found.total == 21


LOGITS = torch.zeros(2, 3, 4, 4)
LABELS = torch.zeros(2, 8, 8, dtype=torch.int64)


@pytest.mark.parametrize("logits, labels, words", [
    (LOGITS[:, :1], LABELS, "2 or more classes, got 1.*num_classes=2"),
    (LOGITS, LABELS + 3, "label 3 is neither a class, 0-2, nor ignore_index, 255"),
    (LOGITS, LABELS - 1, "label -1 is neither"),
    (LOGITS, LABELS[:1], r"labels must be .* N = 2 .* got \(1, 8, 8\)"),
    (LOGITS, LABELS[:, None], r"got \(2, 1, 8, 8\)"),
    (LOGITS, LABELS.float(), "torch.float32: use labels.long"),
    (LOGITS, LABELS[:, :0], "no pixels"),
    (LOGITS[0], LABELS, r"logits must be .* got torch.float32 \(3, 4, 4\)"),
    (LOGITS.long(), LABELS, "logits must be floating point"),
    (torch.zeros(2, 4, 4, 4), LABELS, "3 class_weights for 4 classes"),
])
def test_refuses_bad_input(logits, labels, words):
    criterion = OhemCrossEntropyLoss(class_weights=(1., 1., 1.))
    with pytest.raises(ValueError, match=words):
        criterion(logits, labels)
    output = BSSNetOutput(logits, LOGITS[:, :1], LOGITS, (logits, logits))
    with pytest.raises(ValueError, match=words):
        BSSNetLoss((1., 1., 1.))(output, torch.zeros(2, 3, 8, 8), labels)


@pytest.mark.parametrize("arguments, words", [
    (dict(class_weights=(1., -1.)), "0 or more per class, got .*-1"),
    (dict(class_weights=(1., float("nan"))), "finite"),
    (dict(class_weights=2.), "per class, got 2"),
    (dict(min_kept=-5), "min_kept .* got -5"),
    (dict(threshold=90), "probability, 0 to 1, got 90"),
])
def test_refuses_bad_settings(arguments, words):
    with pytest.raises(ValueError, match=words):
        OhemCrossEntropyLoss(**arguments)


def test_refuses_output_or_images_of_something_else():
    output, images, labels = random_case()
    with pytest.raises(ValueError, match="got Tensor.*aux_heads=True.*OhemCrossEntropyLoss"):
        BSSNetLoss()(output.seg, images, labels)
    for wrong in (images[:1], images[:, :1], images[..., :50], images[0]):
        with pytest.raises(ValueError, match=r"images must be .* = \(2, 3, 45, 61\)"):
            BSSNetLoss()(output, wrong, labels)
    for logits, edges in ((output.seg, labels), (output.border, labels[:1]), (output.border, labels[:, None])):
        with pytest.raises(ValueError, match=r"logits \(N, 1, h, w\) and edges \(N, H, W\), got"):
            BoundaryLoss()(logits, edges)
    for wrong in (labels[0], labels.float()):
        with pytest.raises(ValueError, match="edge_map takes integer labels"):
            edge_map(wrong)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.uint32])
def test_labels_of_any_integer_type(dtype):
    output, images, labels = random_case()
    assert BSSNetLoss()(output, images, labels.to(dtype)) == BSSNetLoss()(output, images, labels)
    if dtype == torch.uint8:
        with pytest.raises(ValueError, match="label 255 is neither a class, 0-4, nor ignore_index, -1"):
            OhemCrossEntropyLoss(ignore_index=-1)(output.seg, labels.to(dtype))  # of which -1 is 255 to torch


def test_class_weights_move_with_the_module():
    criterion = BSSNetLoss((1., 2.))
    assert criterion.to("meta").class_weights.device.type == "meta"
    assert not criterion.state_dict()


def test_loss_weights():
    output, images, labels = random_case()
    plain = BSSNetLoss()(output, images, labels)
    weights = (1., 0., 2., 0.5, 3., 0.)
    for loss, weight, expected in zip(BSSNetLoss(loss_weights=weights)(output, images, labels), weights, plain,
                                      strict=True):
        assert loss.item() == pytest.approx(weight * expected.item())
    nan, inf = float("nan"), float("inf")
    for wrong in ((1., 1.), (1., 1., 1., 1., 1., -1.), (nan, 1., 1., 1., 1., 1.), (inf, 1., 1., 1., 1., 1.), (0.,) * 6):
        with pytest.raises(ValueError, match="loss_weights must be 0 or more for each of seg, seg_border"):
            BSSNetLoss(loss_weights=wrong)


@pytest.mark.parametrize("left_out", range(6))
def test_loss_of_weight_0_is_left_out(left_out):
    """Whatever its map holds; yet the map has a gradient, which distributed training waits for."""
    output, images, labels = random_case()
    weights = [float(i != left_out) for i in range(6)]
    if left_out > 1:
        leaves(output)[left_out - 1].data.fill_(torch.inf)
        weights[1] = float(left_out != 2)  # it looks at the border too
    found = BSSNetLoss(loss_weights=weights)(output, images, labels)
    assert found[left_out] == 0 and finite(output, found)
