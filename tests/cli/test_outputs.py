"""apply and compress: what they write, what they leave alone, and what they say of it."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from fd_keras.data.files import read_image

COMMANDS = {"apply": ".png", "compress": ".jpg"}
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def save(tmp_path, rng):
    """Save random pixels under a name."""

    def save(name, shape=(16, 16, 3), **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels.squeeze()).save(path, **options)
        return path

    return save


def names_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("command", COMMANDS)
class TestDirectories:
    def test_files_keep_their_folders(self, run, save, tmp_path, command):
        for name in ("photos/a.bmp", "photos/b/a.gif", "photos/b/c.jfif", "photos/.d.png"):
            save(name, **({"format": "JPEG"} if name.endswith("jfif") else {}))
        (tmp_path / "photos" / "x.tif").touch()
        single = save("single.jpe", format="JPEG")
        code, printed, errors = run(
            command, tmp_path / "photos", single, "--out", tmp_path / "photos" / "out"
        )
        assert code == 0, errors
        out, suffix = tmp_path / "photos" / "out", COMMANDS[command]
        assert names_below(out) == [f"{name}{suffix}" for name in ("a", "b/a", "b/c", "single")]
        assert "4 of 4 images written" in printed
        (line,) = [line for line in errors.splitlines() if line.startswith("Left out")]
        assert line == "Left out: 1 hidden, .d.png; 1 of other kinds (1 .tif), x.tif"

        code, printed, errors = run(command, tmp_path / "photos", single, "--out", out)
        assert code == 0, errors
        assert "4 of 4 images written" in printed, "its own files are no images to convert"
        assert "1 output folder, out" in errors

    def test_empty_directory(self, run, save, tmp_path, command):
        (tmp_path / "empty").mkdir()
        code, printed, errors = run(
            command, tmp_path / "empty", save("x.bmp"), "--out", tmp_path / "out"
        )
        assert code == 1
        assert "empty: the directory holds no image files" in errors
        assert "1 of 2 images written" in printed


@pytest.mark.parametrize("command", COMMANDS)
class TestExistingFiles:
    def test_files_of_others_are_kept(self, run, save, tmp_path, command):
        """They were replaced without a word."""
        suffix = COMMANDS[command]
        images = [save(f"{name}.bmp") for name in "abc"]
        kept = [save(f"out/{name}{suffix}") for name in "ab"]
        before = [path.read_bytes() for path in kept]
        code, printed, errors = run(command, *images, "--out", tmp_path / "out")
        assert code == 1
        lines = [line for line in errors.splitlines() if line.startswith("Error")]
        assert lines == [
            f"Error: {image}: {path} exists, and this command did not write it; --overwrite "
            "replaces it"
            for image, path in zip(images, kept)
        ]
        assert "1 of 3 images written" in printed
        assert [path.read_bytes() for path in kept] == before
        code, printed, _ = run(command, *images, "--out", tmp_path / "out", "--overwrite")
        assert code == 0
        assert "3 of 3 images written" in printed
        assert before[0] != kept[0].read_bytes()

    @pytest.mark.parametrize("shape", [(16, 16, 3), (16, 16, 1), (16, 16, 4)])
    @pytest.mark.parametrize("suffix", [".png", ".webp"])
    def test_its_own_files_are_replaced(self, run, save, tmp_path, command, shape, suffix):
        file_format = "PNG" if shape[-1] == 1 else None  # WebP has no grey
        image = save(f"x{suffix}", shape, format=file_format)
        for table in ("jpeg:50", "jpeg:60"):
            code, _, errors = run(command, image, "--table", table, "--out", tmp_path / "out")
            assert code == 0, errors
        assert len(names_below(tmp_path / "out")) == 1

    def test_an_edited_file_is_its_editors(self, run, save, tmp_path, command):
        image, target = save("x.bmp"), tmp_path / "out" / f"x{COMMANDS[command]}"
        assert run(command, image, "--out", tmp_path / "out")[0] == 0
        with Image.open(target) as picture:
            exif = picture.getexif()
            edited = picture.rotate(90)
        edited.save(target, exif=exif)
        before = target.read_bytes()
        code, _, errors = run(command, image, "--out", tmp_path / "out")
        assert code == 1
        assert "--overwrite replaces it" in errors
        assert target.read_bytes() == before

    def test_files_of_the_other_command_are_others(self, run, save, tmp_path, command):
        image, target = save("x.bmp"), tmp_path / f"x{COMMANDS[command]}"
        assert run(command, image, "--out", tmp_path)[0] == 0
        content = target.read_bytes()
        other, name = ("compress", "apply")[command == "compress"], "out/x.png"
        save(name)
        (tmp_path / name).write_bytes(content)
        target = tmp_path / "out" / f"x{COMMANDS[other]}"
        (tmp_path / name).rename(target)
        code, _, errors = run(other, image, "--out", tmp_path / "out")
        assert code == 1
        assert "--overwrite replaces it" in errors

    @pytest.mark.parametrize("kind", ["link", "directory"])
    def test_links_and_directories_are_kept(self, run, save, tmp_path, command, kind):
        image, target = save("x.bmp"), tmp_path / "out" / f"x{COMMANDS[command]}"
        (tmp_path / "out").mkdir()
        if kind == "link":
            target.symlink_to(tmp_path / "nowhere")
        else:
            target.mkdir()
        code, _, errors = run(command, image, "--out", tmp_path / "out")
        assert code == 1
        assert ("--overwrite replaces it" if kind == "link" else "is a directory") in errors
        assert target.is_symlink() or target.is_dir()

    def test_clashes_are_named_at_once_and_the_rest_is_done(self, run, save, tmp_path, command):
        suffix = COMMANDS[command]
        first, second = save("a/x.bmp"), save("b/X.gif")
        source = save(f"y{suffix}")
        save("z.bmp")
        code, printed, errors = run(
            command, first, second, source, tmp_path / "z.bmp", "--out", tmp_path
        )
        assert code == 1
        lines = errors.splitlines()
        assert lines[0].startswith(f"Error: {first} and {second} would both be written to")
        assert lines[1] == f"Error: {source} is one of the images; choose another --out"
        assert "1 of 4 images written" in printed
        assert (tmp_path / f"z{suffix}").exists()

    def test_one_unreadable_file_stops_no_other(self, run, save, tmp_path, command):
        (tmp_path / "loop.png").symlink_to("loop.png")
        os.mkfifo(tmp_path / "pipe.png")
        images = [tmp_path / name for name in ("loop.png", "missing.png", "pipe.png")]
        code, printed, errors = run(command, *images, save("x.bmp"), "--out", tmp_path / "out")
        assert code == 1
        assert len([line for line in errors.splitlines() if line.startswith("Error")]) == 3
        assert "1 of 4 images written" in printed

    def test_too_little_memory_stops_no_other(self, run, save, tmp_path, command, monkeypatch):
        images = [save("x.bmp"), save("y.bmp")]
        load = Image.open(images[0]).load.__func__

        def fail(picture):
            if picture.size == (16, 16) and "fail" not in failed:
                failed.append("fail")
                raise MemoryError
            return load(picture)

        failed = []
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
        code, printed, errors = run(command, *images, "--out", tmp_path / "out")
        assert code == 1
        assert "x.bmp: too little memory" in errors
        assert "1 of 2 images written" in printed


@pytest.mark.parametrize("command", COMMANDS)
def test_limit_can_be_raised(run, save, tmp_path, command, monkeypatch):
    image = save("x.bmp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    code, _, errors = run(command, image, "--out", tmp_path / "out")
    assert code == 1
    assert "more than 100 pixels" in errors
    assert "--max-pixels raises it" in errors
    assert run(command, image, "--out", tmp_path / "out", "--max-pixels", 256)[0] == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_remarks_are_said_once(run, save, tmp_path, command):
    pixels = np.zeros((8, 8), np.uint8)
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    for name in ("a.gif", "b.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    code, _, errors = run(
        command, tmp_path / "a.gif", tmp_path / "b.gif", "--out", tmp_path / "out"
    )
    assert code == 0
    assert [line for line in errors.splitlines() if line.startswith("Note")] == [
        f"Note: {tmp_path / 'a.gif'} and 1 more: an animation, of which the first frame was read"
    ]


def add_gamma(path):
    """Give a PNG file a gamma of 1."""
    data = b"gAMA" + struct.pack(">I", 100_000)
    chunk = struct.pack(">I", 4) + data + struct.pack(">I", zlib.crc32(data))
    content = path.read_bytes()
    path.write_bytes(content[:33] + chunk + content[33:])


class TestColours:
    def test_apply_keeps_what_png_can_hold(self, run, save, tmp_path):
        profiled = save("a.png", icc_profile=PROFILE)
        gamma = save("b.png")
        add_gamma(gamma)
        code, _, errors = run("apply", profiled, gamma, "--out", tmp_path / "out")
        assert code == 0
        assert "Note" not in errors
        assert read_image(tmp_path / "out" / "a.png").icc_profile == PROFILE
        with Image.open(tmp_path / "out" / "b.png") as picture:
            assert picture.info["gamma"] == 1

    def test_apply_says_what_webp_cannot_hold(self, run, save, tmp_path):
        image = save("a.webp", format="PNG")
        add_gamma(image)
        _, _, errors = run("apply", image, "--out", tmp_path / "out")
        assert "a.webp: its gamma or primaries are not kept, as WebP cannot hold them" in errors

    @pytest.mark.parametrize("shape", [(16, 16, 3), (16, 16, 1)])
    def test_compress_keeps_profiles(self, run, save, tmp_path, shape):
        image = save("a.png", shape, icc_profile=PROFILE)
        assert run("compress", image, "--out", tmp_path / "out")[0] == 0
        assert read_image(tmp_path / "out" / "a.jpg").icc_profile == PROFILE

    def test_compress_says_what_jpeg_cannot_hold(self, run, save, tmp_path):
        gamma, alpha = save("a.png"), save("b.png", (16, 16, 4))
        add_gamma(gamma)
        Image.new("CMYK", (16, 16)).save(tmp_path / "c.jpg", icc_profile=PROFILE)
        code, _, errors = run(
            "compress", gamma, alpha, tmp_path / "c.jpg", "--out", tmp_path / "out"
        )
        assert code == 0
        notes = [line for line in errors.splitlines() if line.startswith("Note")]
        assert notes == [
            f"Note: {gamma}: its gamma or primaries are not kept, as JPEG cannot hold them",
            f"Note: {alpha}: its transparency is not kept, as JPEG has none",
            f"Note: {tmp_path / 'c.jpg'}: its ICC profile is of CMYK, and was not applied to its "
            "RGB pixels",
        ]

    def test_16_bit_grey_with_alpha_stays_grey(self, run, tmp_path, rng):
        samples = rng.integers(0, 65536, (16, 16, 2), np.uint16).astype(">u2")
        rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in samples))
        header = struct.pack(">IIBBBBB", 16, 16, 16, 4, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
        (tmp_path / "x.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(
                struct.pack(">I", len(data))
                + kind
                + data
                + struct.pack(">I", zlib.crc32(kind + data))
                for kind, data in chunks
            )
        )
        assert run("apply", tmp_path / "x.png", "--out", tmp_path / "out")[0] == 0
        with Image.open(tmp_path / "out" / "x.png") as picture:
            assert picture.mode == "LA"


class TestNames:
    @pytest.mark.parametrize("command", [*COMMANDS, "inspect", "calibrate"])
    def test_escapes_do_not_reach_the_terminal(self, run, tmp_path, command):
        name = "\x1b[31mred\x9b\u202e\n.png"
        (tmp_path / name).write_bytes(b"no image")
        options = [] if command == "inspect" else ["--out", tmp_path / f"\x1b]0;title\x07{command}"]
        options += ["--epsilon", 2] if command == "calibrate" else []
        code, printed, errors = run(command, tmp_path / name, *options)
        assert code == 1
        assert "\\x1b[31mred\\x9b\\u202e" in errors
        assert not set("\x1b\x9b\u202e\x07") & set(printed + errors)

    def test_bytes_that_are_no_text(self, run, save, tmp_path):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
        folder.mkdir()
        save("x.bmp").rename(folder / os.fsdecode(b"\xff.bmp"))
        code, printed, errors = run("apply", folder, "--out", folder / "out")
        assert code == 0, errors
        assert f"1 of 1 images written to {tmp_path}/caf\\xe9/out" in printed
        table = tmp_path / os.fsdecode(b"\xfe.json")
        code, printed, errors = run("calibrate", folder, "--epsilon", 2, "--out", table)
        assert code == 0, errors
        assert f"Wrote {tmp_path}/\\xfe.json" in printed
        assert table.exists()
