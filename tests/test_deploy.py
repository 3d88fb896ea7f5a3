"""`bssnet_zoo.deploy`: the same answers, fewer multiply-adds, less memory."""
import copy
import os
import pickle
import statistics
import time
import weakref
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import shallow
from test_pretrained import STREET
from timm.layers import freeze_batch_norm_2d
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as TF

import bssnet_zoo
from bssnet_zoo.benchmark import backends
from bssnet_zoo.data.images import load_image
from bssnet_zoo.deployment import rewrites
from bssnet_zoo.deployment.graph import ShuffledUpsample, for_runtime
from bssnet_zoo.deployment.rewrites import BlendWeights, StripStem, UpsampleConvReLU, channel_max, transposed_pays
from bssnet_zoo.inference.resize import resize_logits
from bssnet_zoo.models.summary import count_multiply_adds


@pytest.fixture(scope="module")
def pairs():
    """Pretrained models and what `deploy` makes of them: ``pairs("bssnet_t")``."""
    made = {}

    def pair(variant: str):
        if variant not in made:
            model = bssnet_zoo.create_model(variant, pretrained=True).eval()
            made[variant] = model, bssnet_zoo.deploy(model)
        return made[variant]

    return pair


@pytest.fixture
def shaken():
    """A narrow model in float64 whose BatchNorms have learned something: scales of either sign, and zero."""
    def make(**kwargs) -> bssnet_zoo.BSSNet:
        torch.manual_seed(0)
        model = bssnet_zoo.BSSNet(num_classes=5, dim=8, dtype=torch.float64, **kwargs).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2)
                module.weight.data[0] = 0
        return model

    return make


def street(model: nn.Module, size: tuple[int, int]) -> torch.Tensor:
    image = TF.resize(load_image(STREET), size, antialias=True)
    return TF.normalize(image, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])[None]


@pytest.mark.parametrize(("variant", "size"), [
    *(("bssnet_t", size) for size in [(360, 480), (384, 512), (355, 471), (33, 95), (32, 32)]),
    *(("bssnet_b", size) for size in [(360, 480), (190, 271)]),
])
def test_same_logits(pairs, variant, size):
    model, deployed = pairs(variant)
    images = street(model, size)
    with torch.inference_mode():
        expected, logits = model(images), deployed(images)
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() >= 0.9999


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("size", [(128, 192), (101, 77), (353, 481)])
def test_exact_in_float64(shaken, upsample, size, monkeypatch):
    monkeypatch.setattr(rewrites, "STRIP_BYTES", 200_000)
    model = shaken(upsample=upsample, aux_heads=True)
    deployed = bssnet_zoo.deploy(model)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        for run in (lambda m: m(images), lambda m: m.forward_head(m.forward_features(images), pre_logits=True)):
            expected = run(model)
            assert expected.std() > 1e-3
            torch.testing.assert_close(run(deployed), expected, rtol=0, atol=1e-9 * expected.abs().max().item())
        for level, expected in zip(*(m.forward_intermediates(images)[1] for m in (deployed, model)), strict=True):
            torch.testing.assert_close(level, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize(("coarse", "fine"), [
    ((16, 17), (32, 34)), ((16, 17), (31, 34)), ((16, 17), (32, 33)), ((16, 17), (31, 33)), ((1, 1), (1, 1)),
    ((1, 1), (2, 2)), ((1, 2), (1, 3)), ((2, 2), (3, 3)), ((16, 17), (48, 17)), ((16, 17), (33, 34)),
    ((16, 17), (20, 33)),
])
def test_upsample_conv(coarse, fine, always, monkeypatch):
    assert transposed_pays(16, 17) and not transposed_pays(12, 15)
    if always:
        monkeypatch.setattr(rewrites, "transposed_pays", lambda h, w: True)
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, padding=1, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(2, 3, *coarse, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, size=fine, mode="nearest"), conv.weight, conv.bias, padding=1).relu()
    upsample = UpsampleConvReLU(conv)
    torch.testing.assert_close(upsample(x, *fine), expected)
    if fine == (2 * coarse[0], 2 * coarse[1]):
        torch.testing.assert_close(ShuffledUpsample(upsample.transposed).double()(x), expected)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "onnxruntime-int8", "torch"])
