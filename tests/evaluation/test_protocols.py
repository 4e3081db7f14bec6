"""Protocols: their limits, and a run of each."""

import dataclasses
import hashlib
import json
import sys

import keras
import numpy as np
import pytest

from fd_keras.evaluation import (
    PROTOCOLS,
    Protocol,
    autoattack,
    bim,
    evaluate,
    fgsm,
    pgd,
    protocol_named,
    square,
)
from fd_keras.evaluation.protocols import attack_protocol

# Those that have been ART's from the first.
OLD = ("FGSM", "BIM", "PGD", "Square")


def test_attacks_are_those_of_earlier_versions():
    """Caches and reports hold these dictionaries; figures of other attacks cannot be compared."""
    attacks = {
        name: {
            model: [attack.to_dict() for attack in getattr(protocol, model) if attack.family in OLD]
            for model in ("gray_box", "adaptive", "black_box")
        }
        for name, protocol in PROTOCOLS.items()
    }
    digest = hashlib.sha256(json.dumps(attacks, sort_keys=True).encode()).hexdigest()
    assert digest == "c21de56797d1f869f5056edb6c19be88b382fb155a984a55557bab8b0ce22240"


@pytest.mark.parametrize("name", ["evademl-imagenet", "evademl-cifar10"])
def test_attacks_of_the_platform_are_targeted_as_it_says(name):
    targeted = [(a.family, a.target) for a in PROTOCOLS[name].gray_box if a.target]
    assert targeted == [(f, t) for f in ("CW-L2", "CW-Linf") for t in ("next", "least likely")]
    carlini = next(a for a in PROTOCOLS[name].gray_box if a.family == "CW-L2").parameters
    names = ("confidence", "stepsize", "binary_search_steps", "initial_const", "steps")
    assert [carlini[name] for name in names] == [5, 0.01, 9, 0.001, 1000]


def test_limits_of_a_named_protocol_leave_the_original_alone():
    limits = {"CW-L2": 50, "quilting": 20, "adaptive": 0}
    limited = protocol_named("evademl-cifar10", limits)
    assert limited.limits == limits
    assert limited.gray_box == PROTOCOLS["evademl-cifar10"].gray_box
    assert PROTOCOLS["evademl-cifar10"].limits == {}
    limits["CW-L2"] = 1
    assert limited.limits["CW-L2"] == 50


def test_limits_given_replace_those_of_a_protocol():
    protocol = Protocol("p", "", limits={"PGD": 9})
    assert protocol_named(protocol) is protocol
    assert protocol_named(protocol, {"BIM": 3}).limits == {"BIM": 3}
    assert protocol_named(protocol, {}).limits == {}


def test_the_smallest_limit_counts():
    protocol = Protocol("p", "", limits={"PGD": 9, "adaptive": 4, "JPEG": 1})
    assert protocol.limit("gray-box", "PGD") == 9
    assert protocol.limit("adaptive", "PGD") == 4
    assert protocol.limit("adaptive", "PGD", "JPEG") == 1
    assert protocol.limit("gray-box", "BIM", "median") is None


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"CW": 5}, "`limits` must map some of .*'CW-L2'.* Received: limits={'CW': 5}"),
        ({"benign": 5}, "`limits` must map some of"),
        ({"FGSM": -1}, r"`limits\['FGSM'\]` must be a whole number at least 0"),
        ({"FGSM": 0.5}, r"`limits\['FGSM'\]` must be a whole number"),
        ({"FGSM": True}, r"`limits\['FGSM'\]` must be a whole number"),
        ({"quilting": 0}, r"`limits\['quilting'\]` must be a whole number at least 1"),
        ({"feature distillation": 0}, r"must be a whole number at least 1"),
    ],
)
def test_limits_must_be_numbers_of_images_by_family_or_threat_model(limits, message):
    with pytest.raises(ValueError, match=message):
        Protocol("p", "", limits=limits)


def test_an_attacker_averages_over_one_draw_or_more():
    with pytest.raises(ValueError, match="`eot_draws` must be .* eot_draws=0"):
        Protocol("p", "", eot_draws=0)


def test_there_must_be_a_protocol_of_that_name():
    with pytest.raises(ValueError, match="`protocol` must be a Protocol or one of"):
        protocol_named("nips")


# --- runs


@pytest.fixture
def short(monkeypatch):
    """Make attacks short, the parts of AutoAttack included."""
    evasion = pytest.importorskip("art.attacks.evasion", reason="ART is not installed")

    class ShortAutoAttack(evasion.AutoAttack):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            for part in self.attacks:
                part.max_iter = 2
                for restarts in {"nb_restarts", "nb_random_init"} & set(vars(part)):
                    setattr(part, restarts, 1)

    monkeypatch.setattr(evasion, "AutoAttack", ShortAutoAttack)

    def shortened(attacks):
        shorter = {"max_iter": 2, "steps": 2, "iterations": 2, "binary_search_steps": 1}
        return tuple(
            dataclasses.replace(
                attack,
                parameters={
                    name: min(value, shorter[name]) if name in shorter else value
                    for name, value in attack.parameters.items()
                },
            )
            for attack in attacks
        )

    def protocol(name):
        named = PROTOCOLS[name]
        models = ("gray_box", "adaptive", "black_box")
        attacks = {model: shortened(getattr(named, model)) for model in models}
        return dataclasses.replace(named, **attacks)

    return protocol


