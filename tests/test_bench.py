"""`bssnet-zoo bench`: sides that take turns in processes of their own, the table and the JSON."""
import json
import os
import re
import shutil
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench_sides import (
    make_bundled,
    make_death,
    make_failure,
    make_late_death,
    make_many_classes,
    make_memory,
    make_sleep,
)
from conftest import shallow

import bssnet_zoo
from bssnet_zoo import cli
from bssnet_zoo.benchmark import backends, table
from bssnet_zoo.benchmark.backends import BACKENDS, PEAKS, Settings, Side, is_peer, make_peak
from bssnet_zoo.benchmark.peers import create_peer
from bssnet_zoo.benchmark.rounds import Timing, spread, time_by_turns
from bssnet_zoo.cli import bench as bench_cli
from bssnet_zoo.device import has_vnni, why_slow
from bssnet_zoo.models.summary import count_multiply_adds

CPU = torch.device("cpu")
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of a process from /proc")


def test_turns():
    makers = {"slow": partial(make_sleep, 0.04), "failure": make_failure, "fast": partial(make_sleep, 0.02),
              "death": make_death, "late": make_late_death}
    timings = time_by_turns(makers, CPU, threads=1, seconds=0.4, rounds=4, warmup=3)
    assert list(timings) == list(makers)
    slow, fast = timings["slow"], timings["fast"]
    assert len(slow.seconds) == len(fast.seconds) == 4
    assert min(slow.seconds) >= 0.04 and min(fast.seconds) >= 0.02
    assert 1.5 < spread([s / f for s, f in zip(slow.seconds, fast.seconds, strict=True)]).median < 2.5
    assert slow.shape[0] == 3 and slow.shape[2] == 1  # the third warm-up pass, one thread
    assert len({os.getpid(), slow.shape[1], fast.shape[1]}) == 3
    assert timings["failure"].error == "the first line" and timings["failure"].seconds == ()
    assert "exit code 3" in timings["death"].error and "exit code 4" in timings["late"].error


def test_spread():
    values = spread(range(11))
    assert (values.low, values.median, values.high) == (1, 5, 9)
    assert values.format(1, scale=0.5) == "2.5 (0.5-4.5)"


@needs_proc
@pytest.mark.slow
def test_memory_of_a_side():
    makers = {name: partial(make_memory, *sizes) for name, sizes in {
        "nothing": (0, 0, 0), "made": (200, 0, 0), "kept": (0, 100, 0), "used": (0, 0, 150)}.items()}
    memory = {name: timing.memory / 2 ** 20
              for name, timing in time_by_turns(makers, CPU, 1, seconds=0.1, rounds=1, warmup=1).items()}
    assert abs(memory["made"] - memory["nothing"]) < 20
    assert 80 < memory["kept"] - memory["nothing"] < 120
    assert 130 < memory["used"] - memory["nothing"] < 170


@needs_proc
@pytest.mark.slow
def test_peak_memory_of_predict():
    """A process that predicts labels never holds the logits of all classes at full size."""
    makers = {(make, mode): partial(make, mode) for make in (make_bundled, make_many_classes) for mode in (False, True)}
    memory = {side: timing.memory for side, timing in time_by_turns(makers, CPU, 1, 0.1, rounds=1, warmup=1).items()}
    assert memory[make_many_classes, False] < 0.5 * (100 * 720 * 960 * 4) < memory[make_many_classes, True]
    assert memory[make_bundled, False] + 11 * 900 * 1200 * 4 < memory[make_bundled, True]


def bench(capsys, tmp_path, *arguments: str) -> tuple[str, dict]:
    json_path = tmp_path / "bench.json"
    status = cli.main(["bench", "--device", "cpu", "--threads", "1", "--seconds", "0.2", "--rounds", "3",
                       "--json", str(json_path), *arguments])
    assert status == 0
    return capsys.readouterr().out, json.loads(json_path.read_text())


