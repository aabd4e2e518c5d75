"""Bone suppression after BS-LDM: a vector-quantised autoencoder and diffusion in its latent space."""
