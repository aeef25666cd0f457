"""ministack's own entry point, with two of its ways mended that no template could work around. Run as a program.

- An update of a nested stack forgets the attributes of every resource that it leaves as it is, so that the next
  Fn::GetAtt fails: 1.5.33 passes them on for the stack itself (`old_attrs`) and not for its nested ones.
- With TLS it also listens on port 443, which may be somebody's.
"""

from __future__ import annotations

import importlib
from typing import Any


def keep_attributes(provisioners: Any, stacks: dict[str, Any]) -> None:
    """Let an update that changes nothing answer with the attributes that the resource had."""
    update = provisioners._update_resource

    def keeping(*given: Any, **named: Any) -> Any:
        # Kind, physical id, old and new properties, name of the stack, logical id; a stack itself also gives old_attrs.
        if len(given) == 6 and "old_attrs" not in named:
            resources = stacks.get(given[4], {}).get("_resources", {})
            named["old_attrs"] = resources.get(given[5], {}).get("Attributes")
        return update(*given, **named)

    provisioners._update_resource = keeping


def main() -> None:
    """Run ministack in the foreground, configured by the environment as ever."""
    cloudformation = importlib.import_module("ministack.services.cloudformation")
    keep_attributes(importlib.import_module("ministack.services.cloudformation.provisioners"), cloudformation._stacks)
    app = importlib.import_module("ministack.app")
    app._port_is_bindable = lambda *_: False
    app.main()


if __name__ == "__main__":
    main()
