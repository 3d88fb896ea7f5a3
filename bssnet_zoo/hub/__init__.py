"""The Hugging Face Hub: your weights in a repository that ``timm.create_model("hf-hub:...")`` loads.

- `staging`: writes the repository to a folder.
- `model_card`: its README.md.
- `upload`: puts it on the Hub.
"""
from .staging import stage
from .upload import Publication, publish

__all__ = ["Publication", "publish", "stage"]
