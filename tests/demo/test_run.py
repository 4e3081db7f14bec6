"""A small run of the demo, and the page it writes."""

import html.parser
import subprocess
import sys

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits as load_originals

import fd_keras
from fd_keras import demo

for module in ("art", "matplotlib", "ai_edge_litert"):
    pytest.importorskip(module, reason=f"{module} is not installed")

COUNT = 60


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return demo.run_demo(folder, epochs=8, test_images=COUNT, epsilons=(8,))


def by_name(result, defence, attack):
    (row,) = [
        row for row in result.accuracies if (row.defence, str(row.attack)) == (defence, attack)
    ]
    return row


def test_digits_are_scikit_learns():
    digits = demo.load_digits(seed=3)
    assert (len(digits.train), len(digits.test)) == (1297, 500)
    both = np.concatenate([digits.train.images, digits.test.images])
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    assert both.shape == (1797, 32, 32, 1)
    assert both.min() == 0
    assert both.max() == 255
    np.testing.assert_array_equal(both, np.rint(both))
    # Each enlarged image shrinks back to its original, and each original is there once.
    originals = load_originals()
    small = both.reshape(1797, 8, 4, 8, 4).mean((2, 4)).reshape(1797, 64)
    known = originals.images.reshape(1797, 64) * 255 / 16
    squares = (small**2).sum(1)[:, None] + (known**2).sum(1) - 2 * small @ known.T
    nearest = squares.argmin(1)
    assert len(set(nearest)) > 1780  # a few originals are near-duplicates
    assert np.mean(originals.target[nearest] == labels) > 0.999


def test_split_depends_on_the_seed_only():
    first, again, other = (demo.load_digits(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.test.images, again.test.images)
    assert not np.array_equal(first.test.labels, other.test.labels)
    assert np.bincount(first.test.labels).min() >= 48


def test_attacks_work_and_every_preset_is_scored(result):
    assert result.test_count == COUNT
    assert result.test_correct > 0.85 * COUNT
    assert result.defences == ["none", "liu2019", "zigzag15", "balanced", "jpeg:75"]
    assert [str(attack) for attack in result.attacks] == ["benign", "FGSM 8/255", "BIM 8/255"]
    assert len(result.accuracies) == 5 * 3
    assert all(row.count == result.test_correct for row in result.accuracies)
    assert all(row.threat_model == "gray-box" for row in result.accuracies)
    assert by_name(result, "none", "benign").percent == 100
    assert by_name(result, "none", "FGSM 8/255").percent < 75
    assert by_name(result, "none", "BIM 8/255").percent < 65
    assert by_name(result, "liu2019", "benign").percent > 90
    assert (
        by_name(result, "liu2019", "BIM 8/255").correct
        > by_name(result, "none", "BIM 8/255").correct
    )


def test_exported_models_agree_with_keras(result):
    assert result.exported == fd_keras.FeatureDistillation().quantization_table.name
    assert len(result.agreements) == 2
    for row in result.agreements:
        assert row.count == 3 * result.test_correct
        assert row.same_class == row.count
        assert row.largest_difference < 1e-3
    assert result.saved_model.parent.name == "saved_model"
    assert result.tflite.stat().st_size > 0


def test_exported_model_holds_the_layer(result):
    """Otherwise agreement would only say that copies of the bare network agree."""
    from ai_edge_litert.interpreter import Interpreter

    operations = Interpreter(str(result.tflite))._get_ops_details()
    assert "ROUND" in {operation["op_name"] for operation in operations}


def test_saved_model_runs_without_fd_keras(tmp_path):
    """The process that runs it cannot import fd_keras, and its failure is reported."""
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    protected = fd_keras.protect(model, fd_keras.FeatureDistillation())
    images = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 1)).astype(np.float32)
    version = fd_keras.export_saved_model(protected, tmp_path, verify=False)
    np.testing.assert_allclose(
        demo.predict_with_saved_model(version, images), protected.predict(images), atol=1e-3
    )
    with pytest.raises(RuntimeError, match="could not be run"):
        demo.predict_with_saved_model(tmp_path / "nowhere", images)


def test_same_seed_gives_the_same_figures(result, tmp_path):
    again = demo.run_demo(tmp_path, epochs=8, test_images=COUNT, epsilons=(8,))
    assert again.accuracies == result.accuracies


class Page(html.parser.HTMLParser):
    """Collects the text, the addresses and the open tags of a page."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.text, self.addresses, self.open, self.images = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.addresses += [named[key] for key in ("src", "href") if key in named]
        if tag == "img":
            self.images.append(named)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(result):
    return Page(result.report.read_text(encoding="utf-8"))


def test_report_stands_alone(result, page):
    assert page.open == []
    assert all(address.startswith("data:image/") for address in page.addresses)
    source = result.report.read_text(encoding="utf-8")
    assert "url(" not in source
    assert "@import" not in source
    assert "<script" not in source
    assert all(image["alt"] for image in page.images)
    assert len(page.images) == 6 * 5 + 4


def test_report_holds_every_figure_and_its_threat_model(result, page):
    text = " ".join(" ".join(page.text).split())
    for row in result.accuracies:
        assert f"{row.percent:.1f} {row.correct}/{row.count}" in text
    for table in ("liu2019", "zigzag15", "balanced", "jpeg:75"):
        assert table in text
    for phrase in (
        "gray-box",
        "at most 8 of 255 grey levels",
        f"on the {result.test_correct} of {COUNT} test images",
        "Seed 1",
        "BPDA",
        "It is no protection",
    ):
        assert phrase in text


def test_command_line_prints_what_the_run_found(result, monkeypatch, run, tmp_path):
    seen = {}

    def run_demo(out, **options):
        seen.update(options, out=out)
        return result

    monkeypatch.setattr(demo, "run_demo", run_demo)
    code, printed, _ = run("demo", "--out", tmp_path, "--seed", 5)
    assert code == 0
    assert (seen["out"], seen["seed"]) == (tmp_path, 5)
    out = " ".join(printed.split())
    assert "gray-box" in out
    assert f"{result.test_correct} of {COUNT} test images" in out
    for row in result.accuracies:
        assert f"{row.percent:.1f}" in out
    for row in result.agreements:
        assert f"{row.same_class} of {row.count}" in out
    for path in (result.saved_model, result.tflite, result.report):
        assert f"Wrote {path}".replace(" ", "") in out.replace(" ", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_images": 0}, "`test_images` must be from 1 to 500"),
        ({"epsilons": ()}, "`epsilons` must be positive multiples of 4"),
        ({"epsilons": (6,)}, "`epsilons` must be positive multiples of 4"),
    ],
)
def test_wrong_arguments_are_refused_before_work_starts(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        demo.run_demo(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_importing_fd_keras_imports_no_optional_package():
    """Keras itself imports matplotlib and scikit-learn where they are installed."""
    script = """
import sys, keras, tensorflow
before = set(sys.modules)
import fd_keras
assert not {"art", "matplotlib", "sklearn", "keras_tuner"} & (set(sys.modules) - before)
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
