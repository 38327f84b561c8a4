"""Optimizers and schedules for Keras 3, usable without the rest of this project."""

from custom_optimizers.adagrad import Adagrad, RowWiseAdagrad
from custom_optimizers.adam import Adam, AdamW, LazyAdam, LazyAdamW
from custom_optimizers.adan import Adan
from custom_optimizers.ademamix import AdEMAMix
from custom_optimizers.adopt import ADOPT
from custom_optimizers.averaging import StochasticWeightAveraging
from custom_optimizers.chain import Cautious, Chain, chain
from custom_optimizers.clipping import global_norm
from custom_optimizers.cycles import ExpRange, OneCycle, OneCycleMomentum, Triangular, Triangular2
from custom_optimizers.dadapt_adam import DAdaptAdam
from custom_optimizers.decays import WSD, LinearToZero, WarmUpCosine
from custom_optimizers.embedding import SparseEmbedding
from custom_optimizers.evaluation import EvaluationWeights, evaluating, evaluation_weights
from custom_optimizers.ftrl import Ftrl
from custom_optimizers.lars import LARS
from custom_optimizers.lookahead import Lookahead
from custom_optimizers.loss_scale import LossScaleOptimizer
from custom_optimizers.mars import MARS
from custom_optimizers.momentum import SGD, Momentum
from custom_optimizers.muon import Muon
from custom_optimizers.optimizer import Optimizer
from custom_optimizers.prodigy import Prodigy
from custom_optimizers.radam import RAdam
from custom_optimizers.replicas import sum_over_replicas
from custom_optimizers.sam import ASAM, SAM, sharpness_aware
from custom_optimizers.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from custom_optimizers.schedules import Join, WarmUp, join
from custom_optimizers.shampoo import Shampoo
from custom_optimizers.soap import SOAP
from custom_optimizers.sophia import Sophia, gauss_newton_bartlett, hutchinson
from custom_optimizers.swats import SWATS
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
    "ASAM",
    "LARS",
    "MARS",
    "SAM",
    "SGD",
    "SOAP",
    "SWATS",
    "WSD",
    "AdEMAMix",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adan",
    "Cautious",
    "Chain",
    "DAdaptAdam",
    "EvaluationWeights",
    "ExpRange",
    "Ftrl",
    "Join",
    "LazyAdam",
    "LazyAdamW",
    "LinearToZero",
    "Lookahead",
    "LossScaleOptimizer",
    "Momentum",
    "Muon",
    "OneCycle",
    "OneCycleMomentum",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RowWiseAdagrad",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Shampoo",
    "Sophia",
    "SparseEmbedding",
    "StochasticWeightAveraging",
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
    "gauss_newton_bartlett",
    "global_norm",
    "hutchinson",
    "join",
    "multiply_learning_rate",
    "sharpness_aware",
    "sum_over_replicas",
]
