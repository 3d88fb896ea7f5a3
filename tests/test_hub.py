"""Publishing to and fetching from the Hugging Face Hub: the real client, a server on this machine."""
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from conftest import SIZES, image
from hub_server import Hub, Repo
from huggingface_hub import ModelCard, ModelCardData, constants, file_download
from huggingface_hub.utils import _http
from PIL import Image
from safetensors.torch import load_file, save_file

import bssnet_zoo
from bssnet_zoo.cli import main
from bssnet_zoo.data import ClassInfo
from bssnet_zoo.files import sha256
from bssnet_zoo.hub import publish, stage
from bssnet_zoo.hub.staging import _own_provenance
from bssnet_zoo.models import weights
from bssnet_zoo.models.metadata import class_metadata, read_metadata
from bssnet_zoo.training.recipes import RECIPES, Recipe, parse_recipe

T = weights.WEIGHTS["bssnet_t.camvid"]
STREET = weights.ASSETS / "street.png"
X = image(1, 3, 64, 96)
YAML = {"classes": ["asphalt", "pothole", "crack"], "palette": [[128, 64, 128], [255, 0, 0], [255, 200, 0]]}


def logits(model):
    with torch.inference_mode():
        return model.eval()(X)


@pytest.fixture(scope="session")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged")
    stage("bssnet_t.camvid", "acme", folder)
    return folder


def forget_sessions():
    """Before version 1 the client's sessions keep whether they are offline."""
    getattr(_http, "reset_sessions", lambda: None)()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub without repositories, and this process's client set to it as by the environment, with an empty cache."""
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    for module in (constants, file_download):  # which of them has it depends on the version
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE",
                            server.endpoint + "/{repo_id}/resolve/{revision}/{filename}", raising=False)
    forget_sessions()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)  # the client's pauses between retries
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def expected():
    return logits(bssnet_zoo.create_model("bssnet_t", checkpoint_path=T.path))


def serve(hub, repo_id, folder, branch="main"):
    """Puts a staged folder on the server."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.large[sha256(folder / "model.safetensors")] = files["model.safetensors"]
    hub.repos.setdefault(repo_id, Repo()).commit(branch, files)


def python(hub, tmp_path, *args, **env):
    """Another process that finds the server through the environment alone."""
    env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
           "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_owner", "OMP_NUM_THREADS": "1",
           "TQDM_POSITION": "-1", **env}  # progress bars though there is no terminal
    return subprocess.Popen([sys.executable, *map(str, args)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)


def large_files(folder):
    """What could be taken for weights."""
    return [path for path in Path(folder).rglob("*") if path.is_file() and path.stat().st_size > 100_000]


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """A fine-tuned model of 3 classes with its data set's description: the options to publish it with."""
    folder = tmp_path_factory.mktemp("own")
    data = folder / "road damage"
    data.mkdir()
    (data / "dataset.yaml").write_text(yaml.safe_dump(YAML))
    for kind, picture in (("images", Image.new("RGB", (96, 64))), ("masks", Image.new("L", (96, 64), 1))):
        (data / kind / "val").mkdir(parents=True)
        picture.save(data / kind / "val" / "0.png")
    torch.manual_seed(0)
    model = bssnet_zoo.create_model("bssnet_t", num_classes=3, aux_heads=True)
    save_file(model.state_dict(), folder / "best.safetensors", metadata={
        "miou": "0.61804", "split": "val", "size": "(256, 512)", "precision": "bfloat16"})
    return dict(checkpoint=folder / "best.safetensors", data=f"folder:{data}", license="cc-by-4.0")


