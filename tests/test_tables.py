"""QuantizationTable as a value, as a file, and the presets."""

import json
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fd_keras import (
    PRESETS,
    FeatureDistillation,
    QuantizationTable,
    certified_table,
    preset_table,
)
from fd_keras.dct import RGB_TO_YCBCR, YCBCR_TO_RGB, grid_offsets, zigzag_rank
from fd_keras.presets import as_table, table_from_argument

TABLES = st.builds(
    QuantizationTable,
    arrays(
        np.float64,
        st.sampled_from([(8, 8), (1, 8, 8), (3, 8, 8)]),
        elements=st.floats(1e-3, 1e6, allow_subnormal=False),
    ),
    st.sampled_from(["rgb", "ycbcr"]),
    st.integers(1, 64),
    st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())),
    st.sampled_from(["round", "soft"]),
)


@given(TABLES)
def test_dict_and_pickle_round_trip(table):
    for copy in (
        QuantizationTable.from_dict(json.loads(json.dumps(table.to_dict()))),
        pickle.loads(pickle.dumps(table)),
    ):
        assert copy == table
        assert hash(copy) == hash(table)
        assert copy.provenance == table.provenance


def test_file_round_trip_is_exact_and_readable(tmp_path, rng):
    steps = rng.uniform(1, 99, (3, 8, 8))
    table = QuantizationTable(steps, "ycbcr", 4, {"name": "größer", "images": 100})
    table.save(tmp_path / "new" / "table.json")
    text = (tmp_path / "new" / "table.json").read_text(encoding="utf-8")
    loaded = QuantizationTable.load(tmp_path / "new" / "table.json")
    assert loaded == table
    assert loaded.provenance == table.provenance
    # One line for each row of 8 steps, so that a person and a diff can read it.
    assert len(re.findall(r"^\s*\[\d[\d., ]*\],?$", text, re.MULTILINE)) == 24
    assert json.loads(text)["version"] == 1


def test_files_name_a_quantiser_other_than_rounding(tmp_path):
    """A file from before there was one holds none, and a table that rounds writes it as then."""
    table = QuantizationTable(np.full((8, 8), 9.0), "ycbcr", 4)
    assert "quantizer" not in table.to_dict()
    soft = table.with_settings(quantizer="soft")
    assert soft.to_dict()["quantizer"] == "soft"
    soft.save(tmp_path / "soft.json")
    assert QuantizationTable.load(tmp_path / "soft.json") == soft
    with pytest.raises(ValueError, match=r"`quantizer` must be one of .*'hard'"):
        QuantizationTable.from_dict({**soft.to_dict(), "quantizer": "hard"})


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    preset_table("liu2019").save(path)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        preset_table("jpeg").save(path)
    assert QuantizationTable.load(path) == preset_table("liu2019")
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "not an object"),
        ("{}", "holds no quantisation table .its format is None"),
        ('{"format": "fd_keras.quantization_table", "version": 2}', "newer fd_keras"),
        ('{"format": "fd_keras.quantization_table", "version": 1}', "lacks the entries"),
    ],
)
def test_unreadable_file_is_named(tmp_path, text, reason):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{reason}.*broken.json"):
        QuantizationTable.load(path)


