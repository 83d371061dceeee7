"""Configurations that work, as TOML files to run, read and copy."""

from __future__ import annotations

from importlib.resources import files

__all__ = ["names", "text"]


def names() -> list[str]:
    """Names of the recipes, without their ending."""
    return sorted(f.name.removesuffix(".toml") for f in files(__name__).iterdir() if f.name.endswith(".toml"))


def text(name: str) -> str:
    """The TOML of one recipe."""
    return (files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
