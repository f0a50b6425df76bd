"""The order of stages, from a program of operators to a scheduled one, as one plain function.

algebra → expansion → layout → store or recompute → fusion → parts of the batch → memory (aliases, stacked weights, sharing). Each stage
is one call; each rewrite is in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from shorthaul.analysis.eager import eager_bytes
from shorthaul.config import Options
from shorthaul.ir.collection import uncollected
from shorthaul.ir.containers import Container
from shorthaul.ir.nodes import Branch, Loop, Map, Operator, Schedule
from shorthaul.ir.program import Form, Program
from shorthaul.ir.verify import verify
from shorthaul.ops.custom import inline_custom_functions
from shorthaul.ops.expand import expand
from shorthaul.ops.registry import OperatorDefinition
from shorthaul.transforms.base import Refused, Result, Transformation, apply_everywhere
from shorthaul.transforms.choices import DEFAULT, Choices
from shorthaul.transforms.fuse import default_fusions, fuse
from shorthaul.transforms.level1_operator.expansion_choice import choose_expansion
from shorthaul.transforms.level1_operator.fission import Fission
from shorthaul.transforms.level1_operator.ordered_scatter import OrderedScatter
from shorthaul.transforms.level1_operator.pointwise_product import PointwiseProduct
from shorthaul.transforms.level2_fusion.batch_kernels import BatchKernels
from shorthaul.transforms.level2_fusion.merge_epilogue import MergeEpilogue
from shorthaul.transforms.level2_fusion.write_through import WriteThrough
from shorthaul.transforms.level3_layout.channels_last import assign_channels_last
from shorthaul.transforms.level3_layout.constant_folding import ConstantFolding
from shorthaul.transforms.level3_layout.fold_scale import FoldScale
from shorthaul.transforms.level3_layout.fold_transpose import FoldTranspose
from shorthaul.transforms.level3_layout.library_layout import LibraryLayout
from shorthaul.transforms.level3_layout.narrow_storage import NarrowStorage
from shorthaul.transforms.level3_layout.pad_contraction import PadContraction
from shorthaul.transforms.level3_layout.stack_weights import StackWeights
from shorthaul.transforms.level3_layout.tile_layout import TileLayout
from shorthaul.transforms.level4_global.alias_views import AliasViews
from shorthaul.transforms.level4_global.batch_tiling import BatchTiling
from shorthaul.transforms.level4_global.checkpoint import Checkpoint
from shorthaul.transforms.level4_global.common_subexpressions import (
    CommonSubexpressions,
    eliminate_common_subexpressions,
)
from shorthaul.transforms.level4_global.compact_gradient import CompactGradient
from shorthaul.transforms.level4_global.compress_saved import CompressSaved
from shorthaul.transforms.level4_global.dead_code import eliminate_dead_code
from shorthaul.transforms.level4_global.early_update import EarlyUpdate
from shorthaul.transforms.level4_global.fused_loss_head import FusedLossHead
from shorthaul.transforms.level4_global.in_place import InPlace
from shorthaul.transforms.level4_global.mask_from_result import MaskFromResult
from shorthaul.transforms.level4_global.recompute import Recompute
from shorthaul.transforms.level4_global.saved_bits import SavedBits
from shorthaul.transforms.level4_global.share_buffers import ShareBuffers
from shorthaul.transforms.level4_global.sparse_update import SparseUpdate
from shorthaul.transforms.level4_global.update_in_place import UpdateInPlace, merge_phases
from shorthaul.transforms.recipe import RecipeError, Stages, parse


@uncollected()
def optimize(program: Program, options: Options | None = None, *, check: bool = False, choices: Choices = DEFAULT) -> Result:
    """Lower a program of operators to a scheduled one, in place, with the transformations up to `options.level`.

    level 0 only expands. check: verify after every stage (tests). choices: where to differ from the defaults (what the tuner varies);
    a place that is not there raises Refusal. Returns what was applied and what was refused, with reasons.
    """
    options = options or Options()
    level = options.level
    if check:
        verify(program, Form.OPERATORS)
    program.attributes.setdefault("eager_bytes", eager_bytes(program))
    if options.recipe is not None:
        _lower_bodies(program, replace(options, recipe=None), check)
        return _by_recipe(program, options, check)
    choices.take(program, choices.first)
    apply_everywhere(program, [Checkpoint()])
    inline_custom_functions(program)
    if level >= 4 and options.target != "triton":  # a GPU's captured graph repeats no steps
        apply_everywhere(program, choices.adjust([FusedLossHead()]))
    _lower_bodies(program, options, check)
    eliminate_dead_code(program)
    sparse = Result()
    if level >= 4 and options.sparse:
        sparse = apply_everywhere(program, choices.adjust([SparseUpdate(static=options.target == "triton")]))
    if level >= 3 and options.target == "triton":  # sizes that tensor cores take
        apply_everywhere(program, choices.adjust([PadContraction()]))
    _expand(program, options.target)
    eliminate_dead_code(program)
    if check:
        verify(program, Form.MAPS)
    if level >= 3:
        apply_everywhere(program, choices.adjust([ConstantFolding()]))
        assign_channels_last(program, keep=0 if options.target == "triton" else 1 << 20)
        apply_everywhere(program, choices.adjust([FoldTranspose()]))
    if level >= 4:
        if choices.inside:
            apply_everywhere(program, choices.adjust([CommonSubexpressions()]))
        else:
            eliminate_common_subexpressions(program)
        # on a GPU a residual stream is not recomputed from its beginning for every layer
        apply_everywhere(program, choices.adjust([Recompute(max_chain=24 if options.target == "triton" else None), MaskFromResult()]))
        eliminate_dead_code(program)
    if program.attributes.get("whole_step"):
        merge_phases(program)
    if level >= 1:
        apply_everywhere(program, choices.adjust([PointwiseProduct("16-bit" if options.target == "triton" else "all")]))
    result = Result()
    if level >= 2:
        result = fuse(program, choices.adjust(default_fusions(options.target)))
        eliminate_dead_code(program)
        apply_everywhere(program, choices.adjust([WriteThrough()]))
        if level >= 4 and options.target != "triton":
            apply_everywhere(program, choices.adjust(_tiles()))
        if level >= 3:
            apply_everywhere(program, choices.adjust([FoldScale()]))
        apply_everywhere(program, choices.adjust([AliasViews(), *([LibraryLayout(), AliasViews()] if level >= 3 else [])]))
    if level >= 4:
        apply_everywhere(program, choices.adjust([CompactGradient()]))
    if level >= 3 and options.target == "triton":  # a CPU's kernels keep such sums in registers by fusion
        apply_everywhere(program, choices.adjust([NarrowStorage()]))
    if options.saved is not None:  # on request only: narrow types change numbers, and bits cost a CPU more time than the bytes do
        form = SavedBits() if options.saved == "bits" else CompressSaved(options.saved)
        apply_everywhere(program, choices.adjust([form]))
    schedule_for(program, options.target)
    if level >= 3:
        apply_everywhere(program, choices.adjust([StackWeights()]))
    if level >= 4:
        apply_everywhere(program, choices.adjust([InPlace(), UpdateInPlace(), EarlyUpdate()]))
    if level >= 2 and options.target == "triton":  # a launch costs more than a small kernel
        apply_everywhere(program, choices.adjust([MergeEpilogue(_joins), BatchKernels()]))
    if level >= 4 and not choices.inside:  # it is a plan for the whole program
        apply_everywhere(program, choices.adjust([ShareBuffers("step" if options.target == "triton" else "tight")]))
    choices.take(program, choices.last)
    if check:
        verify(program, Form.SCHEDULED)
    result = Result(result.applied + sparse.applied, [*sparse.refused, *result.refused])
    program.attributes["refusals"] = result.refused
    return result


def _tiles() -> list[Transformation]:
    """Loops over parts of the batch: first where not even one sample fits, with results laid out as their readers want them; then over
    whole samples, and over parts of samples in what is left."""
    return [BatchTiling(dims=2, large=True), TileLayout(), AliasViews(loops=True), BatchTiling(), BatchTiling(dims=2)]


def fused_maps(program: Program, options: Options) -> Program:
    """A small program of operators as fused maps, in form MAPS: what an operator's body is (see `parameter_update`)."""
    _expand(program, options.target)
    eliminate_dead_code(program)
    eliminate_common_subexpressions(program)
    if options.level >= 2:
        fuse(program, default_fusions(options.target))
        eliminate_dead_code(program)
    return program


