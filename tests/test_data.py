import colorsys
import struct
import zlib
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import SHARED, needs_shared
from PIL import Image
from torch.utils.data import DataLoader

from bssnet_zoo.cli import main
from bssnet_zoo.data import (
    CAMVID,
    CITYSCAPES,
    EvalTransform,
    TrainSampler,
    TrainTransform,
    check_dataset,
    open_dataset,
    report,
    transforms,
)
from bssnet_zoo.data.check import data_warnings
from bssnet_zoo.data.datasets import add_dataset
from bssnet_zoo.data.report import enet_weights

SIZE = (12, 16)


def write_image(path, size=SIZE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_label(path, values, size=SIZE):
    """The values in turn, so that each of them is in the label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    label = np.resize(np.array(values, np.uint8), size)
    Image.fromarray(label).save(path)
    return label


def grey_png(values, bits):
    """A grey PNG of so many bits a pixel: Pillow writes no 2 and 4."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape
    pixels = np.unpackbits(values[..., None].astype(">u2").view(np.uint8), axis=-1)[..., -bits:].reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def make_folder(root, splits=("train", "val"), names="abc", values=(0, 1, 2, 255), config="classes: [x, y, z]"):
    """A small "folder" data set."""
    for split in splits:
        for seed, name in enumerate(names):
            write_image(root / "images" / split / f"{name}.png", seed=seed)
            write_label(root / "masks" / split / f"{name}.png", values)
    (root / "dataset.yaml").write_text(config)
    return f"folder:{root}"


# kind, image file, label file, values in the label file, class ids
LAYOUTS = [
    ("camvid", "train/a.webp", "trainannot/a.png", [0, 10, 11, 255], [0, 10, 255, 255]),
    ("camvid", "imgs/train/a.png", "anns/train/a.png", [0, 10, 11, 255], [0, 10, 255, 255]),
    ("camvid", "imgs/train/a.jpg", "anns/train/a_L.png", [1, 9], [1, 9]),
    ("camvid", "train/1_L.bmp", "trainannot/1_L.png", [1, 9], [1, 9]),  # of a stereo camera
    ("cityscapes", "leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png", "gtFine/train/ulm/ulm_0_1_gtFine_labelIds.png",
     [0, 7, 8, 11, 29, 33, 255], [255, 0, 1, 2, 255, 18, 255]),
    ("nightcity", "imgs/train/a.png", "labels/train/a.png", [0, 18, 255], [0, 18, 255]),
    ("nightcity", "imgs/train/a.png", "labels/train/a_trainIds.png", [0, 18, 255], [0, 18, 255]),
    ("nightcity", "imgs/train/a.png", "labels/train/a_labelTrainIds.png", [0, 18, 255], [0, 18, 255]),
    ("nightcity", "imgs/train/a.jpg", "labels/train/a_labelIds.png", [0, 7, 33], [255, 0, 18]),
    ("folder", "images/train/deep/a.b.JPG", "masks/train/deep/a.b.png", [0, 2, 255], [0, 2, 255]),
    ("folder", "images/train/a.tif", "masks/train/a.PNG", [0, 2, 255], [0, 2, 255]),
]


class TestLayouts:
    @pytest.mark.parametrize("kind, image, label, values, ids", LAYOUTS)
    def test_reads(self, tmp_path, kind, image, label, values, ids):
        write_image(tmp_path / image)
        write_label(tmp_path / label, values)
        (tmp_path / "dataset.yaml").write_text("classes: [x, y, z]")
        dataset = open_dataset(f"{kind}:{tmp_path}", "train")
        assert dataset.files == [(tmp_path / image, tmp_path / label)]
        assert open_dataset(str(tmp_path), "train").files == dataset.files
        assert dataset.classes.names == {
            "camvid": CAMVID.names, "folder": ("x", "y", "z")}.get(kind, CITYSCAPES.names)
        check_dataset(dataset)
        picture, mapped = dataset[0]
        assert picture.dtype == torch.uint8 and picture.shape == (3, *SIZE)
        assert mapped.dtype == torch.int64
        assert mapped.tolist() == np.resize(ids, SIZE).tolist()
        with Image.open(tmp_path / image) as decoded:
            assert np.array_equal(picture.permute(1, 2, 0), np.asarray(decoded.convert("RGB")))

    def test_trainval_is_train_then_val(self, tmp_path):
        spec = make_folder(tmp_path)
        train, val = open_dataset(spec, "train"), open_dataset(spec, "val")
        assert len(train) == 3
        assert open_dataset(spec, "trainval").files == train.files + val.files

    def test_more_data(self, tmp_path):
        """Images of the same split and name are replaced, others are added; a data set may lack a part of the split."""
        dataset = open_dataset(make_folder(tmp_path / "small", names="abc"), "trainval")
        add_dataset(dataset, make_folder(tmp_path / "full", names="bd", splits=("train",)), "trainval")
        found = [str(image.relative_to(tmp_path).with_suffix("")) for image, _ in dataset.files]
        assert found == [
            "small/images/train/a", "full/images/train/b", "small/images/train/c", "small/images/val/a",
            "small/images/val/b", "small/images/val/c", "full/images/train/d"]
        assert all(image.stem == label.stem for image, label in dataset.files)
        add_dataset(dataset, make_folder(tmp_path / "all", names="abc"), "trainval")
        found = [str(image.relative_to(tmp_path).with_suffix("")) for image, _ in dataset.files]
        assert found == [f"all/images/{split}/{name}" for split in ("train", "val") for name in "abc"] + [
            "full/images/train/d"]

    def test_more_data_in_folders(self, tmp_path):
        """The same file name in another folder is another image; where one of them has no folder, who knows?"""
        dataset = open_dataset(make_folder(tmp_path / "a", names=("one/x", "two/x")), "train")
        add_dataset(dataset, make_folder(tmp_path / "b", names=("two/x", "three/x")), "train")
        assert [str(image.relative_to(tmp_path).parent) for image, _ in dataset.files] == [
            "a/images/train/one", "b/images/train/two", "b/images/train/three"]
        for i, (names, others) in enumerate([(("one/x",), ("x",)), (("x",), ("one/x",))]):
            dataset = open_dataset(make_folder(tmp_path / f"c{i}", names=names), "train")
            with pytest.raises(ValueError, match="of train/one/x and train/x each has one: is it the same image"):
                add_dataset(dataset, make_folder(tmp_path / f"d{i}", names=others), "train")

    def test_hidden_files_and_folders(self, tmp_path):
        """As systems leave them behind: they are no images, and no cities."""
        write_image(tmp_path / "leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png")
        write_label(tmp_path / "gtFine/train/ulm/ulm_0_1_gtFine_labelIds.png", [7, 24])
        for root in ("leftImg8bit/train", "gtFine/train"):
            (tmp_path / root / ".DS_Store").write_text("")
            write_image(tmp_path / root / "ulm/._ulm_0_1_leftImg8bit.png")
            write_image(tmp_path / root / ".Trash/ulm_0_2_leftImg8bit.png")
        dataset = open_dataset(f"cityscapes:{tmp_path}", "train")
        assert [image.name for image, _ in dataset.files] == ["ulm_0_1_leftImg8bit.png"] and not dataset.unpaired
        check_dataset(dataset)

    def test_more_data_of_other_classes(self, tmp_path):
        dataset = open_dataset(make_folder(tmp_path / "a"), "train")
        with pytest.raises(ValueError, match="has other classes"):
            add_dataset(dataset, make_folder(tmp_path / "b", config="classes: [x, y, other]"), "train")
        with pytest.raises(ValueError, match="is not a folder"):
            add_dataset(dataset, f"folder:{tmp_path / 'none'}", "train")

    def test_trainval_with_two_namings(self, tmp_path):
        for split, suffix in (("train", "labelIds"), ("val", "trainIds")):
            write_image(tmp_path / "imgs" / split / "a.png")
            write_label(tmp_path / "labels" / split / f"a_{suffix}.png", [7])
        with pytest.raises(ValueError, match="train and val are named differently"):
            open_dataset(f"nightcity:{tmp_path}", "trainval")

    def test_preferred_naming_wins(self, tmp_path):
        write_image(tmp_path / "imgs/train/a.png")
        write_label(tmp_path / "labels/train/a_labelIds.png", [7])
        write_label(tmp_path / "labels/train/a_color.png", [99])
        expected = write_label(tmp_path / "labels/train/a_trainIds.png", [3])
        dataset = open_dataset(f"nightcity:{tmp_path}", "train")
        check_dataset(dataset)
        assert dataset[0][1].tolist() == expected.tolist()

    def test_links_are_followed(self, tmp_path):
        spec = make_folder(tmp_path / "data", splits=("train", "other"))
        for kind in ("images", "masks"):
            (tmp_path / "data" / kind / "train" / "more").symlink_to(tmp_path / "data" / kind / "other")
        dataset = open_dataset(spec, "train")
        assert dataset.names == [*(f"train/{name}" for name in "abc"), *(f"train/more/{name}" for name in "abc")]
        check_dataset(dataset)

    @pytest.mark.parametrize("spec, words", [
        ("{}", ["no known layout", "train + trainannot (camvid)", "imgs/train + anns/train",
                "leftImg8bit/train + gtFine/train", "imgs/train + labels/train", "images/train + masks/train"]),
        ("camvid:{}", ["no known layout", "train + trainannot (camvid)"]),
        ("camvit:{}", ["is not a folder", "KIND one of camvid, cityscapes, nightcity, folder"]),
        ("{}/nowhere", ["nowhere is not a folder"]),
        ("folder:{}/half", ["half has no split 'train': there is no", "half/images/train and no", "half/masks/train"]),
    ])
    def test_no_layout(self, tmp_path, spec, words):
        make_folder(tmp_path / "half", splits=("val",))
        with pytest.raises(ValueError) as error:
            open_dataset(spec.format(tmp_path), "train")
        assert all(word in str(error.value) for word in words)
        assert spec != "camvid:{}" or "masks" not in str(error.value)

    def test_split_and_empty_folder(self, tmp_path):
        with pytest.raises(ValueError, match="'validation'; give one of train, val, test, trainval"):
            open_dataset(f"camvid:{tmp_path}", "validation")
        (tmp_path / "train").mkdir()
        (tmp_path / "trainannot").mkdir()
        with pytest.raises(ValueError, match="no images .*webp.* in .*train"):
            open_dataset(f"camvid:{tmp_path}", "train")


class TestYaml:
    def test_everything(self, tmp_path):
        spec = make_folder(tmp_path, values=[0, 7, 8, 9, 255], config="""
            classes: [road, car]
            palette: [[1, 2, 3], [4, 5, 6]]
            ignore_index: 0
            id_map: {7: 0, 8: 1, 9: 255}""")
        dataset = open_dataset(spec, "train")
        assert dataset.classes.names == ("road", "car")
        assert dataset.classes.palette == ((1, 2, 3), (4, 5, 6))
        assert dataset.ignore_index == 255
        assert dataset[0][1].flatten()[:5].tolist() == [255, 0, 1, 255, 255]

    @pytest.mark.parametrize("config, message", [
        ("", "content is None; known are classes"),
        ("classes: road", "classes is 'road'"),
        ("classes: []", "0 classes; 2 to 254"),
        ("classes: [pothole]", r"one class, pothole: .* two or more, .* classes: \[background, pothole\]"),
        ("classes: [a, 'b|c']", r"'b\|c' among the classes is no name"),
        ('classes: [a, "b\\nc"]', "among the classes is no name: it must fit into a table"),
        ("classes: [a, ' ']", "' ' among the classes is no name"),
        ("classes: [a, b, a]", "named twice: a"),
        ("classes: [a, no]", "False among the classes is no name"),
        ("classes: [a, null]", "None among the classes is no name"),
        ("classes: [a, [b]]", "among the classes is no name"),
        ("names: [a]", r"names is \['a'\]; known are classes"),
        ("palette: [[1, 2, 3]]", "0 class names, but 1 colours"),
        ("classes: [a, b]\npalette: [[1, 2, 3], [1, 2, 256]]", "three numbers 0-255"),
        ("classes: [a, b]\nignore_index: 1", "ignore_index 1 stands for class id 1"),
        ("classes: [a, b]\nignore_index: 300", "id_map has 300: 255"),
        ("classes: [a, b]\nid_map: {3: 2}", "id_map has 3: 2; values are 0-255, ids 0-1 or 255"),
        ("classes: [a, b]\nid_map: [1]", r"id_map is \[1\]"),
        ("classes: [a", "dataset.yaml: while parsing"),
    ])
    def test_mistakes(self, tmp_path, config, message):
        spec = make_folder(tmp_path, config=config)
        with pytest.raises(ValueError, match=message) as error:
            open_dataset(spec, "train")
        assert str(tmp_path / "dataset.yaml") in str(error.value)

    def test_missing(self, tmp_path):
        spec = make_folder(tmp_path)
        (tmp_path / "dataset.yaml").unlink()
        with pytest.raises(ValueError, match="dataset.yaml is missing; .* classes:"):
            open_dataset(spec, "train")


class TestLabelFiles:
    def test_palette_and_one_bit(self, tmp_path):
        spec = make_folder(tmp_path)
        label = np.resize(np.array([0, 1, 1], np.uint8), SIZE)
        palette = Image.fromarray(label)
        palette.putpalette([200, 10, 10, 30, 40, 50])
        palette.save(tmp_path / "masks/train/a.png")
        Image.fromarray(label.astype(bool)).save(tmp_path / "masks/train/b.png")
        modes = [Image.open(tmp_path / f"masks/train/{name}.png").mode for name in "ab"]
        assert modes == ["P", "1"]
        dataset = open_dataset(spec, "train")
        check_dataset(dataset)
        assert dataset[0][1].tolist() == dataset[1][1].tolist() == label.tolist()

    def test_colour_label_is_refused(self, tmp_path):
        spec = make_folder(tmp_path)
        write_image(tmp_path / "masks/train/b.png")
        dataset = open_dataset(spec, "train")
        with pytest.raises(ValueError, match="b.png: a label of mode RGB, .*'Bring your data'"):
            dataset[1]
        with pytest.raises(ValueError, match="1 files that can't be read: .*b.png: a label of mode RGB"):
            check_dataset(dataset)

    def test_other_formats_are_refused(self, tmp_path):
        spec = make_folder(tmp_path)
        (tmp_path / "masks/train/b.png").unlink()
        write_label(tmp_path / "masks/train/b.jpg", [0])
        with pytest.raises(ValueError, match="1 files that can't be read: .*b.jpg: masks must be PNGs"):
            check_dataset(open_dataset(spec, "train"))

    @pytest.mark.parametrize("bits", [1, 2, 4, 16])
    def test_values_are_unscaled_whatever_the_bits(self, tmp_path, bits):
        spec = make_folder(tmp_path)
        label = np.resize(np.array([0, 1], np.uint8), SIZE)
        (tmp_path / "masks/train/b.png").write_bytes(grey_png(label, bits))
        dataset = open_dataset(spec, "train")
        check_dataset(dataset)
        assert dataset[1][1].tolist() == label.tolist()

    def test_16_bits_above_255(self, tmp_path):
        spec = make_folder(tmp_path)
        Image.fromarray(np.full(SIZE, 300, np.uint16)).save(tmp_path / "masks/train/b.png")
        with pytest.raises(ValueError, match="b.png: a label with the value 300; 0 to 255 are possible"):
            open_dataset(spec, "train")[1]

    def test_sample_with_an_unknown_value_names_the_file(self, tmp_path):
        spec = make_folder(tmp_path)
        write_label(tmp_path / "masks/train/c.png", [0, 3, 4, 9])
        dataset = open_dataset(spec, "train", EvalTransform())
        dataset[0]
        with pytest.raises(ValueError, match=r"c.png: label values 3-4, 9 aren't known \(allowed 0-2; ignored 255\)"):
            dataset[2]

    def test_broken_image_names_the_file(self, tmp_path):
        spec = make_folder(tmp_path)
        path = tmp_path / "images/train/b.png"
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(RuntimeError, match="can't read an image from .*b.png"):
            open_dataset(spec, "train")[1]


    def test_16_bit_images_are_scaled(self, tmp_path):
        spec = make_folder(tmp_path)
        grey = np.resize(np.arange(0, 65536, 400, dtype=np.uint16), SIZE)
        Image.fromarray(grey).save(tmp_path / "images/train/a.png")
        assert (open_dataset(spec, "train")[0][0] - torch.from_numpy(grey / 257)).abs().max() <= 0.5


class TestCheck:
    def test_every_problem_in_one_message(self, tmp_path):
        spec = make_folder(tmp_path, names="abcdefgh")
        masks = tmp_path / "masks/train"
        (masks / "a.png").unlink()
        write_label(masks / "z.png", [0])
        (masks / "b.png").write_bytes(b"nothing")
        write_label(masks / "c.png", [0], size=(12, 20))
        for name in "efgh":
            write_label(masks / f"{name}.png", [0, 3, 4])
        with pytest.raises(ValueError) as error:
            check_dataset(open_dataset(spec, "train"))
        lines = str(error.value).splitlines()
        assert len(lines) == 6
        assert lines[0] == "the data set of 8 images has problems:"
        assert lines[1] == f"  1 images without a label, for instance: {masks / 'a.png'}"
        assert lines[2] == f"  1 labels without an image: {masks / 'z.png'}"
        assert lines[3].startswith("  1 files that can't be read: ") and "b.png" in lines[3]
        assert lines[4] == (
            "  1 labels of another size than their image (height x width): c.png (12x20, image 12x16)")
        assert lines[5] == (
            "  4 labels with unknown values (allowed 0-2; ignored 255): e.png (3-4 in 128 pixels), "
            "f.png (3-4 in 128 pixels), g.png (3-4 in 128 pixels), ...")

    def test_cityscapes_pairs(self, tmp_path):
        for name in ("ulm_0_1", "ulm_0_2"):
            write_image(tmp_path / f"leftImg8bit/train/ulm/{name}_leftImg8bit.png")
        for name in ("ulm_0_1", "ulm_0_3"):
            write_label(tmp_path / f"gtFine/train/ulm/{name}_gtFine_labelIds.png", [7, 33])
        with pytest.raises(ValueError, match="1 images without a label.*ulm_0_2(.|\n)*1 labels without an.*ulm_0_3"):
            check_dataset(open_dataset(f"cityscapes:{tmp_path}", "train"))

    def test_train_ids_in_files_named_like_ids(self, tmp_path):
        write_image(tmp_path / "imgs/train/a.png")
        write_label(tmp_path / "labels/train/a_labelIds.png", range(19))
        with pytest.raises(ValueError, match="no value in 19-33.*name them \\*_trainIds"):
            check_dataset(open_dataset(f"nightcity:{tmp_path}", "train"))

    def test_good_data(self, tmp_path):
        dataset = open_dataset(make_folder(tmp_path), "train")
        scans = check_dataset(dataset)
        assert [scan.image_size for scan in scans] == [SIZE] * 3
        assert scans[0].counts[[0, 1, 2, 255]].tolist() == [48] * 4
        assert not data_warnings(dataset, scans, "train")

    def test_what_is_hardly_meant(self, tmp_path, capsys):
        """Masks of 0 and 255, one of them empty, and a photo of a kind that isn't read; `bssnet-zoo data` says it."""
        spec = make_folder(tmp_path, values=[0, 255], config="classes: [road, pothole, car, bus, tram]")
        write_label(tmp_path / "masks/train/b.png", [255])
        (tmp_path / "images/train/d.heic").write_bytes(b"a photo")
        dataset = open_dataset(spec, "train")
        expected = [
            "4 of 5 classes without a pixel in train: pothole, car, bus, ...",
            "255 in the masks is ignored; if it is a class, as in masks of 0 and 255, say so in dataset.yaml: "
            "id_map: {0: 0, 255: 1}",
            f"1 masks in train are ignored as a whole: {tmp_path / 'masks/train/b.png'}",
            f"1 files in train are left out, for they are no images of a known kind: {tmp_path}/images/train/d.heic"]
        assert data_warnings(dataset, check_dataset(dataset), "train") == expected
        assert main(["data", spec, "--out", str(tmp_path / "sheet.png")]) == 0
        assert capsys.readouterr().out.splitlines()[-4:] == [f"warning: {line}" for line in expected]

    def test_255_may_be_a_class_or_ignored_by_name(self, tmp_path):
        spec = make_folder(tmp_path, values=[0, 255], config="classes: [road, pothole]\nid_map: {0: 0, 255: 1}")
        dataset = open_dataset(spec, "train")
        assert dataset[0][1].unique().tolist() == [0, 1]
        assert not data_warnings(dataset, check_dataset(dataset), "train")
        (tmp_path / "dataset.yaml").write_text("classes: [road, pothole]\nid_map: {0: 0, 255: 255}")
        assert open_dataset(spec, "train")[0][1].unique().tolist() == [0, 255]

    def test_nothing_to_learn(self, tmp_path):
        dataset = open_dataset(make_folder(tmp_path, values=[255]), "train")
        with pytest.raises(ValueError, match="no pixel has a class: all values in the masks are ignored"):
            check_dataset(dataset)
        assert len(check_dataset(dataset, labelled=False)) == 3

    def test_damaged_images(self, tmp_path, capsys):
        spec = make_folder(tmp_path)
        (tmp_path / "images/train/a.png").unlink()
        path = tmp_path / "images/train/a.jpg"
        write_image(path)
        path.write_bytes(path.read_bytes()[:-40])  # with a whole header
        check_dataset(open_dataset(spec, "train"))
        with pytest.raises(ValueError, match="1 files that can't be read: .*a.jpg"):
            check_dataset(open_dataset(spec, "train"), full=True)
        assert main(["data", spec, "--full", "--out", str(tmp_path / "sheet.png")]) == 2
        assert "a.jpg" in capsys.readouterr().err and not (tmp_path / "sheet.png").exists()

    def test_decompression_bombs(self, tmp_path, monkeypatch):
        spec = make_folder(tmp_path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
        with pytest.raises(ValueError, match="a.png.*decompression bomb"):
            check_dataset(open_dataset(spec, "train"))

    def test_two_images_of_one_name(self, tmp_path):
        spec = make_folder(tmp_path)
        write_image(tmp_path / "images/train/a.webp")
        with pytest.raises(ValueError, match="a.png and a.webp have the same name"):
            open_dataset(spec, "train")

    def test_orientation_that_the_mask_does_not_follow(self, tmp_path):
        spec, exif = make_folder(tmp_path), Image.Exif()
        exif[0x0112] = 6  # to be shown turned by 90 degrees
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "images/train/a.png", exif=exif)
        with pytest.raises(ValueError, match=r"another size than their image.*a.png \(12x16, image 16x12\)"):
            check_dataset(open_dataset(spec, "train"))
        write_label(tmp_path / "masks/train/a.png", [0], size=SIZE[::-1])
        check_dataset(open_dataset(spec, "train"))


@pytest.fixture(params=[0., 0.7], ids=["alone", "class_mix"])
def augmented(tmp_path, request):
    """A data set of 5 with augmentation."""
    spec = make_folder(tmp_path, names="abcde")
    return open_dataset(spec, "train", TrainTransform((0.5, 2), SIZE, (10, 14)), seed=3, class_mix=request.param)


class TestReproducibility:
    @staticmethod
    def batches(dataset, workers, start=0, number=6):
        sampler = TrainSampler(len(dataset), 2, seed=3, start=start)
        return list(islice(DataLoader(dataset, batch_sampler=sampler, num_workers=workers), number))

    def test_number_of_workers_and_restarts(self, augmented):
        alone = self.batches(augmented, 0)
        shared = self.batches(augmented, 2)
        resumed = self.batches(augmented, 2, start=4, number=2)
        for first, second in zip(alone + alone[4:], shared + resumed, strict=True):
            assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])

    def test_seed_epoch_and_index_matter(self, augmented):
        image = augmented[2, 1][0]
        assert torch.equal(augmented[2, 1][0], image)
        assert not torch.equal(augmented[3, 1][0], image)
        assert not torch.equal(augmented[2, 2][0], image)
        augmented.seed = 4
        assert not torch.equal(augmented[2, 1][0], image)

    def test_without_an_epoch_pytorch_seeds(self, augmented):
        """Each pass of somebody's own loader is another one, and ``torch.manual_seed`` repeats it."""
        torch.manual_seed(1)
        first, second = (torch.cat([image for image, _ in DataLoader(augmented, num_workers=1)]) for _ in range(2))
        torch.manual_seed(1)
        assert torch.equal(torch.cat([image for image, _ in DataLoader(augmented, num_workers=1)]), first)
        assert not torch.equal(first, second)

    def test_cache_changes_nothing_but_what_is_read(self, augmented):
        expected = self.batches(augmented, 0, number=8)
        augmented.cache = {}
        for _ in range(2):  # what is cached isn't changed by what follows
            for first, second in zip(expected, self.batches(augmented, 0, number=8), strict=True):
                assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
        for image, label in augmented.files:
            image.unlink(), label.unlink()
        assert len(self.batches(augmented, 0, number=8)) == 8
        augmented.transform = None
        expected = augmented[0][0].clone()
        for tensor in augmented[0]:
            tensor.zero_()  # the caller's own
        assert torch.equal(augmented[0][0], expected) and augmented[0][1].any()

    def test_negative_index(self, augmented):
        assert torch.equal(augmented[0, -1][0], augmented[0, 4][0])
        with pytest.raises(IndexError):
            augmented[5]


