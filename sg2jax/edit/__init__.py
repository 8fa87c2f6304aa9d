"""Editing: what is done with the latents of a trained network."""