@pytest.mark.parametrize("fixed_size", [False, True])
def test_what_files_compute(pairs, variant, runtime, fixed_size):
    model, deployed = pairs(variant)
    rewritten = for_runtime(copy.deepcopy(deployed), runtime, fixed_size)
    for size in ((64, 128), (90, 150)):  # maps that are doubled, and not
        images = street(model, size)
        with torch.inference_mode():
            expected, logits = deployed(images), rewritten(images)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_channel_max(dtype):
    x = torch.randn(2, 17, 5, 7).relu().to(dtype)
    x[0, :, 0, 0], x[0, 3, 1, 1], x[1, 3, 2, 2] = -0., torch.inf, torch.nan
    for maps in (x, x.contiguous(memory_format=torch.channels_last)):
        expected = maps.amax(1, keepdim=True)
        torch.testing.assert_close(channel_max(maps), expected, rtol=0, atol=0, equal_nan=True)
    x = torch.rand(1, 3, 2, 2, dtype=dtype, requires_grad=True)
    channel_max(x).sum().backward()
    assert x.grad.count_nonzero() >= 4


def test_blends_maps_without_negative_values(pairs, variant):
    """What `channel_max` relies on."""
    model, deployed = pairs(variant)
    blends = [module for module in deployed.modules() if isinstance(module, BlendWeights)]
    lowest = []
    hooks = [blend.register_forward_pre_hook(lambda _, features: lowest.extend(x.min() for x in features[0]))
             for blend in blends]
    with torch.inference_mode():
        deployed.forward_features(street(model, (90, 120)))
    for hook in hooks:
        hook.remove()
    assert len(lowest) == 11 and min(lowest) >= 0


def test_resize_is_cropped_double():
    """What the crop relies on: torch's nearest resize to 2n-1 is the one to 2n without the last pixel."""
    for n in range(2, 600):
        x = torch.arange(n, dtype=torch.float32)[None, None]
        assert torch.equal(F.interpolate(x, size=2 * n - 1), F.interpolate(x, size=2 * n)[..., :-1])


