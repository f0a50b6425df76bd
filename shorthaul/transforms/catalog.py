"""All transformations by name, those of other packages included.

Another package adds its own with the entry point group `shorthaul.transformations` (name = "package.module:Class"), or `register`
at run time.
"""

from __future__ import annotations

import difflib
import inspect
from functools import cache
from typing import Any, TypeVar, Union

from shorthaul.extension import load

from .base import Transformation
from .level1_operator.expansion_choice import ExpansionChoice
from .level1_operator.fission import Fission
from .level1_operator.map_collapse import MapCollapse
from .level1_operator.map_interchange import MapInterchange
from .level1_operator.map_tiling import MapTiling
from .level1_operator.ordered_scatter import OrderedScatter
from .level1_operator.pointwise_product import PointwiseProduct
from .level1_operator.schedule_choice import ScheduleChoice
from .level2_fusion.batch_kernels import BatchKernels
from .level2_fusion.image_fusion import ImageFusion
from .level2_fusion.linear_reduction_fusion import LinearReductionFusion
from .level2_fusion.map_fusion import MapFusion
from .level2_fusion.merge_epilogue import MergeEpilogue
from .level2_fusion.reduction_fusion import ReductionFusion
from .level2_fusion.row_sibling_fusion import RowSiblingFusion
from .level2_fusion.sibling_fusion import SiblingFusion
from .level2_fusion.write_through import WriteThrough
from .level3_layout.channels_last import ChannelsLast
from .level3_layout.constant_folding import ConstantFolding
from .level3_layout.fold_scale import FoldScale
from .level3_layout.fold_transpose import FoldTranspose
from .level3_layout.library_layout import LibraryLayout
from .level3_layout.narrow_storage import NarrowStorage
from .level3_layout.pad_contraction import PadContraction
from .level3_layout.stack_weights import StackWeights
from .level3_layout.sum_of_repeated import SumOfRepeated
from .level3_layout.tile_layout import TileLayout
from .level4_global.alias_views import AliasViews
from .level4_global.batch_tiling import BatchTiling
from .level4_global.checkpoint import Checkpoint
from .level4_global.common_subexpressions import CommonSubexpressions
from .level4_global.compact_gradient import CompactGradient
from .level4_global.compress_saved import CompressSaved
from .level4_global.dead_code import DeadCode
from .level4_global.early_update import EarlyUpdate
from .level4_global.fused_loss_head import FusedLossHead
from .level4_global.in_place import InPlace
from .level4_global.mask_from_result import MaskFromResult
from .level4_global.recompute import Recompute
from .level4_global.saved_bits import SavedBits
from .level4_global.share_buffers import ShareBuffers
from .level4_global.sparse_update import SparseUpdate
from .level4_global.update_in_place import UpdateInPlace

GROUP = "shorthaul.transformations"
Chosen = Union[str, type[Transformation], Transformation]
T = TypeVar("T", bound=type[Transformation])
_BUILT_IN: tuple[type[Transformation], ...] = (
    ExpansionChoice, ScheduleChoice, MapCollapse, MapInterchange, MapTiling, PointwiseProduct, Fission, OrderedScatter, MapFusion,
    ReductionFusion, LinearReductionFusion, ImageFusion, SiblingFusion, RowSiblingFusion, WriteThrough, MergeEpilogue, BatchKernels,
    AliasViews, ConstantFolding, ChannelsLast, FoldTranspose, FoldScale, SumOfRepeated, StackWeights, LibraryLayout, NarrowStorage,
    PadContraction, TileLayout, BatchTiling, Checkpoint, FusedLossHead, CommonSubexpressions, SparseUpdate, CompactGradient, Recompute,
    MaskFromResult, SavedBits, CompressSaved, DeadCode, InPlace, UpdateInPlace, EarlyUpdate, ShareBuffers,
)  # fmt: skip
_registered: dict[str, type[Transformation]] = {t.__name__: t for t in _BUILT_IN}


class UnknownTransformation(KeyError):
    """No transformation has that name; the message names the nearest."""

    def __str__(self) -> str:
        return str(self.args[0])


def register(transformation: T) -> T:
    """Add a transformation under its class name (a class decorator). Raises ValueError where another class has the name."""
    known = _registered.setdefault(transformation.__name__, transformation)
    if known is not transformation:
        raise ValueError(f"a transformation called {transformation.__name__} is registered already ({known.__module__})")
    return transformation


def catalog() -> dict[str, type[Transformation]]:
    """Every transformation by name, by level."""
    _load_entry_points()
    return dict(sorted(_registered.items(), key=lambda item: item[1].level))


@cache
def _load_entry_points() -> None:
    for _, transformation in load(GROUP):
        register(transformation)


def make(chosen: Chosen, **parameters: Any) -> Transformation:
    """A transformation from its name, class or instance.

    Raises UnknownTransformation, or TypeError or ValueError for a parameter that it does not have or take.
    """
    if isinstance(chosen, Transformation):
        if parameters:
            raise TypeError(f"parameters are given with the name or the class, not with an instance of {chosen.name}")
        return chosen
    if isinstance(chosen, str):
        found = catalog().get(chosen)
        if found is None:
            near = difflib.get_close_matches(chosen, catalog(), n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UnknownTransformation(f"no transformation is called {chosen!r}{hint} Known are {', '.join(catalog())}.")
        chosen = found
    known = inspect.signature(chosen).parameters
    for name, value in parameters.items():
        if name not in known:
            raise TypeError(f"{chosen.__name__} has no parameter {name!r}; it has {', '.join(known) or 'none'}")
        default = known[name].default
        if type(default) is not type(value) and default is not inspect.Parameter.empty and default is not None:
            raise TypeError(f"{chosen.__name__}.{name} is {type(default).__name__}, not {value!r}")
        allowed = chosen.allowed.get(name)
        if allowed is not None and value not in allowed:
            text = f"{allowed.start} to {allowed.stop - 1}" if isinstance(allowed, range) else ", ".join(map(repr, allowed))
            raise ValueError(f"{chosen.__name__}.{name} is one of {text}, not {value!r}")
    return chosen(**parameters)
