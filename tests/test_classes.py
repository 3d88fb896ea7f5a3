"""What a model's classes are called, and whether they are those of a data set."""
import pytest
from conftest import shallow

import bssnet_zoo
from bssnet_zoo.data import CAMVID
from bssnet_zoo.models.config import match_classes, named_classes
from bssnet_zoo.models.metadata import metadata_config


@pytest.mark.parametrize("num_classes", [3, 11, 19])
def test_names_are_never_guessed_from_a_count(num_classes):
    model = shallow(num_classes=num_classes)
    assert named_classes(model) is None
    assert bssnet_zoo.class_info(model).names == tuple(f"class_{i}" for i in range(num_classes))
    assert len(set(bssnet_zoo.class_info(model).palette)) == num_classes


def test_a_config_names_the_classes_that_it_counts(tiny):
    assert named_classes(tiny).names == CAMVID.names and named_classes(tiny).palette == CAMVID.palette
    tiny.reset_classifier(5)
    assert named_classes(tiny) is None


@pytest.mark.parametrize(("data", "order"), [
    (["road", "traffic light", "sky"], None),
    (["Road", "traffic_light", " sky"], None),
    (["sky", "road", "Traffic-Light"], [2, 0, 1]),
])
def test_the_same_names(data, order):
    assert match_classes(["road", "traffic light", "sky"], data) == order


@pytest.mark.parametrize(("data", "message"), [
    (["road", "tree", "sky"], "only the model has car; only the data set has tree"),
    (["road", "sky"], "3 classes are not the data set's 2: only the model has car; only the data set has no other"),
    (["road", "car", "sky", "Car"], "3 classes are not the data set's 4"),
])
def test_other_names(data, message):
    with pytest.raises(ValueError, match=message):
        match_classes(["road", "car", "sky"], data)


CLASSES = {"class_names": '["a"]', "palette": '["#000000"]'}


@pytest.mark.parametrize("metadata", [
    {"class_names": "road, sky"}, {"class_names": "[null]", "palette": '["#000000"]'}, {"class_names": "[" * 9999},
    {"class_names": '["a", "a"]', "palette": '["#000000", "#000000"]'}, {"class_names": '[" "]', "palette": '["#0"]'},
    *({**CLASSES, "input_size": size} for size in ("[0, 64]", "[-4, 4]", "[Infinity, 4]", "[4, 4, 4]", "4")),
    *({**CLASSES, key: value} for key, value in (("std", "[1, 1, 0]"), ("mean", "[NaN, 1, 1]"), ("mean", "0.5")))])
def test_metadata_of_others_is_one_clear_error(metadata):
    with pytest.raises(ValueError, match=r"^best\.safetensors: what it says of its (classes|images) makes no sense"):
        metadata_config(metadata, "best.safetensors")


def test_metadata_may_leave_out_the_size():
    config = metadata_config({**CLASSES, "std": "[1, 2, 3]"}, "best.safetensors")
    assert config["label_names"] == ("a",) and config["std"] == (1, 2, 3) and "input_size" not in config
