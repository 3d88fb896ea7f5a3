"""Pretrained weights: bundled, offline, hashed; and the public PIDNet trunks, from a server on this machine."""
import hashlib
import http.server
import logging
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from conftest import SIZES, filled
from PIL import Image
from timm.models import adapt_input_conv
from torchvision.transforms.v2 import functional as TF

import bssnet_zoo
from bssnet_zoo.models import weights
from bssnet_zoo.models.checkpoints import CLASSIFIERS
from bssnet_zoo.models.weights import WEIGHTS

ROOT = Path(__file__).parents[1]
STREET = weights.ASSETS / "street.png"


@pytest.fixture(scope="module")
def street():
    x = TF.to_dtype(TF.pil_to_tensor(Image.open(STREET).resize((240, 180))), torch.float32, scale=True)
    return TF.normalize(x, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))[None]


def logits(model, x):
    with torch.inference_mode():
        return model.eval()(x)


def test_the_three_ways_give_the_same_logits(variant, street):
    expected = logits(bssnet_zoo.create_model(variant, pretrained=True), street)
    assert expected.shape == (1, 11, 180, 240)
    for model in (
            timm.create_model(variant, pretrained=True),
            timm.create_model(f"{variant}.camvid", pretrained=True),
            torch.hub.load(str(ROOT), variant, pretrained=True, source="local", trust_repo=True),
    ):
        assert torch.equal(logits(model, street), expected)


def test_config(variant):
    model = bssnet_zoo.create_model(variant, pretrained=True)
    cfg = model.pretrained_cfg
    assert cfg["num_classes"] == 11 and tuple(cfg["input_size"]) == (3, *SIZES[variant]) and cfg["tag"] == "camvid"
    assert tuple(cfg["mean"]) == (0.485, 0.456, 0.406) and tuple(cfg["std"]) == (0.229, 0.224, 0.225)
    assert cfg["label_names"][3] == "road" and cfg["label_descriptions"]["road"] == "#804080"
    assert bssnet_zoo.class_info(model).palette[3] == (128, 64, 128)
    assert "file" not in cfg and "state_dict" not in cfg
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert cfg == bssnet_zoo.create_model(variant).pretrained_cfg
    assert 50 < WEIGHTS[f"{variant}.camvid"].metrics["miou"] < 100


def test_an_entry_of_the_list_is_all_that_a_file_needs():
    assert {path.name for path in weights.ASSETS.glob("*.safetensors")} == {f"{name}.safetensors" for name in WEIGHTS}
    assert set(WEIGHTS) < set(bssnet_zoo.list_models(pretrained=True))
    assert all(timm.get_pretrained_cfg(name).input_size == (3, *WEIGHTS[name].size) for name in WEIGHTS)
    pins = {weights.pinned_sha256(f"{org}/bssnet_t.camvid") for org in ("bssnet-zoo", "BSSNet-Zoo", "acme")}
    assert pins == {WEIGHTS["bssnet_t.camvid"].sha256, None}


def test_training_heads(variant, street, caplog):
    with caplog.at_level(logging.INFO, logger="bssnet_zoo"):
        with_heads = bssnet_zoo.create_model(variant, pretrained=True, aux_heads=True)
        without = bssnet_zoo.create_model(variant, pretrained=True)
    assert "initialised" not in caplog.text and "head" not in caplog.text
    assert torch.equal(logits(with_heads, street), logits(without, street))
    with torch.no_grad():
        output = with_heads.train()(street.repeat(2, 1, 1, 1))
    small = torch.nn.functional.interpolate(street, output.spatial.shape[-2:], mode="area")
    assert (output.spatial - small).abs().mean() < 0.5 * small.abs().mean()  # it reconstructs the image
    assert not [name for name in without.state_dict() if name.startswith(("border_head", "spatial_head", "fcn_heads"))]


@pytest.mark.parametrize("kwargs", [
    dict(num_classes=7), dict(num_classes=7, aux_heads=True), dict(num_classes=0),
    dict(num_classes=7, aux_heads=True, in_chans=1), dict(num_classes=7, features_only=True)])
def test_another_class_count_keeps_all_but_the_classifiers(kwargs, tmp_path):
    """A saved folder's config names the classifier of a model without training heads, its weights have these heads."""
    timm.models.save_for_hf(bssnet_zoo.create_model("bssnet_t"), tmp_path, safe_serialization=True)
    shutil.copy(WEIGHTS["bssnet_t.camvid"].path, tmp_path / "model.safetensors")
    full = bssnet_zoo.create_model("bssnet_t", pretrained=True, aux_heads=True).state_dict()
    for source in (f"local-dir:{tmp_path}", "bssnet_t"):
        model = timm.create_model(source, pretrained=True, **kwargs)
        for name, tensor in getattr(model, "model", model).state_dict().items():
            new = name.startswith((*CLASSIFIERS, "spatial_head.classifier.", "stem.0.conv."))
            if new and tensor.shape != full[name].shape:
                assert tensor.shape[0] == 7 or kwargs.get("in_chans") == 1
            elif not name.endswith("classifier.bias"):
                assert torch.equal(tensor, full[name]), name


@pytest.mark.parametrize(("in_chans", "aux_heads"), [(1, False), (4, True)])
def test_in_chans_adapts_the_first_conv(in_chans, aux_heads):
    model = bssnet_zoo.create_model("bssnet_t", pretrained=True, in_chans=in_chans, aux_heads=aux_heads)
    full = bssnet_zoo.create_model("bssnet_t", pretrained=True)
    expected = adapt_input_conv(in_chans, full.stem[0].conv.weight.detach())
    assert torch.allclose(model.stem[0].conv.weight, expected, atol=1e-3)
    assert torch.equal(model.head.classifier.weight, full.head.classifier.weight)
    assert logits(model, torch.randn(1, in_chans, 64, 64)).shape == (1, 11, 64, 64)


