"""`import qmd` is cheap and its names resolve."""

import subprocess
import sys


def test_importing_qmd_brings_no_heavy_library() -> None:
    code = (
        "import sys, qmd, qmd.types, qmd.errors\n"
        "heavy = {'torch', 'onnxruntime', 'numpy', 'transformers', 'yaml', 'sqlite3', 'click'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "print(qmd.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().count(".") == 2
