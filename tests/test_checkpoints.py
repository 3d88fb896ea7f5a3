"""Checkpoints of others: every naming is read, and nothing is loaded in part without a word."""
import argparse
import logging
import os
import re

import numpy as np
import pytest
import torch
from conftest import filled, image
from safetensors.torch import load_file, save_file

import bssnet_zoo
from bssnet_zoo.models import open_model
from bssnet_zoo.models.checkpoints import convert_names, read_checkpoint

X = image(1, 3, 64, 64)


def logits(model):
    with torch.inference_mode():
        return model.eval()(X)


@pytest.fixture(scope="module")
def expected(published):
    return logits(bssnet_zoo.create_model("bssnet_t", num_classes=19, checkpoint_path=published("bssnet_t")))


def without_heads(state_dict):
    return {k: v for k, v in state_dict.items() if not k.startswith(("decode_head.b_", "decode_head.d_", "auxiliary"))}


WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "meta": {"epoch": 3}, "optimizer": {"lr": 0.1}},
    "module": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {"model": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
    "half": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    "mmengine": lambda s: {"state_dict": {**s, "data_preprocessor.mean": torch.zeros(3)}, "message_hub": {}},
    "lightning": lambda s: {
        "state_dict": {**{f"model._orig_mod.{k}": v for k, v in s.items()}, "criterion.weight": torch.ones(19)}},
    "averaged": lambda s: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}},
    "loss": lambda s: {"model": {**s, "loss_fn.weight": torch.ones(19), "decode_head.loss_decode.w": torch.ones(19)}},
    "compiled inside": lambda s: {k.replace("backbone.", "backbone._orig_mod."): v for k, v in s.items()},
    "without training heads": without_heads,
    "without counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


FLAT = ("bare", "half", "compiled inside")


@pytest.mark.parametrize(("wrapping", "suffix"), [
    *((name, ".pth") for name in WRAPPINGS), *((name, ".safetensors") for name in FLAT)])