@pytest.mark.parametrize("height", [95, 96, 97, 98, 99, 131])
def test_strip_stem(tiny, height, monkeypatch):
    deployed = bssnet_zoo.deploy(tiny)
    assert isinstance(deployed.stem, StripStem)
    images = torch.randn(1, 3, height, 64)
    passes = []
    deployed.stem[0].register_forward_hook(lambda *_: passes.append(1))
    with torch.inference_mode():
        whole = deployed.stem(images)
        assert len(passes) == 1
        for rows in (1, 2, 5):
            passes.clear()
            monkeypatch.setattr(rewrites, "STRIP_BYTES", rows * 2 * 32 * 32 * 4)
            torch.testing.assert_close(deployed.stem(images), whole, rtol=1e-4, atol=1e-6)
            assert len(passes) == -(-height // (4 * rows))


def test_what_is_left(pairs, variant):
    model, deployed = pairs(variant)
    gone = (nn.BatchNorm2d, nn.Dropout2d, nn.Upsample)
    assert isinstance(deployed, bssnet_zoo.BSSNet) and not any(isinstance(m, gone) for m in deployed.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert not deployed.training and not any(p.requires_grad for p in deployed.parameters())
    assert (deployed.num_classes, deployed.in_chans, deployed.pretrained_cfg) == (11, 3, model.pretrained_cfg)
    assert bssnet_zoo.class_info(deployed) == bssnet_zoo.class_info(model)
    labels = [bssnet_zoo.predict(m, STREET, size=96).labels for m in (model, deployed.train())]
    assert (labels[0] == labels[1]).mean() >= 0.9999


def test_leaves_the_model_as_it_was(tiny):
    tiny.train()
    before = copy.deepcopy(tiny.state_dict())
    deployed = bssnet_zoo.deploy(tiny)
    with torch.inference_mode():
        deployed(torch.randn(1, 3, 64, 64))
    assert tiny.training and not deployed.training
    assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())


def test_inputs_are_not_written_to(tiny):
    deployed = bssnet_zoo.deploy(tiny)
    images = torch.randn(1, 3, 64, 64)
    before = images.clone()
    with torch.inference_mode():
        features = deployed.forward_features(images)
        kept = features.clone()
        logits = deployed.forward_head(features)
        assert torch.equal(images, before) and torch.equal(features, kept)
        assert torch.equal(deployed.forward_head(features), logits)


def test_every_kind_of_model():
    torch.manual_seed(0)
    images = torch.randn(1, 4, 64, 64)
    with torch.inference_mode():
        for kwargs in (dict(num_classes=0), dict(num_classes=1), dict(num_classes=7, aux_heads=True, drop_rate=0.5)):
            model = bssnet_zoo.BSSNet(in_chans=4, dim=8, upsample=True, **kwargs).eval()
            deployed = bssnet_zoo.deploy(model)
            assert not deployed.aux_heads and deployed.train()(images).shape == model(images).shape
            torch.testing.assert_close(deployed(images), model(images), rtol=1e-3, atol=1e-4)
        pruned = bssnet_zoo.BSSNet(in_chans=4, dim=8).eval()
        pruned.prune_intermediate_layers([2])
        torch.testing.assert_close(bssnet_zoo.deploy(pruned)(images), pruned(images), rtol=1e-3, atol=1e-4)


def test_precisions(pairs):
    model, deployed = pairs("bssnet_t")
    images = street(model, (360, 480))
    half = bssnet_zoo.deploy(copy.deepcopy(model).bfloat16())
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        expected = model(images).argmax(1)
        cast = copy.deepcopy(deployed).bfloat16()(images.bfloat16())
        assert cast.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            for logits in (cast, half(images.bfloat16()), deployed(images)):
                assert (logits.argmax(1) == expected).float().mean() > 0.96


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_pickle_script_export_trace(upsample):
    """A trace is for any size: maps are doubled at its own, and not at others."""
    deployed = bssnet_zoo.deploy(shallow(upsample=upsample))
    images = torch.randn(1, 3, 97, 141)
    others = [pickle.loads(pickle.dumps(deployed)), torch.jit.script(deployed),
              torch.export.export(deployed, (images,)).module(), torch.jit.trace(deployed, torch.randn(1, 3, 384, 512))]
    with torch.inference_mode():
        for other in others:
            torch.testing.assert_close(other(images), deployed(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("change", [freeze_batch_norm_2d, nn.SyncBatchNorm.convert_sync_batchnorm])
def test_other_norms(pairs, change):
    """Frozen ones, and those of several GPUs."""
    model, deployed = pairs("bssnet_t")
    other = change(copy.deepcopy(model)).eval()
    assert not rewrites.is_deployed(other)
    images = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        torch.testing.assert_close(bssnet_zoo.deploy(other)(images), deployed(images), rtol=1e-3, atol=1e-3)


def test_compile(monkeypatch):
    """What `bssnet-zoo bench` times as "compile", in one graph, without the C++ compiler's minute."""
    monkeypatch.setattr(backends, "open_network", lambda name: shallow())
    monkeypatch.setattr(backends, "keep_freed_memory", lambda: None)  # it would stay so in this process
    settings = backends.Settings(torch.device("cpu"), threads=1, full_size=True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    counters.clear()
    with torch.inference_mode():
        compiled, deployed = (
            backends.make_torch(backends.Side("bssnet_t", name, "float32"), (64, 96), settings)()
            for name in ("compile", "deploy"))
    torch.testing.assert_close(compiled, deployed, rtol=1e-3, atol=1e-3)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: nn.Conv2d(3, 3, 1), "takes a BSSNet, got Conv2d"),
    (lambda: bssnet_zoo.create_model("bssnet_t", features_only=True), "takes a BSSNet, got Feature"),
    (lambda: bssnet_zoo.deploy(bssnet_zoo.BSSNet(dim=8)), "this one has none: was it deployed before"),
])
def test_bad_models(make, message):
    with pytest.raises(ValueError, match=message):
        bssnet_zoo.deploy(make())


@pytest.mark.parametrize(("variant", "width"), [("bssnet_t", 32), ("bssnet_b", 64)])
def test_multiply_adds(variant, width):
    """At 1024x2048 every 3x3 convolution after a x2 resize has become a transposed 4x4 one of the small map."""
    model = bssnet_zoo.create_model(variant, num_classes=19).eval()
    deployed = bssnet_zoo.deploy(model)
    convs = [  # input and output channels, coarse height and width
        (8 * width, 8 * width, 16, 32), (8 * width, 4 * width, 32, 64), (2 * width, 2 * width, 64, 128),
        (2 * width, 2 * width, 64, 128), (4 * width, 4 * width, 64, 128)]
    if variant == "bssnet_b":
        convs.append((4 * width, 128, 128, 256))
    saved = sum(inputs * outputs * (36 - 16) * h * w for inputs, outputs, h, w in convs)
    counts = [count_multiply_adds(m.to("meta"), 1024, 2048) for m in (model, deployed)]
    assert counts[0] - counts[1] == saved


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are alive at a time: ``peak``; and ``shapes``, of all that were made."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.shapes = {}, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.shapes.add(tuple(tensor.shape))
                if storage._cdata not in self.live:
                    self.live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


@pytest.mark.parametrize("size", [None, 180, (400, 300)])
def test_labels_hold_no_full_size_logits(pairs, size):
    model, _ = pairs("bssnet_t")
    with LiveBytes() as memory:
        bssnet_zoo.predict(model, STREET, size=size)
    largest = max(np.prod(shape) for shape in memory.shapes if len(shape) == 4 and shape[1] == 11)
    assert 0 < largest <= 11 * 45 * 500  # a strip of rows, or the raw logits
    with LiveBytes() as memory:
        bssnet_zoo.predict(model, STREET, size=size, probabilities=True)
    assert (1, 11, 360, 480) in memory.shapes


@pytest.mark.parametrize(("raw", "padded", "seen", "size"), [
    ((45, 60), (360, 480), (360, 480), (360, 480)), ((23, 30), (180, 240), (180, 240), (371, 97)),
    ((4, 9), (32, 70), (7, 70), (7, 70)), ((50, 40), (400, 320), (400, 320), (33, 1)),
    ((4, 4), (32, 32), (1, 1), (5, 6)),
    ((90, 70), (90, 70), (90, 70), (90, 70)),
])
def test_strips_are_the_resize(raw, padded, seen, size):
    logits = torch.randn(1, 6, *raw, dtype=torch.float64)
    expected = F.interpolate(logits, size=padded, mode="bilinear", align_corners=True)[..., :seen[0], :seen[1]]
    expected = F.interpolate(expected, size=size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(torch.cat(list(resize_logits(logits, padded, seen, size)), dim=2), expected)


def test_less_memory(pairs, variant):
    peaks = []
    for model in pairs(variant):
        images = torch.randn(1, 3, 256, 512).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), LiveBytes() as memory:
            model.forward_head(model.forward_features(images))
        peaks.append(memory.peak)
    assert 0 < peaks[1] < peaks[0]


@pytest.mark.skipif(os.getloadavg()[0] > 0.5 * os.cpu_count(), reason="the machine is busy")
def test_not_slower(pairs):
    model, deployed = pairs("bssnet_t")
    images = street(model, (360, 480)).contiguous(memory_format=torch.channels_last)
    times = {model: [], deployed: []}
    with torch.inference_mode():
        for network in [model, deployed] * 12:
            start = time.perf_counter()
            network(images)
            times[network].append(time.perf_counter() - start)
    assert statistics.median(times[deployed]) < 1.1 * statistics.median(times[model])
