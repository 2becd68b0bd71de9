"""What tests of several areas need."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SHARED_DATA = TESTS.parents[1] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for the tests and the processes they start, so that none writes to the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTLBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data samples beside the repository; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("there is no ../shared/data beside the repository")
    return SHARED_DATA


@pytest.fixture(scope="session")
def installed() -> Callable[[Path, Path], str]:
    """``installed(package_dir, site_dir)`` puts a package on a path as an installer would; see :func:`install`."""
    return install


def install(package: Path, site: Path) -> str:
    """Copy the modules of the project folder ``package`` into ``site`` and write the dist-info of its pyproject there.

    A relative ``package`` is a folder of ``tests/thirdparty``. No network is used.

    Returns:
        What to put on ``PYTHONPATH`` (or ``sys.path``).
    """
    package = TESTS / "thirdparty" / package
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    metadata = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}"]
    metadata += [f"Requires-Dist: {needed}" for needed in project.get("dependencies", [])]
    (info / "METADATA").write_text("\n".join(metadata) + "\n")
    points = []
    for group, offered in project.get("entry-points", {}).items():
        points += [f"[{group}]", *(f"{name} = {module}" for name, module in offered.items())]
    (info / "entry_points.txt").write_text("\n".join(points) + "\n")
    for module in package.glob("*.py"):
        shutil.copy(module, site)
    return str(site)
