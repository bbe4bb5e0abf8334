"""What TensorBoard shows beyond plain curves: pictures, histograms and an arrangement of the curves."""
