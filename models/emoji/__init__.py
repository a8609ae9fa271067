"""The small trained models: data, training, weights and sampling."""
