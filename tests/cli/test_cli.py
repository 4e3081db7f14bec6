"""apply, calibrate, compress and inspect: output files, messages and exit codes."""

import gc
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import oracle
import pytest
import typer
from PIL import Image

import fd_keras
from fd_keras.data.sources import KERAS_DATASETS
from fd_keras.jpeg import read_jpeg_table
from fd_keras.presets import PRESETS
from fd_keras_cli import apply as apply_module
from fd_keras_cli import options
from fd_keras_cli.app import app
from fd_keras_cli.console import quiet_libraries

LIU_STEPS = np.full((8, 8), 30.0)
LIU_STEPS[:4, :4] = 25


@pytest.fixture
def save(tmp_path, rng):
    """Save random pixels of a shape under a name, and return path and pixels."""

    def save(name, shape=(20, 27, 3), **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels.squeeze()).save(path, **options)
        return path, pixels

    return save


def pixels_of(path):
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def assert_distilled(path, original, steps=LIU_STEPS, **options):
    """Compare a written file with the float64 oracle, away from ties."""
    expected, distance = oracle.distil(original[np.newaxis], steps, **options)
    difference = np.abs(pixels_of(path).astype(float) - expected[0]).max(-1)
    assert difference[distance[0] > 0.01].max() <= 0.51
    assert np.any(np.abs(pixels_of(path).astype(int) - original) > 1)


def test_help_needs_no_tensorflow():
    """Importing TensorFlow would make the help take seconds."""
    script = """
import sys, fd_keras_cli
sys.argv = ["fd-keras", *sys.argv[1:]]
try:
    fd_keras_cli.main()
finally:
    assert not {"tensorflow", "keras", "fd_keras", "numpy"} & set(sys.modules)
"""
    for arguments in (["--help"], ["apply", "--help"], ["demo", "--help"], ["--version"]):
        command = [sys.executable, "-c", script, *arguments]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        assert process.stdout


