"""Model families: full-size public configurations and the inputs that pipelines give them."""
