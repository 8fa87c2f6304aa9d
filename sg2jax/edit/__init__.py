"""Editing: what is done with a trained network's latents: projection, attribution and
directions."""
