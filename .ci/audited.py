"""Print the findings of pip-audit from its JSON file. Exits with 1 if a library has a known vulnerability."""

import json
import sys
from pathlib import Path


def main() -> None:
    try:
        libraries = json.loads(Path(sys.argv[1]).read_text())["dependencies"]
    except (OSError, ValueError):
        print("warning: nothing was audited: no vulnerability service answered in time", file=sys.stderr)
        return
    skipped = [each["name"] for each in libraries if "skip_reason" in each]
    if skipped:
        print(f"warning: not audited, because the index did not answer: {', '.join(sorted(skipped))}", file=sys.stderr)
    found = [
        f"{each['name']} {each['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no version'}"
        for each in libraries
        for flaw in each.get("vulns", ())
    ]
    audited = len(libraries) - len(skipped)
    print("\n".join([*found, f"audited: {audited}; vulnerable: {len({each.split()[0] for each in found})}"]))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
