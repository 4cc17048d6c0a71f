"""Run the notebooks of examples/ and write them with what they say: `make examples`.

python -m tests.examples [NAME ...]
"""

import sys
import tempfile
from pathlib import Path

from tests.examples.notebooks import NOTEBOOKS, read, text_of
from tests.examples.running import execute

for path in NOTEBOOKS:
    if len(sys.argv) == 1 or path.stem in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            run = execute(read(path), Path(folder))
        path.write_text(text_of(run.notebook), "utf-8")
        size = path.stat().st_size / 1000
        print(f"{path.name}: {run.wall:.0f} s, {run.cpu:.0f} s of CPU, {size:.0f} kB", flush=True)
