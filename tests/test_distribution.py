"""Shards on a Dask cluster of two processes: nothing is lost, and the results are the same."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import fd_keras
from fd_keras.data.shards import Shard, find_shards
from fd_keras.distribution import ShardWarning, connected, spread
from fd_keras.statistics import CoefficientStatistics

MOMENTS = ("count", "mean", "std", "mean_abs", "min", "max")


@pytest.fixture(scope="module")
def client():
    with connected(workers=2) as client:
        yield client


def write_records(path, images):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image in images:
            content = tf.io.encode_png(image).numpy()
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
            features = tf.train.Features(feature={"image": feature})
            writer.write(tf.train.Example(features=features).SerializeToString())


@pytest.fixture
def images(rng, tmp_path):
    """Two shards of image files, whose sizes vary, two TFRecord files and an npz file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(70):
        pixels = rng.integers(0, 256, (16, 16 + 8 * (number % 3), 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    others = [tmp_path / name for name in ("1.tfrecord", "2.tfrecord", "x.npz")]
    for path in others[:2]:
        write_records(path, rng.integers(0, 256, (40, 16, 16, 3), np.uint8))
    np.savez(others[2], x=rng.integers(0, 256, (10, 24, 24, 3), np.uint8))
    return [folder, *others]


def assert_same(one, other):
    for name in MOMENTS:
        a, b = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * one.std.max())


def shards_named(*names):
    return [Shard((f"/{name}",)) for name in names]


def test_statistics_are_those_of_one_process(client, images):
    alone = CoefficientStatistics.from_data(images, color_space="ycbcr")
    spread_out = CoefficientStatistics.from_data(images, color_space="ycbcr", client=client)
    assert_same(spread_out, alone)
    assert spread_out.provenance == {"data": "photos and 3 more", "images": 160}
    one = CoefficientStatistics.from_data(images[0], color_space="ycbcr")
    two = CoefficientStatistics.from_data(images[1:], color_space="ycbcr")
    assert_same(one.merge(two), alone)


def test_workers_keep_to_one_thread(client, images):
    list(spread(lambda shard: {}, shards_named("a"), client))
    counts = client.run(tf.config.threading.get_intra_op_parallelism_threads)
    assert set(counts.values()) == {1}


def test_damaged_shard_is_named_and_the_rest_kept(client, images, run, tmp_path):
    folder, damaged, *others = images
    damaged.write_bytes(damaged.read_bytes()[:-20])
    out, measured = tmp_path / "table.json", tmp_path / "statistics.json"
    command = ("calibrate", *images, "--epsilon", 2, "--out", out, "--statistics", measured)
    code, _, errors = run(*command, "--scheduler", client.scheduler.address)
    assert code == 1
    (line,) = errors.splitlines()
    assert line.startswith(f"Error: {damaged} failed and is left out: ")
    assert "is cut or damaged at record" in line
    rest = CoefficientStatistics.from_data([folder, *others], color_space="ycbcr")
    found = CoefficientStatistics.load(measured)
    assert_same(found, rest)
    assert found.provenance == {"data": "photos and 3 more", "images": 120, "failed_shards": 1}
    assert fd_keras.QuantizationTable.load(out) == fd_keras.design_table(found, 2)
    with pytest.warns(ShardWarning, match=str(damaged)):
        kept = CoefficientStatistics.from_data(images, color_space="ycbcr", client=client)
    assert_same(kept, rest)


def test_one_that_fails_is_strictly_an_error(images, run, tmp_path):
    images[1].write_bytes(images[1].read_bytes()[:-20])
    out = tmp_path / "table.json"
    code, _, errors = run("calibrate", *images, "--epsilon", 2, "--out", out, "--strict")
    assert code == 1
    assert errors.startswith("Error: `DATA` is no TFRecord file, or is cut or damaged")
    assert not out.exists()


def test_command_on_two_workers_is_the_plain_command(images, run, tmp_path):
    (images[0] / "broken.png").write_bytes(b"broken")
    results = []
    for options in ((), ("--workers", 2)):
        files = [tmp_path / f"{len(results)}{name}.json" for name in ("table", "statistics")]
        code, _, errors = run(
            *("calibrate", *images, "--epsilon", 2, *options),
            *("--out", files[0], "--statistics", files[1]),
        )
        assert code == 0, errors
        assert "broken.png" in errors
        assert errors.endswith("1 images were skipped\n")
        table = fd_keras.QuantizationTable.load(files[0])
        results.append((table, CoefficientStatistics.load(files[1])))
    assert results[0][0] == results[1][0]
    assert_same(results[0][1], results[1][1])


class TestResuming:
    def work(self, done):
        def work(shard):
            done.append(shard.paths[0])
            if len(done) == 3:
                raise KeyboardInterrupt
            return {"size": os.path.getsize(shard.paths[0])}

        return work

    def test_goes_on_with_what_is_left(self, tmp_path):
        files = [tmp_path / f"{number}.npz" for number in range(5)]
        for file in files:
            file.write_bytes(b"." * 7)
        shards, done = [Shard((str(file),)) for file in files], []
        work, home = self.work(done), tmp_path / "run"
        with pytest.raises(KeyboardInterrupt):
            list(spread(work, shards, directory=home))
        assert len(list((home / "shards").iterdir())) == 2
        outcomes = list(spread(work, shards, directory=home))
        assert [outcome.result for outcome in outcomes] == [{"size": 7}] * 5
        assert done == [str(files[index]) for index in (0, 1, 2, 2, 3, 4)]
        # A file that has changed is another shard, and so is one that was added.
        files[1].write_bytes(b"." * 9)
        outcomes = list(spread(work, shards, directory=home))
        assert sorted(outcome.result["size"] for outcome in outcomes) == [7, 7, 7, 7, 9]
        assert done[6:] == [str(files[1])]

    def test_damaged_result_is_computed_again(self, tmp_path):
        shards, done = shards_named("a"), []

        def work(shard):
            done.append(shard)
            return {"n": 1}

        list(spread(work, shards, directory=tmp_path))
        (path,) = (tmp_path / "shards").iterdir()
        path.write_text(path.read_text()[:20])
        assert [outcome.result for outcome in spread(work, shards, directory=tmp_path)] == [
            {"n": 1}
        ]
        assert len(done) == 2

    def test_other_settings_need_another_directory(self, images, run, tmp_path):
        home = tmp_path / "run"
        CoefficientStatistics.from_data(images, directory=home)
        command = ("calibrate", *images, "--epsilon", 2, "--out", tmp_path / "table.json")
        code, _, errors = run(*command, "--run", home)
        assert code == 1
        assert errors == (
            "Error: `--run` holds a run over shards with other --color-space, options; choose "
            f"another directory. Received: --run {str(home)!r}\n"
        )

    def test_kept_statistics_are_exact(self, images, tmp_path, monkeypatch):
        home = tmp_path / "run"
        first = CoefficientStatistics.from_data(images, directory=home)
        monkeypatch.delattr("fd_keras.statistics.CoefficientStatistics._of_batch")
        again = CoefficientStatistics.from_data(images, directory=home)
        for name in MOMENTS:
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))

    def test_order_in_which_workers_finish_does_not_matter(self, images, tmp_path, monkeypatch):
        home = tmp_path / "run"
        first = CoefficientStatistics.from_data(images, directory=home)
        monkeypatch.setattr(
            "fd_keras.statistics.spread", lambda *a, **k: reversed([*spread(*a, **k)])
        )
        again = CoefficientStatistics.from_data(images, directory=home)
        for name in MOMENTS:
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