@pytest.fixture(scope="session")
def own_staged(own, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own_staged")
    stage("bssnet_t.roads", "acme", folder, **own, image=Image.open(STREET).crop((0, 0, 200, 100)))
    return folder


class TestStage:
    @pytest.mark.parametrize("variant", ["bssnet_t", pytest.param("bssnet_b", marks=pytest.mark.slow)])
    def test_what_is_staged_loads_without_anything_of_ours(self, staged, variant, tmp_path):
        if variant == "bssnet_b":
            staged = tmp_path
            stage("bssnet_b.camvid", "acme", staged)
        assert sorted(path.name for path in staged.iterdir()) == [
            "LICENSE.md", "README.md", "config.json", "failures.jpg", "model.safetensors", "overlay.png",
            "preprocessor_config.json", "sample.png"]
        assert sha256(staged / "model.safetensors") == weights.WEIGHTS[f"{variant}.camvid"].sha256
        model = timm.create_model(f"local-dir:{staged}", pretrained=True)
        bundled = bssnet_zoo.create_model(variant, pretrained=True)
        assert torch.equal(logits(model), logits(bundled))
        assert bssnet_zoo.class_info(model) == bssnet_zoo.class_info(bundled)
        assert timm.create_model(f"local-dir:{staged}", pretrained=True, num_classes=5).num_classes == 5
        config = json.loads((staged / "config.json").read_text())
        assert config["architecture"] == variant and config["pretrained_cfg"]["input_size"] == [3, *SIZES[variant]]
        assert config["label_names"][3] == "road" and config["label_descriptions"]["road"] == "#804080"

    def test_the_card_survives_a_round_trip(self, staged):
        text = (staged / "README.md").read_text()
        card = ModelCard.load(staged / "README.md")
        assert str(card) == text
        metadata = yaml.safe_load(text.split("---\n")[1])
        assert ModelCardData(**card.data.to_dict()).to_dict() == metadata
        assert metadata["library_name"] == "timm" and metadata["pipeline_tag"] == "image-segmentation"
        assert metadata["license_name"] and (staged / metadata["license_link"]).is_file()
        miou, accuracy = card.data.eval_results
        assert (miou.metric_value, accuracy.metric_value) == (T.metrics["miou"], T.metrics["pixel_accuracy"])
        command = "bssnet-zoo eval --model hf-hub:acme/bssnet_t.camvid --data camvid:DIR --split test --size "
        command += "x".join(map(str, T.size))
        assert miou.metric_args == {"command": command} and command in card.text
        assert miou.dataset_type == "camvid" and miou.dataset_split == "test"

    def test_the_card_agrees_with_the_files(self, staged):
        text = (staged / "README.md").read_text()
        links = set(re.findall(r"\]\(([^):#]+)\)", text))
        assert links == {"overlay.png", "sample.png", "failures.jpg", "LICENSE.md"}
        assert all((staged / link).is_file() for link in links)
        assert f"`{T.sha256}`" in text and "$" not in text
        assert "Params (M): 8.39 " in text and f" at {T.size[0]} x {T.size[1]} " in text and "stride 8" in text
        preprocessor = json.loads((staged / "preprocessor_config.json").read_text())
        assert preprocessor["image_mean"] == [0.485, 0.456, 0.406]
        assert preprocessor["size"] == {"shortest_edge": min(T.size)}

    def test_the_pictures(self, staged):
        sample = Image.open(staged / "sample.png")
        assert np.array_equal(sample, Image.open(STREET).convert("RGB"))
        model = bssnet_zoo.create_model("bssnet_t", pretrained=True)
        expected = bssnet_zoo.predict(model, sample).overlay()
        assert np.array_equal(Image.open(staged / "overlay.png"), expected)

    def test_the_usage_code_runs(self, staged, hub, tmp_path, monkeypatch, capsys):
        """Each snippet of the card, in its order; the first one registers the models itself."""
        serve(hub, "acme/bssnet_t.camvid", staged)
        monkeypatch.chdir(tmp_path)
        snippets = re.findall(r"```python\n(.*?)```", (staged / "README.md").read_text(), re.DOTALL)
        assert snippets[0].startswith("import bssnet_zoo")
        names = {}
        for snippet in snippets:
            exec(snippet, names)
        output = capsys.readouterr().out
        assert output.startswith("(360, 480) ('sky', ")
        assert f"torch.Size([1, 64, {T.size[0] // 8}, {T.size[1] // 8}])" in output
        assert np.array_equal(Image.open("overlay.png"), Image.open(staged / "overlay.png"))
        labels = F.interpolate(names["labels"][None].float(), (360, 480), mode="nearest-exact")[0, 0].numpy()
        assert (labels == names["result"].labels).mean() > 0.98
        assert names["model"].num_classes == 5

    def test_own_weights_keep_names_and_palette(self, own, own_staged):
        model = timm.create_model(f"local-dir:{own_staged}", pretrained=True)
        checkpoint = logits(bssnet_zoo.create_model("bssnet_t", num_classes=3, checkpoint_path=own["checkpoint"]))
        assert (logits(model) - checkpoint).abs().max() <= 1e-2 * checkpoint.abs().max()
        classes = bssnet_zoo.class_info(model)
        assert classes.names == ("asphalt", "pothole", "crack") and classes.palette[1] == (255, 0, 0)
        assert model.pretrained_cfg["tag"] == "roads" and model.pretrained_cfg["input_size"] == (3, 256, 512)
        assert "description" not in model.pretrained_cfg and model.pretrained_cfg["license"] == "cc-by-4.0"
        assert {t.dtype for t in load_file(own_staged / "model.safetensors").values()} == {torch.float16, torch.int64}

    def test_the_card_of_own_weights(self, own_staged):
        card = ModelCard.load(own_staged / "README.md")
        assert card.data.eval_results[0].metric_value == 61.8 and card.data.datasets == ["road-damage"]
        assert card.data.license == "cc-by-4.0" and "license_link" not in card.data.to_dict()
        assert "CamVid" not in card.text and not (own_staged / "LICENSE.md").exists()
        assert "--data folder:DIR --split val --size 256x512 --precision bfloat16\n" in card.text
        assert str(own_staged.parent) not in card.text
        assert Image.open(own_staged / "sample.png").size == (200, 100)

    @pytest.mark.parametrize("there", ["README.md", "model.safetensors", "notes.txt"])
    def test_a_folder_with_files_stays_as_it_is(self, there, own, tmp_path):
        """Whoever made them, a Trainer, timm or an earlier `stage`; and weights don't overwrite themselves."""
        (tmp_path / there).write_text("mine")
        with pytest.raises(ValueError, match="is there and not empty: choose another folder"):
            stage("bssnet_t.roads", "acme", tmp_path, **own)
        assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]

    @pytest.mark.parametrize(("init", "start"), [
        ("camvid", ", starting from bssnet_t.camvid, which is for research that is not commercial,"),
        ("pidnet_in1k", ", starting from bssnet_t.pidnet_in1k,"),
        ("/me/best.safetensors", ", starting from other weights,"), (None, ",")])
    def test_the_card_says_where_own_weights_start(self, init, start):
        recipe = Recipe(init=init, data="folder:data/mine", epochs=1)
        training = _own_provenance({}, recipe, recipe.data, "cc-by-4.0").training
        assert training == f"on mine{start} by the publisher of this repository"

    def test_the_command_that_measures_runs(self, own, own_staged, hub, capsys):
        serve(hub, "acme/bssnet_t.roads", own_staged)
        [result] = ModelCard.load(own_staged / "README.md").data.eval_results
        _, *arguments = result.metric_args["command"].replace("folder:DIR", "DATA").split()
        assert main([own["data"] if argument == "DATA" else argument for argument in arguments]) == 0
        assert re.search(r"pothole +\d+\.\d+\n.*\nmIoU +\d", capsys.readouterr().out)

    @pytest.mark.parametrize("metadata", [
        None, {"miou": "0.9", "split": "val", "recipe": "trainval"}, {"miou": "good", "classes": "of another tool"}])
    def test_accuracy_that_nobody_can_trust_is_not_claimed(self, metadata, own, tmp_path):
        """Not measured, measured on what it was trained on, or written by somebody else."""
        recipe = RECIPES["finetune"].with_options(data=own["data"], train_split="trainval")
        metadata = metadata and {key: str(recipe) if key == "recipe" else value for key, value in metadata.items()}
        save_file(load_file(own["checkpoint"]), tmp_path / "plain.safetensors", metadata=metadata)
        options = {**own, "checkpoint": tmp_path / "plain.safetensors", "size": (64, 96)}
        stage("bssnet_t.roads", "me", tmp_path / "out", **options)
        assert json.loads((tmp_path / "out/config.json").read_text())["pretrained_cfg"]["input_size"] == [3, 64, 96]
        card = ModelCard.load(tmp_path / "out/README.md")
        assert card.data.eval_results is None and "No accuracy was measured" in card.text
        assert re.search(r"bssnet-zoo eval --model .* --size 64x96`", card.text)

    def test_the_publishers_folders_are_not_published(self, own, tmp_path):
        recipe = RECIPES["finetune"].with_options(
            data=own["data"], init="/home/me/first.safetensors", more_data=("folder:/home/me/more",))
        names = class_metadata(ClassInfo(("a|b", "c\nd", "<e>"), ((0, 0, 0),) * 3))
        save_file(load_file(own["checkpoint"]), tmp_path / "mine.safetensors", metadata={
            "recipe": str(recipe), "input_size": "[64, 96]", "comment": "/home/me", **names})
        stage("bssnet_t.roads", "me", tmp_path / "out", tmp_path / "mine.safetensors", license="cc-by-4.0")
        found = read_metadata(tmp_path / "out/model.safetensors")
        assert "/" not in found["recipe"] and "comment" not in found
        assert parse_recipe(found["recipe"], "the file") == replace(
            recipe, data="folder:road damage", init="first.safetensors", more_data=("folder:more",))
        card = (tmp_path / "out/README.md").read_text()
        assert [line.count(" | ") for line in card.splitlines() if line.startswith(("| 0", "| 1", "| 2"))] == [2] * 3
        assert r"| a\|b |" in card and "| c d |" in card and "| &lt;e> |" in card
        assert str(tmp_path) not in card and "/home" not in card

    @pytest.mark.parametrize("name, changes, message", [
        ("bssnet_t", {}, r"MODEL.TAG, got 'bssnet_t'"),
        ("resnet18.a1_in1k", {}, "MODEL is bssnet_b or bssnet_t"),
        ("bssnet_t.pidnet_in1k", dict(checkpoint=None), "none of the zoo's own weights .*give your checkpoint"),
        ("bssnet_t.a b", {}, "Repo id"),
        ("bssnet_t.roads", dict(data=None), "data is folder:DIR"),
        ("bssnet_t.roads", dict(data="roads"), "data is 'roads'; write KIND:DIR"),
        ("bssnet_t.roads", dict(license=None), "license is apache-2.0 or another"),
        ("bssnet_t.roads", dict(data="camvid:DIR"), "has 3 classes, camvid:DIR has 11"),
        ("bssnet_b.roads", {}, "of another model, it fits bssnet_t"),
        ("bssnet_t.camvid", {}, "data, license and size are for another tag"),
        ("bssnet_t.camvid", dict(data=None, license=None), f"is pinned to sha256 {T.sha256}.*another tag"),
    ])
    def test_refused(self, name, changes, message, own, tmp_path):
        with pytest.raises(ValueError, match=message) as caught:
            stage(name, "me", tmp_path / "out", **{**own, **changes})
        assert len(str(caught.value).splitlines()) <= 2
        assert not (tmp_path / "out" / "README.md").exists()

    @pytest.mark.parametrize(("broken", "message"), [
        ("half", "is truncated or not a checkpoint"), ("none", "checkpoint not found: .*mine.safetensors"),
        ("large", r"stem.0.bn.running_var has values up to 1e\+06, which torch.float16")])
    def test_broken_checkpoints_leave_nothing(self, broken, message, own, tmp_path):
        path = tmp_path / "mine.safetensors"
        if broken == "half":
            path.write_bytes(own["checkpoint"].read_bytes()[:100_000])
        elif broken == "large":
            state_dict = load_file(own["checkpoint"])
            state_dict["stem.0.bn.running_var"][3] = 1e6
            save_file(state_dict, path)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            stage("bssnet_t.roads", "me", tmp_path / "out", **{**own, "checkpoint": path})
        assert [path.name for path in tmp_path.iterdir()] == ([] if broken == "none" else ["mine.safetensors"])


