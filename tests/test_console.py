"""Text tables."""

from fd_keras._console import text_table


def test_a_text_table_is_text_in_a_notebook_too(monkeypatch):
    """In Jupyter, rich displays what it is told to print, and the text was empty."""
    expected = text_table(["attack", "kept"], [["FGSM", "93.0"]])
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert text_table(["attack", "kept"], [["FGSM", "93.0"]]) == expected != ""