class TestSampler:
    def test_each_epoch_is_a_new_order_of_all(self):
        keys = sum(islice(TrainSampler(10, 4, seed=1), 5), [])
        assert [epoch for epoch, _ in keys] == [0] * 10 + [1] * 10
        epochs = [[index for _, index in keys[:10]], [index for _, index in keys[10:]]]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
        assert epochs[0] != epochs[1]
        assert sum(islice(TrainSampler(10, 4, seed=2), 5), []) != keys

    def test_start_and_iterating_again(self):
        sampler = TrainSampler(7, 3, start=5)
        expected = list(islice(TrainSampler(7, 3), 9))[5:]
        assert list(islice(sampler, 4)) == list(islice(sampler, 4)) == expected
        assert sampler.batch(6) == expected[1]

    def test_processes_share_the_batch_of_one(self):
        one = TrainSampler(11, 6, seed=2)
        parts = [TrainSampler(11, 3, seed=2, rank=rank, world_size=2) for rank in range(2)]
        for iteration in range(8):
            assert parts[0].batch(iteration) + parts[1].batch(iteration) == one.batch(iteration)

    def test_batch_larger_than_the_data_set(self):
        assert len(TrainSampler(2, 5).batch(0)) == 5

    @pytest.mark.parametrize("arguments", [
        {"length": 0}, {"batch_size": 0}, {"rank": 2, "world_size": 2}, {"rank": -1}, {"start": -1}])
    def test_bad_arguments(self, arguments):
        with pytest.raises(ValueError):
            TrainSampler(**{"length": 3, "batch_size": 1, **arguments})