class TestConnecting:
    @pytest.mark.parametrize("address", ["", "nowhere", "tcp://host", "bar://x:1", "tcp://x:70000"])
    def test_what_is_no_address_is_refused(self, address):
        with (
            pytest.raises(ValueError, match="`scheduler` must be the address"),
            connected(scheduler=address),
        ):
            pass

    @pytest.mark.parametrize("address", ["127.0.0.1:9", "tcp://127.0.0.1:9", "tcp://[::1]:9"])
    def test_nobody_answers_at_what_is_one(self, address, monkeypatch):
        monkeypatch.setattr("fd_keras.distribution._SECONDS_TO_CONNECT", 1)
        with (
            pytest.raises(ValueError, match="none answers there within 1 seconds"),
            connected(scheduler=address),
        ):
            pass

    def test_nobody_answers(self, images, run, tmp_path):
        started = time.monotonic()
        code, _, errors = run(
            *("calibrate", images[0], "--epsilon", 2, "--out", tmp_path / "table.json"),
            *("--scheduler", "tcp://127.0.0.1:9"),
        )
        assert code == 1
        assert errors.splitlines()[-1] == (
            "Error: `--scheduler` must be the address of a Dask scheduler, such as "
            "tcp://10.0.0.1:8786; none answers there within 5 seconds. "
            "Received: --scheduler 'tcp://127.0.0.1:9'"
        )
        assert time.monotonic() - started < 30

    def test_one_cluster_at_a_time(self):
        with (
            pytest.raises(ValueError, match="must not be given with `workers`"),
            connected(scheduler="tcp://127.0.0.1:8786", workers=2),
        ):
            pass

    def test_arrays_stay_here(self, client):
        with pytest.raises(ValueError, match="`client` is for paths"):
            CoefficientStatistics.from_data(np.zeros((2, 8, 8, 3)), client=client)


