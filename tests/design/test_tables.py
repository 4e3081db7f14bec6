"""Designed tables: against a search over all steps, and on simulated images."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.fft import dctn, idctn

from fd_keras import FeatureDistillation, QuantizationTable
from fd_keras.design import (
    band_distortion,
    band_removal,
    design_table,
    perturbation_profile,
    rank_bands,
)

U, V = np.indices((8, 8))
ALL_STEPS = np.arange(1.0, 61.0)[:, np.newaxis, np.newaxis, np.newaxis]


def statistics_of(std, ratio=0.55, color_space="rgb", **kwargs):
    """A stand-in for ``CoefficientStatistics``: zero-mean, ``ratio`` is E|c| / std."""
    std = np.asarray(std, float)
    moments = {"mean": np.zeros_like(std), "std": std, "mean_abs": ratio * std}
    return SimpleNamespace(
        count=np.full(std.shape, 1000),
        color_space=color_space,
        provenance={"images": 10},
        **{**moments, **kwargs},
    )


def natural_std(channels=3):
    """A spectrum that falls like that of photographs; its second channel is weaker."""
    return np.stack([400.0, 150.0, 250.0])[:channels, np.newaxis, np.newaxis] / (
        1 + (1.1 * U + V) ** 1.5
    )


NATURAL = statistics_of(natural_std())


def test_rank_by_sigma():
    std = np.random.default_rng(1).permutation(64).reshape(8, 8)
    rank = rank_bands(std)
    assert sorted(rank.ravel()) == list(range(64))
    np.testing.assert_array_equal(std.ravel()[np.argsort(rank.ravel())], np.arange(64)[::-1])


def test_rank_of_channels_is_separate():
    std = np.random.default_rng(1).random((3, 8, 8))
    for ranking in ("sigma", "zigzag"):
        ranks = rank_bands(std, ranking)
        assert ranks.shape == (3, 8, 8)
        for channel in range(3):
            np.testing.assert_array_equal(ranks[channel], rank_bands(std[channel], ranking))


def test_rank_by_zigzag_and_of_equal_bands():
    # T.81, figure A.6, first and last rows.
    first, last = [0, 1, 5, 6, 14, 15, 27, 28], [35, 36, 48, 49, 57, 58, 62, 63]
    for rank in (rank_bands(np.zeros((8, 8))), rank_bands(natural_std(1), "zigzag")[0]):
        assert rank[[0, 7]].tolist() == [first, last]


@pytest.fixture(scope="module")
def full_search():
    """Removal probability and distortion of every step."""
    return band_removal(NATURAL, ALL_STEPS, 2.0), band_distortion(NATURAL, ALL_STEPS)


@pytest.mark.parametrize("ranking", ["sigma", "zigzag"])
@pytest.mark.parametrize("as_bands", [0, 15, (3, 20, 64)])
def test_steps_are_those_a_full_search_finds(full_search, ranking, as_bands):
    required, budget = (0.97, 0.96, 0.95), (40.0, 90.0, 0.5)
    table = design_table(
        NATURAL,
        2.0,
        as_bands=as_bands,
        ranking=ranking,
        required_removal=required,
        distortion_budget=budget,
        max_step=len(ALL_STEPS),
    )
    removed, distortion = full_search
    counts = np.broadcast_to(as_bands, 3)
    ranks = rank_bands(NATURAL.std, ranking)
    for channel, u, v in np.ndindex(3, 8, 8):
        # From which step on every step removes enough; up to which every step is affordable.
        enough = removed[:, channel, u, v] >= required[channel]
        expected = next(q for q in range(1, 61) if enough[q - 1 :].all())
        if ranks[channel, u, v] < counts[channel]:
            cheap = distortion[:, channel, u, v] <= budget[channel]
            expected = min(expected, max(q for q in range(1, 61) if cheap[:q].all()))
        assert table.steps[channel, u, v] == expected, (channel, u, v)


def test_designed_table_does_what_it_promises_to_images():
    """Simulated images, real noise, and rounding written out here."""
    rng = np.random.default_rng(2)
    std = natural_std(1)
    c = stats.gennorm(0.6).rvs((30_000, 8, 8), random_state=rng)
    c *= std[0] / c.std()
    c[:, 0, 0] = 8 * rng.uniform(-100, 100, len(c))
    noise = dctn(rng.choice([-2.0, 2.0], c.shape), axes=(1, 2), norm="ortho")
    statistics = statistics_of(c.std(0)[np.newaxis], mean_abs=np.abs(c).mean(0)[np.newaxis])
    table = design_table(statistics, 2.0, required_removal=0.98, distortion_budget=30)
    q = table.steps[0]
    removed = np.mean(np.round((c + noise) / q) == np.round(c / q), axis=0)
    distortion = np.mean((c - q * np.round(c / q)) ** 2, axis=0)
    sensitive = rank_bands(c.std(0)) < 15
    assert removed[~sensitive].min() > 0.98 - 0.005
    # No coarser than needed: one grey level less would not do.
    assert removed[~sensitive].max() < 0.99
    assert distortion[sensitive].max() < 30 * 1.05
    assert len(np.unique(q)) > 5


def test_designed_table_works_in_the_layer():
    rng = np.random.default_rng(3)
    c = rng.laplace(size=(64, 8, 8)) * natural_std(1)[0]
    image = 128 + idctn(c, axes=(1, 2), norm="ortho").reshape(1, 512, 8, 1) / 4
    layer = FeatureDistillation(design_table(statistics_of(natural_std(1)), 2.0))
    assert 0 < np.abs(layer(image.clip(0, 255)).numpy() - image).mean() < 20


@given(
    epsilon=st.floats(0.1, 4),
    more=st.floats(1, 5),
    ratio=st.floats(0.3, 0.8),
    required=st.floats(0, 0.97),
    budget=st.floats(0.2, 500),
    as_bands=st.integers(8, 64),
)
@settings(max_examples=25)
def test_larger_epsilon_never_gives_a_smaller_step(
    epsilon, more, ratio, required, budget, as_bands
):
    statistics = statistics_of(natural_std(1), ratio)
    small, large = (
        design_table(
            statistics,
            size,
            as_bands=as_bands,
            required_removal=required,
            distortion_budget=budget,
            max_step=4000,
        ).steps
        for size in (epsilon, epsilon * more)
    )
    assert (large >= small).all()


def test_a_harmless_perturbation_needs_no_quantisation():
    assert (design_table(NATURAL, 0.1, required_removal=0, min_step=3).steps == 3).all()


def test_stricter_requirements_move_the_right_bands():
    sensitive = rank_bands(NATURAL.std) < 15
    plain = design_table(NATURAL, 2.0, required_removal=0.97, distortion_budget=30).steps
    safer = design_table(NATURAL, 2.0, required_removal=0.99, distortion_budget=30).steps
    finer = design_table(NATURAL, 2.0, required_removal=0.97, distortion_budget=10).steps
    assert (safer[~sensitive] > plain[~sensitive]).all()
    assert (finer[~sensitive] == plain[~sensitive]).all()
    assert (finer[sensitive] <= plain[sensitive]).all()
    assert (finer[0][sensitive[0]] < plain[0][sensitive[0]]).all()


def test_measured_profile_replaces_the_assumption():
    rng = np.random.default_rng(4)
    benign = rng.uniform(20, 235, (40, 64, 64, 3))
    signs = rng.choice([-4.0, 4.0], benign.shape)
    white = perturbation_profile(benign, benign + signs)
    # The same attack, but on one half of the image only.
    signs[:, 32:] = 0
    half = perturbation_profile(benign, benign + signs)
    assumed = design_table(NATURAL, 2.0)
    measured = design_table(NATURAL, 2.0, perturbation=white)
    weaker = design_table(NATURAL, 2.0, perturbation=half)
    assert np.abs(measured.steps - assumed.steps).max() <= 2
    assert (weaker.steps <= measured.steps).all()
    assert (weaker.steps < measured.steps).mean() > 0.5
    assert measured.provenance["perturbation"] == {
        "measured_on_pairs": 40,
        "at_epsilon": pytest.approx(4.0),
    }


def test_colour_space_and_correlation():
    luma_and_chroma = statistics_of(natural_std(), color_space="ycbcr")
    independent = design_table(luma_and_chroma, 2.0, as_bands=0, max_step=2000).steps
    equal = design_table(
        luma_and_chroma, 2.0, as_bands=0, max_step=2000, channel_correlation=1.0
    ).steps
    assert (equal[0] > independent[0]).all()  # all of a grey perturbation is luma
    assert (equal[1:] == 1).all()
    assert (independent[1:] > 1).all()
    grey = design_table(statistics_of(natural_std(1), color_space="ycbcr"), 2.0)
    assert (grey.color_space, grey.channels) == ("ycbcr", 1)


def test_constant_data():
    """Every band is zero: the perturbation alone sets the step, twice its 99 % quantile."""
    table = design_table(
        statistics_of(np.zeros((1, 8, 8))),
        2.0,
        required_removal=0.99,
        distortion_budget=1e-6,
        as_bands=0,
    )
    expected = np.ceil(2 * 2 * stats.norm.ppf(0.995))
    np.testing.assert_array_equal(table.steps[0].ravel()[1:], np.full(63, expected))
    # Sensitive bands have nothing to lose either; DC is still taken as uniform in its cell.
    table = design_table(statistics_of(np.zeros((1, 8, 8))), 2.0, required_removal=0.99)
    np.testing.assert_array_equal(table.steps[0].ravel()[1:], np.full(63, expected))
    assert table.steps[0, 0, 0] == 30


def test_provenance_tells_the_design(tmp_path):
    table = design_table(NATURAL, 2.5, as_bands=(15, 5, 6), cycle_spins=4, channel_correlation=0.3)
    provenance = table.provenance
    assert table.name == "designed:2.5"
    assert provenance["source"] == "design_table"
    assert provenance["epsilon"] == 2.5
    assert provenance["as_bands"] == [15, 5, 6]
    assert provenance["required_removal"] == [0.985] * 3
    assert provenance["step_range"] == [1, 255]
    assert provenance["statistics"] == {"images": 10}
    assert provenance["coefficients_per_band"] == 1000
    sensitive = rank_bands(NATURAL.std) < np.reshape([15, 5, 6], (3, 1, 1))
    removed = band_removal(NATURAL, table.steps, 2.5)
    assert provenance["predicted_md_removal"] == pytest.approx(removed[~sensitive].mean())
    assert provenance["predicted_as_removal"] == pytest.approx(removed[sensitive].mean())
    distortion = band_distortion(NATURAL, table.steps).mean()
    assert provenance["predicted_distortion"] == pytest.approx(distortion)
    assert table.cycle_spins == 4
    table.save(tmp_path / "table.json")
    loaded = QuantizationTable.load(tmp_path / "table.json")
    assert loaded == table
    assert loaded.provenance == provenance


def test_all_bands_of_one_kind():
    assert design_table(NATURAL, 1.0, as_bands=64).provenance["predicted_md_removal"] is None
    table = design_table(NATURAL, 1.0, as_bands=0, max_step=1000)
    assert table.provenance["predicted_as_removal"] is None


def test_unreachable_removal_names_the_bands():
    with pytest.raises(ValueError, match="out of reach") as error:
        design_table(NATURAL, 8.0, as_bands=0, required_removal=(0.5, 0.5, 0.995), max_step=200)
    message = str(error.value)
    reached = band_removal(NATURAL, 200.0, 8.0)
    assert message.startswith("`required_removal` is out of reach at epsilon=8 with max_step=200:")
    assert f"(0, 0) of channel 2 has {reached[2, 0, 0]:.4g}" in message
    assert "of channel 0" not in message
    count = int((reached[2] < 0.995).sum())
    assert f"and {count - 5} more bands" in message
    assert "Received: required_removal=(0.5, 0.5, 0.995)" in message


def test_unaffordable_budget_names_the_bands():
    with pytest.raises(ValueError, match="exceeded even with min_step=4") as error:
        design_table(NATURAL, 2.0, as_bands=1, distortion_budget=1.2, min_step=4)
    message = str(error.value)
    assert "(0, 0) of channel 0 has 1.333, (0, 0) of channel 1 has 1.333" in message
    assert "more bands" not in message
    assert "Received: distortion_budget=1.2" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -1.0}, "`epsilon` must be one finite number of grey levels"),
        ({"epsilon": 0}, "epsilon=0"),
        ({"epsilon": 0.0078}, "write 2. Received: epsilon=0.0078"),
        ({"epsilon": np.nan}, "epsilon=nan"),
        ({"epsilon": np.inf}, "epsilon=inf"),
        ({"epsilon": [2.0, 4.0]}, "Received: epsilon=[2.0, 4.0]"),
        ({"epsilon": "two"}, "Received: epsilon='two'"),
        ({"as_bands": 65}, "`as_bands` must lie between 0 and 64"),
        ({"as_bands": 1.5}, "`as_bands` must be whole numbers. Received: as_bands=1.5"),
        ({"as_bands": (1, 2)}, "`as_bands` must be one number or one per channel, here 3"),
        ({"required_removal": 1.5}, "`required_removal` must lie between 0 and 1"),
        ({"required_removal": [[0.9]]}, "`required_removal` must be one number or one per"),
        ({"distortion_budget": -1}, "`distortion_budget` must be finite and not negative"),
        ({"distortion_budget": np.inf}, "distortion_budget=inf"),
        (
            {"min_step": 0},
            "whole numbers, 1 <= min_step <= max_step <= 2**53. Received: min_step=0",
        ),
        ({"min_step": 9, "max_step": 8}, "min_step=9, max_step=8"),
        ({"max_step": 20.5}, "max_step=20.5"),
        ({"ranking": "loud"}, "`ranking` must be one of"),
        ({"perturbation": "loud"}, "`perturbation` must be one of"),
        ({"channel_correlation": -0.1}, "`channel_correlation` must lie between 0 and 1"),
        ({"cycle_spins": 65}, "`cycle_spins` must be an integer"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        design_table(NATURAL, **{"epsilon": 2.0, **options})


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (statistics_of(np.ones((8, 8))), "`statistics` must hold moments of one shape"),
        (statistics_of(np.ones((3, 8, 8)), mean=np.ones((1, 8, 8))), "[(1, 8, 8), (3, 8, 8)]"),
        (statistics_of(np.full((3, 8, 8), np.nan)), "statistics.std"),
    ],
)
def test_unusable_statistics(statistics, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        design_table(statistics, 2.0)


def test_profile_that_does_not_fit():
    rng = np.random.default_rng(5)
    images = rng.random((2, 8, 8, 3))
    profile = perturbation_profile(images, images + 1, color_space="ycbcr")
    with pytest.raises(ValueError, match="must be a profile in 'rgb' with 3 channels"):
        design_table(NATURAL, 2.0, perturbation=profile)
    grey = perturbation_profile(images[..., :1], images[..., :1] + 1)
    with pytest.raises(ValueError, match=re.escape("of shape (1, 8, 8)")):
        design_table(NATURAL, 2.0, perturbation=grey)


@pytest.mark.parametrize(
    ("std", "ranking", "message"),
    [
        (np.ones((8, 7)), "sigma", "`std` must have shape (..., 8, 8)"),
        (-np.ones((8, 8)), "sigma", "`std` must be finite and not negative"),
        (np.ones((8, 8)), "size", "`ranking` must be one of"),
    ],
)
def test_rank_errors(std, ranking, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rank_bands(std, ranking)


def test_designed_for_soft_thresholding():
    """The same rules with dead zones, checked against all steps; DC asks for nothing."""
    statistics = statistics_of(natural_std(2))
    table = design_table(statistics, 2.0, quantizer="soft", min_step=2, cycle_spins=4)
    assert (table.quantizer, table.cycle_spins) == ("soft", 4)
    every = np.arange(2.0, 256.0).reshape(-1, 1, 1, 1)
    removal = band_removal(statistics, every, 2.0, quantizer="soft")
    distortion = band_distortion(statistics, every, quantizer="soft")
    enough = removal >= 0.985
    removing = np.where(enough.any(0), every[enough.argmax(0)][..., 0, 0, 0], 256)
    affordable = every[(distortion <= 75).sum(0) - 1][..., 0, 0, 0]
    sensitive = rank_bands(statistics.std) < 15
    expected = np.where(sensitive, np.minimum(removing, affordable), removing)
    expected[:, 0, 0] = 2
    np.testing.assert_array_equal(table.steps, expected)
    assert removal[:, :, 0, 0].max() == distortion[:, :, 0, 0].max() == 0
    # Wide bands that matter: little more than the dead zone of 2 sqrt(75), which any content pays.
    assert 17 <= table.steps[0, 0, 1] <= 18
    with pytest.raises(ValueError, match="`quantizer` must be one of"):
        design_table(statistics, 2.0, quantizer="hard")
    # No band is asked to remove anything from DC.
    design_table(statistics, 2.0, as_bands=0, required_removal=0.5, quantizer="soft")