class TestCrop:
    def share(self, label, window):
        top, left, height, width = window
        values = label[top:top + height, left:left + width]
        counts = torch.bincount(values[values != 255])
        return (counts.max() / counts.sum()).item()

    def test_no_class_has_more_than_three_quarters(self):
        label = torch.zeros(40, 60, dtype=torch.uint8)
        label[:, 30:] = 1
        rng = np.random.default_rng(0)
        windows = [transforms.random_crop_window(label, (20, 20), rng, tries=1000) for _ in range(300)]
        assert max(self.share(label, window) for window in windows) <= 0.75
        # 11 of the 41 places from left to right are good; each of them is drawn
        lefts = np.array([left for _, left, _, _ in windows])
        assert set(lefts.tolist()) == set(range(15, 26))
        assert np.bincount(lefts - 15).min() > 10
        assert {top for top, _, _, _ in windows} == set(range(21))
        # ten tries fail with probability (30 / 41) ** 10 = 4.4 %
        windows = [transforms.random_crop_window(label, (20, 20), rng) for _ in range(2000)]
        assert 0.03 < np.mean([self.share(label, window) > 0.75 for window in windows]) < 0.06

    def test_exactly_three_quarters_is_allowed(self):
        label = torch.tensor([[0, 0, 0, 1]])
        assert transforms.random_crop_window(label, (1, 4), Draws([0, 0])) == (0, 0, 1, 4)

    def test_ignored_pixels_do_not_count(self):
        label = torch.full((8, 8), 255, dtype=torch.uint8)
        label[0, :4] = 0
        label[0, 4] = 1  # 4 of 5 valid pixels are class 0: never good, so 10 windows are drawn
        draws = Draws([0] * 20)
        transforms.random_crop_window(label, (8, 8), draws)
        assert draws.left == 0
        label[0, 5] = 1  # 4 of 6: good at once
        draws = Draws([0] * 20)
        transforms.random_crop_window(label, (8, 8), draws)
        assert draws.left == 18

    @pytest.mark.parametrize("value", [0, 255])
    def test_last_try_is_taken(self, value):
        label = torch.full((8, 8), value, dtype=torch.uint8)
        draws = Draws([0, 0] * 9 + [3, 4])
        assert transforms.random_crop_window(label, (4, 4), draws) == (3, 4, 4, 4)

    def test_smaller_than_the_window(self):
        label = torch.zeros(5, 30, dtype=torch.uint8)
        top, left, height, width = transforms.random_crop_window(label, (8, 8), np.random.default_rng(0))
        assert (top, height, width) == (0, 5, 8) and 0 <= left <= 22


