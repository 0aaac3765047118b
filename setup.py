"""Builds the C runtime with the package; everything else stands in pyproject.toml."""

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

RUNTIME = Path("fedtiny/engine/runtime")
build_or_say_why = runpy.run_path(str(RUNTIME / "build.py"))["build_or_say_why"]


class BuildWithRuntime(build_py):
    libraries: tuple[Path, ...] = ()

    def run(self) -> None:
        super().run()
        target = (RUNTIME if self.editable_mode else Path(self.build_lib) / RUNTIME) / "lib"
        self.libraries = tuple(build_or_say_why(target))
        if not self.libraries:
            shutil.rmtree(target, ignore_errors=True)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return super().get_outputs(include_bytecode) + [str(path) for path in self.libraries]


class WheelForEveryPython(bdist_wheel):
    """A plain shared library is tied to a platform, but to no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        if not self.get_finalized_command("build_py").libraries:
            return super().get_tag()
        platform = str(self.plat_name)
        return "py3", "none", platform.replace("-", "_").replace(".", "_")


setup(cmdclass={"build_py": BuildWithRuntime, "bdist_wheel": WheelForEveryPython})
