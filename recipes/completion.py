"""Shell completion for every command, key and config group.

eval "$(dptrain completion bash)"
"""

from __future__ import annotations

import dataclasses
import sys

from dptrain.cli import COMMANDS, guarded, recipe
from dptrain.errors import ConfigError, suggest

OTHERS = {"budget", "data", "configs", "completion"}
"""Commands that take a verb, or a word, instead of settings that Hydra composes."""

# Hydra completes a line "app key=va"; the command word is taken out before it is asked.
BASH = """_dptrain() {
    local words=( "${COMP_WORDS[@]}" ) current="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}"
    COMPREPLY=()
    if [ "$COMP_CWORD" -le 1 ]; then
        COMPREPLY=( $(compgen -W "@COMMANDS@" -- "$current") )
        return
    fi
    case "$command" in
        @COMPOSED@)
            local line="${COMP_LINE:0:COMP_POINT}"
            line="${line#* }"
            COMPREPLY=( $(COMP_LINE="dptrain ${line#* }" dptrain "$command" -sc query=bash 2>/dev/null) )
            [[ ${#COMPREPLY[@]} -gt 0 ]] && compopt -o nospace ;;
        budget)
            if [ "$COMP_CWORD" -le 2 ]; then
                COMPREPLY=( $(compgen -W "@VERBS@" -- "$current") )
            elif [[ "$current" != *=* ]]; then
                COMPREPLY=( $(compgen -S = -W "@BUDGET_KEYS@" -- "$current") )
                compopt -o nospace
            fi ;;
        data)
            if [ "$COMP_CWORD" -le 2 ]; then
                COMPREPLY=( $(compgen -W "@DATA_VERBS@" -- "$current") )
            elif [[ "$current" != *=* ]]; then
                COMPREPLY=( $(compgen -S = -W "@DATA_KEYS@" -- "$current") )
                compopt -o nospace
            fi ;;
        configs) COMPREPLY=( $(compgen -W "list copy" -- "$current") ) ;;
    esac
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -F _dptrain dptrain
"""


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain completion``."""
    shell = arguments[0] if arguments else "bash"
    if shell in ("-h", "--help"):
        print(__doc__)
        return
    if shell != "bash":
        raise ConfigError("completion", shell, "is not a shell that is known here", suggest(shell, ["bash"]))
    print(script())


def script() -> str:
    """The shell function, with every command, verb and key in it."""
    from dptrain.config_budget import BudgetConfig
    from dptrain.config_gate import QuarantineConfig

    known = {
        "@COMMANDS@": " ".join(COMMANDS),
        "@COMPOSED@": "|".join(sorted(set(COMMANDS) - OTHERS)),
        "@VERBS@": " ".join(recipe("budget").VERBS),
        "@DATA_VERBS@": " ".join(recipe("data").VERBS),
        "@DATA_KEYS@": " ".join(field.name for field in dataclasses.fields(QuarantineConfig)),
        "@BUDGET_KEYS@": " ".join(field.name for field in dataclasses.fields(BudgetConfig)),
    }
    text = BASH
    for name, value in known.items():
        text = text.replace(name, value)
    return text


if __name__ == "__main__":
    sys.exit(guarded("completion", sys.argv[1:]))