class TestClassMix:
    def test_half_of_the_classes_are_pasted(self):
        other = torch.tensor([[3, 3, 5, 5], [7, 9, 255, 255]])
        seen = set()
        for seed in range(100):
            image, label = torch.zeros(3, 2, 4), torch.full((2, 4), 2)
            mixed, mixed_label = transforms.class_mix(
                image, label, torch.ones(3, 2, 4), other, np.random.default_rng(seed))
            pasted = mixed_label != 2
            assert not image.any() and (label == 2).all()
            assert torch.equal(mixed_label[pasted], other[pasted])
            assert torch.equal(mixed, pasted.float().expand(3, 2, 4))
            drawn = set(mixed_label[pasted].tolist())
            assert len(drawn) == 2 and 255 not in drawn
            assert all(torch.equal(mixed_label == c, other == c) for c in drawn)
            seen |= drawn
        assert seen == {3, 5, 7, 9}

    def test_odd_number_of_classes_and_none(self):
        image, rng = torch.zeros(3, 1, 3), np.random.default_rng(0)
        label = torch.tensor([[1, 1, 255]])
        mixed = transforms.class_mix(image, label, image + 1, torch.tensor([[4, 5, 6]]), rng)[1]
        assert (mixed > 3).sum() == 2
        empty = transforms.class_mix(image, label, image + 1, torch.full((1, 3), 255), rng)
        assert torch.equal(empty[0], image) and torch.equal(empty[1], label)

    def test_share_and_source_in_a_dataset(self, tmp_path):
        spec = make_folder(tmp_path, names="abcde")
        transform = TrainTransform((1, 1), SIZE, SIZE)
        alone = open_dataset(spec, "train", transform)
        half = open_dataset(spec, "train", transform, class_mix=0.5)
        same = sum(torch.equal(alone[epoch, 0][0], half[epoch, 0][0]) for epoch in range(200))
        # a fifth of the mixed ones get their own pixels, which the colours of another draw give away
        assert 70 < same < 130

    def test_no_probability(self, tmp_path):
        with pytest.raises(ValueError, match="class_mix is a probability, 0 to 1, got 2"):
            open_dataset(make_folder(tmp_path), "train", class_mix=2)


