"""What our logger warns of, as Python's warnings: so that a test fails on what it does not expect."""

from __future__ import annotations

import logging
import warnings


class AsWarning(logging.Handler):
    """Turns what the logger `lightning_cx` warns of into a warning."""

    def emit(self, record: logging.LogRecord) -> None:
        warnings.warn(record.getMessage(), stacklevel=2)


def listen() -> logging.Handler:
    """Begin to turn; returns what `logging.Logger.removeHandler` takes."""
    logger, handler = logging.getLogger("lightning_cx"), AsWarning(logging.WARNING)
    for old in [one for one in logger.handlers if isinstance(one, AsWarning)]:
        logger.removeHandler(old)  # once is enough where one process runs several fits
    logger.addHandler(handler)
    return handler
