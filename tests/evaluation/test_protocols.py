"""Protocols and their limits."""

import hashlib
import json

import pytest

from fd_keras.evaluation import PROTOCOLS, Protocol, protocol_named


def test_attacks_are_those_of_earlier_versions():
    """Caches and reports hold these dictionaries; figures of other attacks cannot be compared."""
    attacks = {
        name: {
            model: [attack.to_dict() for attack in getattr(protocol, model)]
            for model in ("gray_box", "adaptive", "black_box")
        }
        for name, protocol in PROTOCOLS.items()
    }
    digest = hashlib.sha256(json.dumps(attacks, sort_keys=True).encode()).hexdigest()
    assert digest == "567e6bc9f9a7f39592bd88acfd41da13fa89286dcdf23802f725aa574ce9e810"


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
    protocol = Protocol("p", "", limits={"PGD": 9, "adaptive": 4, "JPEG": 0})
    assert protocol.limit("gray-box", "PGD") == 9
    assert protocol.limit("adaptive", "PGD") == 4
    assert protocol.limit("adaptive", "PGD", "JPEG") == 0
    assert protocol.limit("gray-box", "BIM", "median") is None


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"CW": 5}, "`limits` must map some of .*'CW-L2'.* Received: limits={'CW': 5}"),
        ({"benign": 5}, "`limits` must map some of"),
        ({"FGSM": -1}, r"`limits\['FGSM'\]` must be a whole number at least 0"),
        ({"FGSM": 0.5}, r"`limits\['FGSM'\]` must be a whole number"),
        ({"FGSM": True}, r"`limits\['FGSM'\]` must be a whole number"),
    ],
)
def test_limits_must_be_numbers_of_images_by_family_or_threat_model(limits, message):
    with pytest.raises(ValueError, match=message):
        Protocol("p", "", limits=limits)


def test_there_must_be_a_protocol_of_that_name():
    with pytest.raises(ValueError, match="`protocol` must be a Protocol or one of"):
        protocol_named("nips")
