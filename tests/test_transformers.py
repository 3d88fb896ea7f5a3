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
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.modeling_outputs import SemanticSegmenterOutput

import bssnet_zoo
from bssnet_zoo.cli import main
from bssnet_zoo.models.weights import WEIGHTS
from bssnet_zoo.transformers import (
    BSSNetBackbone,
    BSSNetConfig,
    BSSNetForSemanticSegmentation,
    BSSNetImageProcessor,
    bundled,
)


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
        again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved")
        assert torch.allclose(logits(again, x), expected, atol=1e-5)  # transformers 4 maps the file
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

    def test_one_class(self):
        with pytest.raises(ValueError, match="num_labels is 1: .*give two, the background and yours"):
            BSSNetForSemanticSegmentation(BSSNetConfig(num_labels=1))

    def test_config_comes_back_from_its_file(self, tmp_path):
        config = BSSNetConfig("bssnet_b", num_labels=3, out_features=["stem", "stage3"])
        config.save_pretrained(tmp_path)
        assert BSSNetConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()

    def test_without_transformers(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        monkeypatch.delitem(sys.modules, "bssnet_zoo.transformers")
        with pytest.raises(ImportError, match=r"needs transformers \(.*\): the extra \[transformers\], as in pip"):
            __import__("bssnet_zoo.transformers")


class TestOutputs:
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))

    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        return BSSNetForSemanticSegmentation(BSSNetConfig(num_labels=3, model_args={"dim": 8}))

    def test_of_every_kind(self, model):
        output = model.eval()(self.x, output_hidden_states=True)
        levels = model.bssnet.forward_intermediates(self.x, intermediates_only=True)
        assert len(output.hidden_states) == 6 and torch.equal(output.hidden_states[0], model.bssnet.stem(self.x))
        assert all(torch.equal(a, b) for a, b in zip(output.hidden_states[1:], levels, strict=True))
        assert model(self.x).hidden_states is None
        logits, hidden_states = model(self.x, output_hidden_states=True, return_dict=False)
        assert torch.equal(logits, output.logits) and len(hidden_states) == 6
        with pytest.raises(ValueError, match="no attentions"):
            model(self.x, output_attentions=True)

    def test_backbone_and_base_model(self, model, tmp_path):
        """Both read the whole model's files. A detector or depth network is given a backbone by its config."""
        model.eval().save_pretrained(tmp_path)
        backbone = BSSNetBackbone.from_pretrained(tmp_path, out_features=["stem", "stage2"])
        again = AutoBackbone.from_config(AutoConfig.from_pretrained(tmp_path, out_indices=[0, 2]))
        again.load_state_dict(backbone.state_dict())
        base = AutoModel.from_pretrained(tmp_path)
        hidden_states = model(self.x, output_hidden_states=True).hidden_states
        assert torch.equal(base(self.x).last_hidden_state, model.bssnet.forward_features(self.x))
        for found in (backbone, again.eval()):
            assert found.channels == [8, 16] and len(found.bssnet.stages) == 2
            stem, stage2 = found(self.x).feature_maps
            assert torch.equal(stem, hidden_states[0]) and torch.equal(stage2, hidden_states[2])
        with pytest.raises(ValueError, match="out_features"):
            BSSNetConfig(out_features=["stage1", "stage2"], out_indices=[0, 2])

    def test_gradient_checkpointing(self, model):
        """Inside the network, and so by the same numbers; `TrainingArguments` has a switch for it."""
        labels, gradients = torch.ones(2, 64, 96, dtype=torch.int64), []
        for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
            enable()
            torch.manual_seed(0)
            model.train()(self.x, labels=labels).loss.backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
            model.zero_grad()
        assert model.is_gradient_checkpointing and model.bssnet.grad_checkpointing
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

    @pytest.mark.slow
    def test_exporter_of_transformers(self, model):
        """From images above 512 pixels a side to any others of that kind, as docs/transformers.md says."""
        dynamo = pytest.importorskip("transformers.exporters.exporter_dynamo")
        exported = dynamo.DynamoExporter().export(
            model.eval(), dict(pixel_values=torch.randn(2, 3, 544, 576)), config=dynamo.DynamoConfig(dynamic=True))
        x = torch.randn(1, 3, 530, 700)
        torch.testing.assert_close(exported(pixel_values=x).logits, logits(model, x), rtol=1e-4, atol=1e-4)

    def test_a_batch_without_labels(self, model):
        loss = model.train()(self.x, labels=torch.full((2, 64, 96), 255)).loss
        loss.backward()
        assert loss == 0 and not model.bssnet.stem[0].conv.weight.grad.any()
        labels = torch.randint(0, 3, (2, 64, 96))
        assert torch.equal(model.eval()(self.x, labels=labels.byte()).loss, model(self.x, labels=labels).loss)
        with pytest.raises(ValueError, match="label 3 is neither a class, 0-2, nor ignore_index"):
            model(self.x, labels=labels + 1)
        output = model.eval()(self.x, labels=labels)
        torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))


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
        (dict(do_rescale=False), "do_rescale=False is not possible for images of 8 bits"),
        (dict(do_convert_rgb=False), "do_convert_rgb=False is not possible here"),
        (dict(do_reduce_labels=True), "do_reduce_labels=True is not possible here: give label maps in which 255 is no"),
        (dict(resample=3), "resample=3 is not possible here: it is 2"),
        (dict(do_center_crop=True), "do_center_crop=True is not possible here: it is False"),
        (dict(data_format="channels_last"), "data_format=channels_last is not possible here: it is channels_first")])
    def test_steps_that_cannot_be_chosen(self, folder, street, option, message):
        loaded = AutoImageProcessor.from_pretrained(folder, **option)
        for processor, options in ((loaded, {}), (BSSNetImageProcessor(), option)):
            with pytest.raises(ValueError, match=message):
                processor([street], [np.zeros((180, 240), np.uint8)], **options)

    def test_steps_that_can(self, street):
        """For one processor, and for one call."""
        array = np.asarray(street)
        ours, size = BSSNetImageProcessor(size=dict(height=60, width=80)), dict(height=60, width=80)
        plain = dict(do_resize=False, do_normalize=False)
        expected = torch.from_numpy(array / 255).permute(2, 0, 1)[None].float()
        for found in (ours(street, **plain), BSSNetImageProcessor(size=size, **plain)(street),
                      ours(expected[0], do_rescale=False, **plain),
                      ours(array.transpose(2, 0, 1), input_data_format="channels_first", **plain),
                      ours(torch.from_numpy(array.copy()), input_data_format="channels_last", **plain)):
            torch.testing.assert_close(found["pixel_values"], expected)
        fixed = dict(resample=Image.Resampling.BILINEAR, do_pad=False, rescale_factor=1 / 255, do_convert_rgb=True)
        torch.testing.assert_close(ours(street, **fixed, **plain)["pixel_values"], expected)
        assert ours(street, device="meta")["pixel_values"].device.type == "meta"
        whitened = ours(street, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_resize=False)["pixel_values"]
        torch.testing.assert_close(whitened, 2 * expected - 1)

    @pytest.mark.parametrize(("maps", "message"), [
        (np.zeros((180, 240, 3), np.uint8), "180 label maps for 1 images: give one of shape"),
        ([np.zeros((180, 240, 3), np.uint8)], r"integers of shape \(H, W\), got torch.uint8 of shape \(180, 240, 3\)"),
        ([Image.new("RGB", (240, 180))], r"shape \(3, 180, 240\): turn colours into ids"),
        ([torch.zeros(180, 240)], "got torch.float32 .*don't scale ids by ToTensor"),
        ([np.zeros((90, 120), np.uint8)], r"sizes of their images, \[\(180, 240\)\], got \[\(90, 120\)\]"),
        ([np.zeros((180, 240), np.uint8)] * 2, "2 label maps for 1 images")])
    def test_label_maps_that_are_none(self, street, maps, message):
        with pytest.raises(ValueError, match=message):
            BSSNetImageProcessor()([street], maps)

    def test_post_processing(self):
        processor, output = BSSNetImageProcessor(), SemanticSegmenterOutput(logits=torch.randn(3, 4, 8, 12))
        with pytest.raises(ValueError, match="target_sizes has 2 sizes for 3 images"):
            processor.post_process_semantic_segmentation(output, [(16, 24)] * 2)
        for size in (None, (16,), (0, 24)):
            with pytest.raises(ValueError, match=r"a size in target_sizes is \(height, width\), got"):
                processor.post_process_semantic_segmentation(output, [size] * 3)
        for sizes, size in ((None, (8, 12)), (torch.tensor([[20, 30]] * 3), (20, 30))):
            maps = processor.post_process_semantic_segmentation(output, sizes)
            scored = processor.post_process_semantic_segmentation(output, sizes, return_segmentation_scores=True)
            assert {tuple(result.segmentation_scores.shape) for result in scored} == {(4, *size)}
            assert all(torch.equal(map_, result.segmentation) for map_, result in zip(maps, scored, strict=True))

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
        report_to="none", use_cpu=True, save_strategy="no", seed=0, disable_tqdm=True,
        gradient_checkpointing=aux_heads)
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


