"""Models: the roles and the engines that fill them."""
