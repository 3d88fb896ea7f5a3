"""`Predictor`: what it prepares, what runs, and that every way gives the same answers."""
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SIZES, shallow
from PIL import Image
from safetensors.torch import save_file
from timm.layers import freeze_batch_norm_2d

import bssnet_zoo
from bssnet_zoo import Predictor
from bssnet_zoo.deployment.export import export_model
from bssnet_zoo.inference import resize
from bssnet_zoo.inference.overlap import ahead
from bssnet_zoo.models.weights import ASSETS

STREET = ASSETS / "street.png"
BACKENDS = [("openvino", "float32"), ("deploy", "float32"), ("eager", None)]


@pytest.fixture(scope="module")
def model():
    return bssnet_zoo.create_model("bssnet_t", pretrained=True).train()


@pytest.fixture(scope="module")
def expected(model):
    return bssnet_zoo.predict(model, STREET, size=128).labels


@pytest.fixture(scope="module")
def predictors(model):
    """A predictor for each backend, at a quarter of the street's pixels and less."""
    return {backend: Predictor(model, backend=backend, precision=precision, size=128)
            for backend, precision in BACKENDS}


def images():
    """Four images, two sizes: the second and third are alike in size."""
    street = np.array(Image.open(STREET))
    return [street[:300], street, street[:, ::-1].copy(), street[:300, ::-1].copy()]


