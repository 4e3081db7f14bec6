"""Which epoch is the best one."""

import pytest

from fd_keras.hardening.record import rank


def ranked(benign, adaptive, allowed):
    return rank({"val_benign_accuracy": benign, "val_adaptive_accuracy": adaptive}, allowed)


def test_epochs_within_the_benign_loss_come_first():
    figures = [(0.80, 0.9), (0.95, 0.3), (0.91, 0.5), (0.90, 0.4)]
    ranks = [ranked(benign, adaptive, 0.9) for benign, adaptive in figures]
    assert sorted(range(4), key=ranks.__getitem__) == [0, 1, 3, 2]
    assert rank({"val_benign_accuracy": 0.9}, 0.9)[:2] == (True, 0.9)


@pytest.mark.parametrize("allowed", [0.8, 0.9])
def test_of_equal_epochs_the_other_accuracy_decides(allowed):
    assert ranked(0.85, 0.5, allowed) > ranked(0.85, 0.4, allowed)
    assert ranked(0.86, 0.4, allowed) > ranked(0.85, 0.4, allowed)