class Draws:
    """A generator that gives integers from a list."""

    def __init__(self, values):
        self.values = list(values)

    def integers(self, high):
        value = self.values.pop(0)
        assert value < high
        return value

    @property
    def left(self):
        return len(self.values)


def blocks(height, width):
    """A label of 4 blocks, and an image whose grey is 60 times the label."""
    label = torch.zeros(height, width, dtype=torch.uint8)
    label[height // 2:] += 2
    label[:, width // 2:] += 1
    return (label * 60).expand(3, -1, -1), label


class TestTrainTransform:
    plain = {"mean": (0., 0., 0.), "std": (1., 1., 1.)}

    @pytest.fixture
    def undistorted(self, monkeypatch):
        monkeypatch.setattr(transforms, "photometric_distortion", lambda image, rng: image)

    @pytest.mark.parametrize("size, base, crop", [
        ((72, 96), (72, 96), (64, 80)), ((40, 100), (72, 96), (60, 120)), ((72, 96), (144, 192), (180, 200))])
    def test_image_and_label_stay_together(self, undistorted, size, base, crop):
        transform = TrainTransform((0.5, 2), base, crop, **self.plain)
        image, label = blocks(*size)
        padded = 0
        for seed in range(20):
            result, labels = transform(image, label, np.random.default_rng(seed))
            assert result.dtype == torch.float32 and result.shape == (3, *crop)
            assert labels.dtype == torch.int64 and labels.shape == crop
            inside = labels != 255
            rows, columns = inside.any(1), inside.any(0)
            assert torch.equal(inside, rows[:, None] & columns)
            assert rows.sum() == crop[0] or not rows[rows.sum():].any()
            assert columns.sum() == crop[1] or not columns[columns.sum():].any()
            assert (result[:, ~inside] == 0).all()
            # 4 pixels and more from where blocks meet nothing is interpolated, and the image is that of the label
            difference = (result * 255 / 60 - labels).abs().amax(0)
            seam = torch.zeros(crop, dtype=torch.bool)
            seam[1:] |= labels[1:] != labels[:-1]
            seam[:, 1:] |= labels[:, 1:] != labels[:, :-1]
            near = torch.nn.functional.max_pool2d(seam[None].float(), 9, 1, 4)[0] > 0
            assert (difference[inside & ~near] < 1e-3).all()
            assert (inside & ~near).sum() > 0.2 * inside.sum()
            padded += not inside.all()
        assert padded > 0

    def test_resize_keeps_the_aspect_ratio_and_draws_uniformly(self):
        transform = TrainTransform((0.5, 2), (100, 300), (8, 8))
        image, label = blocks(20, 40)  # fits 100x300 at 100x200
        rng = np.random.default_rng(0)
        sizes = np.array([transform._resize(image, label, rng)[1].shape for _ in range(1000)])
        assert np.abs(sizes[:, 1] - 2 * sizes[:, 0]).max() <= 1
        ratios = sizes[:, 0] / 100
        assert 0.5 <= ratios.min() < 0.52 and 1.98 < ratios.max() <= 2
        assert np.histogram(ratios, 3, (0.5, 2))[0].min() > 280
        assert abs(ratios.mean() - 1.25) < 0.05  # 3.6 standard errors

    def test_resized_pixels_have_the_same_centres(self):
        label = torch.arange(32, dtype=torch.uint8).expand(32, -1)
        transform = TrainTransform((0.25, 0.25), (32, 32), (8, 8))
        image, label = transform._resize((label * 8).expand(3, -1, -1), label, np.random.default_rng(0))
        inner = (slice(None), slice(1, -1))
        assert (image[0][inner] / 8 - label[inner]).abs().max() <= 0.6  # 0.5 as the middle of 4 pixels isn't a pixel

    def test_flip_half_of_the_time(self, undistorted):
        transform = TrainTransform((1, 1), (8, 8), (8, 8))
        image, label = blocks(8, 8)
        flipped = [transform(image, label, np.random.default_rng(seed))[1][0, 0] == 1 for seed in range(400)]
        assert 0.43 < np.mean(flipped) < 0.57

    def test_normalises_and_pads_with_zero_afterwards(self, undistorted):
        transform = TrainTransform((1, 1), (8, 8), (8, 10))
        image, label = blocks(8, 8)
        result, labels = transform(torch.full_like(image, 124), label, np.random.default_rng(0))
        expected = (124 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        torch.testing.assert_close(result[:, :, :8], expected[:, None, None].expand(3, 8, 8))
        assert (result[:, :, 8:] == 0).all() and (labels[:, 8:] == 255).all()

    def test_does_not_change_its_input(self):
        image, label = blocks(8, 8)
        before = image.clone(), label.clone()
        TrainTransform((1, 1), (8, 8), (8, 8))(image, label, np.random.default_rng(0))
        assert torch.equal(image, before[0]) and torch.equal(label, before[1])

    def test_int64_labels(self, undistorted):
        image, label = blocks(36, 48)
        transform = TrainTransform((0.5, 2), (36, 48), (32, 40))
        for seed in range(5):
            first = transform(image, label, np.random.default_rng(seed))
            second = transform(image, label.long(), np.random.default_rng(seed))
            assert torch.equal(first[1], second[1])

    def test_gamma(self, monkeypatch):
        """Half of the images, anything from e ** -gamma to e ** gamma, also where a channel is a little below 0."""
        monkeypatch.setattr(transforms, "photometric_distortion", lambda image, rng: image.sub_(1e-3))
        transform = TrainTransform((1, 1), (8, 8), (8, 8), mean=(0, 0, 0), std=(1, 1, 1), gamma=0.5)
        image, label = torch.full((3, 8, 8), 51, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)
        image[0] = 0
        rng = np.random.default_rng(0)
        results = [transform(image, label, rng)[0] for _ in range(400)]
        assert all(result.isfinite().all() for result in results)
        gammas = np.log(np.log([result[1, 0, 0].item() for result in results]) / np.log(0.2))
        changed = gammas[np.abs(gammas) > 1e-3]
        assert 160 < len(changed) < 240
        assert -0.5 < changed.min() < -0.45 and 0.45 < changed.max() < 0.5

    @pytest.mark.parametrize("arguments", [
        {"crop_size": (0, 4)}, {"base_size": (4, 0)}, {"scale_range": (2, 1)}, {"scale_range": (0, 1)},
        {"gamma": -1}])
    def test_bad_arguments(self, arguments):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} "):
            TrainTransform(**{"scale_range": (0.5, 2), "base_size": (8, 8), "crop_size": (8, 8), **arguments})


COLOURS = torch.tensor([
    [0, 0, 0], [255, 255, 255], [128, 128, 128], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255],
    [255, 0, 255], [10, 10, 11], [250, 249, 250], *np.random.default_rng(0).integers(0, 256, (200, 3)).tolist()])


def image_of(colours):
    return colours.T[:, :, None].float().contiguous()


def reference_distortion(image, rng):
    """Pixel by pixel with the standard library, drawing in the documented order."""
    def clip(x):
        return min(max(x, 0.), 255.)

    brightness = rng.uniform(-32, 32) if rng.random() < 0.5 else 0
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1
    first = rng.random() < 0.5
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1
    degrees = rng.uniform(-36, 36) if rng.random() < 0.5 else 0
    pixels = []
    for pixel in image.flatten(1).T.tolist():
        pixel = [clip(x + brightness) for x in pixel]
        if first:
            pixel = [clip(x * contrast) for x in pixel]
        hue, strength, value = colorsys.rgb_to_hsv(*pixel)
        pixel = colorsys.hsv_to_rgb((hue + degrees / 360) % 1, min(strength * saturation, 1), value)
        if not first:
            pixel = [clip(x * contrast) for x in pixel]
        pixels.append(pixel)
    return torch.tensor(pixels).T.reshape(image.shape)


class TestPhotometricDistortion:
    @pytest.mark.parametrize("seed", range(40))
    def test_reference(self, seed):
        expected = reference_distortion(image_of(COLOURS), np.random.default_rng(seed))
        result = transforms.photometric_distortion(image_of(COLOURS), np.random.default_rng(seed))
        torch.testing.assert_close(result, expected, atol=0.01, rtol=0)

    def test_each_step_half_of_the_time(self):
        grey, colour = torch.tensor([[100, 100, 100]]), torch.tensor([[100, 120, 140]])
        greys = self.results(grey)
        assert abs((greys[:, 0] == 100).float().mean() - 0.25) < 0.03  # neither brightness nor contrast
        assert ((greys - greys[:, :1]).abs() < 1e-3).all()  # grey stays grey
        assert abs((self.results(colour) == colour).all(1).float().mean() - 1 / 16) < 0.02

    def test_ranges(self):
        black = self.results(torch.tensor([[0, 0, 0]]))[:, 0]
        assert 32 < black.max() <= 48  # +32, then at most 1.5 times that
        hues = torch.tensor([colorsys.rgb_to_hsv(*colour)[0] for colour in self.results(
            torch.tensor([[100, 120, 140]])).tolist()]) * 360 - 210
        assert -36.01 < hues.min() < -34 and 34 < hues.max() < 36.01

    @staticmethod
    def results(colour, number=2000):
        rng = np.random.default_rng(0)
        return torch.stack([
            transforms.photometric_distortion(image_of(colour), rng).flatten() for _ in range(number)])


class TestEvalTransform:
    def test_normalises(self):
        image, label = blocks(8, 10)
        result, labels = EvalTransform()(image, label)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        torch.testing.assert_close(result, (image / 255 - mean[:, None, None]) / std[:, None, None])
        assert labels.dtype == torch.int64 and torch.equal(labels, label.long())

    @pytest.mark.parametrize("size", [(16,), (16, 20)])
    def test_size_is_that_of_the_image_only(self, size):
        image, label = blocks(8, 10)
        result, labels = EvalTransform(size)(image, label)
        assert result.shape == (3, 16, 20) and labels.shape == (8, 10)
        corners = (result[0, [0, 0, -1, -1], [0, -1, 0, -1]] * 0.229 + 0.485) * 255 / 60
        torch.testing.assert_close(corners, torch.arange(4.), atol=1e-4, rtol=0)


class TestReport:
    def test_numbers(self, tmp_path):
        spec = make_folder(tmp_path / "data", names="ab", values=[0, 0, 1, 255], config="classes: [x, y, rare]")
        found = report(spec, "train", tmp_path / "out" / "sheet.png")
        assert found.pixels == (192, 96, 0) and found.ignored == 96
        assert found.image_sizes == {SIZE: 2}
        assert found.images_with_class == (2, 2, 0)
        weights = 1 / np.log(1.02 + np.array([2 / 3, 1 / 3, 0]))
        assert found.class_weights == pytest.approx(weights / weights.mean(), abs=1e-4)
        text = str(found)
        assert all(words in text for words in (
            "train: 2 images", "12x16 (2)", "ignored pixels: 25.00%", "66.67%", "ENet", "sheet.png"))
        assert [line.split()[0] for line in text.splitlines()[4:7]] == ["x", "y", "rare"]
        with Image.open(tmp_path / "out" / "sheet.png") as sheet:
            assert sheet.mode == "RGB" and sheet.width > 480

    def test_sheet_shows_image_and_mask(self, tmp_path):
        config = "classes: [x, y]\npalette: [[255, 0, 0], [0, 255, 0]]"
        spec = make_folder(tmp_path, names="a", config=config)
        Image.new("RGB", (240, 180), (0, 0, 200)).save(tmp_path / "images/train/a.png")
        label = write_label(tmp_path / "masks/train/a.png", [0], size=(180, 240))
        label[90:] = 1
        label[:, 120:] = 255
        Image.fromarray(label).save(tmp_path / "masks/train/a.png")
        report(spec, "train", tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as sheet:
            picture = [sheet.getpixel((60, 45)), sheet.getpixel((60, 135))]
            mask = [sheet.getpixel((300, 45)), sheet.getpixel((300, 135)), sheet.getpixel((420, 45))]
        assert picture == [(0, 0, 200)] * 2
        assert mask[0][0] > 150 > mask[0][2] and mask[1][1] > 150 > mask[1][2]
        assert mask[2] == (0, 0, 200)

    def test_bad_data_is_refused(self, tmp_path):
        spec = make_folder(tmp_path, values=[0, 9])
        with pytest.raises(ValueError, match="unknown values"):
            report(spec, "train", tmp_path / "sheet.png")
        assert not (tmp_path / "sheet.png").exists()

    def test_weights_of_equal_classes(self):
        assert enet_weights(np.array([5, 5, 5])) == (1., 1., 1.)
        assert enet_weights(np.array([0, 0])) == (1., 1.)


@needs_shared
class TestCamvid:
    spec = f"camvid:{SHARED / 'camvid'}"

    def test_splits(self):
        assert [len(open_dataset(self.spec, split)) for split in ("train", "val", "test", "trainval")] == [
            367, 101, 233, 468]

    def test_report(self, tmp_path):
        found = report(self.spec, "test", tmp_path / "sheet.png")
        assert found.image_sizes == {(360, 480): 233}
        assert sum(found.pixels) + found.ignored == 233 * 360 * 480
        # road and building are most of a street, bicyclists and pedestrians least
        assert {CAMVID.names[i] for i in np.argsort(found.pixels)[-2:]} == {"road", "building"}
        assert {CAMVID.names[i] for i in np.argsort(found.pixels)[:2]} == {"pedestrian", "bicyclist"}

    def test_training_samples(self):
        transform = TrainTransform((0.5, 2), (360, 480), (352, 480))
        dataset = open_dataset(self.spec, "trainval", transform)
        for epoch, index in TrainSampler(len(dataset), 8).batch(0):
            image, label = dataset[epoch, index]
            assert image.shape == (3, 352, 480) and label.shape == (352, 480)
            assert image.isfinite().all() and -2.2 < image.min() and image.max() < 2.7
            assert set(label.unique().tolist()) <= {*range(11), 255}
            assert (label != 255).any()
