"""Data sets that can't be what was meant are refused or said, and images are read as prediction reads them."""
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import bssnet_zoo
from bssnet_zoo.cli import main
from bssnet_zoo.data import open_dataset
from bssnet_zoo.data.check import check_dataset, distorted, missing_classes
from bssnet_zoo.models.weights import ASSETS

STREET = ASSETS / "street.png"


class TestMasks:
    def folder(self, root: Path, yaml: str, values=(0, 255), splits=("train", "val")) -> str:
        for split in splits:
            for kind, array in (("images", np.zeros((64, 96, 3), np.uint8)), ("masks", np.zeros((64, 96), np.uint8))):
                path = root / kind / split / "a.png"
                path.parent.mkdir(parents=True)
                if kind == "masks":
                    array[:], array[:32] = values
                Image.fromarray(array).save(path)
        (root / "dataset.yaml").write_text(yaml)
        return f"folder:{root}"

    def test_255_may_be_a_class(self, tmp_path):
        dataset = open_dataset(self.folder(tmp_path, "classes: [road, pothole]\nid_map: {0: 0, 255: 1}"), "train")
        assert dataset[0][1].unique().tolist() == [0, 1]
        assert not missing_classes(dataset, check_dataset(dataset), "train")

    def test_255_may_be_ignored_by_name(self, tmp_path):
        dataset = open_dataset(self.folder(tmp_path, "classes: [road]\nid_map: {0: 0, 255: 255}"), "train")
        assert dataset[0][1].unique().tolist() == [0, 255]

    def test_a_class_without_a_pixel_is_said(self, tmp_path):
        dataset = open_dataset(self.folder(tmp_path, "classes: [road, pothole]"), "train")
        lines = missing_classes(dataset, check_dataset(dataset), "train")
        assert lines[0] == "'pothole' has no pixel in train" and "id_map: {0: 0, 255: 1}" in lines[1]

    def test_masks_ignored_as_a_whole_are_said(self, tmp_path):
        dataset = open_dataset(self.folder(tmp_path, "classes: [road]", values=(255, 255)), "train")
        lines = missing_classes(dataset, check_dataset(dataset), "train")
        assert "1 masks in train are ignored as a whole: " in lines[-1]

    def test_damaged_images(self, tmp_path):
        data = self.folder(tmp_path, "classes: [road]", values=(0, 0))
        noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        (tmp_path / "images/train/a.png").unlink()
        path = tmp_path / "images/train/a.jpg"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])  # with a whole header
        check_dataset(open_dataset(data, "train"))
        with pytest.raises(ValueError, match="1 files that can't be read: .*a.jpg"):
            check_dataset(open_dataset(data, "train"), full=True)

    @pytest.mark.parametrize("kind", ["images", "masks"])
    def test_decompression_bombs(self, tmp_path, kind, monkeypatch):
        data = self.folder(tmp_path, "classes: [road]", values=(0, 0))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(ValueError, match="a.png.*decompression bomb"):
            check_dataset(open_dataset(data, "train"))

    @pytest.mark.parametrize(("yaml", "message"), [
        ("classes: [road, car, road]", "named twice: road"),
        ("classes: [road, no]", "False among the classes is no name"),
        ("classes: [road, null]", "None among the classes is no name"),
        ("classes: [road, [a]]", "among the classes is no name"),
    ])
    def test_names(self, tmp_path, yaml, message):
        with pytest.raises(ValueError, match=message):
            open_dataset(self.folder(tmp_path, yaml), "train")

    def test_validation_at_another_shape_is_said(self, tiny_recipe):
        scans = check_dataset(open_dataset(tiny_recipe.data, "val"))
        assert distorted(scans, (64, 64), "val") == [
            "images in val are 64x96 and are validated at 64x64, which distorts them: give the size that the network "
            "should see, as in --base-size 64x96 --val-size 64x96"]
        assert not distorted(scans, (96, 144), "val") and not distorted(scans, None, "val")

    def test_two_images_of_one_name(self, tmp_path):
        data = self.folder(tmp_path, "classes: [road]")
        shutil.copy(tmp_path / "images/train/a.png", tmp_path / "images/train/a.webp")
        with pytest.raises(ValueError, match="a.png and a.webp have the same name"):
            open_dataset(data, "train")

    def test_another_size_than_the_image_in_eval(self, tmp_path, capsys):
        data = self.folder(tmp_path, "classes: [sky, road, car]", values=(0, 1))
        Image.fromarray(np.zeros((32, 48), np.uint8)).save(tmp_path / "masks/val/a.png")
        save_file(bssnet_zoo.BSSNet(num_classes=3).state_dict(), tmp_path / "best.safetensors")
        checkpoint = str(tmp_path / "best.safetensors")
        assert main(["eval", "--checkpoint", checkpoint, "--data", data, "--workers", "0"]) == 2
        assert "labels of another size than their image" in capsys.readouterr().err


class TestPixels:
    """Data sets read an image as prediction does."""

    def dataset(self, root: Path, image: Image.Image, mask: np.ndarray, **options):
        for kind in ("images", "masks"):
            (root / kind / "train").mkdir(parents=True)
        image.save(root / "images/train/a.png", **options)
        Image.fromarray(mask).save(root / "masks/train/a.png")
        (root / "dataset.yaml").write_text("classes: [road]\n")
        return open_dataset(f"folder:{root}", "train")

    def test_16_bits(self, tmp_path):
        grey = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96) * 10
        dataset = self.dataset(tmp_path, Image.fromarray(grey), np.zeros((64, 96), np.uint8))
        image = dataset[0][0].float()
        assert (image - torch.from_numpy(grey / 257.).float()).abs().max() <= 0.5 and image.max() > 200

    def test_rotation(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown turned by 90 degrees
        picture = Image.open(STREET).convert("RGB")
        dataset = self.dataset(
            tmp_path, picture.transpose(Image.Transpose.ROTATE_90), np.zeros((360, 480), np.uint8), exif=exif)
        check_dataset(dataset)
        assert np.array_equal(dataset[0][0].permute(1, 2, 0), picture)

    def test_rotation_that_the_mask_does_not_follow(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        dataset = self.dataset(tmp_path, Image.new("RGB", (96, 64)), np.zeros((64, 96), np.uint8), exif=exif)
        with pytest.raises(ValueError, match=r"another size than their image.*a.png \(64x96, image 96x64\)"):
            check_dataset(dataset)
