"""The graph of a loss: what is known of each node, the one walk, the axis of examples, summands, weights."""
