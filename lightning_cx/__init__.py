"""See what a network is learning while it trains, from one Lightning callback."""

from importlib.metadata import version

__version__ = version("lightning_cx")

__all__ = ["__version__"]
