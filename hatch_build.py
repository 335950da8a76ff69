"""Compiles `em_pipeline/volumes/kernels.c` where there is a C compiler; without one numpy does the same."""

import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("em_pipeline/volumes/kernels.c")
LIBRARY = SOURCE.with_name("_kernels.so")


class CompileKernels(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the library to the wheel, or to the folder that an editable install runs from."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatch's signature
        root = Path(self.root)
        if reason := compile_kernels(root / SOURCE, root / LIBRARY):
            self.app.display_warning(f"{reason}: numpy stands in for the compiled kernels, more slowly")
            return
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        # Any Python 3 of this platform: the library is loaded by ctypes and knows nothing of Python.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compile_kernels(source: Path, library: Path) -> str | None:
    """Make `library`, and replace it where there is one; why it could not be made, or None."""
    # One that was made of another version of the source must not stay.
    library.unlink(missing_ok=True)
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    except ValueError as error:
        return f"CC={os.environ['CC']!r} is no command ({error})"
    if shutil.which(compiler[0]) is None:
        return f"There is no C compiler {compiler[0]!r}"
    # Nobody may load half of it.
    made = library.with_name(f"{library.name}.{os.getpid()}")
    version = f'-DVERSION="{hashlib.sha256(source.read_bytes()).hexdigest()}"'
    command = [*compiler, "-O3", "-std=c11", "-shared", "-fPIC", version, "-o", str(made), str(source)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode or not made.exists():
        made.unlink(missing_ok=True)
        return f"{shlex.join(command)} failed:\n{result.stderr}"
    made.replace(library)
    return None
