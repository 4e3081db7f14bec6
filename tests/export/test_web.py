"""The page under export/web, in headless Chromium: the same pixels and predictions as in Python."""

import functools
import http.server
import json
import queue
import shutil
import subprocess
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import runtimes
from PIL import Image

import fd_keras

WEB = Path(__file__).parents[2] / "export" / "web"
TEST_PAGES = Path(__file__).parent / "web"
SIZE = 64
TIMEOUT = 120

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = [path for name in names if (path := shutil.which(name))]
    if not found:
        pytest.skip("there is no Chromium")
    return found[0]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The page's files with LiteRT.js, as a deployer's `npm install` makes them."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(WEB, folder, dirs_exist_ok=True)
    shutil.copytree(TEST_PAGES, folder, dirs_exist_ok=True)
    if not (folder / "node_modules").is_dir():
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
        if done.returncode:
            pytest.skip(f"npm could not install LiteRT.js: {done.stderr[-300:]}")
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and puts what is posted into a queue."""

    extensions_map = {  # noqa: RUF012
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".wasm": "application/wasm",
        ".js": "text/javascript",
    }

    def __init__(self, *arguments, posted, **kwargs):
        self.posted = posted
        super().__init__(*arguments, **kwargs)

    def do_POST(self):
        self.posted.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def browse(chromium, site, tmp_path):
    """Open an address in Chromium, and return what the page posts."""
    posted = queue.Queue()
    handler = functools.partial(Handler, posted=posted, directory=site)
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def browse(address):
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        url = f"http://localhost:{server.server_port}/{address}"
        command = [chromium, *FLAGS, profile, url]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return posted.get(timeout=TIMEOUT)
        finally:
            process.kill()
            process.wait()

    yield browse
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(4)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(10)(x))
    body = keras.Model(inputs, keras.layers.Dense(5)(x))
    return fd_keras.protect(body, fd_keras.FeatureDistillation("jpeg:50", value_range=(0, 1)))


@pytest.fixture
def crops(photos):
    return photos[:, 7 : 7 + SIZE, 406 : 406 + SIZE]


def test_the_browser_computes_what_python_does(browse, site, model, crops):
    pytest.importorskip("litert_quantizer")
    scaled = (crops / 255).astype(np.float32)
    labels = [f"thing {i}" for i in range(5)]
    for quantize in ("none", "int8"):
        fd_keras.export_tflite(
            model,
            site / f"{quantize}.tflite",
            quantize=quantize,
            representative_data=scaled,
            labels=labels,
            single_image=True,
            verify=False,
        )
    for number, image in enumerate(crops):
        Image.fromarray(image).save(site / f"{number}.png")
    results = browse("compare.html?models=none.tflite,int8.tflite&images=0.png,1.png")
    assert "error" not in results, results.get("error")
    for name, result in results.items():
        assert result["details"]["labels"] == labels
        assert result["details"]["value_range"] == [0, 1]
        one_by_one = [runtimes.run_tflite(site / name, image[np.newaxis]) for image in scaled]
        expected = np.concatenate([outputs["predictions"] for outputs in one_by_one])
        for image, wanted, pixels in zip(result["images"], expected, scaled):
            distilled = np.reshape(image["distilled"], (1, SIZE, SIZE, 3)) * 255
            runtimes.assert_same_images(distilled, model.layers[1](pixels[np.newaxis]) * 255, name)
            tolerance = 0.05 if name == "int8.tflite" else 1e-3
            spread = np.ptp(expected)
            np.testing.assert_allclose(image["predictions"], wanted, atol=tolerance * spread)


def test_the_page_shows_image_distilled_image_and_prediction(browse, site, model, crops):
    labels = list("vwxyz")
    path = site / "model.tflite"
    fd_keras.export_tflite(model, path, labels=labels, single_image=True, verify=False)
    Image.fromarray(crops[0]).save(site / "example.png")
    found = browse("page.html")
    assert found["status"].endswith(" ms"), found["status"]
    original, distilled = (
        np.reshape(found[name], (SIZE, SIZE, 4))[..., :3] for name in ("original", "distilled")
    )
    np.testing.assert_array_equal(original, crops[0])
    image = (crops[:1] / 255).astype(np.float32)
    runtimes.assert_same_images(distilled[np.newaxis], np.rint(model.layers[1](image) * 255))
    best = labels[int(np.argmax(model(image)))]
    assert found["classes"].startswith(f"{best}\t")
    assert len(found["classes"].splitlines()) == 5


@pytest.mark.parametrize(("activation", "bias"), [("sigmoid", 1.0), (None, 0.2)])
def test_the_page_decides_a_single_output(activation, bias, browse, site, model, crops):
    head = keras.layers.Dense(1, activation, kernel_initializer="zeros")
    body = keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Flatten(), head])
    head.bias.assign([bias])
    protected = fd_keras.protect(body, model.layers[1])
    path = site / "model.tflite"
    fd_keras.export_tflite(protected, path, labels=["no", "yes"], single_image=True, verify=False)
    Image.fromarray(crops[0]).save(site / "example.png")
    found = browse("page.html")["classes"].splitlines()
    share = 100 / (1 + np.exp(-bias))
    assert found == [f"yes\t{share:.1f} %", f"no\t{100 - share:.1f} %"]


def test_the_page_shows_a_detectors_score(browse, site, model, crops):
    _, layer, classifier = model.layers
    detector = fd_keras.DistillationDetector(classifier, layer)
    scaled = (crops / 255).astype(np.float32)
    lower, higher = np.argsort(detector.score(scaled))
    detector.adapt(scaled[lower : lower + 1], 0.5)  # so that the other one is flagged
    fd_keras.export_tflite(detector, site / "model.tflite", single_image=True, verify=False)
    Image.fromarray(crops[higher]).save(site / "example.png")
    found = browse("page.html")
    assert found["status"].endswith(" ms"), found["status"]
    row = found["classes"].splitlines()[-1]
    assert row == f"Detector's score (flagged)\t{detector.score(scaled)[higher]:.3f}"
