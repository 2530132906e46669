"""Trained networks that come along, imported as `vimlearn.weights`. README.md is their model card."""
