"""The version, for the package and for its distribution alike; readable without an installation."""

__version__ = "0.1.0"