class TestPublish:
    NAME = ("bssnet_t.roads", "--org", "acme")

    @pytest.fixture(autouse=True)
    def is_staged(self, own_staged, monkeypatch, tmp_path):
        """Staging once is enough. The folder of this test, to change things in."""
        def copy(name, organization, folder, **options):
            shutil.copytree(source, folder, dirs_exist_ok=True)
            return sorted(os.listdir(source))

        source = shutil.copytree(own_staged, tmp_path / "staged")
        monkeypatch.setattr("bssnet_zoo.hub.upload.stage", copy)
        return source

    def publish(self, *options):
        return main(["publish", *self.NAME, *options])

    def error(self, capsys, *options):
        assert self.publish(*options) == 2
        [error] = [line for line in re.split("[\r\n]+", capsys.readouterr().err) if line and "B/s]" not in line]
        assert error.startswith("bssnet-zoo: error: ")
        return error

    def test_dry_run_then_publish_then_again(self, hub, own_staged, tmp_path, capsys, monkeypatch):
        with monkeypatch.context() as offline:
            offline.setattr(constants, "HF_HUB_OFFLINE", True)
            offline.delenv("HF_TOKEN")
            assert self.publish("--dry-run", "--out", str(tmp_path / "out")) == 0
        first, *files = capsys.readouterr().out.splitlines()
        assert first == f"would publish {hub.endpoint}/acme/bssnet_t.roads (branch main)"
        assert files == [f"  {file}" for file in sorted(os.listdir(own_staged))]
        assert not hub.requests and (tmp_path / "out" / "README.md").is_file()
        assert self.publish() == 0
        output = capsys.readouterr().out
        assert output.startswith("published") and 'timm.create_model("hf-hub:acme/bssnet_t.roads"' in output
        repo = hub.repos["acme/bssnet_t.roads"]
        files = repo.commits[repo.branches["main"]]
        files = {name: content for name, content in files.items() if name != ".gitattributes"}
        assert files == {path.name: path.read_bytes() for path in own_staged.iterdir()}
        commits = len(repo.commits)
        assert self.publish() == 0 and len(repo.commits) == commits  # nothing changed
        repo.commit("main", {"README.md": b"an older card"})
        assert self.publish() == 0
        assert repo.commits[repo.branches["main"]]["README.md"] == (own_staged / "README.md").read_bytes()

    def test_private_and_revision(self, hub):
        publication = publish("bssnet_t.roads", "acme", private=True, revision="v2")
        assert "@v2" in str(publication)
        repo = hub.repos["acme/bssnet_t.roads"]
        assert repo.private and "README.md" in repo.commits[repo.branches["v2"]]
        assert "README.md" not in repo.commits[repo.branches["main"]]
        model = timm.create_model("hf-hub:acme/bssnet_t.roads@v2", pretrained=True)
        assert bssnet_zoo.class_info(model).names == ("asphalt", "pothole", "crack")

    def test_no_token(self, hub, capsys, monkeypatch, tmp_path):
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        assert "no Hugging Face token: log in with 'hf auth login'" in self.error(capsys)
        assert not hub.requests

    @pytest.mark.parametrize("token, message", [
        ("hf_reader", "can't publish acme/bssnet_t.roads: .*You don't have the rights to create a model here"),
        ("hf_unknown", "can't publish acme/bssnet_t.roads: .*(Invalid credentials|Unauthorized)"),
    ])
    def test_no_permission(self, token, message, hub, capsys, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", token)
        assert re.search(message, self.error(capsys)) and not hub.repos
        hub.repos["acme/bssnet_t.roads"] = repo = Repo()
        repo.commit("main", {})
        assert re.search(message, self.error(capsys)) and len(repo.commits) == 1

    def test_other_weights_are_not_replaced(self, hub, is_staged, capsys):
        assert self.publish() == 0
        before = dict(hub.repos["acme/bssnet_t.roads"].branches)
        state_dict = load_file(is_staged / "model.safetensors")
        state_dict["head.classifier.bias"] += 1
        save_file(state_dict, is_staged / "model.safetensors")
        assert "acme/bssnet_t.roads has another model.safetensors (sha256 " in self.error(capsys)
        assert hub.repos["acme/bssnet_t.roads"].branches == before
        assert self.publish("--revision", "retrained") == 0

    def test_private_comes_too_late(self, hub, capsys):
        assert self.publish() == 0
        assert "is there and public" in self.error(capsys, "--private")

    def test_metadata_that_the_hub_refuses(self, hub, is_staged, capsys):
        ModelCard("---\nlicense: other\n---\n").save(is_staged / "README.md")
        assert 'Invalid metadata in README.md. - "library_name" is wrong' in self.error(capsys)

    def test_the_hub_is_down(self, hub, capsys, monkeypatch):
        hub.trouble.status = 500
        assert re.search("can't publish acme/bssnet_t.roads: .*500", self.error(capsys))
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        assert re.search(r"can't publish acme/bssnet_t.roads: .*\[Errno", self.error(capsys))


class TestFetch:
    @pytest.fixture(autouse=True)
    def from_hub(self, monkeypatch):
        monkeypatch.setenv("BSSNET_ZOO_WEIGHTS", "hub")

    @pytest.fixture
    def served(self, hub, staged):
        serve(hub, "bssnet-zoo/bssnet_t.camvid", staged)
        return hub

    def refuse(self, message, name="bssnet_t", cache=None, **kwargs):
        """One line, and nothing in the cache that could be taken for weights."""
        with pytest.raises(RuntimeError, match=message) as caught:
            bssnet_zoo.create_model(name, pretrained=True, **kwargs)
        assert len(str(caught.value).splitlines()) == 1
        assert not large_files(cache or constants.HF_HUB_CACHE)

    def test_into_an_empty_cache(self, served, expected):
        """Once; and timm gets the tensors that were checked, it asks for no file of its own."""
        for name in ("bssnet_t", "bssnet_t", "hf-hub:bssnet-zoo/bssnet_t.camvid"):
            assert torch.equal(logits(timm.create_model(name, pretrained=True)), expected)
        asked = [path for _, path in served.requests if path.endswith("model.safetensors")]
        assert len(asked) == 3 and sum(path.startswith("/large/") for _, path in served.requests if _ == "GET") == 1

    def test_a_tag_that_is_not_bundled(self, served, expected, monkeypatch, tmp_path):
        monkeypatch.delenv("BSSNET_ZOO_WEIGHTS")
        monkeypatch.setattr(weights, "ASSETS", tmp_path)
        model = bssnet_zoo.create_model("bssnet_t.camvid", pretrained=True, cache_dir=tmp_path / "mine")
        assert torch.equal(logits(model), expected)
        assert large_files(tmp_path / "mine") and not Path(constants.HF_HUB_CACHE).exists()

    def test_the_organisation_is_read_at_use(self, hub, staged, expected, monkeypatch):
        serve(hub, "mirror/bssnet_t.camvid", staged)
        monkeypatch.setenv("BSSNET_ZOO_ORG", "mirror")
        assert torch.equal(logits(bssnet_zoo.create_model("bssnet_t", pretrained=True)), expected)

    def test_names_and_revisions_on_the_hub(self, served, staged, expected):
        repo = served.repos["bssnet-zoo/bssnet_t.camvid"]
        commit = repo.branches["main"]
        repo.commit("main", {"config.json": b"{}"})
        model = bssnet_zoo.create_model(f"hf-hub:bssnet-zoo/bssnet_t.camvid@{commit}", pretrained=True)
        assert torch.equal(logits(model), expected) and model.pretrained_cfg["hf_hub_id"].endswith(commit)
        overlay = dict(hf_hub_id=f"bssnet-zoo/bssnet_t.camvid@{commit}")
        model = timm.create_model("bssnet_t", pretrained=True, pretrained_cfg_overlay=overlay)
        assert torch.equal(logits(model), expected)

    def test_offline(self, served, expected, monkeypatch):
        bssnet_zoo.create_model("bssnet_t", pretrained=True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        forget_sessions()
        assert torch.equal(logits(bssnet_zoo.create_model("bssnet_t", pretrained=True)), expected)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "2")
        self.refuse("can't fetch model.safetensors of bssnet-zoo/bssnet_t.camvid: .*(disabled|offline|OFFLINE)")
        self.refuse("can't fetch config.json of me/bssnet_t.x: .*(disabled|offline|OFFLINE)", "hf-hub:me/bssnet_t.x")

    def test_no_network(self, served, monkeypatch):
        served.shutdown()
        served.server_close()
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
        self.refuse("can't fetch model.safetensors of bssnet-zoo/bssnet_t.camvid: .*(connection|Connection)")

    def test_missing(self, served):
        self.refuse("model.safetensors of bssnet-zoo/bssnet_b.camvid: .*Repository Not Found", "bssnet_b")
        self.refuse("config.json of bssnet-zoo/bssnet_t.camvid@v9: .*Revision Not Found",
                    "hf-hub:bssnet-zoo/bssnet_t.camvid@v9")
        repo = served.repos["bssnet-zoo/bssnet_t.camvid"]
        del repo.commits[repo.branches["main"]]["model.safetensors"]
        self.refuse("model.safetensors of bssnet-zoo/bssnet_t.camvid: .*Entry Not Found")

    def test_private(self, served, monkeypatch):
        served.repos["bssnet-zoo/bssnet_t.camvid"].private = True
        monkeypatch.setenv("HF_TOKEN", "hf_reader")
        self.refuse("Repository Not Found .*private or gated")
        monkeypatch.setenv("HF_TOKEN", "hf_owner")
        bssnet_zoo.create_model("bssnet_t", pretrained=True)

    @pytest.mark.parametrize("trouble", ["flip", "short"])
    def test_a_damaged_file(self, trouble, served, expected):
        setattr(served.trouble, trouble, True)
        for name in ("bssnet_t", "hf-hub:bssnet-zoo/bssnet_t.camvid"):
            self.refuse(rf"of bssnet-zoo/bssnet_t.camvid has sha256 \w+, expected {T.sha256}: .*removed", name)
        setattr(served.trouble, trouble, False)
        assert torch.equal(logits(bssnet_zoo.create_model("bssnet_t", pretrained=True)), expected)

    def test_other_weights_under_our_name(self, served, tmp_path):
        """Whole, and with the hash that the server announces for them, but not the pinned ones."""
        state_dict = load_file(T.path)
        state_dict["head.classifier.bias"] += 1
        save_file(state_dict, tmp_path / "model.safetensors")
        content = (tmp_path / "model.safetensors").read_bytes()
        served.large[sha256(tmp_path / "model.safetensors")] = content
        repo = served.repos["bssnet-zoo/bssnet_t.camvid"]
        repo.commit("main", {"model.safetensors": content})
        self.refuse(f"has sha256 {sha256(tmp_path / 'model.safetensors')}, expected {T.sha256}")
        self.refuse(f"expected {T.sha256}", "hf-hub:bssnet-zoo/bssnet_t.camvid")

    @pytest.mark.parametrize("source", ["file", "url", "hf_hub_filename", "hf_hub_id", "source", "state_dict"])
    def test_no_config_gets_round_the_pin(self, source, served, staged, expected, tmp_path):
        """A tampered config.json that names another source of weights."""
        other = load_file(T.path)
        other["head.classifier.bias"] += 1
        save_file(other, tmp_path / "other.safetensors")
        content = (tmp_path / "other.safetensors").read_bytes()
        served.large[digest := sha256(tmp_path / "other.safetensors")] = content
        config = json.loads((staged / "config.json").read_text())
        config["pretrained_cfg"][source] = {
            "file": str(tmp_path / "other.safetensors"), "url": f"{served.storage}/large/{digest}",
            "hf_hub_filename": "other.safetensors", "hf_hub_id": "acme/other", "source": "local-dir",
            "state_dict": {"a": 1}}[source]
        for name, file in (("bssnet-zoo/bssnet_t.camvid", "other.safetensors"), ("acme/other", "model.safetensors")):
            served.repos.setdefault(name, Repo()).commit("main", {file: content})
        served.repos["bssnet-zoo/bssnet_t.camvid"].commit("main", {"config.json": json.dumps(config).encode()})
        model = bssnet_zoo.create_model("hf-hub:bssnet-zoo/bssnet_t.camvid", pretrained=True)
        assert torch.equal(logits(model), expected)
        if source == "hf_hub_filename":  # asked for by name, it must have the pinned hash too
            with pytest.raises(RuntimeError, match=f"expected {T.sha256}"):
                bssnet_zoo.create_model("hf-hub:bssnet-zoo/bssnet_t.camvid", pretrained=True,
                                        pretrained_cfg_overlay=dict(hf_hub_filename="other.safetensors"))

    def test_a_cached_file_that_went_bad(self, served, expected):
        bssnet_zoo.create_model("bssnet_t", pretrained=True)
        [blob] = {path.resolve() for path in large_files(constants.HF_HUB_CACHE)}
        with open(blob, "r+b") as file:
            file.seek(1000)
            file.write(b"damage")
        self.refuse("It was removed from the cache; try again")
        assert torch.equal(logits(bssnet_zoo.create_model("bssnet_t", pretrained=True)), expected)

    @pytest.mark.skipif(int(huggingface_hub.__version__.split(".")[0]) < 1, reason="it goes on from version 1")
    def test_a_connection_cut_in_the_middle(self, served, expected):
        served.trouble.cuts = 3
        assert torch.equal(logits(bssnet_zoo.create_model("bssnet_t", pretrained=True)), expected)
        assert served.trouble.cuts == 0

    def test_a_connection_that_is_always_cut(self, served):
        served.trouble.cuts = 1000
        self.refuse("can't fetch model.safetensors of bssnet-zoo/bssnet_t.camvid: ")

    def test_those_of_others_carry_no_pin(self, hub, own_staged):
        serve(hub, "acme/bssnet_t.roads", own_staged)
        hub.trouble.flip = True  # but what the Hub announced still tells damage
        self.refuse(r"model.safetensors of acme/bssnet_t.roads has sha256 \w+, expected", "hf-hub:acme/bssnet_t.roads")
        hub.trouble.flip = False
        bssnet_zoo.create_model("hf-hub:acme/bssnet_t.roads", pretrained=True)

    def test_an_unknown_source(self, monkeypatch):
        monkeypatch.setenv("BSSNET_ZOO_WEIGHTS", "nowhere")
        with pytest.raises(ValueError, match="BSSNET_ZOO_WEIGHTS is 'nowhere', it may be bundled or hub"):
            bssnet_zoo.create_model("bssnet_t", pretrained=True)


LOGITS = """
import sys, timm, torch, bssnet_zoo
torch.save(timm.create_model(sys.argv[1], pretrained=True).eval()(torch.load(sys.argv[2])).detach(), sys.argv[3])
"""


@pytest.mark.slow
def test_publish_then_fetch_in_other_processes(hub, own, own_staged, tmp_path):
    """Only the environment says where the Hub is, and the fetching process starts with nothing."""
    torch.save(X, tmp_path / "x.pth")
    options = [f"--{name}={own[name]}" for name in ("checkpoint", "data", "license")]
    process = python(hub, tmp_path, "-m", "bssnet_zoo", "publish", "bssnet_t.roads", "--org", "acme", *options)
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0 and output.startswith("published"), error
    process = python(
        hub, tmp_path, "-c", LOGITS, "hf-hub:acme/bssnet_t.roads", tmp_path / "x.pth", tmp_path / "logits.pth")
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0 and re.search(r"model.safetensors: +100%", error), error
    local = logits(timm.create_model(f"local-dir:{own_staged}", pretrained=True))
    assert (torch.load(tmp_path / "logits.pth") - local).abs().max() <= 1e-5 * local.abs().max()
