"""One HTML file out of a template and what stands on it; strangers' text is escaped and made plain to see.

It knows jinja2; it does not know what a page is about. Every page asks for nothing from outside.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from softprompt.harmless import visible
from softprompt.packages import require

__all__ = ["Trusted", "fill", "part"]


class Trusted(str):
    """Markup of our own, which a template takes as it is: a drawing, a style sheet, a script."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def fill(package: str, template: str, **content: Any) -> str:
    """The template, a file of ``package``, with its content. What it names and does not get is an error.

    Raises:
        ResourceError: jinja2 is not installed.
    """
    require("an HTML page")
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(lambda name: part(package, name)),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)


def part(package: str, name: str) -> Trusted:
    """A file that lies beside the modules of ``package``."""
    return Trusted(files(package).joinpath(name).read_text(encoding="utf-8"))
