"""How images and videos are judged."""