def test_binary_file_is_named(tmp_path):
    (tmp_path / "photo.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match="photo.json"):
        QuantizationTable.load(tmp_path / "photo.json")


def nested(levels):
    inner = 1
    for level in range(levels):
        inner = [inner] if level % 2 else {"a": inner}
    return {"a": inner}


def test_deep_provenance_is_named(tmp_path):
    table = QuantizationTable(np.ones((8, 8)), provenance=nested(90))
    table.save(tmp_path / "table.json")
    assert QuantizationTable.load(tmp_path / "table.json").provenance == nested(90)
    for levels in (100, 100_000):
        with pytest.raises(ValueError, match="`provenance` must not be nested more than 100"):
            QuantizationTable(np.ones((8, 8)), provenance=nested(levels))
    with pytest.raises(ValueError, match="`data` holds no quantisation table: `provenance`"):
        QuantizationTable.from_dict({**table.to_dict(), "provenance": nested(100_000)})
    deep = '{"a": ' * 500 + "1" + "}" * 500
    text = (tmp_path / "table.json").read_text()
    start, end = text.index(' "provenance": {'), text.index(' "steps"')
    (tmp_path / "table.json").write_text(f'{text[:start]} "provenance": {deep},\n{text[end:]}')
    with pytest.raises(ValueError, match=r"`provenance` must not be nested .*table.json"):
        QuantizationTable.load(tmp_path / "table.json")


def test_what_to_dict_returns_is_a_copy():
    table = QuantizationTable(np.ones((8, 8)), provenance={"epochs": [1], "of": {"a": 1}})
    changed = table.to_dict()
    changed["provenance"]["epochs"].append(2)
    changed["provenance"]["of"]["a"] = 2
    assert table.provenance == {"epochs": [1], "of": {"a": 1}}


@pytest.mark.parametrize("steps", [np.ones((8, 8), complex), [["30"] * 8] * 8, np.eye(8) > 2])
def test_steps_must_be_real_numbers(steps):
    with pytest.raises(ValueError, match="`steps` must be numbers. Received: steps="):
        QuantizationTable(steps)


@given(st.text())
def test_names_are_printable_and_reprs_short(name):
    table = QuantizationTable(np.ones((8, 8)), provenance={"name": 100 * name})
    assert table.name.isprintable()
    assert repr(table).isprintable()
    assert len(repr(table)) < 400
    assert QuantizationTable.from_dict(table.to_dict()).provenance["name"] == 100 * name


def test_equality_is_about_what_the_layer_computes():
    table = QuantizationTable(np.ones((8, 8)), provenance={"name": "a"})
    assert table == QuantizationTable(np.ones((1, 8, 8)), provenance={"name": "b"})
    assert table != QuantizationTable(np.full((8, 8), 2.0))
    assert table != table.with_settings(cycle_spins=2)
    assert table != table.with_settings(color_space="ycbcr")
    assert table != table.with_settings(quantizer="soft")
    assert hash(table) != hash(table.with_settings(quantizer="soft"))
    assert table != "liu2019"


def test_is_immutable():
    given_steps = np.ones((8, 8))
    provenance = {"name": "a"}
    table = QuantizationTable(given_steps, provenance=provenance)
    given_steps[:] = 5
    provenance["name"] = "b"
    assert table.steps.max() == 1
    assert table.name == "a"
    with pytest.raises(ValueError, match="read-only"):
        table.steps[0, 0, 0] = 2
    with pytest.raises(AttributeError):
        table.cycle_spins = 2
    with pytest.raises(TypeError):
        table.provenance["name"] = "c"


def test_repr_and_str():
    table = preset_table("liu2019")
    assert repr(table) == (
        "QuantizationTable('liu2019', steps=25..30, channels=1, color_space='rgb', cycle_spins=1)"
    )
    assert repr(table.with_settings(quantizer="soft")).endswith("cycle_spins=1, quantizer='soft')")
    assert str(table).splitlines()[1].split() == ["25"] * 4 + ["30"] * 4


@pytest.mark.parametrize("value", [[1, 2], {1, 2}, "a"])
def test_provenance_must_be_a_mapping(value):
    with pytest.raises(TypeError, match="`provenance`"):
        QuantizationTable(np.ones((8, 8)), provenance=value)


def test_provenance_must_be_json():
    with pytest.raises(TypeError, match="JSON-serialisable"):
        QuantizationTable(np.ones((8, 8)), provenance={"when": object()})


class TestPresets:
    @pytest.mark.parametrize("quality", [1, 10, 25, 49, 50, 51, 75, 90, 99, 100])
    def test_jpeg_is_libjpegs(self, quality, tmp_path):
        """Pillow reads back, in natural order, the tables that libjpeg wrote."""
        Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", quality=quality)
        written = Image.open(tmp_path / "a.jpg").quantization
        steps = preset_table("jpeg", quality=quality).steps
        assert steps[0].ravel().tolist() == list(written[0])
        assert steps[1].ravel().tolist() == list(written[1])
        assert np.array_equal(steps[1], steps[2])

    def test_liu2019(self):
        table = preset_table("liu2019")
        assert table.color_space == "rgb"
        assert (table.steps == 25).sum() == 16
        assert (table.steps[0, :4, :4] == 25).all()
        assert (table.steps == 30).sum() == 48

    def test_zigzag15(self):
        table = preset_table("zigzag15")
        assert table.color_space == "ycbcr"
        # The first five diagonals hold 1 + 2 + 3 + 4 + 5 = 15 bands.
        u, v = np.indices((8, 8))
        assert np.array_equal(table.steps[0], np.where(u + v < 5, 1, 41))

    def test_soft8(self):
        """A dead zone of 8 grey levels around zero, of 16 for chroma; DC stays."""
        table = preset_table("soft8")
        assert (table.quantizer, table.color_space, table.cycle_spins) == ("soft", "ycbcr", 4)
        assert (table.steps[0] == 16).all()
        assert (table.steps[1:] == 32).all()

    @pytest.mark.parametrize("name", PRESETS)
    def test_are_all_available_by_name(self, name):
        assert as_table(name).provenance["source"] == "preset"

    @pytest.mark.parametrize("quality", [0, 101, 50.0, "50", True])
    def test_bad_quality(self, quality):
        with pytest.raises(ValueError, match="`quality` must be an integer from 1 to 100"):
            preset_table("jpeg", quality=quality)

    def test_quality_of_another_preset(self):
        with pytest.raises(ValueError, match="belongs to the 'jpeg' preset"):
            preset_table("liu2019", quality=50)
        with pytest.raises(ValueError, match="belongs to the 'jpeg' preset"):
            preset_table("liu2019:50")
        with pytest.raises(ValueError, match="given twice"):
            preset_table("jpeg:50", quality=50)
        with pytest.raises(ValueError, match="whole number.*jpeg:high"):
            preset_table("jpeg:high")

    def test_certified(self):
        """The names of the tables that `certified_table` makes."""
        assert preset_table("certified") == preset_table("certified:2") == certified_table(2)
        for space in ("rgb", "ycbcr"):
            table = certified_table(1.5, color_space=space)
            assert preset_table(f"certified:1.5:{space}") == table
            assert preset_table(table.name) == table

    @pytest.mark.parametrize(
        "name",
        [
            "certified:",
            "certified:x",
            "certified:0",
            "certified:0.02",
            "certified:inf",
            "certified:2:lab",
        ],
    )
    def test_bad_certified(self, name):
        with pytest.raises(ValueError, match=f"grey levels of 255, from 0.1.*name='{name}'"):
            preset_table(name)

    @pytest.mark.parametrize("suffix", [".json", ".JSON", ""])
    def test_files(self, tmp_path, suffix):
        table = QuantizationTable(np.full((8, 8), 7.0))
        path = tmp_path / f"mine{suffix}"
        table.save(path)
        assert as_table(path) == as_table(str(path)) == table

    @given(st.text())
    def test_other_texts_name_the_way(self, text):
        """Whatever the text, it is a table or an error that is about it."""
        with pytest.raises(ValueError, match="`table` must be a preset|`quality` bel"):
            as_table(f"{text}.json" if len(text) % 2 else f"liu2019{text}:")

    def test_a_layer_is_no_table(self):
        with pytest.raises(ValueError, match="`table` must be no layer: pass layer.quantization_"):
            as_table(FeatureDistillation())

    @pytest.mark.parametrize("name", [3, None, "liu2020"])
    def test_other_names(self, name):
        with pytest.raises(ValueError, match=f"`name` must be one of .* name={name!r}"):
            preset_table(name)

    def test_command_line_argument(self, tmp_path):
        table = QuantizationTable(np.ones((8, 8)))
        table.save(tmp_path / "table.json")
        assert table_from_argument(str(tmp_path / "table.json")) == table
        assert table_from_argument("jpeg:33") == preset_table("jpeg", quality=33)
        with pytest.raises(ValueError, match="table='no-such.json'"):
            table_from_argument("no-such.json")


def test_zigzag_is_jpegs():
    """ITU-T T.81, figure A.6, first rows."""
    rank = zigzag_rank()
    assert rank[0].tolist() == [0, 1, 5, 6, 14, 15, 27, 28]
    assert rank[1].tolist() == [2, 4, 7, 13, 16, 26, 29, 42]
    assert sorted(rank.ravel()) == list(range(64))
    assert rank[7, 7] == 63


def test_color_matrices_are_jfifs():
    """JFIF 1.02 prints these rounded coefficients."""
    jfif = [[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]]
    np.testing.assert_allclose(RGB_TO_YCBCR, jfif, atol=5e-5)
    back = [[1, 0, 1.402], [1, -0.34414, -0.71414], [1, 1.772, 0]]
    np.testing.assert_allclose(YCBCR_TO_RGB, back, atol=1e-5)


@pytest.mark.parametrize("spins", [2, 4, 8, 16, 32, 64])
def test_grids_are_spread_evenly(spins):
    """Powers of two give square lattices: neighbours as far apart as the density allows."""
    offsets = np.array(grid_offsets(spins))
    assert len({tuple(o) for o in offsets}) == spins
    gaps = np.abs(offsets[:, None] - offsets[None])
    gaps = np.minimum(gaps, 8 - gaps)  # the lattice repeats with the blocks
    squared = (gaps**2).sum(-1).astype(float)
    np.fill_diagonal(squared, np.inf)
    assert set(squared.min(1)) == {64 / spins}
