"""torch.hub entry points: ``torch.hub.load("owner/bssnet-zoo", "bssnet_t", pretrained=True)``.

Other weights than the default ones are chosen by their tag: ``pretrained=True, pretrained_cfg="street"``.
"""
dependencies = ["torch", "torchvision", "timm", "huggingface_hub", "safetensors", "numpy", "PIL", "tqdm", "yaml"]

from bssnet_zoo.models import bssnet_b, bssnet_t  # noqa: E402, F401
