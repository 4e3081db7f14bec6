"""The space that is searched, and where a search of it starts."""

import keras_tuner
import pytest

from fd_keras import CoefficientStatistics, FeatureDistillation
from fd_keras.certification import certify, nominal_radius
from fd_keras.encoding import encode
from fd_keras.refinement import band_space, certified_space
from fd_keras.refinement.space import band_values, starting_points


@pytest.fixture
def statistics(photos):
    return {
        name: CoefficientStatistics.from_data(photos, color_space=name) for name in ("ycbcr", "rgb")
    }


def test_every_point_of_the_space_is_a_table_for_the_layer(statistics, rng):
    space = band_space(statistics)
    space(hp := keras_tuner.HyperParameters())
    seen = set()
    for seed in range(30):
        hp.values = {p.name: p.random_sample(97 * seed + i) for i, p in enumerate(hp.space)}
        table = space(hp)
        seen.add((table.color_space, table.cycle_spins))
        assert FeatureDistillation(table)(255 * rng.random((1, 8, 8, 3))).shape == (1, 8, 8, 3)
    assert len(seen) == 6


def test_as_bands_are_those_of_the_largest_deviation(statistics):
    space = band_space(statistics["rgb"])
    space(hp := keras_tuner.HyperParameters())
    hp.values = {"as_bands": 9, "as_step": 5.0, "delta": 30.0, "dc_step": 5.0, "cycle_spins": 1}
    steps = space(hp).steps
    for std, channel in zip(statistics["rgb"].std, steps):
        assert (channel == 5).sum() == 9
        assert std[channel == 5].min() >= std[channel == 35].max()


def test_a_point_of_the_space_is_found_again_from_its_table(statistics):
    space = band_space(statistics)
    space(hp := keras_tuner.HyperParameters())
    hp.values = {
        **{"as_bands": 20, "as_step": 12.0, "delta": 31.0, "dc_step": 4.0, "chroma": 3.0},
        **{"color_space": "ycbcr", "cycle_spins": 2},
    }
    found = band_values(space(hp), statistics)
    numbers = [name for name in found if name != "color_space"]
    assert [found[n] for n in numbers] == pytest.approx([hp.values[n] for n in numbers], rel=0.05)
    assert found["color_space"] == "ycbcr"


def test_starting_points_are_inside_the_space(statistics):
    space = band_space(statistics)
    space(hp := keras_tuner.HyperParameters())
    for values in starting_points(statistics):
        assert set(values) == {p.name for p in hp.space}
        for p in hp.space:
            assert 0 <= p.value_to_prob(values[p.name]) <= 1
        hp.values = values
        space(hp)


def test_quantisers_are_searched_where_there_are_several(statistics):
    both = {"cycle_spins": (1, 16), "quantizers": ("round", "soft")}
    space = band_space(statistics, **both)
    space(hp := keras_tuner.HyperParameters())
    points = starting_points(statistics, **both)
    seen = set()
    for values in points:
        assert set(values) == {p.name for p in hp.space}
        hp.values = values
        table = space(hp)
        seen.add((table.quantizer, table.cycle_spins))
        assert band_values(table, statistics, **both)["quantizer"] == table.quantizer
    assert seen == {("round", 1), ("round", 16), ("soft", 16)}
    only = {"cycle_spins": (4,), "quantizers": ("soft",)}
    space = band_space(statistics, **only)
    space(hp := keras_tuner.HyperParameters())
    assert "quantizer" not in hp.values
    for values in starting_points(statistics, **only):
        hp.values = values
        assert (space(hp).quantizer, space(hp).cycle_spins) == ("soft", 4)


def test_every_point_of_the_certified_space_certifies(photos):
    space = certified_space(1.5)
    space(hp := keras_tuner.HyperParameters())
    image, seen = photos[1, 100:132, 200:232], set()
    for seed in range(12):
        hp.values = {p.name: p.random_sample(89 * seed + i) for i, p in enumerate(hp.space)}
        table = space(hp)
        seen.add(table.color_space)
        assert nominal_radius(table, 3) >= 1.5
        assert certify(encode(image, table), table).holds(1.5).all()
    assert seen == {"rgb", "ycbcr"}
