"""One small rule per autograd node: how its parameters' per-example gradients follow from what autograd holds.

A rule runs twice removed from the user's backward. When a tap attaches, the rule checks that it can read the node
and returns a capture; when the backward reaches the node, the capture turns the gradient of the node's output into
a `Use`. To teach the tap a new node, write one rule in the module of its kind and decorate it with the node's name.
"""

from lightning_cx.gradients.rules import convolution, elementwise, embedding, linear, normalisation, recurrent
from lightning_cx.gradients.rules.registry import COUPLING, RULES, Capture, Joint, Rule, Site, plan, rule

__all__ = [
    "COUPLING",
    "RULES",
    "Capture",
    "Joint",
    "Rule",
    "Site",
    "convolution",
    "elementwise",
    "embedding",
    "linear",
    "normalisation",
    "plan",
    "recurrent",
    "rule",
]