def test_pretrained_features(street):
    net = timm.create_model("bssnet_t", pretrained=True, features_only=True, out_indices=(2,)).eval()
    whole = bssnet_zoo.create_model("bssnet_t", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(net(street)[0], whole.forward_intermediates(street, [2], intermediates_only=True)[0])


@pytest.mark.parametrize("change", ["flipped byte", "truncated"])
def test_a_bundled_file_with_the_wrong_hash_is_refused(change, tmp_path, monkeypatch):
    path, expected = tmp_path / "bssnet_t.camvid.safetensors", WEIGHTS["bssnet_t.camvid"].sha256
    shutil.copy(WEIGHTS["bssnet_t.camvid"].path, path)
    with open(path, "r+b") as file:
        if change == "truncated":
            file.truncate(1000)
        else:
            file.seek(1_000_000)
            byte = file.read(1)[0]
            file.seek(1_000_000)
            file.write(bytes([byte ^ 1]))
    monkeypatch.setattr(weights, "ASSETS", tmp_path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(RuntimeError, match=rf"has sha256 {found}, expected {expected}: the file is damaged"):
        bssnet_zoo.create_model("bssnet_t", pretrained=True)


def test_what_the_caller_names_comes_first(tmp_path, published):
    model = timm.create_model(
        "bssnet_t", pretrained=True, pretrained_cfg_overlay=dict(file=str(published("bssnet_t")), num_classes=19))
    assert torch.equal(model.head.classifier.weight, filled("bssnet_t")["decode_head.conv_seg.weight"])
    state_dict = {k: v + 1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model = timm.create_model(
        "bssnet_t", pretrained=True, pretrained_cfg_overlay=dict(state_dict=state_dict, num_classes=19))
    assert torch.equal(model.stem[0].conv.weight, state_dict["stem.0.conv.weight"])


def test_a_saved_folder_loads_through_timm(tmp_path, street):
    model = bssnet_zoo.create_model("bssnet_t", pretrained=True)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(logits(again, street), logits(model, street))
    assert bssnet_zoo.class_info(again) == bssnet_zoo.class_info(model)
    assert torch.equal(logits(bssnet_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True), street),
                       logits(model, street))


@pytest.fixture
def trunk_server(tmp_path):
    """PIDNet trunks under names of the public release's pattern, served over HTTP; gives URLs by size."""
    folder = tmp_path / "served"
    folder.mkdir()
    urls = {}
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *args: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for size in ("s", "m"):
        torch.save(filled(f"pidnet_{size}"), folder / "trunk.pth")
        digest = hashlib.sha256((folder / "trunk.pth").read_bytes()).hexdigest()
        name = f"pidnet-{size}_imagenet1k_20230306-{digest[:8]}.pth"
        (folder / "trunk.pth").rename(folder / name)
        urls[size] = f"http://127.0.0.1:{server.server_port}/{name}"
    yield urls, folder
    server.shutdown()


def test_pidnet_tag(variant, trunk_server, tmp_path, caplog):
    urls, _ = trunk_server
    url = urls[{"bssnet_t": "s", "bssnet_b": "m"}[variant]]
    with caplog.at_level(logging.INFO, logger="bssnet_zoo"):
        model = timm.create_model(
            f"{variant}.pidnet_in1k", pretrained=True, pretrained_cfg_overlay=dict(url=url), cache_dir=tmp_path)
    assert model.num_classes == 19
    state_dict = filled({"bssnet_t": "pidnet_s", "bssnet_b": "pidnet_m"}[variant])
    assert torch.equal(model.stages[2][0].conv1.conv.weight, state_dict["layer3.0.conv1.weight"])
    assert caplog.text.count("left as initialised") == 1
    registered = timm.get_pretrained_cfg(f"{variant}.pidnet_in1k")
    assert registered.url.startswith("https://download.openmmlab.com/") and registered.url.endswith(
        {"bssnet_t": "-715e6273.pth", "bssnet_b": "-39893c52.pth"}[variant])


def test_a_downloaded_file_with_the_wrong_hash_is_refused(trunk_server, tmp_path):
    urls, folder = trunk_server
    served = folder / urls["s"].rpartition("/")[2]
    served.write_bytes(served.read_bytes() + b"x")
    overlay, cache = dict(url=urls["s"]), tmp_path / "cache"
    with pytest.raises(RuntimeError, match="invalid hash value"):
        bssnet_zoo.create_model(
            "bssnet_t.pidnet_in1k", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache)
    assert not list(cache.iterdir())
    shutil.copy(served, cache)  # and when it is in the cache already
    with pytest.raises(RuntimeError, match=r"has sha256 \w+, which does not begin with the hash in its name"):
        bssnet_zoo.create_model(
            "bssnet_t.pidnet_in1k", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache)


def test_no_network(tmp_path):
    with pytest.raises(RuntimeError, match="can't download http://127.0.0.1:9/trunk.pth: .*checkpoint_path"):
        bssnet_zoo.create_model("bssnet_t.pidnet_in1k", pretrained=True, cache_dir=tmp_path,
                                pretrained_cfg_overlay=dict(url="http://127.0.0.1:9/trunk.pth"))


@pytest.mark.parametrize(("config", "message"), [
    ('{"model_type": "segformer"}', "names no 'architecture': it is no model of timm or this package"),
    ("<html>", "is no JSON object: Expecting value")])
def test_config_of_others(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        bssnet_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True)
