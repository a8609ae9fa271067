"""Training data: the Fluent Emoji pictures and animations (MIT licence), their names, and scenes composed of them."""
