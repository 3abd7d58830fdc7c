"""Calls of hooks, through pluggy; whatever goes wrong inside names the component."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import pluggy
import torch

from rlalign.errors import ComponentError, ConfigError, RankLost, RanksDisagree, RLAlignError, describe_error
from rlalign.interface import hooks
from rlalign.running.members import HOOKS, Member, culprit, once, who


class Calls:
    """The components of one phase, each ready to be called."""

    def __init__(self, members: Sequence[Member], stage: str) -> None:
        self.members = tuple(members)
        self.stage = stage
        self._hooks = {id(m.component): _hooks_of(m) for m in once(self.members)}

    def __call__(self, member: Member, hook: str, **arguments: Any) -> Any:
        """What one component's hook answers."""
        arguments["run"] = member.sees(arguments["run"])
        with self.watching(hook, member, arguments):
            result = getattr(self._hooks[id(member.component)], hook)(**arguments)
        # A hook that is not `firstresult` answers with a list, here of one component's result.
        return (result[0] if result else None) if isinstance(result, list) else result

    @contextmanager
    def watching(self, hook: str, member: Member, arguments: Mapping[str, Any]) -> Iterator[None]:
        """One component's hook is called: it must leave all else as it was, and is named if it does not."""
        untouched = arguments["run"].untouched
        with self.naming(hook, member), untouched.hook(hook, member.name, self.stage, arguments):
            yield

    @contextmanager
    def naming(self, hook: str, member: Member | None = None) -> Iterator[None]:
        """Name the component in whatever goes wrong inside, unless the error names one itself."""
        try:
            yield
        except (torch.OutOfMemoryError, RankLost, RanksDisagree):
            raise
        except RLAlignError as error:
            guilty = culprit(error, self.members) or member
            if guilty is None or any(f"`{m.name}`" in str(error) for m in self.members):
                raise
            raise type(error)(f"`{hook}` of {who(guilty)}: {error}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: the run is not finished
            guilty = culprit(error, self.members) or member
            whose = who(guilty)
            raise ComponentError(f"`{hook}` of {whose} raised {describe_error(error)}") from error


class _Manager(pluggy.PluginManager):
    """It looks at every attribute of a component, which takes long; no hook has a name as `__init__`."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        return None if name.startswith("__") else super().parse_hookimpl_opts(plugin, name)


def _hooks_of(member: Member) -> Any:
    manager = _Manager("rlalign")
    manager.add_hookspecs(hooks)
    try:
        manager.register(member.component, member.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise ConfigError(_refusal(member, str(error))) from error
    return manager.hook


def _refusal(member: Member, said: str) -> str:
    if "unknown hook" not in said:
        return f"{who(member)} cannot take part: {'; '.join(said.splitlines())}"
    name = said.split("'")[1]
    close = get_close_matches(name, HOOKS, 1)
    hint = f"did you mean `{close[0]}`?" if close else f"the hooks are {', '.join(HOOKS)}"
    return f"{who(member)} marks `{name}` as a hook, and there is none; {hint}"
