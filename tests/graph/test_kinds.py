"""One vocabulary of kinds, whatever the framework calls a layer."""

import pytest

from pellucid.graph.kinds import kind_of


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("Conv2D", ("Conv2d", "Conv2D", "Convolution2D", "LazyConv2d", "AtrousConvolution2D")),
        ("ConvTranspose2D", ("ConvTranspose2d", "Conv2DTranspose", "Deconvolution2D")),
        ("ConvTranspose3D", ("ConvTranspose3d", "Conv3DTranspose")),
        ("BatchNorm", ("BatchNorm2d", "BatchNormalization", "SyncBatchNorm")),
        ("AveragePool2D", ("AvgPool2d", "AveragePooling2D")),
        ("Dense", ("Linear", "Dense", "Gemm")),
        ("Upsample2D", ("UpSampling2D", "Upsample2d")),
    ],
)
def test_frameworks_spell_one_kind_in_many_ways(kind, names):
    assert {kind_of(name) for name in names} == {kind}


def test_operators_say_no_rank_and_custom_layers_keep_their_name():
    assert kind_of("ConvTranspose", 2) == "ConvTranspose2D"
    assert kind_of("MyBlock2D") == "MyBlock2D"
