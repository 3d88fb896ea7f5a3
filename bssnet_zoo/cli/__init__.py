"""The command line, ``bssnet-zoo <verb>`` or ``python -m bssnet_zoo <verb>``: a file for each verb.

A verb's file has its parser and the few lines that call what does the work; `main` puts them together.
"""
from .main import main

__all__ = ["main"]
