"""A module that fails to import."""

from no_such_library import Reward  # noqa: F401  # type: ignore
