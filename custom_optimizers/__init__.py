"""Optimizers and schedules for Keras 3, usable without the rest of this project."""

from custom_optimizers.adagrad import Adagrad, RowWiseAdagrad
from custom_optimizers.adam import Adam, AdamW, LazyAdam, LazyAdamW
from custom_optimizers.adan import Adan
from custom_optimizers.ademamix import AdEMAMix
from custom_optimizers.adopt import ADOPT
from custom_optimizers.chain import Cautious, Chain, chain
from custom_optimizers.clipping import global_norm
from custom_optimizers.cycles import ExpRange, OneCycle, OneCycleMomentum, Triangular, Triangular2
from custom_optimizers.decays import WSD, LinearToZero, WarmUpCosine
from custom_optimizers.embedding import SparseEmbedding
from custom_optimizers.evaluation import EvaluationWeights, evaluating, evaluation_weights
from custom_optimizers.ftrl import Ftrl
from custom_optimizers.lars import LARS
from custom_optimizers.loss_scale import LossScaleOptimizer
from custom_optimizers.mars import MARS
from custom_optimizers.momentum import SGD, Momentum
from custom_optimizers.optimizer import Optimizer
from custom_optimizers.radam import RAdam
from custom_optimizers.replicas import sum_over_replicas
from custom_optimizers.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from custom_optimizers.schedules import Join, WarmUp, join
from custom_optimizers.transforms import (
    adaptive_gradient_clipping,
    cautious,
    centralize_gradients,
    clip_by_global_norm,
    clip_by_value,
    decay_weights,
    multiply_learning_rate,
)

__all__ = [
    "ADOPT",
    "LARS",
    "MARS",
    "SGD",
    "WSD",
    "AdEMAMix",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adan",
    "Cautious",
    "Chain",
    "EvaluationWeights",
    "ExpRange",
    "Ftrl",
    "Join",
    "LazyAdam",
    "LazyAdamW",
    "LinearToZero",
    "LossScaleOptimizer",
    "Momentum",
    "OneCycle",
    "OneCycleMomentum",
    "Optimizer",
    "RAdam",
    "RowWiseAdagrad",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "SparseEmbedding",
    "Triangular",
    "Triangular2",
    "WarmUp",
    "WarmUpCosine",
    "adaptive_gradient_clipping",
    "cautious",
    "centralize_gradients",
    "chain",
    "clip_by_global_norm",
    "clip_by_value",
    "decay_weights",
    "evaluating",
    "evaluation_weights",
    "global_norm",
    "join",
    "multiply_learning_rate",
    "sum_over_replicas",
]
