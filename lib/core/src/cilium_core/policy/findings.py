"""What there is to say about an object beside its rules."""

from __future__ import annotations

from dataclasses import dataclass, field

from cilium_core.policy.errors import Problem


@dataclass(slots=True)
class Findings:
    """Problems, which make the object void, and warnings, each beginning with its path."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def problem(self, path: str, message: str) -> None:
        """Note what is wrong."""
        self.problems.append(Problem(path, message))

    def unsupported(self, path: str, message: str) -> None:
        """Note what is well formed and cannot be enforced here, and why."""
        self.problems.append(Problem(path, message, unsupported=True))

    def warn(self, path: str, message: str) -> None:
        """Note what the user should know of a field that is accepted."""
        self.warnings.append(f"{path}: {message}")