def _by_recipe(program: Program, options: Options, check: bool) -> Result:
    """Lower by a recipe. Steps that find no place are skipped and reported: one recipe serves training and evaluation, which differ.

    What the recipe leaves undone is only lowered, not optimized. Raises RecipeError where none of its places is there.
    """
    assert options.recipe is not None
    recipe = parse(options.recipe)
    replay = recipe.replay(program, stages_for(options.target), missing="skip")
    placed = [s for s in recipe.steps if s.place is not None]
    if placed and all(any(s is t for t, _ in replay.skipped) for s in placed):
        raise RecipeError(f"none of the {len(placed)} places of the recipe of {recipe.program} is in {program.name}; the first: "
                          f"{replay.skipped[0][1]}")  # fmt: skip
    if program.form is Form.OPERATORS:
        _expand(program, options.target)
    schedule_for(program, options.target)
    if check:
        verify(program, Form.SCHEDULED)
    program.attributes["refusals"] = refused = [Refused(s.name, "the recipe", f"skipped: {why}", 0) for s, why in replay.skipped]
    return Result(replay.applied, refused)


def _expand(program: Program, target: str = "cpp") -> None:
    if target != "triton":
        expand(program, choose_expansion)
        return
    # a library that draws for itself cannot draw the same mask in a recomputation
    again = any(isinstance(n, Operator) and n.op == "attention" and n.phase == "backward" and n.attributes["p"] for n in program.nodes)

    def choose(node: Operator, definition: OperatorDefinition, containers: Mapping[str, Container]) -> str:
        if node.op not in ("attention", "attention_backward"):
            libraries: tuple[str, ...] = ("bias_after", "library")
        else:
            libraries = () if again and node.attributes["p"] else ("gpu_library",)
        return choose_expansion(node, definition, containers, libraries)

    expand(program, choose)