@pytest.mark.parametrize("module", ["fd_keras", "fd_keras_cli"])
def test_modules_can_be_run(module):
    command = [sys.executable, "-m", module, "--version"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output == f"fd-keras {fd_keras.__version__}\n"


@pytest.mark.parametrize("name", ["x.png", "x.webp", "X.PNG"])
def test_lossless_files_keep_their_name(run, save, tmp_path, name):
    path, pixels = save(name, lossless=True)
    code, out, _ = run("apply", path, "--out", tmp_path / "out")
    assert (code, out) == (0, f"1 of 1 images written to {tmp_path / 'out'}\n")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [name]
    assert_distilled(tmp_path / "out" / name, pixels)


def test_jpeg_becomes_png(run, save, tmp_path):
    path, _ = save("photo.jpeg")
    code, _, _ = run("apply", path, "--out", tmp_path / "out")
    assert code == 0
    assert_distilled(tmp_path / "out" / "photo.png", pixels_of(path))


def test_grey_image_stays_grey(run, save, tmp_path):
    path, pixels = save("grey.png", (20, 27, 1))
    assert run("apply", path, "--table", "zigzag15", "--out", tmp_path / "out")[0] == 0
    steps = fd_keras.preset_table("zigzag15").steps
    assert_distilled(tmp_path / "out" / "grey.png", pixels, steps, color_space="ycbcr")


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_alpha_is_left_alone(run, save, tmp_path, suffix):
    path, pixels = save(f"logo{suffix}", (20, 27, 4), lossless=True, exact=True)
    assert run("apply", path, "--out", tmp_path / "out")[0] == 0
    written = tmp_path / "out" / f"logo{suffix}"
    np.testing.assert_array_equal(pixels_of(written)[..., 3], pixels[..., 3])
    expected, distance = oracle.distil(pixels[np.newaxis, ..., :3], LIU_STEPS)
    difference = np.abs(pixels_of(written)[..., :3] - expected[0]).max(-1)
    assert difference[distance[0] > 0.01].max() <= 0.51


_MISSING = {
    "apply": "no.png --out out",
    "apply --encode": "no.png --out out --model no.keras",
    "calibrate": "no.npz --epsilon 2 --out table.json",
    "certify": "no.png",
    "compress": "no.png no_folder --out out",
    "compress --table": "no.json . --out out",
    "evaluate": "no.keras cifar10 --out out",
    "evaluate --table": "no.json {there} no --out out",
    "export": "no.keras --out out",
    "harden": "no.keras cifar10 --out out",
    "inspect": "no.json",
    "refine": "no.keras cifar10 --out out",
    "tune": "no.keras cifar10 --out out",
    "verify": "no.tflite no.keras",
    "verify --table": "no.json {there} {there}",
}


def test_missing_files_are_refused_before_tensorflow_is_imported(tmp_path):
    """Importing it takes seconds."""
    script = """
import json, sys, fd_keras_cli
refusals = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["fd-keras", *arguments]
    try:
        fd_keras_cli.main()
    except SystemExit as end:
        refusals.append(end.code)
assert not {"tensorflow", "keras", "fd_keras", "numpy"} & set(sys.modules)
print(refusals)
"""
    there = tmp_path / "there"
    there.touch()
    calls = [f"{name} {rest}".format(there=there).split() for name, rest in _MISSING.items()]
    assert {call[0] for call in calls} | {"demo"} == set(typer.main.get_command(app).commands)
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(calls)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[-2] == str([1] * len(calls))
    errors = done.stderr.splitlines()
    assert len(errors) == len(calls)
    assert all("no" in error and "exist" in error for error in errors)
    assert list(tmp_path.iterdir()) == [there]


def test_the_command_line_knows_the_names_of_tables_and_data():
    assert options.PRESET_NAMES == PRESETS
    assert set(options.DATASET_NAMES) == set(KERAS_DATASETS)


@pytest.mark.parametrize("rows", [16, 24])
def test_strips_of_large_images_do_not_show(run, save, tmp_path, monkeypatch, rows):
    """Four shifted grids reach across the borders of strips."""
    monkeypatch.setattr(apply_module, "_PIXELS_AT_ONCE", rows * 21)
    path, pixels = save("large.png", (67, 21, 3))
    table = tmp_path / "table.json"
    fd_keras.QuantizationTable(np.full((8, 8), 40), "ycbcr", cycle_spins=4).save(table)
    assert run("apply", path, "--table", table, "--out", tmp_path / "out")[0] == 0
    assert_distilled(
        tmp_path / "out" / "large.png", pixels, np.full((8, 8), 40), color_space="ycbcr",
        cycle_spins=4,
    )  # fmt: skip


def test_broken_files_are_named_and_the_others_written(run, save, tmp_path):
    first, _ = save("first.png")
    last, _ = save("last.png", (20, 27, 1))
    notes = tmp_path / "[red]notes.txt"  # rich would take this for markup
    notes.write_text("no image")
    missing = tmp_path / "missing.png"

    code, out, err = run("apply", first, notes, missing, last, "--out", tmp_path / "out")

    assert code == 1
    assert out == f"2 of 4 images written to {tmp_path / 'out'}\n"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"first.png", "last.png"}
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 2
    assert str(notes) in errors[0]
    assert "holds no PNG, JPEG, WebP, BMP or GIF image" in errors[0]
    assert str(missing) in errors[1]
    assert "Traceback" not in err


def test_table_that_does_not_fit_one_image_names_it(run, save, tmp_path):
    grey, _ = save("grey.png", (20, 27, 1))
    colour, _ = save("colour.png")
    table = tmp_path / "table.json"
    fd_keras.QuantizationTable(np.full((3, 8, 8), 20)).save(table)
    code, _, err = run("apply", grey, colour, "--table", table, "--out", tmp_path / "out")
    assert code == 1
    assert re.search(r"^Error: .*grey\.png: .*3 channels", err, re.MULTILINE)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["colour.png"]


@pytest.mark.parametrize(
    ("first", "second"), [("a/x.png", "b/x.png"), ("x.png", "x.jpg"), ("a/X.PNG", "b/x.png")]
)
def test_two_images_for_one_output_are_refused_before_writing(run, save, tmp_path, first, second):
    one, _ = save(first)
    other, _ = save(second)
    code, _, err = run("apply", one, other, "--out", tmp_path / "out")
    assert code == 1
    assert err.startswith(f"Error: {one} and {other} would both be written to")
    assert not (tmp_path / "out").exists()


def test_images_are_never_overwritten(run, save, tmp_path):
    image, pixels = save("x.png")
    code, _, err = run("apply", image, "--out", tmp_path)
    assert code == 1
    assert "is one of the images; choose another --out" in err
    np.testing.assert_array_equal(pixels_of(image), pixels)


