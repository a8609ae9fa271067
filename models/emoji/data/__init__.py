"""Training data: the Fluent Emoji images and animations (MIT licence), their names, and scenes composed of them."""
