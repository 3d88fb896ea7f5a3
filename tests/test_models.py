"""What users of timm expect of a model, for T and B alike."""
import copy
import functools
import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import shallow
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.optim import create_optimizer_v2
from torchvision.transforms.v2 import functional as TF

import bssnet_zoo
from bssnet_zoo.data.images import load_image
from bssnet_zoo.models.summary import count_multiply_adds, count_parameters
from bssnet_zoo.models.weights import ASSETS, WEIGHTS

WIDTH = {"bssnet_t": 32, "bssnet_b": 64}
STRIDE = {"bssnet_t": 8, "bssnet_b": 4}
# ARCHITECTURE: parameters, then G multiply-adds at 1024x2048, 720x960, 512x1024, 360x480
COST = {
    "bssnet_t": (8_391_467, 48.74, 16.15, 12.18, 4.09),
    "bssnet_b": (32_070_539, 231.93, 76.77, 57.98, 19.40),
}
AUX_MODULES = ("border_head", "spatial_head", "fcn_heads")


@functools.lru_cache(maxsize=4)
def built(variant, **kwargs):
    torch.manual_seed(0)
    return bssnet_zoo.create_model(variant, **kwargs)


def build(variant, **kwargs):
    model = copy.deepcopy(built(variant, **kwargs))
    torch.manual_seed(0)
    return model


