"""Quality figures: features of images and the numbers made of them."""
