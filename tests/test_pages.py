"""Pages show what they are given as text, and are written whole or not at all."""

import html.parser

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("jinja2", reason="Jinja2 is not installed")

import jinja2

from fd_keras._pages import environment, render_page


class Elements(html.parser.HTMLParser):
    """Tags with attributes, and text."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, *attributes))

    def handle_data(self, data):
        self.text += data


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30))
def test_fields_are_text_in_elements_and_attributes(value):
    template = environment().from_string('<b title="{{ value }}">{{ value }}</b>')
    page = Elements(template.render(value=value))
    assert page.tags == [("b", ("title", value))]
    assert page.text == value


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    target, template = tmp_path / "page.html", tmp_path / "page.html.j2"
    template.write_text(
        "{% extends 'base.html.j2' %}{% block title %}{{ name }}{% endblock %}", encoding="utf-8"
    )
    render_page(target, template, name="A & B")
    page = target.read_text(encoding="utf-8")
    assert page.count("A &amp; B") == 2  # the title and the heading
    with pytest.raises(jinja2.UndefinedError, match="'name' is undefined"):
        render_page(target, template)
    assert target.read_text(encoding="utf-8") == page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "page.html.j2"]


def test_there_must_be_such_a_template(tmp_path):
    with pytest.raises(jinja2.TemplateNotFound, match="missing.html.j2"):
        render_page(tmp_path / "page.html", "missing.html.j2")
