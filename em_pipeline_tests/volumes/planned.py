"""Plans for tests, with the options of means and layout side by side."""

from dataclasses import fields
from typing import Any

from numpy.typing import DTypeLike

from em_pipeline.domain.geometry import Shape, VoxelSize
from em_pipeline.volumes.memory import Means
from em_pipeline.volumes.plan import Layout, RechunkPlan, plan_rechunk


def plan_with(shape: Shape, dtype: DTypeLike, voxel_size: VoxelSize, **options: Any) -> RechunkPlan:
    """`plan_rechunk`, whose `means` and `layout` are given field by field."""
    means, layout = (
        {field.name: options.pop(field.name) for field in fields(of) if field.name in options}
        for of in (Means, Layout)
    )
    return plan_rechunk(shape, dtype, voxel_size, means=Means(**means), layout=Layout(**layout), **options)
