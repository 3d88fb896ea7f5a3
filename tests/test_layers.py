"""UMF, LUAFM and PAPPM on their own, and UMF in somebody else's network."""
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import bssnet_zoo
from bssnet_zoo.layers import LUAFM, PAPPM, UMF
from bssnet_zoo.layers.fusion import channel_statistics


def statistics(maps):
    return torch.cat([s for m in maps for s in (m.mean(1, keepdim=True), m.max(1, keepdim=True).values)], 1)


def test_top_level_names():
    assert (bssnet_zoo.UMF, bssnet_zoo.LUAFM, bssnet_zoo.PAPPM) == (UMF, LUAFM, PAPPM)


@pytest.mark.parametrize(("num_features", "resized"), [(2, ()), (2, (1,)), (3, (1,)), (4, (1, 3)), (5, (1, 2, 3, 4))])
def test_umf_is_the_weighted_sum(num_features, resized):
    torch.manual_seed(0)
    umf = UMF(8, num_features, resized).eval()
    maps = [torch.randn(2, 8, *((5, 7) if i in resized else (9, 13))) for i in range(num_features)]
    with torch.no_grad():
        fused = umf(maps)
        aligned = [umf.convs[i](F.interpolate(m, (9, 13), mode="nearest")) if i in resized else m
                   for i, m in enumerate(maps)]
        weights = umf.attention(statistics(aligned)).sigmoid()
        assert weights.shape == (2, num_features, 9, 13)
        expected = sum(weights[:, i:i + 1] * m for i, m in enumerate(aligned))
    assert torch.allclose(fused, expected, atol=1e-6)


def test_statistics_of_wide_maps_in_float16():
    """The sum over 512 channels of 130 is more than float16 holds, their mean is not."""
    maps = torch.full((1, 512, 2, 3), 130.).half()
    assert channel_statistics([maps]).equal(torch.full((1, 2, 2, 3), 130.).half())


def test_umf_has_the_published_parameters():
    shapes = {name: tuple(p.shape) for name, p in UMF(128).named_parameters() if p.ndim > 1}
    assert shapes == {"convs.1.conv.weight": (128, 128, 3, 3), "attention.0.conv.weight": (6, 6, 3, 3),
                      "attention.1.conv.weight": (3, 6, 3, 3)}


@pytest.mark.parametrize(("call", "message"), [
    (lambda: UMF(8, 1), "two or more feature maps, got num_features=1"),
    (lambda: UMF(8, 3, resized=(0,)), r"resized names maps from 1 to 2 .* got \(0,\)"),
    (lambda: UMF(8, 3, resized=(3,)), r"resized names maps from 1 to 2 .* got \(3,\)"),
    (lambda: UMF(8, 2, ())([torch.randn(1, 8, 4, 4)]), "num_features=2 feature maps, got 1"),
    (lambda: UMF(8, 2, ())([torch.randn(1, 8, 4, 4)] * 3), "num_features=2 feature maps, got 3"),
    (lambda: UMF(8, 2, ())([torch.randn(1, 8, 4, 4), torch.randn(1, 9, 4, 4)]), r"features\[1\] is \[1, 9, 4, 4\]"),
    (lambda: UMF(8, 2, ())([torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 5)]), r"features\[1\] is \[4, 5\].*1 in"),
])
def test_umf_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("x_channels", "y_channels"), [(8, 8), (8, 16), (16, 8)])
def test_luafm_blends(x_channels, y_channels):
    torch.manual_seed(0)
    luafm = LUAFM(x_channels, y_channels).eval()
    x, y = torch.randn(2, x_channels, 9, 13), torch.randn(2, y_channels, 5, 7)
    with torch.no_grad():
        fine = luafm.conv_x(x)
        coarse = luafm.conv_y(F.interpolate(y, (9, 13), mode="nearest"))
        a = luafm.attention(statistics([fine, coarse])).sigmoid()
        assert torch.allclose(luafm(x, y), a * fine + (1 - a) * coarse, atol=1e-6)
    assert luafm(x, y).shape == (2, min(x_channels, y_channels), 9, 13)
    assert isinstance(luafm.conv_x, torch.nn.Identity) == (x_channels <= y_channels)


def test_pappm():
    pappm = PAPPM(32, 16, mid_channels=8)
    assert pappm(torch.randn(2, 32, 9, 13)).shape == (2, 16, 9, 13)
    with pytest.raises(ValueError, match="batch of 1.*batch of 2 or more"):
        pappm(torch.randn(1, 32, 9, 13))
    assert pappm.eval()(torch.randn(1, 32, 1, 1)).shape == (1, 16, 1, 1)


@pytest.mark.parametrize("layer", [UMF(8, 3), LUAFM(8, 8), PAPPM(8, 8, 8)])
def test_layers_script_and_trace(layer):
    x, y = torch.randn(2, 8, 8, 12), torch.randn(2, 8, 4, 6)
    args = {UMF: ([x, y, x],), LUAFM: (x, y), PAPPM: (x,)}[type(layer)]
    layer = layer.eval()
    with torch.no_grad():
        assert torch.equal(torch.jit.script(layer)(*args), layer(*args))
        if not isinstance(layer, UMF):  # torch.fx has no lists as inputs
            assert torch.equal(torch.fx.symbolic_trace(layer)(*args), layer(*args))


def test_umf_in_another_network():
    """The example of docs/layers.md, as it stands there: it must run, and learn."""
    page = (Path(__file__).parents[1] / "docs" / "layers.md").read_text()
    code = max(re.findall(r"```python\n(.*?)```", page, re.S), key=len)
    namespace = {}
    exec(compile(code, "docs/layers.md", "exec"), namespace)
    losses = namespace["losses"]
    assert losses[-1] < 0.7 * losses[0]
    fuse = namespace["network"].fuse
    assert fuse.attention[0].conv.weight.grad.abs().sum() > 0
    assert all(conv.conv.weight.grad.abs().sum() > 0 for conv in fuse.convs[1:])
