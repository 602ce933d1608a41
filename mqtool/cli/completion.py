"""Completion in the shells: their scripts, and names from the broker.

typer has scripts too, and PowerShell gets typer's. Ours differ because names come from a broker, where anybody may have
chosen them: nothing that is completed is ever evaluated, each name is quoted as the shell needs it, and one with a
colon or a space stays whole. They ask as typer's fish script does: one proposal per line, a tab between it and its
description; an empty line if there are none, and then the shell proposes files.

Somebody waits at the Tab key: after a third of a second (MQTOOL_COMPLETION_TIMEOUT), or without a broker, there are no
names, and no error either. Names that a shell cannot show on one line are left out.
"""

import os
import re
import threading
from collections.abc import Collection, Mapping
from typing import Any, Literal

from mqtool.amqp import TlsFiles
from mqtool.cli.access import MANAGEMENT_VARIABLE, Access, choose, resolve_addresses
from mqtool.duration import parse_duration
from mqtool.errors import MqtoolError

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

_PATIENCE = 0.3
_MOST = 200


def on_broker(values: Mapping[str, Any], typed: Collection[str], kind: str, incomplete: str) -> list[str]:
    """The "queues", "exchanges" or "vhosts" whose names start with what was typed so far.

    Args:
        values, typed: the command's options so far, and the names of those that were typed.
    """
    import requests  # noqa: F401 - the clock starts after it

    found: list[str] = []
    asking = threading.Thread(target=lambda: found.extend(_ask(values, typed, kind, incomplete)), daemon=True)
    asking.start()
    asking.join(_patience())
    return [name for name in found if name.isprintable() and name.startswith(incomplete) and name]


def _patience() -> float:
    try:
        return parse_duration(os.environ["MQTOOL_COMPLETION_TIMEOUT"])
    except (KeyError, ValueError):
        return _PATIENCE


def _ask(values: Mapping[str, Any], typed: Collection[str], kind: str, incomplete: str) -> list[str]:
    from mqtool.management import path

    login = {name: values.get(name) for name in ("user", "vhost", "password_file")}
    if str(login["password_file"]) == "-":
        del login["password_file"]
    # Commands that do not use the management API have no option for it, but the environment may say where it is.
    url = values.get("management") or os.environ.get(MANAGEMENT_VARIABLE)
    try:
        choice = choose(values.get("url"), values.get("context"), typed)
        if choice.context and choice.context.password_command and not login.get("password_file"):
            return []  # nobody types a password at the Tab key
        access = Access(
            resolve_addresses(choice, **login),
            choice.tls(TlsFiles(values.get("tls_ca"))),
            choice.management(url, is_typed="management" in typed),
        )
        api = access.management((_patience(), _patience()))
        if kind == "vhosts":
            return [view["name"] for view in api.get(kind, columns="name")]
        where = path(kind, access.vhost)
        query = {"page": "1", "page_size": str(_MOST), "columns": "name"}
        answer = api.get(where, **query, name=f"^{re.escape(incomplete)}", use_regex="true")
        return [view["name"] for view in answer["items"]]
    except MqtoolError:
        return []


def script(shell: Shell) -> str:
    """The completion script of a shell."""
    if shell in _SCRIPTS:
        return _SCRIPTS[shell].strip()

    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # it stands there, unlisted

    return get_completion_script(prog_name="mqtool", complete_var="_MQTOOL_COMPLETE", shell=shell)
