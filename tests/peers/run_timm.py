"""timm's test_models.py on our models; test_peers.py runs it in a process of its own."""
import importlib.util
import os
import re
from pathlib import Path

import pytest

import bssnet_zoo

CANNOT_APPLY = {
    "weights and pictures on the Hub": ["test_model_inference"],
    "logits of one vector for each image": ["test_model_backward", "test_model_backward_fx"],
    "global pooling before the classifier": [
        "test_reset_classifier_keeps_pool", "test_catavgmax_unsupported", "test_prune_intermediate_layers_last_feature",
        "test_head_hidden_size"],
    "arguments or modules of one family of models": [
        "test_pruned_efficientnet_in_chans", "test_model_features_space2depth_reduction",
        "test_pruned_features_torchscript", "test_prune_extra_blocks_stem_width",
        "test_efficientvim_branch_features", "test_model_features_output_stride",
        "test_model_forward_torchscript_with_features_fx"],
    "attention, class tokens, windows": [
        "test_prune_class_token_avg_pool", "test_eval_refreshes_attention_bias_cache", "test_swin_family_.*"],
    "timm's FeatureGetterNet, which some of timm's own models have too, has no set_grad_checkpointing": [
        "test_features_only_grad_checkpointing_backward"],
}


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


theirs = load(Path(os.environ["THEIR_TESTS"], "test_models.py"))
cfg_device = theirs.cfg_device  # a fixture
reasons = {name: reason for reason, names in CANNOT_APPLY.items() for name in names}
for name, test in vars(theirs).items():
    by_model = [mark for mark in getattr(test, "pytestmark", ()) if mark.args and mark.args[0] == "model_name"]
    if name.startswith("test_") and by_model and not any(re.fullmatch(pattern, name) for pattern in reasons):
        ours = pytest.mark.parametrize("model_name", bssnet_zoo.list_models()).mark
        test.pytestmark = [ours if mark in by_model else mark for mark in test.pytestmark]
        globals()[name] = test
