"""Hugging Face transformers with our weights: Auto classes, pipeline, Trainer; bundled, in a folder, on the Hub."""
import json
import sys

import numpy as np
import pytest
import timm
import torch
from conftest import SIZES
from huggingface_hub import constants
from PIL import Image
from test_hub import hub, own, python  # noqa: F401
from test_pretrained import STREET
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    Trainer,
    TrainingArguments,
    pipeline,
)

import bssnet_zoo
from bssnet_zoo.cli import main
from bssnet_zoo.models.weights import WEIGHTS
from bssnet_zoo.transformers import BSSNetConfig, BSSNetForSemanticSegmentation, BSSNetImageProcessor, bundled


@pytest.fixture(scope="module")
def ours():
    return bssnet_zoo.create_model("bssnet_t", pretrained=True).eval()


@pytest.fixture(scope="module")
def street():
    return Image.open(STREET).convert("RGB").resize((240, 180))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return bundled("bssnet_t")


def logits(model, x):
    with torch.inference_mode():
        output = model.eval()(x)
    return getattr(output, "logits", output)


class TestAuto:
    def test_bundled(self, folder, ours, street):
        model = AutoModelForSemanticSegmentation.from_pretrained(folder)
        assert isinstance(model, BSSNetForSemanticSegmentation) and model.dtype == torch.float32 and not model.training
        processor = AutoImageProcessor.from_pretrained(folder)
        assert isinstance(processor, BSSNetImageProcessor)
        x = processor(street, return_tensors="pt")["pixel_values"]
        assert x.shape == (1, 3, *SIZES["bssnet_t"]) and torch.equal(logits(model, x), logits(ours, x))
        config = AutoConfig.from_pretrained(folder)
        assert isinstance(config, BSSNetConfig) and config.id2label[3] == "road" and config.label2id["road"] == 3
        assert bssnet_zoo.class_info(model.bssnet) == bssnet_zoo.class_info(ours)

    def test_the_bundled_weights_are_not_copied(self, folder):
        again = bundled("bssnet_t.camvid")
        assert again == folder
        weights = WEIGHTS["bssnet_t.camvid"].path
        assert (weights.parent / weights.name).samefile(f"{folder}/model.safetensors")
        assert timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes == 11
        with pytest.raises(ValueError, match="there are no weights 'bssnet_x' in the zoo: it has bssnet_t.camvid"):
            bundled("bssnet_x")

    def test_a_saved_folder_is_timms_too(self, folder, ours, street, tmp_path):
        model = AutoModelForSemanticSegmentation.from_pretrained(folder)
        processor = AutoImageProcessor.from_pretrained(folder)
        for part in (model, processor):
            part.save_pretrained(tmp_path / "saved")
        x = AutoImageProcessor.from_pretrained(tmp_path / "saved")(street, return_tensors="pt")["pixel_values"]
        expected = logits(ours, x)
        assert torch.equal(logits(AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved"), x), expected)
        again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True)
        assert torch.equal(logits(again, x), expected)
        assert bssnet_zoo.class_info(again) == bssnet_zoo.class_info(ours)
        again = bssnet_zoo.create_model("bssnet_t", checkpoint_path=tmp_path / "saved" / "model.safetensors")
        assert torch.equal(logits(again, x), expected)

    def test_other_classes(self, folder, ours):
        torch.manual_seed(0)
        names = {0: "road", 1: "car"}
        model = AutoModelForSemanticSegmentation.from_pretrained(
            folder, num_labels=2, id2label=names, label2id={"road": 0, "car": 1}, ignore_mismatched_sizes=True)
        assert model.bssnet.num_classes == 2 and model.config.id2label == names
        classifier = model.bssnet.head.classifier
        assert classifier.weight.std().item() == pytest.approx(1, rel=0.15) and not classifier.bias.any()
        kept, before = model.bssnet.state_dict(), ours.state_dict()
        assert all(torch.equal(kept[name], before[name]) for name in before if "classifier" not in name)

    def test_class_names_as_json_has_them(self, folder):
        """With texts for keys; the network isn't the zoo's any more."""
        config = AutoConfig.from_pretrained(folder, id2label={"0": "road", "1": "car"}).to_dict()
        assert config["label_names"] == ["road", "car"] and "tag" not in config["pretrained_cfg"]
        assert AutoConfig.from_pretrained(folder).to_dict()["pretrained_cfg"]["tag"] == "camvid"
        with pytest.raises(ValueError, match=r"id2label numbers the classes from 0, without gaps; it has \[0, 255\]"):
            AutoConfig.from_pretrained(folder, id2label={0: "road", 255: "ignored"})

    def test_from_scratch(self):
        model = BSSNetForSemanticSegmentation(BSSNetConfig("bssnet_t", num_labels=19))
        assert logits(model, torch.zeros(1, 3, 64, 96)).shape == (1, 19, 64, 96)
        assert logits(model, torch.zeros(1, 3, 64, 96)).isfinite().all()

    def test_without_transformers(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        monkeypatch.delitem(sys.modules, "bssnet_zoo.transformers")
        with pytest.raises(ImportError, match=r"needs transformers \(.*\): the extra \[transformers\], as in pip"):
            __import__("bssnet_zoo.transformers")


FROM_HUB = """
import sys, timm, torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
import bssnet_zoo.transformers

name, image, target = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(name)
processor = AutoImageProcessor.from_pretrained(name)
x = processor(image, return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    logits, with_timm = model.eval()(x).logits, timm.create_model("hf-hub:" + name, pretrained=True).eval()(x)
labels = [segment["label"] for segment in pipeline("image-segmentation", model=name)(image)]
torch.save([x, logits, with_timm, labels, model.config.id2label], target)
"""


@pytest.mark.slow
def test_what_publish_puts_on_the_hub(hub, own, tmp_path):  # noqa: F811
    """Published by the command; read in another process, to which the environment alone says where the Hub is."""
    options = [f"--{name}={own[name]}" for name in ("checkpoint", "data", "license")]
    assert main(["publish", "bssnet_t.roads", "--org", "acme", "--image", str(STREET), *options]) == 0
    process = python(hub, tmp_path, "-c", FROM_HUB, "acme/bssnet_t.roads", STREET, tmp_path / "found.pth")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    x, found, with_timm, labels, id2label = torch.load(tmp_path / "found.pth")
    assert id2label == {0: "asphalt", 1: "pothole", 2: "crack"} and set(labels) <= set(id2label.values())
    assert x.shape == (1, 3, 256, 341) and torch.equal(found, with_timm)
    checkpoint = bssnet_zoo.create_model("bssnet_t", num_classes=3, checkpoint_path=own["checkpoint"])
    expected = logits(checkpoint.half().float(), x)  # weights are float16 in the repository
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_copies_for_several_gpus(folder):
    """What `torch.nn.DataParallel` copies: not the network of the first GPU again."""
    model = BSSNetForSemanticSegmentation.from_pretrained(folder)
    replica = model._replicate_for_data_parallel()
    assert replica.bssnet is not model.bssnet and replica.bssnet._modules is replica._modules
    assert replica._modules is not model._modules


def test_pipeline_segments_as_predictor(folder, ours, street):
    segments = pipeline("image-segmentation", model=folder)(street)
    prediction = bssnet_zoo.predict(ours, street)
    assert {segment["label"] for segment in segments} == {
        prediction.class_names[i] for i in np.unique(prediction.labels)}
    for segment in segments:
        assert segment["mask"].size == street.size
        assert (np.array(segment["mask"], bool) == prediction.mask(segment["label"])).all()


class TestImageProcessor:
    def test_sees_what_predictor_shows(self, ours, street):
        for size, ours_size in ((dict(shortest_edge=90), 90), (dict(height=64, width=96), (64, 96)), (None, "full")):
            x = BSSNetImageProcessor(size=size)(street, return_tensors="pt")["pixel_values"]
            assert torch.equal(x, bssnet_zoo.Predictor(ours, backend="eager", size=ours_size).prepare(street).images)

    def test_labels_go_with_images(self, street):
        mask = np.full((180, 240), 255, np.uint8)
        mask[:, 120:] = 2
        palette = Image.fromarray(mask)
        palette.putpalette([0] * 768)
        for labels in (mask, Image.fromarray(mask), palette, torch.from_numpy(mask).long()):
            batch = BSSNetImageProcessor(size=dict(height=90, width=120))([street], [labels], return_tensors="pt")
            assert batch["labels"].dtype == torch.int64 and batch["labels"].shape == (1, 90, 120)
            assert (batch["labels"][0, :, :60] == 255).all() and (batch["labels"][0, :, 60:] == 2).all()

    def test_a_batch_in_one_array(self, street):
        batch = BSSNetImageProcessor(size=dict(height=90, width=120))(
            np.stack([np.asarray(street)] * 2), np.ones((2, 180, 240), np.uint8), return_tensors="pt")
        assert batch["pixel_values"].shape == (2, 3, 90, 120) and batch["labels"].shape == (2, 90, 120)

    @pytest.mark.parametrize(("option", "message"), [
        (dict(do_resize=False), "do_resize=False is not possible here: give size=None"),
        (dict(do_rescale=False), "do_rescale=False is not"), (dict(do_normalize=False), "do_normalize=False is not"),
        (dict(do_reduce_labels=True), "do_reduce_labels is not possible here: give label maps in which 255 is no")])
    def test_steps_that_cannot_be_chosen(self, folder, street, option, message):
        with pytest.raises(ValueError, match=message):
            AutoImageProcessor.from_pretrained(folder, **option)([street], [np.zeros((180, 240), np.uint8)])

    def test_bad_input(self, street):
        processor = BSSNetImageProcessor()
        with pytest.raises(ValueError, match=r"size is dict\(shortest_edge=...\) or"):
            processor(street, size=512)
        with pytest.raises(ValueError, match="images of one batch have one size, got 180x240, 240x180: give size=dict"):
            processor([street, street.transpose(Image.Transpose.ROTATE_90)])
        with pytest.raises(ValueError, match=r"size is dict\(shortest_edge=...\) or dict\(height=..., width=...\), "):
            processor(street, size=dict(longest_edge=90))
        with pytest.raises(ValueError, match="an image is a path"):
            processor(np.zeros((8, 8, 3), np.int64))


@pytest.mark.parametrize("aux_heads", [False, True], ids=["cross-entropy", "the paper's losses"])
def test_trainer(folder, street, tmp_path, aux_heads):
    """A few steps with the real Trainer: what is learnt is saved, and read back by transformers, timm and Predictor."""
    torch.manual_seed(0)
    model = AutoModelForSemanticSegmentation.from_pretrained(
        folder, num_labels=2, id2label={0: "left", 1: "right"}, label2id={"left": 0, "right": 1},
        ignore_mismatched_sizes=True, model_args=dict(aux_heads=aux_heads))
    mask = np.zeros((180, 240), np.uint8)
    mask[:, 120:], mask[:8] = 1, 255
    processor = AutoImageProcessor.from_pretrained(folder, size=dict(height=64, width=96))
    batch = processor([street] * 4, [mask] * 4, return_tensors="pt")
    data = [dict(pixel_values=x, labels=y) for x, y in zip(batch["pixel_values"], batch["labels"], strict=True)]
    arguments = TrainingArguments(
        tmp_path / "run", max_steps=12, per_device_train_batch_size=2, learning_rate=5e-4, logging_steps=1,
        report_to="none", use_cpu=True, save_strategy="no", seed=0, disable_tqdm=True)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 12 and losses[-1] < losses[0]
    for part in (trainer, processor):
        getattr(part, "save_model" if part is trainer else "save_pretrained")(tmp_path / "mine")
    x = batch["pixel_values"]
    expected = logits(trainer.model, x)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "mine")
    assert torch.allclose(logits(again, x), expected, atol=1e-4) and again.config.id2label == {0: "left", 1: "right"}
    assert hasattr(again.bssnet, "border_head") == aux_heads
    with_timm = timm.create_model(f"local-dir:{tmp_path / 'mine'}", pretrained=True)
    assert torch.allclose(logits(with_timm, x), expected, atol=1e-4)
    assert bssnet_zoo.class_info(with_timm).names == ("left", "right")
    predictor = bssnet_zoo.Predictor(f"local-dir:{tmp_path / 'mine'}", backend="eager", size=(64, 96))
    assert predictor(street).class_names == ("left", "right")
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["num_classes"] == 2 and config["label_names"] == ["left", "right"]


