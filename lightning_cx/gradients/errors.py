"""What the gradient room says when it cannot read a model."""


class UnsupportedGradientError(RuntimeError):
    """Per-example gradients of this model cannot be read; the message names the node and the parameter."""

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(f"unsupported: {what}" + (f" ({advice})" if advice else ""))


class AmbiguousLayoutError(UnsupportedGradientError):
    """Two axes are as long as the batch, and shapes alone cannot tell which of them holds the examples."""


class UnreachedError(UnsupportedGradientError):
    """The loss depends on none of the parameters, as far as its graph shows."""


class InseparableError(UnsupportedGradientError):
    """The batch cannot be split into examples, so there is nothing to compare with and nothing to replay."""
