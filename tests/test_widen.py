"""B from T: the same features, and a head that sees them at twice the resolution."""
import pytest
import torch

import bssnet_zoo
from bssnet_zoo.models.widen import widen_, widened


@pytest.fixture(scope="module")
def narrow():
    return bssnet_zoo.create_model("bssnet_t", pretrained=True, aux_heads=True).eval()


@pytest.fixture(scope="module")
def wide(narrow):
    return widen_(bssnet_zoo.create_model("bssnet_b", num_classes=11, aux_heads=True), narrow).eval()


@torch.no_grad()
def test_features_are_those_of_the_narrow_network_twice(narrow, wide):
    images = torch.randn(1, 3, 90, 120)
    for a, b in zip(narrow.forward_intermediates(images, intermediates_only=True),
                    wide.forward_intermediates(images, intermediates_only=True), strict=True):
        torch.testing.assert_close(b, a.repeat_interleave(2, 1), rtol=1e-3, atol=1e-4 * a.abs().max().item())
    fused, wide_fused = narrow.forward_features(images), wide.forward_features(images)
    expected = fused.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(wide_fused, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_training_heads_keep_their_maps(narrow, wide):
    images = torch.randn(2, 3, 64, 96)
    drop = [m for model in (narrow, wide) for m in model.modules() if isinstance(m, torch.nn.Dropout2d)]
    for module in drop:
        module.p = 0.
    narrow.train(), wide.train()
    a, b = narrow(images), wide(images)
    narrow.eval(), wide.eval()
    for name in ("border", "spatial"):
        torch.testing.assert_close(getattr(b, name), getattr(a, name), rtol=1e-2, atol=1e-2)
    for x, y in zip(a.aux, b.aux, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-2, atol=1e-2)


def test_halves_differ_and_sum_up():
    weight = torch.randn(4, 3, 3, 3)
    result = widened(weight, torch.Size([8, 6, 3, 3]), noise=0.1)
    torch.testing.assert_close(result[:, ::2] + result[:, 1::2], weight.repeat_interleave(2, 0))
    assert (result[:, ::2] - result[:, 1::2]).abs().min() > 0
    assert not torch.equal(result[::2], result[1::2])


@pytest.mark.parametrize("options, message", [
    ({"num_classes": 5}, "num_classes is 5 in the narrow network, 11 in the wide one"),
    ({"in_chans": 4}, "in_chans is 4 in the narrow network, 3 in the wide one"),
    ({"aux_heads": False}, "narrow network has no border_head.*give both the training heads"),
    ({"dim": 16}, r"\(16, 3, 3, 3\) can't be widened to \(64, 3, 3, 3\)"),
])
def test_that_does_not_fit(options, message):
    narrow = bssnet_zoo.create_model("bssnet_t", **{"num_classes": 11, "aux_heads": True, **options})
    with pytest.raises(ValueError, match=message):
        widen_(bssnet_zoo.create_model("bssnet_b", num_classes=11, aux_heads=True), narrow)


def test_to_a_network_without_the_convolution_of_b():
    torch.manual_seed(0)
    narrow = bssnet_zoo.create_model("bssnet_t", num_classes=3).eval()
    wide = widen_(bssnet_zoo.create_model("bssnet_t", num_classes=3, dim=64), narrow).eval()
    images = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(wide(images), narrow(images), rtol=1e-3, atol=1e-3)
