"""What can be wrong with a policy.

    PolicyError                  the object is refused: nothing of it is enforced
    └── UnsupportedPolicyError   well formed, but it uses a field that is not supported yet

Every error carries all problems found, each with the path of its field, so that a user can mend a
file in one go. A refused object never changes what is enforced: an earlier accepted version stays.
"""

from __future__ import annotations

from dataclasses import dataclass

from cilium_core.errors import InvalidError


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a policy object: where, and what to do about it."""

    path: str
    message: str
    unsupported: bool = False
    """The field is understood, but nothing enforces it yet."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class PolicyError(InvalidError):
    """A policy object that is refused."""

    def __init__(self, problems: tuple[Problem, ...], subject: str = "") -> None:
        """`subject` names the object, such as `NetworkPolicy default/web`."""
        self.problems = problems
        self.subject = subject
        text = "; ".join(str(problem) for problem in problems)
        super().__init__(f"{subject}: {text}" if subject else text)


class UnsupportedPolicyError(PolicyError):
    """A policy object that is refused because it uses fields that are not supported yet."""
