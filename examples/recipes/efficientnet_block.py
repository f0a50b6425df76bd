"""Recipe of MBConvNet. `program.replay(FILE)` applies it; `sh.optimize(model, recipe=FILE)` compiles by it."""

from shorthaul.transforms.recipe import Recipe, at, stage

recipe = Recipe('MBConvNet', version=1, steps=[
    stage('Expand'),
    stage('DeadCode'),
    at('ChannelsLast', {}, keep=1048576),  # saves 13623744 bytes
    at('CommonSubexpressions', {'first': 'blocks.2: pointwise [backward]', 'second': 'blocks.2: pointwise [backward] #2'}),  # saves 110592 bytes
    at('Recompute', {'producer': 'blocks.2: silu #2', 'mid': 'producer>0'}),  # saves -442368 bytes
    at('Recompute', {'producer': 'blocks.2.depthwise_bn: bn_apply', 'mid': 'producer>0'}),  # saves -443136 bytes
    at('Recompute', {'producer': 'blocks.2.depthwise_conv: pack', 'mid': 'producer>0'}),  # saves -3456 bytes
    at('Recompute', {'producer': 'blocks.2: silu', 'mid': 'producer>0'}),  # saves -442368 bytes
    at('Recompute', {'producer': 'blocks.2.expand_bn: bn_apply', 'mid': 'producer>0'}),  # saves -443136 bytes
    at('PointwiseProduct', {'call': 'blocks.2.expand_conv: aten::convolution'}),
    at('PointwiseProduct', {'call': 'blocks.2.squeeze_excite.reduce: aten::convolution'}),
    at('PointwiseProduct', {'call': 'blocks.2.squeeze_excite.expand: aten::convolution'}),
    at('PointwiseProduct', {'call': 'blocks.2.project_conv: aten::convolution'}),
    at('PointwiseProduct', {'call': 'blocks.2.project_conv: aten::conv_grad_input [backward]'}),
    at('PointwiseProduct', {'call': 'blocks.2.project_conv: aten::conv_grad_weight [backward]'}),
    at('PointwiseProduct', {'call': 'blocks.2.squeeze_excite.expand: aten::conv_grad_input [backward]'}),
    at('PointwiseProduct', {'call': 'blocks.2.squeeze_excite.expand: aten::conv_grad_weight [backward]'}),
    at('PointwiseProduct', {'call': 'blocks.2.squeeze_excite.reduce: aten::conv_grad_input [backward]'}),
    at('PointwiseProduct', {'call': 'blocks.2.squeeze_excite.reduce: aten::conv_grad_weight [backward]'}),
    at('PointwiseProduct', {'call': 'blocks.2.expand_conv: aten::conv_grad_input [backward]'}),
    at('PointwiseProduct', {'call': 'blocks.2.expand_conv: aten::conv_grad_weight [backward]'}),
    at('MapFusion', {'first': 'blocks.2.expand_bn: bn_apply', 'second': 'blocks.2: silu', 'mid': 'first>0'}, several='refuse'),  # saves 442368 bytes
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: bn_apply', 'second': 'blocks.2: silu', 'mid': 'first>0'}, several='refuse'),  # saves 442368 bytes
    at('MapFusion', {'first': 'blocks.2.project_bn: bn_apply', 'second': 'blocks.2: mul', 'mid': 'first>0'}, several='refuse'),  # saves 110592 bytes
    at('MapFusion', {'first': 'blocks.2: bernoulli', 'second': 'blocks.2: div', 'mid': 'first>0'}, several='refuse'),  # saves 64 bytes
    at('MapFusion', {'first': 'blocks.2.project_bn: bn_apply+mul', 'second': 'blocks.2: add', 'mid': 'first>0'}, several='refuse'),  # saves 110592 bytes
    at('MapFusion', {'first': 'blocks.2.project_bn: pointwise [backward] #2', 'second': 'blocks.2.project_bn: sum_to [backward] #2', 'mid': 'first>0'}, several='refuse'),  # saves 110592 bytes
    at('MapFusion', {'first': 'blocks.2.project_bn: reshape [backward] #3', 'second': 'blocks.2.project_bn: pointwise [backward] #2', 'mid': 'first>0'}, several='refuse'),  # saves 96 bytes
    at('MapFusion', {'first': 'blocks.2.project_bn: pointwise [backward] #5', 'second': 'blocks.2.project_bn: reshape [backward] #3', 'mid': 'first>0'}, several='refuse'),  # saves 96 bytes
    at('MapFusion', {'first': 'blocks.2: silu [backward]', 'second': 'blocks.2.squeeze_excite: pointwise [backward] #2', 'mid': 'first>0'}, several='refuse'),  # saves 442368 bytes
    at('MapFusion', {'first': 'blocks.2: silu+pointwise [backward]', 'second': 'blocks.2.squeeze_excite: sum_to [backward]', 'mid': 'first>0'}, several='refuse'),  # saves 442368 bytes
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: pointwise [backward] #2', 'second': 'blocks.2.depthwise_bn: sum_to [backward] #2', 'mid': 'first>0'}, several='refuse'),  # saves 442368 bytes
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: reshape [backward] #3', 'second': 'blocks.2.depthwise_bn: pointwise [backward] #2', 'mid': 'first>0'}, several='refuse'),  # saves 384 bytes
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: pointwise [backward] #5', 'second': 'blocks.2.depthwise_bn: reshape [backward] #3', 'mid': 'first>0'}, several='refuse'),  # saves 384 bytes
    at('MapFusion', {'first': 'blocks.2.expand_bn: pointwise [backward] #2', 'second': 'blocks.2.expand_bn: sum_to [backward] #2', 'mid': 'first>0'}, several='refuse'),  # saves 442368 bytes
    at('MapFusion', {'first': 'blocks.2.expand_bn: reshape [backward] #3', 'second': 'blocks.2.expand_bn: pointwise [backward] #2', 'mid': 'first>0'}, several='refuse'),  # saves 384 bytes
    at('MapFusion', {'first': 'blocks.2.expand_bn: pointwise [backward] #5', 'second': 'blocks.2.expand_bn: reshape [backward] #3', 'mid': 'first>0'}, several='refuse'),  # saves 384 bytes
    at('ReductionFusion', {'first': 'blocks.2.squeeze_excite.expand: sum_to [backward]', 'second': 'blocks.2.squeeze_excite.expand: reshape [backward]', 'mid': 'first>0'}),  # saves 384 bytes
    at('ReductionFusion', {'first': 'blocks.2.squeeze_excite.reduce: sum_to [backward]', 'second': 'blocks.2.squeeze_excite.reduce: reshape [backward]', 'mid': 'first>0'}),  # saves 24 bytes
    at('ReductionFusion', {'first': 'blocks.2.squeeze_excite: pointwise [backward] #2', 'second': 'blocks.2.squeeze_excite.expand: sum_to+reshape [backward]', 'mid': 'first>0'}),  # saves 1536 bytes
    at('ReductionFusion', {'first': 'blocks.2.squeeze_excite: pointwise [backward] #2', 'second': 'blocks.2.squeeze_excite.reduce: sum_to+reshape [backward]', 'mid': 'first>0'}),  # saves 96 bytes
    at('SiblingFusion', {'first': 'blocks.2.project_bn: sum_to [backward]', 'second': 'blocks.2.project_bn: pointwise+sum_to [backward]', 'mid': 'first<0'}, reductions_only=True),  # saves 55296 bytes
    at('SiblingFusion', {'first': 'blocks.2.depthwise_bn: sum_to [backward]', 'second': 'blocks.2.depthwise_bn: pointwise+sum_to [backward]', 'mid': 'first<0'}, reductions_only=True),  # saves 221184 bytes
    at('SiblingFusion', {'first': 'blocks.2.expand_bn: sum_to [backward]', 'second': 'blocks.2.expand_bn: pointwise+sum_to [backward]', 'mid': 'first<0'}, reductions_only=True),  # saves 221184 bytes
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: bn_apply+silu', 'second': 'blocks.2.squeeze_excite: mean', 'mid': 'first>0'}, several='recompute'),  # saves -768 bytes
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: bn_apply+silu', 'second': 'blocks.2.squeeze_excite: mul', 'mid': 'first>0'}, several='recompute'),  # saves 442368 bytes
    at('MapFusion', {'first': 'blocks.2: pointwise [backward]', 'second': 'blocks.2: pointwise [backward] #2', 'mid': 'first>0'}, several='recompute'),
    at('MapFusion', {'first': 'blocks.2.project_bn: reshape [backward] #2', 'second': 'blocks.2.project_bn: pointwise [backward] #3', 'mid': 'first>0'}, several='recompute'),
    at('MapFusion', {'first': 'blocks.2.project_bn: pointwise [backward]', 'second': 'blocks.2.project_bn: pointwise [backward] #3', 'mid': 'first>0'}, several='recompute'),  # saves -48 bytes
    at('MapFusion', {'first': 'blocks.2: pointwise [backward] #2', 'second': 'blocks.2.project_bn: sum_to+pointwise [backward]', 'mid': 'first>0'}, several='recompute'),  # saves -32 bytes
    at('MapFusion', {'first': 'blocks.2.project_bn: reshape [backward] #2', 'second': 'blocks.2.project_bn: reshape+pointwise [backward]', 'mid': 'first>0'}, several='recompute'),
    at('MapFusion', {'first': 'blocks.2.project_bn: reshape [backward] #2', 'second': 'blocks.2.project_bn: pointwise+reshape [backward]', 'mid': 'first>0'}, several='recompute'),  # saves 96 bytes
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: bn_apply [backward]', 'second': 'blocks.2: pointwise [backward] #3', 'mid': 'first>0'}, several='recompute'),  # saves -768 bytes
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: bn_apply [backward]', 'second': 'blocks.2: silu+pointwise+sum_to [backward]', 'mid': 'first>0'}, several='recompute'),  # saves 442368 bytes
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: reshape [backward] #2', 'second': 'blocks.2.depthwise_bn: pointwise [backward] #3', 'mid': 'first>0'}, several='recompute'),
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: pointwise [backward]', 'second': 'blocks.2.depthwise_bn: pointwise [backward] #3', 'mid': 'first>0'}, several='recompute'),  # saves -192 bytes
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: pointwise [backward]', 'second': 'blocks.2.depthwise_bn: sum_to+pointwise [backward]', 'mid': 'first>0'}, several='recompute'),  # saves 442368 bytes
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: reshape [backward] #2', 'second': 'blocks.2.depthwise_bn: reshape+pointwise [backward]', 'mid': 'first>0'}, several='recompute'),
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: reshape [backward] #2', 'second': 'blocks.2.depthwise_bn: pointwise+reshape [backward]', 'mid': 'first>0'}, several='recompute'),  # saves 384 bytes
    at('MapFusion', {'first': 'blocks.2.expand_bn: bn_apply [backward]', 'second': 'blocks.2: pointwise [backward] #3', 'mid': 'first>0'}, several='recompute'),  # saves -768 bytes
    at('MapFusion', {'first': 'blocks.2.expand_bn: bn_apply [backward]', 'second': 'blocks.2: silu [backward]', 'mid': 'first>0'}, several='recompute'),  # saves 442368 bytes
    at('MapFusion', {'first': 'blocks.2.expand_bn: reshape [backward] #2', 'second': 'blocks.2.expand_bn: pointwise [backward] #3', 'mid': 'first>0'}, several='recompute'),
    at('MapFusion', {'first': 'blocks.2.expand_bn: pointwise [backward]', 'second': 'blocks.2.expand_bn: pointwise [backward] #3', 'mid': 'first>0'}, several='recompute'),  # saves -192 bytes
    at('MapFusion', {'first': 'blocks.2.expand_bn: pointwise [backward]', 'second': 'blocks.2.expand_bn: sum_to+pointwise [backward]', 'mid': 'first>0'}, several='recompute'),  # saves 442368 bytes
    at('MapFusion', {'first': 'blocks.2.expand_bn: reshape [backward] #2', 'second': 'blocks.2.expand_bn: reshape+pointwise [backward]', 'mid': 'first>0'}, several='recompute'),
    at('MapFusion', {'first': 'blocks.2.expand_bn: reshape [backward] #2', 'second': 'blocks.2.expand_bn: pointwise+reshape [backward]', 'mid': 'first>0'}, several='recompute'),  # saves 384 bytes
    at('MapFusion', {'first': 'blocks.2: pointwise [backward] #2', 'second': 'blocks.2.project_bn: pointwise [backward] #3', 'mid': 'first>0'}, several='recompute'),  # saves 110592 bytes
    at('MapFusion', {'first': 'blocks.2.project_bn: pointwise [backward]', 'second': 'blocks.2: pointwise+sum_to [backward]', 'mid': 'first>0'}, several='recompute'),  # saves 110592 bytes
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: bn_apply+pointwise [backward]', 'second': 'blocks.2.depthwise_bn: pointwise [backward] #2', 'mid': 'first>0'}, several='recompute'),  # saves -768 bytes
    at('MapFusion', {'first': 'blocks.2.depthwise_bn: bn_apply+pointwise [backward]', 'second': 'blocks.2.depthwise_bn: pointwise+sum_to [backward]', 'mid': 'first>0'}, several='recompute'),  # saves 663552 bytes
    at('MapFusion', {'first': 'blocks.2.expand_bn: bn_apply+pointwise [backward]', 'second': 'blocks.2.expand_bn: pointwise [backward] #2', 'mid': 'first>0'}, several='recompute'),  # saves -768 bytes
    at('MapFusion', {'first': 'blocks.2.expand_bn: bn_apply+pointwise [backward]', 'second': 'blocks.2.expand_bn: pointwise+sum_to [backward]', 'mid': 'first>0'}, several='recompute'),  # saves 663552 bytes
    at('ImageFusion', {'first': 'blocks.2.expand_bn: bn_apply+silu', 'second': 'blocks.2.depthwise_conv: convolution', 'mid': 'first>0'}),  # saves 442368 bytes
    at('ImageFusion', {'first': 'blocks.2.expand_bn: bn_apply+silu+convolution', 'second': 'blocks.2.depthwise_bn: bn_statistics', 'mid': 'first>0'}),  # saves 221184 bytes
    at('ImageFusion', {'first': 'blocks.2.depthwise_bn: bn_apply+silu+mean', 'second': 'blocks.2.squeeze_excite: mean', 'mid': 'first>0'}),  # saves 3072 bytes
    at('ImageFusion', {'first': 'blocks.2.depthwise_bn: bn_apply+pointwise [backward]', 'second': 'blocks.2.depthwise_conv: conv_grad_input [backward]', 'mid': 'first>0'}),  # saves 221184 bytes
    at('ImageFusion', {'first': 'blocks.2.expand_bn: bn_apply+silu [backward]', 'second': 'blocks.2.depthwise_conv: conv_grad_weight [backward]', 'mid': 'first>0'}),  # saves 442368 bytes
    at('ImageFusion', {'first': 'blocks.2.depthwise_bn: bn_apply+pointwise+conv_grad_input [backward]', 'second': 'blocks.2.expand_bn: bn_apply+pointwise+sum_to [backward]', 'mid': 'first>1'}),  # saves 221184 bytes
    at('ImageFusion', {'first': 'blocks.2.depthwise_bn: bn_apply+pointwise+conv_grad_input+sum_to [backward]', 'second': 'blocks.2.expand_bn: bn_apply+silu+conv_grad_weight [backward]', 'mid': 'first>0'}),  # saves 664320 bytes
    at('SiblingFusion', {'first': 'blocks.2: pointwise [backward]', 'second': 'blocks.2: pointwise [backward] #2', 'mid': 'first<0'}),  # saves 55296 bytes
    at('SiblingFusion', {'first': 'blocks.2.project_bn: reshape+pointwise [backward]', 'second': 'blocks.2.project_bn: reshape+pointwise [backward] #2', 'mid': 'first<0'}),  # saves 48 bytes
    at('SiblingFusion', {'first': 'blocks.2.project_bn: pointwise [backward]', 'second': 'blocks.2.project_bn: reshape [backward] #2', 'mid': 'first<0'}),  # saves 48 bytes
    at('SiblingFusion', {'first': 'blocks.2.project_bn: reshape+pointwise [backward] #2', 'second': 'blocks.2.project_bn: reshape+pointwise [backward]', 'mid': 'first<0'}),  # saves 96 bytes
    at('SiblingFusion', {'first': 'blocks.2.squeeze_excite: pointwise [backward]', 'second': 'blocks.2.depthwise_bn: bn_apply+silu+pointwise+sum_to [backward]', 'mid': 'first<1'}),  # saves 221184 bytes
    at('SiblingFusion', {'first': 'blocks.2.depthwise_bn: reshape+pointwise [backward]', 'second': 'blocks.2.depthwise_bn: reshape+pointwise [backward] #2', 'mid': 'first<0'}),  # saves 192 bytes
    at('SiblingFusion', {'first': 'blocks.2.depthwise_bn: pointwise [backward]', 'second': 'blocks.2.depthwise_bn: reshape [backward] #2', 'mid': 'first<0'}),  # saves 192 bytes
    at('SiblingFusion', {'first': 'blocks.2.depthwise_bn: reshape+pointwise [backward] #2', 'second': 'blocks.2.depthwise_bn: reshape+pointwise [backward]', 'mid': 'first<0'}),  # saves 384 bytes
    at('SiblingFusion', {'first': 'blocks.2.expand_bn: reshape+pointwise [backward]', 'second': 'blocks.2.expand_bn: reshape+pointwise [backward] #2', 'mid': 'first<0'}),  # saves 192 bytes
    at('SiblingFusion', {'first': 'blocks.2.expand_bn: pointwise [backward]', 'second': 'blocks.2.expand_bn: reshape [backward] #2', 'mid': 'first<0'}),  # saves 192 bytes
    at('SiblingFusion', {'first': 'blocks.2.expand_bn: reshape+pointwise [backward] #2', 'second': 'blocks.2.expand_bn: reshape+pointwise [backward]', 'mid': 'first<0'}),  # saves 384 bytes
    at('AliasViews', {'copy': 'blocks.2.project_bn: reshape [backward]', 'mid': 'copy>0'}),  # saves 96 bytes
    at('AliasViews', {'copy': 'blocks.2.squeeze_excite: expand [backward]', 'mid': 'copy>0'}),  # saves 222720 bytes
    at('AliasViews', {'copy': 'blocks.2.depthwise_bn: reshape [backward]', 'mid': 'copy>0'}),  # saves 384 bytes
    at('AliasViews', {'copy': 'blocks.2.expand_bn: reshape [backward]', 'mid': 'copy>0'}),  # saves 384 bytes
    stage('Schedule'),
    at('InPlace', {'node': 'blocks.2.expand_bn: bn_apply+pointwise [backward]', 'operand': 'node<5', 'mid': 'node>0'}),
])
