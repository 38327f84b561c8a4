"""Optimizers and schedules for Keras 3, usable without the rest of this project."""

from custom_optimizers.adagrad import Adagrad, RowWiseAdagrad
from custom_optimizers.adam import Adam, AdamW, LazyAdam, LazyAdamW
from custom_optimizers.chain import Cautious, Chain, chain
from custom_optimizers.clipping import global_norm
from custom_optimizers.cycles import ExpRange, OneCycle, OneCycleMomentum, Triangular, Triangular2
from custom_optimizers.decays import WSD, LinearToZero, WarmUpCosine
from custom_optimizers.embedding import SparseEmbedding
from custom_optimizers.evaluation import EvaluationWeights, evaluating, evaluation_weights
from custom_optimizers.loss_scale import LossScaleOptimizer
from custom_optimizers.optimizer import Optimizer
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
    "WSD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Cautious",
    "Chain",
    "EvaluationWeights",
    "ExpRange",
    "Join",
    "LazyAdam",
    "LazyAdamW",
    "LinearToZero",
    "LossScaleOptimizer",
    "OneCycle",
    "OneCycleMomentum",
    "Optimizer",
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
