"""Shell completion: a script for each shell, and the names of queues, exchanges and vhosts from the broker.

The scripts are mqtool's own, not typer's: names from a broker may contain anything, so the scripts quote them and never
evaluate them. A script runs mqtool with the line typed so far in _MQTOOL_COMPLETE. mqtool prints one proposal per line,
with its description after a tab. Without proposals, the shell completes file names.

If the broker does not respond within a third of a second (MQTOOL_COMPLETION_TIMEOUT), no names are proposed, and no
error is shown. Names with line breaks or control characters are left out, and those that the command would take for
options, such as a queue that somebody has named --output=FILE.
"""

import os
import re
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import typer

from mqtool.address import TlsFiles
from mqtool.cli import contexts
from mqtool.cli.access import Access
from mqtool.cli.chosen_broker import choose, resolve_addresses
from mqtool.duration import parse_duration
from mqtool.errors import MqtoolError

Shell = Literal["bash", "zsh", "fish"]
_BASH = r"""
_mqtool() {
    local line=${COMP_LINE:0:COMP_POINT} typed before proposal character quote= i=0 start=0
    while (( i < ${#line} )); do
        character=${line:i++:1}
        if [[ -n $quote && $character == "$quote" ]]; then quote=
        elif [[ $character == \\ && $quote != \' ]]; then (( i++ ))
        elif [[ -z $quote && $character == [\'\"] ]]; then quote=$character
        elif [[ -z $quote && $character == [[:space:]] ]]; then start=$i
        fi
    done
    typed=${line:start}
    # bash also splits words at colons and equals signs, and replaces only the part after the last one.
    before=${typed%"${typed##*[$COMP_WORDBREAKS]}"}
    case $before in *[:=]) ;; *) before= ;; esac
    COMPREPLY=()
    while IFS=$'\t' read -r proposal _; do
        [[ -n $proposal ]] || continue
        # Within quotes, bash replaces the part after the quote, and closes the quote unless a quote is at the end.
        [[ -n $quote && $typed == --*=* ]] && proposal=${proposal#*=}
        case $quote in
            \') COMPREPLY+=("$(sed "s/'/'\\\\''/g; s/'$/''/" <<< "$proposal")") ;;
            \") COMPREPLY+=("$(sed 's/[\\$`"]/\\&/g; s/!/"'"'!'"'"/g; s/"$/""/' <<< "$proposal")") ;;
            *) COMPREPLY+=("$(printf '%q' "${proposal#"$before"}")") ;;
        esac
    done < <(_MQTOOL_COMPLETE=$line "$1" 2> /dev/null < /dev/null)
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
    done < <(_MQTOOL_COMPLETE="${(j: :)words[1,CURRENT-1]} $PREFIX" "${words[1]}" 2> /dev/null < /dev/null)
    if (( $#proposals )); then
        compadd -l -d descriptions -a proposals
    else
        _files
    fi
}
if [[ $funcstack[1] == _mqtool ]]; then  # zsh loaded this file from fpath and expects proposals
    _mqtool
else
    compdef _mqtool mqtool
fi
"""

_FISH = r"""
function __mqtool_complete
    set -l words (commandline -opc)
    set -l found (env _MQTOOL_COMPLETE=(commandline -cp | string collect) $words[1] 2> /dev/null < /dev/null \
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


def names_of(kind: str) -> Callable[[typer.Context, str], list[str]]:
    """Return a function that completes names on the broker.

    Args:
        kind: "queues", "exchanges", "vhosts", "users" or "policies".
    """

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        values = dict(ctx.params)
        return _on_broker(values, contexts.use_context_before(ctx, values), kind, incomplete)

    return complete


def _on_broker(values: Mapping[str, Any], typed: Collection[str], kind: str, incomplete: str) -> list[str]:
    """Return the broker's queues, exchanges, vhosts, users or policies whose names start with the text typed so far.

    Args:
        values: the values of the command's options so far.
        typed: the names of the options given on the command line.
    """
    import mqtool.management  # noqa: F401 - import it before the time limit starts

    found: list[str] = []
    asking = threading.Thread(target=lambda: found.extend(_ask(values, typed, kind, incomplete)), daemon=True)
    asking.start()
    asking.join(_patience())
    safe = (name for name in found if name.isprintable() and not name.startswith("-"))
    return [name for name in safe if name.startswith(incomplete) and name]


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
    try:
        choice = choose(values.get("url"), values.get("context"), typed)
        if choice.context and choice.context.password_command and not login.get("password_file"):
            return []  # the command might ask for a password
        access = Access(
            resolve_addresses(choice, **login),
            choice.tls(TlsFiles(values.get("tls_ca"))),
            choice.management(values.get("management") if "management" in typed else None),
        )
        api = access.management((_patience(), _patience()))
        if kind in ("vhosts", "users", "policies"):
            where = path(kind, access.vhost) if kind == "policies" else kind
            return [view["name"] for view in api.items(where, ("name",))]
        where = path(kind, access.vhost)
        query = {"page": "1", "page_size": str(_MOST), "columns": "name"}
        answer = api.get(where, **query, name=f"^{re.escape(incomplete)}", use_regex="true")
        return [view["name"] for view in answer["items"]]
    except MqtoolError:
        return []


def script(shell: Shell) -> str:
    """Return a shell's completion script."""
    return _SCRIPTS[shell].strip()