def street():
    """A part of the sample, normalised: noise has no class that is far ahead of the others."""
    image = load_image(ASSETS / "street.png")[None, :, 180:308, 200:360]
    return TF.normalize(image, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def close(found, expected, tolerance=1e-5):
    return (found - expected).abs().max() <= tolerance * expected.abs().max()


class TestContract:
    def test_parameters_and_multiply_adds(self, variant):
        parameters, *costs = COST[variant]
        model = bssnet_zoo.create_model(variant, num_classes=19, device="meta").eval()
        assert count_parameters(model) == parameters
        for (height, width), cost in zip([(1024, 2048), (720, 960), (512, 1024), (360, 480)], costs, strict=True):
            assert round(count_multiply_adds(model, height, width) / 1e9, 2) == cost

    @pytest.mark.parametrize("size", [(32, 32), (33, 47), (90, 122), (64, 200), (61, 35)])
    def test_any_size_from_32(self, variant, size):
        model = build(variant).eval()
        with torch.inference_mode():
            x = torch.randn(1, 3, *size)
            features = model.forward_features(x)
            stride = STRIDE[variant]
            raw_size = tuple(8 // stride * -(-s // 8) for s in size)
            assert features.shape == (1, model.num_features, *raw_size)
            assert model.forward_head(features).shape == (1, 11, *raw_size)
            assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size, *raw_size)
            assert model(x).shape == (1, 11, *size)

    def test_default_class_counts(self, variant):
        assert bssnet_zoo.create_model(variant, device="meta").num_classes == 11
        assert bssnet_zoo.create_model(f"{variant}.pidnet_in1k", device="meta").num_classes == 19
        assert bssnet_zoo.BSSNet(device="meta").num_classes == 19

    def test_training_gives_full_size_logits_unless_aux_heads(self, variant):
        x, y = torch.randn(2, 3, 64, 64), torch.randint(0, 11, (2, 64, 64))
        model = build(variant).train()
        F.cross_entropy(model(x), y).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        model = build(variant, aux_heads=True, in_chans=4).train()
        output = model(torch.randn(2, 4, 64, 96))
        size = (64 // STRIDE[variant], 96 // STRIDE[variant])
        assert isinstance(output, bssnet_zoo.BSSNetOutput)
        assert [tuple(t.shape) for t in (output.seg, output.border, output.spatial, *output.aux)] == [
            (2, 11, *size), (2, 1, 8, 12), (2, 4, 8, 12), (2, 11, 4, 6), (2, 11, 2, 3)]
        assert model.eval()(torch.randn(2, 4, 64, 96)).shape == (2, 11, 64, 96)

    def test_num_classes_0_gives_the_pre_logits_map(self, variant):
        model = build(variant, num_classes=0).eval()
        x = torch.randn(1, 3, 64, 96)
        with torch.inference_mode():
            assert model(x).shape == (1, 128, 64 // STRIDE[variant], 96 // STRIDE[variant])
            assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))

    @pytest.mark.parametrize("kwargs", [{}, dict(num_classes=11), dict(num_classes=5, aux_heads=True)])
    def test_new_classifiers_for_weights_of_any_class_count(self, kwargs):
        """num_classes=-1 beside a file, which is what ``--pretrained-path`` of timm's train.py gives."""
        file = WEIGHTS["bssnet_t.camvid"].path
        model = timm.create_model(
            "bssnet_t", pretrained=True, pretrained_cfg_overlay=dict(file=str(file), num_classes=-1), **kwargs)
        assert model.num_classes == kwargs.get("num_classes", 19)
        expected, found = build("bssnet_t", pretrained=True).state_dict(), model.state_dict()
        assert not found["head.classifier.bias"].any()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items() if "classifier" not in name)

    def test_earlier_names(self):
        """Two modules were called ``fuse``, which timm takes for a method."""
        expected = build("bssnet_t", pretrained=True)
        tensors = load_file(WEIGHTS["bssnet_t.camvid"].path)
        assert "decoder.fuse.attention.0.conv.weight" in tensors and "decoder.border.fuse.conv_y.conv.weight" in tensors
        model = torch.nn.ModuleDict({"net": bssnet_zoo.BSSNet(num_classes=11, aux_heads=True)})
        model.load_state_dict({f"net.{name}": tensor for name, tensor in tensors.items()})
        assert all(torch.equal(model["net"].state_dict()[name], t) for name, t in expected.state_dict().items())

    def test_reset_classifier(self, variant):
        model = build(variant, aux_heads=True).train()
        x = torch.randn(2, 3, 64, 64)
        assert model.get_classifier() is model.head.classifier
        model.reset_classifier(5)
        output = model(x)
        assert output.seg.shape[1] == 5 and [a.shape[1] for a in output.aux] == [5, 5] and output.border.shape[1] == 1
        model.reset_classifier(0)
        assert isinstance(model.get_classifier(), torch.nn.Identity)
        assert model(x).shape[1] == 128
        model.eval().reset_classifier(3)
        assert model(x).shape == (2, 3, 64, 64) and not any(module.training for module in model.modules())

    def test_drop_rate(self, variant):
        model = build(variant, drop_rate=0.9, aux_heads=True)
        drops = [m for m in model.modules() if isinstance(m, torch.nn.Dropout2d) and m.p]
        assert [m.p for m in drops] == [0.9] * 3
        features = torch.randn(2, model.num_features, 4, 4)
        with torch.no_grad():
            hidden = model.train().forward_head(features, pre_logits=True)
            assert (hidden.flatten(2).abs().amax(2) == 0).float().mean() > 0.7
            assert (model.eval().forward_head(features, True).flatten(2).abs().amax(2) == 0).float().mean() < 0.3

    def test_copies_and_pickles(self, variant):
        model = build(variant).eval()
        x = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                assert torch.equal(twin(x), model(x))

    def test_dtype_and_device_arguments(self, variant):
        model = bssnet_zoo.create_model(variant, aux_heads=True, device="meta", dtype=torch.bfloat16)
        assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_created_in_another_dtype(self, variant, dtype):
        plain, model = build(variant).eval(), build(variant, dtype=dtype).eval()
        assert {t.dtype for t in model.state_dict().values()} == {dtype, torch.int64}
        plain.load_state_dict(model.state_dict())
        x = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            assert model(x.to(dtype)).dtype == dtype
            assert close(model(x.to(dtype)).float(), plain(x), 0.1 if dtype == torch.bfloat16 else 1e-4)

    def test_created_on_the_meta_device(self, variant):
        whole = build(variant).eval()
        with torch.device("meta"):
            model = bssnet_zoo.create_model(variant).eval()
        assert {t.device.type for t in model.state_dict().values()} == {"meta"}
        model.to_empty(device="cpu").init_weights()
        assert all(buffer.isfinite().all() for buffer in model.state_dict().values())
        assert 0.9 < model.stem[1].conv.weight.std() / whole.stem[1].conv.weight.std() < 1.1
        model.load_state_dict(whole.state_dict())
        x = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            assert torch.equal(model(x), whole(x))

    @pytest.mark.parametrize("kwargs", [
        {}, dict(aux_heads=True), dict(num_classes=0), dict(in_chans=1, num_classes=5), dict(features_only=True)])
    def test_the_config_names_what_the_model_has(self, variant, kwargs):
        model = bssnet_zoo.create_model(variant, device="meta", **kwargs)
        model = model.model if kwargs.get("features_only") else model
        assert model.default_cfg is model.pretrained_cfg
        parameters, cfg = dict(model.named_parameters()), model.pretrained_cfg
        assert parameters[f"{cfg['first_conv']}.weight"].shape[1] == kwargs.get("in_chans", 3)
        assert kwargs.get("features_only") or (f"{cfg['classifier']}.weight" in parameters) == (model.num_classes > 0)

    def test_the_arguments_are_saved_with_the_weights(self, variant, tmp_path):
        model = build(variant, num_classes=5, in_chans=4, aux_heads=True).eval()
        timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert str(again) == str(model)
        assert all(torch.equal(a, b) for a, b in zip(
            again.state_dict().values(), model.state_dict().values(), strict=True))