def test_published(wrapping, suffix, expected, tmp_path):
    checkpoint = WRAPPINGS[wrapping](filled("bssnet_t"))
    path = tmp_path / f"checkpoint{suffix}"
    (torch.save if suffix == ".pth" else save_file)(checkpoint, path)
    model = bssnet_zoo.create_model("bssnet_t", num_classes=19, checkpoint_path=path)
    tolerance = 1e-2 if wrapping == "half" else 1e-6
    assert (logits(model) - expected).abs().max() <= tolerance * expected.abs().max()
    by_filter = bssnet_zoo.create_model("bssnet_t", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    assert by_filter.num_classes == 19 and torch.equal(logits(by_filter), logits(model))
    assert "label_names" not in by_filter.pretrained_cfg


@pytest.mark.parametrize(("key", "other"), [
    ("state_dict_ema", "state_dict"), ("model_ema", "model"), ("ema", "model"), ("ema_model", "state_dict"),
    ("model_state_dict", "optimizer_state_dict"),
    ("state_dict", "ema_state_dict"),  # mmengine's hook swaps the two when it saves
])
def test_of_several_copies_the_ema_one(key, other, expected, tmp_path, caplog):
    good = filled("bssnet_t")
    bad = {k: torch.zeros_like(v) for k, v in good.items()}
    path = saved(tmp_path, {other: bad, key: {"steps": torch.tensor(7), **{f"module.{k}": v for k, v in good.items()}}})
    with caplog.at_level(logging.INFO, logger="bssnet_zoo"):
        model = bssnet_zoo.create_model("bssnet_t", num_classes=19, checkpoint_path=path)
    assert torch.equal(logits(model), expected)
    assert (f"taking the EMA weights, '{key}'" in caplog.text) == ("ema" in key)
    model = bssnet_zoo.create_model("bssnet_t", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    assert torch.equal(logits(model), expected)


def test_what_timm_saves_beside_the_weights(tmp_path):
    """CheckpointSaver's arguments and metric."""
    path = saved(tmp_path, {
        "state_dict": filled("bssnet_t"), "args": argparse.Namespace(lr=0.1, size=(3, 4)), "metric": np.float32(0.7),
        "best": np.float64(0.8), "epoch": np.int64(3), "done": np.bool_(True)})
    assert len(read_checkpoint(path)) == len(filled("bssnet_t"))


@pytest.mark.parametrize("meta", [
    {"dataset_meta": {"classes": tuple("abcdefghijklmnopqrs"), "palette": [[i, 0, 9] for i in range(19)]}},
    {"CLASSES": tuple("abcdefghijklmnopqrs"), "PALETTE": [[i, 0, 9] for i in range(19)]}])
def test_mmsegmentations_names_of_the_classes(meta, tmp_path):
    path = saved(tmp_path, {"state_dict": filled("bssnet_t"), "meta": meta})
    bssnet_zoo.convert_checkpoint(path, tmp_path / "ours.safetensors")
    for file in (path, tmp_path / "ours.safetensors"):
        model = bssnet_zoo.create_model(None, checkpoint_path=file)
        assert bssnet_zoo.class_info(model).names[:3] == ("a", "b", "c")
        assert bssnet_zoo.class_info(model).palette[2] == (2, 0, 9)


@pytest.mark.parametrize("meta", [3, {}, {"CLASSES": ("a",), "PALETTE": [[0, 0, 0]]}, {"dataset_meta": {"classes": 3}}])
def test_names_that_do_not_count_the_classes(meta, tmp_path):
    model = bssnet_zoo.create_model(
        None, checkpoint_path=saved(tmp_path, {"state_dict": filled("bssnet_t"), "meta": meta}))
    assert bssnet_zoo.class_info(model).names[18] == "class_18"


def test_native_files(tmp_path):
    torch.manual_seed(0)
    model = bssnet_zoo.create_model("bssnet_t", num_classes=5, aux_heads=True)
    torch.save(model.state_dict(), tmp_path / "native.pth")
    save_file(model.state_dict(), tmp_path / "native.safetensors")
    for path in tmp_path.iterdir():
        twin = bssnet_zoo.create_model(None, aux_heads=True, checkpoint_path=path)
        assert all(torch.equal(tensor, twin.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(logits(bssnet_zoo.create_model(None, checkpoint_path=path)), logits(model))


def test_training_heads_that_a_checkpoint_lacks_are_logged(tmp_path, caplog):
    torch.save(without_heads(filled("bssnet_t")), tmp_path / "bare.pth")
    with caplog.at_level(logging.INFO, logger="bssnet_zoo"):
        bssnet_zoo.create_model("bssnet_t", num_classes=19, aux_heads=True, checkpoint_path=tmp_path / "bare.pth")
    assert "left as initialised: border_head.classifier, border_head.conv.bn" in caplog.text


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_pidnet_trunk_sets_the_trunk_alone(prefix, tmp_path, caplog):
    torch.save({"state_dict": {prefix + k: v for k, v in filled("pidnet_s").items()}}, tmp_path / "pidnet.pth")
    torch.manual_seed(3)
    initial = bssnet_zoo.create_model("bssnet_t", aux_heads=True).state_dict()
    torch.manual_seed(3)
    with caplog.at_level(logging.INFO, logger="bssnet_zoo"):
        model = bssnet_zoo.create_model("bssnet_t", aux_heads=True, checkpoint_path=tmp_path / "pidnet.pth")
    for name, tensor in model.state_dict().items():
        kept = torch.equal(tensor, initial[name])
        assert kept != (name.startswith(("stem.", "stages.")) and "num_batches" not in name), name
    assert caplog.text.count("left as initialised") == 1
    assert "decoder.border.conv1.conv, " in caplog.text and "stages." not in caplog.text.split("initialised")[1]


def test_convert(tmp_path, published, expected):
    bssnet_zoo.convert_checkpoint(published("bssnet_t"), tmp_path / "out.safetensors", dtype=None)
    state_dict = load_file(tmp_path / "out.safetensors")
    assert set(state_dict) == set(bssnet_zoo.create_model("bssnet_t", aux_heads=True, device="meta").state_dict())
    model = bssnet_zoo.create_model("bssnet_t", num_classes=19, checkpoint_path=tmp_path / "out.safetensors")
    assert torch.equal(logits(model), expected)
    bssnet_zoo.convert_checkpoint(published("bssnet_t"), tmp_path / "half.safetensors")
    assert {t.dtype for t in load_file(tmp_path / "half.safetensors").values()} == {torch.float16, torch.int64}
    with pytest.raises(ValueError, match=r"must end in .safetensors, got .*out.pth"):
        bssnet_zoo.convert_checkpoint(published("bssnet_t"), tmp_path / "out.pth")
    with pytest.raises(ValueError, match="dtype must be torch.float16, .* or None, got torch.int8"):
        bssnet_zoo.convert_checkpoint(published("bssnet_t"), tmp_path / "new.safetensors", torch.int8)
    with pytest.raises(FileNotFoundError):
        bssnet_zoo.convert_checkpoint(tmp_path / "none.pth", tmp_path / "new.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half.safetensors", "out.safetensors"]


def test_features_of_a_checkpoint(published, tmp_path):
    net = bssnet_zoo.create_model(
        "bssnet_t", features_only=True, out_indices=(1,), checkpoint_path=published("bssnet_t"))
    whole = bssnet_zoo.create_model("bssnet_t", num_classes=19, checkpoint_path=published("bssnet_t")).eval()
    with torch.inference_mode():
        assert torch.equal(net.eval()(X)[0], whole.forward_intermediates(X, [1], intermediates_only=True)[0])


def test_a_checkpoint_without_its_classifier(published):
    model = bssnet_zoo.create_model("bssnet_t", num_classes=0, checkpoint_path=published("bssnet_t"))
    assert torch.equal(model.head.norm.weight, filled("bssnet_t")["decode_head.fuse_b_d_head.norm.weight"])


def saved(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


class Custom:
    pass


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


class TestRefused:
    def refuse(self, path, message, model="bssnet_t", error=ValueError, **kwargs):
        with pytest.raises(error, match=message) as caught:
            bssnet_zoo.create_model(model, checkpoint_path=path, **kwargs)
        assert len(str(caught.value).splitlines()) <= 2 and str(path) in str(caught.value)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            bssnet_zoo.create_model(
                model, pretrained=True, pretrained_cfg_overlay=dict(file=str(path), num_classes=11), **kwargs)

    def test_missing(self, tmp_path):
        self.refuse(tmp_path / "none.pth", "checkpoint not found: .*none.pth", error=FileNotFoundError)
        for name in ("best.ckpt", "runs/mine/best.ckpt", "best.safetensors"):
            with pytest.raises(FileNotFoundError, match=f"checkpoint not found: {name}, and no model has that name"):
                open_model(name)

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_truncated(self, suffix, published, tmp_path):
        whole = published("bssnet_t")
        if suffix == ".safetensors":
            save_file(filled("bssnet_t"), tmp_path / "whole.safetensors")
            whole = tmp_path / "whole.safetensors"
        path = tmp_path / f"half{suffix}"
        path.write_bytes(whole.read_bytes()[:100_000])
        self.refuse(path, "half.* is truncated or not a checkpoint")

    @pytest.mark.parametrize("name", ["page.pth", "page.safetensors"])
    @pytest.mark.parametrize("text", ["<html>404</html>" * 100, "", ".", "G", "hello"])
    def test_not_a_checkpoint(self, name, text, tmp_path):
        (tmp_path / name).write_text(text)
        self.refuse(tmp_path / name, "not a checkpoint")

    def test_in_chans(self, published, tmp_path):
        with pytest.raises(ValueError, match="takes 3 channels, .*in_chans must be 3.*pretrained_cfg_overlay"):
            bssnet_zoo.create_model("bssnet_t", num_classes=19, in_chans=1, checkpoint_path=published("bssnet_t"))

    def test_code_in_a_pickle(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        self.refuse(saved(tmp_path, {"state_dict": filled("bssnet_t"), "hook": Evil()}),
                    r"is refused: .*more than tensors and plain containers \(posix.mkdir\)")
        assert not (tmp_path / "pwned").exists()

    @pytest.mark.parametrize(("key", "hint"), [
        ("state_dict", "['state_dict']"), ("model_state_dict", "['model_state_dict']"), ("mine", "")])
    def test_other_objects(self, key, hint, tmp_path):
        more = {"message_hub": Custom(), "curve": np.arange(3.)}
        self.refuse(saved(tmp_path, {key: filled("bssnet_t"), **more}), re.escape(
            "(test_checkpoints.Custom), which can run code. Save its tensors alone where you trust it: "
            f"torch.save(torch.load(f, weights_only=False){hint}, g)"))

    @pytest.mark.parametrize(("tensor", "kind"), [
        (torch.zeros(3).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (torch.zeros(3, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(3).to_sparse(), "torch.sparse_coo torch.float32"),
        (torch.zeros(3, device="meta"), "meta"),
        (torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "torch.qint8"),
    ])
    def test_tensors_without_plain_numbers(self, tensor, kind, tmp_path):
        more = {**filled("bssnet_t"), "decode_head.conv_seg.bias": tensor}
        self.refuse(saved(tmp_path, more), f"decode_head.conv_seg.bias is a tensor of kind {kind}: save it as a")

    def test_torchscript(self, tmp_path):
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "renamed.pth")
        self.refuse(tmp_path / "renamed.pth", "is a TorchScript file, a program, and no checkpoint: give the weights")

    def test_a_dict_in_itself(self, tmp_path):
        checkpoint = {}
        checkpoint["state_dict"] = checkpoint
        self.refuse(saved(tmp_path, checkpoint), "no names of a BSSNet or PIDNet in this checkpoint: it has no tensors")

    def test_two_networks(self, tmp_path):
        both = {f"{name}.{k}": v for k, v in filled("bssnet_t").items() for name in ("teacher", "student")}
        self.refuse(saved(tmp_path, both), "2 networks in this checkpoint, named student., teacher.: save the one")

    def test_old_format_pickle(self, tmp_path):
        path = tmp_path / "old.pth"
        torch.save({"state_dict": {}, "hook": Custom()}, path, _use_new_zipfile_serialization=False)
        self.refuse(path, r"is refused: to unpickle it takes more than tensors.*test_checkpoints.Custom\)")

    @pytest.mark.parametrize("checkpoint", [
        {}, {"fc.weight": torch.zeros(3)}, {"state_dict": {"a": torch.zeros(1)}}, {0: torch.zeros(1)},
        {"aa.stages": torch.zeros(1), "stages.0.blocks.0.weight": torch.zeros(1)}])
    def test_fits_nothing(self, checkpoint, tmp_path):
        self.refuse(saved(tmp_path, checkpoint), "no names of a BSSNet or PIDNet .*: it has (fc.weight|a|no)")

    def test_not_a_dict(self, tmp_path):
        self.refuse(saved(tmp_path, [torch.zeros(3)]), "holds list, expected a dict of tensors")

    def test_class_count(self, published):
        self.refuse(published("bssnet_t"), "has 19 classes, 11 are asked for: num_classes must be 19", num_classes=11)

    def test_other_variant(self, published, tmp_path):
        self.refuse(published("bssnet_t"), "of another model, it fits bssnet_t: .* shape", "bssnet_b", num_classes=19)
        self.refuse(saved(tmp_path, filled("pidnet_m")), "of another model, it fits bssnet_b")

    def test_pidnet_l(self, tmp_path):
        self.refuse(saved(tmp_path, filled("pidnet_l")), r"trunk has layers that .*stages\..*L neither", "bssnet_b")

    @pytest.mark.parametrize("lost", ["backbone.i_branch_layers.1", "backbone.spp", "decode_head.conv_seg"])
    def test_incomplete(self, lost, tmp_path):
        part = {k: v for k, v in filled("bssnet_t").items() if not k.startswith(lost)}
        self.refuse(saved(tmp_path, part), r"leaves \d+ tensors of the model unset: .*", num_classes=19)

    def test_incomplete_pidnet(self, tmp_path):
        part = {k: v for k, v in filled("pidnet_s").items() if not k.startswith("layer5.")}
        self.refuse(saved(tmp_path, part), r"leaves \d+ tensors of the model unset: stages.4.0.conv1.bn.bias.* and")

    def test_unknown_tensors(self, tmp_path):
        more = {**filled("bssnet_t"), "backbone.attention9.weight": torch.zeros(3)}
        self.refuse(saved(tmp_path, more), "tensors that this model lacks: backbone.attention9.weight", num_classes=19)

    def test_nothing_is_loaded(self, tmp_path, tiny):
        before = {k: v.clone() for k, v in tiny.state_dict().items()}
        part = {k: v for k, v in convert_names(filled("bssnet_t")).items() if "stages.3" not in k}
        with pytest.raises(ValueError, match="unset|classes"):
            bssnet_zoo.load_checkpoint(tiny, saved(tmp_path, part))
        assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())


def test_reading_keeps_values(published):
    state_dict = read_checkpoint(published("bssnet_t"))
    ours = filled("bssnet_t")
    assert len(state_dict) == len(ours)
    assert torch.equal(state_dict["decoder.umf.convs.1.conv.weight"], ours["backbone.fuse_bdi.conv_y._conv.weight"])
