"""An MCP server over standard input and output, started as a program; its arguments say what it serves and how it fails."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from faulty_server import ToolError, huge_node, reply_to

NODES = {"a": "Text of a.", "b": "Text of b."}


def _read_graph(_: dict[str, Any]) -> Any:
    return {"entities": [{"name": key, "observations": [text]} for key, text in NODES.items()]}


def _environment(_: dict[str, Any]) -> Any:
    return {"entities": [{"name": name, "observations": [value]} for name, value in os.environ.items()]}


def _fail(_: dict[str, Any]) -> Any:
    raise ToolError("no luck " + " ".join(os.environ.get(name, "") for name in sys.argv[2:]))


def _endless(arguments: dict[str, Any]) -> Any:
    return {"nodes": [{"key": "a"}], "next_cursor": str(int(arguments.get("cursor", 0)) + 1)}


TOOLS = {"read_graph": _read_graph, "environment": _environment, "fail": _fail, "list_nodes": _endless}


def answer(message: dict[str, Any], fault: str) -> None:
    label = message["params"]["name"] if message["method"] == "tools/call" else message["method"]
    if "id" not in message:
        return
    if fault == f"hang at {label}":
        sys.stdin.read()  # until the client is gone
    elif fault == f"exit at {label}":
        print(
            "first words",
            "no more memory " + " ".join(os.environ.get(name, "") for name in sys.argv[2:]),
            sep="\n",
            file=sys.stderr,
        )
        sys.exit(3)
    elif fault == f"garbage at {label}":
        print("<html>no luck</html>", flush=True)
    elif fault == f"huge at {label}":
        content = {"entities": [{"name": "big", "observations": ["…"]}]}
        whole = {"jsonrpc": "2.0", "id": message["id"], "result": {"content": [], "structuredContent": content}}
        before, after = json.dumps(whole, ensure_ascii=False).split("…")
        for part in huge_node(before, after + "\n"):
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
    else:
        print(json.dumps(reply_to(message, TOOLS, "structured")), flush=True)


if __name__ == "__main__":
    for line in sys.stdin:
        answer(json.loads(line), sys.argv[1] if len(sys.argv) > 1 else "")