class TestFeatures:
    def test_forward_intermediates(self, variant):
        model = build(variant).eval()
        x = torch.randn(1, 3, 90, 122)
        with torch.inference_mode():
            final, levels = model.forward_intermediates(x)
            assert torch.equal(final, model.forward_features(x))
            assert [t.shape[1] for t in levels] == [WIDTH[variant] * 2 ** i for i in range(5)]
            assert [tuple(t.shape[2:]) for t in levels] == [(-(-90 // s), -(-122 // s)) for s in (4, 8, 16, 32, 64)]
            assert all(t.min() >= 0 for t in levels[:4]) and levels[4].min() < 0
            last, some = model.forward_intermediates(x, indices=[0, -3], stop_early=True)
            assert len(some) == 2 and torch.equal(some[0], levels[0]) and torch.equal(last, levels[2])
            assert torch.equal(some[1], levels[2])
            two = model.forward_intermediates(x, indices=2, intermediates_only=True)
            assert [torch.equal(a, b) for a, b in zip(two, levels[3:], strict=True)] == [True, True]

    def test_stop_early_runs_no_more(self, variant):
        model = build(variant).eval()
        ran = []
        for i, stage in enumerate(model.stages):
            stage.register_forward_hook(lambda *_, i=i: ran.append(i))
        model.decoder.register_forward_hook(lambda *_: ran.append("decoder"))
        x = torch.randn(1, 3, 64, 64)
        model.forward_intermediates(x, indices=[1], stop_early=True)
        assert ran == [0, 1]
        model.forward_intermediates(x, indices=[1])
        assert ran[2:] == [0, 1, 2, 3, 4, "decoder"]

    @pytest.mark.parametrize("out_indices", [(0, 1, 2, 3, 4), (1, 2), (0, -2), (0,)])
    def test_features_only(self, variant, out_indices):
        whole = build(variant).eval()
        net = timm.create_model(variant, features_only=True, out_indices=out_indices, aux_heads=True).eval()
        net.model.load_state_dict({k: v for k, v in whole.state_dict().items() if k in net.model.state_dict()})
        x = torch.randn(1, 3, 128, 192)
        with torch.inference_mode():
            features = net(x)
            levels = whole.forward_intermediates(x, intermediates_only=True)
        assert [t.shape[1] for t in features] == net.feature_info.channels()
        assert [128 // t.shape[2] for t in features] == net.feature_info.reduction()
        for i, feature in zip(out_indices, features, strict=True):
            assert torch.equal(feature, levels[i])
        deepest = max(i % 5 for i in out_indices)
        assert not [name for name, _ in net.named_parameters()
                    if not re.match(rf"model\.(stem|stages\.[0-{deepest}])\.", name)]

    @pytest.mark.parametrize("feature_cls", ["list", "hook", "fx"])
    def test_other_feature_wrappers_of_timm(self, variant, feature_cls):
        net = timm.create_model(variant, features_only=True, out_indices=(1, 3), feature_cls=feature_cls).eval()
        with torch.inference_mode():
            assert [tuple(t.shape[1:]) for t in net(torch.randn(1, 3, 64, 64))] == [
                (2 * WIDTH[variant], 8, 8), (8 * WIDTH[variant], 2, 2)]

    def test_pruned_model_ends_at_its_last_level(self, variant):
        model, whole = build(variant).eval(), build(variant).eval()
        x = torch.randn(1, 3, 64, 64)
        assert whole.prune_intermediate_layers([1, -1], prune_head=False) == [1, 4]
        assert torch.equal(whole(x), model(x))
        with pytest.raises(ValueError, match=r"prune_head=False keeps the decoder, which needs level 4.*got \[1\]"):
            whole.prune_intermediate_layers([1], prune_head=False)
        assert model.prune_intermediate_layers([0, -3]) == [0, 2]
        with torch.inference_mode():
            assert model(x).shape == model.forward_features(x).shape == (1, model.num_features, 4, 4)
        model.reset_classifier(0)
        with pytest.raises(ValueError, match="pruned"):
            model.reset_classifier(3)


class TestTraining:
    def test_group_matcher_and_layer_decay(self, variant):
        model = build(variant, aux_heads=True)
        for coarse in (False, True):
            patterns = model.group_matcher(coarse=coarse).values()
            for name, _ in model.named_parameters():
                assert sum(bool(re.match(pattern, name)) for pattern in patterns) == 1, name
        optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.8)
        scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
        assert len(scale) == len(list(model.parameters()))
        order = [model.stem[0].conv.weight, model.stages[0][0].conv1.conv.weight, model.stages[4][0].conv1.conv.weight,
                 model.decoder.umf.convs[1].conv.weight, model.head.classifier.weight]
        scales = [scale[id(p)] for p in order]
        assert scales == sorted(set(scales)) and scales[-1] == 1
        assert model.no_weight_decay() == set()

    def test_gradient_checkpointing(self, variant):
        x = torch.randn(2, 3, 64, 64)

        def run(checkpointing):
            model = build(variant, aux_heads=True).train()
            model.set_grad_checkpointing(checkpointing)
            saved = {}

            def pack(tensor):
                saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            torch.manual_seed(1)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                output = model(x)
            kept = sum(saved.values()) - sum(p.untyped_storage().nbytes() for p in model.parameters())
            sum(t.square().mean() for t in (output.seg, output.border, output.spatial, *output.aux)).backward()
            return model, kept

        (plain, plain_bytes), (checkpointed, bytes_) = run(False), run(True)
        for (name, a), (_, b) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
            assert torch.equal(a.grad, b.grad), name
        for (name, a), (_, b) in zip(plain.named_buffers(), checkpointed.named_buffers(), strict=True):
            assert torch.equal(a, b), name
        assert bytes_ < 0.5 * plain_bytes

    def test_checkpointing_is_never_reentrant(self):
        model = build("bssnet_t").train()
        model.set_grad_checkpointing()
        timm.layers.set_reentrant_ckpt(True)
        try:
            model(torch.randn(2, 3, 64, 64)).mean().backward()
        finally:
            timm.layers.set_reentrant_ckpt(False)
        assert model.stem[0].conv.weight.grad is not None

    @pytest.mark.parametrize("trace", [lambda model: model, torch.fx.symbolic_trace], ids=["eager", "fx"])
    def test_every_parameter_gets_a_gradient(self, variant, trace):
        model = trace(build(variant, aux_heads=True).train())
        output = model(torch.randn(2, 3, 64, 64))
        sum(t.square().mean() for t in (output.seg, output.border, output.spatial, *output.aux)).backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]

    def test_frozen_trunk_gets_no_gradient(self, variant):
        model = build(variant).train()
        model.stem.requires_grad_(False)
        model.stages.requires_grad_(False)
        model(torch.randn(2, 3, 64, 64)).mean().backward()
        assert all((p.grad is None) == name.startswith(("stem.", "stages.")) for name, p in model.named_parameters())

    def test_sync_batchnorm_keeps_the_activations(self, variant):
        model = build(variant).eval()
        twin = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
        x = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            assert torch.equal(model(x), twin(x))


class TestCompilers:
    def test_script(self, variant, tmp_path):
        model = build(variant).eval()
        torch.jit.script(model).save(tmp_path / "model.pt")
        scripted = torch.jit.load(tmp_path / "model.pt")
        x = torch.randn(1, 3, 97, 130)
        with torch.inference_mode():
            assert close(scripted(x), model(x))

    def test_script_of_features(self):
        model = timm.create_model("bssnet_t", features_only=True, out_indices=(1, 3)).eval()
        scripted, x = torch.jit.script(model), torch.randn(1, 3, 64, 64)
        assert all(torch.equal(a, b) for a, b in zip(scripted(x), model(x), strict=True))
        with pytest.raises(Exception, match="expected images of shape"):  # its own class
            scripted(torch.randn(1, 4, 64, 64))

    def test_timm_folds_batchnorm(self):
        """`timm.utils.reparameterize_model`, for ``--reparam`` of timm's scripts; also before and after `deploy`."""
        model, x = build("bssnet_t", pretrained=True).eval(), street()
        folded = timm.utils.reparameterize_model(model.train()).eval()  # the mode that timm's onnx_export.py has it in
        model.eval()
        norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
        assert 0 < norms < 0.2 * sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        with torch.inference_mode():
            for found in (folded, bssnet_zoo.deploy(folded), timm.utils.reparameterize_model(bssnet_zoo.deploy(model))):
                assert close(found(x), model(x))

    def test_script_of_training_heads(self):
        scripted = torch.jit.script(build("bssnet_t", aux_heads=True).train())
        x = torch.randn(2, 3, 64, 64)
        assert scripted(x).seg.shape == (2, 11, 8, 8)
        assert scripted.eval()(x).shape == (2, 11, 64, 64)

    @pytest.mark.parametrize("aux_heads", [False, True])
    def test_fx(self, variant, aux_heads):
        model = build(variant, aux_heads=aux_heads).eval()
        traced = torch.fx.symbolic_trace(model)
        with torch.inference_mode():
            for size in ((64, 64), (97, 130)):
                x = torch.randn(1, 3, *size)
                assert torch.equal(traced(x), model(x))
            with pytest.raises(ValueError, match="expected images of shape"):
                traced(torch.randn(1, 4, 64, 64))

    def test_export_static(self, variant):
        model = build(variant).eval()
        x = torch.randn(1, 3, 61, 83)
        exported = torch.export.export(model, (x,)).module()
        with torch.inference_mode():
            assert close(exported(x), model(x))

    @pytest.mark.slow
    def test_export_dynamic(self, variant):
        model = build(variant).eval()
        batch, height, width = (torch.export.Dim(name, min=low, max=high) for name, low, high in (
            ("batch", 1, 16), ("height", 9, 64), ("width", 9, 64)))
        shapes = {"x": {0: batch, 2: 64 * height, 3: 64 * width}}
        exported = torch.export.export(model, (torch.randn(2, 3, 576, 640),), dynamic_shapes=shapes).module()
        with torch.inference_mode():
            x = torch.randn(1, 3, 640, 704)
            assert close(exported(x), model(x))

    def test_compile_in_one_graph(self, variant):
        """Code for it is made in test_deploy.py."""
        model, x = build(variant).eval(), torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            assert close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x), 1e-4)

    @pytest.mark.slow
    def test_compile_training_in_one_graph(self):
        model = shallow(aux_heads=True, drop_rate=0.).train()
        twin = copy.deepcopy(model)
        twin.set_grad_checkpointing(True)
        x = torch.randn(2, 3, 64, 64)
        found = torch.compile(twin, fullgraph=True, backend="aot_eager")(x).seg  # forward and backward
        found.mean().backward()
        assert close(found.detach(), model(x).seg.detach(), 1e-4)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(twin.buffers(), model.buffers(), strict=True))

    def test_channels_last_and_bfloat16(self, variant):
        model = build(variant, pretrained=True).eval()
        x = street()
        with torch.inference_mode():
            expected = model(x)
            model = model.to(memory_format=torch.channels_last)
            features = model.forward_features(x.to(memory_format=torch.channels_last))
            assert features.is_contiguous(memory_format=torch.channels_last)
            assert close(model(x.to(memory_format=torch.channels_last)), expected, 1e-4)
            with torch.autocast("cpu", torch.bfloat16):
                found = model(x)
            assert found.dtype == torch.bfloat16
            assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.97

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half(self, variant, dtype):
        model = build(variant, pretrained=True).eval()
        x = street()
        with torch.inference_mode():
            expected = model(x)
            found = model.to(dtype)(x.to(dtype))
            assert found.dtype == dtype
            assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.97


