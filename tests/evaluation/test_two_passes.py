"""Encoding before the attack and distilling after it, on a small network of random weights."""

import io

import keras
import numpy as np
import pytest
from PIL import Image

import fd_keras
from fd_keras.certification import certified_table, certify
from fd_keras.encoding import encode
from fd_keras.evaluation import (
    Attack,
    Protocol,
    art_classifier,
    evaluate,
    fgsm,
    half_step,
    pgd,
    predicted_classes,
)
from fd_keras.evaluation.classifiers import attackable
from fd_keras.evaluation.defences import Encoder, bit_depth, defence, distillation, jpeg_compression
from fd_keras.kernels import dct_basis

pytest.importorskip("art", reason="ART is not installed")

TABLE = certified_table(2)
OURS = distillation(TABLE)
PROTOCOL = Protocol(
    "tiny", "", gray_box=(fgsm(4),), adaptive=(fgsm(2), pgd(12, 40)), limits={"JPEG": 4}
)
COUNT, WRONG = 16, 3


@pytest.fixture(scope="module")
def model():
    """Its loss has a gradient in every pixel, and small changes move it."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 64, -2.0)(inputs))
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Dense(16, "tanh")(x)))


@pytest.fixture(scope="module")
def data(model):
    """Smooth images, of which the model gets the first few wrong."""
    coarse = np.random.default_rng(5).integers(20, 236, (COUNT, 4, 4, 3)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(c).resize((16, 16))) for c in coarse])
    labels = predicted_classes(model, images.astype(np.float32))
    labels[:WRONG] = (labels[:WRONG] + 1) % 4
    return images, labels


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def report(model, data, cache):
    return evaluate(model, data, [OURS, "jpeg:40", "bits:4"], PROTOCOL, passes=2, cache_dir=cache)


def figure(report, name, threat_model, attack):
    row = report.grid.row(name, threat_model, attack)
    return row["correct"], row["count"]


def test_figures_are_those_of_encoding_attacking_and_distilling_by_hand(report, model, data):
    images, labels = data
    encoded = encode(images, TABLE)
    layer = fd_keras.FeatureDistillation(TABLE)
    protected = fd_keras.protect(model, layer)
    after_both = predicted_classes(protected, encoded.astype(np.float32)) == labels
    assert figure(report, "none", "benign", "none") == (COUNT - WRONG, COUNT)
    assert figure(report, OURS.name, "benign", "none") == (after_both.sum(), COUNT)

    once = predicted_classes(model, encoded.astype(np.float32)) == labels
    attacked = fgsm(4).generate(
        art_classifier(model), encoded[once].astype(np.float32), labels[once]
    )
    kept = predicted_classes(protected, attacked) == labels[once]
    found = figure(report, OURS.name, "two-pass gray-box", "FGSM 4/255")
    assert found == (kept.sum(), once.sum())

    radii = certify(encoded, TABLE).linf_radius
    for epsilon in (1, 2, 4):
        proven = after_both & (radii >= epsilon)
        found = figure(report, OURS.name, "certified", f"within {epsilon}/255")
        assert found == (proven.sum(), COUNT)


def test_a_certificate_is_worth_what_it_says(report):
    """Within it, attackers who know the layer change nothing; the table was made for 2."""
    right = report.grid.row(OURS.name, "benign", "none")["accuracy"]
    assert report.grid.row(OURS.name, "certified", "within 2/255")["accuracy"] == right > 0.5
    assert report.grid.row(OURS.name, "certified", "within 4/255")["accuracy"] == 0
    for attack in ("FGSM 2/255", "PGD-40 2/255", "Half-step-40 2/255"):
        known = report.grid.row(OURS.name, "two-pass adaptive", attack)
        alone = report.grid.row("none", "two-pass adaptive", attack)
        assert known["accuracy"] > alone["accuracy"]
    beyond = report.grid.row(OURS.name, "two-pass adaptive", "PGD-40 12/255")
    assert beyond["accuracy"] < 0.5
    checks = {c["defence"]: c for c in report.checks if "certified radius" in c["name"]}
    assert set(checks) == {OURS.name, "4 bits"}
    assert all(check["passed"] for check in checks.values())


def test_bytes_are_those_of_the_files(report, data):
    stored = {entry["name"]: entry["two_passes"] for entry in report.defences}

    def png(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", optimize=True)
        return file.tell()

    images, _ = data
    assert stored["none"]["bytes_per_image"] == np.mean([png(image) for image in images])
    files = [fd_keras.jpeg.encode_jpeg(image, TABLE) for image in encode(images, TABLE)]
    assert stored[OURS.name]["bytes_per_image"] == np.mean([len(file) for file in files])
    assert [entry["file"] for entry in stored.values()] == ["PNG", "JPEG", "JPEG", "PNG"]
    assert stored[OURS.name]["least_radius"] >= 2
    assert stored["4 bits"]["least_radius"] == pytest.approx(8.5, abs=0.01)
    assert stored["JPEG q40"]["least_radius"] is None


def test_what_is_not_proven_is_a_dash(report):
    lines = report.table().split("\n")
    assert [line.split()[-1] for line in lines if line.startswith("JPEG q40")][-1] == "-"
    assert [line.split()[-1] for line in lines if line.startswith("4 bits")][-1] != "-"


def test_each_defence_is_attacked_as_it_encodes_and_nothing_twice(
    report, model, data, cache, monkeypatch
):
    seen = []
    original = Attack.generate

    def record(self, classifier, images, *rest, **options):
        seen.append(images)
        return original(self, classifier, images, *rest, **options)

    monkeypatch.setattr(Attack, "generate", record)
    again = evaluate(model, data, [OURS, "jpeg:40", "bits:4"], PROTOCOL, passes=2, cache_dir=cache)
    assert again.rows == report.rows
    assert not seen
    short = Protocol("short", "", gray_box=(fgsm(5),))
    evaluate(model, data, ["bits:4", "bits:3"], short, passes=2, cache_dir=cache)
    levels = [len(np.unique(np.rint(255 * images))) for images in seen]
    assert any(level <= 8 for level in levels)
    assert any(8 < level <= 16 for level in levels)


def test_settings_are_chosen_by_both_passes(model, data, cache):
    few = Protocol("few", "", gray_box=(fgsm(4),), limits={"adaptive": 0})
    chosen = evaluate(model, data, [["bits:1", "bits:4", "bits:7"]], few, passes=2, cache_dir=cache)
    assert chosen.defences[1]["name"] == "4 bits"
    assert chosen.settings["count"] == COUNT // 2


@pytest.mark.parametrize(
    ("defences", "named"),
    [
        (["median:3"], "median 3x3"),
        (["liu2019", "slq"], "SLQ 20-80"),
        ([fd_keras.QuantizationTable(np.full((8, 8), 20.0), cycle_spins=2)], "custom"),
    ],
)
def test_defences_without_an_encoder_are_refused_before_work_starts(
    model, data, tmp_path, defences, named
):
    with pytest.raises(ValueError, match="`passes` must be 1 for defences") as error:
        evaluate(model, data, defences, PROTOCOL, passes=2, cache_dir=tmp_path)
    assert str(error.value).endswith(f"Received: passes=2 with {named}")
    assert not list(tmp_path.iterdir())


def test_there_are_two_passes_at_most(model, data, tmp_path):
    with pytest.raises(ValueError, match="`passes` must be a whole number from 1 to 2"):
        evaluate(model, data, ["liu2019"], PROTOCOL, passes=3, cache_dir=tmp_path)


def test_a_false_certificate_is_caught(model, data, tmp_path):
    """One that claims more than the lattice of the table holds."""
    honest = OURS.encoder
    liar = Encoder(honest.store, "JPEG", lambda images: np.full(len(images), 20.0), honest.aimed)
    false = fd_keras.evaluation.defences.Defence(
        "false",
        "example",
        OURS.transform,
        OURS.settings,
        table=TABLE,
        smooth=OURS.smooth,
        encoder=liar,
    )
    strong = Protocol("strong", "", adaptive=(pgd(12, 40),), limits={"adaptive": 4})
    found = evaluate(model, data, [false], strong, passes=2, cache_dir=tmp_path)
    (check,) = (check for check in found.checks if "certified radius" in check["name"])
    assert not check["passed"]
    assert "two-pass adaptive PGD-40 12/255 changes" in check["detail"]
    assert "do not trust these figures" in found.verdict


def test_the_half_step_attack_moves_what_the_identity_leaves(model, data):
    """At 1.5 times the radius one coefficient can be carried over, and not all at once."""
    images, labels = data
    encoded = encode(images[:4], TABLE)
    epsilon = 1.5 * float(certify(encoded, TABLE).linf_radius.max())
    classifier = fd_keras.Classifier(model)

    def moved(attack, gradient):
        attacker = attackable(classifier, encoded.shape[1:], OURS, gradient=gradient)
        attacked = 255 * attack.generate(attacker, np.float32(encoded / 255), labels[:4])
        assert np.abs(attacked - encoded).max() <= epsilon + 1e-3
        return np.abs(OURS(attacked) - OURS(encoded)).max(axis=(1, 2, 3)) > 1

    assert moved(half_step(epsilon), "half-step").all()
    assert not moved(half_step(epsilon), "straight-through").any()


@pytest.mark.parametrize("bits", [1, 4, 5, 7, 8])
def test_bit_depth_stays_within_its_radius_and_not_beyond(bits):
    chosen = bit_depth(bits)
    images = np.random.default_rng(bits).integers(0, 256, (3, 9, 7, 3))
    stored, _ = chosen.encoder.store(images.astype(np.float32))
    radii = chosen.encoder.radii(stored)
    signs = np.random.default_rng(1).choice([-1, 1], stored.shape)
    levels = chosen(stored)
    for sign in (1, -1, signs):
        inside = np.clip(stored + sign * 0.999 * radii[:, None, None, None], 0, 255)
        np.testing.assert_array_equal(chosen(inside), levels)
    beyond = [np.clip(stored + s * (radii[:, None, None, None] + 0.01), 0, 255) for s in (1, -1)]
    assert all((chosen(part) != levels).any() for part in beyond[: 1 if bits > 1 else 2])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [5, 10, 75])
def test_the_codec_keeps_what_its_radius_says(quality, channels):
    """Against libjpeg itself, under random changes and those aimed at every band."""
    chosen = jpeg_compression(quality, subsampling="4:4:4")
    generator = np.random.default_rng(quality)
    coarse = generator.integers(60, 196, (4, 3, 3, 3)).astype(np.uint8)
    smooth = np.stack([np.asarray(Image.fromarray(c).resize((24, 24))) for c in coarse])
    stored, _ = chosen.encoder.store(smooth[..., :channels].astype(np.float32))
    radii = chosen.encoder.radii(stored)
    assert (radii[radii > 0.5] > 1).all()
    assert radii.max() > (1 if quality < 20 else 0)
    basis = np.sign(np.einsum("ui,vj->uvij", dct_basis(), dct_basis())).reshape(-1, 8, 8)
    patterns = [generator.choice([-1, 1], stored.shape[1:]) for _ in range(8)]
    for pattern in basis:
        whole = np.tile(pattern, (3, 3))[..., None].repeat(channels, -1)
        patterns += [whole, -whole, whole * generator.choice([-1, 1], channels)]
    expected = chosen(stored)
    for pattern in patterns:
        changed = np.clip(stored + pattern * radii[:, None, None, None], 0, 255)
        np.testing.assert_array_equal(chosen(changed), expected)


def test_chroma_at_half_resolution_certifies_nothing():
    assert jpeg_compression(10).encoder.radii(np.zeros((1, 8, 8, 3), np.uint8)) is None
    assert jpeg_compression(10).encoder.radii(np.zeros((1, 8, 8, 1), np.uint8)) is not None


def test_every_bound_gets_a_long_attack_and_one_that_aims():
    found = Protocol("p", "", (fgsm(9),), (fgsm(2), pgd(4, 40), pgd(127.5, 20))).for_two_passes()
    names = [attack.name for attack in found.adaptive]
    assert names[3:] == ["PGD-40 2/255", "Half-step-40 2/255", "Half-step-40 4/255"]
    assert found.gray_box == (fgsm(9),)


def test_defences_are_named_as_they_are():
    assert defence("liu2019").encoder.file == "JPEG"
    assert defence("median:3").encoder is None
