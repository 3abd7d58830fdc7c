"""What plugin authors test with: a policy of free logits, a bench for one phase, and tests to inherit."""

from rlalign.testing.bench import COMPONENTS, Bench, plain_gradient, registry, run, session
from rlalign.testing.environment_kit import EnvironmentTests
from rlalign.testing.kit import ComponentTests
from rlalign.testing.logits import FreeValue, LinearValue, Logits
from rlalign.testing.losses import PolicyAndValue, PolicyGradient, ValueFit
from rlalign.testing.policy_kit import PolicyTests
from rlalign.testing.reward_kit import RewardTests
from rlalign.testing.sampler_kit import SamplerTests
from rlalign.testing.task_kit import TaskTests
from rlalign.testing.tasks import Length, Numbers, TokenSum
from rlalign.testing.text import Bytes
from rlalign.testing.value_kit import ValueTests

__all__ = [
    "COMPONENTS",
    "Bench",
    "Bytes",
    "ComponentTests",
    "EnvironmentTests",
    "FreeValue",
    "Length",
    "LinearValue",
    "Logits",
    "Numbers",
    "PolicyAndValue",
    "PolicyGradient",
    "PolicyTests",
    "RewardTests",
    "SamplerTests",
    "TaskTests",
    "TokenSum",
    "ValueFit",
    "ValueTests",
    "plain_gradient",
    "registry",
    "run",
    "session",
]
