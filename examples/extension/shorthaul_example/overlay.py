"""An overlay of the studio: how deep each kernel's loops are nested."""

from shorthaul.gui.overlays import overlay
from shorthaul.ir.nodes import Map


def _depth(node):
    return len(node.params) + max((_depth(b) for b in node.body if isinstance(b, Map)), default=0)


@overlay("depth", title="Loop depth", aggregate="max")
def depth(view):
    """Loops around the innermost statement of a kernel."""
    return {n.id: _depth(n) for n in view.program.nodes if isinstance(n, Map)}
