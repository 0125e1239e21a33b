"""Model families, weights and layers."""
