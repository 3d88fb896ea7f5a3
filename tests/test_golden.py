"""The network gives the numbers of the authors' code."""
import numpy as np
import pytest
import torch
from conftest import filled, image

import bssnet_zoo
from bssnet_zoo.models.checkpoints import convert_names


@pytest.fixture
def golden_model(variant, published):
    return bssnet_zoo.create_model(
        variant, num_classes=19, aux_heads=True, drop_rate=0., checkpoint_path=published(variant))


@pytest.mark.parametrize("size", [(128, 256), (90, 122)])
def test_eval_logits_and_labels(golden_model, golden, variant, size):
    model = golden_model.eval()
    key = f"{variant[-1]}_eval_{{}}_{size[0]}x{size[1]}"
    with torch.inference_mode():
        x = image(1, 3, *size)
        raw = model.forward_head(model.forward_features(x))
        labels = model(x).argmax(1)
    assert raw.shape == golden[key.format("logits")].shape
    assert np.abs(raw.numpy() - golden[key.format("logits")]).max() <= 1e-4
    assert (labels.numpy() == golden[key.format("labels")]).mean() >= 0.9999


def test_train_maps(golden_model, golden, variant):
    output = golden_model.train()(image(2, 3, 96, 160))
    maps = dict(seg=output.seg, border=output.border, spatial=output.spatial, aux0=output.aux[0], aux1=output.aux[1])
    for name, found in maps.items():
        expected = golden[f"{variant[-1]}_train_{name}"]
        assert found.shape == expected.shape
        assert np.abs(found.detach().numpy() - expected).max() <= 1e-3, name


def openmmlab_trunk(state_dict):
    """The same PIDNet trunk under OpenMMLab's names, whose stem convolutions have no bias."""
    ours = convert_names(state_dict)
    official = [name for name in filled("bssnet_t") if name.startswith(("backbone.stem", "backbone.i_branch"))]
    official_of = dict(zip(convert_names({name: torch.empty(0) for name in official}), official, strict=True))
    return {official_of[name]: tensor for name, tensor in ours.items()}


@pytest.mark.parametrize("naming", ["original", "openmmlab"])
@pytest.mark.parametrize("size", ["s", "m"])
def test_pidnet_trunk(golden, size, naming, tmp_path):
    state_dict = filled(f"pidnet_{size}")
    torch.save(openmmlab_trunk(state_dict) if naming == "openmmlab" else state_dict, tmp_path / "pidnet.pth")
    model = bssnet_zoo.create_model({"s": "bssnet_t", "m": "bssnet_b"}[size], checkpoint_path=tmp_path / "pidnet.pth")
    with torch.inference_mode():
        features = model.eval().forward_intermediates(image(1, 3, 128, 256), intermediates_only=True)
    for layer, found in zip((3, 4, 5), features[2:], strict=True):
        assert np.abs(found.numpy() - golden[f"pidnet_{size}_layer{layer}"]).max() <= 1e-4, layer