@pytest.mark.parametrize("table", ["jpeg:0", "liu2020", "broken.json"])
def test_wrong_table_is_one_line_and_writes_nothing(run, save, tmp_path, monkeypatch, table):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{}")
    image, _ = save("x.png")
    code, out, err = run("apply", image, "--table", table, "--out", "out")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"Error: [^\n]+\n", err)
    assert table.removeprefix("jpeg:") in err
    assert not (tmp_path / "out").exists()


def test_out_must_be_a_directory(run, save, tmp_path):
    image, _ = save("x.png")
    (tmp_path / "file").touch()
    code, _, err = run("apply", image, "--out", tmp_path / "file")
    assert code == 1
    assert "`--out` must be a directory" in err


@pytest.mark.parametrize("command", ["apply", "compress"])
def test_empty_out_is_not_the_current_directory(run, save, command):
    image, _ = save("x.png")
    code, _, errors = run(command, image, "--out", "")
    assert code == 2
    assert "must not be empty" in errors


def test_missing_extra_says_what_to_install(run, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "art"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "art", None)
    code, _, err = run("demo", "--out", tmp_path / "out")
    assert code == 1
    assert err == 'Error: art is not installed; run: pip install "fd-keras[evaluate]"\n'
    assert not (tmp_path / "out").exists()


NATIVE_CHATTER = "import os; os.write(2, b'chatter\\n')"


@pytest.mark.parametrize(
    ("error", "shown"), [(None, False), (ValueError("no"), False), (RuntimeError("no"), True)]
)
def test_native_chatter_is_only_shown_with_a_crash(capfd, error, shown):
    def block():
        with quiet_libraries() as console:
            subprocess.run([sys.executable, "-c", NATIVE_CHATTER], check=True)
            console.print("progress")
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            block()
    else:
        block()
    err = capfd.readouterr().err
    assert ("chatter" in err) == shown
    assert "progress" in err
    subprocess.run([sys.executable, "-c", NATIVE_CHATTER], check=True)
    assert capfd.readouterr().err == "chatter\n"  # standard error is itself again


