"""Recipe of Bert. `program.replay(FILE)` applies it; `sh.optimize(model, recipe=FILE)` compiles by it."""

from shorthaul.transforms.recipe import Recipe, at, stage

recipe = Recipe('Bert', version=1, steps=[
    stage('Expand'),
    stage('DeadCode'),
    at('CommonSubexpressions', {'first': 'layers.1.feed_forward: pointwise [backward]', 'second': 'layers.1.feed_forward: pointwise [backward] #2'}),  # saves 4608 bytes
    at('CommonSubexpressions', {'first': 'layers.1.attention: pointwise [backward]', 'second': 'layers.1.attention: pointwise [backward] #2'}),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention: reshape', 'second': 'layers.1.attention: permute', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention: reshape', 'second': 'layers.1.attention: permute', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention: reshape', 'second': 'layers.1.attention: permute', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention: permute', 'second': 'layers.1.attention: cast', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention: permute+cast', 'second': 'layers.1.attention: reshape', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention.dropout: dropout', 'second': 'layers.1.attention: add', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.feed_forward.dropout: dropout', 'second': 'layers.1.feed_forward: add', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.feed_forward.norm: pointwise [backward] #3', 'second': 'layers.1.feed_forward.norm: sum [backward] #2', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.feed_forward.norm: pointwise [backward] #3', 'second': 'layers.1.feed_forward: pointwise [backward]', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.feed_forward.norm: pointwise [backward] #3', 'second': 'layers.1.feed_forward.norm: sum_to [backward]', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention.norm: pointwise [backward] #3', 'second': 'layers.1.attention.norm: sum [backward] #2', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention.norm: pointwise [backward] #3', 'second': 'layers.1.attention: pointwise [backward]', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention.norm: pointwise [backward] #3', 'second': 'layers.1.attention.norm: sum_to [backward]', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention: reshape [backward]', 'second': 'layers.1.attention: pointwise [backward]', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention: reshape+pointwise [backward]', 'second': 'layers.1.attention: permute [backward]', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention: permute [backward]', 'second': 'layers.1.attention: reshape [backward]', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention: permute [backward]', 'second': 'layers.1.attention: reshape [backward]', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('MapFusion', {'first': 'layers.1.attention: permute [backward]', 'second': 'layers.1.attention: reshape [backward]', 'mid': 'first>0'}, several='refuse'),  # saves 4608 bytes
    at('ReductionFusion', {'first': 'layers.1.attention: attention', 'second': 'layers.1.attention: attention #2', 'mid': 'first>0'}),  # saves 3744 bytes
    at('ReductionFusion', {'first': 'layers.1.attention: attention', 'second': 'layers.1.attention: attention #2', 'mid': 'first>0'}),  # saves 4032 bytes
    at('ReductionFusion', {'first': 'layers.1.attention: attention', 'second': 'layers.1.attention: attention #2', 'mid': 'first>0'}),  # saves 1152 bytes
    at('ReductionFusion', {'first': 'layers.1.attention.norm: layer_norm', 'second': 'layers.1.attention.norm: layer_norm #2', 'mid': 'first>0'}),  # saves 288 bytes
    at('ReductionFusion', {'first': 'layers.1.attention.norm: layer_norm #2', 'second': 'layers.1.attention.norm: layer_norm #3', 'mid': 'first>0'}),  # saves 288 bytes
    at('ReductionFusion', {'first': 'layers.1.attention.norm: layer_norm #2', 'second': 'layers.1.attention.norm: layer_norm #3', 'mid': 'first>0'}),  # saves 2592 bytes
    at('ReductionFusion', {'first': 'layers.1.feed_forward.norm: layer_norm', 'second': 'layers.1.feed_forward.norm: layer_norm #2', 'mid': 'first>0'}),  # saves 288 bytes
    at('ReductionFusion', {'first': 'layers.1.feed_forward.norm: layer_norm #2', 'second': 'layers.1.feed_forward.norm: layer_norm #3', 'mid': 'first>0'}),  # saves 288 bytes
    at('ReductionFusion', {'first': 'layers.1.feed_forward.norm: layer_norm #2', 'second': 'layers.1.feed_forward.norm: layer_norm #3', 'mid': 'first>0'}),  # saves 2592 bytes
    at('ReductionFusion', {'first': 'layers.1.feed_forward.norm: sum [backward]', 'second': 'layers.1.feed_forward.norm: pointwise [backward] #3', 'mid': 'first>0'}),  # saves 2592 bytes
    at('ReductionFusion', {'first': 'layers.1.feed_forward.norm: pointwise+sum [backward]', 'second': 'layers.1.feed_forward.norm: sum+pointwise [backward]', 'mid': 'first>0'}),  # saves 4896 bytes
    at('ReductionFusion', {'first': 'layers.1.feed_forward.norm: pointwise+sum [backward]', 'second': 'layers.1.feed_forward.dropout: dropout [backward]', 'mid': 'first>0'}),  # saves 2304 bytes
    at('ReductionFusion', {'first': 'layers.1.feed_forward.norm: pointwise+sum+dropout [backward]', 'second': 'layers.1.feed_forward.narrow: sum_to [backward]', 'mid': 'first>1'}),  # saves 2304 bytes
    at('ReductionFusion', {'first': 'layers.1.attention.norm: sum [backward]', 'second': 'layers.1.attention.norm: pointwise [backward] #3', 'mid': 'first>0'}),  # saves 2592 bytes
    at('ReductionFusion', {'first': 'layers.1.attention.norm: pointwise+sum [backward]', 'second': 'layers.1.attention.norm: sum+pointwise [backward]', 'mid': 'first>0'}),  # saves 4896 bytes
    at('ReductionFusion', {'first': 'layers.1.attention.norm: pointwise+sum [backward]', 'second': 'layers.1.attention.dropout: dropout [backward]', 'mid': 'first>0'}),  # saves 2304 bytes
    at('ReductionFusion', {'first': 'layers.1.attention.norm: pointwise+sum+dropout [backward]', 'second': 'layers.1.attention.output: sum_to [backward]', 'mid': 'first>1'}),  # saves 2304 bytes
    at('ReductionFusion', {'first': 'layers.1.attention: attention_backward [backward]', 'second': 'layers.1.attention: attention_backward [backward] #2', 'mid': 'first>0'}),  # saves 576 bytes
    at('ReductionFusion', {'first': 'layers.1.attention.dropout: dropout+add', 'second': 'layers.1.attention.norm: layer_norm', 'mid': 'first>0'}),  # saves 2304 bytes
    at('ReductionFusion', {'first': 'layers.1.attention.dropout: dropout+add+layer_norm', 'second': 'layers.1.attention.norm: layer_norm', 'mid': 'first>0'}),  # saves 2448 bytes
    at('ReductionFusion', {'first': 'layers.1.feed_forward.dropout: dropout+add', 'second': 'layers.1.feed_forward.norm: layer_norm', 'mid': 'first>0'}),  # saves 2304 bytes
    at('ReductionFusion', {'first': 'layers.1.feed_forward.dropout: dropout+add+layer_norm', 'second': 'layers.1.feed_forward.norm: layer_norm', 'mid': 'first>0'}),  # saves 2448 bytes
    at('ReductionFusion', {'first': 'layers.1.feed_forward.norm: pointwise [backward]', 'second': 'layers.1.feed_forward.norm: pointwise+sum+dropout+sum_to [backward]', 'mid': 'first>0'}),  # saves 2448 bytes
    at('ReductionFusion', {'first': 'layers.1.feed_forward.norm: pointwise [backward]', 'second': 'layers.1.feed_forward.norm: pointwise+sum+dropout+sum_to [backward]', 'mid': 'first>0'}),  # saves 4608 bytes
    at('ReductionFusion', {'first': 'layers.1.attention.norm: pointwise [backward]', 'second': 'layers.1.attention.norm: pointwise+sum+dropout+sum_to [backward]', 'mid': 'first>0'}),  # saves 2448 bytes
    at('ReductionFusion', {'first': 'layers.1.attention.norm: pointwise [backward]', 'second': 'layers.1.attention.norm: pointwise+sum+dropout+sum_to [backward]', 'mid': 'first>0'}),  # saves 4608 bytes
    at('ReductionFusion', {'first': 'layers.1.feed_forward.norm: pointwise+sum+dropout+sum_to [backward]', 'second': 'layers.1.feed_forward.norm: pointwise+sum_to [backward]', 'mid': 'first>0'}),  # saves 6912 bytes
    at('ReductionFusion', {'first': 'layers.1.attention.norm: pointwise+sum+dropout+sum_to [backward]', 'second': 'layers.1.attention.norm: pointwise+sum_to [backward]', 'mid': 'first>0'}),  # saves 6912 bytes
    at('MapFusion', {'first': 'layers.1.attention: permute+reshape [backward]', 'second': 'layers.1.attention.value: sum_to [backward]', 'mid': 'first>0'}, several='recompute'),
    at('MapFusion', {'first': 'layers.1.attention: permute+reshape [backward] #2', 'second': 'layers.1.attention.key: sum_to [backward]', 'mid': 'first>0'}, several='recompute'),
    at('MapFusion', {'first': 'layers.1.attention: permute+reshape [backward] #3', 'second': 'layers.1.attention.query: sum_to [backward]', 'mid': 'first>0'}, several='recompute'),
    at('MapFusion', {'first': 'layers.1.feed_forward: pointwise [backward]', 'second': 'layers.1.feed_forward.widen: sum_to [backward]', 'mid': 'first>0'}),  # saves 4608 bytes
    at('RowSiblingFusion', {'first': 'layers.1.feed_forward.norm: pointwise+sum+dropout+sum_to [backward]', 'second': 'layers.1.feed_forward.norm: sum_to [backward]', 'mid': 'first<0'}),  # saves 2304 bytes
    at('RowSiblingFusion', {'first': 'layers.1.attention.norm: pointwise+sum+dropout+sum_to [backward]', 'second': 'layers.1.attention.norm: sum_to [backward]', 'mid': 'first<0'}),  # saves 2304 bytes
    at('AliasViews', {'copy': 'layers.1.attention: reshape+permute', 'mid': 'copy>0'}),  # saves 4608 bytes
    at('AliasViews', {'copy': 'layers.1.attention: reshape+permute', 'mid': 'copy>0'}),  # saves 4608 bytes
    at('AliasViews', {'copy': 'layers.1.attention: reshape+permute', 'mid': 'copy>0'}),  # saves 4608 bytes
    at('AliasViews', {'copy': 'layers.1.attention: reshape+pointwise+permute [backward]', 'mid': 'copy>0'}),  # saves 4608 bytes
    stage('Schedule'),
])
