"""transformers' test mixins on our classes; test_peers.py runs them in a process of its own."""
import importlib
import os
import sys
import types
import unittest

import torch

from bssnet_zoo.transformers import (
    BSSNetBackbone,
    BSSNetConfig,
    BSSNetForSemanticSegmentation,
    BSSNetImageProcessor,
    BSSNetModel,
)

CANNOT_APPLY = {
    "BSSNet checkpoints stem, stages and decoder itself, not by transformers' GradientCheckpointingLayer": [
        "test_gradient_checkpointing_enable_disable", "test_training_gradient_checkpointing",
        "test_training_gradient_checkpointing_use_reentrant_false",
        "test_training_gradient_checkpointing_use_reentrant_true"],
    "no tokens, and so no embeddings of them": ["test_model_get_set_embeddings"],
    "five stages, which no option makes two": ["test_num_layers_is_small"],
    "images are RGB": ["test_call_numpy_4_channels"],
}


def module(name: str, **contents) -> types.ModuleType:
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)
    return sys.modules[name]


# a package of another name than the folder's, which is ours too; the source distribution leaves out what is empty here
module("theirs", __path__=[os.environ["THEIR_TESTS"]])
module("theirs.exporters")
module("theirs.exporters.test_export", ExportTesterMixin=object)
module("theirs.generation")
module("theirs.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)
modeling, backbones, images = (
    importlib.import_module(f"theirs.test_{name}_common") for name in ("modeling", "backbone", "image_processing"))


modeling.MODEL_MAPPING_NAMES["bssnet"] = BSSNetModel.__name__  # has no loss


class Tester:
    """A narrow BSSNet and images for it, under the names that the mixins ask for."""

    batch_size, num_labels, num_hidden_layers, seq_length, hidden_size = 2, 3, 5, 16, 16  # of the stem's map, 16x16
    expected_num_hidden_layers = 6  # with the stem
    is_training = True

    def get_config(self):
        return BSSNetConfig("bssnet_t", model_args={"dim": 8}, num_labels=3, out_features=["stage1", "stage3"])

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": torch.rand(2, 3, 64, 64)}


class ModelTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (BSSNetForSemanticSegmentation, BSSNetModel)
    has_attentions = False
    test_resize_embeddings = False
    model_tester = Tester()


class BackboneTest(backbones.BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (BSSNetBackbone,)
    config_class = BSSNetConfig
    has_attentions = False
    model_tester = Tester()


class ImageTester(images.ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(parent, num_labels=3, size={"height": 20, "width": 24})

    def _get_image_processing_classes(self):
        return {"torchvision": BSSNetImageProcessor}


class ImageProcessorTest(
        images.ImageProcessingTestMixin, images.PostProcessSemanticSegmentationTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageTester
    test_cast_dtype = True


for name in sum(CANNOT_APPLY.values(), []):
    setattr(ImageProcessorTest if hasattr(ImageProcessorTest, name) else ModelTest, name, None)
