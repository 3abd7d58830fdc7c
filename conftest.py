"""For all tests of the repository."""

import os

from hypothesis import settings

# Before torch is there: idle threads sleep. Those that spin crawl where tests, or other work, share the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# How long an example takes says how busy the machine is.
settings.register_profile("here", deadline=None)
settings.load_profile("here")
