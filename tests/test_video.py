"""Videos and streams: what is read, what is written, and what happens to bad ones."""
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from conftest import SHARED, needs_shared
from PIL import Image

from bssnet_zoo import Predictor, write_overlay
from bssnet_zoo.cli import main
from bssnet_zoo.data import open_dataset
from bssnet_zoo.inference import video_reader
from bssnet_zoo.inference.overlap import behind, newest
from bssnet_zoo.inference.video import frame_rate
from bssnet_zoo.inference.video_reader import Clip, Video, is_stream, is_video, stream_name, without_password
from bssnet_zoo.models.weights import ASSETS

av = pytest.importorskip("av")

STREET = np.array(Image.open(ASSETS / "street.png"))
NTSC = Fraction(30000, 1001)
RUN = ("--size", "64", "--backend", "deploy", "--precision", "float32")


def pan(frames: int, size: tuple[int, int] = (96, 128)) -> list[np.ndarray]:
    """A camera that moves over the street."""
    return [STREET[100:100 + size[0], 8 * i:8 * i + size[1]] for i in range(frames)]


def write_video(path, images, codec="libx264", pix_fmt="yuv420p", rate=NTSC, pts=None, time_base=None, rotation=0,
                **options):
    with av.open(str(path), "w", container_options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if time_base:
            stream.codec_context.time_base = stream.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = (pts[i], time_base) if pts else (i, 1 / Fraction(rate))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_video(path, format="rgb24"):
    """Times and frames, by PyAV alone."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [frame.pts * frame.time_base for frame in frames], [frame.to_ndarray(format=format) for frame in frames]


@pytest.fixture(scope="module")
def predictor():
    """One for all, with one thread: at this size a second one costs more than it gains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Predictor("bssnet_t", backend="deploy", precision="float32", size=64)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def prepared_once(request, predictor, monkeypatch):
    """The command line gets the same predictor each time, which saves half of the time; one test makes its own."""
    if request.node.name != "test_overlay":
        monkeypatch.setattr("bssnet_zoo.cli.predict.Predictor", lambda *args: predictor)


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """30 frames, one second."""
    return write_video(tmp_path_factory.mktemp("video") / "drive.mp4", pan(30))


class TestReading:
    def test_every_frame_at_its_time(self, predictor, drive):
        times, frames = read_video(drive)
        found = list(predictor.video(drive))
        assert [time for time, _ in found] == pytest.approx([float(time) for time in times]) and len(found) == 30
        for (_, prediction), frame in zip(found, frames, strict=True):
            assert np.array_equal(prediction.image, frame)
            assert np.array_equal(prediction.labels, predictor(frame).labels)

    @pytest.mark.parametrize(("clip", "expected"), [
        (dict(start=0.5), range(15, 30)), (dict(end=0.5), range(15)), (dict(start=0.2, end=0.4), range(6, 12)),
        (dict(stride=7), range(0, 30, 7)), (dict(max_frames=4), range(4)),
        (dict(start=0.5, stride=4, max_frames=3), range(15, 27, 4)), (dict(start=5), []),
    ])
    def test_clips(self, drive, clip, expected):
        video = Video(drive, Clip(**clip))
        assert video.expected() == len(expected)
        assert [round(frame.time * NTSC) for frame in video] == list(expected)

    @pytest.mark.parametrize(("name", "options"), [
        ("a.mkv", {}), ("a.ts", {}), ("a.avi", dict(codec="mpeg4")), ("a.h264", {}),
        ("gop.mp4", {}), ("a.mov", dict(codec="mjpeg", pix_fmt="yuvj420p"))])
    def test_start_in_other_containers(self, tmp_path, name, options):
        file = write_video(tmp_path / name, pan(30), **options)
        assert [round(frame.time * 30) for frame in Video(file, Clip(start=0.45, max_frames=2))] == [14, 15]

    def test_colours(self, tmp_path):
        """Grey, red and blue come back, whichever of the ways to store colours a file uses."""
        colours = np.repeat(np.array([[(128,) * 3, (200, 30, 40), (20, 40, 220)]], np.uint8), 32, 1).repeat(64, 0)
        for space, tag, span in (("ITU601", 5, "MPEG"), ("ITU709", 1, "MPEG"), ("ITU709", 1, "JPEG")):
            path = tmp_path / "colours.nut"
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=1)
                stream.height, stream.width, stream.pix_fmt = *colours.shape[:2], "yuv444p"
                stream.codec_context.colorspace, stream.codec_context.color_range = tag, 2 if span == "JPEG" else 1
                frame = av.VideoFrame.from_ndarray(colours, format="rgb24").reformat(
                    format="yuv444p", dst_colorspace=space, src_color_range="JPEG", dst_color_range=span)
                container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            found, = Video(path)
            assert np.abs(found.image()[8:-8, 8::32].astype(int) - colours[8:-8, 8::32]).max() <= 6, (space, span)

    @pytest.mark.skipif(not hasattr(av.video.stream.VideoStream, "set_display_rotation"), reason="needs a newer PyAV")
    @pytest.mark.parametrize("turns", [1, 2, 3])
    def test_rotation(self, predictor, tmp_path, turns):
        """A phone's video, stored turned and with a note that says so, is shown upright to the network."""
        upright = pan(3)
        file = write_video(tmp_path / "phone.mp4", [np.rot90(image, -turns) for image in upright],
                           rotation=(90 * turns + 180) % 360 - 180)
        for (_, prediction), image in zip(predictor.video(file), upright, strict=True):
            assert np.abs(np.asarray(prediction.image).astype(int) - image).mean() < 8
        write_overlay(predictor.video(file), tmp_path / "overlay.mp4")
        assert read_video(tmp_path / "overlay.mp4")[1][0].shape == (96, 128, 3)

    def test_devices_of_ffmpeg(self, predictor):
        """A camera is one; here a test picture is. Its frames come as fast as they are taken, unless it is live."""
        source = "lavfi:testsrc=size=64x48:rate=10"
        found = list(predictor.video(source, max_frames=3, live=False))
        assert [time for time, _ in found] == pytest.approx([0, 0.1, 0.2])
        assert Video(source).live and is_video("/dev/video0") and is_video("rtsp://camera/1")

    def test_frame_rate_of_macs_cameras(self, monkeypatch):
        calls = []
        monkeypatch.setattr(av, "open", lambda name, **options: calls.append((name, options)) or FileNotFoundError)
        for source in ("avfoundation:0", "v4l2:/dev/video0"):
            video_reader._open(source)
        assert [(name, options["format"], options["options"]) for name, options in calls] == [
            ("0", "avfoundation", {"framerate": "30"}), ("/dev/video0", "v4l2", None)]

    def test_a_colon_in_a_name(self, drive, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        shutil.copy(drive, "12:30.mp4")
        for _ in range(2):  # the second time it knows its own
            assert main(["predict", "12:30.mp4", "--out", ".", "--max-frames", "2", *RUN]) == 0
        assert (tmp_path / "12:30_overlay.mp4").exists()

    def test_names_of_streams(self):
        for source, name in (
                ("rtsp://camera:554/live.sdp?key=1", "live"), ("/dev/video0", "video0"), ("http://host/a/b.mp4", "b"),
                ("pipe:0", "0"), ("lavfi:testsrc=size=64x48", "testsrc_size_64x48"), ("rtsp://camera", "camera"),
                ("rtsp://10.0.0.1/user=admin_password=tiger_channel=1.sdp", "user_admin_password__channel_1")):
            assert stream_name(source) == name

    def test_secrets_in_an_address(self):
        source = "rtsp://a:b@camera/user=me&password=tiger&channel=1?passphrase=tiger&api_key=tiger&start=3"
        assert without_password(source) == (
            "rtsp://camera/user=me&password=***&channel=1?passphrase=***&api_key=***&start=3")

    @pytest.mark.parametrize("secret", ["secret", "se?cr/et#", "p@ss"])
    def test_passwords_are_not_shown(self, secret, tmp_path, capsys):
        source = f"rtsp://admin:{secret}@127.0.0.1:1"
        assert stream_name(source) == "127.0.0"
        assert main(["predict", source, "--out", str(tmp_path), *RUN]) == 1
        output = "".join(capsys.readouterr())
        assert "rtsp://127.0.0.1:1" in output and secret not in output and "admin" not in output

    @pytest.mark.parametrize("source", ["C://Users/me/street.mp4", "https://host/street.jpg", "http://host/a.PNG?b=c"])
    def test_no_streams(self, source):
        assert not is_stream(source)

    def test_size_that_changes(self, tmp_path):
        small, large = (write_video(tmp_path / f"{i}.ts", pan(5, size)) for i, size in enumerate([(96, 128), (64, 96)]))
        (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
        assert {frame.image().shape for frame in Video(tmp_path / "both.ts")} == {(96, 128, 3)}


class TestWriting:
    def test_overlay(self, predictor, drive, tmp_path):
        assert main(["predict", str(drive), "--out", str(tmp_path), *RUN]) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["drive_overlay.mp4"]
        with av.open(str(tmp_path / "drive_overlay.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264" and stream.average_rate == NTSC and stream.frames == 30
            assert stream.codec_context.pix_fmt == "yuv420p" and stream.codec_context.colorspace == 1
        times, frames = read_video(tmp_path / "drive_overlay.mp4")
        assert times == read_video(drive)[0]
        for frame, (_, prediction) in zip(frames, predictor.video(drive), strict=True):
            assert np.abs(frame - np.asarray(prediction.overlay(legend=False)).astype(float)).mean() < 6

    def test_labels_are_exact(self, predictor, drive, tmp_path, capsys):
        assert main(["predict", str(drive), "--out", str(tmp_path), "--labels", "--no-overlay", *RUN]) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["drive_labels.mkv"]
        times, labels = read_video(tmp_path / "drive_labels.mkv", "gray")
        expected = list(predictor.video(drive))
        assert [float(time) for time in times] == pytest.approx([time for time, _ in expected], abs=1e-3)
        assert np.array_equal(labels, [prediction.labels for _, prediction in expected])
        assert np.array_equal(read_video(tmp_path / "drive_labels.mkv")[1][3][..., 1], labels[3])  # as RGB too
        counts = sum(prediction.counts() for _, prediction in expected)
        shown = capsys.readouterr().out
        assert re.search(r"30 frames read, 30 written, 0 dropped in \d+\.\d\d s, \d+\.\d FPS", shown)
        for name, count in zip(expected[0][1].class_names, counts, strict=True):
            assert re.search(rf"{name} +{count / counts.sum():.1%}", shown)

    def test_variable_frame_rate(self, predictor, tmp_path):
        pts = [0, 1000, 1013, 4500, 4533, 9999]
        file = write_video(tmp_path / "variable.mkv", pan(6), pts=pts, time_base=Fraction(1, 1000))
        assert main(["predict", str(file), "--out", str(tmp_path / "out"), "--labels", *RUN]) == 0
        for name in ("variable_overlay.mp4", "variable_labels.mkv"):
            assert [1000 * time for time in read_video(tmp_path / "out" / name)[0]] == pts
        write_overlay(predictor.video(file), tmp_path / "python.mp4")
        assert [round(1000 * time) for time in read_video(tmp_path / "python.mp4")[0]] == pts

    def test_odd_size(self, predictor, tmp_path):
        file = write_video(tmp_path / "odd.mkv", pan(3, (95, 127)), codec="mjpeg", pix_fmt="yuvj420p")
        assert write_overlay(predictor.video(file), tmp_path / "overlay.mp4") == 3
        assert read_video(tmp_path / "overlay.mp4")[1][0].shape == (95, 127, 3)

    def test_stride_keeps_the_speed(self, drive, tmp_path):
        assert main(["predict", str(drive), "--out", str(tmp_path), "--stride", "3", "--start", "0.5", *RUN]) == 0
        times, _ = read_video(tmp_path / "drive_overlay.mp4")
        assert times == [i / NTSC for i in range(0, 15, 3)]
        with av.open(str(tmp_path / "drive_overlay.mp4")) as container:
            assert container.streams.video[0].average_rate == NTSC / 3

    def test_folder_of_both_twice(self, drive, tmp_path, capsys):
        shutil.copy(drive, tmp_path / "a.mp4")
        Image.fromarray(STREET).save(tmp_path / "b.png")
        for _ in range(2):  # the second time there are results too
            assert main(["predict", str(tmp_path), "--out", str(tmp_path / "out"), "--max-frames", "2", *RUN]) == 0
            assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
                "a_overlay.mp4", "b_labels.png", "b_overlay.png"]
        assert "1 images in" in capsys.readouterr().out
        assert main(["predict", str(tmp_path / "b.png"), "--out", str(tmp_path / "only"), "--no-overlay", *RUN]) == 0
        assert [path.name for path in (tmp_path / "only").iterdir()] == ["b_labels.png"]

    @needs_shared
    def test_real_street(self, tmp_path):
        """Frames of CamVid, a second apart and more, agree with their labels."""
        dataset = open_dataset(f"camvid:{SHARED / 'camvid_full'}", "test")
        samples = [dataset.files[i][0] for i in range(0, 60, 10)]
        images = [np.array(Image.open(file).convert("RGB").resize((480, 360))) for file in samples]
        file = write_video(tmp_path / "street.mp4", images, rate=1)
        predictor = Predictor("bssnet_t", backend="deploy", precision="float32")
        right = []
        for i, (_, prediction) in enumerate(predictor.video(file)):
            mask = dataset[10 * i][1].numpy()[::2, ::2]
            right.append((prediction.labels == mask)[mask != dataset.ignore_index].mean())
        assert len(right) == 6 and min(right) > 0.75 and np.mean(right) > 0.85


class TestSmooth:
    def test_is_the_average_of_the_logits(self, predictor, drive):
        average = None
        for (_, prediction), (_, plain) in zip(
                predictor.video(drive, smooth=0.75, max_frames=8), predictor.video(drive, max_frames=8), strict=True):
            prepared = predictor.prepare(plain.image)
            scores = predictor.scores(prepared)
            average = scores if average is None else 0.75 * average + 0.25 * scores
            assert (predictor.answer(prepared, average).labels == prediction.labels).mean() > 0.9999

    def test_steadies_noise(self, predictor, tmp_path):
        rng = np.random.default_rng(0)
        noisy = [np.clip(pan(1)[0] + rng.normal(0, 25, (96, 128, 3)), 0, 255).astype(np.uint8) for _ in range(10)]
        file = write_video(tmp_path / "still.mp4", noisy)

        def flicker(smooth: float) -> float:
            labels = [prediction.labels for _, prediction in predictor.video(file, smooth=smooth)]
            return float(np.mean([(a != b).mean() for a, b in zip(labels, labels[1:], strict=False)]))

        assert flicker(0.8) < flicker(0) / 2

    def test_needs_logits(self, predictor, drive, monkeypatch):
        monkeypatch.setattr(predictor, "scores", lambda prepared: torch.zeros(1, 96, 128, dtype=torch.uint8))
        with pytest.raises(ValueError, match="ends in labels"):
            next(predictor.video(drive, smooth=0.5))


class Feed(BaseHTTPRequestHandler):
    """Sends a video bit by bit, as a camera does: it waits for nobody."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        block = max(1, len(self.server.data) // 60)
        try:
            for at in range(0, len(self.server.data), block):
                self.wfile.write(self.server.data[at:at + block])
                time.sleep(self.server.seconds / 60)
        except OSError:  # the reader has left
            pass

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def feed(drive, tmp_path):
    """The address of a stream that takes two seconds for 60 frames."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Feed)
    server.data = write_video(tmp_path / "feed.ts", pan(40) + pan(20), codec="mpeg2video", rate=30).read_bytes()
    server.seconds = 2
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/live.ts"
    server.shutdown()
    server.server_close()


class TestLive:
    def test_drops_what_it_has_no_time_for(self, predictor, feed, tmp_path, monkeypatch, capsys):
        scores = predictor.scores
        monkeypatch.setattr(Predictor, "scores", lambda self, prepared: time.sleep(0.2) or scores(prepared))
        start = time.monotonic()
        assert main(["predict", feed, "--out", str(tmp_path / "out"), *RUN]) == 0
        assert time.monotonic() - start < 30
        read, written, dropped = map(int, re.search(
            r"(\d+) frames read, (\d+) written, (\d+) dropped", capsys.readouterr().out).groups())
        assert read == 60 and written + dropped == read and 3 <= written <= 30
        times, _ = read_video(tmp_path / "out" / "live_overlay.mp4")
        assert len(times) == written and times == sorted(times)
        assert times[-1] > 1  # what is written is what was new, not what was first

    def test_no_live_takes_all(self, predictor, feed):
        assert len(list(predictor.video(feed, live=False))) == 60

    def test_max_frames_ends_it(self, predictor, feed):
        assert len(list(predictor.video(feed, max_frames=2))) == 2

    def test_newest_keeps_one(self):
        dropped, given, go = [], [], threading.Event()

        def items():
            yield 0
            go.wait(5)
            yield from range(1, 1000)

        source = newest(items(), lambda: dropped.append(1))
        given.append(next(source))
        go.set()
        time.sleep(0.3)
        given += list(source)
        assert given == [0, 999] and len(dropped) == 998

    def test_newest_passes_errors_on(self):
        with pytest.raises(ZeroDivisionError):
            list(newest((1 / i for i in (1, 0)), list))

    def test_behind_is_bounded_and_raises(self):
        done = []
        with pytest.raises(ZeroDivisionError), behind(lambda i: done.append(1 / i), number=1) as call:
            for i in (1, 0, 2, 4):
                call(i)
        assert done[0] == 1

    def test_behind_lets_ctrl_c_through(self):
        """Who reads what is printed often goes with the same Ctrl-C; the file must still be ended, not removed."""
        def fail():
            time.sleep(0.05)
            raise BrokenPipeError

        with pytest.raises(KeyboardInterrupt), behind(fail) as call:
            call()
            raise KeyboardInterrupt

    def test_a_recording_is_kept(self, tmp_path):
        for _ in range(2):
            assert main(["predict", "lavfi:testsrc=size=64x48:rate=10", "--out", str(tmp_path), "--max-frames", "2",
                         *RUN]) == 0
        assert len(list(tmp_path.glob("*_overlay.mp4"))) == 2


@pytest.mark.parametrize("rate", [None, NTSC, Fraction(2147483647, 72000001), Fraction(1, 10 ** 9)])
def test_rates_that_ffmpeg_can_hold(rate):
    found = frame_rate(rate, 100)
    assert 0 < found.numerator < 2 ** 31 and found.denominator < 2 ** 31
    assert found == pytest.approx((rate or 25) / 100, rel=1e-3, abs=1e-6)


class TestBadInput:
    @pytest.mark.parametrize(("make", "message"), [
        (lambda path: path.write_text("hello " * 100), "can't read a video from .*: Invalid data"),
        (lambda path: path.write_bytes(b""), "can't read a video from .*"),
        (lambda path: None, "video not found: .*bad.mp4"),
        (lambda path: sound(path), "no video in .*: it has audio only"),
        (lambda path: unknown_codec(path), "can't decode .*: this PyAV has no decoder"),
    ])
    def test_no_video(self, tmp_path, capfd, make, message):
        path = tmp_path / "bad.mp4"
        make(path)
        assert main(["predict", str(path), "--out", str(tmp_path / "out"), *RUN]) == 1
        out, err = capfd.readouterr()
        assert re.fullmatch(f"failed: {message}.*", out.strip()) and not err
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
    def test_truncated(self, tmp_path, capfd, name):
        options = dict(movflags="faststart") if name.endswith("mp4") else {}
        whole = write_video(tmp_path / f"whole{name[-4:]}", pan(40) * 3, **options).read_bytes()
        (tmp_path / name).write_bytes(whole[:len(whole) // 2])
        assert main(["predict", str(tmp_path / name), "--out", str(tmp_path / "out"), "--stride", "5", *RUN]) == 1
        reasons = r"(can't be read to its end|ends after|\d+ damaged)"
        assert re.search(rf"failed: .*cut\.m.*: {reasons}", capfd.readouterr().out)
        assert 3 < len(read_video(tmp_path / "out" / "cut_overlay.mp4")[0]) < 24

    def test_truncated_after_the_start(self, tmp_path):
        """What is left after a jump is compared with the length, not with the jump."""
        whole = write_video(tmp_path / "whole.mp4", pan(40) * 3, movflags="faststart").read_bytes()
        (tmp_path / "cut.mp4").write_bytes(whole[:2 * len(whole) // 3])
        for start in (0, 1, 2):
            video = Video(tmp_path / "cut.mp4", Clip(start))
            assert list(video) and video.problem, start

    def test_damaged_in_python_warns(self, predictor, tmp_path):
        data = bytearray(write_video(tmp_path / "whole.mp4", pan(30), movflags="faststart").read_bytes())
        data[len(data) // 2:] = bytes(len(data) - len(data) // 2)
        (tmp_path / "holes.mp4").write_bytes(data)
        with pytest.warns(UserWarning, match="holes.mp4: .*damaged"):
            assert list(predictor.video(tmp_path / "holes.mp4"))

    def test_output_that_is_an_input(self, drive, tmp_path, capsys):
        shutil.copy(drive, tmp_path / "a.mp4")
        shutil.copy(drive, tmp_path / "a_overlay.mp4")
        before = (tmp_path / "a_overlay.mp4").read_bytes()
        assert main(["predict", str(tmp_path / "a.mp4"), str(tmp_path / "a_overlay.mp4"), "--out", str(tmp_path),
                     "--overwrite", "--max-frames", "2", *RUN]) == 1
        assert "a_overlay.mp4 is an input and would be overwritten" in capsys.readouterr().out
        assert (tmp_path / "a_overlay.mp4").read_bytes() == before

    def test_output_that_is_not_ours(self, drive, tmp_path, capsys):
        theirs = tmp_path / "drive_overlay.mp4"
        shutil.copy(drive, theirs)
        arguments = ["predict", str(drive), "--out", str(tmp_path), "--max-frames", "2", *RUN]
        assert main(arguments) == 1 and theirs.read_bytes() == drive.read_bytes()
        assert "was not written by bssnet-zoo predict: choose another --out, or --overwrite" in capsys.readouterr().out
        assert main([*arguments, "--overwrite"]) == 0
        assert main(arguments) == 0  # now it is

    def test_disk_full(self, drive, tmp_path, capfd):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
        try:
            status = main(["predict", str(drive), "--out", str(tmp_path / "out"), "--labels", *RUN])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        out, err = capfd.readouterr()
        assert status == 1 and list((tmp_path / "out").iterdir()) == [] and not err
        assert re.fullmatch(r"failed: can't write .*/drive_(overlay\.mp4|labels\.mkv): File too large", out.strip())

    def test_ctrl_c_keeps_what_is_written(self, predictor, drive, tmp_path, monkeypatch, capsys):
        scores, calls = predictor.scores, []

        def interrupted(self, prepared):
            calls.append(1)
            if len(calls) == 8:
                raise KeyboardInterrupt
            return scores(prepared)

        monkeypatch.setattr(Predictor, "scores", interrupted)
        assert main(["predict", str(drive), "--out", str(tmp_path), "--labels", *RUN]) == 130
        assert "7 written" in capsys.readouterr().out
        for name in ("drive_overlay.mp4", "drive_labels.mkv"):
            assert len(read_video(tmp_path / name, "gray")[0]) == 7
        monkeypatch.setattr(Predictor, "scores", scores)
        again = ["predict", str(drive), "--out", str(tmp_path), "--labels", "--skip-existing", *RUN]
        for skipped in (False, True):  # the files of a run that was interrupted are not taken for whole
            assert main(again) == 0 and ("skipped 1 file" in capsys.readouterr().out) == skipped
            assert len(read_video(tmp_path / "drive_overlay.mp4")[0]) > 7
        assert sorted(path.name for path in tmp_path.iterdir() if path != drive) == [
            "drive_labels.mkv", "drive_overlay.mp4"]

    @pytest.mark.slow
    def test_ctrl_c_of_a_silent_stream(self, tmp_path):
        """A server that accepts and says nothing: Ctrl-C ends the program, and so does time."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"http://127.0.0.1:{server.getsockname()[1]}/x"
            process = subprocess.Popen(
                [sys.executable, "-m", "bssnet_zoo", "predict", address, "--out", str(tmp_path), *RUN],
                stderr=subprocess.PIPE, text=True)
            try:
                connection, _ = server.accept()  # which would be closed if nobody held it
                with connection:
                    process.send_signal(signal.SIGINT)
                    assert process.wait(120) in (1, 130) and "Traceback" not in process.stderr.read()
            finally:
                process.kill()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("arguments", "message"), [
        (("--stride", "0"), "stride must be 1 or more, got 0"),
        (("--start", "-1"), "start must be 0 seconds or more, got -1"),
        (("--start", "3", "--end", "2"), "end must be after the start, 3 seconds, got 2"),
        (("--max-frames", "0"), "max_frames must be 1 or more, got 0"),
        (("--smooth", "1"), "smooth must be 0 .* and below 1, got 1"),
    ])
    def test_options(self, drive, tmp_path, capsys, arguments, message):
        assert main(["predict", str(drive), "--out", str(tmp_path / "out"), *arguments]) == 2
        assert re.fullmatch(f"bssnet-zoo: error: {message}", capsys.readouterr().err.strip())
        assert not (tmp_path / "out").exists()

    def test_nothing_in_the_clip(self, drive, tmp_path, capsys):
        assert main(["predict", str(drive), "--out", str(tmp_path), "--start", "100", *RUN]) == 1
        assert re.fullmatch("failed: .*drive.mp4: no frames .*", capsys.readouterr().out.strip())
        assert list(tmp_path.iterdir()) == []

    def test_without_av(self, drive, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "av", None)
        assert main(["predict", str(drive), "--out", str(tmp_path / "out"), *RUN]) == 2
        assert "videos need av: the extra [video], as in pip install '.[video]'" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def sound(path):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))


def unknown_codec(path):
    path.write_bytes(write_video(path, pan(3)).read_bytes().replace(b"avc1", b"zzz1"))
