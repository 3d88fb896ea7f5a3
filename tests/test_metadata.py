"""What a checkpoint says of itself is used wherever it goes, and what it can't be is refused."""
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bssnet_zoo
from bssnet_zoo.cli import main
from bssnet_zoo.models.checkpoints import read_checkpoint
from bssnet_zoo.models.metadata import read_metadata
from bssnet_zoo.models.weights import ASSETS

STREET = ASSETS / "street.png"


@pytest.fixture(scope="module")
def best(finished, tmp_path_factory):
    """A trained checkpoint, away from its run folder."""
    return Path(shutil.copy(finished[0] / "best.safetensors", tmp_path_factory.mktemp("elsewhere")))


class TestAModelKnowsItsClasses:
    def test_notes(self, best):
        notes = read_metadata(best)
        assert json.loads(notes["class_names"]) == ["sky", "road", "car"]
        assert json.loads(notes["input_size"]) == [64, 96] and notes["architecture"] == "bssnet_t"

    def test_create_model(self, best):
        for model in (bssnet_zoo.create_model("bssnet_t", checkpoint_path=best), bssnet_zoo.create_model(
                "bssnet_t", pretrained=True, pretrained_cfg_overlay=dict(file=str(best)))):
            assert model.num_classes == 3 and bssnet_zoo.class_info(model).names == ("sky", "road", "car")
            assert model.pretrained_cfg["input_size"] == (3, 64, 96)

    def test_another_class_count_is_the_callers(self, best):
        model = bssnet_zoo.create_model(
            "bssnet_t", pretrained=True, num_classes=5, pretrained_cfg_overlay=dict(file=str(best)))
        assert bssnet_zoo.class_info(model).names[0] == "class_0"

    def test_features_of_a_checkpoint(self, best):
        model = bssnet_zoo.create_model("bssnet_t", checkpoint_path=best, num_classes=0)
        assert model.num_classes == 0

    def test_any_file_name(self, best, tmp_path):
        shutil.copy(best, tmp_path / "epoch_100.ckpt")
        for path in (tmp_path / "epoch_100.ckpt", str(tmp_path / "epoch_100.ckpt")):
            assert bssnet_zoo.Predictor(path, backend="deploy").runner.classes.names == ("sky", "road", "car")

    def test_predict(self, best, tmp_path, capsys):
        assert main(["predict", str(STREET), "--checkpoint", str(best), "--out", str(tmp_path)]) == 0
        assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[:3]} == {"sky", "road", "car"}
        assert bssnet_zoo.Predictor(best, backend="deploy").size == [64]

    def test_eval(self, best, capsys):
        assert main(["eval", "--checkpoint", str(best), "--workers", "0", "--device", "cpu"]) == 0
        assert "split val\nsky " in capsys.readouterr().out  # the recipe in the file says where the data is

    def test_convert_and_export(self, best, tmp_path):
        assert main(["convert", str(best), str(tmp_path / "half.safetensors")]) == 0
        assert read_metadata(tmp_path / "half.safetensors") == read_metadata(best)
        path = tmp_path / "mine.torchscript"
        assert main(["export", "--checkpoint", str(tmp_path / "half.safetensors"), "--format", "torchscript", "--out",
                     str(path), "--size", "64x96"]) == 0
        assert bssnet_zoo.Predictor(path, trust=True).runner.classes.names == ("sky", "road", "car")

    def test_publish(self, best, tmp_path):
        from bssnet_zoo.hub import stage
        stage("bssnet_t.mine", "me", tmp_path, checkpoint=best, license="cc-by-4.0")
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["label_names"] == ["sky", "road", "car"]
        assert config["pretrained_cfg"]["input_size"] == [3, 64, 96]

    def test_publish_into_a_folder_of_others(self, best, tmp_path):
        from bssnet_zoo.hub import stage
        shutil.copy(best, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="is there and not empty: choose another folder"):
            stage("bssnet_t.mine", "me", tmp_path, checkpoint=tmp_path / "model.safetensors", license="mit")
        assert (tmp_path / "model.safetensors").read_bytes() == best.read_bytes()

    def test_eleven_classes_of_nobody(self, tmp_path):
        save_file(bssnet_zoo.create_model("bssnet_t", num_classes=11).state_dict(), tmp_path / "mine.safetensors")
        model = bssnet_zoo.create_model("bssnet_t", checkpoint_path=tmp_path / "mine.safetensors")
        assert bssnet_zoo.class_info(model).names[9] == "class_9"  # not a pedestrian
        bundled = bssnet_zoo.create_model("bssnet_t", checkpoint_path=ASSETS / "bssnet_t.camvid.safetensors")
        assert bssnet_zoo.class_info(bundled).names[9] == "pedestrian"

    def test_a_recipe_of_another_version(self, best, tmp_path):
        """Fields that this version doesn't know stop neither eval nor export."""
        notes = read_metadata(best)
        notes["recipe"] += "speed: 7\nweighted: true\n"
        path = str(tmp_path / "later.safetensors")
        save_file(load_file(best), path, metadata=notes)
        assert main(["eval", "--checkpoint", path, "--workers", "0", "--device", "cpu"]) == 0
        assert main(["export", "--checkpoint", path, "--format", "torchscript", "--size", "64x96", "--out",
                     str(tmp_path / "later.torchscript")]) == 0

    @pytest.mark.parametrize("notes", [
        {"class_names": "[", "palette": "[]"}, {"class_names": '["a"]'}, {"class_names": '["a"]', "palette": '["#1"]'},
        {"class_names": '["a", "b"]', "palette": '["#000000"]'}, {"class_names": "3", "palette": "3"},
        {"class_names": '["a"]', "palette": '["#000000"]', "input_size": "[4]"},
        {"class_names": '["a"]', "palette": '["#000000"]', "input_size": "[64, 96]"},
    ])
    def test_notes_that_make_no_sense(self, notes, best, tmp_path):
        save_file(load_file(best), tmp_path / "odd.safetensors", metadata=notes)
        with pytest.raises(ValueError, match="odd.safetensors.*(makes no sense|names 1 classes, the model has 3)"):
            bssnet_zoo.create_model("bssnet_t", checkpoint_path=tmp_path / "odd.safetensors")


