"""Named protocols."""

import hashlib
import json

from fd_keras.evaluation import PROTOCOLS


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