@pytest.fixture
def linear():
    """A function of the number of classes: a linear model, and images that it gets right."""

    def classifier(classes):
        model = keras.Sequential(
            [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(classes)]
        )
        images = np.random.default_rng(1).uniform(0, 255, (3, 8, 8, 1)).astype(np.float32)
        return model, (images, model.predict(images, verbose=0).argmax(-1))

    return classifier


@pytest.mark.parametrize(
    ("name", "classes"), [*((name, 5) for name in PROTOCOLS), ("autoattack", 3), ("autoattack", 2)]
)
def test_every_protocol_runs(short, linear, tmp_path, capfd, name, classes):
    """AutoAttack used to need a package that no extra has, to crash and to draw endless bars."""
    model, data = linear(classes)
    report = evaluate(model, data, ["none"], short(name), cache_dir=tmp_path)
    made = {row["attack"] for row in report.rows} - {"none"}
    assert made == {attack.name for attack in PROTOCOLS[name].for_classes(classes).attacks}
    assert len(capfd.readouterr().err) < 2000
    without = [attack for attack in made if "without DLR" in attack]
    assert len(without) == (2 if classes == 2 else 0)
    said = report.settings["protocol_description"] + str(report.settings["attacks"])
    assert ("Without APGD on DLR" in said) == ("'dlr': False" in said) == bool(without)


def test_three_classes_leave_nothing_out():
    for protocol in PROTOCOLS.values():
        assert protocol.for_classes(3) is protocol
        assert (protocol.for_classes(2) is protocol) == (protocol.name != "autoattack")
    assert autoattack(8, dlr=False) == autoattack(8).for_classes(2)


def test_a_package_that_autoattack_lacks_is_named_before_anything_is_attacked(
    monkeypatch, linear, tmp_path
):
    pytest.importorskip("art.attacks.evasion", reason="ART is not installed")
    monkeypatch.setitem(sys.modules, "multiprocess", None)
    model, data = linear(3)
    protocol = Protocol("p", "", gray_box=(fgsm(8), autoattack(8)))
    with pytest.raises(ImportError, match=r'multiprocess .*pip install "fd-keras\[evaluate\]"'):
        evaluate(model, data, ["none"], protocol, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_attacks_of_one_threat_model_have_names_of_their_own():
    with pytest.raises(ValueError, match="`gray_box` must hold attacks of different names"):
        Protocol("p", "", gray_box=(bim(4, 1), bim(4, 2)))
    Protocol("p", "", gray_box=(bim(4, 1),), adaptive=(bim(4, 2),))


@pytest.mark.parametrize(("where", "attack"), [("adaptive", square(4)), ("black_box", pgd(4))])
def test_threat_models_hold_attacks_of_their_kind(where, attack):
    """Reports called them what they are not, or failed after all attacks."""
    with pytest.raises(ValueError, match=f"`{where}` must hold attacks that .* put others into"):
        Protocol("p", "", **{where: (attack,)})


def test_a_bound_for_attacks_that_have_none_is_refused():
    with pytest.raises(ValueError, match=r"`epsilon` is the bound .* epsilon=\[4\]"):
        attack_protocol(["deepfool"], [4])
    assert attack_protocol(["deepfool", "pgd"], [4]).gray_box[1].epsilon == 4


def test_two_passes_keep_an_attack_that_has_the_name_of_one_they_add():
    own = pgd(2, 40, step=1)
    assert Protocol("p", "", adaptive=(own,)).for_two_passes().adaptive[0] == own


def test_attacks_beside_a_protocol_change_nothing_else_of_it():
    beside = dataclasses.replace(PROTOCOLS["evademl-imagenet"], eot_draws=20, limits={"BIM": 7})
    found = attack_protocol(["bim", "square"], [8, 8], beside)
    assert (found.eot_draws, found.limits) == (20, {"BIM": 7})
    assert [attack.name for attack in found.gray_box[-2:]] == ["CW-Linf least likely", "BIM 8/255"]
    assert [attack.name for attack in found.black_box] == ["Square-1000 .0078", "Square-1000 8/255"]


def test_an_attack_of_the_same_name_with_other_parameters_is_refused():
    """It used to take the place of the protocol's own."""
    with pytest.raises(ValueError, match="`attack` must not be one that evademl-imagenet has with"):
        attack_protocol(["bim"], [1.02], PROTOCOLS["evademl-imagenet"])
