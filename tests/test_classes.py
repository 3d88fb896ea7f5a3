"""What a model's classes are called, and whether they are those of a data set."""
import pytest
from conftest import shallow

import bssnet_zoo
from bssnet_zoo.data import CAMVID
from bssnet_zoo.models.classes import match_classes, named_classes


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
