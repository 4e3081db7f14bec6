"""A trained classifier and a small search, for all tests of this folder."""

import pytest
import searches


@pytest.fixture(scope="session")
def digits():
    """A classifier of digits, and images for it."""
    return searches.digits_and_classifier()


@pytest.fixture
def search(digits):
    """``searches.search`` on the digits."""
    return lambda directory, **settings: searches.search(*digits, directory, **settings)