class TestCalibrate:
    @pytest.fixture
    def folder(self, photos, tmp_path):
        folder = tmp_path / "photos"
        folder.mkdir()
        for i in range(4):
            pixels = photos[i % 2, 40 * i : 40 * i + 64, 50 * i : 50 * i + 80]
            Image.fromarray(pixels).save(folder / f"{i}.png")
        return folder

    def test_designs_a_table_that_the_layer_takes(self, run, folder, tmp_path):
        out, statistics = tmp_path / "table.json", tmp_path / "statistics.json"
        code, printed, errors = run(
            *("calibrate", folder, "--epsilon", 2, "--out", out, "--statistics", statistics)
        )
        assert code == 0, errors
        table = fd_keras.QuantizationTable.load(out)
        measured = fd_keras.CoefficientStatistics.load(statistics)
        assert table == fd_keras.design_table(measured, 2)
        assert measured.provenance == {"data": "photos", "images": 4}
        assert table.provenance["statistics"] == {"data": "photos", "images": 4}
        assert "designed:2" in printed
        assert fd_keras.FeatureDistillation(table).color_space == "ycbcr"

    def test_statistics_are_kept_where_no_table_can_be_designed(self, run, folder, tmp_path):
        out, statistics = tmp_path / "table.json", tmp_path / "statistics.json"
        code, _, errors = run(
            *("calibrate", folder, "--epsilon", 8, "--max-step", 20),
            *("--out", out, "--statistics", statistics),
        )
        assert code == 1
        assert "`--required-removal` is out of reach" in errors
        assert not out.exists()
        assert fd_keras.CoefficientStatistics.load(statistics).provenance["images"] == 4

    def test_options_are_checked_before_images_are_read(self, run, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(
            "fd_keras.statistics.measure_shards", lambda *a, **k: pytest.fail("read")
        )
        code, _, errors = run(
            *("calibrate", folder, "--epsilon", 2, "--max-step", 2**64),
            *("--out", tmp_path / "table.json"),
        )
        assert code == 1
        assert "must be whole numbers" in errors

    def test_options_reach_the_design(self, run, folder, tmp_path):
        out = tmp_path / "table.json"
        code, _, errors = run(
            *("calibrate", folder, "--epsilon", 2, "--out", out, "--color-space", "rgb"),
            *("--as-bands", 20, "--required-removal", 0.9, "--distortion-budget", 30),
            *("--cycle-spins", 2, "--max-step", 99, "--limit", 3),
        )
        assert code == 0, errors
        table = fd_keras.QuantizationTable.load(out)
        assert (table.color_space, table.cycle_spins) == ("rgb", 2)
        assert table.provenance["as_bands"] == [20] * 3
        assert table.provenance["required_removal"] == [0.9] * 3
        assert table.provenance["step_range"] == [1, 99]
        assert table.provenance["statistics"]["images"] == 3

    def test_broken_image_is_named_and_skipped(self, run, folder, tmp_path):
        (folder / "x.png").write_bytes(b"broken")
        out = tmp_path / "table.json"
        code, _, errors = run("calibrate", folder, "--epsilon", 2, "--out", out)
        assert code == 0
        assert "x.png" in errors
        assert "1 images were skipped" in errors
        assert out.exists()

    def test_strict_stops_and_writes_nothing(self, run, folder, tmp_path):
        (folder / "x.png").write_bytes(b"broken")
        out = tmp_path / "table.json"
        code, _, errors = run("calibrate", folder, "--epsilon", 2, "--out", out, "--strict")
        assert code == 1
        assert "x.png" in errors
        assert not out.exists()

    def test_one_line_says_what_was_left_out(self, run, folder, tmp_path):
        for name in (".x.png", "x.tif", "y.tif", "z.txt"):
            (folder / name).touch()
        os.mkfifo(folder / "pipe.png")
        (folder / "again").symlink_to(folder)
        code, _, errors = run("calibrate", folder, "--epsilon", 2, "--out", tmp_path / "t.json")
        assert code == 0
        (line,) = [line for line in errors.splitlines() if line.startswith("Left out")]
        assert line == (
            "Left out: 1 hidden, .x.png; 1 pipe(s), socket(s) or device(s), pipe.png; 1 link(s) to "
            "folders that are read already, again; 3 of other kinds (2 .tif, 1 .txt), such as x.tif"
        )

    def test_one_cause_is_one_line(self, run, photos, tmp_path):
        import tensorflow as tf

        content = tf.io.encode_png(photos[0, :8, :8]).numpy()
        feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
        features = tf.train.Features(feature={"jpeg": feature})
        with tf.io.TFRecordWriter(str(tmp_path / "x.tfrec-00000-of-00001")) as writer:
            for _ in range(20):
                writer.write(tf.train.Example(features=features).SerializeToString())
        path = tmp_path / "x.tfrec-00000-of-00001"
        command = ("calibrate", path, "--epsilon", 2, "--out", tmp_path / "t.json")
        code, _, errors = run(*command)
        assert code == 1
        first, second, third = errors.splitlines()
        assert re.search(r"`DATA` must .*'image/encoded' or .*; --image-key names another", first)
        assert first.endswith("#0 with ['jpeg'] and 19 more")
        assert second == "20 images were skipped"
        assert third == "Error: no usable image in x.tfrec-00000-of-00001"
        assert run(*command, "--image-key", "jpeg")[0] == 0

    def test_larger_images_can_be_allowed(self, run, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        command = ("calibrate", folder, "--epsilon", 2, "--out", tmp_path / "table.json")
        code, _, errors = run(*command)
        assert code == 1
        assert "more than 100 pixels, the limit against decompression bombs; --max-pixels" in errors
        assert run(*command, "--max-pixels", 64 * 80)[0] == 0

    def test_no_usable_image_is_an_error(self, run, tmp_path):
        (tmp_path / "photos").mkdir()
        for name in ("x.png", "y.png"):
            (tmp_path / "photos" / name).write_bytes(b"broken")
        out = tmp_path / "table.json"
        code, _, errors = run("calibrate", tmp_path / "photos", "--epsilon", 2, "--out", out)
        assert code == 1
        lines = errors.splitlines()
        assert "x.png" in lines[0]
        assert "y.png" in lines[1]
        assert lines[2:] == ["2 images were skipped", "Error: no usable image in photos"]
        assert not out.exists()

    def test_error_while_measuring_is_one_line(self, run, folder, tmp_path, monkeypatch):
        """Raised by the consumer of the images, while the progress bar is shown."""

        def fail(*arguments):
            raise OSError("disk full")

        ignored = []
        monkeypatch.setattr(sys, "unraisablehook", ignored.append)
        monkeypatch.setattr("fd_keras.CoefficientStatistics.merge", fail)
        monkeypatch.setattr("fd_keras.data.batches.PIXELS_AT_ONCE", 1)  # each image is a batch
        out = tmp_path / "table.json"
        code, _, errors = run("calibrate", folder, "--epsilon", 2, "--out", out)
        assert (code, errors) == (1, "Error: disk full\n")
        gc.collect()
        assert not ignored

    def test_interrupt(self, folder, tmp_path):
        """Ctrl-C while a real process reads images."""
        script = """
import sys, time
import fd_keras.data.sources, fd_keras_cli
def read(*arguments, **options):
    print("reading", flush=True)
    time.sleep(60)
fd_keras.data.sources.read_image = read
fd_keras_cli.main()
"""
        out = tmp_path / "table.json"
        command = [sys.executable, "-c", script, "calibrate", folder, "--epsilon", "2"]
        with subprocess.Popen(
            [*command, "--out", out],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that runs the tests in the background has them ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            assert process.stdout.readline() == "reading\n"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert errors.splitlines()[-1] == "Interrupted, nothing was written"
        assert "Traceback" not in errors
        assert not out.exists()

    @pytest.mark.parametrize("option", ["--out", "--statistics"])
    def test_target_is_checked_before_data_is_read(self, run, tmp_path, option):
        files = {"--out": tmp_path / "table.json", option: tmp_path}
        arguments = [part for pair in files.items() for part in pair]
        code, _, errors = run("calibrate", "no such data", "--epsilon", 2, *arguments)
        assert code == 1
        assert f"`{option}` must be a file to write" in errors

    def test_empty_paths(self, run, folder, tmp_path):
        code, _, errors = run("calibrate", "", "--epsilon", 2, "--out", tmp_path / "t.json")
        assert code == 1
        assert "`DATA` must not be empty" in errors
        code, _, errors = run("calibrate", folder, "--epsilon", 2, "--out", "")
        assert code == 2
        assert "must not be empty" in errors

    def test_epsilon_for_another_range_is_caught(self, run, folder, tmp_path):
        out = tmp_path / "table.json"
        code, _, errors = run("calibrate", tmp_path, "--epsilon", 0.0078, "--out", out)
        assert code == 1
        assert "write 2" in errors

    def test_impossible_request(self, run, folder, tmp_path):
        out = tmp_path / "table.json"
        code, _, errors = run("calibrate", folder, "--epsilon", 200, "--out", out)
        assert code == 1
        assert "`--required-removal` is out of reach" in errors


class TestCompress:
    def test_writes_jpeg_files_with_the_table(self, run, save, tmp_path):
        path, pixels = save("photo.png", (64, 48, 3))
        code, printed, errors = run("compress", path, "--table", "jpeg:60", "--out", tmp_path / "o")
        assert code == 0, errors
        written = tmp_path / "o" / "photo.jpg"
        assert read_jpeg_table(written) == fd_keras.preset_table("jpeg:60")
        ratio = pixels.size / written.stat().st_size
        assert f"{written.stat().st_size} bytes, {ratio:.1f} times smaller" in printed

    def test_says_what_it_rounds(self, run, save, tmp_path):
        table = fd_keras.QuantizationTable(np.full((8, 8), 33.4), "ycbcr", 4)
        table.save(tmp_path / "table.json")
        path, _ = save("photo.png", (64, 48, 3))
        code, _, errors = run(
            *("compress", path, "--table", tmp_path / "table.json", "--out", tmp_path / "o"),
            *("--subsampling", "4:2:0"),
        )
        assert code == 0
        assert "Rounded for JPEG" in errors
        assert (read_jpeg_table(tmp_path / "o" / "photo.jpg").steps == 33).all()

    def test_goes_on_after_a_broken_image(self, run, save, tmp_path):
        (tmp_path / "broken.png").write_bytes(b"broken")
        path, _ = save("photo.png")
        code, printed, errors = run(
            "compress", tmp_path / "broken.png", path, "--out", tmp_path / "o"
        )
        assert code == 1
        assert "broken.png" in errors
        assert "1 of 2 images written" in printed

    def test_never_overwrites_an_input(self, run, save, tmp_path):
        path, _ = save("photo.jpg", (64, 48, 3))
        before = path.read_bytes()
        code, _, errors = run("compress", path, "--out", tmp_path)
        assert code == 1
        assert "choose another --out" in errors
        assert path.read_bytes() == before


class TestInspect:
    @pytest.fixture
    def table(self, tmp_path):
        fd_keras.preset_table("jpeg:60").save(tmp_path / "table.json")
        return tmp_path / "table.json"

    @pytest.fixture
    def statistics(self, photos, tmp_path):
        statistics = fd_keras.CoefficientStatistics.from_data(photos, color_space="ycbcr")
        statistics.save(tmp_path / "statistics.json")
        return tmp_path / "statistics.json"

    def test_table(self, run, table):
        code, printed, _ = run("inspect", table)
        assert code == 0
        assert "jpeg:60" in printed
        assert '"source": "preset"' in printed

    def test_preset(self, run):
        code, printed, _ = run("inspect", "liu2019")
        assert code == 0
        assert '"name": "liu2019"' in printed

    @pytest.mark.parametrize("name", ["liu2020", "jpeg:0", "", "."])
    def test_neither_file_nor_preset(self, run, name):
        code, printed, errors = run("inspect", name)
        assert (code, printed) == (1, "")
        assert re.fullmatch(r"Error: [^\n]+\n", errors)

    def test_pipe(self, run, tmp_path):
        for name in ("x.jpg", "x.json"):
            os.mkfifo(tmp_path / name)
            code, _, errors = run("inspect", tmp_path / name)
            assert code == 1
            assert "must be a regular file" in errors

    def test_jpeg_file(self, run, save):
        path, _ = save("photo.jpg", (64, 48, 3), quality=60)
        code, printed, _ = run("inspect", path)
        assert code == 0
        first_row = fd_keras.preset_table("jpeg:60").steps[0, 0]
        assert " ".join(f"{step:g}" for step in first_row) in " ".join(printed.split())

    def test_statistics(self, run, statistics):
        code, printed, _ = run("inspect", statistics)
        assert code == 0
        assert "CoefficientStatistics(3 channels" in printed

    @pytest.mark.parametrize("kind", ["table", "statistics", "design"])
    @pytest.mark.parametrize("suffix", ["png", "svg"])
    def test_plots(self, run, table, statistics, kind, suffix, tmp_path):
        pytest.importorskip("matplotlib")
        file = statistics if kind == "statistics" else table
        more = ("--statistics", statistics) if kind == "design" else ()
        plot = tmp_path / f"plot.{suffix}"
        code, _, errors = run("inspect", file, "--plot", plot, *more)
        assert code == 0, errors
        assert plot.stat().st_size > 5000

    def test_statistics_that_would_be_ignored(self, run, table, statistics, tmp_path):
        code, _, errors = run("inspect", table, "--statistics", statistics)
        assert code == 2
        assert "belongs to --plot" in errors
        plot = tmp_path / "plot.png"
        code, _, errors = run("inspect", statistics, "--statistics", statistics, "--plot", plot)
        assert code == 2
        assert "belongs to a table" in errors
        assert not plot.exists()

    def test_what_holds_no_statistics_is_named_before_anything_is_shown(self, run, table, tmp_path):
        plot = tmp_path / "plot.png"
        code, printed, errors = run("inspect", table, "--statistics", table, "--plot", plot)
        assert code == 1
        assert "`--statistics` must be a file that" in errors
        assert not printed

    @pytest.mark.parametrize("name", ["plot", "plot.xyz"])
    def test_plot_of_unknown_format(self, run, table, tmp_path, name):
        pytest.importorskip("matplotlib")
        before = set(tmp_path.iterdir())
        code, _, errors = run("inspect", table, "--plot", tmp_path / name)
        assert code == 1
        assert "`--plot` must end in" in errors
        assert set(tmp_path.iterdir()) == before

    def test_other_files(self, run, tmp_path):
        (tmp_path / "a.json").write_text("{}")
        code, _, errors = run("inspect", tmp_path / "a.json")
        assert code == 1
        assert "a.json" in errors


def test_every_command_that_loads_a_model_loads_classes_of_ones_own():
    """What errors about unknown classes and Lambda layers advise must exist."""
    commands = typer.main.get_command(app).commands
    options_of = {n: {o for p in c.params for o in p.opts} for n, c in commands.items()}
    loading = [name for name, found in options_of.items() if "--strip-layer" in found]
    assert {"apply", "evaluate", "export", "harden", "refine", "verify"} <= set(loading)
    for name in loading:
        assert {"--import", "--allow-code"} <= options_of[name], name
