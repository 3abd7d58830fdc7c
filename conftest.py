"""For all tests of the repository."""

from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("here", deadline=None)
settings.load_profile("here")
