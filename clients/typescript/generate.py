"""Writes `schema.d.ts` and `client.d.ts` from a running service: ``npm install && npm run generate http://127.0.0.1:8080``.

It runs openapi-typescript and the TypeScript compiler, and notes in the first line which document it was, so that a
test without them can say whether it is still the current one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.request import urlopen

HERE = Path(__file__).parent
SCHEMA = HERE / "schema.d.ts"


def digest(document: dict[str, Any]) -> str:
    """Return what identifies a document, whatever release it is of."""
    content = {name: value for name, value in document.items() if name != "info"}
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def main(address: str) -> None:
    """Write both files, from the service at an address."""
    with urlopen(f"{address.rstrip('/')}/openapi.json") as answer:
        document = json.load(answer)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "openapi.json"
        source.write_text(json.dumps(document), encoding="utf-8")
        subprocess.run(["npx", "openapi-typescript", str(source), "-o", str(SCHEMA)], check=True, cwd=HERE)
    SCHEMA.write_text(f"// of the OpenAPI document {digest(document)}\n{SCHEMA.read_text(encoding='utf-8')}")
    subprocess.run(["npx", "tsc", "--project", "tsconfig.build.json"], check=True, cwd=HERE)


if __name__ == "__main__":
    main(sys.argv[1])
