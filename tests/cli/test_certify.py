"""certify, and the commands that write what certifies: apply --encode and compress."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from fd_keras import Classifier, certified_table, certify, encode
from fd_keras_cli import apply as apply_module


@pytest.fixture
def folder(tmp_path, photos):
    """Two photographs in a folder, and one below it in grey."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(photos[0, 100:170, :90]).save(folder / "a.png")
    Image.fromarray(photos[1, 100:164, :96]).save(folder / "b.jpg", quality=95)
    Image.fromarray(photos[1, 100:139, :51, 0]).save(folder / "below" / "c.png")
    return folder


@pytest.mark.parametrize(
    ("command", "table"),
    [
        (("apply", "--encode"), "certified:2"),
        (("apply", "--encode"), "certified:2:ycbcr"),
        (("compress",), "certified:2"),
        (("compress",), "certified:2:ycbcr"),
    ],
)
def test_written_files_certify(run, folder, tmp_path, command, table):
    out = tmp_path / "out"
    code, _, err = run(*command, folder, "--table", table, "--out", out)
    assert code == 0, err
    code, text, err = run("certify", out, "--table", table, "--epsilon", 2)
    assert code == 0, err
    lines = text.splitlines()
    assert len(lines) == 3
    assert all(f"; encoded with {table} (residual 0." in line for line in lines)


@pytest.mark.parametrize(
    ("options", "comes"),
    [
        (("--table", "certified:2:ycbcr"), True),
        (("--table", "certified:2:ycbcr", "--subsampling", "4:2:0"), False),
        (("--table", "balanced"), False),  # of four grids, where a file has one
    ],
)
def test_certify_comes_next_where_files_can_certify(run, folder, tmp_path, options, comes):
    photo = folder / "a.png"  # in colour
    code, text, err = run("compress", photo, "--out", tmp_path / "out", *options)
    assert code == 0, err
    assert ("Next: fd-keras certify" in text) == comes


def test_options_that_do_nothing_are_refused(run, folder, tmp_path):
    for option in (("--value-range", "0,1"), ("--strip-layer",), ("--import", "json")):
        code, _, err = run("apply", folder, "--out", tmp_path / "out", *option)
        assert code == 1
        assert f"`{option[0]}` needs --model" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "table"),
    [
        (("certify",), "soft8"),
        (("apply", "--encode", "--out", "out"), "soft8"),
        (("apply", "--encode", "--out", "out"), "balanced"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_once(run, folder, command, table):
    code, _, err = run(*command, folder, "--table", table)
    assert code == 1
    assert err.count("Error") == 1
    assert "a.png" not in err


def test_a_line_says_what_the_certificate_says(run, folder):
    code, text, err = run("certify", folder / "a.png", "--table", "liu2019")
    assert (code, err) == (1, "")
    found = certify(np.asarray(Image.open(folder / "a.png")), "liu2019")
    at = found.limiting[0]
    assert text == (
        f"{folder}/a.png: radius {found.linf_radius[0]:.3f} (L-inf), {found.l2_radius[0]:.2f} (L2) "
        f"grey levels, limited by {at}; not encoded with liu2019 "
        f"(residual {found.residual[0]:.2f})\n"
    )


def test_json(run, folder, tmp_path):
    out = tmp_path / "out"
    run("apply", "--encode", folder, "--table", "certified", "--out", out)
    code, text, _ = run("certify", out, "--json")
    assert code == 0
    (one, *_), files = json.loads(text), ["a.png", "b.png", "below/c.png"]
    assert [entry["file"] for entry in json.loads(text)] == [str(out / name) for name in files]
    expected = certify(np.asarray(Image.open(out / "a.png")), certified_table(2))
    assert one["linf_radius"] == expected.linf_radius[0]
    assert one["l2_radius"] == expected.l2_radius[0]
    assert one["limiting"]["block"] == [expected.limiting[0].row, expected.limiting[0].column]
    assert one["encoded"] is True


def test_exit_code_tells_what_falls_short(run, folder, tmp_path):
    """Of files that are encoded, only a radius that was asked for; and unreadable files."""
    out = tmp_path / "out"
    run("apply", "--encode", folder, "--table", "certified:1", "--out", out)
    assert run("certify", out, "--table", "certified:1")[0] == 0
    assert run("certify", out, "--table", "certified:1", "--epsilon", 1)[0] == 0
    assert run("certify", out, "--table", "certified:1", "--epsilon", 3)[0] == 1
    assert run("certify", out, "--table", "liu2019")[0] == 1
    (out / "x.png").write_bytes(b"no image")
    code, text, err = run("certify", out, "--table", "certified:1")
    assert code == 1
    assert "x.png" in err
    assert len(text.splitlines()) == 3


def test_touched_file_is_told_from_an_encoded_one(run, folder, tmp_path, rng):
    out = tmp_path / "out"
    run("apply", "--encode", folder / "a.png", "--table", "certified:2", "--out", out)
    pixels = np.int16(np.asarray(Image.open(out / "a.png")))
    changed = np.clip(pixels + rng.choice([-1, 1], pixels.shape), 0, 255)
    Image.fromarray(np.uint8(changed)).save(out / "a.png")
    code, text, _ = run("certify", out / "a.png", "--table", "certified:2")
    assert code == 1
    assert "not encoded with" in text


def test_encoding_in_strips_does_not_show(run, folder, tmp_path, monkeypatch):
    run("apply", "--encode", folder / "a.png", "--out", tmp_path / "whole")
    width = Image.open(folder / "a.png").width
    monkeypatch.setattr(apply_module, "_PIXELS_AT_ONCE", 24 * width)
    run("apply", "--encode", folder / "a.png", "--out", tmp_path / "strips")
    whole, strips = (Image.open(tmp_path / name / "a.png") for name in ("whole", "strips"))
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(strips))


def test_a_model_guides_the_encoder(run, tmp_path, photos):
    layers = [keras.Input((32, 40, 3)), keras.layers.Flatten(), keras.layers.Dense(4)]
    model = keras.Sequential([*layers, keras.layers.Softmax()])
    model.save(tmp_path / "m.keras")
    Image.fromarray(photos[0, :32, :40]).save(tmp_path / "a.png")
    Image.fromarray(photos[0, :32, :32]).save(tmp_path / "narrow.png")
    options = ("--model", tmp_path / "m.keras", "--value-range", 0, 1, "--probabilities")
    out = tmp_path / "out"
    files = [tmp_path / "a.png", tmp_path / "narrow.png"]
    code, _, err = run(
        "apply", "--encode", *files, "--table", "certified:2", *options, "--out", out
    )
    assert code == 1
    assert "narrow.png: an image of shape (32, 32, 3), where the model" in err
    classifier = Classifier(model, value_range=(0, 1), from_logits=False)
    written = np.asarray(Image.open(out / "a.png"))
    np.testing.assert_array_equal(
        written, encode(photos[0, :32, :40], "certified:2", classifier=classifier)
    )
    code, _, err = run("apply", files[0], *options, "--out", tmp_path / "other")
    assert code == 1
    assert "`--model` needs --encode" in err


def test_a_reader_that_has_seen_enough_is_no_error(folder):
    """As with `| head`: no message, and no traceback when Python ends."""
    command = [sys.executable, "-m", "fd_keras_cli", "certify", str(folder), "--table", "liu2019"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        errors = process.stderr.read().decode()
        code = process.wait(timeout=60)
    assert code == 1
    assert "Broken pipe" not in errors
    assert "Traceback" not in errors
