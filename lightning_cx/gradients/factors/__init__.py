"""Per-example gradients of one parameter, held as the factors that autograd has anyway."""
