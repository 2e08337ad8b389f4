"""Turns satellite archives into sharpened, trustworthy imagery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pancrafter.arrays import sharpen

__all__ = ["sharpen"]


def __getattr__(name: str) -> Any:  # Any: what a module holds
    """``sharpen`` is loaded when first used: xarray, Dask and torch come with it."""
    if name in __all__:
        from pancrafter import arrays

        return getattr(arrays, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