class TestBadInput:
    @pytest.mark.parametrize(("x", "message"), [
        (torch.randn(3, 64, 64), r"expected images of shape \[N, 3, H, W\], got \[3, 64, 64\]"),
        (torch.randn(1, 4, 64, 64), r"expected images of shape \[N, 3, H, W\], got \[1, 4, 64, 64\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "expected floating point images.*got torch.uint8.*predict"),
        (torch.randn(1, 3, 64, 31), r"height and width of 32 or more, got \[64, 31\]"),
    ])
    def test_images(self, tiny, x, message):
        with pytest.raises(ValueError, match=message):
            tiny(x)
        with pytest.raises(ValueError, match=message):
            tiny.forward_intermediates(x)

    def test_training_on_one_image(self, tiny):
        with pytest.raises(ValueError, match="batch of 1.*batch of 2 or more.*eval mode"):
            tiny.train()(torch.randn(1, 3, 128, 128))
        for module in tiny.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        assert tiny(torch.randn(1, 3, 64, 64)).shape == (1, 11, 64, 64)

    @pytest.mark.parametrize(("kwargs", "message"), [
        (dict(num_classes=-1), "num_classes must be 0 .* or more, got -1"),
        (dict(in_chans=0), "in_chans must be 1 or more, got 0"),
        (dict(num_classes=0, aux_heads=True), "aux_heads=True .* num_classes of 1 or more"),
        (dict(pretrained="street"), "pretrained is True or False, got 'street': .*pretrained_cfg='street'"),
        (dict(features_only=True, output_stride=16), "takes no output_stride: as an encoder of segmentation_models"),
    ])
    def test_arguments(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            bssnet_zoo.create_model("bssnet_t", **kwargs)

    def test_reset_classifier(self, tiny):
        with pytest.raises(ValueError, match="got -3"):
            tiny.reset_classifier(-3)
        assert tiny.num_classes == 11
        with pytest.raises(ValueError, match="a deployed model keeps its classifier"):
            bssnet_zoo.deploy(tiny).reset_classifier(3)

    @pytest.mark.parametrize(("name", "message"), [
        ("bssnet_s", "unknown model 'bssnet_s'. Did you mean bssnet_"),
        ("bsnet-b", "unknown model 'bsnet-b'. Did you mean bssnet_b"),
        ("resnet18", "unknown model 'resnet18'.*timm.create_model"),
        ("bssnet_t.cityscapes", "unknown tag 'cityscapes' of bssnet_t: its weights are camvid, street, pidnet_in1k"),
    ])
    def test_names(self, name, message):
        with pytest.raises(ValueError, match=message):
            bssnet_zoo.create_model(name)


def test_torch_hub():
    hub = dict(repo_or_dir=str(Path(__file__).parents[1]), source="local", trust_repo=True)
    found = torch.hub.load(model="bssnet_t", pretrained=True, pretrained_cfg="street", **hub)
    expected = bssnet_zoo.create_model("bssnet_t.street", pretrained=True)
    assert torch.equal(found.head.classifier.weight, expected.head.classifier.weight)
    assert 'pretrained_cfg`` ("camvid", "street"' in bssnet_zoo.models.bssnet_t.__doc__  # what torch.hub.help prints


def test_list_models():
    assert bssnet_zoo.list_models() == ["bssnet_b", "bssnet_t"]
    assert set(bssnet_zoo.list_models(pretrained=True)) == {
        "bssnet_b.camvid", "bssnet_b.pidnet_in1k", "bssnet_t.camvid", "bssnet_t.street",
        "bssnet_t.pidnet_in1k"}
    assert "bssnet_t.camvid" in timm.list_models("bssnet*", pretrained=True)
