"""Shell completion for every command, key and config group.

eval "$(dptrain completion bash)"
"""

from __future__ import annotations

import sys

from dptrain.cli import COMMANDS, guarded
from dptrain.errors import ConfigError, suggest

# Hydra completes a line "app key=va"; the command word is taken out before it is asked.
BASH = """_dptrain() {
    local words=( "${COMP_WORDS[@]}" ) current="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}"
    COMPREPLY=()
    if [ "$COMP_CWORD" -le 1 ]; then
        COMPREPLY=( $(compgen -W "@COMMANDS@" -- "$current") )
        return
    fi
    case "$command" in
        train|plan|audit|report)
            local line="${COMP_LINE:0:COMP_POINT}"
            line="${line#* }"
            COMPREPLY=( $(COMP_LINE="dptrain ${line#* }" dptrain "$command" -sc query=bash 2>/dev/null) )
            [[ ${#COMPREPLY[@]} -gt 0 ]] && compopt -o nospace ;;
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
    print(BASH.replace("@COMMANDS@", " ".join(COMMANDS)))


if __name__ == "__main__":
    sys.exit(guarded("completion", sys.argv[1:]))
