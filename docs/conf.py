"""The site: ``sphinx-build -W docs site``. Pages are Markdown; the reference comes from docstrings and parsers."""
import shutil
from pathlib import Path

import tomllib
from sphinx.application import Sphinx

import bssnet_zoo
from bssnet_zoo.hub.staging import stage
from bssnet_zoo.models.weights import HUB_FILENAME, WEIGHTS

# the repository's address stands in one place, pyproject.toml
pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
repository = pyproject["project"]["urls"]["Repository"]

project, author, version = "bssnet_zoo", "The bssnet_zoo developers", bssnet_zoo.__version__
project_copyright = author
extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_argparse_cli",
    "sphinx_copybutton"]
exclude_patterns = ["site"]
html_theme = "furo"
html_title = f"bssnet_zoo {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": repository, "source_branch": "main", "source_directory": "docs/",
    "footer_icons": [{"name": "GitHub", "url": repository, "html": "GitHub", "class": ""}]}

myst_enable_extensions = ["substitution"]
myst_heading_anchors = 4
myst_url_schemes = ["http", "https"]
colab = f"https://colab.research.google.com/github/{repository.removeprefix('https://github.com/')}/blob/main/docs"
myst_substitutions = {name: f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
                            f"({colab}/notebooks/{name}.ipynb)" for name in ("quickstart", "finetune")}
nb_execution_mode = "off"  # tests/test_docs.py runs them; what they printed is saved in them
suppress_warnings = ["toctree.empty_glob"]

default_role = "py:obj"
autodoc_inherit_docstrings = False  # torch's on `forward` say nothing of ours
autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
napoleon_custom_sections = [("Source", "notes_style")]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def write_cards(app: Sphinx) -> None:
    """The model cards of the bundled weights, as the Hub shows them: not kept, made by each build."""
    cards = Path(app.srcdir) / "models" / "cards"
    shutil.rmtree(cards, ignore_errors=True)
    for name in WEIGHTS:
        (cards / name).mkdir(parents=True)
        stage(name, "bssnet-zoo", cards / name)
        card = cards / name / "README.md"
        card.write_text(card.read_text().replace("(LICENSE.md)", "(../../licences.md)"))
        for file in (HUB_FILENAME, "LICENSE.md"):
            (cards / name / file).unlink()


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_cards)
