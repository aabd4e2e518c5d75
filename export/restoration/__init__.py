"""Restoration of degraded chest radiographs by conditional diffusion in pixel space."""
