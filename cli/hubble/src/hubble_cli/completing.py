"""Completion of command lines in bash, zsh and fish.

The scripts only hand the words to `hubble __complete`, so that they never go stale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubble_cli.arguments import flags_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubble_cli.arguments import Command, Flag

_BASH = """\
_hubble() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <(hubble __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _hubble hubble
"""
_ZSH = """\
#compdef hubble
_hubble() {
    local -a found
    found=("${(@f)$(hubble __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    compadd -a found
}
compdef _hubble hubble
"""
_FISH = """\
function __hubble_complete
    set -l words (commandline -opc) (commandline -ct)
    hubble __complete -- $words[2..-1] 2>/dev/null
end
complete -c hubble -f -a '(__hubble_complete)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
"""Completion script by shell."""


def candidates(root: Command, words: Sequence[str]) -> list[str]:
    """What the last word may become, given the words before it."""
    *before, last = words or [""]
    path = [root]
    pending: Flag | None = None
    for word in before:
        if pending is not None:
            pending = None
        elif word.startswith("-"):
            pending = _waiting(word, flags_of(path))
        elif (found := path[-1].find(word)) is not None:
            path.append(found)
    flags = flags_of(path)
    if pending is not None:
        options: list[str] = list(pending.choices)
    elif last.startswith("--") and "=" in last:
        name, _, _ = last.partition("=")
        known = next((flag for flag in flags if f"--{flag.name}" == name), None)
        options = [f"{name}={choice}" for choice in known.choices] if known else []
    elif last.startswith("-"):
        options = [f"--{flag.name}" for flag in flags]
    else:
        options = [command.name for command in path[-1].commands if not command.hidden]
    return sorted(option for option in options if option.startswith(last))


def _waiting(word: str, flags: list[Flag]) -> Flag | None:
    """The flag that takes the word after this one as its value."""
    if "=" in word:
        return None
    if word.startswith("--"):
        found = next((flag for flag in flags if flag.name == word[2:]), None)
    else:
        found = next((flag for flag in flags if flag.short and flag.short == word[-1]), None)
    return found if found is not None and found.implied is None else None
