"""Inference: an image in, a `Prediction` out.

- `predictor`: what segments images, batches and streams. `prediction`: the result, and pictures of it.
- `polygons`: outlines of masks.
- `runner`: what runs the network, an exported file, OpenVINO or torch.
- `resize`: logits at the size of the image, a few rows at a time. `overlap`: threads that read and write meanwhile.
- `predict_files`: image files, videos and folders. `video`: a video or stream.
- `results`: names and signs of what is written.
- `video_reader`, `video_writer`: frames of a video file, stream or camera; videos that are written.
"""
