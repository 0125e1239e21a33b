"""Block managers of both tiers."""