class TestShards:
    def test_no_file_is_read_twice(self, images):
        folder, *others = images
        found = find_shards([folder, *others, folder / "00.png", others[0]])
        assert [len(shard.paths) for shard in found.shards] == [64, 6, 1, 1, 1]
        assert all(Path(path).is_absolute() for shard in found.shards for path in shard.paths)

    @pytest.mark.parametrize("location", ["", "no such data", []])
    def test_what_holds_no_images(self, location):
        with pytest.raises(ValueError, match="`location` must"):
            find_shards(location)


class TestFiles:
    """compress and certify, whose shards are image files."""

    def test_commands_on_a_cluster_are_the_plain_ones(self, client, images, run, tmp_path):
        folder, *_ = images
        (folder / "broken.png").write_bytes(b"broken")
        address = client.scheduler.address
        printed = []
        for options in ((), ("--scheduler", address)):
            out = tmp_path / f"out{len(options)}"
            command = ("compress", folder, "--table", "certified:2", "--out", out)
            code, written, errors = run(*command, *options)
            assert code == 1
            assert f"Error: {folder / 'broken.png'}: " in errors
            code, certified, errors = run("certify", out, "--table", "certified:2", *options)
            assert "Error" not in errors
            printed.append((code, (written + certified).replace(str(out), "OUT")))
        assert printed[0] == printed[1]
        assert printed[0][1].count("encoded with certified:2") == 70
        alone, other = (
            {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
            for name in ("out0", "out2")
        )
        assert alone == other

    def test_compress_goes_on_and_keeps_what_is_not_its_own(self, images, run, tmp_path):
        folder, out, home = images[0], tmp_path / "out", tmp_path / "run"
        command = ("compress", folder, "--out", out, "--run", home)
        assert run(*command)[0] == 0
        written = {path: path.stat().st_mtime_ns for path in sorted(out.iterdir())}
        assert run(*command)[0] == 0
        assert {path: path.stat().st_mtime_ns for path in written} == written
        # A shard whose files are gone is done again, and leaves alone what others wrote.
        first, second, *_, last = written
        second.unlink()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(first)
        code, printed, errors = run(*command)
        assert code == 1
        assert f"{first} exists, and this command did not write it" in errors
        assert printed.startswith("69 of 70 images written")
        assert second.exists()
        assert last.stat().st_mtime_ns == written[last]
        with Image.open(first) as image:
            assert image.size == (8, 8)
        # The error is not kept as a result.
        assert run(*command, "--overwrite")[0] == 0
        with Image.open(first) as image:
            assert image.size != (8, 8)

    def test_one_file_under_two_names_is_refused(self, run, tmp_path):
        """Every later image was written under the name of the one before."""
        folder, out = tmp_path / "photos", tmp_path / "out"
        (folder / "below").mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "below" / "a.png")
        twice = ("compress", folder, folder / ".." / "photos" / "below", "--out", out)
        code, _, errors = run(*twice, "--run", tmp_path / "run")
        assert code == 1
        assert "are the same file" in errors
        assert not out.exists()
        assert run(*twice)[0] == 0


# Last, as they leave workers that are starting again.


def test_nothing_is_lost_when_a_worker_dies(client, tmp_path):
    """The third shard kills its worker, but not the second time."""

    def work(shard):
        (name,) = shard.paths
        marks = list(tmp_path.glob(f"{name[1:]}.*"))
        (tmp_path / f"{name[1:]}.{len(marks)}").touch()
        if name == "/2" and not marks:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"square": int(name[1:]) ** 2}

    outcomes = list(spread(work, shards_named(*range(8)), client))
    assert all(outcome.error is None for outcome in outcomes)
    found = {outcome.shard.paths[0]: outcome.result["square"] for outcome in outcomes}
    assert found == {f"/{number}": number**2 for number in range(8)}
    assert (tmp_path / "2.1").exists()  # it ran again


def test_what_keeps_killing_its_worker_is_named(client):
    def work(shard):
        if shard.paths[0] == "/3":
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def allow(failures):
        client.run_on_scheduler(
            lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", failures)
        )

    allow(0)
    try:
        outcomes = list(spread(work, shards_named(*range(6)), client))
    finally:
        allow(3)
    (failed,) = [outcome for outcome in outcomes if outcome.error is not None]
    assert failed.shard.paths == ("/3",)
    assert failed.message.startswith("/3 failed and is left out: ")
    assert len(outcomes) == 6