def _lower_bodies(program: Program, options: Options, check: bool) -> None:
    """The bodies of loops and branches are programs: they take the same way, down to their own kernels."""
    with program.edit("LowerBodies") as edit:
        for node in list(program.nodes):
            if isinstance(node, (Branch, Loop)):
                bodies = []
                for body in node.bodies:
                    # nodes get ids of their own: the gradient's body has those of the forward one, too
                    kept = {k: v for k, v in body.attributes.items() if k in ("size_hints", "deterministic")}
                    own = Program(body.name, body.form, dict(body.containers), [n.copy() for n in body.nodes], body.signature, body.symbols,
                                  dict(body.constants), attributes=kept)  # fmt: skip
                    optimize(own, options, check=check)
                    bodies.append(own)
                edit.replace(node, node.with_bodies(tuple(bodies)))


def _schedule(program: Program) -> None:
    """Every top-level map is a kernel: its parameters are the parallel loop."""
    with program.edit("Schedule") as edit:
        for node in list(program.nodes):
            if isinstance(node, Map) and node.schedule.kind == "auto":
                edit.replace(node, node.with_(schedule=Schedule("parallel", node.schedule.options)))
        edit.set_form(Form.SCHEDULED)


def schedule_for(program: Program, target: str) -> None:
    """Make a program of maps, or one scheduled for another target, one that the target ("cpp", "triton") can compile. In place."""
    if program.form is Form.MAPS:
        _schedule(program)
    if target == "triton":
        _split(program)
        if program.deterministic:  # a CPU's threads never add to the same element
            apply_everywhere(program, [OrderedScatter()])


def _split(program: Program) -> None:
    """Nested kernels that the Triton target cannot say become flat ones."""
    from shorthaul.codegen.triton.emit_map import schedulable  # imports torch

    apply_everywhere(program, [Fission(lambda m: m.tasklet is None and not schedulable(m, program))])


def _joins(reduction: Map, epilogues: list[Map], program: Program) -> bool:
    """Whether the Triton target runs maps with a reduction's last kernel."""
    from shorthaul.codegen.triton.emit_map import emit_joined
    from shorthaul.codegen.triton.text import NoTritonText

    try:
        return emit_joined(reduction, epilogues, program) is not None
    except NoTritonText:
        return False


# rewrites of the whole program, by the name under which they are logged: the stages of recipes
STAGES: Stages = {"InlineCustomFunction": inline_custom_functions, "DeadCode": eliminate_dead_code, "Expand": _expand,
                  "Schedule": _schedule, "MergePhases": merge_phases}  # fmt: skip


def stages_for(target: str) -> Stages:
    """The stages of recipes for a target."""
    return {**STAGES, "Expand": partial(_expand, target=target)}
