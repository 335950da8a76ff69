"""The pages of OpenOrganelle's site, as its script leaves them in a browser.

The markup follows the site's own components: headings `h6`, below each a paragraph per value with its name
in `strong`; the dataset's description is a heading too.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """What one dataset's page says."""

    title: str
    description: str
    started: str
    voxel_size: str
    extent: str
    dois: tuple[tuple[str, str], ...]
    papers: tuple[tuple[str, str], ...]
    imaging: tuple[tuple[str, str], ...]


PAGES = {
    "jrc_mus-nacc-2": Shown(
        title="Mouse nucleus accumbens",
        description="Generated stand-in for a sample of mouse nucleus accumbens",
        started="Mon Mar 09 2015",
        voxel_size="(4, 4, 2.96) (x, y, z)",
        extent="(10384, 10080, 1669.44) (x, y, z)",
        dois=(
            ("reconstructed FIB-SEM data", "https://doi.org/10.25378/janelia.24222898"),
            ("Nuclei segmentations", "https://doi.org/10.25378/janelia.26513209"),
        ),
        papers=(
            ("Xu et al., 2021", "https://doi.org/10.1038/s41586-021-03992-4"),
            ("Xu et al., 2017", "https://doi.org/10.7554/eLife.25916"),
            ("Wu et al., 2017", "https://doi.org/10.1073/pnas.1701078114"),
        ),
        imaging=(
            ("Imaging duration (days) ", "1"),
            ("Bias (Volts)", "500"),
            ("Scan rate (MHz)", "0.4"),
            ("Current (nA)", "0.22"),
            ("Primary energy (eV)", "200"),
        ),
    ),
    # A bias of nought is shown as unknown: the site's script takes it for a missing one.
    "jrc_mus-kidney": Shown(
        title="Mouse kidney",
        description="Generated stand-in for a sample of mouse kidney",
        started="Mon Apr 19 2021",
        voxel_size="(8, 8, 8) (x, y, z)",
        extent="(1120, 1024, 768) (x, y, z)",
        dois=(("EM", "https://doi.org/10.25378/janelia.16913035"),),
        papers=(),
        imaging=(
            ("Imaging duration (days) ", "8"),
            ("Bias (Volts)", "Unknown"),
            ("Scan rate (MHz)", "6"),
            ("Current (nA)", "3"),
            ("Primary energy (eV)", "1200"),
        ),
    ),
}


def page(name: str) -> str:
    """The rendered page of the dataset `name`; empty where there is none."""
    shown = PAGES.get(name)
    if shown is None:
        return ""
    return f"""<!DOCTYPE html><html><head><title>OpenOrganelle</title></head><body><div id="root">
<h6 class="title">{shown.title}</h6>
<p><strong>Sample</strong>: {shown.description}</p>
<div class="grid"><div class="item"><h6 class="title">Acquisition details</h6>
<p><strong>Imaging start date</strong>: {shown.started}</p>
<p><strong>Final voxel size (nm)</strong>: {shown.voxel_size}</p>
<p><strong>Dimensions (nm)</strong>: {shown.extent}</p>
<p><strong>Dataset ID</strong>: {name}</p>
<strong>DOI</strong>: {_links(shown.dois)}
<strong>Publications</strong>: {_links(shown.papers)}
<p><strong>Dataset location</strong>: s3://janelia-cosem-datasets/{name}/</p></div>
<div class="item"><h6 class="title">FIB-SEM parameters</h6>
{"".join(f"<p><strong>{label}</strong>: {value}</p>" for label, value in shown.imaging)}</div></div>
</div></body></html>"""


def _links(links: tuple[tuple[str, str], ...]) -> str:
    if not links:
        return "<ul><em>None</em></ul>"
    items = "".join(
        f'<li><p><span>{name}</span><br><span><a href="{url}">{url}</a></span></p></li>'
        for name, url in links
    )
    return f"<ul>{items}</ul>"
