"""Makes a plot part of a page: unique ids, the page's fonts and colours, nothing that is not drawn.

It knows SVG as matplotlib writes it; it does not know what is plotted. The input is always our own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from xml.etree import ElementTree

__all__ = ["inline"]

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_LONG = re.compile(r"-?\d+\.\d{2,}")
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_FONT = re.compile(r"font-family:[^;]*;?\s*")


def inline(source: str, prefix: str, title: str, colours: Mapping[str, str]) -> str:
    """The plot as an element for a page.

    Args:
        source: what matplotlib wrote.
        prefix: begins every id, so that plots on one page do not mix.
        title: what the plot shows, for those who do not see it.
        colours: each colour of the plot, such as ``#010203``, and what the page's style sheet calls it.
    """
    root = ElementTree.fromstring(source)
    used = {element.get(_HREF, "")[1:] for element in root.iter()} | set(re.findall(r"url\(#(\w+)\)", source))
    for element in root.iter():
        _tidy(element, prefix, used, colours)
    _flatten(root)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", title)
    ElementTree.register_namespace("", _SVG)
    text = ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)
    return (
        re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("ns1:href", "href").replace("xlink:href", "href")
    )


def _tidy(element: ElementTree.Element, prefix: str, used: Set[str], colours: Mapping[str, str]) -> None:
    if (own := element.attrib.pop("id", None)) is not None and own in used:
        element.set("id", f"{prefix}-{own}")
    for name, value in list(element.attrib.items()):
        if name == _HREF:
            element.set(name, f"#{prefix}-{value[1:]}")
        elif name == "style":
            value = _COLOUR.sub(lambda found: colours.get(found[0], found[0]), _FONT.sub("", value))
            element.set(name, " ".join(value.split()))
        elif name == "clip-path":
            element.set(name, re.sub(r"url\(#(\w+)\)", rf"url(#{prefix}-\1)", value))
        elif name in ("d", "x", "y", "transform", "points"):
            element.set(name, _LONG.sub(lambda found: f"{float(found[0]):.1f}", " ".join(value.split())))
    if element.get("transform", "").startswith("rotate(-0"):
        del element.attrib["transform"]
    if element.tag != f"{{{_SVG}}}text":
        element.text = None
    element.tail = None


def _flatten(parent: ElementTree.Element) -> None:
    """Leave out style sheets, metadata, empty groups and groups that say nothing."""
    kept: list[ElementTree.Element] = []
    for child in parent:
        _flatten(child)
        name = child.tag.removeprefix(f"{{{_SVG}}}")
        if name in ("style", "metadata") or (name in ("g", "defs") and not len(child)):
            continue
        kept += list(child) if name == "g" and not child.attrib else [child]
    parent[:] = kept