@pytest.mark.slow
def test_a_signal_after_two_predictors_that_went():
    """An openvino.Core that goes before a later one takes the stack of signal handlers along, and then the process."""
    pytest.importorskip("openvino")
    code = f"""
import os, signal
from bssnet_zoo import BSSNet, Predictor
model = BSSNet(dim=8)
first, second = Predictor(model, backend="openvino", size=64), Predictor(model, backend="openvino", size=64)
for predictor in first, second:
    predictor("{STREET}")
del first, predictor
del second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr


@pytest.mark.parametrize("backend", ["openvino", "deploy", "eager"])
class TestBackends:
    def test_same_labels(self, predictors, expected, backend):
        assert (predictors[backend](STREET).labels == expected).mean() > 0.9999

    def test_batch_and_stream(self, predictors, backend):
        predictor = predictors[backend]
        one_by_one = [predictor(image) for image in images()]
        for found in (predictor.batch(images()), list(predictor.stream(images()))):
            for a, b in zip(found, one_by_one, strict=True):
                assert a.labels.shape == b.labels.shape and (a.labels == b.labels).mean() > 0.9999
                assert np.array_equal(a.image, b.image)

    def test_a_path_is_no_list_of_images(self, predictors, backend):
        for take in (predictors[backend].batch, predictors[backend].stream):
            with pytest.raises(ValueError, match="a list of images is needed, got the path 'a.jpg'"):
                take("a.jpg")

    def test_probabilities(self, predictors, backend):
        prediction = predictors[backend](STREET, probabilities=True)
        assert prediction.probabilities.shape == (11, 360, 480)
        assert np.allclose(prediction.probabilities.sum(0), 1, atol=1e-5)
        assert (prediction.probabilities.argmax(0) == prediction.labels).mean() > 0.9999

    def test_repr_says_what_runs(self, predictors, backend):
        assert repr(predictors[backend]) == f"Predictor(backend={backend}, precision=float32, device=cpu, size=128)"


@pytest.mark.parametrize("backend", ["openvino", "deploy"])
def test_bfloat16(model, expected, backend):
    predictor = Predictor(model, backend=backend, precision="bfloat16", size=128)
    assert predictor.runner.precision == "bfloat16"
    assert (predictor(STREET).labels == expected).mean() > 0.97


def test_batches_run_as_one(model, monkeypatch):
    predictor = Predictor(model, backend="eager", size=64)
    shapes = []
    forward = model.forward_features
    monkeypatch.setattr(model, "forward_features", lambda x: shapes.append(tuple(x.shape)) or forward(x))
    predictor.batch(images())
    assert [shape[0] for shape in shapes] == [1, 2, 1]


def test_batches_are_read_as_they_run(model, monkeypatch):
    predictor, order = Predictor(model, backend="eager", size=64), []
    prepare, segment = predictor.prepare, predictor._segment
    monkeypatch.setattr(predictor, "prepare", lambda image: order.append("read") or prepare(image))
    monkeypatch.setattr(predictor, "_segment", lambda *args: order.append("run") or segment(*args))
    assert len(predictor.batch(images()[:1] * 5, batch_size=2)) == 5
    assert order == ["read"] * 3 + ["run"] + ["read"] * 2 + ["run"] * 2


def test_a_stream_goes_on_after_a_bad_image(predictors):
    stream = predictors["deploy"].stream([STREET, "none.png", STREET])
    assert next(stream).labels.shape == (360, 480)
    with pytest.raises(FileNotFoundError, match="none.png"):
        next(stream)
    assert [prediction.labels.shape for prediction in stream] == [(360, 480)]


def test_pickle_keeps_trust(tmp_path):
    model = shallow()
    model.pretrained_cfg = dict(architecture="bssnet_t", input_size=(3, 64, 64))
    export_model(model, tmp_path / "mine.torchscript", "torchscript", (64, 64))
    predictor = Predictor(tmp_path / "mine.torchscript", trust=True)
    assert repr(pickle.loads(pickle.dumps(predictor))) == repr(predictor)


def test_pickle_and_equality(predictors, tmp_path, tiny):
    save_file(tiny.state_dict(), tmp_path / "mine.safetensors")
    predictor = Predictor(tmp_path / "mine.safetensors", backend="deploy", precision="float32", size=64)
    again = pickle.loads(pickle.dumps(predictor))
    one, two = predictor(STREET), again(STREET)
    assert repr(again) == repr(predictor) and np.array_equal(one.labels, two.labels)
    assert one == one and one != two and len({one, two}) == 2
    with pytest.raises(TypeError, match="a Predictor of a model can't be pickled: make it of a name or a file"):
        pickle.dumps(predictors["deploy"])


def test_the_model_is_left_as_it_is(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for backend, precision in (("deploy", "bfloat16"), ("openvino", "float32"), ("eager", None)):
        Predictor(model, backend=backend, precision=precision, size=64)(STREET)
    deployed = bssnet_zoo.deploy(model)
    Predictor(deployed, backend="deploy", precision="bfloat16", size=64)(STREET)
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert next(deployed.parameters()).dtype == torch.float32


def test_frozen_norms_run_in_eval_mode(model):
    frozen = freeze_batch_norm_2d(bssnet_zoo.create_model("bssnet_t", pretrained=True, drop_rate=0.5)).train()
    predictor = Predictor(frozen, backend="deploy", precision="float32", size=64)
    first, second = (predictor(STREET, probabilities=True).probabilities for _ in range(2))
    assert np.array_equal(first, second) and frozen.training


def test_threads_share_a_predictor(predictors):
    predictor = predictors["openvino"]
    expected = [predictor(image).labels for image in images()]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, labels in zip(pool.map(predictor, images()), expected, strict=True):
                assert np.array_equal(found.labels, labels)


def test_threads_share_a_model_that_runs_as_it_is():
    """It is in eval mode as long as one of them needs it."""
    torch.manual_seed(0)
    model = bssnet_zoo.BSSNet(num_classes=5, dim=8).train()
    predictor, before = Predictor(model, backend="eager", size=64), model.stem[0].bn.running_mean.clone()
    expected = [predictor(image).labels for image in images()]
    with ThreadPoolExecutor(4) as pool:
        for found, labels in zip(pool.map(predictor, images() * 5), expected * 5, strict=True):
            assert np.array_equal(found.labels, labels)
    assert model.training and torch.equal(model.stem[0].bn.running_mean, before)


class TestAuto:
    def test_openvino_where_it_is_installed(self, model, monkeypatch):
        assert Predictor(model, size=64).runner.backend == "openvino"
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert Predictor(model, size=64).runner.backend == "deploy"

    def test_precision(self, model, monkeypatch):
        for has, precision in ((True, "bfloat16"), (False, "float32")):
            monkeypatch.setattr("bssnet_zoo.inference.runner.has_bfloat16", lambda has=has: has)
            assert Predictor(model, size=64).runner.precision == precision

    def test_other_networks_run_as_they_are(self):
        network = torch.nn.Conv2d(3, 5, 1)
        predictor = Predictor(network)
        assert predictor.runner.backend == "eager" and predictor.size is None
        prediction = predictor(np.zeros((40, 50, 3), np.uint8))
        assert prediction.labels.shape == (40, 50) and prediction.class_names[4] == "class_4"


@pytest.mark.parametrize(("size", "seen"), [
    (None, SIZES["bssnet_t"]), ("full", (300, 400)), (90, (90, 120)), ((60, 100), (60, 100)), (np.int64(60), (60, 80)),
    ([50, 50], (50, 50)), (10, (10, 13)),
])
def test_size(model, size, seen):
    predictor = Predictor(model, backend="eager", size=size)
    prepared = predictor.prepare(np.zeros((300, 400, 3), np.uint8))
    assert prepared.seen == seen
    assert tuple(prepared.images.shape[2:]) == tuple(max(32, side) for side in seen)


@pytest.mark.parametrize("architecture", ["bssnet_t", "bssnet_b"])
def test_checkpoint_tells_the_model(tmp_path, architecture):
    model = bssnet_zoo.create_model(architecture, num_classes=4, aux_heads=True)
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    predictor = Predictor(tmp_path / "mine.safetensors", backend="deploy", precision="float32", size=64)
    expected = bssnet_zoo.predict(model, STREET, size=64)
    assert predictor.runner.classes.names == tuple(f"class_{i}" for i in range(4))
    assert (predictor(STREET).labels == expected.labels).mean() > 0.9999


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(backend="tpu"), "unknown backend 'tpu': there are auto, openvino, deploy, eager"),
    (dict(precision="int4"), "precision must be float32, bfloat16, float16, got 'int4'"),
    (dict(device="warp"), "device 'warp' is unknown or not there"),
    (dict(size="big"), "size must be the shorter side or .* or 'full', got 'big'"),
    (dict(backend="openvino", precision="float16"), "for the CPU, in float32 or bfloat16: take 'deploy'"),
    (dict(backend="eager", precision="bfloat16"), "runs the model as it is, float32 on cpu"),
    (dict(model=torch.nn.Conv2d(3, 5, 1), backend="deploy"), "takes a BSSNet that fuses by UMF, got Conv2d"),
    (dict(model="bssnet_x"), "unknown model 'bssnet_x'"),
    (dict(model="none.safetensors"), "checkpoint not found: none.safetensors"),
    (dict(model="none.onnx"), "exported file not found: none.onnx"),
    (dict(model="bssnet_t.pidnet_in1k"), "has no trained classifier"),
])
def test_errors(model, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        Predictor(arguments.pop("model", model), **arguments)
    assert "\n" not in str(error.value)


class Scores(torch.nn.Module):
    """Gives the same logits for any image."""

    def __init__(self, logits):
        super().__init__()
        self.num_classes, self.logits = logits.shape[1], torch.nn.Parameter(logits)

    def forward(self, images):
        return self.logits


class TestScoresThatAreNotFinite:
    @pytest.mark.parametrize("size", [(32, 48), (64, 96)])
    def test_minus_infinity_is_a_score(self, size):
        """A wrapper masks classes so; the answer is that of the others, resized or not, averaged or not."""
        torch.manual_seed(0)
        logits = torch.randn(1, 11, 32, 48)
        masked = logits.clone()
        masked[:, 3:5] = -torch.inf
        masked[:, :, :2, :2] = -torch.inf
        picture = np.zeros((*size, 3), np.uint8)
        prediction = Predictor(Scores(masked))(picture, probabilities=True)
        assert prediction.counts().sum() == size[0] * size[1]
        assert not np.isin(prediction.labels[4:, 4:], [3, 4]).any() and np.isfinite(prediction.probabilities).all()
        if size == (32, 48):
            assert np.array_equal(prediction.labels[2:, 2:], masked.argmax(1)[0, 2:, 2:])
        assert resize.finite_logits(logits) is logits

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_others_are_refused(self, value):
        logits = torch.zeros(1, 11, 4, 6)
        logits[0, 2, 1, 1] = value
        with pytest.raises(ValueError, match="the network gives NaN or infinite logits: its weights are broken"):
            Predictor(Scores(logits))(np.zeros((8, 12, 3), np.uint8))


@pytest.mark.parametrize(("source", "padded", "seen", "target"), [
    (9, 72, 72, 100), (1, 8, 7, 1), (5, 40, 33, 3000), (12, 12, 12, 12), (7, 56, 50, 2)])
def test_a_resize_is_torchs_two_and_takes_little_memory(source, padded, seen, target):
    logits = torch.randn(1, 2, source, 4, dtype=torch.float64)
    once = F.interpolate(logits, size=(padded, 4), mode="bilinear", align_corners=True)[:, :, :seen]
    twice = F.interpolate(once, size=(target, 4), mode="bilinear", align_corners=True)
    found = torch.cat(list(resize.resize_logits(logits, (padded, 4), (seen, 4), (target, 4))), dim=2)
    assert torch.allclose(found, twice, atol=1e-12)
    long = resize.resizes(source, 100_000, 100_000, 100_000, 32)
    assert sum(matrix.numel() for _, matrix in long) < 100_000 * (source + 2)


@pytest.mark.parametrize("classes", [1, 2, 11, 19, 256])
def test_largest_class(classes):
    assert not resize.largest_class(torch.zeros(classes, 2, 2)).any()  # of equal ones the first
    for logits in (torch.randn(classes, 20, 30), -torch.rand(classes, 20, 30) - 1, 1e-30 * torch.randn(classes, 5, 5)):
        expected = logits.argmax(0)
        found = resize.largest_class(logits.clone())
        assert found.dtype == torch.uint8 and (found == expected).float().mean() > 0.99
        losses = (logits.amax(0) - logits.gather(0, found[None].long())[0]) / logits.amax(0).abs()
        assert losses.max() < 2**-14  # where it isn't the largest, it is as large but for the last bits


class TestAhead:
    def test_order_and_bound(self):
        taken = []

        def items():
            for i in range(6):
                taken.append(i)
                yield i

        results = ahead(lambda i: i * i, items(), number=2)
        assert next(results) == 0
        assert len(taken) <= 4  # the one given out, two ahead and, maybe, one just begun
        assert list(results) == [1, 4, 9, 16, 25]

    def test_runs_in_a_thread_while_the_caller_works(self):
        results = ahead(lambda i: threading.current_thread(), range(3))
        assert all(thread is not threading.main_thread() for thread in results)

    def test_errors_come_in_their_turn(self):
        results = ahead(lambda i: 1 / i, [1, 0, 2])
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)

    def test_can_be_left(self):
        threads = threading.active_count()
        for _ in ahead(lambda i: i, iter(int, 1)):
            break
        assert threading.active_count() <= threads + 1
