"""sg2jax: StyleGAN2 (Karras et al. 2020, arXiv 1912.04958) for JAX: training, evaluation, use."""

__version__ = '0.1.0'
