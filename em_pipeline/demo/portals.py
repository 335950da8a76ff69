"""Every portal's replay, and the dataset that the demonstration takes from each."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from em_pipeline.demo.epfl_portal import EpflPortal
from em_pipeline.demo.flyem_portal import FlyemPortal
from em_pipeline.demo.idr_portal import IdrPortal
from em_pipeline.demo.openorganelle_portal import OpenOrganellePortal
from em_pipeline.demo.portal import DemoPortal
from em_pipeline.demo.replay import Replay


@dataclass(frozen=True)
class DemoDataset:
    """One dataset: `asked` is what `em register` is given for it."""

    slug: str
    dataset_id: str
    asked: tuple[str, ...]


DATASETS = (
    DemoDataset("empiar", "empiar-11759", ("empiar-11759",)),
    DemoDataset("epfl", "epfl-training", ("epfl-training",)),
    DemoDataset("idr", "idr-9846137", ("idr-9846137",)),
    DemoDataset(
        "openorganelle",
        "openorganelle-jrc_mus-nacc-2-s4",
        ("openorganelle-jrc_mus-nacc-2", "--level", "s4", "--label", "nuc"),
    ),
    DemoDataset(
        "flyem",
        "flyem-hemibrain-cube",
        (
            *("flyem-hemibrain", "--roi", "12000:12256,11000:11256,10000:10256"),
            *("--label", "segmentation", "--name", "cube"),
        ),
    ),
)


@contextmanager
def replays(folder: Path) -> Iterator[Mapping[str, Replay]]:
    """A running replay of each portal, by the slug of its source; generated files are kept in `folder`."""
    with ExitStack() as stack:
        yield {
            "empiar": stack.enter_context(DemoPortal(folder / "empiar")),
            "epfl": stack.enter_context(EpflPortal(folder / "epfl")),
            "idr": stack.enter_context(IdrPortal(folder / "idr")),
            "openorganelle": stack.enter_context(OpenOrganellePortal(folder / "openorganelle")),
            "flyem": stack.enter_context(FlyemPortal(folder / "flyem")),
        }


def source_settings(portals: Mapping[str, Replay]) -> dict[str, str]:
    """The environment that points every source at its replay."""
    return {
        f"EM_SOURCES__{slug.upper()}__{option.upper()}": value
        for slug, portal in portals.items()
        for option, value in portal.options.items()
    }
