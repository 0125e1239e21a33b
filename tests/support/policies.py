"""Policies that tests look over the shoulder of."""


class Watched:
    """A policy with other methods in the place of some; one that is compiled takes no others."""

    def __init__(self, inner, **instead):
        self._inner = inner
        vars(self).update(instead)

    def __getattr__(self, name):
        return getattr(self._inner, name)
