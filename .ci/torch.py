"""Install torch for the tests, if there is a build of it for the CPU.

A build for CUDA needs gigabytes of libraries that the tests have no use for, and which build a
machine gets depends on its Python and on the indexes that its pip is told to search. So pip is
asked first, without a download, and a build for CUDA is left out: `make test` then names the test
modules that it leaves out.
"""

import json
import platform
import re
import subprocess
import sys

PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]


def main(requirement: str) -> int:
    """Ask what `requirement` ("torch==...") would be, and install it or say why not."""
    asked = subprocess.run(
        [*PIP, "--dry-run", "--ignore-installed", "--only-binary", ":all:", "--report", "-",
         requirement],
        capture_output=True, text=True,
    )  # fmt: skip
    if asked.returncode and "No matching distribution" in asked.stderr:
        print(f"{requirement}: no build for Python {platform.python_version()}; tests run without")
        return 0
    if asked.returncode:
        print(asked.stderr, file=sys.stderr)
        return asked.returncode
    (found,) = json.loads(asked.stdout)["install"]
    name = f"{found['metadata']['name']} {found['metadata']['version']}"
    needs = [re.split(r"[^\w-]", each)[0] for each in found["metadata"].get("requires_dist", [])]
    cuda = [each for each in needs if each.startswith(("cuda-", "nvidia-"))]
    if cuda and platform.system() == "Linux":
        print(
            f"{name} for Python {platform.python_version()} is a build for CUDA (it needs "
            f"{cuda[0]} and {len(cuda) - 1} more): tests run without torch. To give pip a build "
            "for the CPU, set PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL"
        )
        return 0
    print(f"{name}: a build for the CPU")
    return subprocess.run([*PIP, "--only-binary", ":all:", requirement], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
