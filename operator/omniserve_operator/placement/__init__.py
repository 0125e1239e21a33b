"""Which device serves which service, and why. Pure."""
