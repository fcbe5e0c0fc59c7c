"""Names of the layers that are built without the caller's help.

A file may ask for these and nothing else; what runs code of its own (`TFSMLayer`, `JaxLayer`,
`TorchModuleWrapper`) or reads other files (vocabularies) is not among them.
"""

from __future__ import annotations

from pellucid.adapters.legacy.spelling import CLASSES, LOST

__all__ = ["KERAS_LAYERS"]

_BUILT_IN = (
    "Activation AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D "
    "AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AdditiveAttention "
    "AlphaDropout Attention AutoContrast Average AveragePooling1D AveragePooling2D "
    "AveragePooling3D BatchNormalization Bidirectional CategoryEncoding CenterCrop "
    "Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose "
    "ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D Cropping2D Cropping3D Dense DepthwiseConv1D "
    "DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Equalization Flatten GRU "
    "GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D "
    "GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D "
    "GroupNormalization GroupQueryAttention Identity InputLayer LSTM Lambda "
    "LayerNormalization LeakyReLU Masking MaxPooling1D MaxPooling2D MaxPooling3D Maximum "
    "Merge Minimum MultiHeadAttention Multiply Normalization PReLU Permute RMSNormalization "
    "RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop "
    "RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHeight RandomHue "
    "RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation "
    "RandomSharpness RandomShear RandomTranslation RandomWidth RandomZoom ReLU RepeatVector "
    "Rescaling Reshape Resizing SeparableConv1D SeparableConv2D SimpleRNN Softmax "
    "Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization "
    "Subtract TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D "
    "ZeroPadding1D ZeroPadding2D ZeroPadding3D"
)

# LayerScale is many an author's own: `spelling.familiar` tells the one that is meant.
KERAS_LAYERS = frozenset(CLASSES) | LOST - {"LayerScale"} | frozenset(_BUILT_IN.split())
