"""Speed, memory and `smooth` on videos made from the images of a data set.

    python experiments/video.py speed camvid:data/camvid_full      the network alone, and from file to file
    python experiments/video.py memory camvid:data/camvid_full     resident memory over 3,000 frames
    python experiments/video.py smooth camvid:data/camvid_full     flicker and mIoU
"""
import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

import bssnet_zoo
from bssnet_zoo.data.datasets import SegmentationDataset, open_dataset
from bssnet_zoo.inference.video import VideoOptions, predict_video
from bssnet_zoo.inference.video_reader import Clip, Video

SCENE = 15  # frames of a scene: half a second


def write_video(path: Path, images, rate: int = 30, crf: int = 20) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": str(crf)})
        for i, image in enumerate(images):
            if not i:
                stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def approach(picture: Image.Image, frame: int, resample: Image.Resampling) -> np.ndarray:
    """A frame of a camera that drives into the picture, a third of a percent a frame."""
    width, height = picture.size
    edge = frame / 300
    box = (edge * width / 2, edge * height * 0.55, width - edge * width / 2, height - edge * height * 0.45)
    return np.asarray(picture.resize((width, height), resample, box))


def scenes(dataset: SegmentationDataset, number: int):
    """Images and masks, spread over the data set."""
    for i in np.linspace(0, len(dataset) - 1, number).round().astype(int):
        mask = dataset[i][1].numpy().astype(np.uint8)
        yield Image.open(dataset.files[i][0]).convert("RGB"), Image.fromarray(mask)


def drive(dataset: SegmentationDataset, frames: int):
    for image, _ in scenes(dataset, -(-frames // SCENE)):
        for i in range(SCENE):
            yield approach(image, i, Image.Resampling.BILINEAR)


def stills(dataset: SegmentationDataset, frames: int):
    return (np.asarray(Image.open(dataset.files[i % len(dataset)][0]).convert("RGB")) for i in range(frames))


def network_alone(predictor: bssnet_zoo.Predictor, file: Path, frames: int) -> tuple[float, float]:
    """FPS and milliseconds of a core for each frame."""
    prepared = predictor.prepare(next(iter(Video(file))).image())
    for _ in range(3):
        predictor.scores(prepared)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(frames):
        predictor.scores(prepared)
    return frames / (time.perf_counter() - start), 1e3 * (time.process_time() - cpu) / frames


def speed(dataset: SegmentationDataset, folder: Path, predictor: bssnet_zoo.Predictor) -> None:
    print(predictor)
    print("| video | frames | network alone, FPS | end to end, FPS | share | of a core, ms | of it the network, ms |\n"
          "|---|---|---|---|---|---|---|")
    for name, images in (("drive", drive(dataset, 300)), ("a new scene each frame", stills(dataset, 300))):
        file = write_video(folder / "drive.mp4", images)
        before = network_alone(predictor, file, 100)
        for outputs in (("overlay",), ("overlay", "labels")):
            cpu = time.process_time()
            done = predict_video(predictor, file, folder / "out", VideoOptions(outputs=outputs))
            fps, total = done.written / done.seconds, 1e3 * (time.process_time() - cpu) / done.written
            after = network_alone(predictor, file, 100)  # who else computes may disturb one or the other
            (alone, network), before = np.mean([before, after], axis=0), after
            print(f"| {name}, {' and '.join(outputs)} | {done.written} | {alone:.1f} | {fps:.1f} | {fps / alone:.2f} | "
                  f"{total:.0f} | {network:.0f} |", flush=True)


def memory(dataset: SegmentationDataset, folder: Path, predictor: bssnet_zoo.Predictor) -> None:
    images = list(stills(dataset, 30))
    file = write_video(folder / "long.mp4", itertools.islice(itertools.cycle(images), 3000))
    scores, calls, first = predictor.scores, itertools.count(1), list[int]()

    def counted(prepared):
        call = next(calls)
        if call in (100, 300, 1000, 2000, 3000):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            first.append(pages * os.sysconf("SC_PAGE_SIZE") >> 20)
            print(f"frame {call}: {first[-1]} MiB", flush=True)
        return scores(prepared)

    predictor.scores = counted
    print(predict_video(predictor, file, folder / "out", VideoOptions(outputs=("overlay", "labels"))))


def smooth(dataset: SegmentationDataset, folder: Path, predictor: bssnet_zoo.Predictor) -> None:
    rng, images, masks = np.random.default_rng(0), [], []
    for image, mask in scenes(dataset, 12):
        for i in range(SCENE):
            frame = approach(image, i, Image.Resampling.BILINEAR) + rng.normal(0, 4, (image.height, image.width, 3))
            images.append(frame.clip(0, 255).astype(np.uint8))
            masks.append(approach(mask, i, Image.Resampling.NEAREST))
    moving = write_video(folder / "moving.mp4", images, crf=23)
    seconds = write_video(folder / "seconds.mp4", stills(dataset, len(dataset)), rate=1)
    still_masks = [dataset[i][1].numpy() for i in range(len(dataset))]
    truth = flicker(masks)
    print(f"flicker of the labels themselves, which move: {truth:.2f} %")
    print("| smooth | flicker, % of pixels | mIoU %, at 30 FPS | mIoU %, at 1 FPS |\n|---|---|---|---|")
    for weight in (0, 0.5, 0.8):
        found = [labels for start in range(0, len(masks), SCENE)
                 for labels in scene_labels(predictor, moving, start / 30, (start + SCENE) / 30 - 0.001, weight)]
        apart = scene_labels(predictor, seconds, 0, None, weight)
        print(f"| {weight} | {flicker(found):.2f} | {miou(dataset, found, masks):.2f} | "
              f"{miou(dataset, apart, still_masks):.2f} |", flush=True)


def scene_labels(predictor, file, start, end, weight):
    video = Video(file, Clip(start=max(0, start - 0.001), end=end))
    return [prediction.labels for _, prediction in predictor.frames(video, weight)]


def flicker(maps) -> float:
    """Share of the pixels whose class changes from one frame of a scene to the next, in %."""
    changes = [(a != b).mean() for i, (a, b) in enumerate(zip(maps, maps[1:], strict=False)) if (i + 1) % SCENE]
    return 100 * float(np.mean(changes))


def miou(dataset: SegmentationDataset, found, masks) -> float:
    matrix = bssnet_zoo.ConfusionMatrix(len(dataset.classes.names), dataset.ignore_index)
    for labels, mask in zip(found, masks, strict=True):
        matrix.update(torch.from_numpy(labels)[None].long(), torch.from_numpy(np.array(mask))[None].long())
    return 100 * matrix.miou


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "smooth"])
    parser.add_argument("data", metavar="[KIND:]DIR")
    parser.add_argument("--model", default="bssnet_t")
    parser.add_argument("--size", type=int, help="what the network sees: the shorter side")
    args = parser.parse_args()
    predictor = bssnet_zoo.Predictor(args.model, size=args.size)
    if predictor.runner.backend == "openvino":
        torch.set_num_threads(1)
    bssnet_zoo.device.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        globals()[args.what](open_dataset(args.data, "test"), Path(folder), predictor)


if __name__ == "__main__":
    main()