@pytest.mark.slow
def test_bench(capsys, tmp_path):
    out, report = bench(capsys, tmp_path, "--models", "bssnet_t", "--size", "256x256", "--peers",
                        "lraspp_mobilenet_v3_large", "--backends", "deploy", "eager_kept", "--precision", "float32",
                        "int8", "bfloat16")
    part, = report["sizes"]
    rows = {(row["model"], row["backend"], row["precision"]): row for row in part["results"]}
    slow, peer = why_slow("bfloat16", CPU), "lraspp_mobilenet_v3_large"
    assert list(rows) == [side for side in [
        ("bssnet_t", "eager", "float32"), ("bssnet_t", "deploy", "float32"), ("bssnet_t", "deploy", "bfloat16"),
        ("bssnet_t", "eager_kept", "float32"), ("bssnet_t", "eager_kept", "bfloat16"), (peer, "eager", "float32"),
        (peer, "eager_kept", "float32"), (peer, "eager_kept", "bfloat16")] if not (slow and side[2] == "bfloat16")]
    assert [names for reason, names in part["unavailable"].items() if reason != slow] == [
        ["bssnet_t deploy int8"], ["bssnet_t eager_kept int8", f"{peer} eager_kept int8"]]
    assert (slow in part["unavailable"]) == (slow is not None)
    model = bssnet_zoo.create_model("bssnet_t", num_classes=11).eval()
    counts = [count_multiply_adds(m.to("meta"), *part["size"]) for m in (model, bssnet_zoo.deploy(model))]
    eager, deployed = rows["bssnet_t", "eager", "float32"], rows["bssnet_t", "deploy", "float32"]
    assert [eager["multiply_adds"], deployed["multiply_adds"]] == counts
    assert rows["bssnet_t", "eager_kept", "float32"]["multiply_adds"] == counts[0] > counts[1]
    assert rows[peer, "eager", "float32"]["stride"] == 8
    assert eager["ratio"] == {"median": 1, "low": 1, "high": 1}
    ratios = np.divide(eager["rounds"], deployed["rounds"])
    assert len(ratios) == 3 and deployed["ratio"]["median"] == pytest.approx(np.median(ratios))
    seconds = np.median(deployed["rounds"])
    assert deployed["fps"] == pytest.approx(1 / seconds)
    assert deployed["share_of_peak"] == pytest.approx(counts[1] / seconds / part["peaks"]["float32"])
    assert re.search(rf"\| bssnet_t +\| deploy +\| float32 +\| {1000 * seconds:.1f} \(", out)
    assert report["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert re.search(r"\| FPS +\| of peak \| times eager float32 \|", out) and "deploy has no int8" in out


@pytest.fixture
def in_this_process(monkeypatch):
    """What is timed is a small network, and run once: processes, which test_turns has, take seconds to start."""
    def time_by_turns(makers, *settings):
        with torch.inference_mode():
            return {name: Timing((0.1, 0.2), None, tuple(make()().shape)) for name, make in makers.items()}

    monkeypatch.setattr(table, "time_by_turns", time_by_turns)
    monkeypatch.setattr(table, "make_peak", lambda precision, device: torch.ones(8, 8).abs)
    monkeypatch.setattr(backends, "keep_freed_memory", lambda: kept.append(1))  # it would stay so in this process
    opened = backends.open_network
    monkeypatch.setattr(backends, "open_network", lambda name: opened(name) if is_peer(name) else shallow(
        upsample=name == "bssnet_b"))
    kept = []
    return kept


@pytest.mark.parametrize(("model", "sizes", "arguments", "stride"), [
    ("bssnet_b", ["64x64"], [], 4), ("bssnet_t", ["64x64", "64x96"], ["--full-size"], 1)])
def test_what_is_timed(capsys, tmp_path, in_this_process, model, sizes, arguments, stride):
    out, report = bench(
        capsys, tmp_path, "--models", model, "--backends", "eager_kept", "deploy", "--size", *sizes, *arguments)
    assert [part["size"] for part in report["sizes"]] == [[int(n) for n in size.split("x")] for size in sizes]
    assert all([row["stride"] for row in part["results"]] == 3 * [stride] for part in report["sizes"])
    assert ("logits at full size" in out) == (stride == 1)
    assert len(in_this_process) == 2 * len(sizes)  # not for eager


@pytest.mark.parametrize(("flags", "cpu"), [([], "Cortex-A76"), (["avx2", "avx_vnni"], "Cortex-A76 (avx2 avx_vnni)")])
def test_share(capsys, monkeypatch, flags, cpu):
    """A row a size: the fastest precision of each backend."""
    def bench_size(sides, size, settings):
        assert Side("bssnet_t", "openvino", "int8") in sides
        found = [("eager", "float32", 2.04), ("deploy", "bfloat16", 9.), ("deploy", "float32", 4.)]
        return dict(size=size, peaks={}, unavailable={}, results=[
            dict(model="bssnet_t", backend=backend, precision=precision, fps=fps, ratio=None, memory=None, stride=8,
                 seconds=dict(median=1., low=1., high=1.), multiply_adds=1, share_of_peak=None)
            for backend, precision, fps in found])

    monkeypatch.setattr(bench_cli, "bench_size", bench_size)
    monkeypatch.setattr(bench_cli, "machine_facts", lambda settings: dict(
        gpu=None, cpu="Cortex-A76", cpu_flags=flags, versions={}))
    assert cli.main(["bench", "--share", "--threads", "4", "--models", "bssnet_b", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"| {cpu}, 4 threads | {size} | 2.0 float32 | 9.0 bfloat16 | - | - |"
        for size in ("360x480", "720x960")]


def test_a_size_that_one_peer_refuses(capsys, tmp_path, in_this_process):
    peers = ["lraspp_mobilenet_v3_large", "smp:linknet/mobilenetv2_100"]
    out, report = bench(
        capsys, tmp_path, "--models", "bssnet_t", "--peers", *peers, "--size", "40x64", "--backends", "eager")
    part = report["sizes"][0]
    assert [row["model"] for row in part["results"]] == ["bssnet_t", peers[0]]
    assert list(part["unavailable"].values()) == [[peers[1]]] and "divisible by 32" in out


@pytest.mark.slow
def test_backends(capsys, tmp_path, in_this_process):
    """Files of a small network. "compile" is in test_deploy.py."""
    files = ["torchscript", "onnxruntime", "openvino"]
    _, report = bench(capsys, tmp_path, "--models", "bssnet_t", "--size", "64x96", "--backends", *files)
    assert [(row["backend"], row["stride"]) for row in report["sizes"][0]["results"]] == [
        (backend, 8) for backend in ("eager", *files)]


@pytest.mark.parametrize(("side", "reason"), [
    (Side("bssnet_t", "deploy", "int8"), "has no int8"), (Side("bssnet_t", "onnxruntime", "bfloat16"), "has no bfloat"),
    (Side("bssnet_t", "eager", "float16"), "is for GPUs"),
    (Side("bssnet_t", "compile", "float32"), "C\\+\\+ compiler"),
])
def test_unavailable(side, reason, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert re.search(reason, side.why_not(CPU))
    for has in (True, False):
        monkeypatch.setattr("bssnet_zoo.device.has_bfloat16", lambda has=has: has)
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        assert (Side("bssnet_t", "openvino", "bfloat16").why_not(CPU) is None) == has


@pytest.mark.parametrize(("arguments", "message"), [
    (["--models", "bssnet_x"], "unknown model 'bssnet_x'"), (["--models", "nosuch"], "unknown model 'nosuch'"),
    (["--models", "bssnet_t", "--peers", "lraspp"], "unknown peer 'lraspp': torchvision has"),
    (["--models", "bssnet_t", "--peers", "smp:unet"], "write smp:ARCHITECTURE/ENCODER"),
    (["--size", "360"], "argument --size: a height and a width are needed, as in 720x960, got '360'"),
    (["--rounds", "0"], "must be above 0"),
    (["--device", "cuda:7"], "device 'cuda:7' is unknown or not there"),
])
def test_errors(capsys, arguments, message):
    assert cli.main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "smp:fpn/mobilenetv2_100"])
def test_peers(name):
    peer = create_peer(name, 5)
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        raw, logits = peer.forward_features(images), peer(images)
        assert raw.shape[-1] < 96 and logits.shape == (1, 5, 64, 96)
        if name.startswith("smp"):
            expected = F.interpolate(raw, scale_factor=96 / raw.shape[-1], mode="bilinear", align_corners=False)
        else:
            expected = peer.network(images)["out"]
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_peaks(precision):
    from torch.utils.flop_counter import FlopCounterMode

    if precision == "int8" and not has_vnni():
        pytest.skip("bench leaves it out where there is no VNNI")
    run = make_peak(precision, CPU)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    if precision != "int8":  # which the counter doesn't know
        assert counter.get_total_flops() == 2 * PEAKS[precision][1]


def test_options_name_every_backend(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in (*BACKENDS, *PEAKS))
    assert Settings(CPU, 1).rounds == 12 and "default: 12" in out