def test_the_bytes_tell_the_kind_of_a_checkpoint(best, tmp_path):
    shutil.copy(best, tmp_path / "mine.pth")
    assert read_checkpoint(tmp_path / "mine.pth").keys() == read_checkpoint(best).keys()
    torch.save(load_file(best), tmp_path / "mine.safetensors")
    assert read_checkpoint(tmp_path / "mine.safetensors").keys() == read_checkpoint(best).keys()


@pytest.mark.parametrize(("name", "change", "message"), [
    ("head.classifier.bias", lambda x: x * torch.nan, "has values that are NaN or infinite"),
    ("stem.0.conv.weight", lambda x: x / 0, "has values that are NaN or infinite"),
    ("stem.0.bn.running_var", lambda x: -1 - x.abs(), "has variances below 0"),
    ("head.classifier.weight", lambda x: x.int(), "holds torch.int32, not floating point numbers"),
    ("head.classifier.weight", lambda x: x > 0, "holds torch.bool"),
])
def test_broken_weights(name, change, message, tmp_path):
    weights = bssnet_zoo.create_model("bssnet_t").state_dict()
    weights[name] = change(weights[name])
    save_file(weights, tmp_path / "broken.safetensors")
    torch.save(weights, tmp_path / "broken.pth")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=f"{path.name} is broken: {name} {message}"):
            read_checkpoint(path)
        with pytest.raises(ValueError, match="is broken"):
            bssnet_zoo.create_model("bssnet_t", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    with pytest.raises(ValueError, match="is broken"):  # what timm itself loads passes the filter
        bssnet_zoo.create_model("bssnet_t", pretrained=True, pretrained_cfg_overlay=dict(state_dict=weights))
