"""Deployment: a trained model in, a faster one or a file that runs without this package out.

- `rewrites`: `deploy`, the same answers in less time.
- `export`: writes a file and checks it; `graph` is what it computes, `formats` the kinds there are, `int8` their
  quantisation.
- `exported`: runs such a file. `openvino`: runs a model in OpenVINO without one.
"""
