"""Templates of pages: what is not ours is text in them, never structure."""

from collections.abc import Callable
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from analysis import canvas, page

TEMPLATES = Path(__file__).parent / "templates"
TEXT_MAX = 600
"""Characters of one value that a page shows."""
# What Markdown would take for structure; HTML is escaped besides.
_MARKDOWN = {ord(character): f"&#{ord(character)};" for character in "|\\`*[]"}


def html_template(name: str) -> jinja2.Template:
    """A template whose values are shown as text in HTML, but for Markup."""
    return _environment(_for_html).get_template(name)


def markdown_template(name: str) -> jinja2.Template:
    """A template whose values are shown as text in Markdown."""
    return _environment(_for_markdown).get_template(name)


def _environment(shown: Callable[[object], object]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, finalize=shown, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(
        seconds=page.seconds, clock=page.clock, percent=page.percent, interval=page.interval, limit=page.limit,
        measured=lambda criterion: page.quantity(criterion.measured, criterion.unit), flattened=page.flattened,
        quantity=page.quantity, brief=page.brief, mebibytes=page.mebibytes, sentence=page.sentence,
        words=lambda text: str(text).replace("_", " "),
        # Nothing is structure in an indented block, and entities would show as such.
        verbatim=lambda text: Markup(canvas.clean(text, TEXT_MAX)),
    )  # fmt: skip
    return environment


def _for_html(value: object) -> object:
    return value if isinstance(value, Markup) else canvas.clean(value, TEXT_MAX)


def _for_markdown(value: object) -> Markup:
    return Markup(str(escape(canvas.clean(value, TEXT_MAX))).replace("&#39;", "'").translate(_MARKDOWN))
