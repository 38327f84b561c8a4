"""What can be set on each model, apart from training: plain values, importable without TensorFlow."""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Image:
    """A convolutional classifier: stages of [convolution, batch norm, ReLU], each of which halves the image."""

    task: ClassVar[str] = "image"
    height: int = 32
    """Pixels; images of another size are resized."""
    width: int = 32
    """Pixels."""
    channels: Literal[1, 3] = 3
    """1 reads images as grey, 3 as RGB."""
    filters: tuple[int, ...] = (32, 64, 128)
    """Output channels of each stage."""
    convolutions: int = 2
    """3x3 convolutions a stage."""
    stem: int = 0
    """Output channels of a 3x3 convolution without padding before the first stage; 0: there is none."""
    pool: Literal["last", "first"] = "last"
    """Where a stage halves the image: last, after its convolutions (the last stage does not), or first, after its first
    convolution, which leaves a quarter of the work to the others."""
    dropout: float = 0.2
    """Share of the units dropped after each stage, and before the classifier."""
    batch_norm: bool = True
    """Normalise after each convolution."""
    sync_batch_norm: bool = True
    """Normalise by the statistics of the whole batch when replicas share it; otherwise each uses those of its part."""
    l1: float = 0.0
    """Weight of the sum of |w| over the kernels, added to the loss."""
    l2: float = 0.0
    """Weight of the sum of w^2 over the kernels, added to the loss."""
    label_smoothing: float = 0.0
    """Share of the target's mass spread evenly over all classes."""
    flip: bool = False
    """Training images are mirrored left to right with probability 1/2."""
    crop: int = 0
    """Training images are padded by this many pixels on each side (reflected) and cropped back at a random place."""
    mirror: bool = False
    """The scores served are the mean of those of an image and of its mirror image: twice the work, fewer errors."""


@dataclass(frozen=True)
class Sentiment:
    """A recurrent classifier of texts: embedding, LSTM or GRU, pooling over the words that are there, one logit."""

    task: ClassVar[str] = "sentiment"
    vocabulary_size: int = 20_000
    """Most frequent tokens that get an id of their own; the others share one."""
    max_tokens: int = 256
    """Texts are cut after this many tokens."""
    embedding: int = 64
    """Width of the token embedding."""
    cell: Literal["lstm", "gru"] = "lstm"
    """The recurrent cell."""
    units: int = 64
    """Width of the recurrent state, in each direction."""
    bidirectional: bool = True
    """Read the text forwards and backwards."""
    max_pooling: bool = False
    """The classifier sees the largest value of each unit over the text beside the mean."""
    dropout: float = 0.5
    """Share of the units dropped after the embedding and before the classifier."""
    word_dropout: float = 0.0
    """Share of the words that training leaves out, so that no single one is relied on."""
    bigrams: int = 0
    """Weights that all pairs of neighbouring words share by hash, in a linear model of words and pairs trained beside
    the network; the answer is the mean of both. 0: the network alone."""
    l1: float = 0.0
    """Weight of the sum of |w| over the kernels, added to the loss."""
    l2: float = 0.0
    """Weight of the sum of w^2 over the kernels, added to the loss."""
    label_smoothing: float = 0.0
    """Share of the target's mass spread evenly over both classes."""


@dataclass(frozen=True)
class Recommendation:
    """Matrix factorisation: rating = mean + user bias + item bias + <user factors, item factors>, or the mean of
    several."""

    task: ClassVar[str] = "recommendation"
    factors: int = 32
    """Width of the user and item vectors."""
    members: int = 1
    """Factorisations trained side by side from different starts; the rating is the mean of theirs. Many small, lightly
    regularised ones beat a single one."""
    l2: float = 0.02
    """Weight of the squared norm of the rows looked up, per example, added to the loss."""
    k: int = 10
    """Length of the list that `recommend` answers with."""


Options = Image | Sentiment | Recommendation
