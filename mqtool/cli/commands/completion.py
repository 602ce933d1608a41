"""mqtool completion: scripts for the shells, which ask mqtool itself what may come next.

typer has such scripts too, and PowerShell gets typer's. Ours differ in that names come from a broker, where others have
made them up: nothing of what is completed is ever evaluated, each name is quoted as the shell needs it, and one with a
colon or a space stays whole. They ask as typer's fish script does: one proposal per line, a tab between it and its
description; an empty line where there is none. Then the shell proposes files.
"""

from typing import Annotated, Literal

from typer import Argument

from mqtool.cli.display import output
from mqtool.cli.groups import Commands

app = Commands()

Shell = Literal["bash", "zsh", "fish", "powershell"]
_BASH = r"""
_mqtool() {
    local line=${COMP_LINE:0:COMP_POINT} typed before proposal
    typed=${line##*[[:space:]]}
    # bash splits words at colons and equals signs as well; it wants to hear only what comes after the last one.
    before=${typed%"${typed##*[$COMP_WORDBREAKS]}"}
    case $before in *[:=]) ;; *) before= ;; esac
    COMPREPLY=()
    while IFS=$'\t' read -r proposal _; do
        [[ -n $proposal ]] || continue
        proposal=${proposal#"$before"}
        case $typed in
            [\"\']*) COMPREPLY+=("$proposal") ;;
            *) COMPREPLY+=("$(printf '%q' "$proposal")") ;;
        esac
    done < <(_MQTOOL_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \
        _TYPER_COMPLETE_ARGS=$line "$1" 2> /dev/null < /dev/null)
}
complete -o default -F _mqtool mqtool
"""

_ZSH = r"""
#compdef mqtool
_mqtool() {
    local line proposal description
    local -a proposals descriptions
    while IFS= read -r line; do
        [[ -n $line ]] || continue
        proposal=${line%%$'\t'*}
        description=${line#*$'\t'}
        proposals+=("$proposal")
        if [[ $description == "$line" ]]; then
            descriptions+=("$proposal")
        else
            descriptions+=("$proposal  -- $description")
        fi
    done < <(_MQTOOL_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \
        _TYPER_COMPLETE_ARGS="${(j: :)words[1,CURRENT-1]} $PREFIX" "${words[1]}" 2> /dev/null < /dev/null)
    if (( $#proposals )); then
        compadd -l -d descriptions -a proposals
    else
        _files
    fi
}
if [[ $funcstack[1] == _mqtool ]]; then  # zsh has loaded it as a file of its fpath, and wants its answer
    _mqtool
else
    compdef _mqtool mqtool
fi
"""

_FISH = r"""
function __mqtool_complete
    set -l words (commandline -opc)
    set -l found (env _MQTOOL_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \
        _TYPER_COMPLETE_ARGS=(commandline -cp | string collect) $words[1] 2> /dev/null < /dev/null \
        | string match -r '.+')
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete --command mqtool --no-files --arguments '(__mqtool_complete)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def _script(shell: Shell) -> str:
    if shell in _SCRIPTS:
        return _SCRIPTS[shell].strip()
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # it stands there, unlisted

    return get_completion_script(prog_name="mqtool", complete_var="_MQTOOL_COMPLETE", shell=shell)


@app.command('eval "$(mqtool completion bash)"', "mqtool completion fish > ~/.config/fish/completions/mqtool.fish")
def completion(shell: Annotated[Shell, Argument(help="Your shell")]) -> None:
    """Print the completion script for your shell.

    Put it in ~/.bashrc, or in ~/.zshrc after compinit: eval "$(mqtool completion bash)", or zsh. It completes
    commands, options, and the names of queues and exchanges on the broker.
    """
    output.show(_script(shell))
