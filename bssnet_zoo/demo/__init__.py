"""The demo: a page that runs a model in the browser, without a server's help.

- `site`: writes the page with its models, as static files. `server`: shows such a folder on this machine.
- `runtime`: which onnxruntime-web the page runs on, and the hashes of its files.
- ``page/``: HTML, CSS, JavaScript modules and sample pictures, copied as they are.
"""
from .server import SiteServer
from .site import write_site

__all__ = ["SiteServer", "write_site"]
